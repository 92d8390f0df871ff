"""Where PuTTY's tools find each other: names, directories, the salt, the lock; and what is there for a host.

PuTTY hashes `user@host:port`, as typed, with a salt of the local user's into the name of a directory that holds a lock
and a socket (its unix/sharing.c, unix/utils/make_dir_and_check_ours.c, ssh/sharing.c). Everything here is as it
computes it, to the byte, since the other end is PuTTY itself.

Two rules. Looking changes nothing: what is not there is not made, and what is left over is not removed. And a socket
that cannot be connected to at once, because its process has a full queue, is not absent: PuTTY takes it for that and
replaces it; we ask again. The lock is held for the decision alone, since every PuTTY that starts waits for it, without
a limit.

May be imported by anyone above `mux.protocol`. It blocks; a caller with an event loop runs it in a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from mux.errors import ExitCode, JoinError, RemoteProtocolError, printable
from mux.protocol.bare import Greeting, Role
from mux.protocol.wire import string

from . import sockets
from .sockets import LONGEST_PATH_BYTES, Found, Probe, shown
from .target import Target

PARENT: Final = "/tmp/putty-connshare.{user}"  # fixed in PuTTY: no variable moves it
SOCKET: Final = "socket"
LOCK: Final = "lock"
SALT: Final = "salt"
SALT_BYTES: Final = 64
SSH_PORT: Final = 22

GREETING_DEADLINE_S: Final = 2.0  # an upstream that is logged in sends its line as it accepts
LOCK_DEADLINE_S: Final = 1.0  # whoever holds it decides, in a millisecond; a stopped one must not stop us
LOCK_RETRY_S: Final = 0.01
_LOCK_ATTEMPTS: Final = 10  # an upstream that ends removes the lock and its directory, between any two of our steps
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid: unix(7)
_READ_BYTES: Final = 4096


class NotThere(Exception):
    """There is no such directory, salt or socket."""


# -- names ------------------------------------------------------------------------------------------------------------


def local_user() -> str:
    """The local user as PuTTY names him: by login if that is his, else by uid."""
    uid = os.getuid()
    try:
        login = os.getlogin()
        if pwd.getpwnam(login).pw_uid == uid:
            return login
    except (OSError, KeyError):
        pass
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise NotThere(f"user {uid} has no name, and PuTTY shares under names") from None


def connection_name(host: str, user: str | None, port: int) -> str:
    """What is hashed: `[user@]host[:port]`, without the port when it is 22, without the brackets of an IPv6 address."""
    if host.startswith("[") and host.endswith("]") and host.count(":") > 1:
        host = host[1:-1]
    before = "" if user is None else f"{user}@"
    behind = "" if port == SSH_PORT else f":{port}"
    return f"{before}{host}{behind}"


def candidates(target: Target) -> tuple[str, ...]:
    """The names under which a PuTTY may share a connection to this target, best first.

    The host as typed, then as resolved. PuTTY leaves out the user where it did not know one as it started; that may
    have become anybody at its prompt. So these names count only for who asks for no other user than himself.
    """
    hosts = tuple(dict.fromkeys((target.typed, target.hostname)))
    users: tuple[str | None, ...] = (target.user,)
    if target.user == local_user():
        users += (None,)
    return tuple(connection_name(host, user, target.port) for user in users for host in hosts)


# -- directories ------------------------------------------------------------------------------------------------------


def parent_directory() -> str:
    """The directory of the local user's shared connections. Raises `NotThere` for a user without a name."""
    return PARENT.format(user=local_user())


def check_directory(path: str) -> None:
    """Check a directory as PuTTY does: ours, and closed to everybody else.

    Raises `NotThere`, and `JoinError` (UNSAFE_SOCKET) with what is wrong.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise NotThere(f"there is no directory {shown(path)}") from None
    except OSError as error:
        raise _unsafe(f"{shown(path)} cannot be looked at: {error.strerror}") from None
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        raise _unsafe(f"{shown(path)} is not a directory")
    if found.st_uid != os.getuid():
        raise _unsafe(f"the directory {shown(path)} belongs to user {found.st_uid}, and you are {os.getuid()}")
    if mode & 0o077:
        raise _unsafe(f"the directory {shown(path)} is open to others: it has mode {mode:o}, and PuTTY wants 700")


def make_directory(path: str) -> None:
    """Make a directory, mode 0700, unless it is there, and check it. Raises `JoinError`."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise _unsafe(f"the directory {shown(path)} cannot be made: {error.strerror}") from None
    check_directory(path)


