"""Channels against a scripted server: what is sent and told when things come late, wrong, twice, or never.

No real server breaks the protocol on demand; what one does is in `test_channels_server.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mux.errors import RemoteProtocolError
from mux.protocol.wire import boolean, string, u32
from mux.upstream import company
from mux.upstream.channels import URGENT_BYTES, LiveChannel, OpenRefused
from mux.upstream.turns import Turns
from tests.t2_upstream.ends import one_turn, run
from tests.t2_upstream.scripted import THEIRS, End, Incoming, Server


async def opening(server: Server, end: End, **more: Any) -> asyncio.Task[LiveChannel]:
    """An open that was sent, and not yet answered."""
    arguments = {"window_bytes": 1000, "deadline_s": 5.0, **more}
    task = asyncio.ensure_future(LiveChannel.open(server, b"session", b"", end, **arguments))
    while not server.sent and not task.done():
        await one_turn()
    return task


async def opened(server: Server, end: End, window: int = 1 << 20, packet: int = 32768, **more: Any) -> LiveChannel:
    task = await opening(server, end, **more)
    server.confirm(max(server.routes), window, packet)
    server.take()
    return await task


def closing(packets: list[tuple[int, bytes]]) -> list[int]:
    return [kind for kind, _ in packets]


def test_open_says_what_we_take() -> None:
    async def main() -> None:
        server, end = Server(), End()
        task = await opening(server, end, packet_bytes=500)
        (number,) = server.routes
        assert server.take() == [(90, string(b"session") + u32(number) + u32(1000) + u32(500))]
        server.confirm(number)
        # Its end knows before anything else can come, and before whoever opened it gets to run.
        server.say(number, 94, string(b"early"))
        assert end.said == ["opened", (0, b"early")]
        channel = await task
        assert channel is end.channel
        assert (channel.number, channel.kind, channel.description) == (number, b"session", "session")

    run(main)


def test_refusals_are_told_in_safe_words() -> None:
    async def main() -> None:
        for text, shown in ((b"no more \x1b[2J", "no more \\x1b[2J"), (b"", "resource shortage")):
            server, end = Server(), End()
            task = await opening(server, end)
            (number,) = server.routes
            server.say(number, 92, u32(4) + string(text) + string(b""))
            with pytest.raises(OpenRefused) as caught:
                await task
            assert (caught.value.code, caught.value.text) == (4, shown)
            assert not server.routes
            assert not end.said

    run(main)


def test_an_open_that_is_not_answered_in_time_is_closed_when_it_is() -> None:
    async def main() -> None:
        server, end = Server(), End()
        task = await opening(server, end, deadline_s=0.01)
        with pytest.raises(OpenRefused, match="no answer within"):
            await task
        (number,) = server.routes
        server.take()
        server.confirm(number)
        assert server.take() == [(97, u32(THEIRS))]
        server.say(number, 94, string(b"late"))
        server.say(number, 97)
        assert not server.routes
        assert not end.said
        assert not server.take()

    run(main)


@pytest.mark.parametrize("answer", [91, 92])
def test_an_open_that_is_cancelled_leaves_nothing(answer: int) -> None:
    async def main() -> None:
        server, end = Server(), End()
        task = await opening(server, end)
        (number,) = server.routes
        server.take()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if answer == 91:
            server.confirm(number)
            assert server.take() == [(97, u32(THEIRS))]
            server.say(number, 97)
        else:
            server.say(number, 92, u32(1) + string(b"no") + string(b""))
        assert not server.routes
        assert not end.said

    run(main)


def test_cancelled_in_the_turn_in_which_it_is_confirmed() -> None:
    async def main() -> None:
        server, end = Server(), End()
        task = await opening(server, end)
        (number,) = server.routes
        server.take()
        server.confirm(number)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server.take() == [(97, u32(THEIRS))]
        server.say(number, 97)
        assert not server.routes
        assert end.said == ["opened"]

    run(main)


def test_an_open_on_a_lost_connection() -> None:
    async def main() -> None:
        server, end = Server(), End()
        task = await opening(server, end)
        for route in list(server.routes.values()):
            route.lost("cut off")
        with pytest.raises(OpenRefused, match="cut off") as caught:
            await task
        assert caught.value.code == 0
        assert not end.said
        server.lost = "gone before"
        with pytest.raises(OpenRefused, match="gone before"):
            await LiveChannel.open(server, b"session", b"", end, window_bytes=1, deadline_s=1)

    run(main)


def test_a_channel_of_the_server() -> None:
    async def main() -> None:
        server, end = Server(), End()
        channel = LiveChannel.accept(server, Incoming(), end, window_bytes=64, packet_bytes=32)
        assert server.take() == [(91, u32(THEIRS) + u32(channel.number) + u32(64) + u32(32))]
        assert end.said == ["opened"]
        with pytest.raises(RemoteProtocolError):
            LiveChannel.accept(server, Incoming(packet_bytes=0), End(), window_bytes=64)
        assert list(server.routes) == [channel.number]
        assert not server.take()

    run(main)


def test_what_comes_is_told_in_order_and_answered() -> None:
    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end)
        number = channel.number
        server.say(number, 95, u32(1) + string(b"err"))
        server.say(number, 98, string(b"keepalive@openssh.com") + boolean(True))
        end.answer = False
        server.say(number, 98, string(b"what") + boolean(True) + b"body")
        server.say(number, 98, string(b"exit-status") + boolean(False) + u32(3))
        server.say(number, 96)
        assert end.said[1:] == [
            (1, b"err"),
            (b"keepalive@openssh.com", True, b""),
            (b"what", True, b"body"),
            (b"exit-status", False, u32(3)),
            "eof",
        ]
        assert server.take() == [(99, u32(THEIRS)), (100, u32(THEIRS))]
        assert channel.received_bytes == 3

    run(main)


def test_answers_come_in_order_and_before_what_is_behind_them() -> None:
    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end)
        said: list[object] = end.said
        channel.ask_then(b"pty-req", b"", lambda ok: said.append(("pty", ok)))
        future = channel.ask(b"exec", string(b"ls"))
        channel.request(b"env")
        assert closing(server.take()) == [98, 98, 98]
        server.say(channel.number, 100)
        server.say(channel.number, 99)
        server.say(channel.number, 94, string(b"x"))
        assert said[1:] == [("pty", False), (0, b"x")]
        assert await future is True

    run(main)


@pytest.mark.parametrize("how", ["closed by it", "lost", "broken"])
def test_whoever_still_waits_is_told_no(how: str) -> None:
    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end)
        over: list[bool] = []
        channel.ask_then(b"one", b"", lambda ok: over.append(channel.over))
        future = channel.ask(b"two")
        if how == "lost":
            channel.lost("cut off")
        else:
            server.say(channel.number, 97 if how == "closed by it" else 92)
        assert over == [True]
        assert await future is False
        assert await channel.ask(b"three") is False

    run(main)


def test_the_server_closes_first() -> None:
    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end)
        server.say(channel.number, 96)
        server.say(channel.number, 97)
        assert server.take() == [(97, u32(THEIRS))]
        assert end.said[1:] == ["eof", "closed"]
        assert channel.over
        assert not server.routes
        # Nothing is sent any more, whatever is tried.
        channel.close()
        channel.eof()
        channel.request(b"late")
        channel.consumed(5)
        assert channel.write(b"late") == 0
        assert not server.take()

    run(main)


def test_we_close_first() -> None:
    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end)
        channel.eof()
        channel.eof()
        channel.close()
        channel.close()
        assert closing(server.take()) == [96, 97]
        assert list(server.routes) == [channel.number]
        server.say(channel.number, 94, string(b"dropped"))
        server.say(channel.number, 98, string(b"exit-status") + boolean(False) + u32(1))
        server.say(channel.number, 98, string(b"keepalive@openssh.com") + boolean(True))
        server.say(channel.number, 96)
        server.say(channel.number, 97)
        assert end.said[1:] == [
            (b"exit-status", False, u32(1)),
            (b"keepalive@openssh.com", True, b""),
            "eof",
            "closed",
        ]
        assert not server.take()
        assert not server.routes
        # Nothing can be answered on a closed channel, and a server that wants a sign of life has one all the same.
        assert server.asked == [b"keepalive@openssh.com"]

    run(main)


def test_lost_is_told_once_and_last() -> None:
    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end)
        channel.lost("cut off")
        channel.lost("cut off")
        assert end.said == ["opened", "lost: cut off"]
        channel.close()
        assert channel.write(b"x") == 0
        assert not server.take()

    run(main)


@pytest.mark.parametrize(
    "violation",
    [
        (94, string(bytes(1001))),
        (94, string(b"short")[:-1]),
        (99, b""),
        (93, u32(2**32 - 1)),
        (92, u32(1) + string(b"") + string(b"")),
        (91, u32(1) + u32(1) + u32(1)),
    ],
)
def test_a_server_that_breaks_the_rules_loses_this_channel_alone(violation: tuple[int, bytes]) -> None:
    async def main() -> None:
        server, end, other_end = Server(), End(), End()
        channel = await opened(server, end)
        other = await opened(server, other_end)
        server.say(channel.number, *violation)
        assert server.take() == [(97, u32(THEIRS))]
        assert len(end.said) == 2
        assert str(end.said[1]).startswith(f"lost: channel {channel.number}")
        # Its number is the server's until it has closed too, and what it says meanwhile is not heard.
        server.say(channel.number, 94, string(b"more"))
        server.say(channel.number, 99)
        assert channel.number in server.routes
        server.say(channel.number, 97)
        assert list(server.routes) == [other.number]
        assert not server.take()
        assert len(end.said) == 2
        server.say(other.number, 94, string(b"fine"))
        assert other_end.said == ["opened", (0, b"fine")]

    run(main)


def test_nonsense_instead_of_an_answer_to_an_open() -> None:
    async def main() -> None:
        server, end = Server(), End()
        task = await opening(server, end)
        (number,) = server.routes
        server.take()
        server.say(number, 94, string(b"x"))
        with pytest.raises(OpenRefused, match="before it was open"):
            await task
        server.confirm(number)
        assert server.take() == [(97, u32(THEIRS))]
        server.say(number, 97)
        assert not server.routes
        assert not end.said

    run(main)


def test_a_bug_in_one_end_costs_one_channel(expect_log: Callable[[str], None]) -> None:
    expect_log("failed")

    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end)
        end.broken = True
        server.say(channel.number, 94, string(b"x"))
        assert server.take() == [(97, u32(THEIRS))]
        assert end.said == ["opened", "lost: an error of this program; see its log"]

    run(main)


def test_no_more_is_written_than_the_window_and_the_rest_is_asked_for() -> None:
    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end, window=5, packet=3)
        assert channel.room_bytes == 5
        assert channel.write(b"12345678") == 5
        assert server.take() == [(94, u32(THEIRS) + string(b"123")), (94, u32(THEIRS) + string(b"45"))]
        assert channel.write(b"678") == 0
        assert end.said == ["opened"]
        server.say(channel.number, 93, u32(2))
        assert end.said == ["opened", "room"]
        assert channel.write(b"67") == 2
        # Nobody waits: nobody is told.
        server.say(channel.number, 93, u32(2))
        assert end.said == ["opened", "room"]
        assert channel.sent_bytes == 7

    run(main)


def test_the_window_we_give_opens_when_half_is_consumed() -> None:
    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end)
        server.say(channel.number, 94, string(bytes(600)))
        channel.consumed(499)
        assert not server.take()
        channel.consumed(1)
        assert server.take() == [(93, u32(THEIRS) + u32(500))]

    run(main)


def test_beside_others_the_window_opens_to_less(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(company, "ALONE_AFTER_S", 1000.0)
        server, end = Server(), End()
        channel = await opened(server, end, shared_bytes=200)
        server.say(channel.number, 94, string(bytes(1000)))
        server.company.enter("another")
        channel.consumed(99)
        assert not server.take()
        channel.consumed(1)
        assert server.take() == [(93, u32(THEIRS) + u32(100))]
        channel.consumed(800)
        assert server.take() == [(93, u32(THEIRS) + u32(100))]
        monkeypatch.setattr(company, "ALONE_AFTER_S", 0.0)
        channel.consumed(100)
        assert server.take() == [(93, u32(THEIRS) + u32(800))]

    run(main)


def test_those_who_wait_for_the_transport_take_turns() -> None:
    async def main() -> None:
        server = Server()
        order: list[int] = []
        channels = []
        for name in range(3):
            end = End()
            channel = await opened(server, end, window=1 << 30)
            channels.append(channel)

            def write(channel: LiveChannel = channel, name: int = name) -> None:
                order.append(name)
                channel.write(bytes(10_000))
                channel.want_room()

            end.on_room = write
        server.pauses_after_bytes = 1
        for channel in channels:
            assert channel.write(bytes(10_000)) in (10_000, URGENT_BYTES)
            channel.want_room()
        assert server.paused
        for _ in range(7):
            server.resume(until_bytes=1)
        # Each fills it, and goes to the end of the row.
        assert order == [0, 1, 2, 0, 1, 2, 0]

    run(main)


def test_a_few_bytes_pass_a_full_transport() -> None:
    async def main() -> None:
        server, end = Server(), End()
        typing = await opened(server, end)
        server.paused = True
        assert typing.room_bytes == URGENT_BYTES
        assert typing.write(b"key") == 3
        assert typing.write(bytes(2 * URGENT_BYTES)) == URGENT_BYTES - 3
        assert typing.room_bytes == 0
        assert typing.write(b"x") == 0
        assert end.said == ["opened"]
        server.resume()
        assert end.said == ["opened", "room"]
        server.paused = True
        assert typing.room_bytes == URGENT_BYTES

    run(main)


def test_who_sent_much_while_there_was_room_sends_nothing_urgent() -> None:
    async def main() -> None:
        server, end = Server(), End()
        bulk = await opened(server, end)
        bulk.write(bytes(100_000))
        server.paused = True
        assert bulk.room_bytes == 0

    run(main)


def test_who_waits_for_the_window_is_not_called_for_the_transport() -> None:
    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end, window=3)
        server.paused = True
        assert channel.write(b"1234") == 3
        server.resume()
        assert end.said == ["opened"]
        server.paused = True
        server.say(channel.number, 93, u32(5))
        assert end.said == ["opened", "room"]

    run(main)


def test_a_window_that_grows_while_the_transport_has_enough_is_used_when_it_has_room() -> None:
    """Its urgent bytes are spent, it is not in the row, and no other adjustment will ever come."""

    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end, window=URGENT_BYTES)
        assert channel.write(bytes(URGENT_BYTES + 1)) == URGENT_BYTES
        server.paused = True
        server.say(channel.number, 93, u32(5))
        server.say(channel.number, 93, u32(5))
        assert end.said == ["opened"]
        server.resume()
        assert end.said == ["opened", "room"]
        # Once, however many adjustments there were.
        server.resume()
        assert end.said == ["opened", "room"]

    run(main)


def test_a_closed_channel_keeps_no_place_in_the_row() -> None:
    async def main() -> None:
        server, end = Server(), End()
        channel = await opened(server, end)
        server.paused = True
        channel.write(bytes(100_000))
        channel.close()
        server.resume()
        assert end.said == ["opened"]
        assert len(server.brakes) == 1
        assert Turns.of(server) in server.brakes

    run(main)
