"""The command started by hand: in a process group of its own, with the streams and descriptors a test wants."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.support import mounts, processes
from tests.support.mounted import SSHMUXFS
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until

END_S = 60.0


class Launched:
    """A running command; `code` is its exit code as a shell sees it, `output` what it said."""

    def __init__(
        self,
        sshd: Sshd,
        directory: Path,
        place: Path,
        *,
        control_path: Path | str,
        options: Sequence[str] = (),
        foreground: bool = False,
        path: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        script: str | None = None,
    ) -> None:
        """`path` is searched for programs before all others; `script` is Python that runs in place of the command."""
        environment = sshd.environment()
        if path is not None:
            environment["PATH"] = f"{path}:{environment['PATH']}"
        self.place = place
        command = arguments(sshd, directory, place, control_path, options, foreground)
        if script is not None:
            command = [sys.executable, "-c", script, *command[len(SSHMUXFS) :]]
        self.process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment,
        )
        self.output = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.communicate()

    def signal(self, number: signal.Signals) -> None:
        """To the whole group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def end(self, deadline_s: float = END_S) -> int:
        """Wait for it. Raises subprocess.TimeoutExpired, after which it may be called again."""
        self.output, _ = self.process.communicate(timeout=deadline_s)
        code = self.process.returncode
        return code if code >= 0 else 128 - code


def arguments(
    sshd: Sshd,
    directory: Path,
    place: Path,
    control_path: Path | str,
    options: Sequence[str] = (),
    foreground: bool = False,
) -> list[str]:
    """The command line."""
    command = [*SSHMUXFS, "-F", str(sshd.ssh_config), "-S", str(control_path)]
    command += [part for option in options for part in ("-o", option)]
    return [*command, *(["-f"] if foreground else []), f"{HOST}:{directory}", str(place)]


def servers(place: Path) -> list[processes.Process]:
    """What runs for a mount at `place`."""
    return [each for each in processes.descendants(os.getpid()) if str(place) in each.command.split() and each.running]


@contextmanager
def unmounted_after(place: Path) -> Iterator[None]:
    """Whatever the block mounts there is unmounted, and its process ends by itself."""
    try:
        yield
    finally:
        if mounts.mounted_at(place) is not None:
            assert mounts.fusermount("-u", str(place)).returncode == 0
        wait_until(lambda: not servers(place), f"the processes of {place} to end")
