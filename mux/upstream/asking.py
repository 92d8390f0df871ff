"""What a session asks of the server in words of its client's: a terminal, variables, and what is to run.

One rule: nothing of it may be what a server hangs up over, for that would end the session of everybody: each request is
whole by the tables of `protocol.harmless`, and no larger than the server takes. Imported by `sessions.py`.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from mux.protocol import harmless
from mux.protocol.messages import NewSession
from mux.protocol.wire import string

MAX_ENVIRONMENT: Final = 4096  # variables; mux.c takes as many
MAX_NAME_BYTES: Final = 1024


class Options(Protocol):
    """What is needed of `settings.Settings`."""

    @property
    def send_env(self) -> Sequence[str]: ...
    @property
    def set_env(self) -> Sequence[str]: ...
    @property
    def request_tty(self) -> str: ...


def kind_of(message: NewSession) -> str:
    """Return "shell", "exec" or "subsystem". A subsystem without a name is a shell, as mux.c has it."""
    return "shell" if not message.command else "subsystem" if message.subsystem else "exec"


def requests(message: NewSession, terminal: bytes, options: Options, server_version: str) -> list[tuple[bytes, bytes]]:
    """Return the requests in their order, each with its fields; the last starts what is to run.

    `terminal`: size and modes, as fields. Raises RemoteProtocolError for what a server might hang up over.
    """
    asked = [(harmless.PTY, string(message.terminal) + terminal)] if message.tty else []
    for name, value in environment(message.environment, options.send_env, options.set_env):
        asked.append((b"env", string(name) + string(value)))
    asked.append((kind_of(message).encode(), string(message.command) if message.command else b""))
    for name, body in asked:
        harmless.check(name, harmless.REQUESTS[name], body, server_version)
    return asked


def environment(sent: Iterable[bytes], patterns: Sequence[str], added: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """The variables to ask the server for: the client's as far as SendEnv's `patterns` have them, then SetEnv's."""
    wanted = [pattern.replace("[", "[[]") for pattern in patterns]  # ssh knows * and ? only
    chosen = []
    for entry in list(sent)[:MAX_ENVIRONMENT]:
        name, equals, value = entry.partition(b"=")
        text = os.fsdecode(name)
        if equals and 0 < len(name) < MAX_NAME_BYTES and any(fnmatch.fnmatchcase(text, each) for each in wanted):
            chosen.append((name, value))
    for setting in added:
        name, _, value = os.fsencode(setting).partition(b"=")
        chosen.append((name, value))
    return chosen
