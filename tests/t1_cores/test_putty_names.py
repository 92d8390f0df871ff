"""PuTTY's names, directories, salt and lock, in a directory of our own."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

from mux.errors import ExitCode, JoinError
from mux.rendezvous import putty
from mux.rendezvous.putty import NotThere, Patience
from mux.rendezvous.sockets import Found
from mux.rendezvous.target import Target
from tests.support import mounts, processes

NAME = "me@box:2222"
GREETING = b"SSHCONNECTION@putty.projects.tartarus.org-2.0-OpenSSH_9.2p1\r\n"


def target(typed: str, user: str, hostname: str, port: int) -> Target:
    return Target(typed, user, hostname, port, None, "", MappingProxyType({}))


@pytest.fixture
def parent() -> Iterator[str]:
    """A short one, in place of /tmp/putty-connshare.USER."""
    directory = processes.make_directory()
    yield str(directory)
    mounts.remove_tree(directory)


@contextmanager
def listening(path: str, backlog: int = 8) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(backlog)
        yield listener
    os.unlink(path)


@pytest.fixture
def place(parent: str) -> str:
    """The directory of NAME, made."""
    putty.make_salt(parent)
    directory = putty.directory_of(NAME, parent)
    putty.make_directory(directory)
    return directory


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "user", "port", "name"),
    [
        ("box", "me", 2222, "me@box:2222"),
        ("box", "me", 22, "me@box"),
        ("Box.Example", None, 22, "Box.Example"),
        ("127.0.0.1", None, 2222, "127.0.0.1:2222"),
        ("[::1]", "me", 22, "me@::1"),
        ("::1", "me", 2222, "me@::1:2222"),
        ("[box]", "me", 22, "me@[box]"),
        ("box", "me@work", 22, "me@work@box"),
    ],
)
def test_names(host: str, user: str | None, port: int, name: str) -> None:
    assert putty.connection_name(host, user, port) == name


def test_candidates_as_typed_then_as_resolved() -> None:
    assert putty.candidates(target("box", "somebody", "10.0.0.1", 2222)) == (
        "somebody@box:2222",
        "somebody@10.0.0.1:2222",
    )
    assert putty.candidates(target("box", "somebody", "box", 22)) == ("somebody@box",)


def test_a_name_without_a_user_is_for_who_asks_for_himself() -> None:
    me = putty.local_user()
    assert putty.candidates(target("box", me, "10.0.0.1", 22)) == (f"{me}@box", f"{me}@10.0.0.1", "box", "10.0.0.1")


def test_the_hash() -> None:
    # By sha256sum: 00000040, the bytes 0 to 63, 00000013, the name.
    assert putty.hashed(bytes(range(64)), "root@127.0.0.1:2222") == (
        "1a5402a9cb04d19c80865ad7f7d75488620a33de17e391d3544377329f41ee6b"
    )


# -- directories ------------------------------------------------------------------------------------------------------


def test_nothing_is_made_by_looking(parent: str) -> None:
    for missing in (os.path.join(parent, "nowhere"), parent):
        assert putty.probe(NAME, parent=missing).found is Found.ABSENT
    with pytest.raises(NotThere):
        putty.read_salt(parent)
    putty.make_salt(parent)
    assert putty.probe(NAME, parent=parent).found is Found.ABSENT
    assert os.listdir(parent) == ["salt"]


def test_a_new_directory_and_salt(parent: str) -> None:
    inner = os.path.join(parent, "inner")
    putty.make_directory(inner)
    putty.make_directory(inner)
    salt = putty.make_salt(inner)
    assert len(salt) == 64
    assert putty.make_salt(inner) == putty.read_salt(inner) == salt
    assert os.stat(inner).st_mode & 0o777 == 0o700
    assert os.stat(os.path.join(inner, "salt")).st_mode & 0o777 == 0o400
    assert os.listdir(inner) == ["salt"]


def test_a_salt_is_never_replaced_and_its_first_64_bytes_count(parent: str) -> None:
    Path(parent, "salt").write_bytes(bytes(range(100)))
    assert putty.make_salt(parent) == bytes(range(64))
    Path(parent, "salt").write_bytes(bytes(63))
    with pytest.raises(JoinError, match="less than 64 bytes"):
        putty.make_salt(parent)
    assert putty.probe(NAME, parent=parent).found is Found.UNSAFE


def test_many_who_make_a_salt_make_one(parent: str) -> None:
    Path(parent, f"salt.tmp.{os.getpid()}.0").touch()  # left behind by another process of this pid
    together = threading.Barrier(8)
    made: list[bytes] = []

    def make() -> None:
        together.wait()
        made.append(putty.make_salt(parent))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [putty.read_salt(parent)] * 8
    assert sorted(os.listdir(parent)) == ["salt", f"salt.tmp.{os.getpid()}.0"]


@pytest.mark.parametrize("inner", [False, True])
def test_a_directory_open_to_others_is_not_used(place: str, parent: str, inner: bool) -> None:
    with listening(os.path.join(place, "socket")):
        for mode in (0o701, 0o710, 0o755, 0o777):
            os.chmod(place if inner else parent, mode)
            probe = putty.probe(NAME, parent=parent)
            assert probe.found is Found.UNSAFE
            assert f"mode {mode:o}, and PuTTY wants 700" in probe.detail
            with pytest.raises(JoinError) as refused:
                putty.make_directory(place if inner else parent)
            assert refused.value.exit_code is ExitCode.UNSAFE_SOCKET
    os.chmod(parent, 0o700)


def test_a_directory_of_somebody_else_is_not_used(place: str) -> None:
    if os.getuid() == 0:
        os.chown(place, 65534, 65534)
    theirs = place if os.getuid() == 0 else "/"
    with pytest.raises(JoinError, match=f"belongs to user {os.stat(theirs).st_uid}, and you are {os.getuid()}"):
        putty.check_directory(theirs)


def test_a_file_in_place_of_a_directory(parent: str) -> None:
    file = os.path.join(parent, "file")
    Path(file).touch(0o600)
    with pytest.raises(JoinError, match="not a directory"):
        putty.check_directory(file)


def test_a_path_that_is_too_long(parent: str) -> None:
    deep = os.path.join(parent, "x" * 60)
    putty.make_directory(deep)
    putty.make_salt(deep)
    assert "can have 107" in putty.probe(NAME, parent=deep).detail


# -- the lock ---------------------------------------------------------------------------------------------------------


def test_the_lock_is_putty_s(place: str) -> None:
    with pytest.raises(NotThere), putty.deciding(place):
        pass
    with putty.deciding(place, create=True):
        assert os.stat(os.path.join(place, "lock")).st_mode & 0o777 == 0o600
        other = os.open(os.path.join(place, "lock"), os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(TimeoutError, match="does not go on"), putty.deciding(place, deadline_s=0.05):
        pass
    os.close(other)
    with putty.deciding(place):
        pass


def test_a_directory_that_goes_while_its_lock_is_waited_for_is_made_again(place: str) -> None:
    """As by an upstream that ends: it removes lock and directory without taking the lock."""
    holder = os.open(os.path.join(place, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(holder, fcntl.LOCK_EX)
    held = threading.Event()

    def decide() -> None:
        with putty.deciding(place, create=True, deadline_s=60):
            assert os.listdir(place) == ["lock"]
            held.set()

    thread = threading.Thread(target=decide)
    thread.start()
    os.unlink(os.path.join(place, "lock"))
    os.rmdir(place)
    os.close(holder)
    thread.join(60)
    assert held.is_set()


def test_a_decision_of_another_is_waited_for(place: str, parent: str) -> None:
    """Between unlink and bind of a PuTTY that starts there is no socket, and its lock is held."""
    path = os.path.join(place, "socket")
    lock = os.open(os.path.join(place, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(path)
    found: list[Found] = []
    thread = threading.Thread(target=lambda: found.append(putty.probe(NAME, parent=parent).found))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    os.unlink(path)
    with listening(path) as listener:
        os.close(lock)
        accepted = listener.accept()[0]
        accepted.sendall(GREETING)
        thread.join(60)
        accepted.close()
    assert found == [Found.LIVE]


# -- what is there ----------------------------------------------------------------------------------------------------


def test_left_over_and_not_removed(place: str, parent: str) -> None:
    path = os.path.join(place, "socket")
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(path)
    before = os.lstat(path)
    for with_lock in (False, True):
        if with_lock:
            Path(place, "lock").touch(0o600)
        probe = putty.probe(NAME, parent=parent)
        assert (probe.found, probe.path) == (Found.STALE, path)
    assert os.lstat(path) == before
    assert putty.existing(parent) == [path]


def test_no_socket_at_all(place: str, parent: str) -> None:
    assert putty.probe(NAME, parent=parent).found is Found.ABSENT
    assert putty.existing(parent) == []
    Path(place, "socket").touch()
    assert putty.probe(NAME, parent=parent).found is Found.NOT_A_SOCKET


def test_a_full_queue_is_not_absence(place: str, parent: str) -> None:
    path = os.path.join(place, "socket")
    with listening(path, backlog=0), socket.socket(socket.AF_UNIX) as first:
        first.connect(path)
        before = os.lstat(path)
        with pytest.raises(TimeoutError, match="is full"):
            putty.connect(path, deadline_s=0.1)
        assert os.lstat(path) == before


def test_a_full_queue_is_asked_again(place: str, parent: str) -> None:
    path = os.path.join(place, "socket")
    with listening(path, backlog=0) as listener, socket.socket(socket.AF_UNIX) as first:
        first.connect(path)
        found: list[Found] = []
        thread = threading.Thread(target=lambda: found.append(putty.probe(NAME, parent=parent).found))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        for _ in range(2):
            accepted = listener.accept()[0]
            accepted.sendall(GREETING)
            accepted.close()
        thread.join(60)
    assert found == [Found.LIVE]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (GREETING, Found.LIVE),
        (b"junk\r\n" + GREETING, Found.LIVE),
        (b"", Found.ABSENT),
        (b"half a line", Found.ABSENT),
        (GREETING.replace(b"2.0", b"1.5"), Found.NOT_A_MASTER),
        (b"x" * 20000, Found.NOT_A_MASTER),
    ],
)
def test_by_its_first_line(place: str, parent: str, answer: bytes, found: Found) -> None:
    with listening(os.path.join(place, "socket")) as listener:
        probes = []
        thread = threading.Thread(target=lambda: probes.append(putty.probe(NAME, parent=parent)))
        thread.start()
        accepted = listener.accept()[0]
        accepted.sendall(answer)
        accepted.shutdown(socket.SHUT_WR)
        thread.join(60)
        assert accepted.recv(100) == b""  # as `plink -shareexists`: nothing is said
        accepted.close()
    assert probes[0].found is found
    assert probes[0].pid == (os.getpid() if found is Found.LIVE else None)


def test_one_that_does_not_log_in_is_told_and_given_up(place: str, parent: str) -> None:
    told: list[str] = []
    with listening(os.path.join(place, "socket")):
        probe = putty.probe(NAME, Patience(0.1, told.append, 0.05), parent=parent)
        assert putty.probe(NAME, Patience(0.05), parent=parent).found is Found.FROZEN
    assert probe.found is Found.FROZEN
    assert "has not logged in yet" in probe.detail
    assert told == [f"waiting for the PuTTY upstream to log in (process {os.getpid()})"]


def test_the_first_live_one_of_several(parent: str, place: str) -> None:
    with listening(os.path.join(place, "socket")) as listener:

        def answer() -> None:
            with listener.accept()[0] as accepted:
                accepted.sendall(GREETING)

        answers = threading.Thread(target=answer)
        answers.start()
        probes = putty.look(["other", NAME, "third"], parent=parent)
        answers.join()
    assert [probe.found for probe in probes] == [Found.ABSENT, Found.LIVE]
