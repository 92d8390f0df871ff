"""Our own upstream to an `Sshd`, started as a user does (`sshmux start`): a `Master` wherever a test takes one.

The rule: the process that holds the connection is known by its own word (`ssh -O check`), never guessed from what was
started, for the command that starts it may end or stay. What it wrote is looked through for what must never be in it.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support import processes
from tests.support.master import END_DEADLINE_S, START_DEADLINE_S, Master, MasterError
from tests.support.sshd import HOST, Sshd

SSHMUX = (sys.executable, "-m", "mux")

# What no peer and no user can make it write: an exception that nobody expected.
UNEXPECTED = re.compile(r"\bTraceback\b|never (awaited|retrieved)|Task was destroyed|unhandled", re.IGNORECASE)


def sshmux(
    *arguments: str, env: dict[str, str] | None = None, timeout_s: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, for what it says and returns: `sshmux("list")`."""
    return subprocess.run(
        [*SSHMUX, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=env or processes.environment("/nonexistent"),
        start_new_session=True,
    )


class Upstream(Master):
    """An upstream that answers once constructed; a context manager.

    control_path  where it listens
    pid           of the process that holds the connection
    """

    def __init__(
        self,
        sshd: Sshd,
        *,
        control_path: Path | str | None = None,
        config: Path | None = None,
        options: Sequence[str] = (),
        wait: bool = True,
        foreground: bool = True,
    ) -> None:
        """As `Master`; `options` go to `sshmux start` as they are ("-oControlMaster=ask", "--persist=10").

        `foreground` True keeps it in front, where it logs; False lets it detach, as it does for a user.
        """
        self.sshd = sshd
        self.config = config or sshd.ssh_config
        self.control_path = str(control_path or self._configured_path())
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._server: processes.Process | None = None
        command = [*SSHMUX, "start", "-F", str(self.config), "-S", self.control_path, *options]
        command += ["-f"] if foreground else []
        self._foreground = foreground
        self._starter = subprocess.Popen(
            [*command, HOST],
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

    @property
    def pid(self) -> int:
        return (self._server or processes.known(self._starter.pid)).pid

    @property
    def running(self) -> bool:
        if self._server is None:
            return self._starter.poll() is None
        now = processes.look(self._server.pid)
        return now is not None and now.running and now.start_ticks == self._server.start_ticks

    def wait_ready(self) -> None:
        until = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < until:
            code = self._starter.poll()
            if code is not None and (code != 0 or self._foreground):
                raise MasterError(f"sshmux start ended with {code}; it said:\n{self.log_text()}")
            if (code == 0 or self._foreground) and Path(self.control_path).exists():
                said = re.match(r"Master running \(pid=(\d+)\)", self.control("check").stderr)
                if said is not None:
                    self._server = processes.known(int(said[1]))
                    return
            time.sleep(processes.POLL_S)
        raise MasterError(f"sshmux start was not ready within {START_DEADLINE_S:g} s; it said:\n{self.log_text()}")

    def exit(self) -> None:
        done = self.control("exit")
        if done.returncode != 0:
            raise MasterError(f"ssh -O exit: {done.stderr.strip()}")
        self.wait_ended()

    def wait_ended(self, deadline_s: float = END_DEADLINE_S) -> None:
        """Wait until it has ended by itself. Raises MasterError when it lives on."""
        if self._server is not None and processes.wait_ended([self._server], deadline_s):
            raise MasterError(f"process {self.pid} lives on; it said:\n{self.log_text()}")
        if self._foreground:
            self._starter.wait(deadline_s)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.wait_ended()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM: an orderly end."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        processes.send_signal(self._server or processes.known(self._starter.pid), number)

    def close(self) -> None:
        if self._log.closed:
            return
        doomed = [*filter(None, [self._server])]
        if self._starter.poll() is None:
            doomed += [process for process in processes.descendants(self._starter.pid) if process not in doomed]
            doomed.append(processes.known(self._starter.pid))
        for process in doomed:
            processes.send_signal(process, signal.SIGCONT)
        processes.end(doomed, grace_s=END_DEADLINE_S)
        self._starter.wait(END_DEADLINE_S)
        Path(self.control_path).unlink(missing_ok=True)
        said = self.log_text()
        self._log.close()
        if UNEXPECTED.search(said):
            raise MasterError(f"the upstream wrote:\n{said}")
