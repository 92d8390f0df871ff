"""Being found: a listening socket that appears at its control path at once, and complete, or not at all.

The one rule: nothing is removed but what is ours. A name is taken by link(2), which never replaces anything, as
OpenSSH does (mux.c, muxserver_listen). At the end the name goes only while it still leads to our own socket. What was
left behind at a path goes only when it is ours and provably nobody listens, and only while the path's lock is held.

The lock is a file beside the control path, so that whoever agrees on the path agrees on the lock. It keeps many who
start at the same moment from logging in each; what keeps them from replacing each other is link(2). It is removed by
who holds it, and who waited for it looks whether it still has its name.

Imported by `mux.downstream.start` (lock, places) and `mux.upstream.daemon` (publishing).
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self

from mux.errors import ExitCode, JoinError

from .sockets import LONGEST_PATH_BYTES, LONGEST_PUBLISHED_BYTES, shown
from .target import own_directories

_SUFFIX_BYTES: Final = LONGEST_PATH_BYTES - LONGEST_PUBLISHED_BYTES - 1  # of random characters, behind a dot
BACKLOG: Final = 128  # fifty may come at once; OpenSSH has 64
_LOCK_SUFFIX: Final = ".lock"
_PRIVATE: Final = "private-"
_SOCKET_NAME: Final = "s"
_OLD_S: Final = 3600.0  # no login takes an hour
_LOCK_ATTEMPTS: Final = 1000  # each one lost means that somebody else held the lock and gave it back


class Taken(JoinError):
    """Something is at the path already."""

    usual_exit_code = ExitCode.UNSAFE_SOCKET


class Published:
    """A listening socket with a name."""

    def __init__(self, path: str, listener: socket.socket, identity: tuple[int, int], private: bool) -> None:
        self.path = path
        self.listener = listener
        self._identity = identity  # cannot be another's while our socket is open: it keeps its inode
        self._private = private

    def is_there(self) -> bool:
        """Whether the path leads to our socket."""
        try:
            return _identity(self.path) == self._identity
        except OSError:
            return False

    def withdraw(self) -> None:
        """Remove the name if it still is ours, and a private directory with it. Idempotent.

        To be called while the socket still listens: then nobody who keeps to the rules can take it for left over.
        """
        if self.is_there():
            _remove(self.path)
        if self._private:
            remove_private_directory(self.path)


def publish(path: str, *, private: bool = False) -> Published:
    """Listen at `path`, mode 0600. Raises Taken when something is there, JoinError when it cannot be done."""
    check_length(path)
    with _listening_beside(path) as (temporary, listener):
        identity = _identity(temporary)
        try:
            os.link(temporary, path, follow_symlinks=False)
        except FileExistsError:
            raise Taken(f"something is at {shown(path)} already") from None
    return Published(path, listener, identity, private)


def rehearse(path: str) -> None:
    """See that `publish` can succeed, before anybody is asked for a password. Raises JoinError.

    Does what `publish` does, under another name. That something is at `path` itself is not looked at.
    """
    check_length(path)
    with _listening_beside(path) as (temporary, listener), listener, _name_beside(path) as second:
        os.link(temporary, second, follow_symlinks=False)


def check_length(path: str) -> None:
    """Raise JoinError for a path at which nothing can be published."""
    length = len(os.fsencode(path))
    if length > LONGEST_PUBLISHED_BYTES:
        raise JoinError(
            f"the control path {shown(path)} has {length} bytes, and to be shared at it can have "
            f"{LONGEST_PUBLISHED_BYTES}",
            ExitCode.UNSAFE_SOCKET,
            hint="choose a shorter ControlPath; %C in it is a hash of fixed length",
        )


def remove_stale(path: str) -> bool:
    """Remove a socket of ours on which nobody listens; the lock of `path` must be held. False: it is not that."""
    try:
        before = os.lstat(path)
        if not stat.S_ISSOCK(before.st_mode) or before.st_uid != os.geteuid() or not _refuses(path):
            return False
        after = os.lstat(path)
    except OSError:
        return False
    if not os.path.samestat(before, after) or before.st_ctime_ns != after.st_ctime_ns:
        return False
    _remove(path)
    return True


def make_directory(path: str) -> None:
    """Make the directory for `path`, mode 0700, if it is one of ours to make. Raises JoinError."""
    directory = os.path.dirname(path)
    if directory not in own_directories():
        return
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise JoinError(f"the directory {shown(directory)} cannot be made: {error.strerror}") from None
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        owner = f"it belongs to user {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):o}"
        raise JoinError(
            f"{shown(directory)} is not a directory of yours alone: {owner}",
            ExitCode.UNSAFE_SOCKET,
            hint="set XDG_RUNTIME_DIR to a directory of your own with mode 700",
        )


def private_path() -> str:
    """Return a path in a fresh directory with mode 0700, where nobody looks. Raises JoinError."""
    name = os.path.join(f"{_PRIVATE}{secrets.token_hex(4)}", _SOCKET_NAME)
    for own in own_directories():
        path = os.path.join(own, name)
        if len(os.fsencode(path)) <= LONGEST_PUBLISHED_BYTES:
            break
    else:
        raise JoinError("there is no private directory for a socket", hint="set XDG_RUNTIME_DIR to one of your own")
    make_directory(os.path.join(own, _SOCKET_NAME))
    _sweep(own)
    try:
        os.mkdir(os.path.dirname(path), 0o700)
    except OSError as error:
        raise JoinError(f"no private directory can be made in {shown(own)}: {error.strerror}") from None
    return path


def _sweep(own: str) -> None:
    """Remove private directories that were left behind, by a process that was killed or by ssh, which knows of none.

    Not the young ones: somebody may be about to log in. Of the others, those in which nobody listens.
    """
    for entry in os.scandir(own):
        try:
            if entry.name.startswith(_PRIVATE) and time.time() - entry.stat(follow_symlinks=False).st_mtime > _OLD_S:
                remove_stale(os.path.join(entry.path, _SOCKET_NAME))
                os.rmdir(entry.path)
        except OSError:  # in use, or gone
            continue


def remove_private_directory(path: str) -> None:
    """Remove the directory that `private_path` made, when it is empty."""
    try:
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass


@dataclass(slots=True)
class Lock:
    """The right to look again at a path and to start there. Held until `release`, or the process ends.

    A process started with `descriptor` holds it as well: it is free when both have let go.
    """

    path: str  # of the lock file
    descriptor: int

    @classmethod
    def take(cls, control_path: str, *, wait: bool) -> Self | None:
        """Return the lock for a control path; None when somebody else has it and `wait` is False. Raises JoinError."""
        path = control_path + _LOCK_SUFFIX
        for _ in range(_LOCK_ATTEMPTS):
            descriptor = _open_lock(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if _has_name(descriptor, path):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
                    return cls(path, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise JoinError(f"the lock {shown(path)} changes hands without end", ExitCode.NO_ANSWER)

    @classmethod
    def of(cls, control_path: str, descriptor: int) -> Self:
        """The lock that a process was started with."""
        return cls(control_path + _LOCK_SUFFIX, descriptor)

    def release(self) -> None:
        """Remove the file, and let go. Idempotent."""
        if self.descriptor >= 0:
            if _has_name(self.descriptor, self.path):
                _remove(self.path)
            os.close(self.descriptor)
            self.descriptor = -1


def lock_holder(control_path: str) -> int | None:
    """The process that holds the lock of a control path by its own word, for messages."""
    try:
        with open(control_path + _LOCK_SUFFIX, "rb") as file:
            return int(file.read(16))
    except (OSError, ValueError):
        return None


def _open_lock(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise JoinError(
            f"{shown(os.path.dirname(path))} does not take a lock file: {error.strerror}",
            ExitCode.UNSAFE_SOCKET,
            hint=f"make the directory: mkdir -p -m 700 {shown(os.path.dirname(path))}"
            if error.errno == errno.ENOENT
            else "",
        ) from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise JoinError(
            f"{shown(path)} is in the way of a lock: it is not a file of yours", ExitCode.UNSAFE_SOCKET
        ) from None
    return descriptor


def _has_name(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


@contextmanager
def _listening_beside(path: str) -> Iterator[tuple[str, socket.socket]]:
    """A listening socket under a temporary name beside `path`, which goes behind the block; the socket stays.

    When something fails, in the block too, the socket is closed, and what the system refuses is a JoinError.
    """
    with _name_beside(path) as temporary:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(temporary)
            # Nobody can connect before it listens. OpenSSH sets a umask for it, which is the whole process's.
            os.chmod(temporary, 0o600)
            listener.listen(BACKLOG)
            yield temporary, listener
        except BaseException as error:
            listener.close()
            if isinstance(error, OSError):
                raise _impossible(path, error) from None
            raise


@contextmanager
def _name_beside(path: str) -> Iterator[str]:
    """A temporary name beside `path`, under which there is nothing behind the block, whatever ends it.

    Nor is there when Ctrl-C comes on the way into the block or out of it: then this goes on to its end as soon as the
    exception is dealt with, and with it the frames that hold it.
    """
    name = f"{path}.{secrets.token_hex(_SUFFIX_BYTES // 2)}"
    try:
        yield name
    finally:
        try:
            # Not by a function of ours: Ctrl-C could come where that begins, and the name would stay for ever.
            os.unlink(name)
        except OSError:  # there was nothing made, and why is told by whoever tried
            pass


def _refuses(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        try:
            connection.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _impossible(path: str, error: OSError) -> JoinError:
    directory = os.path.dirname(path)
    hint = "give another ControlPath, as -S PATH"
    if error.errno == errno.ENOENT:
        hint = f"make the directory: mkdir -p -m 700 {shown(directory)}"
    elif error.errno in (errno.EPERM, errno.EOPNOTSUPP):
        hint = f"the file system of {shown(directory)} has no sockets or hard links: {hint}"
    return JoinError(f"no socket can be made at {shown(path)}: {error.strerror}", ExitCode.UNSAFE_SOCKET, hint=hint)
