"""The control path itself: who may have it, what lies there already, how long it may be, who may come in."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd
from tests.support.upstream import SSHMUX, Upstream, sshmux
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import DEADLINE_S, SSH_FAILED, Clients, ended, line_of
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.raw import run

# 108 bytes of sun_path, with a temporary name of 17 more beside it, and the byte that ends it (unix(7); mux.c).
LONGEST_PATH_BYTES = 90
LONGEST_ADDRESS_BYTES = 107


def start(sshd: Sshd, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`sshmux start ... box`, to its end."""
    return sshmux("start", "-F", str(sshd.ssh_config), *arguments, HOST, env=sshd.environment())


def logins(sshd: Sshd) -> int:
    """How many got in."""
    return sshd.log_text().count("Accepted publickey for")


def owner(sshd: Sshd, path: str | Path) -> int | None:
    """The pid of whoever answers at `path`."""
    said = sshd.ssh("-S", str(path), "-O", "check", HOST, check=False).stderr
    match = re.match(r"Master running \(pid=(\d+)\)", said)
    return int(match[1]) if match else None


@pytest.fixture
def fresh(make_sshd: Callable[..., Sshd]) -> Iterator[Sshd]:
    """A server of this test's own; whatever is started on it is ended by `ssh -O exit` at every path it has."""
    sshd = make_sshd()
    yield sshd
    for path in [*sshd.control_dir.iterdir(), *sshd.runtime_dir.rglob("*")]:
        pid = owner(sshd, path) if path.is_socket() else None
        if pid is not None:
            holder = processes.known(pid)
            sshd.ssh("-S", str(path), "-O", "exit", HOST, check=False)
            processes.wait_ended([holder], DEADLINE_S)
            processes.reap(pid)


