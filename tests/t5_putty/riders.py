"""PuTTY's tools as riders on an upstream of ours.

The rule: they have no key and no host key, and ask nobody. So what works for them, they share.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from mux.rendezvous import putty
from tests.support.putty import ADDRESS, environment, remove_directory
from tests.support.sshd import HOST, Sshd, program

DEADLINE_S = 60.0
ALIASES = (ADDRESS, HOST)


class Riders:
    """The tools, for the connection to one server.

    name   of the connection, as plink computes it
    path   of the socket that belongs to it
    """

    def __init__(self, sshd: Sshd, host: str = ADDRESS) -> None:
        self.sshd = sshd
        self.host = host
        self.env = environment(sshd)
        self.destination = f"{sshd.user}@{host}"
        self.name = putty.connection_name(host, sshd.user, sshd.port)

    @property
    def path(self) -> str:
        return os.path.join(putty.directory_of(self.name), putty.SOCKET)

    @property
    def published(self) -> bool:
        return os.path.exists(self.path)

    def at(self, host: str) -> Riders:
        """The same for another name of the server."""
        return Riders(self.sshd, host)

    def forget(self) -> None:
        """Remove what an upstream that was killed, or a tool that merely looked, left of this server's names."""
        for host in ALIASES:
            for user in (self.sshd.user, None):
                remove_directory(putty.directory_of(putty.connection_name(host, user, self.sshd.port)))

    def command(self, tool: str, *options: str) -> list[str]:
        return [program(tool), "-share", "-batch", "-P", str(self.sshd.port), *options]

    def plink(
        self, *command: str, options: tuple[str, ...] = (), data: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """A remote command, or what `options` say."""
        return self._run(self.command("plink", *options, self.destination, *command), data)

    def exists(self, *options: str) -> bool:
        """`plink -shareexists`"""
        where = ("-P", str(self.sshd.port), self.destination)
        done = self._run([program("plink"), *options, "-shareexists", *where], b"")
        assert done.returncode in (0, 1) and not done.stdout, done
        return done.returncode == 0

    def pscp(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """`{}` in an argument is the server."""
        return self._run(self.command("pscp", "-q", *(one.format(self.destination) for one in arguments)), b"")

    def psftp(self, *lines: str, destination: str | None = None) -> subprocess.CompletedProcess[bytes]:
        data = "".join(f"{line}\n" for line in lines).encode()
        batch = ("-b", "/dev/stdin", destination or self.destination)
        return self._run(self.command("psftp", *batch), data)

    @contextmanager
    def started(
        self, *command: str, options: tuple[str, ...] = (), tool: str = "plink"
    ) -> Iterator[subprocess.Popen[bytes]]:
        """plink, running; it is killed at the end if it still runs."""
        process = subprocess.Popen(
            self.command(tool, *options, self.destination, *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=DEADLINE_S)

    def _run(self, command: list[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, input=data, capture_output=True, timeout=DEADLINE_S, env=self.env)


def said(process: subprocess.Popen[bytes], line: bytes) -> None:
    """Read a line of its output, which has to be this one."""
    assert process.stdout is not None
    got = process.stdout.readline()
    assert got == line, (got, process.poll())


def works(riders: Riders) -> bool:
    """Whether the connection serves everybody else."""
    done = riders.plink("echo still here")
    return (done.returncode, done.stdout) == (0, b"still here\n")
