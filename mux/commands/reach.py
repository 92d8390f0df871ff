"""From a host on the command line to the process that holds its connection, and questions to that process.

The one rule: whatever goes wrong is a `SharingError` with a sentence for the user, and every wait has a deadline.
Refusals keep the master's own words. Nothing is started and nothing removed. Imported by the subcommands.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

from mux.errors import ConnectionLost, ExitCode, JoinError, RemoteProtocolError, SharingError, printable
from mux.protocol.messages import Failure, Info, InfoRequest, PermissionDenied, Reply, Request
from mux.rendezvous import putty
from mux.rendezvous.conversation import Conversation, HungUp
from mux.rendezvous.roles import Join, Wish, candidates, decide, nothing_to_join
from mux.rendezvous.sockets import HELLO_DEADLINE_S, Probe, connect, look, shown
from mux.rendezvous.target import SshOptions, Target, resolve, split_host

SSH_FAILED: Final = 255  # what ssh ends with when it cannot do what it was asked

STATUS_NAME: Final = b"sshmux-status"  # known to our own upstreams only
STATUS_VERSION: Final = 1  # of what they answer; another one is not understood here

_FIND_DEADLINE_S: Final = 5.0
_ASK_DEADLINE_S: Final = 10.0  # holds a round trip to the server, and a slow one of some seconds


class Refused(JoinError):
    """The master understood and said no; `reason` has its words, and no more."""

    def __init__(self, reason: str, *, denied: bool) -> None:
        super().__init__(reason, ExitCode.DENIED if denied else ExitCode.REFUSED)
        self.reason = reason
        self.denied = denied


@dataclass(frozen=True, slots=True)
class Reached:
    """A connection that was alive when it was looked at."""

    path: str
    pid: int
    target: Target | None = field(default=None, repr=False)

    def open(self) -> Master:
        """Connect to whoever holds it. Raises SharingError."""
        return Master(self.path)


def reach(arguments: argparse.Namespace) -> Reached:
    """Find the connection that a host on the command line means. Raises JoinError with what was found instead."""
    options = ssh_options(arguments)
    target = resolve_host(arguments)
    wish = Wish.of(options, may_upstream=False)
    probes = look(candidates(wish, target), deadline_s=_FIND_DEADLINE_S)
    decision = decide(wish, probes)
    if not isinstance(decision, Join) or decision.pid is None:
        raise nothing_to_join(wish, target, probes)
    return Reached(decision.path, decision.pid, target)


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is for a host, in both worlds, each up to the first that is LIVE."""

    wish: Wish
    target: Target
    masters: list[Probe]
    puttys: list[Probe]  # none where a control path was named: that one is meant


def look_around(arguments: argparse.Namespace) -> Seen:
    """Look for every connection that a mount of this host could join. Raises JoinError when ssh cannot resolve it."""
    wish = Wish.of(ssh_options(arguments), may_upstream=False)
    target = resolve_host(arguments)
    masters = look(candidates(wish, target), deadline_s=_FIND_DEADLINE_S)
    return Seen(wish, target, masters, putty.look(putty.candidates(target)) if wish.asks_putty else [])


def resolve_host(arguments: argparse.Namespace) -> Target:
    """What ssh makes of the host on the command line. Raises JoinError."""
    user, host = split_host(arguments.host)
    return resolve(host, user, ssh_options(arguments))


def ssh_options(arguments: argparse.Namespace) -> SshOptions:
    """The options of ssh on the command line."""
    return SshOptions(
        config_file=arguments.config_file,
        port=arguments.port,
        user=arguments.user,
        control_path=arguments.control_path,
        options=tuple(arguments.options),
    )


def say(line: str) -> None:
    """One line for people, on stderr."""
    print(f"sshmux: {line}", file=sys.stderr)


class Master:
    """A conversation with the process that holds a connection; a context manager.

    Its methods raise SharingError: `Refused` with the master's own words, ConnectionLost when it goes, JoinError
    when it does not answer. After anything but `Refused` it is to be closed.
    """

    def __init__(self, path: str, *, deadline_s: float = HELLO_DEADLINE_S) -> None:
        self.path = path
        with self._told():
            self._conversation = Conversation(connect(path, deadline_s=deadline_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._conversation.close()

    def ask(self, request: Callable[[int], Request], *, deadline_s: float = _ASK_DEADLINE_S) -> Reply:
        """Ask what `request` makes of a request id."""
        with self._told():
            reply = self._conversation.ask(request, deadline_s=deadline_s)
        if isinstance(reply, Failure | PermissionDenied):
            raise Refused(printable(reply.reason), denied=isinstance(reply, PermissionDenied))
        return reply

    def info(self, name: bytes, *, deadline_s: float = _ASK_DEADLINE_S) -> bytes | None:
        """Return its text of this name; None from a master that has none, as OpenSSH's before 10.3."""
        try:
            reply = self.ask(lambda request_id: InfoRequest(request_id, name), deadline_s=deadline_s)
        except Refused:
            return None
        assert isinstance(reply, Info)
        return reply.text if reply.supported else None

    def status(self, *, deadline_s: float = _ASK_DEADLINE_S) -> dict[str, Any] | None:
        """Return what an upstream of sshmux tells of itself; None from any other master.

        Raises RemoteProtocolError for a status of a version that is not known here.
        """
        text = self.info(STATUS_NAME, deadline_s=deadline_s)
        if text is None:
            return None
        try:
            status = json.loads(text)
            version = status["version"]
        except (ValueError, TypeError, KeyError):
            raise RemoteProtocolError(f"the status told at {shown(self.path)} cannot be read") from None
        if version != STATUS_VERSION:
            raise RemoteProtocolError(
                f"the upstream at {shown(self.path)} tells a status of version {version}, not {STATUS_VERSION}: "
                "it was started by another version of sshmux"
            )
        assert isinstance(status, dict)
        return status

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what a socket can raise into errors for the user."""
        where = shown(self.path)
        try:
            yield
        except TimeoutError:
            message = f"the master at {where} gives no answer: it is stopped, hangs, or waits for someone to answer it"
            raise JoinError(message, ExitCode.NO_ANSWER) from None
        except HungUp:
            raise ConnectionLost(f"the master at {where} closed before it had answered") from None
        except SharingError:
            raise
        except OSError as error:
            raise ConnectionLost(f"the master at {where} is gone: {error.strerror or error}") from None
