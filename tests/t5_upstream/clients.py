"""Real programs that can only join: ssh, scp, sftp, rsync and git with a configuration that allows them nothing else.

The rule: a client that could not join fails. OpenSSH's clients log in by themselves when the sharing of a connection
fails, without a word in some cases, and a test of sharing would pass with nothing shared; so whoever tries that here
gets a proxy command that only fails.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.support.master import Master
from tests.support.sshd import HOST, Sshd, program
from tests.support.waiting import wait_until

# For anything that takes a fraction of a second on an idle machine.
DEADLINE_S = 60.0
# How such a client ends.
NOT_JOINED = b"Connection closed by UNKNOWN port"
# What ssh ends with when the fault is the connection's, and not the command's.
SSH_FAILED = 255

Descriptor = int | IO[bytes] | None
_numbers = itertools.count()


class Clients:
    """The programs, for one connection, or for none: then each logs in by itself, to compare with.

    config  their configuration; the host is "box"
    """

    def __init__(self, sshd: Sshd, control_path: str | None, *lines: str) -> None:
        """`lines`: further lines of ssh_config, before all others."""
        self.sshd = sshd
        self.control_path = control_path
        self.config = sshd.directory / f"clients.{next(_numbers)}"
        before = [f"Host {HOST}", *lines, "ControlMaster no"]
        if control_path is None:
            before += ["ControlPath none"]
        else:
            before += [f"ControlPath {control_path}", "ProxyCommand exit 1"]
        self.config.write_text("\n    ".join(before) + "\n" + sshd.ssh_config.read_text())

    @classmethod
    def of(cls, holder: Master, *lines: str) -> Clients:
        return cls(holder.sshd, holder.control_path, *lines)

    def command(self, *arguments: str, name: str = "ssh") -> list[str]:
        """The command line of ssh, scp or sftp with this configuration."""
        return [program(name), "-F", str(self.config), *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        """For any program; git and rsync find ssh by it."""
        ssh = " ".join(self.command())
        return {**self.sshd.environment(), "GIT_SSH_COMMAND": ssh, "RSYNC_RSH": ssh, **more}

    def ssh(
        self,
        *arguments: str,
        input: bytes | None = None,
        stdin: Descriptor = subprocess.DEVNULL,
        stdout: Descriptor = subprocess.PIPE,
        stderr: Descriptor = subprocess.PIPE,
        env: dict[str, str] | None = None,
        timeout_s: float = DEADLINE_S,
    ) -> subprocess.CompletedProcess[bytes]:
        """`ssh ARGUMENTS`, to its end: `clients.ssh("box", "true")`. The result is the caller's to judge."""
        return self.run(
            self.command(*arguments),
            input=input,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env or self.environment(),
            timeout_s=timeout_s,
        )

    def run(
        self,
        command: Sequence[str],
        *,
        input: bytes | None = None,
        stdin: Descriptor = subprocess.DEVNULL,
        stdout: Descriptor = subprocess.PIPE,
        stderr: Descriptor = subprocess.PIPE,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = DEADLINE_S,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run any command, in a session of its own."""
        given: dict[str, Any] = {"stdin": stdin} if input is None else {"input": input}
        return subprocess.run(
            list(command),
            **given,
            stdout=stdout,
            stderr=stderr,
            env=env or self.environment(),
            cwd=cwd,
            timeout=timeout_s,
            start_new_session=True,
        )

    def check(self, command: Sequence[str], **arguments: Any) -> bytes:
        """`run`, for its output; a failure raises AssertionError with what it said."""
        done = self.run(command, **arguments)
        said = (done.stderr or b"").decode(errors="replace")
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {said}"
        return done.stdout or b""

    def shell(self, script: str, **arguments: Any) -> subprocess.CompletedProcess[bytes]:
        """A local script in which `$SSH` is ssh with this configuration: `clients.shell("$SSH box date >> f")`."""
        env = self.environment(SSH=" ".join(self.command()))
        return self.run(["sh", "-c", script], env=env, **arguments)

    def control(self, request: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """`ssh -O REQUEST ARGUMENTS box`."""
        return self.ssh("-O", request, *arguments, HOST)

    @contextmanager
    def started(
        self,
        *arguments: str,
        stdin: Descriptor = subprocess.PIPE,
        stdout: Descriptor = subprocess.PIPE,
        stderr: Descriptor = subprocess.PIPE,
        env: dict[str, str] | None = None,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """`ssh ARGUMENTS`, running; killed at the end if need be, and its pipes closed."""
        process = subprocess.Popen(
            self.command(*arguments),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env or self.environment(),
            start_new_session=True,
            bufsize=0,
        )
        with killed_at_end(process):
            yield process


@contextmanager
def killed_at_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait(DEADLINE_S)


def ended(process: subprocess.Popen[bytes], deadline_s: float = DEADLINE_S) -> int:
    """Its exit code, once it has ended by itself."""
    return process.wait(deadline_s)


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of its output, without the end; pytest-timeout bounds it."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip(b"\r\n")


def say(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def wait_for_file(path: Path, deadline_s: float = DEADLINE_S) -> str:
    """Its text, once there is some."""
    wait_until(lambda: path.exists() and path.stat().st_size, f"something in {path}", deadline_s)
    return path.read_text()


def descriptors_of(pid: int) -> list[str]:
    """What the process has open, by the links in /proc/PID/fd."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue
    return found


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


@contextmanager
def witness(clients: Clients) -> Iterator[None]:
    """A session that goes on, whatever others do."""
    with clients.started(HOST, "cat; exit 6") as process:
        yield
        assert clients.ssh(HOST, "exit 3").returncode == 3
        say(process, b"still here\n")
        assert line_of(process) == b"still here"
        assert process.stdin is not None
        process.stdin.close()
        assert ended(process) == 6
