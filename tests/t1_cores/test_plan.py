"""What to fetch and what to send, as arithmetic."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sshmuxfs.io import plan
from sshmuxfs.io.plan import KIB, MAX_WINDOW_BYTES, MIB, MIN_WINDOW_BYTES, Budget, Detector, blocks, window_bytes

# -- the window -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_flight_bytes", "streamed_bytes", "window"),
    [
        (0.0, 0, 0),  # nothing was read in sequence: nothing is fetched ahead
        (10.0 * MIB, 0, 0),
        (0.0, 128 * KIB, 256 * KIB),  # trusted with as much again
        (10.0 * MIB, 128 * KIB, 256 * KIB),
        (0.0, MIB, 2 * MIB),
        (0.0, 100 * MIB, MIN_WINDOW_BYTES),
        (1.5 * MIB, 100 * MIB, 3 * MIB),  # twice what is in flight
        (100.0 * MIB, 100 * MIB, MAX_WINDOW_BYTES),
    ],
)
def test_the_window(in_flight_bytes: float, streamed_bytes: int, window: int) -> None:
    assert window_bytes(in_flight_bytes, streamed_bytes) == window


@given(st.floats(0, 1e12), st.floats(0, 1e12), st.integers(0, 2**40), st.integers(0, 2**40))
def test_the_window_is_bounded_and_grows_with_both(a: float, b: float, streamed: int, more: int) -> None:
    slow, fast = sorted((a, b))
    assert 0 <= window_bytes(slow, streamed) <= window_bytes(fast, streamed) <= MAX_WINDOW_BYTES
    assert window_bytes(slow, streamed) <= window_bytes(slow, streamed + more)


# -- the detector -----------------------------------------------------------------------------------------------------

READ = 128 * KIB
FAR = 100 * MIB


@pytest.mark.parametrize(
    ("offsets", "sequential", "streamed"),
    [
        ([0], [True], READ),
        ([0, READ, 2 * READ], [True] * 3, 3 * READ),
        ([FAR], [False], 0),
        ([FAR, FAR + READ, FAR + 2 * READ], [False, True, True], 2 * READ),
        # The kernel's own readers of one stream overtake each other.
        ([0, 2 * READ, READ, 3 * READ], [True] * 4, 4 * READ),
        ([0, 3 * READ, READ, 2 * READ, 4 * READ], [True] * 5, 5 * READ),
        # Somewhere else altogether.
        ([0, READ, FAR, 2 * READ], [True, True, False, False], 0),
        ([0, READ, FAR, FAR + READ], [True, True, False, True], READ),
        # Backwards is not a stream.
        ([FAR, FAR - READ, FAR - 2 * READ], [False] * 3, 0),
        # A hole within the tolerance is still one, beyond it not.
        ([0, READ + plan.REORDER_BYTES], [True, True], 2 * READ),
        ([0, READ + plan.REORDER_BYTES + 1], [True, False], 0),
    ],
)
def test_the_detector(offsets: list[int], sequential: list[bool], streamed: int) -> None:
    detector = Detector()
    assert [detector.note(offset, READ) for offset in offsets] == sequential
    assert detector.streamed_bytes == streamed


@given(st.lists(st.integers(1, MIB), min_size=1, max_size=30))
def test_whatever_the_sizes_a_stream_is_one(sizes: list[int]) -> None:
    detector, offset = Detector(), 0
    for size in sizes:
        assert detector.note(offset, size)
        offset += size
    assert detector.streamed_bytes == offset


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=50, unique=True))
def test_reads_far_apart_are_never_a_stream(places: list[int]) -> None:
    far = 2 * plan.REORDER_BYTES
    detector = Detector()
    for place in places:
        assert not detector.note((place + 1) * far, 4096)
    assert detector.streamed_bytes == 0


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "block_bytes", "expected"),
    [
        (0, 0, 10, []),
        (5, 4, 10, []),
        (0, 10, 10, [(0, 10)]),
        (3, 24, 10, [(3, 10), (13, 10), (23, 1)]),
        (2**62, 2**62 + 1, 261120, [(2**62, 1)]),
    ],
)
def test_blocks(start: int, end: int, block_bytes: int, expected: list[tuple[int, int]]) -> None:
    assert list(blocks(start, end, block_bytes)) == expected


@given(st.integers(0, 10_000), st.integers(1, 10_000), st.integers(1, 2000))
def test_blocks_cover_a_range_exactly(start: int, length: int, block_bytes: int) -> None:
    cut = list(blocks(start, start + length, block_bytes))
    assert cut[0][0] == start
    assert sum(cut[-1]) == start + length
    assert all(sum(one) == other[0] for one, other in pairwise(cut))
    assert all(size == block_bytes for _, size in cut[:-1])
    assert 0 < cut[-1][1] <= block_bytes


# -- the budget -------------------------------------------------------------------------------------------------------


class Reader:
    """A holder that remembers whether it was told to give all back."""

    def __init__(self) -> None:
        self.told = 0

    def give_back(self) -> None:
        self.told += 1


def test_the_longest_unused_pays_for_a_newcomer() -> None:
    budget = Budget(100)
    first, second, third = Reader(), Reader(), Reader()
    assert budget.take(first, 40)
    assert budget.take(second, 40)
    budget.touch(first)
    assert budget.take(third, 50)
    assert (first.told, second.told, third.told) == (0, 1, 0)
    assert budget.used_bytes == 90
    assert budget.take(third, 50)
    assert (first.told, third.told) == (1, 0)
    assert budget.used_bytes == 100


def test_a_holder_never_pays_for_itself() -> None:
    budget = Budget(100)
    alone = Reader()
    assert budget.take(alone, 60)
    assert not budget.take(alone, 50)
    assert (alone.told, budget.used_bytes) == (0, 60)


def test_more_than_there_is_cannot_be_had_and_costs_nobody() -> None:
    budget = Budget(100)
    holder, other = Reader(), Reader()
    assert budget.take(other, 60)
    assert not budget.take(holder, 101)
    assert budget.take(holder, 40)
    assert not budget.take(holder, 61)
    assert (other.told, budget.used_bytes) == (0, 100)


def test_what_is_given_back_is_there_again() -> None:
    budget = Budget(100)
    one, other = Reader(), Reader()
    budget.take(one, 60)
    budget.give(one, 20)
    assert budget.used_bytes == 40
    budget.give(other, 10)  # has nothing: gives nothing
    assert budget.used_bytes == 40
    budget.give(one, 60)  # no more than it has
    assert budget.used_bytes == 0
    budget.release(one)
    budget.touch(one)
    assert budget.used_bytes == 0
    assert budget.take(other, 100)


class BudgetMachine(RuleBasedStateMachine):
    """Any sequence of uses keeps the account, and who has to give back is told."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(1000)
        self.readers = [Reader() for _ in range(4)]
        self.held = [0] * 4

    def forget_told(self) -> None:
        for number, reader in enumerate(self.readers):
            if reader.told:
                reader.told = 0
                self.held[number] = 0

    @rule(number=st.integers(0, 3), count=st.integers(0, 1200))
    def take(self, number: int, count: int) -> None:
        taken = self.budget.take(self.readers[number], count)
        assert not self.readers[number].told
        self.forget_told()
        if taken:
            self.held[number] += count
        else:
            assert self.held[number] + count > 1000

    @rule(number=st.integers(0, 3), count=st.integers(0, 1200))
    def give(self, number: int, count: int) -> None:
        self.budget.give(self.readers[number], count)
        self.held[number] = max(0, self.held[number] - count)

    @rule(number=st.integers(0, 3))
    def touch(self, number: int) -> None:
        self.budget.touch(self.readers[number])

    @rule(number=st.integers(0, 3))
    def release(self, number: int) -> None:
        self.budget.release(self.readers[number])
        self.held[number] = 0

    @invariant()
    def account(self) -> None:
        assert self.budget.used_bytes == sum(self.held) <= 1000


TestBudget = BudgetMachine.TestCase
