"""A real mount: the `sshmuxfs` command (or sshfs, to compare with) over a master, as a user starts it.

The rule: a mount that was made is unmounted, its process has ended with 0, and its log holds no surprise, or an error
says which of these failed; and whatever went wrong, nothing of it stays. A file operation that hangs in the test's own
process is freed when the mount's process is killed, which the fixtures do to a test that is late; a page fault of a
mapping is not, for it holds the whole interpreter (see `bounded`).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from tests.support import logs, mounts, processes
from tests.support.master import Master
from tests.support.putty import PuttyUpstream
from tests.support.sshd import HOST
from tests.support.waiting import holds_within

START_DEADLINE_S = 40.0
END_DEADLINE_S = 30.0

SSHMUXFS = (sys.executable, "-m", "sshmuxfs")


class MountError(AssertionError):
    """Mounting or unmounting went otherwise than it should. `exit_code` and `output` are the command's, if it ended."""

    def __init__(self, message: str, exit_code: int | None = None, output: str = "") -> None:
        super().__init__(f"{message}\n{output}" if output else message)
        self.exit_code = exit_code
        self.output = output


def sshmuxfs(
    *arguments: str, env: dict[str, str] | None = None, timeout_s: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, for what it says and returns: `sshmuxfs("--help")`."""
    return subprocess.run(
        [*SSHMUXFS, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=env or processes.environment("/nonexistent"),
        start_new_session=True,
    )


class Mount:
    """A directory of the master's server, mounted once constructed; a context manager.

    path      the mount point
    pid       the process that serves it
    """

    command: tuple[str, ...] = SSHMUXFS
    foreground = True
    #: Every mount that was made and not yet closed.
    served: ClassVar[set[Mount]] = set()

    def __init__(
        self,
        master: Master | PuttyUpstream,
        directory: Path | str,
        *,
        mountpoint: Path | None = None,
        options: Sequence[str] = (),
        arguments: Sequence[str] = (),
        foreground: bool | None = None,
    ) -> None:
        """`options` go after -o, one each ("ro", "uid=1000"); `arguments` go to the command as they are.

        `foreground` False lets the command detach, and returns when it does; True returns when something is mounted.
        Raises MountError when there is no mount in the end.
        """
        if foreground is None:
            foreground = self.foreground
        self.master = master
        self.remote = f"{self.host}:{directory}"
        self._directory = processes.make_directory()
        self._output = self._directory / "output"
        self._daemon_log = self._directory / "log"
        self._last_words = ""
        self._closed = False
        self.exit_code: int | None = None
        self.path = mountpoint or self._directory / "mnt"
        if mountpoint is None:
            self.path.mkdir()
        self._starter = self._start(options, arguments, foreground)
        self._server = processes.known(self._starter.pid)
        try:
            if foreground:
                self._wait_mounted()
            else:
                self._server = self._wait_detached()
        except BaseException:
            self._tidy()
            raise
        Mount.served.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.unmount()
        else:
            print(f"log of {self}:\n{self.log_text()}")
            self.close()

    def __str__(self) -> str:
        return f"{self.remote} at {self.path}"

    @property
    def pid(self) -> int:
        return self._server.pid

    @property
    def running(self) -> bool:
        now = processes.look(self.pid)
        return now is not None and now.running and now.start_ticks == self._server.start_ticks

    @property
    def host(self) -> str:
        return HOST

    def sharing_arguments(self) -> list[str]:
        assert isinstance(self.master, Master)
        # A test that ends its master means that there is no connection: none is started in its place.
        return ["-F", str(self.master.config), "-S", self.master.control_path, "-o", "upstream=no"]

    def logging_arguments(self) -> list[str]:
        """For a command that detaches, and has our output no longer."""
        return ["-o", f"log_file={self._daemon_log}"]

    def _start(self, options: Sequence[str], arguments: Sequence[str], foreground: bool) -> subprocess.Popen[bytes]:
        command = [*self.command, *self.sharing_arguments(), *arguments]
        command += [part for option in options for part in ("-o", option)]
        command += ["-f"] if foreground else self.logging_arguments()
        command += [self.remote, str(self.path)]
        with self._output.open("wb") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self.master.sshd.environment(),
            )

    def _wait_mounted(self) -> None:
        def serves() -> bool:
            if self._starter.poll() is not None:
                raise self._failure(f"the command ended with {self._starter.returncode} instead of serving {self}")
            return mounts.mounted_at(self.path) is not None

        if not holds_within(START_DEADLINE_S, serves):
            raise self._failure(f"{self} was not mounted within {START_DEADLINE_S:g} s")

    def _wait_detached(self) -> processes.Process:
        try:
            self._starter.wait(START_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise self._failure(f"the command did not return within {START_DEADLINE_S:g} s") from None
        if self._starter.returncode != 0:
            raise self._failure(f"the command ended with {self._starter.returncode}")
        if mounts.mounted_at(self.path) is None:
            raise self._failure(f"the command returned 0 and nothing is mounted at {self.path}")
        for process in processes.descendants(os.getpid()):
            if str(self.path) in process.command.split(" ") and _serves(process.pid):
                return process
        raise self._failure(f"{self.path} is mounted and no process below this one serves it")

    def _failure(self, message: str) -> MountError:
        return MountError(message, self._starter.poll(), self.log_text())

    def log_text(self) -> str:
        """What the command and the process behind it wrote."""
        if self._closed:
            return self._last_words
        texts = [path.read_text(errors="replace") for path in (self._output, self._daemon_log) if path.exists()]
        return "".join(texts)

    def memory_bytes(self, field: str = "VmRSS") -> int:
        """A memory figure of /proc/PID/status, in bytes: VmRSS (resident now), VmHWM (the most it ever was)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
        if match is None:
            raise MountError(f"process {self.pid} has no {field}; has it ended?")
        return int(match[1]) * 1024

    def rss_bytes(self) -> int:
        return self.memory_bytes("VmRSS")

    def peak_rss_bytes(self) -> int:
        return self.memory_bytes("VmHWM")

    def unmount(self, *, exit_code: int = 0, deadline_s: float = END_DEADLINE_S) -> None:
        """`fusermount3 -u`; then the process ends with `exit_code` within the deadline. Idempotent."""
        if self._closed:
            return
        try:
            self._detach(deadline_s)
            self.wait_ended(exit_code=exit_code, deadline_s=deadline_s)
        finally:
            self.close()

    def _detach(self, deadline_s: float) -> None:
        """`fusermount3 -u`, again while it is busy: what a test has just read there, a program that another of its
        threads is starting holds as well, until its exec."""
        said = ""

        def detached() -> bool:
            nonlocal said
            said = mounts.fusermount("-u", str(self.path)).stderr.strip()
            return mounts.mounted_at(self.path) is None

        if not holds_within(deadline_s, detached):
            raise MountError(f"fusermount3 -u {self.path}: {said}", output=self.log_text())

    def wait_ended(self, *, exit_code: int | None = 0, deadline_s: float = END_DEADLINE_S) -> None:
        """Wait until the serving process has ended, with `exit_code` (None: with any) and nothing mounted any more."""
        if self.exit_code is None:
            if processes.wait_ended([self._server], deadline_s):
                raise MountError(f"process {self.pid} lives {deadline_s:g} s after {self}", output=self.log_text())
            self.exit_code = self._starter.wait() if self._starter.pid == self.pid else processes.reap(self.pid)
        if exit_code is not None and self.exit_code != exit_code:
            raise MountError(f"{self}: ended with {self.exit_code}", self.exit_code, self.log_text())
        if exit_code is not None and mounts.mounted_at(self.path) is not None:
            raise MountError(f"{self.path} outlived its process", self.exit_code, self.log_text())

    def send_signal(self, number: int) -> None:
        """Signal the serving process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the serving process: every waiting caller gets an error, the dead mount stays until `close`."""
        processes.send_signal(self._server, signal.SIGKILL)
        processes.wait_ended([self._server], END_DEADLINE_S)

    def close(self) -> None:
        """Whatever state it is in: unmounted, ended, its log checked, its files gone. Idempotent."""
        if not self._closed:
            self._last_words = self.log_text()
            self._closed = True
            Mount.served.discard(self)
            logs.feed(self._last_words.splitlines())
            self._tidy()

    def _tidy(self) -> None:
        """Detach the mount, end the processes, and remove the directory once nothing is mounted in it any more."""
        if mounts.mounted_at(self.path) is not None:
            mounts.fusermount("-u", "-z", str(self.path))
        if self._starter.poll() is None:
            processes.end([processes.known(self._starter.pid)])
            self._starter.wait(END_DEADLINE_S)
        if self.running:
            processes.end([self._server])
        if mounts.mounted_at(self.path) is not None:
            raise MountError(f"{self.path} cannot be unmounted")
        mounts.remove_tree(self._directory)


class PuttyMount(Mount):
    """The same over a `PuttyUpstream`, by the name it has; there is no way to log in."""

    @property
    def host(self) -> str:
        assert isinstance(self.master, PuttyUpstream)
        return self.master.host

    def sharing_arguments(self) -> list[str]:
        assert isinstance(self.master, PuttyUpstream)
        return ["-F", "none", "-p", str(self.master.port), "-l", self.master.sshd.user, "-o", "putty=only"]


class SshfsMount(Mount):
    """The same through sshfs, to compare with. It mounts before it connects: only its detaching says that it works."""

    command = ("sshfs",)
    foreground = False

    def sharing_arguments(self) -> list[str]:
        assert isinstance(self.master, Master)
        path = f"ControlPath={self.master.control_path}"
        return ["-F", str(self.master.config), "-o", path, "-o", "ControlMaster=no"]

    def logging_arguments(self) -> list[str]:
        return []


def kill_all() -> None:
    """Kill every process that serves a mount: each caller that waits for one gets its error."""
    for mount in list(Mount.served):
        mount.kill()


def _serves(pid: int) -> bool:
    """Whether it holds /dev/fuse open: the daemon, and not a helper with the same command line."""
    directory = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(f"{directory}/{name}") == "/dev/fuse" for name in os.listdir(directory))
    except OSError:
        return False