def read_salt(parent: str) -> bytes:
    """Raises `NotThere`, and `JoinError` for one that is no salt."""
    path = os.path.join(parent, SALT)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotThere(f"there is no {shown(path)}") from None
    except OSError as error:
        raise _unsafe(f"{shown(path)} cannot be read: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        try:
            salt = file.read(SALT_BYTES)
        except OSError as error:
            raise _unsafe(f"{shown(path)} cannot be read: {error.strerror}") from None
    if len(salt or b"") < SALT_BYTES:
        raise _unsafe(f"{shown(path)} has less than {SALT_BYTES} bytes")
    return salt


def make_salt(parent: str) -> bytes:
    """The salt that is there, else a new one; of two who make one at once both get the same. Raises `JoinError`."""
    path = os.path.join(parent, SALT)
    try:
        return read_salt(parent)
    except NotThere:
        pass
    for attempt in range(1000):
        temporary = f"{path}.tmp.{os.getpid()}.{attempt}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_EXCL | os.O_CREAT | os.O_CLOEXEC, 0o400)
        except FileExistsError:
            continue
        except OSError as error:
            raise _unsafe(f"{shown(temporary)} cannot be made: {error.strerror}") from None
        try:
            with open(descriptor, "wb") as file:
                file.write(os.urandom(SALT_BYTES))
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError as error:
            raise _unsafe(f"{shown(path)} cannot be made: {error.strerror}") from None
        finally:
            os.unlink(temporary)
        return read_salt(parent)
    raise _unsafe(f"{shown(parent)} is full of unfinished salts")


def hashed(salt: bytes, name: str) -> str:
    """The name of the directory for a connection's name."""
    return hashlib.sha256(string(salt) + string(os.fsencode(name))).hexdigest()


def directory_of(name: str, parent: str | None = None) -> str:
    """The directory for a connection's name, which may not be there. Raises `NotThere`, `JoinError`."""
    parent = parent_directory() if parent is None else parent
    check_directory(parent)
    directory = os.path.join(parent, hashed(read_salt(parent), name))
    length = len(os.fsencode(os.path.join(directory, SOCKET)))
    if length > LONGEST_PATH_BYTES:
        raise _unsafe(f"PuTTY's socket would need a path of {length} bytes, and can have {LONGEST_PATH_BYTES}")
    return directory


def existing(parent: str | None = None) -> list[str]:
    """The paths of all sockets that are there, whosever; no path tells what is behind it."""
    try:
        parent = parent_directory() if parent is None else parent
        check_directory(parent)
        entries = sorted(entry.path for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False))
    except (NotThere, JoinError, OSError):
        return []
    paths = (os.path.join(directory, SOCKET) for directory in entries)
    return [path for path in paths if os.path.lexists(path)]


# -- the decision -----------------------------------------------------------------------------------------------------


@contextmanager
def deciding(directory: str, *, create: bool = False, deadline_s: float = LOCK_DEADLINE_S) -> Iterator[None]:
    """Hold the lock of a directory for a decision: nobody else takes, makes or replaces its socket meanwhile.

    `create` is for who may become the upstream, and makes the directory too. Raises `NotThere` when there is no lock
    (and so nobody who decides), `TimeoutError` when somebody holds it for longer than a decision takes, `JoinError`.
    """
    descriptor = _lock(directory, create, time.monotonic() + deadline_s)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(directory: str, create: bool, until: float) -> int:
    path = os.path.join(directory, LOCK)
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    for _ in range(_LOCK_ATTEMPTS):
        if create:
            make_directory(directory)
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            if create:
                continue  # who ended removed the directory behind our back
            raise NotThere(f"there is no {shown(path)}") from None
        except OSError as error:
            raise _unsafe(f"{shown(path)} cannot be opened: {error.strerror}") from None
        try:
            _flock(descriptor, path, until)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise TimeoutError(f"the lock {shown(path)} changes all the time")


def _flock(descriptor: int, path: str, until: float) -> None:
    """flock(2) has no deadline and nothing to poll."""
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() + LOCK_RETRY_S > until:
                raise TimeoutError(f"the lock {shown(path)} is held by a process that does not go on") from None
            time.sleep(LOCK_RETRY_S)


def connect(path: str, *, deadline_s: float = GREETING_DEADLINE_S) -> socket.socket:
    """Connect to a PuTTY socket and check whose process it is; nothing is sent. The result does not block.

    While another PuTTY decides there may be no socket for a moment: then its decision is waited for. Raises OSError:
    `TimeoutError` when its queue of clients stays full, `PermissionError` when it is somebody else's.
    """
    try:
        return sockets.connect(path, deadline_s=deadline_s)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        try:
            with deciding(os.path.dirname(path)):
                return sockets.connect(path, deadline_s=0)
        except NotThere:
            raise error from None
        except JoinError as refusal:
            raise PermissionError(str(refusal)) from None


# -- looking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an upstream may take to log in. It listens before that, and may wait for a password meanwhile."""

    deadline_s: float = GREETING_DEADLINE_S
    say: Callable[[str], None] | None = None  # told once, when it is waited for
    say_after_s: float = 1.0
    cancelled: int = -1  # a descriptor: the wait ends when it can be read


