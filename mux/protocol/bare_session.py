"""One session on PuTTY's bare connection protocol, as its downstream: where bytes go, what is said. Sans-IO.

A connection to a PuTTY upstream carries one session here, as a control connection does. Two rules. What the upstream
must not get is never made: no global request and no answer to one, no UNIMPLEMENTED, no packet longer than it takes,
nothing after CLOSE (a PuTTY relays it unchecked, and the server then ends the connection for everybody). And the
payload of CHANNEL_DATA is not held here: while one is due, the caller's own buffers are what `buffers` asks to receive
into, followed by room for the header of the next.

Imported by `mux.downstream.putty_session`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from mux.errors import RemoteProtocolError, WireError

from . import bare
from .connection import (
    STDERR,
    Channel,
    Closed,
    Data,
    Eof,
    Event,
    Message,
    Opened,
    OpenFailure,
    Packet,
    Refused,
    Reply,
    Request,
    State,
)
from .wire import Reader, string, u32

Buffer = bytes | bytearray | memoryview

NUMBER: Final = 0  # of the only channel; the upstream gives it another towards the server
# No reader ahead of its time takes more (`sshmuxfs.io`), so that the window never is what a transfer waits for. This
# is also what the upstream may have to hold for us.
WINDOW_BYTES: Final = 8 * 1024 * 1024
# Not 32 KiB: PuTTY (seen with 0.78) stops reading from the server while more than 32768 bytes of it are
# unprocessed, and processes whole packets. One that is longer on the wire, with its header, padding and MAC, is then
# waited for by an upstream that does not read, for ever, and with it by everybody. Its own tools take 16 KiB; this is
# faster, and safe with 255 bytes of padding and a MAC of 64.
PACKET_BYTES: Final = 32 * 1024 - 512
STDERR_KEPT_BYTES: Final = 4096  # enough for what a failing sftp-server or shell says; the end of it matters

_LENGTH: Final = struct.Struct(">I")
_HEAD_BYTES: Final = 5  # and the type
_DATA_HEAD: Final = struct.Struct(">IBII")  # and the recipient, and the length of the data
_DATA_MORE: Final = _DATA_HEAD.size - 4  # by which the first length is more than the last
_SCRATCH_BYTES: Final = 64 * 1024  # one packet of the largest size, and some of the next
# One send call takes at most 1024 pieces: these many of the caller's, and two more for each packet.
_MOST_BUFFERS: Final = 512
_MOST_SENT_BYTES: Final = 128 * bare.LARGEST_DATA_UP_BYTES
# Answers that are not taken pile up here. An upstream that asks on and does not read is stuck.
_MOST_OUTGOING_BYTES: Final = 256 * 1024

_IGNORED: Final = frozenset(
    {bare.IGNORE, bare.UNIMPLEMENTED, bare.DEBUG, bare.EXT_INFO}
    # A global request wants an answer that a PuTTY cuts us off for, and has never been sent by one.
    | {Message.GLOBAL_REQUEST, Message.REQUEST_SUCCESS, Message.REQUEST_FAILURE}
)


class BareSession:
    """The session's channel, and the bytes each way.

    outgoing      to be sent before anything else; the caller removes what it sent
    opened        whether the server confirmed the channel
    refused       why it did not
    ended         nothing more will be received; `closed`: and nothing more is told
    exit_value    of the command, when it came
    stderr        the end of what it wrote there
    """

    def __init__(self) -> None:
        self.outgoing = bytearray()
        self.opened = False
        self.refused: Refused | None = None
        self.ended = False
        self.closed = False
        self.exit_value: int | None = None
        self.stderr = b""
        self._channel = Channel(NUMBER, window_bytes=WINDOW_BYTES, packet_bytes=PACKET_BYTES)
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._start = self._end = 0  # of what is unparsed
        self._left = 0  # of the payload at hand
        self._violation: RemoteProtocolError | None = None  # what ended it
        self._dropped = False  # whether nobody wants it
        self._direct = 0  # how much of it was asked for where it belongs
        self._pieces: list[Buffer] = []
        self._sizes: list[int] = []

    # -- what we say --------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Ask for the channel."""
        self._say(self._channel.open(b"session"))

    def start(self, command: bytes, *, subsystem: bool, environment: Sequence[bytes] = ()) -> None:
        """Run a command or subsystem; `environment` is b"NAME=value".

        Raises `LocalProtocolError` for what does not fit into a packet.
        """
        for setting in environment:
            name, _, value = setting.partition(b"=")
            self._say(self._channel.request(b"env", False, string(name) + string(value)))
        kind = b"subsystem" if subsystem else b"exec"
        self._say(self._channel.request(kind, True, string(command)))

    def close(self) -> None:
        """Say CLOSE, if that can still be said. Idempotent."""
        if self._channel.state is State.OPEN:
            self._say(self._channel.close())

    def _say(self, packet: Packet | None) -> None:
        if packet is not None:
            self.outgoing += bare.frame(*packet)

    # -- sending ------------------------------------------------------------------------------------------------------

    @property
    def room_bytes(self) -> int:
        """How much of the caller's data may go now."""
        return self._channel.room_bytes

    @property
    def takes_data(self) -> bool:
        """Whether there will ever be room again."""
        return self.opened and not self.ended and not self._channel.close_sent

    def gather(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """Return the pieces for one send call: `outgoing`, then as much of `buffers` as may go, in packets, uncopied.

        `sent` is to be called next, with what the call took.
        """
        pieces: list[Buffer] = [self.outgoing] if self.outgoing else []
        sizes: list[int] = []
        channel = self._channel
        buffers = buffers[:_MOST_BUFFERS]
        budget = min(sum(map(len, buffers)), channel.room_bytes, _MOST_SENT_BYTES)
        largest = min(channel.remote_packet_bytes, bare.LARGEST_DATA_UP_BYTES)
        remote = channel.remote or 0
        left = 0  # of the packet that was begun
        for buffer in buffers:
            view = memoryview(buffer)
            start = 0
            while start < len(view) and budget:
                if not left:
                    left = min(largest, budget)
                    pieces.append(_DATA_HEAD.pack(left + _DATA_MORE, Message.CHANNEL_DATA, remote, left))
                    sizes.append(left)
                end = min(len(view), start + left)
                pieces.append(view[start:end])
                left -= end - start
                budget -= end - start
                start = end
        self._pieces, self._sizes = pieces, sizes
        return pieces

    def sent(self, count: int) -> int:
        """Account for `count` bytes of what `gather` returned; return how many of the caller's were taken.

        A packet that was begun is taken whole: what is left of it goes to `outgoing`.
        """
        pieces, sizes = self._pieces, self._sizes
        self._pieces, self._sizes = [], []
        gone = min(count, len(self.outgoing))
        had_outgoing = bool(self.outgoing)
        del pieces[:had_outgoing]  # it cannot shrink while a view of it exists
        del self.outgoing[:gone]
        count -= gone
        taken = behind = 0
        for size in sizes:
            if behind >= count:
                break
            taken += size
            behind += size + _DATA_HEAD.size
        if behind > count:
            self.outgoing += b"".join(pieces_between(pieces, count, behind))
        if taken:
            self._channel.spend(taken)
        return taken

    # -- receiving ----------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether `take` has something."""
        return self._left > 0 and self._end > self._start

    def take(self, sinks: Sequence[memoryview]) -> int:
        """Copy what was received already into `sinks`; return how much. Raises `RemoteProtocolError`."""
        if self._violation is not None and not self.ready:
            raise self._violation
        done = 0
        for sink in sinks:
            at = 0
            while at < len(sink) and self.ready:
                count = min(len(sink) - at, self._left, self._end - self._start)
                sink[at : at + count] = self._scratch[self._start : self._start + count]
                self._start += count
                self._left -= count
                at += count
                self._advance()
            done += at
        return done

    def buffers(self, sinks: Sequence[memoryview]) -> list[memoryview]:
        """Return where to receive next, once `take` has nothing. Then call `received`."""
        if not self._left:
            self._direct = 0
            if len(self._scratch) - self._end < bare.LARGEST_DOWN_BYTES + 4:
                kept = self._end - self._start
                self._scratch[:kept] = bytes(self._scratch[self._start : self._end])
                self._start, self._end = 0, kept
            return [self._scratch[self._end :]]
        self._start = self._end = 0
        places: list[memoryview] = []
        left = self._left
        for sink in sinks:
            places.append(sink[:left])
            left -= len(places[-1])
            if not left:
                places.append(self._scratch[: _DATA_HEAD.size])
                break
        self._direct = self._left - left
        return places

    def received(self, count: int) -> int:
        """Account for what was received into `buffers`; return how much of it is in the sinks.

        Raises `RemoteProtocolError`.
        """
        direct = min(count, self._direct)
        self._end += count - direct
        self._left -= direct
        self._advance()
        if self._violation is not None and not direct:
            raise self._violation
        return direct

    def consumed(self, count: int) -> None:
        """Note that the caller has done with so much of what it got: the server may send as much again."""
        self._say(self._channel.consumed(count))

    def _advance(self) -> None:
        """Parse; what the peer did wrong, or its goodbye, is told when the caller has all that came before it."""
        try:
            self._parse()
        except RemoteProtocolError as error:
            self._violation = error

    def _parse(self) -> None:
        """Take every packet that is there, up to the next payload that the caller wants."""
        scratch = self._scratch
        while True:
            if self._left:
                if not self._dropped:
                    return
                gone = min(self._left, self._end - self._start)
                self._left -= gone
                self._start += gone
                if self._left:
                    break
            if self._end - self._start < _LENGTH.size:
                break
            (length,) = _LENGTH.unpack_from(scratch, self._start)
            bare.check_length(length, bare.LARGEST_DOWN_BYTES)
            if self._end - self._start < _HEAD_BYTES:
                break
            kind = scratch[self._start + _LENGTH.size]
            if kind == Message.CHANNEL_DATA:
                if self._end - self._start < min(_DATA_HEAD.size, length + 4):
                    break
                self._begin_data(length)
                continue
            end = self._start + 4 + length
            if end > self._end:
                break
            self._packet(kind, scratch[self._start + _HEAD_BYTES : end])
            self._start = end
        if self._start == self._end:
            self._start = self._end = 0

    def _begin_data(self, length: int) -> None:
        if length < _DATA_MORE:
            raise RemoteProtocolError("it sent a CHANNEL_DATA that is too short to be one")
        _, _, recipient, count = _DATA_HEAD.unpack_from(self._scratch, self._start)
        if recipient != NUMBER or count != length - _DATA_MORE:
            raise RemoteProtocolError("it sent data for no channel of ours, or of another length than it says")
        self._dropped = not self._channel.expect(count)
        self._start += _DATA_HEAD.size
        self._left = count

    def _packet(self, kind: int, body: memoryview) -> None:
        if kind in _IGNORED:
            return
        try:
            if kind == bare.DISCONNECT:
                raise RemoteProtocolError(f"it hung up: {bare.disconnect_text(body)}")
            if kind == Message.CHANNEL_OPEN:
                return self._refuse(Reader(body))
            if not Message.CHANNEL_OPEN_CONFIRMATION <= kind <= Message.CHANNEL_FAILURE:
                raise RemoteProtocolError(f"it sent a packet of type {kind}")
            if Reader(body).u32() != NUMBER:
                raise RemoteProtocolError(f"it sent a packet of type {kind} for no channel of ours")
            self._event(self._channel.receive(kind, body[4:]))
        except WireError as error:
            raise RemoteProtocolError(f"it sent a malformed packet of type {kind}: {error}") from None
        if len(self.outgoing) > _MOST_OUTGOING_BYTES:
            raise RemoteProtocolError("it asks on and on, and does not read the answers")

    def _refuse(self, reader: Reader) -> None:
        reader.string()
        why = u32(OpenFailure.ADMINISTRATIVELY_PROHIBITED) + string(b"nothing is taken in here") + string(b"")
        self.outgoing += bare.frame(Message.CHANNEL_OPEN_FAILURE, u32(reader.u32()), why)

    def _event(self, event: Event | None) -> None:
        match event:
            case Opened():
                self.opened = True
            case Refused():
                self.refused = event
                self.ended = self.closed = True
            case Data(stream, data):
                if stream == STDERR:
                    self.stderr = (self.stderr + bytes(data))[-STDERR_KEPT_BYTES:]
                self._say(self._channel.consumed(len(data)))
            case Eof():
                self.ended = True
            case Closed():
                self.ended = self.closed = True
                self.close()
            case Request(name, want_reply, body):
                if name == b"exit-status":
                    self.exit_value = Reader(body).u32()
                if want_reply:
                    self._say(self._channel.answer(False))
            case Reply(ok):
                if not ok:  # the command or subsystem cannot be started: there is nothing else we ask
                    self.ended = self.closed = True
                    self.close()


def pieces_between(pieces: Sequence[Buffer], start: int, end: int) -> list[memoryview]:
    """Return the bytes from `start` to `end` of what `pieces` make together, as views."""
    found: list[memoryview] = []
    at = 0
    for piece in pieces:
        if at + len(piece) > start and at < end:
            found.append(memoryview(piece)[max(0, start - at) : end - at])
        at += len(piece)
    return found
