"""What is at a control path: a connection that can be shared, or what else, in sentences the user can act on.

The one rule: looking changes nothing. Nothing is removed here, nothing is sent before the other end is known to be
ours, and every wait ends at one deadline (OpenSSH's own client has none before 9.4). The questions come in the order of
trust: the name, the directory, the socket's owner, the user of the process behind it, and only then its greeting.

The directory matters because whoever may write there may put a socket of his own in place of ours. The directories
above it are not looked at: the uid of the peer, for which the kernel answers, decides in the end. OpenSSH's client asks
for neither. A symbolic link is refused: it can lead out of the directory that was just found to be safe.

May be imported by anyone above `mux.protocol`. It blocks; a caller with an event loop runs it in a thread.
"""

from __future__ import annotations

import enum
import errno
import os
import shlex
import socket
import stat
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mux.errors import RemoteProtocolError, printable

from .conversation import Conversation, HungUp

LONGEST_PATH_BYTES: Final = 107  # Linux has 108 for the path of a unix socket, and OpenSSH keeps one of them for a NUL
# A socket is bound under a name with a dot and 16 random characters behind it first, by OpenSSH as by us.
LONGEST_PUBLISHED_BYTES: Final = LONGEST_PATH_BYTES - 17
HELLO_DEADLINE_S: Final = 2.0  # a master greets within milliseconds, unless it waits for a person (`ControlMaster ask`)

_RETRY_S: Final = (
    0.02  # between attempts at a full queue: poll() says nothing useful of a unix socket not yet connected
)
# A wait that ends so long after its deadline tells of us, and nothing of the other end; three times is no accident.
_LATE_S: Final = 0.5
_ATTEMPTS: Final = 3
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid: unix(7)
_KINDS: Final = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Found(enum.Enum):
    """What a probe can end as."""

    LIVE = enum.auto()  # a master greeted and told its pid
    ABSENT = enum.auto()  # there is nothing
    STALE = enum.auto()  # a socket of ours on which nobody listens; proven, so whoever holds the lock may remove it
    FROZEN = enum.auto()  # connected, but no answer in time
    FULL = enum.auto()  # its queue of clients stayed full
    FOREIGN = enum.auto()  # the socket, or the process behind it, belongs to another user
    UNSAFE = enum.auto()  # a symbolic link, or a directory in which others can write
    NOT_A_SOCKET = enum.auto()
    TOO_LONG = enum.auto()  # no socket can be at a path of this length
    DENIED = enum.auto()  # the system does not let us
    NOT_A_MASTER = enum.auto()  # what listens does not speak version 4 of the control protocol


@dataclass(frozen=True, slots=True)
class Probe:
    """The outcome for one path."""

    path: str
    found: Found
    detail: str  # whole sentences: what was found, where, and what to do
    pid: int | None = None  # of the master, by its own word, when LIVE; of a PuTTY by the kernel's, when FROZEN too
    putty: bool = False  # whether a PuTTY was looked for, and not a master


class _Verdict(Exception):
    """A probe has ended other than LIVE."""

    def __init__(self, found: Found, detail: str) -> None:
        super().__init__(detail)
        self.found = found
        self.detail = detail


def probe(path: str, *, deadline_s: float = HELLO_DEADLINE_S) -> Probe:
    """Look at `path`, connect, greet, and ask for a sign of life. What is found is no error.

    It takes `deadline_s` at most; silence while this process itself stood still (a machine that was away) is nobody's,
    and it asks again then.
    """
    for _ in range(_ATTEMPTS):
        deadline = time.monotonic() + deadline_s
        outcome = _probe(path, deadline)
        if outcome.found not in (Found.FROZEN, Found.FULL) or time.monotonic() < deadline + _LATE_S:
            break
    return outcome


def _probe(path: str, deadline: float) -> Probe:
    """When the socket is replaced or removed meanwhile, as by a master that just ends, what is there then is asked."""
    try:
        for _ in range(2):
            found = _inspect(path)
            try:
                pid = _ask(path, deadline)
                return Probe(path, Found.LIVE, f"A connection can be shared at {shown(path)}.", pid)
            except FileNotFoundError:
                continue
            except ConnectionRefusedError:
                if _is_still(path, found):
                    raise _nobody_listens(path, found) from None
            except (HungUp, ConnectionResetError, BrokenPipeError):
                if _is_still(path, found):
                    text = f"What listens at {shown(path)} hangs up without a greeting, as no ssh master of yours does."
                    raise _Verdict(Found.NOT_A_MASTER, text) from None
        raise _Verdict(Found.ABSENT, f"Nothing stays at {shown(path)}: the socket there changes while it is looked at.")
    except _Verdict as verdict:
        return Probe(path, verdict.found, verdict.detail)


def look(paths: Sequence[str], *, deadline_s: float) -> list[Probe]:
    """Probe these paths in order, up to the first that is LIVE; each has its own deadline, all have `deadline_s`."""
    deadline = time.monotonic() + deadline_s
    probes: list[Probe] = []
    for path in paths:
        probes.append(probe(path, deadline_s=min(HELLO_DEADLINE_S, deadline - time.monotonic())))
        if probes[-1].found is Found.LIVE:
            break
    return probes


def shown(path: str) -> str:
    """Return a path for a message: quoted for a shell where it needs that, and free of what a terminal obeys."""
    return shlex.quote(printable(path))