def stale_socket(path: Path) -> None:
    """As a killed holder leaves it."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_44_client_with_control_master_auto(clients: Clients, holder: Master) -> None:
    """It joins, and leaves the socket where it is."""
    before = os.stat(holder.control_path).st_ino
    for _ in range(3):
        assert clients.ssh("-oControlMaster=auto", HOST, "exit 3").returncode == 3
    assert os.stat(holder.control_path).st_ino == before
    assert clients.ssh(HOST, "exit 3").returncode == 3


def test_44_client_that_would_be_master(holder: Master, server: Sshd) -> None:
    """It says that the path is taken, and works without it."""
    before = os.stat(holder.control_path).st_ino
    done = server.ssh("-M", "-S", holder.control_path, HOST, "exit 5", check=False)
    assert done.returncode == 5
    assert f"ControlSocket {holder.control_path} already exists, disabling multiplexing" in done.stderr
    assert os.stat(holder.control_path).st_ino == before
    assert run(holder.control_path) == 3


def test_56_clients_that_would_persist(clients: Clients, holder: Master, server: Sshd) -> None:
    """As ansible and autossh call ssh: each joins, and there is one connection all the time."""
    before = logins(server)
    options = ("-oControlMaster=auto", "-oControlPersist=60s")
    threads = [threading.Thread(target=lambda: clients.ssh(*options, HOST, "true")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    for number in range(5):
        assert clients.ssh(*options, HOST, f"exit {number}").returncode == number
    assert owner(server, holder.control_path) == holder.pid
    assert logins(server) == before


@ours_only
def test_45_stale_socket_is_replaced(fresh: Sshd, make_holder: Callable[..., Master]) -> None:
    path = fresh.control_dir / "stale"
    stale_socket(path)
    assert Clients.of(make_holder(fresh, control_path=path)).ssh(HOST, "exit 3").returncode == 3


@ours_only
def test_45_live_master_is_joined(fresh: Sshd, make_master: Callable[..., Master]) -> None:
    """A real one: it is not touched, and ours is not needed."""
    master = make_master(fresh)
    before = os.stat(master.control_path).st_ino
    done = start(fresh)
    assert done.returncode == 0, done.stderr
    assert os.stat(master.control_path).st_ino == before
    assert owner(fresh, master.control_path) == master.pid
    assert logins(fresh) == 1


@ours_only
def test_45_frozen_master_is_left_alone(fresh: Sshd, make_master: Callable[..., Master]) -> None:
    """It is named, and another path is used; when it goes on, it is as before."""
    master = make_master(fresh)
    before = os.stat(master.control_path).st_ino
    master.freeze()
    try:
        done = start(fresh)
        assert done.returncode == 0, done.stderr
        assert master.control_path in done.stderr
        with pytest.raises(subprocess.TimeoutExpired):
            fresh.ssh("-S", master.control_path, "-O", "check", HOST, timeout_s=0.3)
    finally:
        master.thaw()
    assert os.stat(master.control_path).st_ino == before
    assert owner(fresh, master.control_path) == master.pid


@ours_only
@pytest.mark.parametrize("what", ["file", "directory", "link", "pipe"])
def test_45_something_else_is_left_alone(fresh: Sshd, what: str) -> None:
    """Neither removed nor opened; it is said before any login."""
    path = fresh.control_dir / "taken"
    make: dict[str, Callable[[], object]] = {
        "file": lambda: path.write_text("precious"),
        "directory": path.mkdir,
        "link": lambda: path.symlink_to(fresh.directory / "known_hosts"),
        "pipe": lambda: os.mkfifo(path),
    }
    make[what]()
    before = os.lstat(path)
    done = start(fresh, "-S", str(path))
    assert done.returncode != 0
    assert str(path) in done.stderr
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert logins(fresh) == 0
    if what == "directory":
        path.rmdir()
    else:
        path.unlink()


@ours_only
def test_46_many_starts_at_once(fresh: Sshd) -> None:
    """One owner, one login, and nobody fails."""
    command = [*SSHMUX, "start", "-F", str(fresh.ssh_config), HOST]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [
        subprocess.Popen(command, env=fresh.environment(), start_new_session=True, **quiet)  # type: ignore[call-overload]
        for _ in range(8)
    ]
    said = [process.communicate(timeout=4 * DEADLINE_S)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), said
    assert logins(fresh) == 1
    assert len([path for path in fresh.control_dir.iterdir() if path.is_socket()]) == 1


@ours_only
def test_46_starts_beside_real_masters(fresh: Sshd) -> None:
    """Whoever is first has the path; ours join the winner, real masters that lost serve themselves alone."""
    path = str(next(iter(_control_path(fresh))))
    ours = [*SSHMUX, "start", "-F", str(fresh.ssh_config), HOST]
    theirs = ["ssh", "-F", str(fresh.ssh_config), "-M", "-N", "-S", path, HOST]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    running = {
        number: subprocess.Popen(command, env=fresh.environment(), start_new_session=True, **quiet)  # type: ignore[call-overload]
        for number, command in enumerate([ours, theirs] * 3)
    }
    try:
        for number in (0, 2, 4):
            said = running[number].communicate(timeout=4 * DEADLINE_S)[1]
            assert running[number].returncode == 0, said
        pid = owner(fresh, path)
        assert pid is not None
        assert run(path) == 3
        assert owner(fresh, path) == pid
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=DEADLINE_S)


def _control_path(sshd: Sshd) -> Iterator[str]:
    for line in sshd.ssh("-G", HOST).stdout.splitlines():
        if line.startswith("controlpath "):
            yield line.split(" ", 1)[1]


def test_47_nobody_else_may_connect(holder: Master) -> None:
    status = os.stat(holder.control_path)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == os.getuid()


# Connects as another user, to a socket that he may open, and says how it went.
INTRUDER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(60)
    connection.connect(sys.argv[1])
    try:
        connection.sendall(bytes.fromhex("00000008000000010000000400000008100000040000000000"))
        print(len(connection.recv(100)))
    except (ConnectionResetError, BrokenPipeError):
        print(0)
"""


def test_47_another_user_is_refused(kind: str, make_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    """By the modes, whatever the umask; and even where these let him in: what counts is who he is.

    Only root can be another user. For everybody else the modes have to do here, and that it looks who comes is shown in
    tests/t2_upstream/test_clients_hostile.py.
    """
    sshd = make_sshd()
    makers: dict[str, type[Master]] = {"openssh": Master, "ours": Upstream}
    usual = os.umask(0)
    try:
        holder = makers[kind](sshd, control_path=sshd.control_dir / "own")
    finally:
        os.umask(usual)
    with holder:
        assert stat.S_IMODE(os.stat(holder.control_path).st_mode) == 0o600
        if os.getuid() == 0:
            for path in (sshd.directory, sshd.control_dir):
                path.chmod(0o711)
            os.chmod(holder.control_path, 0o666)
            command = [sys.executable, "-I", "-c", INTRUDER, holder.control_path]
            done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, text=True)
            assert done.returncode == 0, done.stderr
            # A greeting at the most; no answer to a request.
            assert int(done.stdout) == 0
        assert run(holder.control_path) == 3


