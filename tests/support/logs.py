"""Unexpected warnings fail a test.

One `LogWatch` is active at a time. It sees every record of WARNING and above that is logged in this process, and is
fed the output of the programs under test by whoever runs them; a test says beforehand which lines it expects.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

# How a program's own line says that something went wrong. `Traceback` needs no colon or level beside it.
SERIOUS = re.compile(r"\b(warning|error|critical|fatal|panic)\b|\bTraceback\b|never (awaited|retrieved)", re.IGNORECASE)


class LogWatch(logging.Handler):
    """Collects serious lines and compares them with what was declared."""

    active: LogWatch | None = None

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: list[str] = []
        self._expected: list[re.Pattern[str]] = []
        self._allowed: list[re.Pattern[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._seen.append(f"{record.levelname} {record.name}: {self.format(record)}")

    def feed(self, lines: Iterable[str]) -> None:
        """Take a program's output: its serious lines are kept, and lines that were declared."""
        declared = (*self._expected, *self._allowed)
        for line in lines:
            if SERIOUS.search(line) or any(pattern.search(line) for pattern in declared):
                self._seen.append(line)

    def expect(self, pattern: str) -> None:
        """At least one line matches this, or the test fails."""
        self._expected.append(re.compile(pattern))

    def allow(self, pattern: str) -> None:
        """Lines that match this may come, or may not."""
        self._allowed.append(re.compile(pattern))

    def problems(self) -> list[str]:
        """Serious lines that nobody declared, and declared ones that never came."""
        declared = (*self._expected, *self._allowed)
        surplus = [f"logged: {line}" for line in self._seen if not any(p.search(line) for p in declared)]
        lacking = [f"never logged: {p.pattern}" for p in self._expected if not any(map(p.search, self._seen))]
        return surplus + lacking


def feed(lines: Iterable[str]) -> None:
    """Hand a program's output to the active watch; outside the tests there is none."""
    if LogWatch.active is not None:
        LogWatch.active.feed(lines)
