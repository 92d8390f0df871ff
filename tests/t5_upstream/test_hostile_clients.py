"""Clients that break the protocol, by mistake or on purpose: they harm themselves.

Beside each of them a session of a well-behaved client goes on, and a mount answers: all that is asked of both has the
usual generous deadline, no more.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from mux.protocol.messages import (
    Alive,
    AliveCheck,
    CloseForward,
    Failure,
    Hello,
    InfoRequest,
    OpenForward,
    SessionOpened,
    StdioForward,
    encode,
)
from tests.support.bounded import in_subprocess
from tests.support.master import Master
from tests.support.mounted import Mount
from tests.support.ports import free_port
from tests.support.sshd import HOST
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import Clients, descriptors_of, ended, line_of, say
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.raw import GREETING, Hangup, Raw, null, pipes, session, well

# What a holder of OpenSSH takes at the most in one message (mux.c); one more is too much.
MAX_MESSAGE_BYTES = 256 * 1024


@pytest.fixture
def witnesses(
    holder: Master, clients: Clients, make_mount: Callable[..., Mount], directory: Path
) -> Iterator[Callable[[], None]]:
    """A session and a mount beside the test. Call it to see that both are well; it is called at the end, too."""
    mount = make_mount(directory, master=holder, options=["attr_timeout=0", "entry_timeout=0"])
    numbers = iter(range(1_000_000))

    def look() -> None:
        number = next(numbers)
        (directory / f"file{number}").write_text(str(number))
        assert in_subprocess(lambda: (mount.path / f"file{number}").read_text()) == str(number)
        assert in_subprocess(lambda: os.stat(mount.path).st_size) > 0
        say(process, b"%d\n" % number)
        assert line_of(process) == b"%d" % number

    with clients.started(HOST, "cat; exit 6") as process:
        look()
        yield look
        look()
        assert process.stdin is not None
        process.stdin.close()
        assert ended(process) == 6
    wait_until(well(holder.control_path, holder.pid), "the holder is well")


@contextmanager
def several(count: int, path: str, *, greet: bool = True) -> Iterator[list[Raw]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Raw(path, greet=greet)) for _ in range(count)]


Look = Callable[[], None]

GARBAGE = {
    "an announcement too large": struct.pack("!I", MAX_MESSAGE_BYTES + 1),
    "an announcement of nothing": struct.pack("!I", 0),
    "half a type": struct.pack("!I", 2) + b"\0\0",
    "another protocol": b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n",
    "noise": bytes(reversed(range(256))) * 64,
    "a request before the greeting": encode(AliveCheck(0)),
    "another version": encode(Hello(version=3)),
    "a greeting cut short": struct.pack("!II", 4, 1),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_49_garbage_instead_of_a_greeting(holder: Master, what: str) -> None:
    with Raw(holder.control_path, greet=False) as raw:
        raw.greeted()
        raw.send(GARBAGE[what])
        assert raw.hung_up()


@pytest.mark.parametrize("what", [*GARBAGE, "a second greeting"])
def test_49_garbage_after_the_greeting(holder: Master, what: str) -> None:
    with Raw(holder.control_path) as raw:
        if what == "a request before the greeting":
            assert raw.alive() == holder.pid
            return
        raw.send(GREETING if what == "a second greeting" else GARBAGE[what])
        assert raw.hung_up()


def test_49_unknown_request(holder: Master) -> None:
    """It is refused, and the connection goes on."""
    with Raw(holder.control_path) as raw:
        raw.send(struct.pack("!III", 8, 0x10000099, 77))
        assert raw.expect(Failure) == Failure(77, b"unsupported request")
        assert raw.alive() == holder.pid


def test_49_reply_sent_as_a_request(holder: Master) -> None:
    with Raw(holder.control_path) as raw:
        raw.send(encode(Alive(77, 1)))
        assert raw.expect(Failure) == Failure(77, b"unsupported request")
        assert raw.alive() == holder.pid


def test_49_message_cut_short(holder: Master) -> None:
    """Announced and sent as long as it is, but with fields missing."""
    whole = encode(session(1))
    for size in (4, 8, 12, 20, len(whole) - 8):
        with Raw(holder.control_path) as raw:
            raw.send(struct.pack("!I", size) + whole[4 : 4 + size])
            assert raw.hung_up()


@pytest.mark.parametrize("limit", ["host", "port", "connect to 0", "nowhere"])
def test_49_forwarding_that_makes_no_sense(holder: Master, limit: str) -> None:
    """Refused in words, or hung up; never opened."""
    port = free_port()
    forwards = {
        "host": OpenForward(1, 1, b"h" * 5000, port, b"127.0.0.1", 1),
        "port": OpenForward(1, 1, b"", 70000, b"127.0.0.1", 1),
        "connect to 0": OpenForward(1, 1, b"", port, b"127.0.0.1", 0),
        "nowhere": OpenForward(1, 1, b"", port, b"", 1),
    }
    with Raw(holder.control_path) as raw:
        raw.say(forwards[limit])
        try:
            raw.expect(Failure)
        except Hangup:
            return


@ours_only
@pytest.mark.parametrize("number", [0, 4, 9, 0xFFFFFFFF])
def test_49_forwarding_of_an_unknown_kind(holder: Master, number: int) -> None:
    """A real master dies of it, with everybody on it."""
    with Raw(holder.control_path) as raw:
        raw.say(OpenForward(1, number, b"", free_port(), b"127.0.0.1", 1))
        raw.expect(Failure)
        assert raw.alive() == holder.pid


@ours_only
def test_49_withheld_descriptors(holder: Master, witnesses: Look) -> None:
    """Promised, and not sent: a real master waits for them, and everybody with it. Here who waits is dropped."""
    with null() as descriptors, several(6, holder.control_path) as raws:
        for number, raw in enumerate(raws):
            raw.say(session(), descriptors[: number % 3])
        witnesses()
        with Raw(holder.control_path) as other:
            assert other.alive() == holder.pid
        assert all(raw.hung_up() for raw in raws)


def test_49_bytes_without_their_descriptors(holder: Master) -> None:
    """The three bytes come bare."""
    with Raw(holder.control_path) as raw:
        raw.say(session())
        raw.send(b"\0\0\0")
        assert raw.hung_up()


@ours_only
def test_49_three_descriptors_at_once(holder: Master) -> None:
    """Not OpenSSH's way, and understood, or refused; nothing else."""
    with Raw(holder.control_path) as raw, null() as descriptors:
        raw.say(session())
        raw.send(b"\0\0\0", descriptors)
        try:
            assert isinstance(raw.message(), SessionOpened | Failure)
        except Hangup:
            return


