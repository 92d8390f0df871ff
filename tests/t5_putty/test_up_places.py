"""Where PuTTY's tools find our upstream, and how that place is taken, kept and left (U1-U6, U31, U32, U35, U39)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from mux.errors import JoinError
from mux.rendezvous import putty, putty_socket
from tests.support import processes
from tests.support.putty import remove_directory
from tests.support.sshd import HOST, Sshd, program
from tests.support.upstream import Upstream, sshmux
from tests.t2_upstream.riding import eventually, riding
from tests.t2_upstream.starting import walk
from tests.t5_putty.bare_clients import connected, entries, nothing_logged, putty_path, sharing, works
from tests.t5_putty.riders import ALIASES, Riders
from tests.t5_putty.riders import works as riders_work


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["-P", "22", "me@{host}"], "me@{host}"),
        (["{host}"], "{user}@{host}"),
        (["-P", "2022", "me@{host}"], "me@{host}:2022"),
        (["-P", "2022", "me@[::1:2:{number}]"], "me@::1:2:{number}:2022"),
        (["-P", "2022", "-l", "me", "MiXed.{host}"], "me@MiXed.{host}:2022"),
    ],
)
def test_u1_the_directory_is_the_one_plink_uses(stack: ExitStack, sshd: Sshd, arguments: list[str], name: str) -> None:
    words = {"host": f"u1-{sshd.port}.invalid", "number": f"{sshd.port:x}", "user": putty.local_user()}
    putty.make_directory(putty.parent_directory())
    putty.make_salt(putty.parent_directory())
    directory = putty.directory_of(name.format(**words))
    stack.callback(remove_directory, directory)
    assert not os.path.exists(directory)
    command = [program("plink"), "-batch", "-shareexists", *(one.format(**words) for one in arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, env=Riders(sshd).env)
    assert done.returncode == 1
    assert os.path.isdir(directory)


def test_u1_all_names_of_a_connection(ours: Upstream, riders: Riders) -> None:
    for host in ALIASES:
        assert riders.at(host).exists()
        assert os.path.exists(riders.at(host).path)
    for name in (putty.connection_name(host, None, ours.sshd.port) for host in ALIASES):
        assert os.path.exists(os.path.join(putty.directory_of(name), putty.SOCKET))


def test_u2_what_is_made_and_what_stays(parent: Path) -> None:
    published = putty_socket.publish("me@host:2022")
    with closing(published.listener):
        assert parent.stat().st_mode & 0o7777 == 0o700
        (directory,) = set(entries(parent)) - {"salt"}
        assert entries(parent) == {"salt": 0o400, directory: 0o700}
        salt = (parent / "salt").read_bytes()
        assert len(salt) == 64 and directory == putty.hashed(salt, "me@host:2022")
        assert entries(parent / directory)["lock"] == 0o600 and set(entries(parent / directory)) == {"lock", "socket"}
        published.withdraw()
        published.withdraw()
    assert entries(parent) == {"salt": 0o400}
    with closing(putty_socket.publish("me@host").listener):
        assert (parent / "salt").read_bytes() == salt


def test_u2_of_many_who_come_first_all_have_one_salt(parent: Path) -> None:
    for round_ in range(20):
        directory = parent.parent / str(round_)
        directory.mkdir(mode=0o700)
        barrier = threading.Barrier(8)
        salts: set[bytes] = set()

        def come(directory: Path = directory, barrier: threading.Barrier = barrier, salts: set[bytes] = salts) -> None:
            barrier.wait()
            salts.add(putty.make_salt(str(directory)))

        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(salts) == 1 and entries(directory) == {"salt": 0o400}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda parent: parent.mkdir(mode=0o755), "mode 755"),
        (lambda parent: parent.write_text(""), "not a directory"),
        (lambda parent: (parent.mkdir(mode=0o700), (parent / "salt").write_text("short")), "less than 64 bytes"),
    ],
)
def test_u3_a_place_that_is_not_safe(
    sshd: Sshd, parent: Path, broken: Callable[[Path], object], words: str, stack: ExitStack
) -> None:
    broken(parent)
    before = entries(parent.parent)

    async def main() -> None:
        async with riding(sshd, str(sshd.control_dir / "u3")) as ride:
            (failure,) = await ride.upstream.offer_to_putty(["me@host", "me@other", "host"])
            assert words in failure and str(parent) in failure
            assert (await ride.ssh(HOST, "echo here")).out == b"here\n"
            assert ride.upstream.putty is not None and ride.upstream.putty.published == []

    asyncio.run(main())
    assert entries(parent.parent) == before


def test_u3_a_user_with_a_long_name(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(putty, "PARENT", str(parent.parent / ("x" * 40)) + "{user}")
    with pytest.raises(JoinError, match="can have 107"):
        putty_socket.publish("me@host")
    assert entries(parent.parent) == {}


def test_u3_is_said_in_one_line_and_the_rest_works(
    make_sshd: Callable[..., Sshd], parent: Path, tmp_path: Path
) -> None:
    parent.mkdir(mode=0o755)
    main = tmp_path / "main.py"
    main.write_text(
        f"import sys\nsys.path.insert(0, {str(processes.CHECKOUT)!r})\n"
        "from mux.rendezvous import putty\n"
        f"putty.PARENT = {putty.PARENT!r}\n"
        "from mux.upstream.daemon import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    sshd = make_sshd()
    patched = tmp_path / "sshmux.py"
    patched.write_text(
        f"import sys\nsys.path.insert(0, {str(processes.CHECKOUT)!r})\n"
        "from pathlib import Path\nfrom mux.downstream import start\n"
        f"start._MAIN = Path({str(main)!r})\n"
        "from mux.cli import main\nsys.exit(main())\n"
    )
    path = str(sshd.control_dir / "u3")
    done = subprocess.run(
        [sys.executable, str(patched), "start", "-F", str(sshd.ssh_config), "-S", path, HOST],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=30,
        env=sshd.environment(),
    )
    try:
        assert done.returncode == 0 and done.stdout.startswith("Master started")
        (line,) = done.stderr.splitlines()
        assert line.startswith("sshmux: PuTTY's tools cannot share this connection: ") and "mode 755" in line
        assert sshd.ssh("-S", path, HOST, "echo here").stdout == "here\n"
    finally:
        sshd.ssh("-S", path, "-O", "exit", HOST)


def test_u4_a_hundred_looks_leave_no_trace(sshd: Sshd, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with sharing(sshd) as ride:
            path = putty_path(ride)
            descriptors = len(os.listdir("/proc/self/fd"))
            with nothing_logged(caplog):
                for _ in range(100):
                    async with connected(ride) as raw:
                        raw.socket.close()
                await eventually(lambda: not ride.upstream.clients)
                for _ in range(100):
                    async with connected(ride):
                        pass
                await eventually(lambda: not ride.upstream.clients)
            assert not any((ride.upstream.tally.clients, ride.upstream.tally.dropped, ride.upstream.lifetime.riders))
            assert not ride.upstream.lifetime.rode_once
            assert len(os.listdir("/proc/self/fd")) == descriptors
            assert putty_path(ride) == path and await works(ride)

    asyncio.run(main())


def test_u4_shareexists(riders: Riders, ours: Upstream) -> None:
    before = ours.log_text()
    for _ in range(100):
        assert riders.exists()
    assert riders.exists("-share")
    assert ours.log_text() == before
    assert riders_work(riders)


@pytest.mark.parametrize("end", ["exit", "SIGTERM", "SIGHUP"])
def test_u5_u39_after_an_orderly_end_nothing_is_left(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]], end: str
) -> None:
    upstream, riders = make_ours(make_sshd())
    directories = [putty.directory_of(name) for name in names_of(riders)]
    assert riders.exists() and all(os.path.isdir(directory) for directory in directories)
    salt = Path(putty.parent_directory(), "salt").read_bytes()
    if end == "exit":
        upstream.exit()
    else:
        os.kill(upstream.pid, getattr(signal, end))
        upstream.wait_ended()
    assert not any(os.path.exists(directory) for directory in directories)
    assert Path(putty.parent_directory(), "salt").read_bytes() == salt
    assert not riders.exists()


def names_of(riders: Riders) -> list[str]:
    users = (riders.sshd.user, None)
    return [putty.connection_name(host, user, riders.sshd.port) for user in users for host in ALIASES]


def test_u6_what_a_killed_one_left_is_taken_over(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]]
) -> None:
    first, riders = make_ours(make_sshd())
    first.kill()
    assert riders.published and not riders.exists()
    second, _ = make_ours(riders.sshd, control_path=riders.sshd.control_dir / "second")
    assert riders.exists() and riders_work(riders)
    second.exit()
    assert not riders.published


def test_u31_three_hundred_at_once(sshd: Sshd, ours: Upstream, riders: Riders) -> None:
    before = putty_socket.identity(riders.path)
    with ExitStack() as stack:
        crowd = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(300)]
        for one in crowd:
            one.setblocking(False)
            one.connect(riders.path)  # never EAGAIN: that would have let a PuTTY steal the place
        assert riders_work(riders)
        for one in crowd:
            one.settimeout(20)
            assert one.recv(100).startswith(b"SSHCONNECTION@")
    assert putty_socket.identity(riders.path) == before


def test_u32_another_user_is_turned_away(sshd: Sshd, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root can come as somebody else; when others come, the upstream takes itself for somebody else."""
    me = os.geteuid()

    async def main() -> None:
        async with riding(sshd, str(sshd.control_dir / "u32")) as ride:
            assert await ride.upstream.offer_to_putty(["me@host"]) == []
            path = putty_path(ride)
            for directory in (parent.parent, parent, Path(path).parent):
                directory.chmod(0o777)
            os.chmod(path, 0o777)
            command = [program("plink"), "-ssh-connection", "-batch", path, "echo", "here"]
            with monkeypatch.context() as patch:
                if me != 0:
                    patch.setattr(os, "geteuid", lambda: me + 1)
                done = await asyncio.to_thread(
                    subprocess.run,
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    user=65534 if me == 0 else None,
                    env={"HOME": "/nonexistent"},
                    timeout=20,
                )
            assert done.returncode == 1 and done.stdout == b""
            assert ride.upstream.tally.foreign == 1 and ride.upstream.tally.clients == 0
            for directory in (Path(path).parent, parent):
                directory.chmod(0o700)

    asyncio.run(main())


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that accepts and says nothing: whoever logs in there never comes to an end."""
    with socket.create_server(("127.0.0.1", 0), backlog=300) as listener:
        yield listener.getsockname()[1]


def test_u35_a_plink_that_starts_at_the_same_time(stack: ExitStack, sshd: Sshd, silent: int) -> None:
    riders = Riders(sshd)
    name = putty.connection_name("127.0.0.1", sshd.user, silent)
    putty.make_directory(putty.parent_directory())
    putty.make_salt(putty.parent_directory())
    stack.callback(remove_directory, putty.directory_of(name))
    command = [program("plink"), "-share", "-batch", "-v", "-P", str(silent), "-N", f"{sshd.user}@127.0.0.1"]
    won = []
    for round_ in range(100):
        with processes.running(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=riders.env) as process:
            assert process.stderr is not None
            if round_ % 2:  # who is ready first depends on the machine: both get their chances
                decision = process.stderr.readline()
            try:
                published = putty_socket.publish(name)
            except putty_socket.Taken:
                published = None
            if not round_ % 2:
                decision = process.stderr.readline()
            process.kill()
        won.append(published is not None)
        assert decision.startswith(b"Using existing shared" if published else b"Sharing this connection"), decision
        if published is not None:
            assert published.is_there()
            published.withdraw()
            published.listener.close()
    assert any(won) and not all(won)


def test_the_option_is_yes_or_no(sshd: Sshd) -> None:
    done = sshmux("start", "-F", str(sshd.ssh_config), "-oputty=perhaps", HOST, env=sshd.environment())
    assert done.returncode == 2 and "yes or no" in done.stderr


def test_a_private_connection_is_offered_to_nobody(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    with walk(sshd, share=False).reached() as found:
        assert found.private
        assert not Riders(sshd).published and not Riders(sshd).at(HOST).published
