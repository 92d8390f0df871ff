"""A real `ssh -M -N` to an `Sshd`: the connection that mounts and other clients join.

The rule: it is ready when `ssh -O check` says so, and its end is waited for, so that the next one may take the same
control path.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.background import Background, BackgroundError
from tests.support.sshd import HOST, Sshd, program


class Master(Background):
    """A ControlMaster that answers once constructed; a context manager.

    control_path  where it listens
    pid           of the ssh process
    """

    what = "ssh -M"

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
        super().__init__(self._command(options), sshd.environment(), wait=wait)

    def _command(self, options: Sequence[str]) -> list[str]:
        return [program("ssh"), "-F", str(self.config), "-M", "-N", "-S", self.control_path, *options, HOST]

    def _configured_path(self) -> str:
        said = self.sshd.ssh("-G", HOST, config=self.config).stdout
        return next(line.split(" ", 1)[1] for line in said.splitlines() if line.startswith("controlpath "))

    def wait_ready(self) -> None:
        """Return when it answers on its control path. Raises BackgroundError when it ended, or did not in time."""
        self.wait_until(self._answers, "was not ready")

    def _answers(self) -> bool:
        return Path(self.control_path).exists() and self.control("check").returncode == 0

    def control(self, request: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ssh -O request`: check, stop, exit, forward, cancel... The result is the caller's to judge."""
        return self.sshd.ssh("-S", self.control_path, "-O", request, *arguments, HOST, config=self.config, check=False)

    def ssh(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command on the host through this master: `master.ssh("true")`."""
        return self.sshd.ssh("-S", self.control_path, HOST, *arguments, config=self.config, check=check)

    def stop(self) -> None:
        """`ssh -O stop`: it listens no more; what is open goes on."""
        self._control_well("stop")

    def exit(self) -> None:
        """`ssh -O exit`: it ends now, with every session on it."""
        self._control_well("exit")
        self.wait_ended()

    def _control_well(self, request: str) -> None:
        done = self.control(request)
        if done.returncode != 0:
            raise BackgroundError(f"ssh -O {request}: {done.stderr.strip()}")

    def _tidy(self) -> None:
        Path(self.control_path).unlink(missing_ok=True)
