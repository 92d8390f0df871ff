"""Fixtures of the PuTTY tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mux.rendezvous import putty
from tests.support import mounts, processes
from tests.support.putty import remove_directory
from tests.support.sshd import Sshd
from tests.support.upstream import Upstream
from tests.t5_putty.riders import Riders


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    """The module's server; do not stop or kill it."""
    with Sshd(max_sessions=100) as sshd:
        yield sshd


@pytest.fixture(scope="module")
def ours(server: Sshd) -> Iterator[Upstream]:
    """The module's upstream of ours; do not stop or kill it."""
    with Upstream(server, control_path=server.control_dir / "ours") as upstream:
        yield upstream


@pytest.fixture(scope="module")
def riders(ours: Upstream) -> Riders:
    """PuTTY's tools, which can only share the module's upstream."""
    return Riders(ours.sshd)


@pytest.fixture
def make_ours(stack: ExitStack) -> Callable[..., tuple[Upstream, Riders]]:
    """`make_ours(sshd, options=[...])`: an upstream of this test's own, and riders on it."""

    def make(sshd: Sshd, **arguments: Any) -> tuple[Upstream, Riders]:
        arguments.setdefault("control_path", sshd.control_dir / "own")
        riders = Riders(sshd)
        stack.callback(riders.forget)
        return stack.enter_context(Upstream(sshd, **arguments)), riders

    return make


@pytest.fixture
def directory(stack: ExitStack, server: Sshd) -> Path:
    """An empty directory on the server (and here), this test's own."""
    path = tempfile.mkdtemp(dir=server.root)
    stack.callback(mounts.remove_tree, path)
    return Path(path)


@pytest.fixture
def parent(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the place of PuTTY's own, which everybody shares; not there yet."""
    directory = processes.make_directory()
    stack.callback(mounts.remove_tree, directory)
    monkeypatch.setattr(putty, "PARENT", f"{directory}/p.{{user}}"[:40])
    return Path(putty.parent_directory())


@pytest.fixture
def own(stack: ExitStack, sshd: Sshd) -> str:
    """A name in PuTTY's own directory that is this test's."""
    name = f"nobody@place-{sshd.port}.invalid"
    parent = putty.parent_directory()
    putty.make_directory(parent)
    putty.make_salt(parent)
    stack.callback(remove_directory, putty.directory_of(name))
    return name
