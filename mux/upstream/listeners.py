"""Listening sockets of local and dynamic forwardings: where they are bound, and how many connections they take.

One rule: at the limit nobody is turned away and nothing is held here; the listeners stop taking until somebody leaves,
and the kernel's queue makes the others wait. Bind addresses mean what they mean to OpenSSH's client
(channel_fwd_bind_addr in channels.c), and of several address families one is enough. A unix socket gets its mode before
it listens, and its name is removed only while it still is ours. Imported by `forwards.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from typing import Final

from .addresses import addresses

BACKLOG: Final = 128  # as OpenSSH has it (SSH_LISTEN_BACKLOG)
MAX_CONNECTIONS: Final = 512  # of all forwardings: a descriptor and a window each
LARGEST_WINDOW_BYTES: Final = 2 << 20  # OpenSSH's for a forwarded connection (CHAN_TCP_WINDOW_DEFAULT)
LEAST_WINDOW_BYTES: Final = 64 << 10  # two packets
WINDOW_BUDGET_BYTES: Final = 64 << 20  # of all of them, should nobody read what comes; shared out with care below
ACCEPTS_PER_TURN: Final = 16
PAUSE_S: Final = 1.0  # out of descriptors
RESOLVE_DEADLINE_S: Final = 10.0  # for a bind address that is a name; it is one of this machine's

Taken = Callable[[socket.socket, tuple[str, int]], None]

log = logging.getLogger(__name__)


class Gate:
    """How many forwarded connections there may be at once, by whatever listener they came, and their windows."""

    def __init__(self, limit: int = MAX_CONNECTIONS) -> None:
        self.limit = limit
        self.inside = 0
        self.listeners: set[Listener] = set()
        self._left_bytes = WINDOW_BUDGET_BYTES

    @property
    def full(self) -> bool:
        return self.inside >= self.limit

    def enter(self, path_bytes: int = LARGEST_WINDOW_BYTES) -> int:
        """One more; returns the window it may have, in bytes: a sixteenth of what is left, within bounds.

        `path_bytes` is what a window can be of use (`windows.path_bytes`).
        """
        self.inside += 1
        if self.full:
            for listener in self.listeners:
                listener.take(False)
        window_bytes = max(LEAST_WINDOW_BYTES, min(LARGEST_WINDOW_BYTES, path_bytes, self._left_bytes // 16))
        self._left_bytes -= window_bytes
        return window_bytes

    def leave(self, window_bytes: int) -> None:
        """One less, which had this window."""
        was_full = self.full
        self.inside -= 1
        self._left_bytes += window_bytes
        if was_full and not self.full:
            for listener in self.listeners:
                listener.take(True)


class Listener:
    """The sockets of one forwarding. `taken` gets each connection, non-blocking, with the address of its other end."""

    def __init__(self, sockets: list[socket.socket], gate: Gate, taken: Taken, path: bytes | None = None) -> None:
        """Takes ownership of `sockets` at once. Raises `OSError`, having closed them, when `path` has gone already."""
        self.sockets = sockets
        self.port = 0
        self._gate = gate
        self._taken = taken
        self._path = path
        self._inode: os.stat_result | None = None
        self._taking = False
        self._retry: asyncio.TimerHandle | None = None
        gate.listeners.add(self)
        try:
            if path is None:
                self.port = sockets[0].getsockname()[1]
            else:
                self._inode = os.lstat(path)
            self.take(not gate.full)
        except BaseException:
            self.close()
            raise

    def take(self, on: bool) -> None:
        """Take connections, or leave them in the queue."""
        if on == self._taking:
            return
        self._taking = on
        loop = asyncio.get_running_loop()
        for listener in self.sockets:
            if on:
                loop.add_reader(listener.fileno(), self._accept, listener)
            else:
                loop.remove_reader(listener.fileno())

    def close(self) -> None:
        """Listen no more; connections stay. Idempotent."""
        if self in self._gate.listeners:
            self._gate.listeners.remove(self)
            self.take(False)
            if self._retry is not None:
                self._retry.cancel()
            self._remove_name()
            for listener in self.sockets:
                listener.close()

    def _remove_name(self) -> None:
        if self._path is not None and self._inode is not None:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.lstat(self._path), self._inode):
                    os.unlink(self._path)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if not self._taking:
                return
            try:
                connection, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.info("a forwarded connection cannot be taken for now: %s", error.strerror)
                self.take(False)
                self._retry = asyncio.get_running_loop().call_later(PAUSE_S, self._again)
                return
            connection.setblocking(False)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._taken(connection, (address[0], address[1]))
            else:
                # What OpenSSH says of a client that has no address, since some servers want one.
                self._taken(connection, ("127.0.0.1", 65535))

    def _again(self) -> None:
        if self in self._gate.listeners and not self._gate.full:
            self.take(True)


def bind_names(host: bytes, *, gateway_ports: bool) -> tuple[str, ...]:
    """Return the names or addresses to bind to for a bind address as the client sent it."""
    if host == b"*" or (not host and gateway_ports):
        return ("0.0.0.0", "::")
    if host in (b"", b"localhost"):
        return ("127.0.0.1", "::1")
    return (os.fsdecode(host),)


async def listen_tcp(names: tuple[str, ...], port: int, family: int) -> list[socket.socket]:
    """Bind to what these names stand for, in one address family or (`AF_UNSPEC`) all; port 0 is chosen once for all.

    Raises OSError, of the first that failed, when nothing could be bound.
    """
    failure: OSError | None = None
    sockets: list[socket.socket] = []
    try:
        async with asyncio.timeout(RESOLVE_DEADLINE_S):
            for name in names:
                try:
                    found = await addresses(name, port, family=family, flags=socket.AI_PASSIVE)
                except (OSError, UnicodeError) as error:
                    failure = failure or OSError(errno.EADDRNOTAVAIL, f"{error}")
                    continue
                for number, address in found:
                    try:
                        sockets.append(_bind_tcp(number, (address[0], port, *address[2:])))
                    except OSError as error:
                        failure = failure or error
                    else:
                        port = sockets[0].getsockname()[1]
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    if not sockets:
        raise failure or OSError(errno.EADDRNOTAVAIL, "no address to bind to")
    return sockets


def _bind_tcp(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_unix(path: bytes, *, mask: int, unlink_first: bool) -> socket.socket:
    """Bind to a path, with the permissions that StreamLocalBindMask leaves. Raises OSError.

    `unlink_first` is StreamLocalBindUnlink: what is there is removed if it is a socket; OpenSSH removes anything.
    """
    if unlink_first:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.bind(path)
        try:
            os.chmod(path, 0o777 & ~mask)
            listener.listen(BACKLOG)
        except BaseException:
            os.unlink(path)
            raise
    except BaseException:
        listener.close()
        raise
    return listener
