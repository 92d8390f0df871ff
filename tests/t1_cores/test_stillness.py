"""Names held still: for whom, for how long, and for nobody else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps

import trio
import trio.testing

from sshmuxfs.stillness import HOLD_S, LATE_S, LOOKUP_S, MAX_REFUSED, Stillness
from sshmuxfs.tree.inodes import Inode

DIRECTORY = Inode(1, None, b"")
NAME, OTHER = (DIRECTORY, b"name"), (DIRECTORY, b"other")
ME, YOU = 1001, 1002


def with_a_clock_of_its_own(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Time goes by when all wait for it, and then at once."""

    @wraps(test)
    def run() -> None:
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    return run


async def waited_s(call: Awaitable[None]) -> float:
    begun_s = trio.current_time()
    await call
    return trio.current_time() - begun_s


@with_a_clock_of_its_own
async def test_a_change_waits_for_who_was_refused_and_looked_again() -> None:
    names = Stillness()
    names.refused(ME)
    await names.before_lookup(ME, *NAME)
    names.after_lookup(ME)
    changed = trio.Event()

    async def change() -> None:
        await names.wait(OTHER, NAME)
        changed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        assert await waited_s(names.wait(OTHER)) == 0
        await trio.testing.wait_all_tasks_blocked()
        names.opened(YOU)
        assert not changed.is_set()
        names.opened(ME)
        assert await waited_s(changed.wait()) == 0
    assert await waited_s(names.wait(NAME)) == 0


@with_a_clock_of_its_own
async def test_who_was_not_refused_holds_nothing() -> None:
    names = Stillness()
    names.refused(ME)
    await names.before_lookup(YOU, *NAME)
    names.after_lookup(YOU)
    assert await waited_s(names.wait(NAME)) == 0


@with_a_clock_of_its_own
async def test_a_hold_ends_by_itself() -> None:
    names = Stillness()
    names.refused(ME)
    await names.before_lookup(ME, *NAME)
    await trio.sleep(HOLD_S / 2)
    names.after_lookup(ME)  # the server took its time: what counts is when the kernel had the answer
    assert await waited_s(names.wait(NAME)) == HOLD_S
    assert await waited_s(names.wait(NAME)) == 0


@with_a_clock_of_its_own
async def test_a_lookup_long_after_a_refusal_is_another_matter() -> None:
    names = Stillness()
    names.refused(ME)
    await trio.sleep(LOOKUP_S + 1)
    await names.before_lookup(ME, *NAME)
    assert await waited_s(names.wait(NAME)) == 0


@with_a_clock_of_its_own
async def test_of_several_names_on_the_way_the_last_is_held() -> None:
    names = Stillness()
    names.refused(ME)
    for place in (OTHER, NAME):
        await names.before_lookup(ME, *place)
        names.after_lookup(ME)
    assert await waited_s(names.wait(OTHER)) == 0
    assert await waited_s(names.wait(NAME)) == HOLD_S


@with_a_clock_of_its_own
async def test_a_lookup_waits_for_a_change_that_is_under_way_and_not_for_ever() -> None:
    names = Stillness()
    names.refused(ME)
    with names.changing(OTHER):
        assert await waited_s(names.before_lookup(ME, *NAME)) == 0
    with names.changing(NAME):
        assert await waited_s(names.before_lookup(ME, *NAME)) == HOLD_S
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names.before_lookup, ME, *NAME)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            nursery.cancel_scope.cancel()
    assert await waited_s(names.before_lookup(ME, *NAME)) == 0


@with_a_clock_of_its_own
async def test_who_never_comes_again_is_forgotten() -> None:
    names = Stillness()
    for caller in range(3 * MAX_REFUSED):
        names.refused(caller)
        await names.before_lookup(caller, *NAME)
        names.after_lookup(caller)
    assert len(names._refused) == len(names._holds) == MAX_REFUSED
    async with trio.open_nursery() as nursery:
        for place in (NAME, OTHER):
            nursery.start_soon(partial(names.wait, place))
    assert trio.current_time() > 0 and not names._holds


@with_a_clock_of_its_own
async def test_callers_who_take_turns_hold_a_change_back_for_a_bounded_time() -> None:
    names = Stillness()

    async def hold_on() -> None:
        caller = 0
        while True:
            caller += 1
            names.refused(caller)
            await names.before_lookup(caller, *NAME)
            names.after_lookup(caller)
            await trio.sleep(HOLD_S / 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold_on)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(100 * LATE_S):
            assert await waited_s(names.wait(NAME)) == LATE_S
        nursery.cancel_scope.cancel()


@with_a_clock_of_its_own
async def test_the_time_of_a_hold_begins_when_the_change_before_it_has_ended() -> None:
    names = Stillness()
    names.refused(ME)

    async def change() -> None:
        with names.changing(NAME):
            await trio.sleep(HOLD_S * 3 / 4)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        await trio.testing.wait_all_tasks_blocked()
        await names.before_lookup(ME, *NAME)
    assert await waited_s(names.wait(NAME)) == HOLD_S
