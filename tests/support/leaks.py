"""What a test left behind: processes, mounts, descriptors, sockets and files.

A `Snapshot` before and one after: what is new is a leak. What lives longer than a test (the session's sshd) is in
both. Ends that are merely under way (a server noticing that its client left) are given a moment; what stays is
reported, and then put an end to, so that one test's leak is not the next one's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support import mounts, processes
from tests.support.waiting import holds_within

# Longer than an sshd takes to see that a client has gone, on a busy machine.
SETTLE_S = 30.0
# The directories of an `Sshd` (and of a mount) in which programs under test put sockets and files of their own.
RUNTIME_NAMES = ("c", "run")


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        # The descriptor of this very listing is gone by now.
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def _files() -> set[str]:
    found = set()
    for directory in processes.TEMP_PARENT.glob(processes.TEMP_PREFIX + "*"):
        found.add(str(directory))
        for name in RUNTIME_NAMES:
            # Not Path.rglob, which fails when a directory goes meanwhile.
            for place, _, files in os.walk(directory / name):
                found |= {os.path.join(place, file) for file in files}
    return found


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is now. `mounts` are those at or below our own directories."""

    processes: dict[tuple[int, int], processes.Process]
    mounts: dict[int, mounts.Mounted]
    descriptors: dict[int, str]
    files: set[str]

    @classmethod
    def take(cls, own_directory: Path) -> Self:
        """`own_directory`: where pytest keeps this run's files; mounts below it are ours."""
        ours = (str(own_directory), str(processes.TEMP_PARENT / processes.TEMP_PREFIX))
        return cls(
            {(p.pid, p.start_ticks): p for p in processes.descendants(os.getpid())},
            {mount.number: mount for mount in mounts.mounts() if mount.path.startswith(ours)},
            _descriptors(),
            _files(),
        )

    def added(self, before: Snapshot) -> list[str]:
        """What this one has and `before` had not, in words."""
        left = [f"process {process}" for key, process in self.processes.items() if key not in before.processes]
        left += [f"mount of {mount}" for key, mount in self.mounts.items() if key not in before.mounts]
        left += [
            f"descriptor {number}, {target}"
            for number, target in self.descriptors.items()
            if before.descriptors.get(number) != target
        ]
        left += [f"file {path}" for path in sorted(self.files - before.files)]
        left += [
            f"process in an endless wait: {process}" for process in self.processes.values() if process.state == "D"
        ]
        return left

    def reap_orphans(self, before: Snapshot) -> None:
        """Take the exit status of orphans that have ended, and forget them; what `before` has is its owner's."""
        for key, process in list(self.processes.items()):
            if process.state == "Z" and process.parent == os.getpid() and key not in before.processes:
                processes.reap(process.pid)
                del self.processes[key]


def settle(before: Snapshot, own_directory: Path) -> list[str]:
    """What was left since `before`, once nothing more goes away by itself; empty when all is gone."""
    left: list[str] = []

    def gone() -> bool:
        nonlocal left
        now = Snapshot.take(own_directory)
        now.reap_orphans(before)
        left = now.added(before)
        return not left

    holds_within(SETTLE_S, gone)
    return left


def clear(before: Snapshot, own_directory: Path) -> None:
    """Put an end to processes, mounts and files that are not in `before`."""
    now = Snapshot.take(own_directory)
    processes.end(process for key, process in now.processes.items() if key not in before.processes and process.running)
    for key, mount in now.mounts.items():
        if key not in before.mounts:
            mounts.fusermount("-u", "-z", mount.path)
    Snapshot.take(own_directory).reap_orphans(before)
    for path in now.files - before.files:
        if Path(path).is_dir():
            mounts.remove_tree(path)
        else:
            Path(path).unlink(missing_ok=True)
