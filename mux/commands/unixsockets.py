"""The unix sockets of this machine as the kernel knows them: who listens where, and who is connected to whom.

The one rule: the kernel is asked, and nobody is connected to. The first way is the socket diagnosis of netlink
(sock_diag(7)), which alone tells the file a listener is bound to and the two ends of a connection. A system without it
leaves /proc/net/unix, which tells the names sockets were bound to and no ends. Nothing here needs a privilege.
Imported by `upstreams.py`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
_SOCK_DIAG_BY_FAMILY: Final = 20  # linux/sock_diag.h
_REQUEST_AND_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_MESSAGE_DONE: Final = 3
_MESSAGE_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port: struct nlmsghdr
_REQUEST: Final = struct.Struct("=BBHIII2I")  # struct unix_diag_req of linux/unix_diag.h
_ANSWER: Final = struct.Struct("=BBBBIII")  # struct unix_diag_msg: family, type, state, pad, inode, cookie
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type: struct nlattr
_VFS: Final = struct.Struct("=II")  # inode and device of the file: struct unix_diag_vfs
_SHOW_NAME, _SHOW_VFS, _SHOW_PEER = 1, 2, 4
_NAME, _FILE, _PEER = 0, 1, 2  # types of attributes
_ESTABLISHED, _LISTEN = 1, 10  # of include/net/tcp_states.h, which unix sockets share
_DEADLINE_S: Final = 2.0  # the kernel answers at once; a system that swallows the question must not hang us
_READ_BYTES: Final = 256 * 1024  # the kernel fills at most 32 KiB for one read


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """One socket. `path` is the name it was bound to, which for one accepted is its listener's."""

    inode: int
    path: str  # "" without a name
    listening: bool
    peer: int | None = None  # the inode of the other end, when known
    file: int | None = None  # the inode number of the file it is bound to, when known


def unix_sockets() -> list[UnixSocket]:
    """Every unix socket of stream kind in this network namespace; empty where the system does not tell."""
    with suppress(OSError):
        return list(_by_netlink())
    with suppress(OSError):
        return list(_by_proc())
    return []


def _by_netlink() -> Iterator[UnixSocket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_DEADLINE_S)
        show = _SHOW_NAME | _SHOW_VFS | _SHOW_PEER
        states = 1 << _ESTABLISHED | 1 << _LISTEN
        any_cookie = (0xFFFFFFFF, 0xFFFFFFFF)
        body = _REQUEST.pack(socket.AF_UNIX, 0, 0, states, 0, show, *any_cookie)
        kernel.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_AND_DUMP, 1, 0) + body)
        while True:
            data = kernel.recv(_READ_BYTES)
            while data:
                length, kind, _, _, _ = _HEADER.unpack_from(data)
                if kind == _MESSAGE_DONE:
                    return
                if kind == _MESSAGE_ERROR:
                    raise OSError(-int(struct.unpack_from("=i", data, _HEADER.size)[0]), "sock_diag")
                found = _of_answer(data[_HEADER.size : length])
                if found is not None:
                    yield found
                data = data[_aligned(length) :]


def _of_answer(body: bytes) -> UnixSocket | None:
    _, kind, state, _, inode, _, _ = _ANSWER.unpack_from(body)
    if kind != socket.SOCK_STREAM:
        return None
    attributes = dict(_attributes(body[_ANSWER.size :]))
    name = attributes.get(_NAME, b"")
    vfs, peer = attributes.get(_FILE), attributes.get(_PEER)
    return UnixSocket(
        inode,
        "" if name.startswith(b"\0") else os.fsdecode(name.rstrip(b"\0")),  # an abstract name begins with NUL
        state == _LISTEN,
        struct.unpack("=I", peer)[0] if peer else None,
        _VFS.unpack(vfs)[0] if vfs else None,
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[max(_aligned(length), _ATTRIBUTE.size) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _by_proc() -> Iterator[UnixSocket]:
    accepting, stream = 0x10000, 1  # __SO_ACCEPTCON of linux/net.h, SOCK_STREAM
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as file:
        next(file, None)
        for line in file:
            words = line.rstrip("\n").split(None, 7)
            if len(words) >= 7 and int(words[4], 16) == stream:
                path = words[7] if len(words) == 8 and not words[7].startswith("@") else ""
                yield UnixSocket(int(words[6]), path, bool(int(words[3], 16) & accepting))
