"""What a client may send through a connection that others use too: tables, and the check of a message against them.

OpenSSH's sshd ends the whole connection over a single malformed message (`sshpkt_fatal`, `ssh_packet_disconnect` in
its serverloop.c, session.c and channels.c): a field cut short, a byte too many, a NUL in a text, terminal modes that
break off, a second terminal for one session. Most servers do so. One rule, therefore: what is not in these tables does
not pass, and what is in them passes only when every field is whole. Imported by `nat.py` and its parts, by `socks.py`,
and by whoever in `mux.upstream` sends what a client said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from mux.errors import RemoteProtocolError, WireError, printable

from .packets import LARGEST_FRAME_BYTES
from .wire import Reader

Field = Callable[[Reader], object]


def text(reader: Reader) -> bytes:
    """A string that sshd reads as one of C: no NUL in it."""
    value = reader.string()
    if b"\0" in value:
        raise WireError("a NUL in a text")
    return value


def name(reader: Reader) -> bytes:
    """A text that servers decode as UTF-8: a host, a terminal type, a signal."""
    value = text(reader)
    if not is_name(value):
        raise WireError("a name that is not UTF-8")
    return value


def is_name(value: bytes) -> bool:
    """Whether `name` takes this."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in value


def modes(reader: Reader) -> None:
    """Encoded terminal modes (RFC 4254 section 8): opcodes 1 to 159 have an argument, all others end the list."""
    inner = Reader(reader.string())
    while not inner.at_end() and 1 <= inner.u8() <= 159:
        inner.u32()


NUMBER: Final = Reader.u32
BYTE: Final = Reader.u8

# RFC 4254 sections 6.1 and 7.2, and OpenSSH's PROTOCOL section 2.4. No tun@openssh.com: its windows count other bytes.
OPENS: Final[Mapping[bytes, tuple[Field, ...]]] = {
    b"session": (),
    b"direct-tcpip": (name, NUMBER, name, NUMBER),
    b"direct-streamlocal@openssh.com": (name, name, NUMBER),
}
PTY: Final = b"pty-req"
X11: Final = b"x11-req"
AGENT: Final = (b"auth-agent-req@openssh.com", b"agent-req")
KEEPALIVE: Final = b"keepalive@openssh.com"
# RFC 4254 sections 6.2 to 6.10, RFC 4335, OpenSSH's PROTOCOL section 2; the last two ask for nothing but an answer.
REQUESTS: Final[Mapping[bytes, tuple[Field, ...]]] = {
    PTY: (name, NUMBER, NUMBER, NUMBER, NUMBER, modes),
    X11: (BYTE, name, name, NUMBER),
    b"env": (text, text),
    b"shell": (),
    b"exec": (text,),
    b"subsystem": (name,),
    b"window-change": (NUMBER, NUMBER, NUMBER, NUMBER),
    b"signal": (name,),
    b"break": (NUMBER,),
    AGENT[0]: (),
    AGENT[1]: (),
    b"eow@openssh.com": (),
    KEEPALIVE: (),
    b"winadj@putty.projects.tartarus.org": (),
}
# Ways to prove oneself to an X server that PuTTY and OpenSSH ask for; with others there is nothing we could swap.
X11_PROTOCOLS: Final = frozenset({b"MIT-MAGIC-COOKIE-1", b"XDM-AUTHORIZATION-1"})
OPEN_FAILURE: Final[tuple[Field, ...]] = (NUMBER, name, name)
# In one message that is not data: what OpenSSH's packet layer takes, less its own padding and type; and what everybody
# has to take (RFC 4253 section 6.1: 35000 bytes, of which a padding and a MAC may take their parts).
_LARGEST_OPENSSH_REQUEST_BYTES: Final = LARGEST_FRAME_BYTES - 512
_LARGEST_REQUEST_BYTES: Final = 34000
_HEAD_BYTES: Final = 64  # of a channel's message, in front of the fields: numbers, and the longest name in the tables


def largest_request_bytes(server_version: str) -> int:
    """How large a message the server takes that is not data, for the version it greeted with."""
    openssh = server_version.startswith("SSH-2.0-OpenSSH_")
    return _LARGEST_OPENSSH_REQUEST_BYTES if openssh else _LARGEST_REQUEST_BYTES


def x11_protocol(body: memoryview) -> bytes:
    """The name in the body of an x11-req that is whole."""
    reader = Reader(body)
    reader.u8()
    return reader.string()


def check(
    what: bytes | str, fields: tuple[Field, ...], body: bytes | memoryview, server_version: str | None = None
) -> None:
    """Raise `RemoteProtocolError` unless `body` is exactly these fields.

    With `server_version` it must be no more than that server takes, either.
    """
    if server_version is not None and len(body) > largest_request_bytes(server_version) - _HEAD_BYTES:
        size = f"{len(body)} bytes, more than the server takes"
        raise RemoteProtocolError(f"the client sent a {printable(what)} of {size}")
    reader = Reader(body)
    try:
        for field in fields:
            field(reader)
        reader.end()
    except WireError as error:
        shown = printable(what)
        raise RemoteProtocolError(f"the client sent a malformed {shown}, over which a server may hang up: {error}")
