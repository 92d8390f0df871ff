"""Mounts that have no connection to join: they log in once, and others ride on what they started."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from mux.errors import ExitCode
from mux.rendezvous.sockets import Found, probe
from tests.support import mounts, processes
from tests.support.delay_proxy import DelayProxy
from tests.support.master import Master
from tests.support.mounted import SSHMUXFS, Mount, sshmuxfs
from tests.support.sshd import HOST, Sshd, program
from tests.support.waiting import wait_until
from tests.t2_upstream.other_server import OtherServer, Wish
from tests.t2_upstream.starting import logins, upstreams
from tests.t5_upstream.terminal import Terminal

DEADLINE_S = 60.0
STARTS = 51


@dataclass
class Site:
    """Where a mount's connection leads, when nobody holds one: what `Mount` asks of a master."""

    sshd: Sshd
    config: Path
    control_path: str


class OwnMount(Mount):
    """A mount with nothing but the configuration: it finds or starts its connection."""

    def sharing_arguments(self) -> list[str]:
        return ["-F", str(self.master.config)]


MakeOwn = Callable[..., Mount]


@pytest.fixture
def server(make_sshd: Callable[..., Sshd]) -> Sshd:
    """A server of this test's own, so that who logs in can be counted."""
    return make_sshd(max_sessions=100)


@pytest.fixture
def site(stack: ExitStack, server: Sshd) -> Site:
    """The connection there will be; none is left, and no socket, when mounts and masters have ended."""
    said = server.ssh("-G", HOST).stdout
    path = next(line.split(" ", 1)[1] for line in said.splitlines() if line.startswith("controlpath "))

    def nothing_is_left() -> None:
        left = processes.wait_ended(upstreams(server), DEADLINE_S)
        processes.end(left)
        assert not left
        assert not os.path.lexists(path)

    stack.callback(nothing_is_left)
    return Site(server, server.ssh_config, path)


@pytest.fixture
def make_own(stack: ExitStack, site: Site) -> MakeOwn:
    """`make_own(options=[...])`: the server's directory, mounted from the configuration alone."""

    def make(**arguments: object) -> Mount:
        mount = OwnMount(site, site.sshd.root, **{"foreground": False, **arguments})  # type: ignore[arg-type]
        stack.callback(lambda: print(f"log of {mount}:\n{mount.log_text()}"))
        return stack.enter_context(mount)

    return make


def ended(process: processes.Process) -> bool:
    return not processes.wait_ended([process], DEADLINE_S)


def test_a_mount_without_a_connection(site: Site, make_own: MakeOwn) -> None:
    mount = make_own()
    (mount.path / "file").write_text("here")
    assert (site.sshd.root / "file").read_text() == "here"
    (upstream,) = upstreams(site.sshd)
    assert probe(site.control_path).pid == upstream.pid
    assert site.sshd.ssh(HOST, "cat", f"{site.sshd.root}/file").stdout == "here"
    assert logins(site.sshd) == 1
    mount.unmount()
    assert ended(upstream)


