"""Every connection of this user that is shared now, and who rides on it.

The one rule: what is found by looking at the system is only a place to ask at; a connection is what answers there.
Listening sockets of this user's ssh and upstream processes are found exactly on Linux, whatever path they are at. What
may be held elsewhere (by root, in a container, on a system that does not tell) is looked for where it would be: in our
runtime directory, where the hosts named in ssh_config have their control paths, and where PuTTY's tools find each
other. Each probe has its deadline, and all are asked at the same time, so that a frozen one costs no more than itself.
A PuTTY is only looked at, as `plink -shareexists` does; it has no control path, and is never sent a request of those.
Imported by `list`, `top` and `exit`.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from mux.errors import JoinError, SharingError, printable
from mux.rendezvous import putty
from mux.rendezvous.sockets import HELLO_DEADLINE_S, Found, probe
from mux.rendezvous.target import own_directories

from . import processes
from .processes import Mounted, Process
from .reach import Master
from .unixsockets import UnixSocket, unix_sockets

_PROBES_AT_ONCE: Final = 16  # a frozen one holds its thread for two seconds
_MOST_IN_A_DIRECTORY: Final = 256  # sockets; a directory with more of them is not one for control paths

# A master binds to a name of its own, which it links to the control path and removes (mux.c, muxserver_listen).
_TEMPORARY: Final = re.compile(r"\.[A-Za-z0-9_]{6,16}$")

_PUTTY: Final = putty.PARENT.format(user="")

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Rider:
    """A process that is connected to a control path. One with more connections than one is there for each."""

    pid: int
    command: str


@dataclass(frozen=True, slots=True)
class Upstream:
    """A connection that is shared, or the process of one that gives no answer."""

    kind: str  # "openssh", "sshmux" or "putty"
    path: str
    state: str  # "live", or what was found instead
    pid: int | None
    host: str  # as far as it is known
    age_s: float | None
    clients: int | None  # processes
    status: Mapping[str, Any] | None = None  # what one of ours tells of itself


class Sockets:
    """The unix sockets of this moment, and which of this user's processes hold them."""

    def __init__(self) -> None:
        self._sockets = unix_sockets()
        self._holders = processes.holders() if self._sockets else {}
        self._by_inode = {one.inode: one for one in self._sockets}

    def listeners(self) -> dict[str, tuple[int, Process]]:
        """Where this user's masters listen: control path -> (pid, process)."""
        found = {}
        known: dict[int, Process | None] = {}
        for one in self._sockets:
            pid = self._holders.get(one.inode)
            if not one.listening or pid is None or not one.path:
                continue
            process = known.setdefault(pid, processes.look(pid))
            if process is not None and (processes.is_ssh(process) or processes.is_ours(process)):
                path = _control_path(one, process)
                if not path.startswith(_PUTTY):  # our own door for PuTTY's tools, to a connection that has a path
                    found[path] = (pid, process)
        return found

    def puttys(self) -> dict[str, tuple[int, Process]]:
        """Where this user's processes listen for PuTTY's tools, upstreams of ours included: path -> (pid, process)."""
        found = {}
        for one in self._sockets:
            pid = self._holders.get(one.inode)
            # Who was replaced by another PuTTY goes on listening, at a name that is not its own any more.
            if one.listening and pid is not None and one.path.startswith(_PUTTY) and _is_file_of(one.path, one):
                process = processes.look(pid)
                if process is not None:
                    found[one.path] = (pid, process)
        return found

    def others(self) -> frozenset[str]:
        """Where processes of this user listen that hold no connection of ssh: nothing to knock at."""
        masters = {pid for pid, _ in self.listeners().values()}
        return frozenset(
            one.path for one in self._sockets if one.listening and self._holders.get(one.inode) not in {None, *masters}
        )

    def riders(self, pid: int, *, ours: int = 0) -> list[Rider] | None:
        """Who is connected to the control path that process `pid` listens at, but us; None when that cannot be told.

        `ours`: how many connections of our own there are, which only netlink can tell from others. One whose process
        cannot be seen has pid 0.
        """
        if not self._sockets:
            return None
        held = processes.socket_inodes(pid)
        names = {one.path for one in self._sockets if one.listening and one.inode in held}
        accepted = [
            one for one in self._sockets if one.inode in held and not one.listening and one.path and one.path in names
        ]
        riders = []
        if all(one.peer is None for one in accepted):
            accepted = accepted[ours:]
        for one in accepted:
            rider = self._holders.get(one.peer) if one.peer is not None else None
            if rider != os.getpid():
                process = processes.look(rider) if rider is not None else None
                riders.append(Rider(rider or 0, process.command if process else ""))
        return sorted(riders, key=lambda rider: rider.pid)


