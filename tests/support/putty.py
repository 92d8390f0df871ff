"""A real `plink -share -N` to an `Sshd`: the upstream that PuTTY's tools, and mounts, join.

The rule: only what is ours is removed. PuTTY's directory and salt are the user's for ever; the directory of our
connection, which has its name from a port that nobody else uses, goes when the upstream has ended. PuTTY's own files
(the random seed) are kept away from the user's by PUTTYDIR.
"""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mux.rendezvous import putty
from tests.support.background import Background
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


class PuttyUpstream(Background):
    """A `plink -share -N` that takes downstreams once constructed; a context manager.

    Its input is a terminal, as a user's is: without one plink leaves TCP_NODELAY off, and much of what goes in two
    packets then takes 40 ms, whoever sends it.

    name          what its directory is hashed from
    path          of its socket
    """

    what = "plink"

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
        arguments = [
            *(program("plink"), "-share", "-batch", "-v", "-P", str(self.port)),
            *identity(sshd),
            *options,
            *("-N" for word in command if word == "-N"),
            f"{sshd.user}@{host}",
            *(word for word in command if word != "-N"),
        ]
        keyboard, terminal = pty.openpty()
        self._keyboard = os.fdopen(keyboard, "wb", buffering=0)
        try:
            super().__init__(arguments, environment(sshd), wait=wait, stdin=terminal)
        except BaseException:
            self._keyboard.close()
            raise
        finally:
            os.close(terminal)

    def wait_ready(self) -> None:
        """Return when it is logged in and shares. Raises BackgroundError when it ended, or did not in time."""
        self.wait_said("Sharing this connection at")
        self.wait_said("Access granted")

    def wait_said(self, words: str) -> None:
        """Return when it has written `words`."""
        self.wait_until(lambda: words in self.log_text(), f"did not say {words!r}")

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

    def _tidy(self) -> None:
        self._keyboard.close()
        remove_directory(self.directory)


def remove_directory(directory: str) -> None:
    """Remove the directory of one connection, which is a test's own."""
    assert Path(directory).parent == Path(putty.parent_directory()) and len(os.path.basename(directory)) == 64
    shutil.rmtree(directory, ignore_errors=True)
