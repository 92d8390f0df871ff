"""Trees to test on: a plain directory, and the same kind of directory behind a mount.

`Setup` says what is wanted, `Trees.start` makes it, `Tree` is what tests work on: `path` (here) and `served` (there,
the same directory on the server's side; for a plain directory both are one). A mount that hung was killed by the
guard (guard.py) and gets a new process, so that one hang is one failure.

SSHMUXFS_TREES in the environment chooses the kinds: a plain directory, a mount over a real `ssh -M` and one over our
own upstream ("plain,mount,upstream") unless set, and for what is marked `over_putty` one over a `plink -share`;
"putty" runs all on that, and "sshfs" runs the same tests on sshfs, to compare.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from tests.support import bounded, logs, processes
from tests.support.master import Master
from tests.support.mounted import Mount, PuttyMount, SshfsMount
from tests.support.putty import PuttyUpstream
from tests.support.sshd import sftp_server
from tests.support.upstream import Upstream
from tests.t4_mount import differences, worlds
from tests.t4_mount.differences import Difference
from tests.t4_mount.worlds import Worlds

T = TypeVar("T")

CHOSEN = os.environ.get("SSHMUXFS_TREES")
KINDS = tuple((CHOSEN or "plain,mount,upstream").split(","))
MOUNTS = {"mount": Mount, "upstream": Mount, "putty": PuttyMount, "sshfs": SshfsMount}


@dataclass(frozen=True, slots=True)
class Setup:
    """What kind of tree: "plain" or of MOUNTS, with which -o options and on what server."""

    kind: str
    options: tuple[str, ...] = ()
    world: Worlds = Worlds.ORDINARY

    def __str__(self) -> str:
        parts = [self.kind, *(option.replace("=", "_") for option in self.options)]
        if self.world is not Worlds.ORDINARY:
            parts.append(self.world.name.lower())
        return "-".join(parts)


PLAIN = Setup("plain")
MOUNT = Setup("mount")


def chosen(setups: Sequence[Setup], *, over_putty: bool = False) -> list[Setup]:
    """The setups of the kinds that this run is about; `over_putty` adds that kind where none are named."""
    mounts = [setup for setup in setups if setup.kind == "mount"]
    wanted = {*KINDS, "putty"} if over_putty and not CHOSEN else {*KINDS}
    kinds = [kind for kind in ("upstream", "putty", "sshfs") if kind in wanted]
    others = [replace(setup, kind=kind) for kind in kinds for setup in mounts]
    return [setup for setup in setups if setup.kind in KINDS] + others


@dataclass
class Tree:
    """A directory to test on; `mount` is None for a plain one."""

    setup: Setup
    path: Path
    served: Path
    mount: Mount | None = None
    counter: Iterator[int] = field(default_factory=itertools.count)
    logged: int = 0

    def differs(self, difference: Difference) -> bool:
        """Whether this tree may differ from a local file system in that."""
        return self.setup.kind != "plain" and difference in differences.of_mount(self.setup.options)

    def inside(self, body: Callable[[], T], timeout_s: float = 60.0) -> T:
        """Run the body where this tree's world is, in a child: a plain directory's enters the world first."""

        def entered() -> T:
            if self.setup.kind == "plain":
                worlds.enter(self.setup.world.value, self.path)
            return body()

        return bounded.in_subprocess(entered, timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the process behind it runs."""
        return self.mount is None or self.mount.running

    def new_log_lines(self) -> list[str]:
        """What the mount logged since this was last asked."""
        lines = [] if self.mount is None else self.mount.log_text().splitlines()
        fresh, self.logged = lines[self.logged :], len(lines)
        return fresh


class Guard:
    """The process that ends hanging mounts (guard.py)."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("guard.py")
        self._process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tell(self, *words: object) -> None:
        """Send one command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()

    def disarm(self) -> bool:
        """Stop the clock; True when it had run out and the mounts were killed."""
        self.tell("disarm")
        assert self._process.stdout is not None
        return self._process.stdout.readline() == b"fired\n"

    def close(self) -> None:
        """End it; it ends what it still watches."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


class Trees:
    """Makes trees, and keeps the list of those that live."""

    def __init__(self, master: Master, upstream: Upstream, putty: PuttyUpstream) -> None:
        self._ways: dict[str, Master | PuttyUpstream] = {
            "mount": master,
            "upstream": upstream,
            "putty": putty,
            "sshfs": master,
        }
        # Not below pytest's own directory, which only its owner may search.
        self._base = processes.make_directory()
        self._base.chmod(0o711)
        self._counter = itertools.count(1)
        self._living: list[Tree] = []
        self.guard = Guard()

    def start(self, setup: Setup, served: Path | None = None) -> Tree:
        """Make a tree on a new directory, or on one that another tree serves already."""
        if served is None:
            served = self._base / f"{next(self._counter)}"
            served.mkdir()
        tree = Tree(setup, served, served)
        self._run(tree)
        self._living.append(tree)
        return tree

    def _run(self, tree: Tree) -> None:
        setup = tree.setup
        if setup.kind == "plain":
            return
        options = setup.options
        if setup.world is not Worlds.ORDINARY:
            script = tree.served.with_name(f"{tree.served.name}.server")
            command = worlds.server_command(setup.world.value, tree.served, sftp_server(), script)
            options = (*options, f"sftp_server={command}")
        tree.mount = MOUNTS[setup.kind](self._ways[setup.kind], tree.served, options=options)
        tree.path, tree.logged = tree.mount.path, 0
        self.guard.tell("watch", tree.mount.pid, str(tree.path))

    def stop(self, tree: Tree) -> None:
        """Unmount, and forget it."""
        self._living.remove(tree)
        if tree.mount is not None:
            self.guard.tell("unwatch", str(tree.path))
            if tree.alive:
                tree.mount.unmount()
            else:
                tree.mount.close()

    def revive(self) -> None:
        """Replace the mounts whose process has gone."""
        for tree in self._living:
            if tree.mount is not None and not tree.alive:
                tree.mount.close()
                self._run(tree)

    @contextmanager
    def guarded(self, seconds: float) -> Iterator[None]:
        """Let what is done within take so long; then kill all mounts and fail."""
        self.guard.tell("arm", seconds)
        try:
            yield
        finally:
            fired = self.guard.disarm()
            for tree in self._living:
                logs.feed(tree.new_log_lines())
            if fired:
                raise AssertionError(f"no end within {seconds:g} s, so the mounts were killed")
            if dead := [tree for tree in self._living if not tree.alive]:
                raise AssertionError("the process behind a mount has gone: " + ", ".join(str(t.setup) for t in dead))

    def close(self) -> None:
        """End everything."""
        for tree in [*self._living]:
            self.stop(tree)
        self.guard.close()
        shutil.rmtree(self._base)
