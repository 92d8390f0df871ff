"""What a starter tells the upstream process that it started, and what that one answers.

The one rule: this is data. An `Order` is one line of JSON, the first and only one in that direction; whoever wrote it
keeps its end of the pipe open for as long as it waits, and its closing takes the order back until the process is
`ready`. `Report`s are lines of JSON in the other direction, and the last of them ends the conversation. Text may hold
bytes that are no UTF-8 (file names): they travel as lone surrogates.

A password is only ever in here, so in a pipe: never in arguments, an environment or a file.

May be imported by anyone above `mux.protocol`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Self

from mux.errors import ExitCode, RemoteProtocolError

from .target import Target

# `ssh -G` prints some 100 lines; with hundreds of SendEnv patterns and forwardings it is still far below this.
LONGEST_LINE_BYTES: Final = 1024 * 1024


class Engine(enum.Enum):
    """What holds the connection."""

    OURS = "ours"
    SSH = "ssh"  # `ssh -M -N`


@dataclass(frozen=True, slots=True)
class Order:
    """Log in to `target`, be found at `path`, and stay for as long as the rest says."""

    target: Target = field(repr=False)
    path: str  # absolute; its directory exists, and the path is short enough to be published
    private: bool = False  # `path` lies in a fresh directory, which goes with the connection
    foreground: bool = False  # no detaching: logs to stderr, ends with its starter once nobody else rides
    batch: bool = False  # nobody is there to be asked
    persist: str | None = None  # in place of the configured ControlPersist, in its words
    explicit_start: bool = False  # asked for by itself: without ControlPersist it stays until it is told to end
    putty: bool = True  # PuTTY's tools find it as well
    password: str | None = field(default=None, repr=False)  # answers the first question for one
    log_file: str | None = None  # absolute
    debug: bool = False

    def to_json(self) -> str:
        """Return the line, its end included."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        target = {one.name: getattr(self.target, one.name) for one in fields(self.target)}
        target["config"] = dict(self.target.config)
        return json.dumps(values | {"target": target}) + "\n"

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Read the line. Raises RemoteProtocolError for anything but what `to_json` makes."""
        try:
            values = json.loads(line)
            target = values.pop("target")
            config: Mapping[str, list[str]] = target.pop("config")
            target["config"] = MappingProxyType({name: tuple(lines) for name, lines in config.items()})
            target["arguments"] = tuple(target["arguments"])
            return cls(target=Target(**target), **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RemoteProtocolError(f"an order that cannot be read: {error}") from error


class Kind(enum.Enum):
    """What a report tells."""

    READY = "ready"  # published at `path`, by the process `pid`
    JOINED = "joined"  # somebody else was published at `path` meanwhile, and is alive: `pid`
    OTHER_ENGINE = "other engine"  # this connection needs ssh itself; `message` says why
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Report:
    """How the order was carried out."""

    kind: Kind
    message: str = ""
    hint: str = ""
    exit_code: ExitCode = ExitCode.OK
    pid: int | None = None
    path: str = ""

    def to_json(self) -> str:
        """Return the line, its end included."""
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        return json.dumps(values | {"kind": self.kind.value, "exit_code": int(self.exit_code)}) + "\n"

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Read the line. Raises RemoteProtocolError for anything but what `to_json` makes."""
        try:
            values = json.loads(line)
            kind, code = Kind(values.pop("kind")), ExitCode(values.pop("exit_code"))
            return cls(kind=kind, exit_code=code, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RemoteProtocolError(f"a report that cannot be read: {error}") from error