def test_it_outlives_the_mount_while_somebody_rides(site: Site, make_own: MakeOwn) -> None:
    first = make_own()
    second = make_own()
    (upstream,) = upstreams(site.sshd)
    shell = subprocess.Popen(
        [program("ssh"), "-F", str(site.config), HOST, "echo here; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert shell.stdout is not None
    assert shell.stdout.readline() == b"here\n"
    first.unmount()
    assert (second.path).is_dir() and os.listdir(second.path) == []
    second.unmount()
    assert probe(site.control_path).pid == upstream.pid
    output, _ = shell.communicate(b"more\n", DEADLINE_S)
    assert (output, shell.returncode) == (b"more\n", 0)
    assert ended(upstream)
    assert logins(site.sshd) == 1


def test_a_mount_keeps_its_connection_while_it_has_no_channel(
    site: Site, make_own: MakeOwn, expect_log: Callable[[str], None]
) -> None:
    expect_log("the channel ended")
    expect_log("a new channel is open")
    mount = make_own(options=["dir_cache=no"])
    (server,) = site.sshd.sftp_servers()
    processes.send_signal(server, signal.SIGKILL)
    assert ended(server)
    (upstream,) = upstreams(site.sshd)
    assert processes.wait_ended([upstream], 2.5)  # longer than an unused connection stays
    assert os.listdir(mount.path) == []
    assert logins(site.sshd) == 1


def test_control_persist(site: Site, make_own: MakeOwn) -> None:
    mount = make_own(options=["ControlPersist=1h"])
    (upstream,) = upstreams(site.sshd)
    mount.unmount()
    assert processes.wait_ended([upstream], 2.5)
    again = make_own()
    assert upstreams(site.sshd) == [upstream]
    assert logins(site.sshd) == 1
    again.unmount()
    assert site.sshd.ssh("-O", "exit", HOST).returncode == 0
    assert ended(upstream)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_both_end_together(site: Site, make_own: MakeOwn, number: signal.Signals) -> None:
    mount = make_own(foreground=True, options=["ControlPersist=yes"])
    (mount.path / "file").write_text("here")
    (upstream,) = upstreams(site.sshd)
    assert upstream.parent == mount.pid
    os.killpg(mount.pid, number) if number == signal.SIGINT else mount.send_signal(number)
    mount.wait_ended()
    assert processes.look(upstream.pid) is None
    assert (site.sshd.root / "file").read_text() == "here"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_in_the_foreground_an_end_of_both_loses_nothing(
    site: Site,
    make_own: MakeOwn,
    make_proxy: Callable[..., DelayProxy],
    number: signal.Signals,
) -> None:
    """A closed terminal, or timeout(1), reaches the whole group: the connection waits for the mount's last writes."""
    proxy = make_proxy(site.sshd.port, 0.05)
    site.config = site.sshd.via(proxy.port)
    mount = make_own(foreground=True)
    (upstream,) = upstreams(site.sshd)
    data = os.urandom(2 << 20)
    with (mount.path / "file").open("wb", buffering=0) as file, proxy.silent():
        assert file.write(data) == len(data)
        assert (site.sshd.root / "file").stat().st_size == 0
        os.killpg(mount.pid, number)
        wait_until(lambda: f"ending on {number.name}" in mount.log_text(), "the mount has heard of it")
        assert upstreams(site.sshd) == [upstream]
    mount.wait_ended()
    assert processes.look(upstream.pid) is None
    assert (site.sshd.root / "file").read_bytes() == data


def test_a_private_connection(site: Site, make_own: MakeOwn, make_master: Callable[..., Master]) -> None:
    master = make_master(site.sshd)
    mount = make_own(options=["share=no", "ServerAliveInterval=7"])
    (upstream,) = upstreams(site.sshd)
    assert logins(site.sshd) == 2
    assert probe(site.control_path).pid == master.pid
    mount.unmount()
    assert ended(upstream)
    assert os.listdir(site.sshd.runtime_dir / "sshmux") == []
    assert "no effect" not in mount.log_text()


def test_ssh_as_the_engine(site: Site, make_own: MakeOwn) -> None:
    mount = make_own(options=["ssh_command=ssh"])
    assert not upstreams(site.sshd)
    pid = probe(site.control_path).pid
    assert pid is not None
    process = processes.known(pid)
    assert process.command.startswith("ssh -f -N")
    (mount.path / "file").write_text("here")
    assert (site.sshd.root / "file").read_text() == "here"
    mount.unmount()
    assert ended(process)


def test_a_frozen_master_costs_a_warning(site: Site, make_own: MakeOwn, make_master: Callable[..., Master]) -> None:
    master = make_master(site.sshd)
    master.freeze()
    mount = make_own()
    (mount.path / "file").write_text("here")
    assert "gives no answer" in mount.log_text()
    assert probe(site.control_path).found is Found.FROZEN
    mount.unmount()


# -- when the connection goes -----------------------------------------------------------------------------------------


def test_after_a_killed_upstream_the_next_request_starts_another(
    site: Site, make_own: MakeOwn, expect_log: Callable[[str], None]
) -> None:
    expect_log("the channel ended")
    expect_log("a new channel is open")
    mount = make_own(options=["dir_cache=no"])
    (mount.path / "file").write_text("here")
    (first,) = upstreams(site.sshd)
    processes.send_signal(first, signal.SIGKILL)
    assert ended(first)
    wait_until(lambda: "the channel ended" in mount.log_text(), "the mount to notice")
    assert (mount.path / "file").read_text() == "here"
    (second,) = upstreams(site.sshd)
    assert second.pid != first.pid
    assert logins(site.sshd) == 2
    mount.unmount()
    assert ended(second)


def test_who_is_not_let_in_again_does_not_ask_again(
    site: Site, make_own: MakeOwn, make_master: Callable[..., Master], expect_log: Callable[[str], None]
) -> None:
    expect_log("the channel ended")
    expect_log("no channel could be opened")
    expect_log("no login is tried any more")
    expect_log("a new channel is open")
    mount = make_own(options=["dir_cache=no"])
    (upstream,) = upstreams(site.sshd)
    keys = site.sshd.directory / "authorized_keys"
    kept = keys.read_text()
    keys.write_text("")
    processes.send_signal(upstream, signal.SIGKILL)
    assert ended(upstream)
    for _ in range(8):
        with pytest.raises(OSError, match="not connected"):
            os.listdir(mount.path)
        # Past the pause between attempts, which is 5 s at most; the answer within it is the same.
        processes.wait_ended([processes.known(os.getpid())], 0.3)
    assert site.sshd.log_text().count("Connection from") == 2
    keys.write_text(kept)
    make_master(site.sshd)
    until_answered(mount.path)
    mount.unmount()


def until_answered(path: Path) -> None:
    """The pause after failed attempts ends by itself."""

    def answers() -> bool:
        try:
            os.listdir(path)
        except OSError:
            return False
        return True

    wait_until(answers, "the mount has a connection again")


# -- questions --------------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(site: Site) -> Path:
    """A client configuration whose key has a passphrase: `sesame`."""
    key = site.sshd.directory / "locked_key"
    command = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "sesame", "-f", str(key)]
    subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL)
    with (site.sshd.directory / "authorized_keys").open("a") as keys:
        keys.write(key.with_suffix(".pub").read_text())
    config = site.sshd.directory / "locked_config"
    config.write_text(re.sub(r"IdentityFile .*", f"IdentityFile {key}", site.config.read_text()))
    return config