def _control_path(listener: UnixSocket, process: Process) -> str:
    """The path a master listens at, from the name its socket was bound to."""
    title = processes.persisting_path(process)
    bound = title or listener.path
    if not os.path.isabs(bound):
        directory = processes.working_directory(process.pid)
        bound = os.path.join(directory, bound) if directory else bound
    shorter = _TEMPORARY.sub("", bound)
    for path in (bound, shorter):
        if _is_file_of(path, listener):
            return path
    return bound if title else shorter


def _is_file_of(path: str, listener: UnixSocket) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and listener.file in (None, found.st_ino & 0xFFFFFFFF)


def find(hosts: Mapping[str, str]) -> list[Upstream]:
    """Return every connection that is shared now, by host. `hosts`: control path -> the name of a host it is for."""
    sockets = Sockets()
    found = _answers([*_questions_to_masters(hosts, sockets), *_questions_to_puttys(sockets)])
    # Where the system does not tell whose a socket is, the doors of ours were knocked at as well.
    doors = {door["path"] for one in found if one.status is not None for door in one.status.get("putty", ())}
    return [one for one in found if one.kind != "putty" or one.path not in doors]


def masters(hosts: Mapping[str, str]) -> list[Upstream]:
    """The same, but those that have a control path."""
    return _answers(_questions_to_masters(hosts, Sockets()))


Question = Callable[[], "Upstream | None"]


def _answers(questions: Sequence[Question]) -> list[Upstream]:
    found = at_the_same_time(lambda question: question(), questions)
    return sorted((one for one in found if one is not None), key=lambda one: (one.host, one.path))


def _questions_to_masters(hosts: Mapping[str, str], sockets: Sockets) -> list[Question]:
    listeners = sockets.listeners()
    directories = {*own_directories(), *map(os.path.dirname, hosts)}
    places = _sockets_in(directories, sockets.others())
    paths = dict.fromkeys([*listeners, *(path for path in hosts if os.path.lexists(path)), *places])
    return [partial(_ask, path, listeners.get(path), hosts.get(path), sockets) for path in paths]


def _questions_to_puttys(sockets: Sockets) -> list[Question]:
    holders = sockets.puttys()
    doors = {path for path, (_, process) in holders.items() if processes.is_ours(process)}
    return [partial(_ask_putty, path, holders.get(path), sockets) for path in putty.existing() if path not in doors]


def _sockets_in(directories: Iterable[str], skipped: frozenset[str]) -> list[str]:
    """The sockets in those of these directories that are private to this user."""
    found: list[str] = []
    for directory in sorted(filter(None, directories)):
        try:
            above = os.stat(directory)
            if above.st_uid != os.geteuid() or above.st_mode & 0o077:
                continue
            with os.scandir(directory) as entries:
                for entry, _ in zip(entries, range(_MOST_IN_A_DIRECTORY), strict=False):
                    if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode) and entry.path not in skipped:
                        found.append(entry.path)
        except OSError:
            continue
    return found


_SILENT: Final = frozenset({Found.FROZEN, Found.FULL})
_STATES: Final = {Found.FROZEN: "no answer", Found.FULL: "no answer", Found.ABSENT: "unreachable"}


