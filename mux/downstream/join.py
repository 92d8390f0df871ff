"""Joining: walk the ladder to a connection that is open, and open sftp sessions on it.

The one rule: nothing is started and nothing removed. Where the ladder says "become" or "go alone" this ends in a
`JoinError` that names what was found at each path and the command that starts a connection.

A master whose ControlPersist time is over ends even while a client connects. So a session that finds the connection
gone walks the ladder once more, and then either rides on the connection that is there now, or tells what is.

Imported by the mount (`sshmuxfs.session`). The probes block, and so run in a thread: the loop of a mount that looks for
a new connection has other requests to answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from mux.errors import ConnectionLost, ExitCode, JoinError, SharingError, printable
from mux.rendezvous.roles import Join, Wish, candidates, decide, nothing_to_join
from mux.rendezvous.sockets import look
from mux.rendezvous.target import Target

from .openssh import HELLO_DEADLINE_S, SessionStream, open_control

JOIN_DEADLINE_S: Final = 5.0
OPEN_DEADLINE_S: Final = 10.0  # a round trip to the server, and a server slow to start its sftp-server

# What a master that ends while it is joined looks like: no socket, nobody listening, or hung up on.
_GONE: Final = frozenset({ExitCode.NOTHING_TO_JOIN, ExitCode.PROTOCOL})


@dataclass(frozen=True, slots=True)
class Joined:
    """A connection that was alive when it was looked at."""

    path: str
    pid: int | None  # of the process that holds it, by its own word
    target: Target = field(repr=False)
    wish: Wish = field(repr=False)

    async def open_sftp(self, server: str = "sftp", *, deadline_s: float = OPEN_DEADLINE_S) -> SessionStream:
        """Open a session with the subsystem `server`, or with it as a command when it holds a `/` or a blank.

        Raises JoinError (REFUSED, DENIED, NO_ANSWER, or as `join` does) and ConnectionLost. A server without such a
        subsystem shows only later, as a stream that ends before its first byte: see `sftp_failure`.
        """
        deadline = trio.current_time() + deadline_s
        try:
            return await self._open_sftp(server, deadline)
        except SharingError as error:
            if not isinstance(error, ConnectionLost) and error.exit_code not in _GONE:
                raise
        again = await join(self.target, self.wish, deadline_s=_left_s(deadline))
        return await again._open_sftp(server, deadline)

    async def _open_sftp(self, server: str, deadline: float) -> SessionStream:
        connection = await open_control(self.path, deadline_s=min(HELLO_DEADLINE_S, _left_s(deadline)))
        command = server.encode(errors="surrogateescape")
        return await connection.open_session(command, subsystem=is_subsystem(server), deadline_s=_left_s(deadline))


async def join(target: Target, wish: Wish, *, deadline_s: float = JOIN_DEADLINE_S) -> Joined:
    """Find a connection to `target` that is open. Raises JoinError with what was found instead, and what to do."""
    paths = candidates(wish, target)
    # Left behind when cancelled: a probe changes nothing and ends by its own deadline.
    search = partial(look, paths, deadline_s=deadline_s)
    probes = await trio.to_thread.run_sync(search, abandon_on_cancel=True)
    decision = decide(wish, probes)
    if isinstance(decision, Join):
        return Joined(decision.path, decision.pid, target, wish)
    raise nothing_to_join(wish, target, probes)


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - trio.current_time())


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