@ours_only
def test_49_surplus_descriptors(holder: Master, witnesses: Look) -> None:
    """They are closed, however they come, and how many: a holder has none of them afterwards."""
    before = len(descriptors_of(holder.pid))
    one = os.open(os.devnull, os.O_RDWR)
    try:
        for count, data in ((1, encode(AliveCheck(1))), (16, encode(AliveCheck(1))), (200, b"\0\0\0"), (253, b"x")):
            with Raw(holder.control_path) as raw:
                raw.send(data, [one] * count)
                witnesses()
        with Raw(holder.control_path) as raw, null() as descriptors, suppress(BrokenPipeError):
            # The session may be over before the last of them.
            raw.say(session(), [*descriptors, *descriptors, *descriptors])
        witnesses()
    finally:
        os.close(one)
    wait_until(lambda: len(descriptors_of(holder.pid)) <= before, "the holder has what it had before")


@ours_only
def test_49_second_session_on_one_connection(holder: Master) -> None:
    """Refused, its descriptors closed, and the first goes on."""
    with Raw(holder.control_path) as raw, pipes() as (given, kept), null() as others:
        raw.say(session(1, b"cat; exit 4"), given)
        raw.expect(SessionOpened)
        before = len(descriptors_of(holder.pid))
        raw.say(session(2), others)
        assert raw.expect(Failure) == Failure(2, b"Multiple sessions not supported")
        assert raw.alive() == holder.pid
        wait_until(lambda: len(descriptors_of(holder.pid)) <= before, "the holder has what it had before")
        os.write(kept[0], b"word")
        assert os.read(kept[1], 10) == b"word"


