"""A process that has no descriptors left, or only a few."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

# Beyond those that are open: what is filled before the limit is reached.
ABOVE = 20


@contextmanager
def only_free(spare: int) -> Iterator[None]:
    """With this many descriptors left to this process, and to what it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + ABOVE, hard))
    taken: list[int] = []
    try:
        fill(taken)
        for descriptor in taken[:spare]:
            os.close(descriptor)
        del taken[:spare]
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


def fill(taken: list[int]) -> None:
    """Open what can be opened."""
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
