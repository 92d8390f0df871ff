"""Fixtures of the fault tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounted import Mount
from tests.t6_faults.faults import fill, server_option


@pytest.fixture
def evil(make_mount: Callable[..., Mount], remote_dir: Path) -> Callable[..., Mount]:
    """`evil(*options)`: `remote_dir`, filled, mounted from an evil server, with a `conversation` if need be."""
    fill(remote_dir)

    def mount(*options: str, conversation: str = "plain", directory: Path = remote_dir, **arguments: Any) -> Mount:
        return make_mount(directory, options=[server_option(conversation, remote_dir), *options], **arguments)

    return mount


@pytest.fixture
def reopens(expect_log: Callable[[str], None]) -> Callable[..., None]:
    """`reopens(reason)`: the mount's log tells why a channel ended, and that another is open."""

    def declare(reason: str) -> None:
        expect_log(rf"the channel ended: .*{reason}")
        expect_log("a new channel is open")

    return declare
