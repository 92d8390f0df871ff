"""Our own upstream to an `Sshd`, started as a user does (`sshmux start`): a `Master` wherever a test takes one.

The rule: the process that holds the connection is known by its own word (`ssh -O check`), never guessed from what was
started, for the command that starts it may end or stay. What it wrote is looked through for what must never be in it.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support import processes
from tests.support.background import END_DEADLINE_S, BackgroundError
from tests.support.master import Master
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

    what = "sshmux start"

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
        self._foreground = foreground
        self._server: processes.Process | None = None
        super().__init__(sshd, control_path=control_path, config=config, options=options, wait=wait)

    def _command(self, options: Sequence[str]) -> list[str]:
        in_front = ["-f"] if self._foreground else []
        return [*SSHMUX, "start", "-F", str(self.config), "-S", self.control_path, *options, *in_front, HOST]

    @property
    def pid(self) -> int:
        return self._main().pid

    @property
    def running(self) -> bool:
        if self._server is None:
            return self._process.poll() is None
        now = processes.look(self._server.pid)
        return now is not None and now.running and now.start_ticks == self._server.start_ticks

    def signal(self, number: signal.Signals) -> None:
        processes.send_signal(self._main(), number)

    def terminate(self) -> None:
        """SIGTERM: an orderly end."""
        self.signal(signal.SIGTERM)

    def wait_ended(self, deadline_s: float = END_DEADLINE_S) -> int:
        """Wait until it has ended by itself; return the exit status of what was started."""
        if self._server is not None and processes.wait_ended([self._server], deadline_s):
            raise self._complaint("lives on")
        return super().wait_ended(deadline_s)

    def _main(self) -> processes.Process:
        """What holds the connection, as far as it is known."""
        return self._server or processes.known(self._process.pid)

    def _answers(self) -> bool:
        if (self._foreground or self._process.poll() == 0) and Path(self.control_path).exists():
            said = re.match(r"Master running \(pid=(\d+)\)", self.control("check").stderr)
            if said is not None:
                self._server = processes.known(int(said[1]))
        return self._server is not None

    def _failed(self) -> bool:
        return self._process.poll() is not None and (self._foreground or self._process.returncode != 0)

    def _end(self) -> None:
        doomed = [*filter(None, [self._server])]
        if self._process.poll() is None:
            doomed += [process for process in processes.descendants(self._process.pid) if process not in doomed]
            doomed.append(processes.known(self._process.pid))
        for process in doomed:
            processes.send_signal(process, signal.SIGCONT)
        processes.end(doomed, grace_s=END_DEADLINE_S)
        self._process.wait(END_DEADLINE_S)

    def _tidy(self) -> None:
        super()._tidy()
        if UNEXPECTED.search(self.log_text()):
            raise BackgroundError(f"the upstream wrote:\n{self.log_text()}")
