"""The server end of SOCKS 4, 4a and 5, for dynamic forwardings: what one client wants to be connected to.

One rule: whatever bytes come, `next_event` returns what they ask for, wants more, or raises `RemoteProtocolError`; a
refusal that the client understands is then ready to be sent. Nothing is read behind a request: those bytes belong to
whom the client is connected to. The answer says what became of the connection (OpenSSH's says yes before it knows).

SOCKS 4 as its memo has it (ftp.openssh.com/pub/socks/SOCKS4.protocol), 4a as its one-page extension, 5 as RFC 1928,
with the one method "no authentication" and the one command CONNECT. May be imported by anyone.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from typing import Final

from mux.errors import RemoteProtocolError, printable

from .harmless import is_name

LONGEST_NAME_BYTES: Final = 255  # RFC 1928 has one byte for the length; 4 and 4a, with an end mark, get no more
_CONNECT: Final = 1
_NO_AUTHENTICATION: Final = 0
_NONE_ACCEPTABLE: Final = 0xFF
_IPV4: Final = 1
_NAME: Final = 3
_IPV6: Final = 4
_NOWHERE: Final = bytes((0, _IPV4, 0, 0, 0, 0, 0, 0))  # reserved, and an address that tells nothing (RFC 1928, 6)


class Outcome(enum.IntEnum):
    """What became of the connection, with the numbers of RFC 1928 section 6; SOCKS 4 knows yes and no."""

    CONNECTED = 0
    FAILED = 1
    FORBIDDEN = 2
    UNREACHABLE = 4
    REFUSED = 5
    COMMAND_UNKNOWN = 7
    ADDRESS_UNKNOWN = 8


class State(enum.Enum):
    """Where the conversation is. What comes in `ANSWERED` and `REQUESTED` is for `take_rest`."""

    VERSION = enum.auto()
    METHODS = enum.auto()
    REQUEST = enum.auto()
    REQUESTED = enum.auto()
    ANSWERED = enum.auto()


@dataclass(frozen=True, slots=True)
class Connect:
    """Where the client wants to be connected to: a name, or an address in text."""

    host: bytes
    port: int


class SocksServer:
    """One conversation: `receive` and `next_event` until there is a `Connect`, then `answer`, then `take_rest`."""

    def __init__(self) -> None:
        self.state = State.VERSION
        self._version = 0
        self._data = bytearray()
        self._output = bytearray()
        self._error: RemoteProtocolError | None = None

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes of the client."""
        self._data += data

    def data_to_send(self) -> bytes:
        """Take what is to be sent to the client."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def next_event(self) -> Connect | None:
        """Return where the client wants to go, once; None as long as more must come.

        Raises `RemoteProtocolError`, for ever; what `data_to_send` has then is the last the client is told.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._advance()
        except RemoteProtocolError as error:
            self._error = error
            raise

    @property
    def wanted_bytes(self) -> int:
        """How many bytes are sure to belong to the request: who reads no more leaves alone what is behind it."""
        have = len(self._data)
        match self.state:
            case State.VERSION:
                return 1
            case State.METHODS:
                return (2 if have < 2 else 2 + self._data[1]) - have
            case State.REQUEST if self._version == 4:
                return max(8 - have, 1)
            case State.REQUEST if have < 5:
                return 5 - have
            case State.REQUEST:
                start, length = self._address_span()
                return start + length + 2 - have
            case _:
                return 0

    def answer(self, outcome: Outcome) -> None:
        """Tell the client what became of its request. From `Outcome.CONNECTED` on, all bytes are its own."""
        if self._version == 4:
            self._output += bytes((0, 0x5A if outcome is Outcome.CONNECTED else 0x5B)) + bytes(6)
        else:
            self._output += bytes((5, outcome)) + _NOWHERE
        self.state = State.ANSWERED

    def take_rest(self) -> bytes:
        """Take the bytes behind the request."""
        rest = bytes(self._data)
        self._data.clear()
        return rest

    def _advance(self) -> Connect | None:
        if self.state is State.VERSION and self._data:
            self._version = self._data[0]
            if self._version not in (4, 5):
                raise RemoteProtocolError(f"the client speaks no SOCKS: it began with byte {self._version:#04x}")
            self.state = State.METHODS if self._version == 5 else State.REQUEST
        if self.state is State.METHODS and not self._choose_method():
            return None
        if self.state is not State.REQUEST:
            return None
        request = self._request_4() if self._version == 4 else self._request_5()
        if request is not None:
            self.state = State.REQUESTED
            if not request.host or not is_name(request.host):
                self.answer(Outcome.FAILED)
                shown = f"{printable(request.host)!r}, which no server takes" if request.host else "no host"
                raise RemoteProtocolError(f"the client named {shown}")
        return request

    def _choose_method(self) -> bool:
        if len(self._data) < 2 or len(self._data) < 2 + self._data[1]:
            return False
        methods = self._data[2 : 2 + self._data[1]]
        del self._data[: 2 + len(methods)]
        if _NO_AUTHENTICATION not in methods:
            self._output += bytes((5, _NONE_ACCEPTABLE))
            raise RemoteProtocolError("the client insists on SOCKS authentication, and there is none")
        self._output += bytes((5, _NO_AUTHENTICATION))
        self.state = State.REQUEST
        return True

    def _request_4(self) -> Connect | None:
        if len(self._data) < 8:
            return None
        self._check_command(self._data[1])
        port = int.from_bytes(self._data[2:4], "big")
        address = bytes(self._data[4:8])
        user = self._text(8)
        if user is None:
            return None
        end = 8 + len(user) + 1
        named = address[:3] == bytes(3) and address[3] != 0  # 4a: 0.0.0.x, and the name behind the user
        host = self._text(end) if named else str(ipaddress.IPv4Address(address)).encode()
        if host is None:
            return None
        del self._data[: end + (len(host) + 1 if named else 0)]
        return Connect(host, port)

    def _text(self, start: int) -> bytes | None:
        """What begins at `start` and ends with a NUL, without it; None as long as that has not come."""
        end = self._data.find(0, start, start + LONGEST_NAME_BYTES + 1)
        if end >= 0:
            return bytes(self._data[start:end])
        if len(self._data) - start > LONGEST_NAME_BYTES:
            self.answer(Outcome.FAILED)
            raise RemoteProtocolError(f"a name in the client's request is longer than {LONGEST_NAME_BYTES} bytes")
        return None

    def _request_5(self) -> Connect | None:
        data = self._data
        if len(data) < 5:
            return None
        if data[0] != 5 or data[2] != 0:
            raise RemoteProtocolError("the client's SOCKS request is malformed")
        self._check_command(data[1])
        kind = data[3]
        if kind not in (_IPV4, _NAME, _IPV6):
            self.answer(Outcome.ADDRESS_UNKNOWN)
            raise RemoteProtocolError(f"the client's request has an address of unknown kind {kind}")
        start, length = self._address_span()
        end = start + length
        if len(data) < end + 2:
            return None
        address, port = bytes(data[start:end]), int.from_bytes(data[end : end + 2], "big")
        del data[: end + 2]
        return Connect(address if kind == _NAME else str(ipaddress.ip_address(address)).encode(), port)

    def _address_span(self) -> tuple[int, int]:
        """Where the address of a SOCKS 5 request begins, and its length."""
        kind = self._data[3]
        return (5, self._data[4]) if kind == _NAME else (4, 16 if kind == _IPV6 else 4)

    def _check_command(self, command: int) -> None:
        if command != _CONNECT:
            self.answer(Outcome.COMMAND_UNKNOWN)
            raise RemoteProtocolError(f"the client asked for SOCKS command {command}, and only CONNECT is served")
