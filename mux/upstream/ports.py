"""What a descriptor that somebody handed over is, and how it can be read and written without anybody noticing.

One rule: O_NONBLOCK lies on the open file description, which a passed descriptor shares with its owner's shell and
whoever else has it, so it is set on no description but one that was opened here. What follows from it, by kind:

- a socket is asked not to wait call by call (MSG_DONTWAIT);
- a pipe, FIFO or terminal is opened anew through /proc/self/fd, which gives a description of its own; where that is
  not permitted (a pipe of another user), calls that could wait are made in a thread, once epoll says that they should
  not have to;
- a regular file is never opened anew, since its offset and O_APPEND are shared on purpose (`>> log`), and is read and
  written in a thread, as is everything that epoll refuses; what of it is in memory already can be read without, and
  of a file on a tmpfs that is all;
- /dev/null is what it is.

Another: a file may lie on a mount that rides on this very connection, and then whoever asks its kind or size, or closes
it, waits for what only the loop can bring: fstat(2) becomes a question to the server, and close(2) waits until all that
was written is there. So of what /proc/self/fd does not name as a socket, a pipe, a terminal or /dev/null nothing is
asked in the loop, and it is not closed there.

Imported by the pumps, and by whoever closes descriptors that were handed over.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Sequence
from typing import Final

from .workers import WORKERS

NULL_DEVICE: Final = os.makedev(1, 3)  # Documentation/admin-guide/devices.txt of Linux
_NEW_TERMINAL: Final = os.makedev(5, 2)  # a terminal's master; whoever opens it anew has another terminal (pts(4))
# A blocking write of no more than this does not wait once poll says that a pipe is writable (pipe(7), PIPE_BUF).
SAFE_WRITE_BYTES: Final = select.PIPE_BUF
GATHER_LIMIT: Final = 64  # pieces in one call: 2 MiB of whole packets, more than any pipe or socket takes at once
_CURRENT_OFFSET: Final = -1  # of preadv2(2): as read(2), which moves it
# A read of a tmpfs that took longer came from the swap space: the loop makes no second one.
LONGEST_READ_S: Final = 0.005
# `close_fds` of whoever starts a program. Each descriptor here is close-on-exec, and those the kernel closes when it
# has let the parent of a vfork(2) go on. Closed before that, a file on a mount that rides here would hold up the loop.
CLOSED_BEFORE_EXEC: Final = False
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
# How proc(5) names what lies on no file system that could keep us waiting.
_SOCKET: Final = "socket:"
_PIPE: Final = "pipe:"
_TERMINALS: Final = ("/dev/pts/", "/dev/tty", "/dev/ptmx", "/dev/console")

log = logging.getLogger(__name__)


def never_waits(descriptor: int) -> bool:
    """Whether to ask something of this descriptor, or to close it, waits for nobody: not so for most files."""
    return _is_quick(_name(descriptor))


def give_back(descriptor: int) -> None:
    """Close what was handed over and is not wanted."""
    if never_waits(descriptor):
        os.close(descriptor)
    else:
        _close_in_thread(descriptor, _nothing)


class Port:
    """A descriptor to read from, or to write to. It belongs to the port, which closes it.

    known      the rest is known; otherwise a thread has to `find_out` first
    null       /dev/null: reads nothing, takes everything
    pollable   the loop can wait for it
    cached     `read_cached` is worth a try
    direct     a call never waits: it may be made in the loop. Otherwise `read` and `write` are for a thread
    """

    __slots__ = (
        "_in_memory",
        "_lingers",
        "_socket",
        "_writing",
        "cached",
        "descriptor",
        "direct",
        "known",
        "null",
        "pollable",
    )

    def __init__(self, descriptor: int, *, writing: bool) -> None:
        """Takes ownership of `descriptor` at once. Raises `OSError`, having closed it, when it is not fit for this use
        (write-only and to be read; a pipe without a reader and to be written)."""
        self.descriptor = descriptor
        self.known = False
        self.null = False
        self.pollable = False
        self.direct = False
        self.cached = True
        self._in_memory = False
        name = _name(descriptor)
        self._writing = writing
        self._lingers = not _is_quick(name)  # to close it may wait
        self._socket: socket.socket | None = None
        try:
            self._begin(name)
        except BaseException:
            self.close()
            raise

    def find_out(self) -> None:
        """Look at what is not `known`: for a thread, since it may wait. Raises `OSError` when it is not fit."""
        found = os.fstat(self.descriptor)
        if stat.S_ISSOCK(found.st_mode):
            self._take_socket()
        elif stat.S_ISFIFO(found.st_mode):
            self._lingers = False
            self._take_stream(pollable=True, named=not _name(self.descriptor).startswith(_PIPE))
        elif stat.S_ISCHR(found.st_mode) and found.st_rdev == NULL_DEVICE:
            self._lingers = False
            self.null = True
        elif not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            terminal = os.isatty(self.descriptor)
            self._lingers = not terminal
            if found.st_rdev == _NEW_TERMINAL:
                self.pollable = True
            else:
                self._take_stream(pollable=terminal or _is_pollable(self.descriptor))
        else:
            self._in_memory = _is_in_memory(self.descriptor)
        self.known = True

    def read_into(self, buffer: memoryview) -> int:
        """Read what is there; returns how much, 0 at the end. Raises `BlockingIOError` only when `pollable`."""
        if self._socket is not None:
            return self._socket.recv_into(buffer, 0, socket.MSG_DONTWAIT)
        return os.readv(self.descriptor, [buffer])

    def read_cached(self, buffer: memoryview) -> int | None:
        """Of what is not pollable read what the kernel has at hand; None when that is nothing, or it cannot tell."""
        if not self.cached:
            return None
        try:
            if self._in_memory:
                return self._read_memory(buffer)
            return os.preadv(self.descriptor, [buffer], _CURRENT_OFFSET, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError:  # this kind of file does not know the question; or what is wrong shows in a thread as well
            self.cached = False
            return None

    def _read_memory(self, buffer: memoryview) -> int:
        began_s = time.monotonic()
        count = os.readv(self.descriptor, [buffer])
        self.cached = time.monotonic() - began_s <= LONGEST_READ_S
        return count

    def read(self, count: int) -> bytes:
        """`read_into` with a buffer of its own, for a thread."""
        return os.read(self.descriptor, count)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write from the front of `data`; returns how much was taken. Raises `BlockingIOError` only when `pollable`."""
        if self._socket is not None:
            return self._socket.send(data, _FLAGS)
        return os.write(self.descriptor, data)

    def write_gathered(self, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        """As `write`, of up to `GATHER_LIMIT` pieces in a row."""
        if self._socket is not None:
            return self._socket.sendmsg(pieces, (), _FLAGS)
        return os.writev(self.descriptor, pieces)

    def shut_down_writing(self) -> None:
        """Tell a socket's other end that no more comes; nothing on anything else."""
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:  # it has gone already
                pass

    def close(self, closed: Callable[[], None] | None = None) -> bool:
        """Returns whether it is closed; otherwise a thread does it, and `closed` is called then, whatever came of it.

        Idempotent. Whoever waits for the descriptor in a loop or a thread has to be stopped first.
        """
        descriptor, self.descriptor = self.descriptor, -1
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()
        elif descriptor >= 0 and self._lingers:
            _close_in_thread(descriptor, closed or _nothing)
            return False
        elif descriptor >= 0:
            os.close(descriptor)
        return True

    def _begin(self, name: str) -> None:
        """Find out what can be in the loop."""
        if name.startswith(_SOCKET):
            self._take_socket()
            return
        access = fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if access == (os.O_RDONLY if self._writing else os.O_WRONLY):
            # Opened anew it would be both, and we would read what is meant for somebody else.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if name.startswith(_PIPE):
            self._take_stream(pollable=True)
            self.known = True
        elif _is_quick(name):
            self.find_out()

    def _take_socket(self) -> None:
        self._socket = socket.socket(fileno=self.descriptor)
        self.pollable = self.direct = self.known = True

    def _take_stream(self, *, pollable: bool, named: bool = False) -> None:
        """It is a pipe, a terminal or the like; `named` if it is a FIFO."""
        self.pollable = pollable
        if pollable:
            self.direct = self._open_anew(os.O_WRONLY if self._writing else os.O_RDONLY, named)

    def _open_anew(self, access: int, named: bool) -> bool:
        try:
            own = os.open(f"/proc/self/fd/{self.descriptor}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO and access == os.O_WRONLY and _is_pipe(self.descriptor):
                raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))  # nobody is there to read it
            return False
        if named and access == os.O_RDONLY and _has_ended(self.descriptor):
            os.close(own)
            return False
        os.close(self.descriptor)
        self.descriptor = own
        return True


