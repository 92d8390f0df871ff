"""Searching and starting as a command does, and putting an end to what was started."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mux.downstream.start import Reached, Running, Search, Terms
from mux.rendezvous.roles import Wish
from mux.rendezvous.target import SshOptions, Target, resolve
from tests.support import processes
from tests.support.sshd import HOST, Sshd

DEADLINE_S = 60.0
GATE = Path(__file__).with_name("gate.py")


@dataclass
class Walk:
    """One command line's wish: `run` walks the ladder with it. `said` holds what it told the user."""

    sshd: Sshd
    options: SshOptions
    share: bool = True
    may_downstream: bool = True
    may_upstream: bool = True
    terms: Terms = field(default_factory=Terms)
    said: list[str] = field(default_factory=list)

    def target(self) -> Target:
        return resolve(HOST, None, self.options)

    def search(self) -> Search:
        wish = Wish.of(
            self.options, share=self.share, may_downstream=self.may_downstream, may_upstream=self.may_upstream
        )
        return Search(self.target(), wish, self.terms, self.said.append)

    def run(self) -> Reached:
        return self.search().run()

    def begin(self) -> Running:
        return Running(self.search())

    @contextmanager
    def reached(self) -> Iterator[Reached]:
        """The connection; at the end of the block it is told to end, and has ended."""
        found = self.run()
        with ending(found.pid):
            yield found


def walk(
    sshd: Sshd, *options: str, config: Path | None = None, control_path: Path | str | None = None, **more: object
) -> Walk:
    """`options` are of ssh_config, "Name=value"; `more` are fields of `Walk`."""
    path = None if control_path is None else str(control_path)
    ssh_options = SshOptions(config_file=str(config or sshd.ssh_config), control_path=path, options=options)
    return Walk(sshd, ssh_options, **more)  # type: ignore[arg-type]


@contextmanager
def ending(pid: int | None) -> Iterator[processes.Process]:
    """Ends the process with SIGTERM behind the block, and sees that it has ended."""
    assert pid is not None
    process = processes.known(pid)
    try:
        yield process
    finally:
        processes.send_signal(process, signal.SIGCONT)
        processes.send_signal(process, signal.SIGTERM)
        left = processes.wait_ended([process], DEADLINE_S)
        processes.end(left)
        assert not left, f"{process} does not end"


def logins(sshd: Sshd) -> int:
    """How often somebody has logged in at this server."""
    return sshd.log_text().count("Accepted publickey")


def upstreams(sshd: Sshd) -> list[processes.Process]:
    """The upstream processes below this one that were started with the environment for `sshd`."""
    entry = f"XDG_RUNTIME_DIR={sshd.runtime_dir}".encode()
    found = [one for one in processes.descendants(os.getpid()) if one.running and "mux/upstream" in one.command]
    return [one for one in found if entry in _environment(one.pid)]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def gated(sshd: Sshd, gate: Path) -> list[str]:
    """Options of ssh_config for a connection that comes about when somebody has written to the FIFO `gate`."""
    os.mkfifo(gate)
    return [f"ProxyCommand={sys.executable} -I -S {GATE} {gate} {sshd.port}"]
