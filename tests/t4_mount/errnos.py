"""Errors by name, so that a failing test says ENOENT and not 2. For the tests only."""

from __future__ import annotations

import errno
from collections.abc import Callable


def name_of(number: int | None) -> str:
    """The name of an errno; the one with two names on Linux is always ENOTSUP."""
    if number is None:
        return "no errno"
    return "ENOTSUP" if number == errno.EOPNOTSUPP else errno.errorcode[number]


def errno_of(action: Callable[..., object], *arguments: object) -> str:
    """The name of the errno that the action fails with, or "success"."""
    try:
        action(*arguments)
    except OSError as error:
        return name_of(error.errno)
    return "success"