def _nothing() -> None:
    """Nobody waits for it to be closed."""


def _name(descriptor: int) -> str:
    """As /proc/self/fd names it, which asks no file system; empty where there is no /proc."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def _is_quick(name: str) -> bool:
    return name.startswith((_SOCKET, _PIPE, *_TERMINALS)) or name == os.devnull


def _close_in_thread(descriptor: int, closed: Callable[[], None]) -> None:
    def done(_: object, error: OSError | None) -> None:
        if error is not None:  # as for any program that ends: the bytes were taken, and there is nobody left to tell
            log.info("a file of a client was not closed well: %s", error.strerror)
        closed()

    WORKERS.submit(lambda: os.close(descriptor), done)


def _is_pipe(descriptor: int) -> bool:
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def _has_ended(descriptor: int) -> bool:
    """Whether the last writer of a named FIFO has gone. Who opens it then is not told by epoll that it has, but waits
    for the next; who had it open before is (fs/pipe.c of Linux, fifo_open and pipe_poll; unnamed pipes do not care)."""
    asked = select.poll()
    asked.register(descriptor, 0)
    return any(event & select.POLLHUP for _, event in asked.poll(0))


def _is_in_memory(descriptor: int) -> bool:
    """Whether it is a file on a tmpfs, which cannot be asked for what it has at hand (RWF_NOWAIT), and has everything.

    Only files of that kind have seals (F_GET_SEALS of fcntl(2)); whether they can be sealed says nothing else here.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def _is_pollable(descriptor: int) -> bool:
    try:
        with select.epoll() as trial:
            trial.register(descriptor, 0)
    except OSError:  # refused, or out of descriptors: a thread can always wait
        return False
    return True
