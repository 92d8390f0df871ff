"""Fixtures of joining."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import mounts, processes


@pytest.fixture
def control_path() -> Iterator[str]:
    """A path for a socket, short enough, in a private directory."""
    directory = processes.make_directory()
    yield str(directory / "master")
    mounts.remove_tree(directory)  # a master that ends may remove its socket meanwhile