def pieces(data: bytes, cut: Sequence[int]) -> list[bytes]:
    places = [0, *cut, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def test_49_split_at_every_byte(holder: Master) -> None:
    """A greeting and a request in two pieces, cut at every place, and in pieces of one byte."""
    data = GREETING + encode(AliveCheck(3)) + encode(AliveCheck(4))
    for cut in [*([at] for at in range(1, len(data))), range(1, len(data))]:
        with Raw(holder.control_path, greet=False) as raw:
            for piece in pieces(data, cut):
                raw.send(piece)
            raw.greeted()
            assert raw.expect(Alive) == Alive(3, holder.pid)
            assert raw.expect(Alive) == Alive(4, holder.pid)


def test_49_session_split_at_every_byte(holder: Master) -> None:
    data = encode(session(1, b"exit 3"))
    with null() as descriptors:
        for at in range(1, len(data), 3):
            with Raw(holder.control_path) as raw:
                for piece in pieces(data, [at]):
                    raw.send(piece)
                for descriptor in descriptors:
                    raw.send(b"\0", [descriptor])
                assert isinstance(raw.message(), SessionOpened)


def test_49_everything_in_one_piece(holder: Master) -> None:
    """Greeting, request and the first descriptor's byte may be read by one call."""
    with Raw(holder.control_path, greet=False) as raw, null() as descriptors:
        raw.send(GREETING + encode(AliveCheck(0)) + encode(session(1, b"exit 3")))
        for descriptor in descriptors:
            raw.send(b"\0", [descriptor])
        raw.greeted()
        raw.expect(Alive)
        raw.expect(SessionOpened)
        assert raw.hung_up()


@ours_only
def test_49_descriptor_beside_the_request_itself(holder: Master) -> None:
    """With the first byte of the message instead of a byte of its own: odd, and nobody's harm."""
    with Raw(holder.control_path) as raw, null() as descriptors:
        raw.send(encode(session(1, b"exit 3")), descriptors[:1])
        for descriptor in descriptors[1:]:
            raw.send(b"\0", [descriptor])
        raw.send(b"\0")
        try:
            assert isinstance(raw.message(), SessionOpened | Failure)
        except Hangup:
            return


@ours_only
def test_49_flood_of_connections(holder: Master, witnesses: Look) -> None:
    """Silent ones, more than there may be clients at a time."""
    with ExitStack() as stack:
        for _ in range(600):
            silent = socket.socket(socket.AF_UNIX)
            stack.callback(silent.close)
            # As ssh does: it waits for its place in the queue.
            silent.setblocking(True)
            silent.connect(holder.control_path)
        witnesses()
    witnesses()


@ours_only
def test_49_flood_of_requests(holder: Master, witnesses: Look) -> None:
    """More and more requests, and no answer is ever read: it is held back, or dropped."""
    with several(4, holder.control_path) as raws:
        flood = encode(AliveCheck(1)) * 1000
        for _ in range(200):
            for raw in raws:
                try:
                    raw.offer(flood)
                except (BrokenPipeError, ConnectionResetError):
                    continue
        witnesses()


@ours_only
def test_49_flood_of_unfinished_messages(holder: Master, witnesses: Look) -> None:
    """The largest message there may be, all but its last byte, from many at once."""
    with several(40, holder.control_path) as raws:
        for raw in raws:
            raw.send(struct.pack("!II", MAX_MESSAGE_BYTES, 0x10000002))
        body = bytes(MAX_MESSAGE_BYTES - 5)
        for raw in raws:
            try:
                raw.send(body)
            except (BrokenPipeError, ConnectionResetError):
                continue
        witnesses()


def mutated(random: Random, data: bytes) -> bytes:
    """Bytes changed, cut out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed) + 1)
        end = min(len(changed), at + random.randint(1, 12))
        changed[at:end] = random.choice(
            [b"", changed[at:end] * 2, random.randbytes(end - at), b"\xff" * random.randint(1, 8), bytes(end - at)]
        )
    return bytes(changed)


def converse_with_faults(holder: Master, random: Random) -> None:
    """Sixty conversations, each a little wrong somewhere, in pieces, with descriptors at random places."""
    requests = [
        encode(AliveCheck(1)),
        encode(session(2, b"exit 3", environment=(b"LC_X=1", b"LC_Y=2"))),
        encode(StdioForward(3, b"", b"127.0.0.1", holder.sshd.port)),
        encode(CloseForward(5, 1, b"", 1, b"127.0.0.1", 1)),
        encode(InfoRequest(6, b"channels")),
    ]
    with null() as descriptors:
        for _ in range(60):
            data = GREETING + b"".join(random.sample(requests, random.randint(1, 3))) + bytes(random.randint(0, 4))
            data = mutated(random, data)
            cuts = sorted(random.sample(range(len(data) + 1), min(len(data), random.randint(0, 6))))
            with Raw(holder.control_path, greet=False) as raw, suppress(BrokenPipeError, ConnectionResetError):
                for piece in filter(None, pieces(data, cuts)):
                    raw.send(piece, descriptors[: random.choice([0, 0, 1, 3])])


@ours_only
@pytest.mark.parametrize("seed", range(3))
def test_49_conversations_with_faults(holder: Master, witnesses: Look, seed: int) -> None:
    """Whatever is answered to them."""
    random = Random(seed)
    for _ in range(3):
        converse_with_faults(holder, random)
        witnesses()


@ours_only
def test_49_nothing_is_kept_of_conversations_with_faults(holder: Master) -> None:
    before = len(descriptors_of(holder.pid))
    converse_with_faults(holder, Random(4711))
    wait_until(lambda: len(descriptors_of(holder.pid)) <= before, "the holder has what it had before")


def test_49_largest_session_there_is(holder: Master) -> None:
    """A command just below the limit of a message is refused or run, and not cut; the next client is served."""
    command = b"exit 3 #" + b"x" * 100_000
    with Raw(holder.control_path) as raw, null() as descriptors:
        raw.say(session(1, command), descriptors)
        raw.message()
    assert well(holder.control_path, holder.pid)()
