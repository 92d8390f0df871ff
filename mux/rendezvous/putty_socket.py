"""Being found by PuTTY's tools: a listening socket at the place of a connection's name, taken and left as PuTTY does.

Two rules. Whoever is alive at a name keeps it, and who has a full queue is alive. Nothing is removed but what is ours:
at the end the name goes while it still leads to our own socket, under the lock; what was left behind goes when it is a
socket on which nobody listens, under the lock too. The lock is held for the decision alone, as in PuTTY's
unix/sharing.c, whose steps these are.

It blocks for as long as somebody else decides, at most `putty.LOCK_DEADLINE_S`. Imported by
`mux.upstream.putty_places`, which calls it in a thread.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import Final

from mux.errors import ExitCode, JoinError

from . import putty
from .sockets import LONGEST_PATH_BYTES, shown

# Withdrawing happens in the event loop of everybody who rides. Who holds the lock holds it for a millisecond.
WITHDRAW_DEADLINE_S: Final = 0.05


class Taken(Exception):
    """Somebody alive is at this name."""

    def __init__(self, path: str, identity: tuple[int, int] | None) -> None:
        super().__init__(f"somebody else shares a connection at {shown(path)}")
        self.path = path
        self.identity = identity


class PuttySocket:
    """A listening socket with a name of PuTTY's kind; its backlog is as long as the system has it.

    name   [user@]host[:port]
    path   of the socket
    """

    def __init__(self, name: str, path: str, listener: socket.socket) -> None:
        self.name = name
        self.path = path
        self.listener = listener
        self._identity = identity(path)  # cannot be another's while our socket is open: it keeps its inode

    def is_there(self) -> bool:
        """Whether the name leads to our socket."""
        return self._identity is not None and identity(self.path) == self._identity

    def withdraw(self) -> None:
        """Remove what is ours: socket, lock and directory. The salt and what is above stay for ever. Idempotent.

        To be called while the socket still listens. If the lock cannot be had, all stays; the next PuTTY replaces it.
        """
        directory = os.path.dirname(self.path)
        try:
            with putty.deciding(directory, deadline_s=WITHDRAW_DEADLINE_S):
                if self.is_there():
                    os.unlink(self.path)
                    os.unlink(os.path.join(directory, putty.LOCK))
                    os.rmdir(directory)
        except (putty.NotThere, JoinError, OSError):
            pass


def publish(name: str, parent: str | None = None) -> PuttySocket:
    """Listen at a connection's name. `parent`: of the directories, PuTTY's own unless a test has another.

    Raises `Taken`; `TimeoutError` when it may go another time, since somebody does not come to a decision or we are out
    of descriptors; `JoinError` and `putty.NotThere` when nothing can be published for this user.
    """
    # First: that there is no descriptor would below be taken for a lasting reason.
    listener = _make_socket()
    try:
        parent = putty.parent_directory() if parent is None else parent
        _check_length(parent)
        putty.make_directory(parent)
        directory = os.path.join(parent, putty.hashed(putty.make_salt(parent), name))
        path = os.path.join(directory, putty.SOCKET)
        with putty.deciding(directory, create=True):
            _make_way(path)
            _listen(listener, path)
            return PuttySocket(name, path, listener)
    except BaseException:
        listener.close()
        raise


def identity(path: str) -> tuple[int, int] | None:
    """Which file is at a path; None when there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_length(parent: str) -> None:
    """Raise `JoinError` when there is no room for a path below `parent`, before anything is made."""
    length = len(os.fsencode(os.path.join(parent, putty.hashed(b"", ""), putty.SOCKET)))
    if length > LONGEST_PATH_BYTES:
        text = f"the socket would need a path of {length} bytes in {shown(parent)}, and can have {LONGEST_PATH_BYTES}"
        raise JoinError(text, ExitCode.UNSAFE_SOCKET)


def _make_socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise TimeoutError(f"no socket can be made: {error.strerror}") from None


def _listen(listener: socket.socket, path: str) -> None:
    try:
        listener.bind(path)
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        raise _impossible(path, error) from None


def _make_way(path: str) -> None:
    """Remove what was left behind at a path. Raises `Taken`, `TimeoutError`, and `JoinError` for what is no socket."""
    with _make_socket() as connection:
        connection.setblocking(False)
        try:
            connection.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            pass
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # its queue is full
                raise _impossible(path, error) from None
            raise Taken(path, identity(path)) from None
        else:
            raise Taken(path, identity(path))
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise JoinError(f"{shown(path)} is in the way: it is no socket", ExitCode.UNSAFE_SOCKET)
        os.unlink(path)
    except OSError as error:
        raise _impossible(path, error) from None


def _impossible(path: str, error: OSError) -> JoinError:
    return JoinError(f"no socket can be made at {shown(path)}: {error.strerror}", ExitCode.UNSAFE_SOCKET)
