"""A real `plink -share -N` to an `Sshd`: the upstream that PuTTY's tools, and mounts, join.

The rule: only what is ours is removed. PuTTY's directory and salt are the user's for ever; the directory of our
connection, which has its name from a port that nobody else uses, goes when the upstream has ended. PuTTY's own files
(the random seed) are kept away from the user's by PUTTYDIR.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from mux.rendezvous import putty
from tests.support import processes
from tests.support.master import END_DEADLINE_S, START_DEADLINE_S, MasterError
from tests.support.sshd import Sshd, program

ADDRESS = "127.0.0.1"


def identity(sshd: Sshd) -> list[str]:
    """The arguments of PuTTY's tools by which a login to the server succeeds without a question."""
    key = sshd.directory / "user_key.ppk"
    if not key.exists():
        source = str(sshd.directory / "user_key")
        command = [program("puttygen"), source, "-O", "private", "-o", str(key)]
        subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL, env=environment(sshd))
    said = subprocess.run(
        [program("ssh-keygen"), "-lf", str(sshd.directory / "host_key.pub")],
        check=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    ).stdout
    return ["-hostkey", said.split()[1], "-i", str(key)]


def environment(sshd: Sshd) -> dict[str, str]:
    """The environment for PuTTY's tools, with a place of their own for what they write."""
    directory = sshd.directory / "putty"
    directory.mkdir(exist_ok=True)
    return {**sshd.environment(), "PUTTYDIR": str(directory)}


def run(sshd: Sshd, *command: str, timeout_s: float = 30.0, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run plink, pscp or psftp to its end, `text` its input: `run(sshd, "plink", "-share", ...)`."""
    return subprocess.run(
        [program(command[0]), *command[1:]],
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(sshd),
    )


class PuttyUpstream:
    """A `plink -share -N` that takes downstreams once constructed; a context manager.

    name          what its directory is hashed from
    path          of its socket
    """

    def __init__(
        self,
        sshd: Sshd,
        *,
        host: str = ADDRESS,
        port: int | None = None,
        options: Sequence[str] = (),
        command: Sequence[str] = ("-N",),
        wait: bool = True,
    ) -> None:
        """`port`: another way to the server; `command`: what it runs itself; `wait` False returns at once."""
        self.sshd = sshd
        self.host = host
        self.port = port or sshd.port
        self.config = sshd.ssh_config if port is None else sshd.via(port)
        self.name = putty.connection_name(host, sshd.user, self.port)
        parent = putty.parent_directory()
        if not os.path.exists(parent):
            putty.make_directory(parent)
        putty.make_salt(parent)
        self.directory = putty.directory_of(self.name)
        self.path = os.path.join(self.directory, putty.SOCKET)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [
                *(program("plink"), "-share", "-batch", "-v", "-P", str(self.port)),
                *identity(sshd),
                *options,
                *("-N" for word in command if word == "-N"),
                f"{sshd.user}@{host}",
                *(word for word in command if word != "-N"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            env=environment(sshd),
        )
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Return when it is logged in and shares. Raises MasterError when it ended, or did not in time."""
        self.wait_said("Sharing this connection at")
        self.wait_said("Access granted")

    def wait_said(self, words: str) -> None:
        """Return when it has written `words`."""
        until = time.monotonic() + START_DEADLINE_S
        while words not in self.log_text():
            if not self.running:
                raise MasterError(f"plink ended with {self._process.returncode}; it said:\n{self.log_text()}")
            if time.monotonic() > until:
                raise MasterError(f"plink never said {words!r}; it said:\n{self.log_text()}")
            time.sleep(processes.POLL_S)

    def log_text(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def plink(self, *command: str, timeout_s: float = 30.0, text: str = "") -> subprocess.CompletedProcess[str]:
        """A command through it by another plink, which could not log in by itself."""
        where = ("-P", str(self.port), f"{self.sshd.user}@{self.host}")
        return run(self.sshd, "plink", "-share", "-batch", *where, *command, timeout_s=timeout_s, text=text)

    def psftp(self, *lines: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Lines for psftp through it."""
        where = ("-P", str(self.port), f"{self.sshd.user}@{self.host}")
        return run(
            self.sshd, "psftp", "-share", "-batch", *where, timeout_s=timeout_s, text="".join(f"{x}\n" for x in lines)
        )

    def signal(self, number: signal.Signals) -> None:
        processes.send_signal(processes.known(self.pid), number)

    def freeze(self) -> None:
        """Stop it, and wait until it is: a signal to another process takes its time."""
        self.signal(signal.SIGSTOP)
        until = time.monotonic() + END_DEADLINE_S
        while processes.known(self.pid).state != "T" and time.monotonic() < until:
            time.sleep(processes.POLL_S)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once, as after a crash: its files stay."""
        self.signal(signal.SIGKILL)
        self._process.wait(END_DEADLINE_S)

    def wait_ended(self, deadline_s: float = END_DEADLINE_S) -> int:
        """Wait until it has ended by itself; return its exit status."""
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise MasterError(f"plink lives on; it said:\n{self.log_text()}") from None

    def close(self) -> None:
        """End it, and remove what it left of its own. Idempotent."""
        if self._log.closed:
            return
        if self.running:
            self.thaw()
            self._process.terminate()
            try:
                self._process.wait(END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._log.close()
        remove_directory(self.directory)


def remove_directory(directory: str) -> None:
    """Remove the directory of one connection, which is a test's own."""
    assert Path(directory).parent == Path(putty.parent_directory()) and len(os.path.basename(directory)) == 64
    shutil.rmtree(directory, ignore_errors=True)
