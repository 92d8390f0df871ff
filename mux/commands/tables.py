"""Numbers and rows as people read them. Imported by the subcommands that print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def table(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Columns as wide as they must be, the last as it is. `right` names those that are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if index in right else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def age(seconds: float | None) -> str:
    """The two largest units of a time: "3d4h", "12s"; "-" when it is not known."""
    if seconds is None:
        return "-"
    left, words = int(seconds), ""
    for letter, size in _UNITS:
        count, left = divmod(left, size)
        if count or (words and letter != "s") or (letter == "s" and not words):
            words += f"{count}{letter}"
        if len(words) - sum(map(str.isdigit, words)) == 2:
            break
    return words


def size(count: float) -> str:
    """Bytes in a few characters: "812 B", "1.5 MB"; the units are powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def milliseconds(seconds: float | None) -> str:
    """A round trip."""
    return "-" if seconds is None else f"{seconds * 1000:.3g} ms"
