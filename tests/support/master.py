"""A real `ssh -M -N` to an `Sshd`: the connection that mounts and other clients join.

The rule: it is ready when `ssh -O check` says so, and its end is waited for, so that the next one may take the same
control path.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.support import processes
from tests.support.sshd import HOST, Sshd, program

START_DEADLINE_S = 15.0
END_DEADLINE_S = 10.0


class MasterError(Exception):
    """The master could not be started or ended; the text holds what it wrote."""


class Master:
    """A ControlMaster that answers once constructed; a context manager.

    control_path  where it listens
    pid           of the ssh process
    """

    def __init__(
        self,
        sshd: Sshd,
        *,
        control_path: Path | str | None = None,
        config: Path | None = None,
        options: Sequence[str] = (),
        wait: bool = True,
    ) -> None:
        """`control_path` None takes the configured one, where plain `ssh -F config box` looks; `options` go to ssh as
        they are ("-oControlMaster=ask"); `config` is another client configuration (`Sshd.via`); `wait` False returns
        before it is ready.
        """
        self.sshd = sshd
        self.config = config or sshd.ssh_config
        self.control_path = str(control_path or self._configured_path())
        # A file without a name: the text can be read while the master lives and after, and nothing is left behind.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [program("ssh"), "-F", str(self.config), "-M", "-N", "-S", self.control_path, *options, HOST]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            env=sshd.environment(),
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

    def _configured_path(self) -> str:
        said = self.sshd.ssh("-G", HOST, config=self.config).stdout
        return next(line.split(" ", 1)[1] for line in said.splitlines() if line.startswith("controlpath "))

    def wait_ready(self) -> None:
        """Return when it answers on its control path. Raises MasterError when it ended, or did not in time."""
        until = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < until:
            if not self.running:
                raise MasterError(f"ssh -M ended with {self._process.returncode}; it said:\n{self.log_text()}")
            if Path(self.control_path).exists() and self.control("check").returncode == 0:
                return
            time.sleep(processes.POLL_S)
        raise MasterError(f"ssh -M was not ready within {START_DEADLINE_S:g} s; it said:\n{self.log_text()}")

    def log_text(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def control(self, request: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ssh -O request`: check, stop, exit, forward, cancel... The result is the caller's to judge."""
        return self.sshd.ssh("-S", self.control_path, "-O", request, *arguments, HOST, config=self.config, check=False)

    def ssh(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command on the host through this master: `master.ssh("true")`."""
        return self.sshd.ssh("-S", self.control_path, HOST, *arguments, config=self.config, check=check)

    def stop(self) -> None:
        """`ssh -O stop`: it listens no more; what is open goes on."""
        done = self.control("stop")
        if done.returncode != 0:
            raise MasterError(f"ssh -O stop: {done.stderr.strip()}")

    def exit(self) -> None:
        """`ssh -O exit`: it ends now, with every session on it."""
        done = self.control("exit")
        if done.returncode != 0:
            raise MasterError(f"ssh -O exit: {done.stderr.strip()}")
        self._process.wait(timeout=END_DEADLINE_S)

    def kill(self) -> None:
        """SIGKILL: the socket stays behind, and nobody listens there."""
        self._process.kill()
        self._process.wait(timeout=END_DEADLINE_S)

    def freeze(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and never answered."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it by pid, whatever state it is in, and remove its socket. Idempotent."""
        if self.running:
            self._process.terminate()
            self.thaw()
            try:
                self._process.wait(timeout=END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.kill()
        Path(self.control_path).unlink(missing_ok=True)
        self._log.close()
