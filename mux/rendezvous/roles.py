"""The ladder: what was wished and what was found -> join, become the upstream, go alone, or refuse.

The one rule: this is arithmetic. Nothing is looked at, started or removed here; the caller probes the `candidates`,
hands in the probes in the same order, and does what comes back. Who becomes the upstream does it at the first
candidate, where plain ssh looks as well. What is in the way there and not provably left over is never replaced: it is
named.

A control path of the command line (`-S`) stands alone. In ssh it takes the place of the configured one, and somebody
who names a connection does not mean another one, which may be logged in with other rights.

May be imported by anyone above `mux.protocol`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mux.errors import ExitCode, JoinError, printable

from .sockets import Found, Probe
from .target import SshOptions, Target


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user allows."""

    share: bool = True  # no: a private connection, found by nobody
    may_downstream: bool = True  # may borrow a connection
    may_upstream: bool = True  # may hold one that others borrow
    explicit: bool = False  # the control path was given on this command line

    @classmethod
    def of(cls, options: SshOptions, *, may_downstream: bool = True, may_upstream: bool = True) -> Wish:
        """What a command line wishes by its `-S` or `-o ControlPath`."""
        path = options.explicit_control_path()
        none = path is not None and path.lower() == "none"
        return cls(not none, may_downstream, may_upstream, explicit=path is not None and not none)


@dataclass(frozen=True, slots=True)
class Join:
    """Borrow the connection at this path."""

    path: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class Become:
    """Nothing to borrow: start an upstream at this path, where there is nothing, or only what is provably left over."""

    path: str


@dataclass(frozen=True, slots=True)
class Private:
    """A connection of our own that nobody finds: so it was wished, or there is no path to be found at."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Neither can be done; the message says what was found where."""

    message: str
    exit_code: ExitCode


Decision = Join | Become | Private | Refuse

_FREE: Final = frozenset({Found.ABSENT, Found.STALE})

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
    """Where to look, in this order, each path once."""
    if not wish.share:
        return ()
    own = "" if wish.explicit else target.own_control_path
    return tuple(dict.fromkeys(path for path in (target.control_path, own) if path))


def decide(wish: Wish, probes: Sequence[Probe]) -> Decision:
    """Walk the ladder. `probes` are those of `candidates`, in order; a walk may stop at the first that is LIVE."""
    if not wish.share:
        return Private()
    if wish.may_downstream:
        for probe in probes:
            if probe.found is Found.LIVE:
                return Join(probe.path, probe.pid)
    if wish.may_upstream and not probes:
        return Private()
    possible = [probe for probe in probes if probe.found is not Found.TOO_LONG]
    if wish.may_upstream and possible and possible[0].found in _FREE:
        return Become(possible[0].path)
    return _refuse(probes)


def nothing_to_join(wish: Wish, target: Target, probes: Sequence[Probe]) -> JoinError:
    """Return the error for who can only join and found nothing: what was found where, and how to start one."""
    if not wish.share:
        message = "a private connection was asked for (-S none), so none is shared"
        return JoinError(message, ExitCode.NOTHING_TO_JOIN, hint="leave out -S none to join a connection that is open")
    refused = _refuse(probes)
    message = f"no connection to {printable(target.typed)} can be joined. {refused.message}"
    place = next((probe for probe in probes if probe.found in _FREE), None)
    if place is not None:
        hint = f"start a connection to share: {target.start_command(place.path)}"
    elif not probes:
        hint = "add a ControlPath for this host to ~/.ssh/config, as `ControlPath ~/.ssh/%C`"
    else:
        hint = "another connection can be shared at another path: give both commands the same -S PATH"
    return JoinError(message, refused.exit_code, hint=hint)


def _refuse(probes: Sequence[Probe]) -> Refuse:
    """What was found where, and the exit code of the first thing that is more than nothing."""
    if not probes:
        message = "No ControlPath is configured for it, and there is no XDG_RUNTIME_DIR to look in."
        return Refuse(message, ExitCode.NOTHING_TO_JOIN)
    codes = [_EXIT_CODES[probe.found] for probe in probes]
    telling = [code for code in codes if code is not ExitCode.NOTHING_TO_JOIN]
    return Refuse(" ".join(probe.detail for probe in probes), telling[0] if telling else ExitCode.NOTHING_TO_JOIN)
