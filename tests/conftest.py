"""Fixtures for every level: servers, masters, mounts, and the checks that run around each test.

Scopes: `sshd` and the `shared_*` connections to it live for the whole run; `master`, `mount` and the `make_*`
factories for one test. A test that stops, kills or reconfigures something takes its own from a factory. Fixtures of the
run are to be named
in the test's own arguments (or those of its fixtures): one that is first asked for in the middle of a test looks like
that test's leak.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import leaks, mounted, mounts, processes
from tests.support.delay_proxy import DelayProxy
from tests.support.logs import LogWatch
from tests.support.master import Master
from tests.support.mounted import Mount
from tests.support.putty import PuttyUpstream
from tests.support.sshd import Sshd
from tests.support.upstream import Upstream

# Time for pytest-timeout to end a test that can be interrupted.
LATE_S = 5.0

# The same examples in every run, however long the machine takes over one (hypothesis gives it 200 ms otherwise).
# `pytest --hypothesis-profile=default` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(f"signal {number}")


def pytest_configure() -> None:
    processes.adopt_orphans()
    # Ended from outside, the run still ends what it started.
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell starts what runs in its background with these ignored, nohup the last, and so would be all that the tests
    # interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def own_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pytest keeps the files of this run."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_of_the_run(own_directory: Path) -> Iterator[None]:
    before = leaks.Snapshot.take(own_directory)
    directory = processes.make_directory()
    runtime_dir = directory / "run"
    runtime_dir.mkdir(mode=0o700)
    saved = dict(os.environ)
    os.environ.clear()
    os.environ.update(processes.environment(runtime_dir))
    yield
    os.environ.clear()
    os.environ.update(saved)
    mounts.remove_tree(directory)
    left = leaks.settle(before, own_directory)
    leaks.clear(before, own_directory)
    assert not left, "the run left behind:\n" + "\n".join(left)


@pytest.fixture(autouse=True)
def _nothing_left(own_directory: Path) -> Iterator[None]:
    before = leaks.Snapshot.take(own_directory)
    yield
    left = leaks.settle(before, own_directory)
    leaks.clear(before, own_directory)
    assert not left, "the test left behind:\n" + "\n".join(left)


@pytest.fixture(autouse=True)
def _freed_when_late(request: pytest.FixtureRequest) -> Iterator[None]:
    """A call that a mount never answers cannot be interrupted: when the test is late its mounts are killed."""
    marker = request.node.get_closest_marker("timeout")
    allowed_s = float(marker.args[0] if marker and marker.args else request.config.getini("timeout"))
    timer = threading.Timer(allowed_s + LATE_S, mounted.kill_all)
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()
    timer.join()


@pytest.fixture(autouse=True)
def log_watch(_nothing_left: None) -> Iterator[LogWatch]:
    """The watch for unexpected warnings around this test."""
    watch = LogWatch.active = LogWatch()
    root = logging.getLogger()
    root.addHandler(watch)
    yield watch
    root.removeHandler(watch)
    LogWatch.active = None
    problems = watch.problems()
    assert not problems, "\n".join(problems)


@pytest.fixture
def expect_log(log_watch: LogWatch) -> Callable[[str], None]:
    """`expect_log(pattern)`: a warning, or a line of a mount's log, that has to come."""
    return log_watch.expect


@pytest.fixture
def allow_log(log_watch: LogWatch) -> Callable[[str], None]:
    """`allow_log(pattern)`: a warning that may come, where timing decides."""
    return log_watch.allow


@pytest.fixture(scope="session")
def sshd() -> Iterator[Sshd]:
    """The server of the whole run; do not stop or kill it."""
    with Sshd(max_sessions=100) as server:
        yield server


@pytest.fixture(scope="session")
def shared_master(sshd: Sshd) -> Iterator[Master]:
    """A master for the whole run, on a control path of its own; do not stop or kill it."""
    with Master(sshd, control_path=sshd.control_dir / "shared") as master:
        yield master


@pytest.fixture(scope="session")
def shared_upstream(sshd: Sshd) -> Iterator[Upstream]:
    """Our own upstream for the whole run, on a control path of its own; do not stop or kill it."""
    with Upstream(sshd, control_path=sshd.control_dir / "upstream") as upstream:
        yield upstream


@pytest.fixture(scope="session")
def shared_putty(sshd: Sshd) -> Iterator[PuttyUpstream]:
    """A `plink -share -N` for the whole run, by a name that no upstream of ours has; do not stop or kill it."""
    with PuttyUpstream(sshd, host="localhost") as upstream:
        yield upstream


@pytest.fixture
def stack(log_watch: LogWatch) -> Iterator[ExitStack]:
    """What is made for one test: it ends in the reverse order of its making, in whatever order fixtures were named."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def remote_dir(stack: ExitStack, sshd: Sshd) -> Path:
    """An empty directory on the server, this test's own."""
    path = tempfile.mkdtemp(dir=sshd.root)
    stack.callback(mounts.remove_tree, path)
    return Path(path)


@pytest.fixture
def master(stack: ExitStack, sshd: Sshd) -> Master:
    """A master of this test's own, at the configured control path."""
    return stack.enter_context(Master(sshd))


@pytest.fixture
def make_sshd(stack: ExitStack) -> Callable[..., Sshd]:
    """`make_sshd(max_sessions=1, ...)`: a server of this test's own, with `Sshd`'s arguments."""
    return lambda **arguments: stack.enter_context(Sshd(**arguments))


@pytest.fixture
def make_master(stack: ExitStack) -> Callable[..., Master]:
    """`make_master(sshd, control_path=..., ...)`: ended with the test, with `Master`'s arguments."""
    return lambda *positional, **arguments: stack.enter_context(Master(*positional, **arguments))


@pytest.fixture
def make_proxy(stack: ExitStack) -> Callable[..., DelayProxy]:
    """`make_proxy(port, one_way_s, ...)`: ended with the test, with `DelayProxy`'s arguments."""
    return lambda *positional, **arguments: stack.enter_context(DelayProxy(*positional, **arguments))


@pytest.fixture
def make_mount(stack: ExitStack, shared_master: Master) -> Callable[..., Mount]:
    """`make_mount(directory, master=..., options=[...], ...)`: with `Mount`'s arguments, unmounted with the test."""

    def make(directory: Path | str, *, master: Master = shared_master, **arguments: Any) -> Mount:
        mount = Mount(master, directory, **arguments)
        stack.callback(lambda: print(f"log of {mount}:\n{mount.log_text()}"))
        return stack.enter_context(mount)

    return make


@pytest.fixture
def mount(make_mount: Callable[..., Mount], remote_dir: Path) -> Mount:
    """`remote_dir` mounted with default options through `shared_master`."""
    return make_mount(remote_dir)
