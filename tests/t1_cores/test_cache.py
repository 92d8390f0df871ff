"""How long the kernel may believe what it was told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.tree.cache import DEFAULT_S, NEGATIVE_S, CacheTimes
from sshmuxfs.tree.inodes import NEVER_S


def test_the_defaults() -> None:
    assert CacheTimes() == CacheTimes(
        stat_s=20.0,
        link_s=20.0,
        dir_s=20.0,
        negative_s=NEGATIVE_S,
        kernel_attr_s=None,
        kernel_entry_s=None,
        kernel_negative_s=0.0,
    )
    assert NEGATIVE_S < DEFAULT_S


@pytest.mark.parametrize(
    ("times", "fetched_at_s", "now_s", "attr_s", "entry_s"),
    [
        # As long as we would ourselves: the rest of our own time.
        (CacheTimes(), 100.0, 100.0, 20.0, 20.0),
        (CacheTimes(), 100.0, 112.5, 7.5, 7.5),
        (CacheTimes(), 100.0, 120.0, 0.0, 0.0),
        (CacheTimes(), 100.0, 500.0, 0.0, 0.0),
        (CacheTimes(), NEVER_S, 100.0, 0.0, 0.0),  # what was changed here and not yet asked anew
        (CacheTimes(stat_s=1.0), 100.0, 100.25, 0.75, 0.75),
        (CacheTimes(stat_s=0.0), 100.0, 100.0, 0.0, 0.0),
        # What was asked for by option is what the kernel is told.
        (CacheTimes(kernel_attr_s=3.0), 100.0, 112.5, 3.0, 7.5),
        (CacheTimes(kernel_entry_s=4.0), 100.0, 112.5, 7.5, 4.0),
        (CacheTimes(kernel_attr_s=0.0, kernel_entry_s=0.0), 100.0, 100.0, 0.0, 0.0),
        (CacheTimes(stat_s=0.0, kernel_attr_s=9.0), 100.0, 100.0, 9.0, 0.0),
    ],
)
def test_times(times: CacheTimes, fetched_at_s: float, now_s: float, attr_s: float, entry_s: float) -> None:
    assert times.attr_timeout_s(fetched_at_s, now_s) == attr_s
    assert times.entry_timeout_s(fetched_at_s, now_s) == entry_s


@given(st.floats(0, 1e6), st.floats(0, 1e9), st.floats(0, 1e9))
def test_never_negative_and_never_longer_than_ours(stat_s: float, fetched_at_s: float, later_s: float) -> None:
    times = CacheTimes(stat_s=stat_s)
    told = times.attr_timeout_s(fetched_at_s, fetched_at_s + later_s)
    assert 0.0 <= told <= stat_s + 1e-6
