"""The fixtures of t4_mount and t5_interop: `tree`, `area` and `start`; both conftests import them.

A test module (or test) says on what it runs by `pytest.mark.variants(Setup, ...)`; without it that is a plain
directory, then a default mount, over a real master and over our own upstream. A tree lives for a module.
`pytest.mark.deadline(seconds)` gives a test more than DEADLINE_S before its mounts are killed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.master import Master
from tests.support.putty import PuttyUpstream
from tests.support.upstream import Upstream
from tests.support.waiting import wait_until
from tests.t4_mount.differences import Difference
from tests.t4_mount.trees import MOUNT, PLAIN, Setup, Tree, Trees, chosen

T = TypeVar("T")

DEADLINE_S = 110.0  # before pytest-timeout

_session: list[Trees] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "variants(*setups): the trees a test runs on")
    config.addinivalue_line("markers", "over_putty: on a mount through a PuTTY upstream too, in every run")
    config.addinivalue_line("markers", "deadline(seconds): how long the test may take before its mounts are killed")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "tree" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("variants")
        over_putty = metafunc.definition.get_closest_marker("over_putty") is not None
        setups = chosen(marker.args if marker else (PLAIN, MOUNT), over_putty=over_putty)
        metafunc.parametrize("tree", setups, ids=str, indirect=True, scope="module")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Replace mounts that the test before killed; before any fixture looks at what processes there are."""
    for trees in _session:
        trees.revive()


@pytest.fixture(scope="session")
def trees(shared_master: Master, shared_upstream: Upstream, shared_putty: PuttyUpstream) -> Iterator[Trees]:
    """The factory of trees, with the guard process."""
    made = Trees(shared_master, shared_upstream, shared_putty)
    _session.append(made)
    yield made
    _session.remove(made)
    made.close()


@pytest.fixture(scope="module")
def tree(trees: Trees, request: pytest.FixtureRequest) -> Iterator[Tree]:
    """The tree of this module's variant."""
    made = trees.start(request.param)
    yield made
    trees.stop(made)


@pytest.fixture(autouse=True)
def guarded(trees: Trees, log_watch: object, request: pytest.FixtureRequest) -> Iterator[None]:
    """The clock of this test."""
    marker = request.node.get_closest_marker("deadline")
    with trees.guarded(marker.args[0] if marker else DEADLINE_S):
        yield


@dataclass(frozen=True, slots=True)
class Area:
    """A directory of one test's own: `here` in the tree, `there` on the server's side."""

    tree: Tree
    here: Path
    there: Path

    def differs(self, difference: Difference) -> bool:
        """Whether the tree may differ from a local file system in that."""
        return self.tree.differs(difference)


@pytest.fixture
def area(tree: Tree, guarded: None, request: pytest.FixtureRequest) -> Area:
    """An empty directory for this test, made by the server, so that the tree knows nothing of it yet.

    One that is made through a mount is known to be empty: what the server puts there is seen when that has grown old.
    """
    name = f"{next(tree.counter)}-" + re.sub(r"\W", "-", request.node.originalname)[:40]
    _await_new_names(tree, f"{name}.new")
    (tree.served / name).mkdir()
    return Area(tree, tree.path / name, tree.served / name)


def _await_new_names(tree: Tree, name: str) -> None:
    """Return when the tree shows what the server has just made. For a moment it does not, if somebody outside the tests
    has listed all that is mounted (a search of the whole machine)."""
    (tree.served / name).touch()
    wait_until((tree.path / name).exists, "the tree to show a new name")
    (tree.served / name).unlink()


@pytest.fixture
def start(trees: Trees, guarded: None) -> Iterator[Callable[..., Tree]]:
    """`start(setup, served=None)`: one more tree, for this test only."""
    made: list[Tree] = []

    def one_more(setup: Setup, served: Path | None = None) -> Tree:
        made.append(trees.start(setup, served))
        return made[-1]

    yield one_more
    for tree in made:
        trees.stop(tree)
