"""What the benchmark has to show, as data, and the comparison. Pure.

The rule: only what was measured is judged, and what was not measured is named; nothing passes in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.measure import Row


@dataclass(frozen=True, slots=True)
class Reach:
    """`workload` at `rtt_ms` has to be `ratio` times as fast as sshfs."""

    workload: str
    rtt_ms: float
    ratio: float


RATIOS = (
    Reach("read", 0, 1.5),
    Reach("write", 0, 1.3),
    Reach("ls", 0, 1.5),
    Reach("read", 20, 5.0),
    Reach("read", 100, 6.0),
)
# On an upstream of ours, against sshfs with its defaults.
ON_OUR_UPSTREAM = (
    Reach("read", 0, 1.8),
    Reach("write", 0, 1.4),
    Reach("ls", 0, 1.5),
)
# Nothing may be slower than this, at any round trip. The time to mount has its own bound.
EVERY_RATIO = 0.8
RSS_BYTES = 120_000_000
START_S = 0.5
# Joining costs several round trips: its bound is for the machine next door.
START_RTT_MS = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`misses` fail the check; `unmeasured` are told."""

    misses: tuple[str, ...]
    unmeasured: tuple[str, ...]


def judge(rows: Sequence[Row], base: str, ours: str, ratios: Sequence[Reach] = RATIOS) -> Verdict:
    """Compare every row with what it has to reach."""
    misses: list[str] = []
    for row in rows:
        misses += _row_misses(row, base, ours, ratios)
    measured = {(row.workload, row.rtt_ms) for row in rows}
    wanted = [(reach.workload, reach.rtt_ms) for reach in ratios] + [("start", START_RTT_MS)]
    unmeasured = [f"{workload} at {rtt_ms:g} ms" for workload, rtt_ms in wanted if (workload, rtt_ms) not in measured]
    return Verdict(tuple(misses), tuple(unmeasured))


def _row_misses(row: Row, base: str, ours: str, ratios: Sequence[Reach]) -> list[str]:
    where = f"{row.workload} at {row.rtt_ms:g} ms"
    ours_s = row.seconds(ours)
    if ours_s is None:
        return [f"{where}: no time of {ours}: {'; '.join(row.faults(ours)) or f'over {row.limit_s:g} s'}"]
    misses = []
    if row.workload == "start":
        if row.rtt_ms == START_RTT_MS and ours_s >= START_S:
            misses.append(f"{where}: {ours_s:.2f} s, has to be under {START_S:g} s")
    else:
        wanted = max(
            [
                EVERY_RATIO,
                *(reach.ratio for reach in ratios if (reach.workload, reach.rtt_ms) == (row.workload, row.rtt_ms)),
            ]
        )
        ratio = row.ratio(base, ours)
        if ratio is None:
            misses.append(f"{where}: no time of {base}: {'; '.join(row.faults(base))}")
        elif ratio < wanted:
            misses.append(f"{where}: {ratio:.2f} times as fast as {base}, has to be {wanted:g}")
    peak = row.peak_rss_bytes(ours)
    if peak >= RSS_BYTES:
        misses.append(f"{where}: {peak / 1e6:.0f} MB resident, has to be under {RSS_BYTES / 1e6:.0f} MB")
    return misses