def probe(name: str, patience: Patience | None = None, *, parent: str | None = None) -> Probe:
    """Look for the upstream of one name; what is found is no error. Nothing is sent: it is as `plink -shareexists`."""
    try:
        directory = directory_of(name, parent)
    except NotThere as error:
        return _probe("", Found.ABSENT, f"No PuTTY shares {printable(name)}: {error}.")
    except JoinError as error:
        return _probe("", Found.UNSAFE, f"PuTTY's connections cannot be shared: {error}.")
    return probe_path(os.path.join(directory, SOCKET), patience, what=printable(name))


def probe_path(path: str, patience: Patience | None = None, *, what: str = "anything") -> Probe:
    """The same for a socket whose place is known."""
    try:
        check_directory(os.path.dirname(path))
        before = os.lstat(path)
    except (NotThere, FileNotFoundError):
        return _probe(path, Found.ABSENT, f"No PuTTY shares {what}: nothing is at {shown(path)}.")
    except JoinError as error:
        return _probe(path, Found.UNSAFE, f"PuTTY's connection cannot be shared: {error}.")
    except OSError as error:
        return _probe(path, Found.DENIED, f"{shown(path)} cannot be looked at: {error.strerror}.")
    if not stat.S_ISSOCK(before.st_mode):
        return _probe(path, Found.NOT_A_SOCKET, f"{shown(path)} is not a socket. It was left alone.")
    try:
        with connect(path) as connection:
            return _greeted(connection, path, patience or Patience())
    except FileNotFoundError:
        return _probe(path, Found.ABSENT, f"No PuTTY shares {what} any more.")
    except ConnectionRefusedError:
        text = f"The socket {shown(path)} is left over by a PuTTY that was killed; the next one replaces it."
        return _probe(path, Found.STALE, text)
    except PermissionError as error:
        return _probe(path, Found.FOREIGN, str(error))
    except TimeoutError as error:
        return _probe(path, Found.FULL, str(error))
    except OSError as error:
        return _probe(path, Found.DENIED, f"The socket {shown(path)} cannot be used: {error.strerror}.")


def _greeted(connection: socket.socket, path: str, patience: Patience) -> Probe:
    """What an upstream is by its first line."""
    pid, _, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    greeting = Greeting(Role.DOWNSTREAM)
    until = time.monotonic() + patience.deadline_s
    told = patience.say is None
    try:
        while greeting.software is None:
            left_s = until - time.monotonic()
            if not _readable(connection, patience, left_s if told else min(left_s, patience.say_after_s)):
                if told or left_s <= patience.say_after_s:
                    return _probe(path, Found.FROZEN, not_logged_in(path, pid), pid)
                told = True
                if patience.say is not None:
                    patience.say(waiting_for(pid))
                continue
            data = connection.recv(_READ_BYTES)
            if not data:
                return _probe(
                    path, Found.ABSENT, f"The PuTTY at {shown(path)} hung up: it did not log in, or just ended."
                )
            greeting.receive(data)
    except ConnectionResetError:
        return _probe(path, Found.ABSENT, f"The PuTTY at {shown(path)} ended while it was looked at.")
    except RemoteProtocolError as error:
        return _probe(
            path, Found.NOT_A_MASTER, f"What listens at {shown(path)} is no PuTTY that can be joined: {error}."
        )
    return _probe(path, Found.LIVE, f"A PuTTY shares its connection at {shown(path)}.", pid)


def _readable(connection: socket.socket, patience: Patience, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if patience.cancelled >= 0:
        poll.register(patience.cancelled, select.POLLIN)
    ready = dict(poll.poll(max(0.0, timeout_s) * 1000))
    if patience.cancelled in ready:
        raise JoinError("interrupted", ExitCode.INTERRUPTED)
    return bool(ready)


def _probe(path: str, found: Found, detail: str, pid: int | None = None) -> Probe:
    return Probe(path, found, detail, pid, putty=True)


def waiting_for(pid: int) -> str:
    """What to say while an upstream logs in."""
    return f"waiting for the PuTTY upstream to log in (process {pid})"


def not_logged_in(path: str, pid: int) -> str:
    """What to say when it did not."""
    text = f"The PuTTY upstream at {shown(path)} (process {pid}) has not logged in yet, or is stopped."
    return f"{text} Answer what it asks, resume it (`kill -CONT {pid}`) or end it."


def look(names: Sequence[str], patience: Patience | None = None, *, parent: str | None = None) -> list[Probe]:
    """Probe these names in order, up to the first that is LIVE."""
    probes: list[Probe] = []
    for name in names:
        probes.append(probe(name, patience, parent=parent))
        if probes[-1].found is Found.LIVE:
            break
    return probes


def _unsafe(message: str) -> JoinError:
    return JoinError(message, ExitCode.UNSAFE_SOCKET)
