"""Messages of OpenSSH's control protocol, version 4, as data, with their codec.

What a joining command says to the process that holds the connection, as OpenSSH's mux.c does it (its PROTOCOL.mux is
incomplete, and wrong about booleans), with the "info" request of 10.3. One rule: a message class is its own format.
The annotations of its fields name their wire types in order, encoder and decoder both follow them, and one table per
direction gives it its number. Text is bytes throughout, since no side promises an encoding. Imported by whoever uses
the machines of `control.py`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from mux.errors import LocalProtocolError, WireError

from . import wire
from .framing import frame
from .wire import Reader

VERSION: Final = 4
NO_ESCAPE_CHARACTER: Final = 0xFFFFFFFF
UNIX_SOCKET_PORT: Final = 0xFFFFFFFE  # the host beside this port is the path of a unix socket
INFO_EXTENSION: Final = (
    b"info",
    b"0",
)  # how a master of 10.3 or later says that it answers InfoRequest

Extensions = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of both sides, neither of which waits for the other's. Extensions we do not know are skipped."""

    version: int = VERSION
    extensions: Extensions = ()


@dataclass(frozen=True, slots=True)
class NewSession:
    """Open a session; stdin, stdout and stderr follow as 3 descriptors. An empty command is a login shell."""

    request_id: int
    reserved: bytes = b""
    tty: bool = False
    x11: bool = False
    agent: bool = False
    subsystem: bool = False
    escape_character: int = NO_ESCAPE_CHARACTER
    terminal: bytes = b""
    command: bytes = b""
    environment: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class AliveCheck:
    """Ask for the master's pid. It says nothing about the link to the server."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """End the shared connection, whoever uses it."""

    request_id: int


class Forward(NamedTuple):
    """A forwarding: `kind` is one of `ForwardKind`; hosts and ports as `ssh -L`, -R and -D have them, or b"" and 0."""

    kind: int
    listen_host: bytes
    listen_port: int
    connect_host: bytes
    connect_port: int


class ForwardKind(enum.IntEnum):
    """Values of `Forward.kind`."""

    LOCAL = 1
    REMOTE = 2
    DYNAMIC = 3


@dataclass(frozen=True, slots=True)
class OpenForward:
    """Open a forwarding. It belongs to the master and outlives whoever asked for it."""

    request_id: int
    kind: int
    listen_host: bytes
    listen_port: int
    connect_host: bytes
    connect_port: int


@dataclass(frozen=True, slots=True)
class CloseForward:
    """Close the forwarding that was opened with exactly these values."""

    request_id: int
    kind: int
    listen_host: bytes
    listen_port: int
    connect_host: bytes
    connect_port: int


@dataclass(frozen=True, slots=True)
class StdioForward:
    """Connect the 2 descriptors that follow (stdin, stdout) to a host and port seen from the server."""

    request_id: int
    reserved: bytes
    connect_host: bytes
    connect_port: int


@dataclass(frozen=True, slots=True)
class StopListening:
    """Accept no further clients; those there are stay."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Proxy:
    """Turn this socket into a relay of raw connection packets. There is no way back."""

    request_id: int


@dataclass(frozen=True, slots=True)
class InfoRequest:
    """Ask for a text: `name` is "connection" or "channels" (10.3 and later)."""

    request_id: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Ok:
    request_id: int


@dataclass(frozen=True, slots=True)
class PermissionDenied:
    request_id: int
    reason: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    request_id: int
    reason: bytes


@dataclass(frozen=True, slots=True)
class ExitMessage:
    """The remote command has ended. The session itself ends with the control connection."""

    session_id: int
    exit_value: int


@dataclass(frozen=True, slots=True)
class Alive:
    request_id: int
    pid: int


@dataclass(frozen=True, slots=True)
class SessionOpened:
    request_id: int
    session_id: int


@dataclass(frozen=True, slots=True)
class RemotePort:
    """The server chose this port for a remote forwarding of port 0."""

    request_id: int
    port: int


@dataclass(frozen=True, slots=True)
class TtyAllocFail:
    """The server gave no terminal. The session goes on without."""

    session_id: int


@dataclass(frozen=True, slots=True)
class ProxyReady:
    request_id: int


@dataclass(frozen=True, slots=True)
class Info:
    """Answer to `InfoRequest`; when not `supported`, the text says so."""

    request_id: int
    supported: bool
    text: bytes


Request = (
    NewSession
    | AliveCheck
    | Terminate
    | OpenForward
    | CloseForward
    | StdioForward
    | StopListening
    | Proxy
    | InfoRequest
)
Reply = Ok | PermissionDenied | Failure | Alive | SessionOpened | RemotePort | ProxyReady | Info
SessionMessage = ExitMessage | TtyAllocFail
ClientMessage = Hello | Request
ServerMessage = Hello | Reply | SessionMessage