def _inspect(path: str) -> os.stat_result:
    """Return what is known of the socket at `path`, when nothing speaks against it and only its process is unknown."""
    length = len(os.fsencode(path))
    if length > LONGEST_PATH_BYTES:
        text = f"The control path {shown(path)} has {length} bytes, and a socket can have {LONGEST_PATH_BYTES}."
        raise _Verdict(Found.TOO_LONG, f"{text} Choose a shorter ControlPath; %C makes one of 40 characters.")
    directory = os.path.dirname(path) or "."
    try:
        found = os.lstat(path)
        above = os.stat(directory)
    except FileNotFoundError:
        where = "" if os.path.isdir(directory) else ", nor is there a directory for it"
        raise _Verdict(Found.ABSENT, f"Nothing is at {shown(path)}{where}.") from None
    except OSError as error:
        kind = Found.NOT_A_SOCKET if isinstance(error, NotADirectoryError) else Found.DENIED
        raise _Verdict(kind, f"{shown(path)} cannot be looked at: {error.strerror}.") from None
    if stat.S_ISLNK(found.st_mode):
        advice = f'Give the path it leads to: -S "$(readlink -f {shown(path)})".'
        raise _Verdict(Found.UNSAFE, f"{shown(path)} is a symbolic link, which is not followed. {advice}")
    if not stat.S_ISSOCK(found.st_mode):
        kind_of_file = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise _Verdict(Found.NOT_A_SOCKET, f"At {shown(path)} is {kind_of_file}, not a socket. It was left alone.")
    if not _trusted(found.st_uid):
        text = f"The socket {shown(path)} belongs to user {found.st_uid}, and you are {os.geteuid()}."
        raise _Verdict(Found.FOREIGN, f"{text} Only your own connections and those of root are joined.")
    writable_by_others = above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX
    if writable_by_others or not _trusted(above.st_uid):
        text = f"Other users can replace {shown(path)}: {shown(directory)} belongs to user {above.st_uid}"
        advice = "Use a directory of your own with mode 700."
        raise _Verdict(Found.UNSAFE, f"{text} and has mode {stat.S_IMODE(above.st_mode):o}. {advice}")
    return found


def _is_still(path: str, found: os.stat_result) -> bool:
    """Whether the same socket is there. The time as well, since a file system may use an inode number again at once."""
    try:
        now = os.lstat(path)
    except OSError:
        return False
    return os.path.samestat(now, found) and now.st_ctime_ns == found.st_ctime_ns


def _trusted(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _nobody_listens(path: str, found: os.stat_result) -> _Verdict:
    """The verdict on a socket that refused, and was the same before and after."""
    text = f"The socket {shown(path)} is left over: nobody listens on it."
    if found.st_uid == os.geteuid():
        return _Verdict(Found.STALE, f"{text} Remove it with `rm {shown(path)}`.")
    return _Verdict(Found.FOREIGN, f"{text} It belongs to root, who can remove it.")


def connect(path: str, *, deadline_s: float = HELLO_DEADLINE_S) -> socket.socket:
    """Connect to what a probe found LIVE, and check once more whose process it is; nothing is sent.

    The socket does not block. Raises OSError when it cannot be connected to any more (a `TimeoutError` when its queue
    stays full), and PermissionError when the process belongs to somebody else.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _connect(connection, path, time.monotonic() + deadline_s)
    except _Verdict as verdict:
        connection.close()
        refusal = PermissionError if verdict.found is Found.FOREIGN else TimeoutError
        raise refusal(verdict.detail) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _ask(path: str, deadline: float) -> int:
    """Connect and return the pid that the master tells. Raises what connecting can raise, `HungUp` and `_Verdict`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
            _connect(connection, path, deadline)
            return Conversation(connection).alive(deadline_s=deadline - time.monotonic())
    except TimeoutError:
        text = (
            f"What listens at {shown(path)} gives no answer. It may be stopped, hang, or wait for someone to answer it."
        )
        raise _Verdict(Found.FROZEN, f"{text} Resume it (`kill -CONT`) or end it.") from None
    except RemoteProtocolError as error:
        text = f"What listens at {shown(path)} is no ssh master that can be joined: {error}."
        raise _Verdict(Found.NOT_A_MASTER, text) from None
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        raise
    except OSError as error:
        text = f"The socket {shown(path)} cannot be used: {error.strerror or error}."
        raise _Verdict(Found.NOT_A_MASTER if error.errno == errno.EPROTOTYPE else Found.DENIED, text) from None


def _connect(connection: socket.socket, path: str, deadline: float) -> None:
    """Connect, and make sure that the process behind it is ours or root's. Raises OSError and `_Verdict`."""
    while True:
        try:
            connection.connect(path)
            break
        except BlockingIOError:
            if time.monotonic() + _RETRY_S > deadline:
                text = (
                    f"The queue of clients at {shown(path)} is full: its process takes none. Resume it (`kill -CONT`)"
                )
                raise _Verdict(Found.FULL, f"{text} or end it.") from None
            time.sleep(_RETRY_S)
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    if not _trusted(uid):
        text = f"A process of user {uid} listens at {shown(path)}, and you are {os.geteuid()}."
        raise _Verdict(Found.FOREIGN, f"{text} It was sent nothing.")
