"""Whose end SIGHUP may tell of."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, pty, signal, sys
from nommerd.hangup import Terminal

ready, go = os.pipe(), os.pipe()
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
child, ours = pty.fork()
if child == 0:
    terminal = Terminal()
    signal.signal(signal.SIGHUP, lambda *_: None)
    before = terminal.gone
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    os._exit(2 * before + terminal.gone)
os.read(ready[0], 1)
os.close(ours)
os.write(go[1], b"x")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("disposition", "gone"), [("SIG_DFL", True), ("SIG_IGN", False)])
def test_a_terminal_is_gone_once_it_has_hung_up_unless_its_end_was_to_be_ignored(disposition: str, gone: bool) -> None:
    ended = subprocess.run([sys.executable, "-c", CODE, disposition], capture_output=True, text=True, timeout=20)
    assert ended.stdout == f"{int(gone)}\n", ended.stderr
