"""Who may hold the connection in a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

KINDS = ("openssh", "ours")

Test = TypeVar("Test", bound=Callable[..., Any])


def ours_only(test: Test) -> Test:
    """For what ours must do better than a real master."""
    named = pytest.mark.usefixtures("kind")(test)
    chosen: Test = pytest.mark.parametrize("kind", ["ours"], indirect=True)(named)
    return chosen
