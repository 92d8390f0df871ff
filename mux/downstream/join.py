"""Joining: a connection that is open, and sftp sessions on it; the ladder is walked again when it has gone.

The one rule: what is found or started here is used through its control path, whoever holds it, or through its socket
where a PuTTY does. The walk itself blocks,
and so runs in a thread (`start.py`): the loop of a mount that looks for a new connection has other requests to answer.

A master whose ControlPersist time is over ends even while a client connects. So a session that finds the connection
gone walks the ladder once more, and then either rides on the connection that is there now, or tells what is. Nobody is
asked anything then: the terminal is long gone. And a server that refused to let us in is not asked again and again:
from then on a connection is only joined, until there is one.

Imported by the mount (`sshmuxfs.session`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from mux.errors import ConnectionLost, ExitCode, JoinError, SharingError, printable
from mux.rendezvous.roles import Wish
from mux.rendezvous.target import Target

from . import putty
from .openssh import HELLO_DEADLINE_S, ControlConnection, SessionStream, open_control
from .start import END_DEADLINE_S, LOOK_DEADLINE_S, Leash, Reached, Running, Search, Terms

__all__ = ["Joined", "Terms", "is_subsystem", "join", "sftp_failure"]

OPEN_DEADLINE_S: Final = 10.0  # a round trip to the server, and a server slow to start its sftp-server

# What a master that ends while it is joined looks like: no socket, nobody listening, or hung up on.
_GONE: Final = frozenset({ExitCode.NOTHING_TO_JOIN, ExitCode.PROTOCOL})
# A login that failed like this fails again, and each attempt is one that the server counts against us.
_FINAL: Final = frozenset({ExitCode.AUTH_FAILED, ExitCode.HOST_KEY})

log = logging.getLogger(__name__)


class _Gone(Exception):
    """The connection is not there any more, or gives no answer."""

    def __init__(self, cause: SharingError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _is_gone(error: SharingError) -> bool:
    return isinstance(error, ConnectionLost) or error.exit_code in _GONE


class Joined:
    """A connection that was alive when it was looked at, or another to the same target in its place.

    `keep`: it is needed between sessions as well. One control connection (or one to PuTTY's socket) is then kept open,
    without a request, since whoever holds the connection counts those.
    """

    def __init__(self, target: Target, wish: Wish, terms: Terms, reached: Reached, *, keep: bool) -> None:
        self._target = target
        self._wish = wish
        self._terms = replace(terms, batch=True, foreground=False)  # nobody looks any more
        self._reached = reached
        self._keep = keep
        self._held: ControlConnection | putty.Idle | None = None
        self._refusal: SharingError | None = None

    @property
    def path(self) -> str:
        return self._reached.path

    @property
    def pid(self) -> int | None:
        """Of the process that holds it, by its own word."""
        return self._reached.pid

    @property
    def started(self) -> bool:
        """Whether it was started here, so that it has the options of this command line."""
        return self._reached.started

    @property
    def leash(self) -> Leash | None:
        """What keeps an upstream in the foreground, if one was started there."""
        return self._reached.leash

    async def open_sftp(self, server: str = "sftp", *, deadline_s: float = OPEN_DEADLINE_S) -> SessionStream:
        """Open a session with the subsystem `server`, or with it as a command when it holds a `/` or a blank.

        Raises JoinError (REFUSED, DENIED, NO_ANSWER, or as `join` does) and ConnectionLost. A server without such a
        subsystem shows only later, as a stream that ends before its first byte: see `sftp_failure`. The deadline is for
        the session; a new connection, where one is needed, has its own.
        """
        try:
            return await self._open_sftp(server, deadline_s)
        except _Gone as error:
            log.info("%s", error)
        await self._find_again()
        try:
            return await self._open_sftp(server, deadline_s)
        except _Gone as error:
            raise error.cause from None

    def let_go(self) -> None:
        """End what keeps the connection open for us while there is no session on it."""
        if self._held is not None:
            self._held.close()
            self._held = None

    async def _open_sftp(self, server: str, deadline_s: float) -> SessionStream:
        deadline = trio.current_time() + deadline_s
        command = server.encode(errors="surrogateescape")
        try:
            if self._keep:
                await self._hold(deadline_s)
            if self._reached.putty:
                left_s = max(0.0, deadline - trio.current_time())
                return await putty.open_session(
                    self.path, command, subsystem=is_subsystem(server), deadline_s=left_s, say=log.info
                )
            connection = await open_control(self.path, deadline_s=min(HELLO_DEADLINE_S, deadline_s))
        except SharingError as error:
            raise _Gone(error) if _is_gone(error) or error.exit_code is ExitCode.NO_ANSWER else error
        left_s = max(0.0, deadline - trio.current_time())
        try:
            return await connection.open_session(command, subsystem=is_subsystem(server), deadline_s=left_s)
        except SharingError as error:
            raise _Gone(error) if _is_gone(error) else error

    async def _hold(self, deadline_s: float) -> None:
        deadline_s = min(HELLO_DEADLINE_S, deadline_s)
        held = await (putty.open_idle if self._reached.putty else open_control)(self.path, deadline_s=deadline_s)
        self.let_go()
        self._held = held

    async def _find_again(self) -> None:
        wish = self._wish if self._refusal is None else replace(self._wish, may_upstream=False)
        if self._refusal is not None and not wish.share:
            raise self._refusal
        try:
            self._reached = await _found(Running(Search(self._target, wish, self._terms, log.info)))
        except SharingError as error:
            if error.exit_code in _FINAL:
                log.error("no login is tried any more: %s", error)
                self._refusal = error
            elif self._refusal is not None:
                raise self._refusal
            raise
        self._refusal = None


async def join(
    target: Target,
    wish: Wish,
    terms: Terms | None = None,
    say: Callable[[str], None] = lambda line: None,
    running: Running | None = None,
    *,
    keep: bool = False,
    look_s: float = LOOK_DEADLINE_S,
) -> Joined:
    """Find a connection to `target`, or start one. `running`: a search with all these that has begun already.

    For `keep` see `Joined`, for `look_s` `Search`.

    Raises JoinError with what was found instead, and what to do.
    """
    terms = terms or Terms()
    reached = await _found(running or Running(Search(target, wish, terms, say, look_s=look_s)))
    return Joined(target, wish, terms, reached, keep=keep)


async def _found(running: Running) -> Reached:
    try:
        await trio.to_thread.run_sync(running.wait, abandon_on_cancel=True)
    except trio.Cancelled:
        running.cancel()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(running.wait, 2 * END_DEADLINE_S)
        raise
    return running.result()


def is_subsystem(server: str) -> bool:
    """Whether `-o sftp_server=` names a subsystem and not a command."""
    return not any(character == "/" or character.isspace() for character in server)


def sftp_failure(server: str, exit_value: int | None, stderr_text: str) -> JoinError:
    """Return what to tell of an sftp session that ended before its first byte.

    `exit_value` and `stderr_text` are those of the stream. OpenSSH's master does not pass on why a subsystem was
    refused: it ends the session without an exit value and without a word.
    """
    shown = printable(server)
    if is_subsystem(server):
        what = f"the server does not run a subsystem {shown!r}"
        hint = "name the program on the server that speaks SFTP, as -o sftp_server=/usr/lib/openssh/sftp-server"
    else:
        what = f"the server does not run `{shown}`"
        hint = "see that it is the path of an sftp-server on the server"
    ending = "" if exit_value is None else f" (exit status {exit_value})"
    said = f": {printable(stderr_text)}" if stderr_text.strip() else ""
    return JoinError(f"{what}{ending}{said}", ExitCode.NO_SUBSYSTEM, hint=hint)
