"""Error families and exit codes of sharing a connection.

One rule: whatever goes wrong below is raised as a `SharingError`, which carries a sentence for the user, the exit
code of the command that must end because of it, and where there is one a hint of what to do next. Anything else that
escapes is a bug. Text from a peer enters a message only through `printable`. Everybody may import this module; it
imports nothing of ours.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """Exit codes of both commands. A number is never re-used for another meaning."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOTHING_TO_JOIN = 3
    NO_ANSWER = 4  # frozen, or its queue of clients is full
    REFUSED = 5  # the session was refused, as by MaxSessions
    DENIED = 6  # a person said no (`ControlMaster ask`)
    NO_SUBSYSTEM = 7
    UNSAFE_SOCKET = 8  # foreign owner, loose modes, not a socket, path too long
    BAD_MOUNT_POINT = 9
    BAD_REMOTE_DIRECTORY = 10
    PROTOCOL = 11
    NO_FUSE = 12
    AUTH_FAILED = 13  # the server accepted nothing that we could offer
    HOST_KEY = 14  # the server's key is unknown, changed or revoked
    UNREACHABLE = 15  # no connection, or one that ended before the login was done
    LOST_WRITES = 16  # the mount worked and ended, and what was written to it last may be lost
    INTERRUPTED = 130


class SharingError(Exception):
    """Base of all errors here. `str()` is the message; `exit_code` and `hint` are for the command's last line."""

    usual_exit_code: ClassVar[ExitCode] = ExitCode.FAILURE

    def __init__(self, message: str, exit_code: ExitCode | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = self.usual_exit_code if exit_code is None else exit_code
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class WireError(SharingError):
    """Bytes that do not have the shape their type promises."""

    usual_exit_code = ExitCode.PROTOCOL


class LocalProtocolError(SharingError):
    """We asked a protocol machine for something its state does not allow: a bug on our side."""

    usual_exit_code = ExitCode.PROTOCOL


class RemoteProtocolError(SharingError):
    """The peer broke the protocol. What it was connected through is of no further use."""

    usual_exit_code = ExitCode.PROTOCOL


class ConnectionLost(SharingError):
    """The stream or socket ended, or did not answer in time, when something was still due."""


class JoinError(SharingError):
    """A connection could not be joined, or a joined connection refused what was asked; `exit_code` tells which."""


def printable(text: bytes | str, limit: int = 500) -> str:
    """Return text of a peer as something a terminal or a log can show: one line, escaped, at most `limit` characters.

    Control characters, line ends, invisible and right-to-left marks and bytes that are not UTF-8 become escapes.
    """
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode("utf-8", "backslashreplace")
    shown = ""
    for character in text.strip():
        shown += character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        if len(shown) > limit:
            return shown[: limit - 3] + "..."
    return shown
