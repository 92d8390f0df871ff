"""How much work each workload does at which round trip. Pure.

The rule: both contenders always get the same amount; it shrinks with the round trip only so that the slower
contender's run ends.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sizes:
    """Amounts of work for one round trip: bytes of the big file, and counts of files or reads."""

    big_bytes: int
    random_reads: int
    list_entries: int
    find_files: int
    grep_files: int
    untar_files: int
    git_files: int


LOCAL = Sizes(512 * MIB, 2000, 10_000, 2000, 2000, 2000, 2000)
# Measured at 20 ms, sshfs needs about 45 ms for each file it reads, 230 ms for each it makes, and 70 ms for each of
# `git status` after 2 s.
NEAR = Sizes(64 * MIB, 50, 10_000, 2000, 400, 60, 150)
# At 100 ms it is five times that.
FAR = Sizes(64 * MIB, 50, 10_000, 2000, 100, 15, 30)
# Enough to see every workload work; too little to judge by.
QUICK = Sizes(16 * MIB, 20, 500, 100, 25, 10, 10)

NEAR_FROM_MS = 2.0
FAR_FROM_MS = 50.0


def sizes_for(rtt_ms: float, *, quick: bool) -> Sizes:
    """The amounts for a round trip of `rtt_ms`."""
    if quick:
        return QUICK
    if rtt_ms >= FAR_FROM_MS:
        return FAR
    return NEAR if rtt_ms >= NEAR_FROM_MS else LOCAL
