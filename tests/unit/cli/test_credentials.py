"""Which token a client command sends, and whom it never reaches: any user of a machine can listen at a port that is free."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import gevent
import pytest

from nommerd.cli import credentials
from nommerd.cli.checks import services
from nommerd.cli.checks.finding import Patient
from nommerd.cli.client import Client
from nommerd.cli.credentials import Token, find_token, token_in, token_of_feeder
from nommerd.config import load
from nommerd.errors import ConfigError, InfrastructureError
from nommerd.secrets import Secret
from tests.media import missing
from tests.rig import free_port
from tests.unit.cli.scripted import Feeder

OWNER, STRANGER = 54321, 65533


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of the machine's own installation, with its token; none of the machine that runs the test."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "token").write_text("of-the-machine\n")
    monkeypatch.setattr(credentials, "SYSTEM_DATA", folder)
    return folder


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


@pytest.fixture
def usual(tmp_path: Path) -> Path:
    """Where `nommerd up` would have put a token."""
    file = tmp_path / ".local/share/nommerd/token"
    file.parent.mkdir(parents=True)
    return file


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    """What sockets are made and taken meanwhile are this user's."""
    if os.geteuid() != 0:
        missing("root's rights")
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def listen_as(user: int, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """`dual`: all addresses, of IPv4 too."""
    six, dual = ":" in host, host == "dual"
    with acting_as(user):
        return socket.create_server(("::" if dual else host, port), dualstack_ipv6=dual,
                                    family=socket.AF_INET6 if six or dual else socket.AF_INET)


@contextmanager
def taking_one(server: socket.socket) -> Iterator[None]:
    """The stranger takes the next connection, on which nothing may come."""

    def take() -> socket.socket:
        gevent.socket.wait_read(server.fileno())
        with acting_as(STRANGER):
            return server.accept()[0]

    accepting = gevent.spawn(take)
    yield
    with accepting.get(timeout=10) as got:
        got.settimeout(10)
        assert got.recv(1) == b""


def give(user: int, *paths: Path) -> None:
    if os.geteuid() != 0:
        missing("root's rights")
    for path in paths:
        os.chown(path, user, user)


def url_of(server: socket.socket, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{server.getsockname()[1]}"


def test_the_machines_token_is_taken_where_its_feeder_listens(usual: Path, env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        url = url_of(ours, "localhost")
        usual.write_text("")  # what is empty is none
        assert find_token(None, env, url).secret.reveal() == "of-the-machine"
        usual.write_text("of-up")
        assert find_token(None, env, url).secret.reveal() == "of-the-machine", "its feeder listens here"
        assert find_token(None, {**env, "NOMMERD_TOKEN": "mine"}, url).secret.reveal() == "mine"
        for elsewhere in ("http://feeder.example:8001", "http://[::1", url + "7"):
            assert find_token(None, env, elsewhere).secret.reveal() == "of-up"


@pytest.mark.parametrize("url", ["http://feeder.example:8001", "https://10.0.0.1", "http://[::1", "ftp:"])
def test_elsewhere_there_is_no_token_of_the_machine(url: str, env: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="There is no API token"):
        find_token(None, env, url)


def test_what_listens_where_the_url_leads_decides_which_is_taken(data: Path, usual: Path, env: dict[str, str]) -> None:
    give(OWNER, data, data / "token")
    usual.write_text("of-up")

    def found(url: str) -> str:
        return find_token(None, env, url).secret.reveal()

    with listen_as(OWNER) as ours:
        port = ours.getsockname()[1]
        url = f"http://localhost:{port}"
        with listen_as(STRANGER, "127.0.0.2", port):
            assert found(url) == "of-the-machine", "nothing else listens where it leads"
        with listen_as(STRANGER, "::1", port):
            assert found(url) == "of-up", "it may lead to either"
        with listen_as(STRANGER, "::", port):
            assert found(f"http://127.0.0.1:{port}") == "of-the-machine", "who named the address gets what comes there"
    for host in ("0.0.0.0", "dual"):
        with listen_as(OWNER, host, port):
            assert found(f"http://127.0.0.1:{port}") == "of-the-machine", host
    with listen_as(OWNER, "::", port), listen_as(STRANGER, "0.0.0.0", port):
        assert found(f"http://[::1]:{port}") == "of-the-machine", "what is all of IPv4 is none of IPv6"
    with listen_as(STRANGER, port=port):
        assert found(url) == "of-up"


def test_a_token_is_for_who_could_read_it_anyway(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(OWNER, data / "token")
    give(OWNER + 1, data)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert token_of_feeder(data / "token").users == {0, 1000, OWNER}
    assert token_of_feeder(data / "token", data).users == {0, 1000, OWNER, OWNER + 1}


@pytest.mark.parametrize(("host", "at"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"),
                                          ("dual", "127.0.0.1"), ("dual", "::1")])
@pytest.mark.parametrize(("user", "may"), [(OWNER, True), (0, True), (STRANGER, False)])
def test_the_feeders_token_goes_to_processes_of_its_owner_and_of_root_alone(data: Path, user: int, may: bool, host: str,
                                                                           at: str) -> None:
    give(OWNER, data, data / "token")
    token = token_of_feeder(data / "token")
    with listen_as(user, host) as server, closing(socket.create_connection((at, server.getsockname()[1]))) as connection:
        with acting_as(user):
            taken, _ = server.accept()
        with taken:
            if may:
                token.confirm(connection)
            else:
                with pytest.raises(ConfigError, match=f"{data}/token was not sent: .* is a process of the user id {STRANGER}"):
                    token.confirm(connection)


def test_it_waits_until_somebody_has_taken_the_connection(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = token_of_feeder(data / "token")
    with listen_as(0) as server, closing(socket.create_connection(server.getsockname())) as connection:
        monkeypatch.setattr(credentials, "TAKEN_SECONDS", 0.1)
        with pytest.raises(TimeoutError):  # root may listen for another user
            token.confirm(connection)
        monkeypatch.undo()
        later = gevent.spawn_later(0.1, server.accept)
        token.confirm(connection)
        assert later.ready()


def test_a_connection_that_a_stranger_took_before_the_feeder_came_is_not_sent_it(data: Path) -> None:
    give(OWNER, data, data / "token")
    with listen_as(STRANGER) as server, closing(socket.create_connection(server.getsockname())) as connection:
        with acting_as(STRANGER):
            taken, _ = server.accept()
        server.close()
        with listen_as(OWNER, port=connection.getpeername()[1]), taken, pytest.raises(ConfigError, match="was not sent"):
            token_of_feeder(data / "token").confirm(connection)


def test_what_the_kernel_does_not_show_is_not_sent_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(connection: object) -> None:
        raise PermissionError

    with listen_as(0) as server, closing(socket.create_connection(server.getsockname())) as connection:
        token = token_of_feeder(data / "token")
        for shown in (lambda connection: None, unreadable):  # as of a port that leads elsewhere, and where the table is hidden
            monkeypatch.setattr(credentials, "end_of", shown)
            with pytest.raises(ConfigError, match="is not a process of this machine"):
                token.confirm(connection)
        Token(Secret("of-up")).confirm(connection)


def test_the_token_of_up_goes_to_no_stranger_either(usual: Path, env: dict[str, str]) -> None:
    usual.write_text("of-up")
    with listen_as(STRANGER) as stranger:
        client = Client(url_of(stranger), find_token(None, env, url_of(stranger)))
        with taking_one(stranger), pytest.raises(ConfigError, match=f"token was not sent: .* user id {STRANGER}"):
            client.call("GET", "/v1/jobs")


def test_it_is_asked_anew_for_each_connection(data: Path, feeder: Feeder) -> None:
    give(OWNER, data, data / "token")
    client = Client(feeder.url, token_of_feeder(data / "token"))
    feeder.script = [(200, {})]
    client.call("GET", "/v1/jobs")
    client.close()
    feeder.server.shutdown()
    feeder.server.server_close()
    with (listen_as(STRANGER, port=feeder.server.server_address[1]) as stranger, taking_one(stranger),
          pytest.raises(ConfigError, match=f"user id {STRANGER}")):
        client.call("GET", "/v1/jobs")
    assert len(feeder.asked) == 1


def test_where_nobody_listens_that_is_what_is_told(env: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    client = Client(url, find_token(None, env, url))
    with pytest.raises(InfrastructureError, match="No feeder answers"):
        client.call("GET", "/v1/jobs")


def test_the_doctor_tells_no_stranger_the_token_of_the_configuration(tmp_path: Path, data: Path) -> None:
    with listen_as(STRANGER) as stranger:
        config = tmp_path / "nommerd.yaml"
        config.write_text(f"paths: {{data: {data}}}\napi: {{port: {stranger.getsockname()[1]}}}\n")
        give(OWNER, data, data / "token")
        (data / "token").chmod(0o600)
        for url in (None, url_of(stranger)):
            patient = Patient(config_file=config, url=url, env={"HOME": str(tmp_path)}, settings=load(config, {}))
            with taking_one(stranger):
                told = [one for one in services.tokens(patient) if one.status == "fault"]
            assert [f"user id {STRANGER}" in one.message for one in told] == [True]
        patient.url = "http://feeder.example:1"
        told = [one for one in services.tokens(patient) if one.status == "warning"]
        assert [one.message for one in told] == [f"{data}/token was not tried: {patient.url} is not this machine's address."]


@pytest.mark.parametrize("lead", ["link", "pipe", "anothers", "empty"])
def test_root_is_led_nowhere_by_who_owns_the_data_directory(tmp_path: Path, data: Path, lead: str) -> None:
    secret, token = tmp_path / "secret", data / "token"
    secret.write_text("roots-own")
    give(OWNER, data, token)
    assert token_in(token).reveal() == "of-the-machine"
    token.unlink()
    {"link": lambda: token.symlink_to(secret), "pipe": lambda: os.mkfifo(token), "empty": token.touch,
     "anothers": lambda: shutil.copy(secret, token)}[lead]()
    with pytest.raises(OSError):
        token_in(token)
    if lead in ("link", "anothers"):
        os.chown(data, 0, 0)
        assert token_in(token).reveal() == "roots-own", "where nobody else may put anything, what is there is meant"


def test_a_link_in_the_data_directory_to_a_file_of_the_same_owner_is_not_followed_either(tmp_path: Path, data: Path) -> None:
    token, other = data / "token", tmp_path / "other"
    other.write_text("another-secret")
    give(OWNER, data, other)
    token.unlink()
    token.symlink_to(other)
    with pytest.raises(OSError):
        token_in(token)


def test_root_takes_no_usual_token_by_way_of_anothers_home(tmp_path: Path, usual: Path, env: dict[str, str]) -> None:
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots/token").write_text("roots-own")
    usual.parent.rmdir()
    usual.parent.symlink_to(tmp_path / "roots")
    assert find_token(None, env, "http://feeder.example").secret.reveal() == "roots-own"
    if os.geteuid() != 0:
        missing("root's rights")
    os.chown(usual.parent, OWNER, OWNER, follow_symlinks=False)
    with pytest.raises(ConfigError, match="There is no API token"):
        find_token(None, env, "http://feeder.example")


def test_a_user_whom_nobody_knows_is_told_that_there_is_no_token(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    (data / "token").unlink()
    with pytest.raises(ConfigError, match="There is no API token: /nonexistent/"):
        find_token(None, {})
