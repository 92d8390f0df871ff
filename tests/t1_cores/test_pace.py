"""Rate and round trip as measured on the traffic: the best of the last seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.sftp.pace import MEMORY_S, Pace

MIB = 1024 * 1024


def test_nothing_is_known_before_the_first_reply() -> None:
    pace = Pace()
    assert (pace.rate_bytes_per_s, pace.round_trip_s, pace.in_flight_bytes) == (0.0, 0.0, 0.0)


def test_what_fills_the_path_is_rate_times_round_trip() -> None:
    pace = Pace()
    pace.answered(10.0, 10.1)
    pace.delivered(20 * MIB, 10.0, 12.0)
    assert pace.round_trip_s == pytest.approx(0.1)
    assert pace.rate_bytes_per_s == pytest.approx(10 * MIB)
    assert pace.in_flight_bytes == pytest.approx(MIB)


def test_the_shortest_round_trip_and_the_highest_rate_count() -> None:
    pace = Pace()
    for round_trip_s in (0.3, 0.1, 0.2):
        pace.answered(1.0, 1.0 + round_trip_s)
    for count_bytes in (100, 300, 200):
        pace.delivered(count_bytes, 1.0, 2.0)
    assert pace.round_trip_s == pytest.approx(0.1)
    assert pace.rate_bytes_per_s == pytest.approx(300.0)


@pytest.mark.parametrize(
    ("round_trips_s", "near"),
    [
        ([], False),
        ([0.0002], True),
        ([0.0011], False),
        # Behind a full queue of ours it is as near as before; what is far from one memory to the next has moved.
        ([0.0002, 0.008], True),
        ([0.0002, *[0.005] * 20], True),
        ([0.0002, *[0.02] * 20], False),
    ],
)
def test_who_is_next_door(round_trips_s: list[float], near: bool) -> None:
    pace = Pace()
    for second, round_trip_s in enumerate(round_trips_s):
        pace.answered(second, second + round_trip_s)
    assert pace.near is near


def test_no_time_at_all_is_no_division_by_zero() -> None:
    pace = Pace()
    pace.answered(5.0, 5.0)
    pace.delivered(1000, 5.0, 5.0)
    assert 0 < pace.round_trip_s <= 1e-6
    assert pace.rate_bytes_per_s == pytest.approx(1000 / 1e-6)


def rates(samples: list[tuple[float, int]]) -> list[int]:
    """The rate after each sample of (time, bytes in the second before it)."""
    pace = Pace()
    seen = []
    for at_s, count_bytes in samples:
        pace.delivered(count_bytes, at_s - 1.0, at_s)
        seen.append(round(pace.rate_bytes_per_s))
    return seen


@pytest.mark.parametrize(
    ("samples", "seen"),
    [
        # Half the memory after it, the best is still believed; a whole memory later it is not.
        ([(100, 900), (104, 1)], [900, 900]),
        ([(100, 900), (104, 1), (106, 1)], [900, 900, 900]),
        ([(100, 900), (104, 1), (106, 1), (112, 1)], [900, 900, 900, 1]),
        ([(100, 900), (100 + MEMORY_S + 1, 1)], [900, 1]),
        # A better one replaces it at once.
        ([(100, 900), (101, 901)], [900, 901]),
        # After a long silence nothing of before counts.
        ([(100, 900), (106, 800), (1000, 7)], [900, 900, 7]),
    ],
)
def test_what_was_not_seen_again_is_forgotten(samples: list[tuple[float, int]], seen: list[int]) -> None:
    assert rates(samples) == seen


@given(st.lists(st.tuples(st.floats(0.01, 4), st.integers(1, 10**9)), min_size=1, max_size=40))
def test_the_best_lies_within_what_was_seen_lately(steps: list[tuple[float, int]]) -> None:
    """Never below the best of half a memory, never above the best of one and a half."""
    pace, now_s, samples = Pace(), 100.0, []
    for gap_s, count_bytes in steps:
        now_s += gap_s
        samples.append((now_s, count_bytes))
        pace.delivered(count_bytes, now_s - 1.0, now_s)
        within = [count for at_s, count in samples if at_s > now_s - MEMORY_S / 2]
        around = [count for at_s, count in samples if at_s > now_s - 1.5 * MEMORY_S]
        assert max(within) <= pace.rate_bytes_per_s * 1.0001
        assert pace.rate_bytes_per_s <= max(around) * 1.0001
