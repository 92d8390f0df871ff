"""A descriptor that is closed whatever happens: one left open by a failing test would keep the mount busy. For the
tests only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> Iterator[int]:
    """os.open, and os.close at the end; an error of close is raised."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
