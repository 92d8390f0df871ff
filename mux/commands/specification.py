"""A forwarding as ssh has it on its command line -> a `Forward` of the control protocol.

The one rule: arithmetic, and the same forwardings as ssh reads from the same words (readconf.c, parse_forward; mux.c,
mux_client_forward). Two of its liberties are not taken: a service's name in place of a port, which only the machine
that listens can know, and tokens in the paths of sockets, which belong to a login. Imported by `forwards.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from mux.errors import ExitCode, JoinError, printable
from mux.protocol.messages import UNIX_SOCKET_PORT, Forward, ForwardKind

_LAST_PORT: Final = 65535
_ANYWHERE: Final = b"*"  # what the client makes of an empty bind address
_SOCKS: Final = b"socks"  # what stands for the destination of a dynamic forwarding

_FORMS: Final = {
    "L": "[bind_address:]port:host:hostport, [bind_address:]port:socket, socket:host:hostport or socket:socket",
    "R": "[bind_address:]port:host:hostport, [bind_address:]port:socket, socket:host:hostport, socket:socket "
    "or, by SOCKS, [bind_address:]port or socket",
    "D": "[bind_address:]port",
}


@dataclass(frozen=True, slots=True)
class _Field:
    text: str
    is_path: bool


def parse(letter: str, text: str) -> Forward:
    """Return the forwarding of `-L text`, `-R text` or `-D text`. Raises JoinError (USAGE)."""
    try:
        fields = _fields(text)
        return _dynamic(letter, fields) if _is_dynamic(letter, fields) else _fixed(letter, fields)
    except ValueError as error:
        message = f"-{letter} {printable(text)}: {error}"
        raise JoinError(message, ExitCode.USAGE, hint=f"-{letter} is written {_FORMS[letter]}") from None


def shown(forward: Forward) -> str:
    """Return a forwarding as ssh would have it on its command line."""
    dynamic = forward.kind == ForwardKind.DYNAMIC or (forward.connect_host, forward.connect_port) == (_SOCKS, 0)
    letter = {ForwardKind.LOCAL: "L", ForwardKind.REMOTE: "R", ForwardKind.DYNAMIC: "D"}[ForwardKind(forward.kind)]
    ends = [_end(forward.listen_host, forward.listen_port)]
    if not dynamic:
        ends.append(_end(forward.connect_host, forward.connect_port))
    return f"-{letter} {':'.join(ends)}"


def _end(host: bytes, port: int) -> str:
    name = printable(host)
    if port == UNIX_SOCKET_PORT:
        return name
    if not name:
        return str(port)
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _fields(text: str) -> list[_Field]:
    """Split at colons. Brackets hold what has colons itself; a backslash takes the next character as it is."""
    fields: list[_Field] = []
    rest = text
    while True:
        if rest.startswith("["):
            inside, closed, rest = rest[1:].partition("]")
            if not closed or (rest and not rest.startswith(":")):
                raise ValueError("its brackets do not match")
            fields.append(_Field(inside, inside.startswith("/")))
        else:
            taken, rest = _until_colon(rest)
            fields.append(_Field(taken, "/" in taken))
        rest = rest[1:]
        if not rest:  # a colon at the end says nothing
            return fields


def _until_colon(text: str) -> tuple[str, str]:
    taken, characters = "", iter(enumerate(text))
    for index, character in characters:
        if character == ":":
            return taken, text[index:]
        if character == "\\":
            character = next(characters, (0, ""))[1]
            if not character:
                raise ValueError("a backslash at its end")
        taken += character
    return taken, ""


def _is_dynamic(letter: str, fields: list[_Field]) -> bool:
    if letter == "R":
        return len(fields) == 1 or (len(fields) == 2 and not any(field.is_path for field in fields))
    return letter == "D"


def _dynamic(letter: str, fields: list[_Field]) -> Forward:
    if letter == "R" and fields[0].is_path:
        return Forward(ForwardKind.REMOTE, _path(fields[0]), UNIX_SOCKET_PORT, _SOCKS, 0)
    if not 1 <= len(fields) <= 2 or any(field.is_path for field in fields):
        raise ValueError("it is not a port, nor an address and a port")
    port = _port(fields[-1], least=0 if letter == "R" else 1)
    bind = _bind(fields[0].text) if len(fields) == 2 else b""
    return Forward(ForwardKind.DYNAMIC if letter == "D" else ForwardKind.REMOTE, bind, port, _SOCKS, 0)


def _fixed(letter: str, fields: list[_Field]) -> Forward:
    kind = ForwardKind.LOCAL if letter == "L" else ForwardKind.REMOTE
    if not 2 <= len(fields) <= 4:
        raise ValueError("it has too few or too many parts")
    if fields[-1].is_path:
        destination, listening = (_path(fields[-1]), UNIX_SOCKET_PORT), fields[:-1]
    else:
        if not fields[-2].text or fields[-2].is_path:
            raise ValueError("it names no host to connect to")
        destination, listening = (fields[-2].text.encode(errors="surrogateescape"), _port(fields[-1])), fields[:-2]
    if len(listening) == 1 and listening[0].is_path:
        place = (_path(listening[0]), UNIX_SOCKET_PORT)
    elif len(listening) in (1, 2) and not any(field.is_path for field in listening):
        bind = _bind(listening[0].text) if len(listening) == 2 else b""
        place = (bind, _port(listening[-1], least=0 if letter == "R" else 1))
    else:
        raise ValueError("it does not say where to listen")
    return Forward(kind, *place, *destination)


def _bind(text: str) -> bytes:
    return text.encode(errors="surrogateescape") or _ANYWHERE


def _port(field: _Field, *, least: int = 1) -> int:
    text = field.text
    if not (text.isascii() and text.isdigit() and least <= int(text) <= _LAST_PORT):
        raise ValueError(f"{printable(text)!r} is not a port ({least} to {_LAST_PORT})")
    return int(text)


def _path(field: _Field) -> bytes:
    if "%" in field.text or "${" in field.text:
        raise ValueError("tokens in the path of a socket are not expanded here; write the path")
    return os.fsencode(field.text)
