"""The guard itself: a mount that does not answer is ended, and whoever waited for it goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.support import mounts
from tests.support.waiting import wait_until
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.trees import MOUNT, Guard, Tree


@pytest.mark.parametrize("by", ["its deadline", "the end of the tests"])
def test_a_mount_that_hangs(start: Callable[..., Tree], by: str) -> None:
    tree = start(MOUNT)
    assert tree.mount is not None
    guard = Guard()
    try:
        guard.tell("watch", tree.mount.pid, str(tree.path))
        tree.mount.send_signal(signal.SIGSTOP)
        if by == "its deadline":
            guard.tell("arm", 0.5)
            assert errno_of(os.stat, tree.path / "name") in ("ENOTCONN", "ECONNABORTED")
            assert guard.disarm()
    finally:
        guard.close()
    wait_until(lambda: not tree.alive, "the mount's process has ended")
    assert mounts.mounted_at(tree.path) is None


def test_a_mount_that_answers(start: Callable[..., Tree]) -> None:
    tree = start(MOUNT)
    assert tree.mount is not None
    guard = Guard()
    guard.tell("watch", tree.mount.pid, str(tree.path))
    guard.tell("arm", 60)
    assert os.listdir(tree.path) == []
    assert not guard.disarm()
    guard.tell("unwatch", str(tree.path))
    guard.close()
    assert tree.alive
    assert mounts.mounted_at(tree.path) is not None
