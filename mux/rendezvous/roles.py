"""The ladder: what was wished and what was found -> join, become the upstream, go alone, or refuse.

The one rule: this is arithmetic. Nothing is looked at, started or removed here; the caller probes the `candidates`,
hands in the probes in the same order, and does what comes back. Who becomes the upstream does it at the first
candidate, where plain ssh looks as well. What is in the way there and not provably left over is never replaced: it is
named. Only what gives no answer is passed by, to the next candidate or to a connection of our own: a process that was
stopped must not stop everybody else. So is a path at which no socket can be published.

A control path of the command line (`-S`) stands alone. In ssh it takes the place of the configured one, and somebody
who names a connection does not mean another one, which may be logged in with other rights.

May be imported by anyone above `mux.protocol`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mux.errors import ExitCode, JoinError, printable

from .sockets import LONGEST_PUBLISHED_BYTES, Found, Probe
from .target import SshOptions, Target


class Putty(enum.Enum):
    """Whether a connection of PuTTY's may be borrowed."""

    YES = "yes"  # where no control path offers one
    NO = "no"
    ONLY = "only"  # and no other


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user allows."""

    share: bool = True  # no: a private connection, found by nobody
    may_downstream: bool = True  # may borrow a connection
    may_upstream: bool = True  # may hold one that others borrow
    explicit: bool = False  # the control path was given on this command line
    putty: Putty = Putty.YES

    @classmethod
    def of(
        cls,
        options: SshOptions,
        *,
        share: bool = True,
        may_downstream: bool = True,
        may_upstream: bool = True,
        putty: Putty = Putty.YES,
    ) -> Wish:
        """What a command line wishes, its `-S` or `-o ControlPath` included."""
        path = options.explicit_control_path()
        none = path is not None and path.lower() == "none"
        return cls(share and not none, may_downstream, may_upstream, path is not None and not none, putty)

    @property
    def asks_putty(self) -> bool:
        """Whether PuTTY's connections are looked at."""
        return self.share and self.may_downstream and self.putty is not Putty.NO and not self.explicit


@dataclass(frozen=True, slots=True)
class Join:
    """Borrow the connection at this path."""

    path: str
    pid: int | None
    putty: bool = False  # whether it is PuTTY's


@dataclass(frozen=True, slots=True)
class Become:
    """Nothing to borrow: start an upstream at this path, where there is nothing, or only what is provably left over."""

    path: str
    passed_by: str = ""  # what is at the paths before this one; for a person to know


@dataclass(frozen=True, slots=True)
class Private:
    """A connection of our own that nobody finds: so it was wished, or there is no path to be found at."""

    passed_by: str = ""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Neither can be done; the message says what was found where."""

    message: str
    exit_code: ExitCode


Decision = Join | Become | Private | Refuse

_FREE: Final = frozenset({Found.ABSENT, Found.STALE})
_SILENT: Final = frozenset({Found.FROZEN, Found.FULL})

_EXIT_CODES: Final[Mapping[Found, ExitCode]] = {
    Found.LIVE: ExitCode.NOTHING_TO_JOIN,  # only when borrowing was not allowed
    Found.ABSENT: ExitCode.NOTHING_TO_JOIN,
    Found.STALE: ExitCode.NOTHING_TO_JOIN,
    Found.FROZEN: ExitCode.NO_ANSWER,
    Found.FULL: ExitCode.NO_ANSWER,
    Found.FOREIGN: ExitCode.UNSAFE_SOCKET,
    Found.UNSAFE: ExitCode.UNSAFE_SOCKET,
    Found.NOT_A_SOCKET: ExitCode.UNSAFE_SOCKET,
    Found.TOO_LONG: ExitCode.UNSAFE_SOCKET,
    Found.DENIED: ExitCode.DENIED,
    Found.NOT_A_MASTER: ExitCode.PROTOCOL,
}


def candidates(wish: Wish, target: Target) -> tuple[str, ...]:
    """The control paths to look at, in this order, each path once. PuTTY's names (`putty.candidates`) come behind."""
    if not wish.share or wish.putty is Putty.ONLY:
        return ()
    own = "" if wish.explicit else target.own_control_path
    return tuple(dict.fromkeys(path for path in (target.control_path, own) if path))