def path_of(sshd: Sshd, size_bytes: int) -> str:
    stem = f"{sshd.control_dir}/"
    return stem + "p" * (size_bytes - len(stem))


def test_48_longest_path(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> None:
    sshd = make_sshd()
    holder = make_holder(sshd, control_path=path_of(sshd, LONGEST_PATH_BYTES))
    assert Clients.of(holder).ssh(HOST, "exit 3").returncode == 3


@ours_only
@pytest.mark.parametrize("size_bytes", [LONGEST_PATH_BYTES + 1, LONGEST_ADDRESS_BYTES, LONGEST_ADDRESS_BYTES + 1, 300])
def test_48_path_too_long(fresh: Sshd, size_bytes: int) -> None:
    """It is said before any login, with the path."""
    path = path_of(fresh, size_bytes)
    done = start(fresh, "-S", path)
    assert done.returncode != 0
    assert path[:60] in done.stderr
    assert logins(fresh) == 0
    assert not list(fresh.control_dir.iterdir())


@ours_only
def test_48_short_path_where_it_is_ours_to_choose(fresh: Sshd) -> None:
    """With none configured, and a deep runtime directory, a path that fits is found."""
    deep = fresh.runtime_dir / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True, mode=0o700)
    config = fresh.directory / "no_control_path"
    lines = fresh.ssh_config.read_text().splitlines()
    config.write_text("\n".join(line for line in lines if "ControlPath" not in line) + "\n")
    env = {**fresh.environment(), "XDG_RUNTIME_DIR": str(deep)}
    done = sshmux("start", "-F", str(config), HOST, env=env)
    assert done.returncode == 0, done.stderr
    try:
        done = sshmux("check", "-F", str(config), HOST, env=env)
        assert done.returncode == 0, done.stderr
    finally:
        done = sshmux("exit", "--now", "-F", str(config), HOST, env=env)
        assert done.returncode == 0, done.stderr


@ours_only
def test_48_directory_that_is_not_there(fresh: Sshd) -> None:
    done = start(fresh, "-S", str(fresh.control_dir / "missing" / "path"))
    assert done.returncode != 0
    assert "missing" in done.stderr
    assert logins(fresh) == 0


@ours_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_51_ended_by_a_signal(fresh: Sshd, make_holder: Callable[..., Master], number: signal.Signals) -> None:
    """Clients know at once, and the socket is gone."""
    holder = make_holder(fresh)
    with Clients.of(holder).started(HOST, "echo ready; cat") as process:
        assert line_of(process) == b"ready"
        os.kill(holder.pid, number)
        assert ended(process) == SSH_FAILED
    wait_until(lambda: not holder.running, "it has ended")
    assert not os.path.lexists(holder.control_path)
    wait_until(lambda: not fresh.sessions(), "the server has nobody any more")


@ours_only
def test_51_only_its_own_socket_is_removed(fresh: Sshd, make_holder: Callable[..., Master]) -> None:
    """The path was taken over meanwhile: the end of the first leaves the second's socket. A real master takes it."""
    first = make_holder(fresh)
    os.unlink(first.control_path)
    second = make_holder(fresh, control_path=first.control_path)
    os.kill(first.pid, signal.SIGTERM)
    wait_until(lambda: not first.running, "the first has ended")
    assert run(second.control_path) == 3


@ours_only
def test_51_file_in_the_place_of_the_socket_is_not_removed(fresh: Sshd, make_holder: Callable[..., Master]) -> None:
    holder = make_holder(fresh)
    path = Path(holder.control_path)
    path.unlink()
    path.write_text("precious")
    os.kill(holder.pid, signal.SIGTERM)
    wait_until(lambda: not holder.running, "it has ended")
    assert path.read_text() == "precious"
