"""What a mount over a PuTTY's connection costs: beside psftp, over the same `plink -share -N` and by itself.

The rule: the three ways move the same file in turn, in one run, and what arrived is compared with what was sent before
its time counts. All of them use PuTTY's choice of a cipher, unless one was named; a mount is fresh for each reading and
each writing, so that nothing is in its caches.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from tests.bench import corpus
from tests.bench.contender import Mounted
from tests.bench.measure import execute
from tests.bench.sharing import Figure, line
from tests.bench.sizes import MIB
from tests.support import mounts, processes
from tests.support.putty import ADDRESS, PuttyUpstream, environment, identity
from tests.support.sshd import Sshd, program

# What has to be reached: the mount in terms of psftp, both through plink.
RATIO = 0.9
QUICK_BYTES = 64 * MIB
BYTES = 512 * MIB

MOUNT, THROUGH_PLINK, BY_ITSELF = "mount", "psftp through the same plink", "psftp with its own connection"
WAYS = (MOUNT, THROUGH_PLINK, BY_ITSELF)
READ, WRITE = "read", "write"
DIRECTIONS = (READ, WRITE)


class TooLong(Exception):
    """A command outlived its limit."""


@dataclass(slots=True)
class Taken:
    """The seconds of every run of one way in one direction; the limit alone where a run was `over` it."""

    seconds: list[float] = field(default_factory=list)
    over: bool = False


Times = dict[tuple[str, str], Taken]  # by direction and way


@dataclass(frozen=True, slots=True)
class Files:
    """Where everything is: `served/big` on the server, its copy there, and what is made of either on this side."""

    directory: Path

    @property
    def served(self) -> Path:
        return self.directory / "served"

    @property
    def big(self) -> Path:
        return self.served / "big"

    @property
    def written(self) -> Path:
        return self.served / "written"

    @property
    def got(self) -> Path:
        return self.directory / "got"

    @property
    def mount_point(self) -> Path:
        return self.directory / "mnt"

    @property
    def batch(self) -> Path:
        return self.directory / "batch"


def main(options: argparse.Namespace, cipher: str | None) -> int:
    """Run all; returns 1 when `options.check` and something missed its mark."""
    processes.adopt_orphans()
    size = QUICK_BYTES if options.quick else BYTES
    files = Files(Path(tempfile.mkdtemp(prefix="smx-bench-", dir=options.dir or "/dev/shm")))
    try:
        for directory in (files.served, files.mount_point):
            directory.mkdir()
        corpus.make_big(files.big, size)
        with Sshd(ciphers=cipher) as sshd, PuttyUpstream(sshd) as plink:
            times = measured(Ways(sshd, plink, files, options.limit), 1 if options.quick else options.runs)
    finally:
        mounts.remove_tree(files.directory)
    found = list(figures(times, size))
    print(f"{'':<44} {'psftp':>14} {'mount':>14} {'ratio':>7}")
    for figure in found:
        print(line(figure))
    if options.json:
        Path(options.json).write_text(json.dumps(document(times, found, size, cipher), indent=1) + "\n")
    return int(options.check and any(figure.missed for figure in found))


class Ways:
    """The ways to move the big file, none for longer than `limit_s`."""

    def __init__(self, sshd: Sshd, plink: PuttyUpstream, files: Files, limit_s: float) -> None:
        self._plink = plink
        self._files = files
        self.limit_s = limit_s
        self._environment = environment(sshd)
        self._identity = identity(sshd)
        self._destination = f"{sshd.user}@{ADDRESS}"

    def seconds(self, direction: str, way: str) -> float:
        """Of moving it once. Raises TooLong, and RuntimeError when it failed or something else arrived."""
        files = self._files
        arrived = files.got if direction == READ else files.written
        arrived.unlink(missing_ok=True)
        taken = self._by_mount(direction) if way == MOUNT else self._by_psftp(direction, way)
        filecmp.clear_cache()
        if not filecmp.cmp(arrived, files.big, shallow=False):
            raise RuntimeError(f"{direction}, {way}: what arrived is not what was sent")
        arrived.unlink()
        return taken

    def _by_mount(self, direction: str) -> float:
        files = self._files
        joining = ["-F", "none", "-p", str(self._plink.port), "-l", self._plink.sshd.user, "-o", "putty=only"]
        source = f"{ADDRESS}:{files.served}"
        command = [sys.executable, "-m", "sshmuxfs", *joining, source, str(files.mount_point)]
        with Mounted(command, files.mount_point, self._environment):
            if direction == READ:
                return self._timed(["dd", f"if={files.mount_point / files.big.name}", f"of={files.got}", "bs=128k"])
            target = files.mount_point / files.written.name
            return self._timed(["dd", f"if={files.big}", f"of={target}", "bs=128k", "conv=fsync"])

    def _by_psftp(self, direction: str, way: str) -> float:
        files = self._files
        words = f"get {files.big} {files.got}" if direction == READ else f"put {files.big} {files.written}"
        files.batch.write_text(words + "\n")
        # With no key it cannot log in by itself: through plink, or not at all.
        how = ["-share"] if way == THROUGH_PLINK else ["-noshare", *self._identity]
        where = ["-batch", "-P", str(self._plink.port), "-b", str(files.batch), self._destination]
        return self._timed([program("psftp"), *how, *where])

    def _timed(self, command: Sequence[str]) -> float:
        directory = self._files.directory
        ended = execute(command, directory, directory, self._environment, self.limit_s)
        if ended is None:
            raise TooLong(f"{command[0]} took more than {self.limit_s:g} s")
        seconds, exit_code, _, complaint = ended
        if exit_code != 0:
            raise RuntimeError(f"{command[0]} ended with {exit_code}: {complaint.strip()[-300:]!r}")
        return seconds


def measured(ways: Ways, runs: int) -> Times:
    """Every run, the ways in turn. Raises TooLong when the mount takes too long: of that no figure can be made."""
    times: Times = {(direction, way): Taken() for direction in DIRECTIONS for way in WAYS}
    for _ in range(runs):
        for (direction, way), taken in times.items():
            if taken.over:
                continue
            try:
                taken.seconds.append(ways.seconds(direction, way))
            except TooLong:
                if way == MOUNT:
                    raise
                # psftp alone leaves Nagle's algorithm on, and may wait 40 ms for each acknowledgement.
                taken.over, taken.seconds = True, [ways.limit_s]
            sign = "> " if taken.over else ""
            print(f"{direction}, {way}: {sign}{taken.seconds[-1]:.3f} s", file=sys.stderr, flush=True)
    return times


def figures(times: Times, size: int) -> Iterator[Figure]:
    """The mount beside each psftp; judged beside the one that has the same connection."""
    for direction in DIRECTIONS:
        for base in (THROUGH_PLINK, BY_ITSELF):
            base_s, mount_s = median(times[direction, base].seconds), median(times[direction, MOUNT].seconds)
            sign = "< " if times[direction, base].over else ""  # the ratio is more, then
            yield Figure(
                f"{direction} {size // MIB} MiB, {base}",
                f"{sign}{size / base_s / 1e6:.0f} MB/s",
                f"{size / mount_s / 1e6:.0f} MB/s",
                base_s / mount_s,
                at_least=RATIO if base == THROUGH_PLINK else None,
            )


def document(times: Times, found: Sequence[Figure], size: int, cipher: str | None) -> dict[str, object]:
    """Everything measured, for a program to read."""
    samples = [
        {"direction": direction, "way": way, "median_s": median(taken.seconds), **asdict(taken)}
        for (direction, way), taken in times.items()
    ]
    shown = [{**asdict(figure), "missed": figure.missed} for figure in found]
    return {"moved_bytes": size, "cipher": cipher or "PuTTY's choice", "figures": shown, "samples": samples}