@pytest.fixture
def place(site: Site) -> Iterator[Path]:
    path = processes.make_directory() / "mnt"
    path.mkdir()
    yield path
    if mounts.mounted_at(path) is not None:
        mounts.fusermount("-u", "-z", str(path))
    mounts.remove_tree(path.parent)


def mounting(site: Site, config: Path, place: Path, *arguments: str) -> Terminal:
    source = f"{HOST}:{site.sshd.root}"
    return Terminal([*SSHMUXFS, "-F", str(config), *arguments, source, str(place)], env=site.sshd.environment())


def cooked(terminal: Terminal) -> bool:
    return terminal.cooked


def wait_mounted(place: Path) -> None:
    wait_until(lambda: mounts.mounted_at(place) is not None, f"something is mounted at {place}")


@pytest.mark.parametrize("arguments", [(), ("-f",)], ids=["background", "foreground"])
def test_questions_come_on_the_terminal(site: Site, locked: Path, place: Path, arguments: Sequence[str]) -> None:
    with mounting(site, locked, place, *arguments) as terminal:
        terminal.expect(rb"assphrase for.*: ")
        assert not cooked(terminal)
        assert mounts.mounted_at(place) is None
        terminal.type(b"sesame\n")
        if arguments:
            terminal.expect(b"shared at")
            wait_mounted(place)
            assert cooked(terminal)
            terminal.type(b"\x03")
        assert terminal.finish() == 0
        assert b"sesame" not in terminal.seen
    if not arguments:
        assert mounts.fusermount("-u", str(place)).returncode == 0
    assert all(ended(process) for process in upstreams(site.sshd))
    assert mounts.mounted_at(place) is None


@pytest.mark.parametrize("arguments", [(), ("-f",)], ids=["background", "foreground"])
def test_ctrl_c_at_a_question_leaves_nothing(site: Site, locked: Path, place: Path, arguments: Sequence[str]) -> None:
    with mounting(site, locked, place, *arguments) as terminal:
        terminal.expect(rb"assphrase for.*: ")
        terminal.type(b"\x03")
        assert terminal.finish() == ExitCode.INTERRUPTED
        assert cooked(terminal)
        assert terminal.unseen(b"Traceback")
    assert not upstreams(site.sshd)
    assert mounts.mounted_at(place) is None


def test_a_bad_place_is_told_before_any_question(site: Site, locked: Path, place: Path) -> None:
    with mounting(site, locked, place / "none") as terminal:
        terminal.expect(b"does not exist")
        assert terminal.finish() == ExitCode.BAD_MOUNT_POINT
        assert terminal.unseen(b"assphrase")


def test_a_login_that_fails_has_its_exit_code(site: Site, place: Path) -> None:
    (site.sshd.directory / "authorized_keys").write_text("")
    source = f"{HOST}:{site.sshd.root}"
    done = sshmuxfs("-F", str(site.config), source, str(place), env=site.sshd.environment())
    assert done.returncode == ExitCode.AUTH_FAILED
    assert "ermission denied" in done.stderr
    assert not upstreams(site.sshd)