CLIENT_MESSAGES: Final[Mapping[int, type[ClientMessage]]] = {
    0x00000001: Hello,
    0x10000002: NewSession,
    0x10000004: AliveCheck,
    0x10000005: Terminate,
    0x10000006: OpenForward,
    0x10000007: CloseForward,
    0x10000008: StdioForward,
    0x10000009: StopListening,
    0x1000000F: Proxy,
    0x20000001: InfoRequest,
}
SERVER_MESSAGES: Final[Mapping[int, type[ServerMessage]]] = {
    0x00000001: Hello,
    0x80000001: Ok,
    0x80000002: PermissionDenied,
    0x80000003: Failure,
    0x80000004: ExitMessage,
    0x80000005: Alive,
    0x80000006: SessionOpened,
    0x80000007: RemotePort,
    0x80000008: TtyAllocFail,
    0x8000000F: ProxyReady,
    0x90000001: Info,
}
DESCRIPTORS: Final[Mapping[type[Request], int]] = {NewSession: 3, StdioForward: 2}

_REFUSED: Final = (PermissionDenied, Failure)
REPLIES: Final[Mapping[type[Request], tuple[type[Reply], ...]]] = {
    NewSession: (SessionOpened, *_REFUSED),
    AliveCheck: (Alive,),  # a client that asks this does not understand a refusal
    Terminate: (Ok, *_REFUSED),
    OpenForward: (Ok, RemotePort, *_REFUSED),
    CloseForward: (Ok, *_REFUSED),
    StdioForward: (SessionOpened, *_REFUSED),
    StopListening: (Ok, *_REFUSED),
    Proxy: (ProxyReady, *_REFUSED),
    InfoRequest: (Info, *_REFUSED),
}

M = TypeVar("M", bound=ClientMessage | ServerMessage)


class _WireType(NamedTuple):
    read: Callable[[Reader], Any]
    write: Callable[[Any], bytes]


def _read_strings(reader: Reader) -> tuple[bytes, ...]:
    strings = []
    while not reader.at_end():
        strings.append(reader.string())
    return tuple(strings)


def _read_extensions(reader: Reader) -> Extensions:
    strings = iter(_read_strings(reader))
    try:
        return tuple(zip(strings, strings, strict=True))
    except ValueError:
        raise WireError("an extension without a value in the greeting") from None


_WIRE_TYPES: Final[Mapping[str, _WireType]] = {
    "int": _WireType(Reader.u32, wire.u32),
    "bool": _WireType(lambda reader: reader.u32() != 0, wire.u32),  # four bytes here, one in RFC 4251
    "bytes": _WireType(Reader.string, wire.string),
    "tuple[bytes, ...]": _WireType(_read_strings, lambda strings: b"".join(map(wire.string, strings))),
    "Extensions": _WireType(
        _read_extensions,
        lambda pairs: b"".join(wire.string(part) for pair in pairs for part in pair),
    ),
}
_NUMBERS: Final[Mapping[type, int]] = {
    cls: number for table in (CLIENT_MESSAGES, SERVER_MESSAGES) for number, cls in table.items()
}
_FIELDS: Final[Mapping[type, tuple[tuple[str, _WireType], ...]]] = {
    cls: tuple((field.name, _WIRE_TYPES[str(field.type)]) for field in dataclasses.fields(cls)) for cls in _NUMBERS
}


@dataclass(frozen=True, slots=True)
class UnknownMessage:
    """A message of a number that is not in the table of its direction."""

    number: int
    body: bytes


def encode(message: ClientMessage | ServerMessage) -> bytes:
    """Return the whole packet of a message, its length included.

    Raises `LocalProtocolError` when a number in it is too large for its field.
    """
    try:
        fields = [wire_type.write(getattr(message, name)) for name, wire_type in _FIELDS[type(message)]]
    except OverflowError:
        raise LocalProtocolError(f"a number does not fit its field in {message}") from None
    return frame(wire.u32(_NUMBERS[type(message)]) + b"".join(fields))


def decode(packet: bytes, table: Mapping[int, type[M]]) -> M | UnknownMessage:
    """Return the message in a packet (without its length) that came from the side whose table is given.

    Bytes after the last known field are ignored, as both sides of OpenSSH do: they are room for newer versions.
    Raises `WireError` when the packet ends early.
    """
    reader = Reader(packet)
    number = reader.u32()
    message_class = table.get(number)
    if message_class is None:
        return UnknownMessage(number, reader.rest())
    return message_class(*(wire_type.read(reader) for _, wire_type in _FIELDS[message_class]))
