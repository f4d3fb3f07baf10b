"""The daemons' files for supervisor, held against what the daemons promise."""

from __future__ import annotations

import re
from configparser import RawConfigParser

import pytest

from nommerd import feeder, livecheck, starting, worker
from nommerd.places import shipped_conf

# file -> what its daemon takes to stop
FILES = {"feeder": feeder.STOP_SECONDS + 2, "worker": worker.STOP_SECONDS + 1, "node": worker.STOP_SECONDS + 1}


@pytest.mark.parametrize(("name", "stop_seconds"), FILES.items())
def test_a_daemon_is_running_only_when_it_can_work_and_is_killed_only_when_it_does_not_stop(
        name: str, stop_seconds: float) -> None:
    parser = RawConfigParser(inline_comment_prefixes=None)
    parser.read(shipped_conf() / "supervisor" / f"{name}.conf")
    role = "feeder" if name == "feeder" else "worker"
    daemon, health = parser[f"program:nommerd-{role}"], parser[f"eventlistener:nommerd-{role}-health"]
    within = re.search(r" --ready-within (\d+)", daemon["command"])
    assert within, "RUNNING is meant seriously"
    assert int(daemon["startsecs"]) > int(within[1]) + starting.END_SECONDS
    assert daemon["stopsignal"] == "TERM"
    assert int(daemon["stopwaitsecs"]) > stop_seconds
    assert (daemon["killasgroup"], daemon["user"]) == ("true", "nommerd")
    assert daemon["command"].startswith("/usr/bin/setpriv --pdeathsig TERM /opt/nommerd/bin/nommerd ")
    assert health["command"].endswith(f" -I -m {livecheck.__name__} nommerd-{role}")