def decide(wish: Wish, probes: Sequence[Probe]) -> Decision:
    """Walk the ladder. `probes` are those of `candidates`, in order, and of PuTTY's names behind them, if the wish
    `asks_putty`; a walk may stop at the first that is LIVE."""
    if not wish.share:
        return Private()
    if wish.may_downstream:
        for probe in probes:
            if probe.found is Found.LIVE:
                return Join(probe.path, probe.pid, probe.putty)
    return _hold(wish, probes) if wish.may_upstream and wish.putty is not Putty.ONLY else _refuse(wish, probes)


def _hold(wish: Wish, probes: Sequence[Probe]) -> Decision:
    """Where a connection of our own is published, if anywhere."""
    ours = [probe for probe in probes if not probe.putty]
    silent = [probe for probe in probes if probe.putty and probe.found in _SILENT]
    without_place = len(silent)
    for probe in ours:
        if probe.found in _SILENT:
            silent.append(probe)
        elif probe.found in _FREE and _can_be_published(probe.path):
            return Become(probe.path, _details(silent))
        elif probe.found not in _FREE and probe.found is not Found.TOO_LONG:
            return _refuse(wish, probes)
    return _refuse(wish, probes) if ours and len(silent) == without_place else Private(_details(silent))


def _can_be_published(path: str) -> bool:
    return len(path.encode(errors="surrogateescape")) <= LONGEST_PUBLISHED_BYTES


def nothing_to_join(wish: Wish, target: Target, probes: Sequence[Probe]) -> JoinError:
    """Return the error for who can only join and found nothing: what was found where, and how to start one."""
    if not wish.share:
        message = "a private connection was asked for (-S none), so none is shared"
        return JoinError(message, ExitCode.NOTHING_TO_JOIN, hint="leave out -S none to join a connection that is open")
    refused = _refuse(wish, probes)
    message = f"no connection to {printable(target.typed)} can be joined. {refused.message}"
    place = next((probe for probe in probes if probe.found in _FREE and not probe.putty), None)
    if wish.putty is Putty.ONLY:
        port = "" if target.port == 22 else f" -P {target.port}"
        hint = f"start one: plink -share -N{port} {printable(target.user)}@{printable(target.hostname)}"
    elif place is not None and not _can_be_published(place.path):
        hint = "choose a shorter ControlPath; %C in it is a hash of fixed length"
    elif place is not None:
        hint = f"start a connection to share: {target.start_command(place.path)}"
    elif all(probe.putty for probe in probes):
        hint = "add a ControlPath for this host to ~/.ssh/config, as `ControlPath ~/.ssh/%C`"
    elif not wish.may_downstream:
        hint = "with -o share=no the connection is private, and needs no path"
    else:
        hint = "another connection can be shared at another path: give both commands the same -S PATH"
    return JoinError(message, refused.exit_code, hint=hint)


def _refuse(wish: Wish, probes: Sequence[Probe]) -> Refuse:
    """What was found where, and the exit code of the first thing that is more than nothing."""
    if wish.putty is not Putty.ONLY:  # that there is no PuTTY surprises nobody
        probes = [probe for probe in probes if not (probe.putty and probe.found is Found.ABSENT)]
    if not probes:
        message = "No ControlPath is configured for it, and there is no directory of our own to look in."
        return Refuse(message, ExitCode.NOTHING_TO_JOIN)
    codes = [_code(probe) for probe in probes]
    telling = [code for code in codes if code is not ExitCode.NOTHING_TO_JOIN]
    return Refuse(_details(probes), telling[0] if telling else ExitCode.NOTHING_TO_JOIN)


def _code(probe: Probe) -> ExitCode:
    free_but_too_long = probe.found in _FREE and not probe.putty and not _can_be_published(probe.path)
    return ExitCode.UNSAFE_SOCKET if free_but_too_long else _EXIT_CODES[probe.found]


def _details(probes: Sequence[Probe]) -> str:
    return " ".join(map(_detail, probes))


def _detail(probe: Probe) -> str:
    if probe.found not in _FREE or probe.putty or _can_be_published(probe.path):
        return probe.detail
    return f"{probe.detail} A path at which a connection is shared can have {LONGEST_PUBLISHED_BYTES} bytes."
