"""The escape characters of a session with a terminal, as ssh(1) section ESCAPE CHARACTERS has them.

A machine takes what the user types and gives back what goes to the server and what is meant for us, in order. One
rule: an escape counts only at the beginning of a line, which each session knows of itself. Of what ssh can do, a
shared session cannot suspend its client, read a command line, or change who logs how much; it says so.

Imported by `mux.upstream.sessions`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, TypeAlias

_NEWLINES: Final = b"\r\n"


class Action(enum.Enum):
    """What an escape asks for; the value is the character behind the escape character."""

    CLOSE = b"."
    BREAK = b"B"
    REKEY = b"R"
    LIST = b"#"
    INFO = b"I"
    HELP = b"?"


UNAVAILABLE: Final = frozenset(b"\x1aCvV&")  # suspend, command line, log level down and up, go to the background
ECHOED: Final = frozenset({Action.CLOSE, Action.BREAK, Action.LIST, Action.INFO})

_ACTIONS: Final = {action.value[0]: action for action in Action}


@dataclass(frozen=True, slots=True)
class Unavailable:
    """An escape that a shared session does not have: the value of the character behind the escape character."""

    character: int


Output: TypeAlias = bytes | Action | Unavailable


class Escapes:
    """What one user typed so far, as far as it matters: whether a line begins, and whether an escape has begun."""

    def __init__(self, character: int) -> None:
        """`character` is one byte's value."""
        self._character = character
        self._wanted = bytes([character])
        self._at_line_start = True
        self._pending = False

    def feed(self, data: bytes | memoryview) -> list[Output]:
        """Return what `data` comes to, in order: bytes for the server, `Action`s, and `Unavailable`s."""
        typed = bytes(data)
        if not self._pending and self._wanted not in typed:
            if typed:
                self._at_line_start = typed[-1] in _NEWLINES
            return [typed] if typed else []
        output: list[Output] = []
        sent = bytearray()
        for byte in typed:
            found = self._take(byte, sent)
            if found is not None:
                if sent:
                    output.append(bytes(sent))
                    sent.clear()
                output.append(found)
        if sent:
            output.append(bytes(sent))
        return output

    def _take(self, byte: int, sent: bytearray) -> Action | Unavailable | None:
        """One byte more. After an escape the line still begins: another may follow at once."""
        if self._pending:
            self._pending = False
            if byte in _ACTIONS:
                return _ACTIONS[byte]
            if byte in UNAVAILABLE:
                return Unavailable(byte)
            if byte != self._character:
                sent.append(self._character)
        elif self._at_line_start and byte == self._character:
            self._pending = True
            return None
        self._at_line_start = byte in _NEWLINES
        sent.append(byte)
        return None


def echo(character: int, action: Action) -> bytes:
    """What is shown when an escape is obeyed: itself, where ssh shows it; b"" where it shows nothing."""
    return bytes([character]) + action.value + b"\r\n" if action in ECHOED else b""


def unavailable(character: int, escape: Unavailable) -> bytes:
    """What is said of an escape that is not to be had, in ssh's words."""
    shown = bytes([escape.character]) if escape.character >= 32 else bytes([ord("^"), escape.character + 64])
    return bytes([character]) + shown + b" escape not available to multiplexed sessions\r\n"


def help_text(character: int) -> bytes:
    """What `~?` shows."""
    escape = bytes([character])
    lines = [
        escape + b"?",
        b"Supported escape sequences:",
        b" " + escape + b".   - end this session",
        b" " + escape + b"B   - send a BREAK to the remote system",
        b" " + escape + b"R   - exchange new keys with the server",
        b" " + escape + b"#   - list the channels of the shared connection",
        b" " + escape + b"I   - tell of the shared connection",
        b" " + escape + b"?   - this text",
        b" " + escape * 2 + b"   - send the escape character",
        b"(Escapes count only at the beginning of a line.)",
    ]
    return b"".join(line + b"\r\n" for line in lines)
