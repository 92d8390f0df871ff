"""What a descriptor that somebody handed over is, and how it can be read and written without anybody noticing.

One rule: O_NONBLOCK lies on the open file description, which a passed descriptor shares with its owner's shell and
whoever else has it, so it is set on no description but one that was opened here. What follows from it, by kind:

- a socket is asked not to wait call by call (MSG_DONTWAIT);
- a pipe, FIFO or terminal is opened anew through /proc/self/fd, which gives a description of its own; where that is
  not permitted (a pipe of another user), calls that could wait are made in a thread, once epoll says that they should
  not have to;
- a regular file is never opened anew, since its offset and O_APPEND are shared on purpose (`>> log`), and is read and
  written in a thread, as is everything that epoll refuses; what of it is in memory already can be read without;
- /dev/null is what it is.

Imported by the pumps.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
from collections.abc import Sequence
from typing import Final

NULL_DEVICE: Final = os.makedev(1, 3)  # Documentation/admin-guide/devices.txt of Linux
# A blocking write of no more than this does not wait once poll says that a pipe is writable (pipe(7), PIPE_BUF).
SAFE_WRITE_BYTES: Final = select.PIPE_BUF
GATHER_LIMIT: Final = 64  # pieces in one call: 2 MiB of whole packets, more than any pipe or socket takes at once
_CURRENT_OFFSET: Final = -1  # of preadv2(2): as read(2), which moves it
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Port:
    """A descriptor to read from, or to write to. It belongs to the port, which closes it.

    null       /dev/null: reads nothing, takes everything
    pollable   the loop can wait for it
    cached     `read_cached` is worth a try
    direct     a call never waits: it may be made in the loop. Otherwise `read` and `write` are for a thread
    """

    __slots__ = ("_socket", "cached", "descriptor", "direct", "null", "pollable")

    def __init__(self, descriptor: int, *, writing: bool) -> None:
        """Takes ownership of `descriptor` at once. Raises `OSError`, having closed it, when it is not fit for this use
        (write-only and to be read; a pipe without a reader and to be written)."""
        self.descriptor = descriptor
        self.null = False
        self.pollable = False
        self.direct = False
        self.cached = True
        self._socket: socket.socket | None = None
        try:
            self._find_out(writing)
        except BaseException:
            self.close()
            raise

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
            return os.preadv(self.descriptor, [buffer], _CURRENT_OFFSET, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError:  # this kind of file does not know the question; or what is wrong shows in a thread as well
            self.cached = False
            return None

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

    def close(self) -> None:
        """Idempotent. Whoever waits for the descriptor in a loop or a thread has to be stopped first."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        elif self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def _find_out(self, writing: bool) -> None:
        found = os.fstat(self.descriptor)
        access = fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if access == (os.O_RDONLY if writing else os.O_WRONLY) and not stat.S_ISSOCK(found.st_mode):
            # Opened anew it would be both, and we would read what is meant for somebody else.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if stat.S_ISSOCK(found.st_mode):
            self._socket = socket.socket(fileno=self.descriptor)
            self.pollable = self.direct = True
        elif stat.S_ISCHR(found.st_mode) and found.st_rdev == NULL_DEVICE:
            self.null = True
        elif not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            known = stat.S_ISFIFO(found.st_mode) or os.isatty(self.descriptor)
            self.pollable = known or _is_pollable(self.descriptor)
            if self.pollable:
                self.direct = self._open_anew(os.O_WRONLY if writing else os.O_RDONLY)

    def _open_anew(self, access: int) -> bool:
        try:
            own = os.open(f"/proc/self/fd/{self.descriptor}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO and access == os.O_WRONLY and _is_pipe(self.descriptor):
                raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))  # nobody is there to read it
            return False
        try:
            ended = access == os.O_RDONLY and _has_ended(self.descriptor)
        except BaseException:
            os.close(own)
            raise
        if ended:
            os.close(own)
            return False
        os.close(self.descriptor)
        self.descriptor = own
        return True


def _is_pipe(descriptor: int) -> bool:
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def _has_ended(descriptor: int) -> bool:
    """Whether the last writer of a named FIFO has gone. Who opens it then is not told by epoll that it has, but waits
    for the next; who had it open before is (fs/pipe.c of Linux, fifo_open and pipe_poll; unnamed pipes do not care)."""
    if not _is_pipe(descriptor) or os.readlink(f"/proc/self/fd/{descriptor}").startswith("pipe:"):
        return False
    asked = select.poll()
    asked.register(descriptor, 0)
    return any(event & select.POLLHUP for _, event in asked.poll(0))


def _is_pollable(descriptor: int) -> bool:
    try:
        with select.epoll() as trial:
            trial.register(descriptor, 0)
    except OSError:  # refused, or out of descriptors: a thread can always wait
        return False
    return True
