"""Fixtures of the upstream tests: each test runs on a real `ssh -M` and on ours, wherever a real master passes too.

`SSHMUXFS_UPSTREAMS=openssh,ours` chooses the variants. A test that only ours can pass says `@ours_only`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import mounts
from tests.support.master import Master
from tests.support.sshd import Sshd
from tests.support.upstream import Upstream
from tests.t5_upstream.clients import Clients
from tests.t5_upstream.kinds import KINDS

CHOSEN = tuple(os.environ.get("SSHMUXFS_UPSTREAMS", ",".join(KINDS)).split(","))
MAKERS: dict[str, type[Master]] = {"openssh": Master, "ours": Upstream}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the variants that were not chosen."""
    # Of all tests of the run those that are not ours to leave out may have a "kind" of their own.
    left_out = [item for item in items if _kind(item) in KINDS and _kind(item) not in CHOSEN]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _kind(item: pytest.Item) -> str | None:
    call = getattr(item, "callspec", None)
    return call.params.get("kind") if call is not None else None


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Who holds the connection in this test: "openssh" or "ours"."""
    return str(request.param)


@pytest.fixture(scope="module")
def server_arguments() -> dict[str, Any]:
    """Arguments of `Sshd` for the module's server; a module overrides it."""
    return {}


@pytest.fixture(scope="module")
def holder_options() -> list[str]:
    """Options of the module's connection; a module overrides it."""
    return []


@pytest.fixture(scope="module")
def server(server_arguments: dict[str, Any]) -> Iterator[Sshd]:
    """The module's server; do not stop or kill it."""
    with Sshd(**{"max_sessions": 100, **server_arguments}) as sshd:
        yield sshd


@pytest.fixture(scope="module")
def holder(kind: str, server: Sshd, holder_options: list[str]) -> Iterator[Master]:
    """The module's connection; do not stop or kill it."""
    with MAKERS[kind](server, control_path=server.control_dir / "holder", options=holder_options) as holder:
        yield holder


@pytest.fixture(scope="module")
def clients(holder: Master) -> Clients:
    """Programs that join the module's connection, or fail."""
    return Clients.of(holder)


@pytest.fixture(scope="module")
def alone(server: Sshd) -> Clients:
    """The same programs, each with a login of its own, to compare with."""
    return Clients(server, None)


@pytest.fixture
def make_holder(kind: str, stack: ExitStack) -> Callable[..., Master]:
    """`make_holder(sshd, options=[...], ...)`: a connection of this test's own, with `Master`'s arguments."""

    def make(sshd: Sshd, **arguments: Any) -> Master:
        arguments.setdefault("control_path", sshd.control_dir / "own")
        return stack.enter_context(MAKERS[kind](sshd, **arguments))

    return make


@pytest.fixture
def directory(stack: ExitStack, server: Sshd) -> Path:
    """An empty directory on the server (and here), this test's own."""
    path = tempfile.mkdtemp(dir=server.root)
    stack.callback(mounts.remove_tree, path)
    return Path(path)