def _ask(path: str, holder: tuple[int, Process] | None, host: str | None, sockets: Sockets) -> Upstream | None:
    """What is at this path; None when it is no connection."""
    probed = probe(path)
    if probed.found is not Found.LIVE and holder is None:
        return None
    pid = probed.pid if probed.pid is not None else holder[0] if holder else None
    process = holder[1] if holder else processes.look(pid) if pid else None
    status: dict[str, Any] | None = None
    if probed.found is Found.LIVE:
        try:
            with Master(path) as master:
                status = master.status(deadline_s=HELLO_DEADLINE_S)
        except SharingError:
            status = None
    ours = status is not None or (process is not None and processes.is_ours(process))
    riders = sockets.riders(pid) if pid is not None else None
    return Upstream(
        kind="sshmux" if ours else "openssh",
        path=path,
        state="live" if probed.found is Found.LIVE else _STATES.get(probed.found, "unusable"),
        pid=pid,
        host=_host(status, host, process),
        age_s=process.age_s if process else None,
        clients=None if riders is None else _programs(riders),
        status=status,
    )


def _ask_putty(path: str, holder: tuple[int, Process] | None, sockets: Sockets) -> Upstream | None:
    """What is at this path of PuTTY's; None when nobody shares there, or a process of ours does."""
    probed = putty.probe_path(path)
    if probed.found is not Found.LIVE and probed.found not in _SILENT:
        return None
    pid = probed.pid or (holder[0] if holder else None)  # the kernel says 0 of a process that cannot be seen from here
    process = processes.look(pid) if pid else None
    if process is not None and processes.is_ours(process):
        return None
    riders = sockets.riders(pid) if pid else None
    return Upstream(
        kind="putty",
        path=path,
        state="live" if probed.found is Found.LIVE else _STATES[probed.found],
        pid=pid,
        host=_putty_host(process, path),
        age_s=process.age_s if process else None,
        clients=None if riders is None else _programs(riders),
    )


def _putty_host(process: Process | None, path: str) -> str:
    """The destination on the command line, if this path follows from it; "" when that does not tell.

    It does not where a saved session has the host, or its user or port.
    """
    directory = os.path.dirname(path)
    try:
        salt = putty.read_salt(os.path.dirname(directory))
        names = processes.putty_names(process, putty.local_user()) if process else ()
        return next(
            (printable(typed) for typed, name in names if putty.hashed(salt, name) == os.path.basename(directory)), ""
        )
    except (putty.NotThere, JoinError):
        return ""


def _programs(riders: Iterable[Rider]) -> int:
    """How many processes there are; each that cannot be seen is one of its own."""
    return len({rider.pid or -index for index, rider in enumerate(riders)})


def _host(status: Mapping[str, Any] | None, host: str | None, process: Process | None) -> str:
    """The host by the best witness: the upstream itself, the command line, the configuration."""
    if status is not None:
        return printable(str(status.get("host", "")))
    typed = processes.ssh_destination(process) if process else None
    return printable(typed or host or "")


def mounts(riders: Iterable[Rider]) -> list[Mounted]:
    """The mounts among those who ride."""
    found = {}
    for pid in {rider.pid for rider in riders}:
        process = processes.look(pid) if pid else None
        mount = processes.mounted(process) if process else None
        if mount is not None:
            found[pid] = mount
    return [found[pid] for pid in sorted(found)]


def at_the_same_time(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return `work` of each item, in order, from a few threads; what one of them raises is raised.

    Who is interrupted waits for none of them, nor does the end of the process.
    """
    from concurrent.futures import Future

    answers: list[Future[R]] = [Future() for _ in items]
    ahead = deque(zip(items, answers, strict=True))

    def serve() -> None:
        while True:
            try:
                item, answer = ahead.popleft()
            except IndexError:
                return
            try:
                answer.set_result(work(item))
            except BaseException as error:
                answer.set_exception(error)

    for _ in range(min(_PROBES_AT_ONCE, len(items))):
        threading.Thread(target=serve, name="probe", daemon=True).start()
    return [answer.result() for answer in answers]
