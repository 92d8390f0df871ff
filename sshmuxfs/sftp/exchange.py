"""The client's half of an SFTP conversation: request ids, replies, sinks. Sans-IO.

The rule of this file: it decides where the next bytes from the server belong, and never touches a socket, a clock or a
log. The shell asks `receive_buffers()` where to receive, fills those buffers, and says `bytes_received(n)`; what
completed comes back as a list. A READ names its *sink*, the slice of the buffer that will answer the kernel, and its
payload is received there directly.

An OpenSSH server answers strictly in order, so the reply that comes next is that of the oldest request: when this is a
READ, only its header is asked for, and payload and next header follow in one receive. That is a guess for speed alone;
replies in any order are served right.

Every departure from the protocol (an unknown id, a wrong type, too long a DATA, a length over the limit) raises
`ProtocolViolation`: the channel is then beyond repair, since nothing says where its next packet begins.

Imported by `sshmuxfs.sftp.client`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Protocol

from sshmuxfs.sftp.protocol import (
    HEADER_BYTES,
    INIT_PACKET,
    VERSION,
    DecodeError,
    Request,
    StatusError,
    Type,
    decode_reply,
    decode_version,
    read_packet,
    write_header,
)

# OpenSSH's sftp-server and client both refuse more than this (sftp-common.h); DATA is held to what was asked instead.
MAX_REPLY_BYTES = 256 * 1024
# Holds hundreds of small replies, or one READDIR reply of typical length, in one receive.
_BUFFER_BYTES = 64 * 1024
# So little is sooner copied from the packet buffer than received by a call of its own.
SMALL_SINK_BYTES = 8 * 1024
# A request whose waiter gave up stays known, so that its late reply is no violation. A server that leaves this many
# unanswered has stopped serving: 200 kernel requests at a time, each given up once, come nowhere near.
MAX_ABANDONED = 4096

_REPLY_HEADER = struct.Struct(">IBI")  # length of what follows, type, request id
_DATA_HEADER = struct.Struct(">IBII")  # and the length of the data
_LENGTH = struct.Struct(">I")


class ProtocolViolation(Exception):
    """The server broke the protocol; the message says how. The channel must be closed."""


class Settable(Protocol):
    """What a waiter leaves with a pending request, to be set when it is done (a trio.Event, in the shell)."""

    def set(self) -> None: ...


class Pending:
    """One request that was given an id. `result` or `error` is there once `done`; never both.

    The result is what `decode_reply` gives; for a READ with a sink, the number of bytes now in the sink.
    `on_done`, if any, is called in the same synchronous step, before anyone who waits wakes up.
    """

    __slots__ = (
        "delivered_bytes",
        "done",
        "error",
        "event",
        "expects",
        "on_done",
        "request_id",
        "result",
        "sent_at_s",
        "sink",
    )

    def __init__(self, request_id: int, expects: Type, sent_at_s: float, sink: memoryview | None = None) -> None:
        self.request_id = request_id
        self.expects = expects
        self.sent_at_s = sent_at_s
        self.sink = sink
        self.delivered_bytes = 0
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None
        self.event: Settable | None = None
        self.on_done: Callable[[Pending], None] | None = None

    def finish(self, result: Any, error: Exception | None = None) -> None:
        """Settle the request, once."""
        self.result, self.error, self.done = result, error, True
        if self.on_done is not None:
            self.on_done(self)
        if self.event is not None:
            self.event.set()


class Exchange:
    """One SFTP session, from INIT to its end, as the client sees it."""

    def __init__(self) -> None:
        self.extensions: dict[bytes, bytes] | None = None  # None until the VERSION packet came
        self.delivered_bytes = 0  # payload of all READs so far
        self.orphans: list[bytes] = []  # handles that came too late for who asked: to be closed by the shell
        self.answered_sent_at_s = 0.0  # when the youngest request that has been answered was sent
        self._next_id = 0
        self._pending: dict[int, Pending] = {}  # in the order of sending
        self._abandoned: set[int] = set()
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._sink: memoryview | None = None  # what is still to come of the payload at hand
        self._sink_of: Pending | None = None
        self._sink_bytes = 0

    # -- sending ------------------------------------------------------------------------------------------------------

    @staticmethod
    def start() -> bytes:
        """Return the INIT packet: the first bytes on the channel."""
        return INIT_PACKET

    @property
    def outstanding(self) -> int:
        """How many requests wait for their reply."""
        return len(self._pending)

    def oldest(self) -> Pending | None:
        """Return the request that has waited longest."""
        return next(iter(self._pending.values()), None)

    def overdue(self, now_s: float, heard_at_s: float, deadline_s: float) -> list[Pending]:
        """Return the requests that have waited too long, oldest first.

        `heard_at_s` is when the channel last made progress. Silence is what counts: a request behind a long queue is
        not overdue while replies keep coming, unless requests sent `deadline_s` after it have been answered already.
        """
        silent = heard_at_s + deadline_s <= now_s
        late = []
        arriving = self._sink_of  # answered in part: only silence can hold it up
        if arriving is not None and silent and arriving.sent_at_s + deadline_s <= now_s:
            late.append(arriving)
        for pending in self._pending.values():
            if pending.sent_at_s + deadline_s > now_s:
                break
            if silent or pending.sent_at_s + deadline_s < self.answered_sent_at_s:
                late.append(pending)
        return late

    def _register(self, expects: Type, now_s: float, sink: memoryview | None = None) -> Pending:
        request_id = self._next_id
        self._next_id = (request_id + 1) & 0xFFFFFFFF
        while self._next_id in self._pending or self._next_id in self._abandoned:  # after 2**32 requests
            self._next_id = (self._next_id + 1) & 0xFFFFFFFF
        pending = self._pending[request_id] = Pending(request_id, expects, now_s, sink)
        pending.delivered_bytes = self.delivered_bytes
        return pending

    def request(self, request: Request, now_s: float) -> tuple[Pending, bytes]:
        """Give `request` an id; return what waits for its reply, and its packet."""
        pending = self._register(request.REPLY, now_s)
        return pending, request.encode(pending.request_id)

    def read(self, handle: bytes, offset: int, sink: memoryview, now_s: float) -> tuple[Pending, bytes]:
        """Ask for `len(sink)` bytes at `offset`, to be received straight into `sink`."""
        pending = self._register(Type.DATA, now_s, sink)
        return pending, read_packet(pending.request_id, handle, offset, len(sink))

    def write(self, handle: bytes, offset: int, length: int, now_s: float) -> tuple[Pending, bytes]:
        """Announce `length` bytes for `offset`; the caller sends them right behind the returned header."""
        pending = self._register(Type.STATUS, now_s)
        return pending, write_header(pending.request_id, handle, offset, length)

    def abandon(self, pending: Pending, error: Exception) -> None:
        """Give up on one request: its waiter gets `error` now, its reply is dropped if it ever comes."""
        if pending is self._sink_of:  # its payload is on the way: let it come, nobody waits
            self._sink_of = None
        elif self._pending.pop(pending.request_id, None) is not None:
            self._abandoned.add(pending.request_id)
        else:
            return
        pending.finish(None, error)
        if len(self._abandoned) > MAX_ABANDONED:
            raise ProtocolViolation(f"the server left {MAX_ABANDONED} requests unanswered")

    def fail_all(self, error: Callable[[], Exception]) -> None:
        """The channel is gone: settle every request with an error of its own."""
        pending = list(self._pending.values())
        if self._sink_of is not None:
            pending.append(self._sink_of)
            self._sink_of = None
        self._pending.clear()
        for each in pending:
            each.finish(None, error())

    # -- receiving ----------------------------------------------------------------------------------------------------

    def receive_buffers(self) -> list[memoryview]:
        """Return where the next bytes belong, in order. Valid until the next call of any method."""
        if self._sink is not None:
            return [self._sink, self._view[: self._wanted_bytes()]]
        if self._end == len(self._buffer):
            self._make_room()
        return [self._view[self._end : self._end + self._wanted_bytes()]]

    def _wanted_bytes(self) -> int:
        """How much to take into the packet buffer: a READ's header alone, if that is what comes; else all there is."""
        space = len(self._buffer) - self._end
        oldest = self.oldest()
        if oldest is None or oldest.sink is None or len(oldest.sink) <= SMALL_SINK_BYTES:
            return space
        have = self._end - self._start
        need = _DATA_HEADER.size
        if have >= HEADER_BYTES and self._buffer[self._start + 4] != Type.DATA:  # some other reply has begun
            need = 4 + _LENGTH.unpack_from(self._buffer, self._start)[0]
        return min(space, max(need - have, 1))

    def _make_room(self) -> None:
        """Move what is unparsed to the front; double the buffer if it is full of one packet."""
        kept = self._buffer[self._start : self._end]
        if len(kept) > len(self._buffer) // 2:
            self._buffer = bytearray(2 * len(self._buffer))
            self._view = memoryview(self._buffer)
        self._buffer[: len(kept)] = kept
        self._start, self._end = 0, len(kept)

    def bytes_received(self, count: int, now_s: float) -> list[Pending]:
        """Account for `count` bytes put into `receive_buffers()`; return the requests that they completed, in order.

        Each is already settled. Raises ProtocolViolation.
        """
        completed: list[Pending] = []
        if self._sink is not None:
            taken = min(count, len(self._sink))
            count -= taken
            self._advance_sink(taken, completed)
        self._end += count
        while self._sink is None and self._parse_packet(completed):
            pass
        if self._start == self._end:
            self._start = self._end = 0
        return completed

    def _advance_sink(self, taken: int, completed: list[Pending]) -> None:
        assert self._sink is not None
        if taken < len(self._sink):
            self._sink = self._sink[taken:]
            return
        pending, self._sink, self._sink_of = self._sink_of, None, None
        if pending is not None:
            self.delivered_bytes += self._sink_bytes
            pending.finish(self._sink_bytes)
            completed.append(pending)

    def _parse_packet(self, completed: list[Pending]) -> bool:
        """Take one packet, or the header of one DATA, off the buffer; False when more bytes are needed."""
        start, have = self._start, self._end - self._start
        if self.extensions is None:
            return self._parse_version(have)
        if have < HEADER_BYTES:
            return False
        length, kind, request_id = _REPLY_HEADER.unpack_from(self._buffer, start)
        if not 5 <= length <= MAX_REPLY_BYTES:
            raise ProtocolViolation(f"a reply announces {length} bytes (5 to {MAX_REPLY_BYTES} are allowed)")
        if kind == Type.DATA:
            return self._parse_data(length, request_id, have, completed)
        if have < 4 + length:
            return False
        body = bytes(self._view[start + HEADER_BYTES : start + 4 + length])
        self._start = start + 4 + length
        pending = self._take(request_id, kind)
        if pending is not None:
            self._settle(pending, kind, body)
            completed.append(pending)
        elif kind == Type.HANDLE:
            self._take_in(body)
        return True

    def _take_in(self, body: bytes) -> None:
        """A handle that nobody waits for any more: the server holds it until it is closed."""
        try:
            self.orphans.append(decode_reply(Type.HANDLE, body))
        except DecodeError:
            return  # the reply is dropped, whatever it is

    def _take(self, request_id: int, kind: int) -> Pending | None:
        """Return the request that a reply answers, or None if its waiter gave up."""
        pending = self._pending.pop(request_id, None)
        if pending is None:
            if request_id not in self._abandoned:
                raise ProtocolViolation(
                    f"a reply of type {kind} answers request {request_id}, which is not waiting for one"
                )
            self._abandoned.remove(request_id)
            return None
        if kind not in (pending.expects, Type.STATUS):
            self._pending[request_id] = pending  # fails with all the others
            raise ProtocolViolation(
                f"request {request_id} asked for {pending.expects.name} and was answered by type {kind}"
            )
        self.answered_sent_at_s = max(self.answered_sent_at_s, pending.sent_at_s)
        return pending

    def _settle(self, pending: Pending, kind: int, body: bytes) -> None:
        try:
            result = decode_reply(kind, body)
        except DecodeError as error:
            self._pending[pending.request_id] = pending  # fails with all the others
            raise ProtocolViolation(str(error)) from error
        if isinstance(result, StatusError):
            pending.finish(None, result)
        elif result is None and pending.expects != Type.STATUS:
            self._pending[pending.request_id] = pending
            raise ProtocolViolation(
                f"request {pending.request_id} asked for {pending.expects.name} and was answered by OK alone"
            )
        else:
            pending.finish(result)

    def _parse_data(self, length: int, request_id: int, have: int, completed: list[Pending]) -> bool:
        """Direct a DATA packet's payload to its sink, or to nowhere if the reader gave up."""
        if have < _DATA_HEADER.size:
            return False
        start = self._start
        (data_length,) = _LENGTH.unpack_from(self._buffer, start + HEADER_BYTES)
        if length != 9 + data_length:
            raise ProtocolViolation(f"a DATA packet of {length} bytes says that {data_length} of them are data")
        pending = self._take(request_id, Type.DATA)
        if pending is None:
            sink = memoryview(bytearray(data_length))  # at most MAX_REPLY_BYTES, and gone with the packet
        else:
            assert pending.sink is not None
            if data_length > len(pending.sink):
                self._pending[request_id] = pending
                raise ProtocolViolation(f"{data_length} bytes of DATA answer a READ of {len(pending.sink)}")
            sink = pending.sink[:data_length]
        self._start = start + _DATA_HEADER.size
        early = min(data_length, self._end - self._start)
        sink[:early] = self._view[self._start : self._start + early]
        self._start += early
        self._sink, self._sink_of, self._sink_bytes = sink, pending, data_length
        self._advance_sink(early, completed)
        if self._sink is not None:  # the buffer is used up: the next header goes to its front
            self._start = self._end = 0
        return self._sink is None

    def _parse_version(self, have: int) -> bool:
        """Take the VERSION packet, which alone has no request id."""
        if have < 5:
            return False
        start = self._start
        (length,) = _LENGTH.unpack_from(self._buffer, start)
        if not 5 <= length <= MAX_REPLY_BYTES or self._buffer[start + 4] != Type.VERSION:
            begun = bytes(self._view[start : min(self._end, start + 80)])
            raise ProtocolViolation(
                f"the server did not speak SFTP; it began with {begun!r} "
                "(a shell start-up file on the server that prints text is the usual cause)"
            )
        if have < 4 + length:
            return False
        try:
            version, extensions = decode_version(bytes(self._view[start + 5 : start + 4 + length]))
        except DecodeError as error:
            raise ProtocolViolation(str(error)) from error
        if version < VERSION:
            raise ProtocolViolation(f"the server speaks SFTP version {version}; version {VERSION} is needed")
        self.extensions = extensions
        self._start = start + 4 + length
        return True