def test_a_directory_that_is_not_there_leaves_no_connection(site: Site, place: Path) -> None:
    done = sshmuxfs("-F", str(site.config), f"{HOST}:/nonexistent", str(place), env=site.sshd.environment())
    assert done.returncode == ExitCode.BAD_REMOTE_DIRECTORY
    assert all(ended(process) for process in upstreams(site.sshd))


def test_a_control_path_below_the_mount_point_is_refused(site: Site) -> None:
    done = sshmuxfs(
        "-F", str(site.config), "-o", "nonempty", f"{HOST}:/", str(site.sshd.control_dir), env=site.sshd.environment()
    )
    assert done.returncode == ExitCode.BAD_MOUNT_POINT
    assert all(ended(process) for process in upstreams(site.sshd))


def test_a_password_from_standard_input(site: Site, place: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "file").write_text("here")
    with OtherServer(tmp_path, Wish(passwords=["sesame"]), sftp_factory=True) as server:
        command = [*SSHMUXFS, "-F", str(server.config), "-o", "password_stdin", f"{HOST}:{served}", str(place)]
        done = subprocess.run(
            command, input=b"sesame\nmore", capture_output=True, timeout=DEADLINE_S, env=site.sshd.environment()
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert (place / "file").read_text() == "here"
        assert server.wish.seen == ["password sesame"]
        assert mounts.fusermount("-u", str(place)).returncode == 0
        assert all(ended(process) for process in upstreams(site.sshd))


def test_no_password_on_standard_input(site: Site, place: Path) -> None:
    source = f"{HOST}:{site.sshd.root}"
    done = sshmuxfs("-F", str(site.config), "-o", "password_stdin", source, str(place), env=site.sshd.environment())
    assert done.returncode == ExitCode.USAGE
    assert "found nothing on standard input" in done.stderr


def test_the_forwardings_of_the_configuration_are_open_when_it_is_mounted(site: Site, make_own: MakeOwn) -> None:
    socket_path = site.sshd.directory / "forwarded"
    mount = make_own(options=[f"LocalForward={socket_path} 127.0.0.1:{site.sshd.port}"])
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(socket_path))
        assert client.recv(8) == b"SSH-2.0-"
    mount.unmount()


# -- many at once -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("left_over", [False, True], ids=["nothing there", "a stale socket there"])
def test_fifty_simultaneous_starts(
    site: Site, stack: ExitStack, make_master: Callable[..., Master], left_over: bool
) -> None:
    """Mounts, `sshmux start` and real masters mixed: one owner, one login of ours, nobody fails."""
    server = site.sshd
    if left_over:
        make_master(server).kill()
    before = logins(server)
    env = server.environment()
    places = [processes.make_directory() / "mnt" for _ in range(STARTS // 3)]
    for place in places:
        stack.callback(mounts.remove_tree, place.parent)
    started: list[tuple[str, subprocess.Popen[bytes]]] = []
    for place in places:
        place.mkdir()
        commands = {
            "mount": [*SSHMUXFS, "-F", str(site.config), f"{HOST}:{server.root}", str(place)],
            "start": [sys.executable, "-m", "mux", "start", "-F", str(site.config), HOST],
            "master": [program("ssh"), "-F", str(site.config), "-M", HOST, "true"],
        }
        for kind, command in commands.items():
            pipe = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
            )
            stack.callback(pipe.stdout.close if pipe.stdout else lambda: None)
            started.append((kind, pipe))
    for place in places:
        stack.callback(mounts.fusermount, "-u", "-z", str(place))
    failed = []
    for kind, process in started:
        output, _ = process.communicate(timeout=200)
        if process.returncode != 0:
            failed.append((kind, process.returncode, output))
    assert not failed
    (server.root / "file").write_text("here")
    assert [(place / "file").read_text() for place in places] == ["here"] * len(places)
    owners = upstreams(site.sshd)
    assert len(owners) <= 1
    found = probe(site.control_path)
    assert found.found is Found.LIVE
    assert logins(server) - before <= STARTS // 3 + 1
    for place in places:
        assert mounts.fusermount("-u", str(place)).returncode == 0
    # Whoever holds it may have ended with the last mount, or end now.
    server.ssh("-O", "exit", HOST, check=False)
    wait_until(lambda: not os.path.lexists(site.control_path), "the end of who held the connection")
    assert all(ended(process) for process in owners)
