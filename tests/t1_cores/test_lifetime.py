"""How long a connection stays: the arithmetic, and the one wait."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.upstream.lifetime import FIRST_RIDER_S, LINGER_S, Lifetime, persist_s, unneeded

START_S = 1000.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", 0.0),
        ("false", 0.0),
        ("yes", None),
        ("true", None),
        ("YES", None),
        ("0", None),  # as ssh has it
        ("600", 600.0),
        ("10s", 10.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1h30", 3630.0),
        ("2d", 172800.0),
        ("1w", 604800.0),
        ("10M", 600.0),
    ],
)
def test_control_persist(text: str, expected: float | None) -> None:
    assert persist_s(text) == expected


@pytest.mark.parametrize("text", ["", "maybe", "-1", "10x", "1.5", "m", "1 0", "9" * 30])
def test_no_control_persist(text: str) -> None:
    with pytest.raises(ValueError, match="yes, no or a time"):
        persist_s(text)


def lifetime(seconds: float | None = 0.0) -> Lifetime:
    return Lifetime(persist_s=seconds, now_s=START_S)


def test_the_first_rider_is_awaited() -> None:
    assert lifetime().ends_s() == START_S + FIRST_RIDER_S
    assert lifetime(2 * FIRST_RIDER_S).ends_s() == START_S + 2 * FIRST_RIDER_S


def test_when_nobody_is_expected_the_first_rider_is_not_awaited() -> None:
    one = lifetime()
    one.expect_nobody()
    assert one.ends_s() == START_S + LINGER_S
    one.came()
    assert one.ends_s() is None


def test_while_somebody_rides_it_does_not_end() -> None:
    one = lifetime()
    one.came()
    one.rode()
    assert one.ends_s() is None
    one.came()
    one.left(START_S + 5)
    assert one.ends_s() is None
    one.left(START_S + 7)
    assert one.ends_s() == START_S + 7 + LINGER_S
    assert one.why() == "the last client has left"


def test_a_look_is_no_ride() -> None:
    one = lifetime()
    one.came()
    one.left(START_S + 1)
    assert one.ends_s() == START_S + FIRST_RIDER_S
    assert one.why() == "nobody came to use the connection"


def test_a_look_begins_the_time_anew() -> None:
    one = lifetime(60)
    one.came()
    one.rode()
    one.left(START_S + 10)
    assert one.ends_s() == START_S + 70
    one.came()
    one.left(START_S + 40)
    assert one.ends_s() == START_S + 100
    assert one.why() == "the last client has left 60 s ago"


def test_who_only_sees_that_somebody_is_here_begins_nothing_anew() -> None:
    one = lifetime(60)
    one.came()
    one.rode()
    one.left(START_S + 10)
    one.came()
    assert one.ends_s() is None  # it may yet ride
    one.left(None)
    assert one.ends_s() == START_S + 70


def test_for_ever() -> None:
    one = lifetime(None)
    assert one.ends_s() is None
    one.came()
    one.rode()
    one.left(START_S + 1)
    assert one.ends_s() is None


@pytest.mark.parametrize("seconds", [0.0, 60.0, None])
def test_when_nobody_can_come_it_ends_with_the_last(seconds: float | None) -> None:
    one = lifetime(seconds)
    one.came()
    one.stopped_listening()
    assert one.ends_s() is None
    one.left(START_S + 3)
    assert one.ends_s() == START_S + 3
    assert "no new ones" in one.why()


@given(st.lists(st.booleans()), st.sampled_from([0.0, 1.5, 60.0]))
def test_it_ends_exactly_when_nobody_is_there(comings: list[bool], seconds: float) -> None:
    one = lifetime(seconds)
    riders = 0
    for now_s, comes in enumerate(comings, int(START_S)):
        if comes:
            one.came()
            one.rode()
            riders += 1
        elif riders:
            one.left(now_s)
            riders -= 1
            assert riders or one.ends_s() == now_s + max(seconds, LINGER_S)
        assert (one.ends_s() is None) == (riders > 0)


class Clock:
    """A clock that is set by hand; no wait is ever as long as a test."""

    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s


def test_the_wait_ends_when_the_last_leaves() -> None:
    async def main() -> None:
        clock, one = Clock(), lifetime()
        one.came()
        one.rode()
        waiting = asyncio.ensure_future(unneeded(one, clock))
        await asyncio.sleep(0)
        clock.now_s += 2 * FIRST_RIDER_S
        one.on_change()
        await asyncio.sleep(0)
        assert not waiting.done()
        one.left(clock.now_s - LINGER_S)
        assert await waiting == "the last client has left"

    asyncio.run(main())


def test_the_wait_ends_by_itself() -> None:
    async def main() -> str:
        one = Lifetime(persist_s=0, first_rider_s=0.01, now_s=asyncio.get_running_loop().time() - LINGER_S)
        return await unneeded(one, asyncio.get_running_loop().time)

    assert asyncio.run(main()) == "nobody came to use the connection"
