"""Running `sshmux` as its user does: as a process, with the environment of a client of the server."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.support.master import Master
from tests.support.sshd import HOST, Sshd, program

COMMAND_DEADLINE_S = 60.0
OK, REFUSED_BY_US, USAGE, SSH_FAILED = 0, 1, 2, 255


def sshmux(sshd: Sshd, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """Run it with these arguments; `said` is its standard input."""
    return subprocess.run(
        [sys.executable, "-m", "mux", *arguments],
        input=said,
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        env=sshd.environment(),
    )


def about(master: Master, command: str, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """Run a subcommand about the host of `master`, at its control path."""
    place = ["-F", str(master.config), "-S", master.control_path]
    return sshmux(master.sshd, command, *place, *arguments, HOST, said=said)


@contextmanager
def rider(master: Master) -> Iterator[subprocess.Popen[bytes]]:
    """A real ssh with a session on `master`, which has begun: it ends when its stdin does."""
    process = subprocess.Popen(
        [program("ssh"), "-F", str(master.config), "-S", master.control_path, HOST, "echo here; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=master.sshd.environment(),
    )
    try:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"here\n"
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass


def read_terminal(terminal: int) -> bytes:
    """What is shown next; nothing when the other end is closed, for which Linux has an error. Never waits for ever."""
    assert select.select([terminal], [], [], COMMAND_DEADLINE_S)[0], "nothing more is shown"
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def rows(output: str) -> Sequence[dict[str, str]]:
    """A table of `sshmux list`, by the names of its columns."""
    head, *lines = output.splitlines()
    return [dict(zip(head.split(), line.split(None, 6), strict=True)) for line in lines]
