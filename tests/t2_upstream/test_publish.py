"""Taking a control path, giving it back, the lock beside it, and everything that can be in the way."""

from __future__ import annotations

import itertools
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from mux.errors import ExitCode, JoinError
from mux.rendezvous import publish as publishing
from mux.rendezvous.publish import Lock, Taken, lock_holder, private_path, publish, rehearse, remove_stale
from mux.rendezvous.target import own_directories
from tests.support import mounts, processes

DEADLINE_S = 60.0


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short name, and nothing in it when a test ends."""
    path = processes.make_directory()
    yield path
    left = os.listdir(path)
    mounts.remove_tree(path)
    assert not left


def stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        one.listen()


def test_it_appears_complete_and_goes(directory: Path) -> None:
    path = directory / "c"
    place = publish(str(path))
    found = os.lstat(path)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert os.listdir(directory) == ["c"]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    place.withdraw()
    place.withdraw()
    place.listener.close()


def test_the_mode_does_not_depend_on_the_umask(directory: Path) -> None:
    before = os.umask(0)
    try:
        place = publish(str(directory / "c"))
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(directory / "c").st_mode) == 0o600
    place.withdraw()
    place.listener.close()


@pytest.mark.parametrize("kind", ["socket", "stale", "file", "directory", "link", "broken link"])
def test_whatever_is_there_stays(directory: Path, kind: str) -> None:
    path = directory / "c"
    place = None
    if kind == "socket":
        place = publish(str(path))
    elif kind == "stale":
        stale_socket(path)
    elif kind == "file":
        path.write_text("x")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/null" if kind == "link" else "nothing")
    before = os.lstat(path)
    with pytest.raises(Taken, match="already") as caught:
        publish(str(path))
    assert caught.value.exit_code is ExitCode.UNSAFE_SOCKET
    assert os.path.samestat(os.lstat(path), before)
    assert os.listdir(directory) == ["c"]
    if place is not None:
        place.withdraw()
        place.listener.close()
    elif kind == "directory":
        path.rmdir()
    else:
        path.unlink()


def test_only_our_own_inode_is_withdrawn(directory: Path) -> None:
    path = str(directory / "c")
    ours = publish(path)
    os.unlink(path)
    theirs = publish(path)
    assert not ours.is_there()
    ours.withdraw()
    ours.listener.close()
    assert theirs.is_there()
    theirs.withdraw()
    theirs.listener.close()


def test_the_longest_path(directory: Path) -> None:
    longest = str(directory) + "/" + "x" * (90 - len(str(directory)) - 1)
    rehearse(longest)
    place = publish(longest)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(longest)
    place.withdraw()
    place.listener.close()
    for attempt in (rehearse, publish):
        with pytest.raises(JoinError, match=r"has 91 bytes, and to be shared at it can have 90") as caught:
            attempt(longest + "x")
        assert caught.value.exit_code is ExitCode.UNSAFE_SOCKET
        assert "%C" in caught.value.hint


def test_a_rehearsal_leaves_nothing_and_needs_no_room(directory: Path) -> None:
    (directory / "c").write_text("in the way")
    rehearse(str(directory / "c"))
    assert os.listdir(directory) == ["c"]
    (directory / "c").unlink()


def test_an_interrupt_leaves_nothing_wherever_it_comes(directory: Path) -> None:
    """After each call into the system, which is where Python takes notice of Ctrl-C."""
    for calls in itertools.count(1):
        left = calls

        def interrupt(_: FrameType, event: str, __: object) -> None:
            nonlocal left
            left -= event == "c_return"
            if not left:
                sys.setprofile(None)
                raise KeyboardInterrupt

        sys.setprofile(interrupt)
        try:
            rehearse(str(directory / "c"))
        except KeyboardInterrupt:
            pass
        else:
            assert calls > 8  # to make, bind, open up, listen, link, close; to remove two names
            break
        finally:
            sys.setprofile(None)
        assert os.listdir(directory) == []


def test_no_directory(directory: Path) -> None:
    for attempt in (rehearse, publish):
        with pytest.raises(JoinError, match="No such file") as caught:
            attempt(str(directory / "none" / "c"))
        assert f"mkdir -p -m 700 {directory}/none" in caught.value.hint


def test_a_directory_that_is_none(directory: Path) -> None:
    file = directory / "file"
    file.touch()
    for attempt in (rehearse, publish):
        with pytest.raises(JoinError, match="Not a directory"):
            attempt(str(file / "c"))
    file.unlink()


def test_a_file_system_without_sockets() -> None:
    with pytest.raises(JoinError, match="no socket can be made at /proc/self/c"):
        rehearse("/proc/self/c")


# -- what is left over ------------------------------------------------------------------------------------------------


def test_what_is_left_over_goes(directory: Path) -> None:
    stale_socket(directory / "c")
    assert remove_stale(str(directory / "c"))
    assert not remove_stale(str(directory / "c"))


def test_what_is_not_left_over_stays(directory: Path) -> None:
    alive = publish(str(directory / "alive"))
    full = publish(str(directory / "full"))
    full.listener.listen(0)
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(3)]
    for client in clients:
        try:
            client.connect(full.path)
        except BlockingIOError:
            pass
    (directory / "file").write_text("x")
    (directory / "link").symlink_to(directory / "stale")
    stale_socket(directory / "stale")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(directory / "datagrams"))
        for name in ("alive", "full", "file", "link", "datagrams"):
            assert not remove_stale(str(directory / name)), name
    assert sorted(os.listdir(directory)) == ["alive", "datagrams", "file", "full", "link", "stale"]
    for client in clients:
        client.close()
    for place in (alive, full):
        place.withdraw()
        place.listener.close()
    for name in ("file", "link", "datagrams", "stale"):
        (directory / name).unlink()


@pytest.mark.parametrize("replacement", ["socket", "file"])
def test_what_changes_while_it_is_looked_at_stays(
    directory: Path, monkeypatch: pytest.MonkeyPatch, replacement: str
) -> None:
    path = directory / "c"
    stale_socket(path)
    refuses = publishing._refuses

    def replaced(asked: str) -> bool:
        answer = refuses(asked)
        path.unlink()
        if replacement == "socket":
            stale_socket(path)
        else:
            path.write_text("x")
        return answer

    monkeypatch.setattr(publishing, "_refuses", replaced)
    assert not remove_stale(str(path))
    path.unlink()


# -- the lock ---------------------------------------------------------------------------------------------------------


def test_one_at_a_time(directory: Path) -> None:
    path = str(directory / "c")
    lock = Lock.take(path, wait=False)
    assert lock is not None
    assert lock_holder(path) == os.getpid()
    assert Lock.take(path, wait=False) is None
    lock.release()
    lock.release()
    assert lock_holder(path) is None
    again = Lock.take(path, wait=False)
    assert again is not None
    again.release()


def test_who_waits_gets_a_lock_that_has_its_name(directory: Path) -> None:
    """Of many who wait each gets it, and never two at once, though every holder removes the file."""
    path = str(directory / "c")
    first = Lock.take(path, wait=False)
    assert first is not None
    holders: list[int] = []
    most: list[int] = []

    def hold(number: int) -> None:
        lock = Lock.take(path, wait=True)
        assert lock is not None
        holders.append(number)
        most.append(len(holders))
        assert Lock.take(path, wait=False) is None
        holders.remove(number)
        lock.release()

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    first.release()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert most == [1] * 12


def test_a_process_started_with_the_lock_holds_it_too(directory: Path) -> None:
    path = str(directory / "c")
    lock = Lock.take(path, wait=False)
    assert lock is not None
    handed = Lock.of(path, os.dup(lock.descriptor))
    os.close(lock.descriptor)
    assert Lock.take(path, wait=False) is None
    handed.release()


def test_a_lock_file_that_was_left_behind_is_used(directory: Path) -> None:
    (directory / "c.lock").write_text("999999999")
    lock = Lock.take(str(directory / "c"), wait=False)
    assert lock is not None
    lock.release()


@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_something_in_the_way_of_the_lock(directory: Path, kind: str) -> None:
    path = directory / "c.lock"
    if kind == "link":
        path.symlink_to(directory / "elsewhere")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(JoinError) as caught:
        Lock.take(str(directory / "c"), wait=True)
    assert caught.value.exit_code is ExitCode.UNSAFE_SOCKET
    path.rmdir() if kind == "directory" else path.unlink()


def test_no_directory_for_the_lock(directory: Path) -> None:
    with pytest.raises(JoinError) as caught:
        Lock.take(str(directory / "none" / "c"), wait=False)
    assert "mkdir -p -m 700" in caught.value.hint


# -- private places ---------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = processes.make_directory()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    yield path
    mounts.remove_tree(path)


def test_a_private_place_is_made_and_goes(runtime: Path) -> None:
    path = private_path()
    directory = Path(path).parent
    assert directory.parent == runtime / "sshmux"
    assert [stat.S_IMODE(os.lstat(one).st_mode) for one in (directory, directory.parent)] == [0o700, 0o700]
    assert private_path() != path
    place = publish(path, private=True)
    place.withdraw()
    place.listener.close()
    assert not directory.exists()


def test_old_private_places_are_swept(runtime: Path) -> None:
    old, used, young = (Path(private_path()) for _ in range(3))
    stale_socket(old)
    place = publish(str(used), private=True)
    for path in (old, used):
        os.utime(path.parent, (0, 0))
    private_path()
    assert not old.parent.exists()
    assert used.exists()
    assert young.parent.exists()
    place.withdraw()
    place.listener.close()


def test_a_directory_of_ours_that_others_can_write_to_is_not_used(runtime: Path) -> None:
    (runtime / "sshmux").mkdir()
    (runtime / "sshmux").chmod(0o777)
    with pytest.raises(JoinError, match="not a directory of yours alone") as caught:
        private_path()
    assert caught.value.exit_code is ExitCode.UNSAFE_SOCKET


def test_a_runtime_directory_with_a_long_name(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = runtime / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert own_directories() == (f"{long}/sshmux", f"/tmp/sshmux-{os.geteuid()}")
