"""How large the windows of channels are: by the path, by what all of them may cost, and by who else is there."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from mux.upstream import company
from mux.upstream.company import ALONE_AFTER_S, Company
from mux.upstream.doors import Door, Doors
from mux.upstream.windows import (
    ALONE_WINDOW_BYTES,
    LARGEST_WINDOW_BYTES,
    LEAST_WINDOW_BYTES,
    SESSION_WINDOW_BYTES,
    WINDOW_BUDGET_BYTES,
    WindowBudget,
    shared_bytes,
)
from tests.support.sshd import Sshd
from tests.t2_upstream.ends import one_turn, run, until
from tests.t2_upstream.passengers import PLAIN, Told, command, connected, start

DATA = 94
NEVER_S = 1000.0
MANY_BYTES = 20 * ALONE_WINDOW_BYTES


class Deaf:
    """A route that takes everything."""

    def packet(self, kind: int, body: memoryview) -> None: ...
    def lost(self, reason: str) -> None: ...


def test_windows_stay_within_what_ten_clients_may_cost() -> None:
    budget = WindowBudget()
    given = [budget.take(large=True) for _ in range(10)]
    assert given[0] == LARGEST_WINDOW_BYTES
    assert given[1] == LARGEST_WINDOW_BYTES
    assert sorted(given, reverse=True) == given
    assert min(given) == SESSION_WINDOW_BYTES
    assert sum(given) <= WINDOW_BUDGET_BYTES + 10 * SESSION_WINDOW_BYTES
    assert budget.take(large=False) == SESSION_WINDOW_BYTES
    for window_bytes in given:
        budget.give_back(window_bytes, large=True)
    assert budget.take(large=True) == LARGEST_WINDOW_BYTES


@pytest.mark.parametrize(
    ("round_trip_s", "beside_others_bytes", "session_bytes", "large_bytes"),
    [
        (0.00001, 128 << 10, 512 << 10, 2 << 20),
        (0.0005, 250_000, 512 << 10, 2 << 20),
        (0.002, 1_000_000, 1_000_000, 2 << 20),
        (0.005, 2 << 20, 2 << 20, 2_500_000),
        (0.1, 2 << 20, 2 << 20, 16 << 20),
        (None, 2 << 20, 2 << 20, 16 << 20),
    ],
)
def test_windows_are_what_the_path_needs(
    round_trip_s: float | None, beside_others_bytes: int, session_bytes: int, large_bytes: int
) -> None:
    assert shared_bytes(round_trip_s) == beside_others_bytes
    assert WindowBudget().take(large=False, round_trip_s=round_trip_s) == session_bytes
    assert WindowBudget().take(large=True, round_trip_s=round_trip_s) == large_bytes
    # Whoever moves files gets what it has in flight, whatever is left.
    assert WindowBudget(0).take(large=True, round_trip_s=round_trip_s) == 2 << 20


def test_the_window_of_file_transfers(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            budget = WindowBudget.of(engine)
            full = budget.left_bytes
            await engine.measure(10)
            assert engine.shortest_round_trip_s is not None
            expected = WindowBudget().take(large=True, round_trip_s=engine.shortest_round_trip_s)
            told = Told()
            ours, theirs = socket.socketpair()
            with ours:
                descriptor = theirs.fileno()
                await start(engine, told, b"sftp", descriptor, descriptor, descriptor, PLAIN, subsystem=True)
                theirs.close()
                assert budget.left_bytes == full - expected
                ours.sendall(bytes.fromhex("00000005 01 00000003"))
                assert (await asyncio.to_thread(ours.recv, 9))[4:] == bytes.fromhex("02 00000003")
            await told.over.wait()
            assert told.values == [0]
            assert budget.left_bytes == full

    run(main)


def test_who_is_spoken_to_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    doors = Doors({})
    one, another = (doors.table[doors.add(Deaf())] for _ in range(2))

    def alone_after(*spoken_to: Door) -> bool:
        for door in spoken_to:
            door.deliver(DATA, memoryview(b""))
        return doors.company.alone()

    assert Company().alone()
    assert not alone_after(one)
    now_s += ALONE_AFTER_S
    assert alone_after(one, one)
    assert not alone_after(another)
    assert not alone_after(one)
    now_s += ALONE_AFTER_S / 2
    assert not alone_after(one)
    assert not alone_after(another, one)
    now_s += ALONE_AFTER_S / 2
    assert not alone_after(one)
    now_s += ALONE_AFTER_S
    assert alone_after(one)


def test_a_copy_has_more_in_flight_alone_than_beside_others(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            engine.shortest_round_trip_s = 1e-6
            monkeypatch.setattr(company, "ALONE_AFTER_S", NEVER_S)
            null = os.open(os.devnull, os.O_RDWR)
            copy = await start(engine, Told(), b"cat /dev/zero", null, null, null, PLAIN)
            os.close(null)
            assert copy.channel is not None
            channel, core = copy.channel, copy.channel._channel
            assert core.window_bytes == ALONE_WINDOW_BYTES
            assert (await command(engine, b"echo in between")).out == b"in between\n"

            await until(lambda: core._window_bytes <= LEAST_WINDOW_BYTES)
            enough_bytes = channel.received_bytes + MANY_BYTES
            in_flight = []
            while channel.received_bytes < enough_bytes:
                in_flight.append(core._window_bytes)
                await one_turn()
            assert max(in_flight) <= LEAST_WINDOW_BYTES

            monkeypatch.setattr(company, "ALONE_AFTER_S", 0.0)
            await until(lambda: core._window_bytes > LEAST_WINDOW_BYTES)
            copy.hang_up()

    run(main)
