"""The ladder with real sockets: what is joined, what is started where, and what is left alone."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mux.downstream.start import Terms
from mux.errors import ExitCode, JoinError
from mux.rendezvous.sockets import Found, probe
from tests.support import processes
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd
from tests.t2_upstream.starting import ending, logins, upstreams, walk


@pytest.fixture(autouse=True)
def _own_runtime_directory(monkeypatch: pytest.MonkeyPatch, sshd: Sshd) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sshd.runtime_dir))


def places(sshd: Sshd) -> list[str]:
    """What there is where connections to this server are found."""
    return [os.path.join(sshd.control_dir, name) for name in sorted(os.listdir(sshd.control_dir))]


def descriptors(pid: int) -> dict[int, str]:
    return {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}


def test_nothing_there_starts_one_that_others_ride_on(sshd: Sshd) -> None:
    before = logins(sshd)
    with walk(sshd).reached() as found:
        assert found.started and not found.private
        assert os.path.dirname(found.path) == str(sshd.control_dir)
        assert stat.S_IMODE(os.lstat(found.path).st_mode) == 0o600
        assert sshd.ssh("-O", "check", HOST).stderr == f"Master running (pid={found.pid})\n"
        assert sshd.ssh(HOST, "echo", "here").stdout == "here\n"
        again = walk(sshd).run()
        assert (again.path, again.pid, again.started) == (found.path, found.pid, False)
        assert [path for path in places(sshd) if path.startswith(found.path)] == [found.path]
    assert logins(sshd) == before + 1
    assert not os.path.lexists(found.path)


def test_it_has_let_go_of_everything(sshd: Sshd) -> None:
    with walk(sshd).reached() as found:
        assert found.pid is not None
        assert os.getsid(found.pid) == found.pid
        assert os.readlink(f"/proc/{found.pid}/cwd") == "/"
        held = descriptors(found.pid)
        assert [held[number] for number in (0, 1, 2)] == ["/dev/null"] * 3
        assert not [target for target in held.values() if target.startswith(("pipe:", "/tmp", "/dev/pts"))]
        assert processes.known(found.pid).parent == os.getpid()  # an orphan, which this process adopts


def test_a_real_master_is_joined(sshd: Sshd, master: Master) -> None:
    before = logins(sshd)
    found = walk(sshd).run()
    assert (found.path, found.pid, found.started) == (master.control_path, master.pid, False)
    assert logins(sshd) == before


@pytest.mark.parametrize("replaced_by", ["ours", "ssh"])
def test_a_stale_socket_is_replaced(sshd: Sshd, master: Master, replaced_by: str) -> None:
    master.kill()
    assert probe(master.control_path).found is Found.STALE
    terms = Terms(ssh_command=("ssh",)) if replaced_by == "ssh" else Terms()
    with walk(sshd, terms=terms).reached() as found:
        assert found.started
        assert found.path == master.control_path


def test_a_stale_socket_of_ours_is_replaced(sshd: Sshd) -> None:
    first = walk(sshd).run()
    assert first.pid is not None
    process = processes.known(first.pid)
    processes.send_signal(process, signal.SIGKILL)
    assert not processes.wait_ended([process], 60)
    with walk(sshd).reached() as found:
        assert found.started
        assert found.path == first.path


def test_a_frozen_master_is_passed_by_and_left_alone(sshd: Sshd, master: Master) -> None:
    master.freeze()
    before = os.lstat(master.control_path)
    wanted = walk(sshd)
    with wanted.reached() as found:
        assert found.started
        assert os.path.dirname(found.path) == f"{sshd.runtime_dir}/sshmux"
        assert "gives no answer" in wanted.said[0]
        assert found.path in wanted.said[0]
        assert os.path.samestat(os.lstat(master.control_path), before)
        assert walk(sshd).run().pid == found.pid
    master.thaw()
    assert walk(sshd).run().pid == master.pid


def test_a_frozen_master_that_was_named_is_passed_by_in_private(sshd: Sshd, master: Master) -> None:
    master.freeze()
    wanted = walk(sshd, control_path=master.control_path)
    with wanted.reached() as found:
        assert found.private
        assert "private connection" in wanted.said[0]
    with pytest.raises(JoinError) as caught:
        replace(wanted, may_upstream=False).run()
    assert caught.value.exit_code is ExitCode.NO_ANSWER


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_named_and_left_alone(sshd: Sshd, tmp_path: Path, kind: str) -> None:
    path = sshd.control_dir / "c"
    if kind == "file":
        path.write_text("x")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    before = os.lstat(path)
    with pytest.raises(JoinError, match=str(path)) as caught:
        walk(sshd, control_path=path).run()
    assert caught.value.exit_code is ExitCode.UNSAFE_SOCKET
    assert os.path.samestat(os.lstat(path), before)
    path.rmdir() if kind == "directory" else path.unlink()


def test_who_may_not_start_one_is_told_how(sshd: Sshd) -> None:
    with pytest.raises(JoinError, match="Nothing is at") as caught:
        walk(sshd, may_upstream=False).run()
    assert caught.value.exit_code is ExitCode.NOTHING_TO_JOIN
    assert "ssh -fNM" in caught.value.hint


def test_who_may_not_join_is_told_what_is_in_the_way(sshd: Sshd, master: Master) -> None:
    with pytest.raises(JoinError) as caught:
        walk(sshd, may_downstream=False).run()
    assert "share=no" in caught.value.hint
    with walk(sshd, may_downstream=False, control_path=sshd.control_dir / "own").reached() as found:
        assert found.started


@pytest.mark.parametrize("way", ["share=no", "-S none", "ControlPath=none"])
def test_a_private_connection(sshd: Sshd, master: Master, way: str) -> None:
    before = logins(sshd)
    wanted = {
        "share=no": lambda: walk(sshd, share=False),
        "-S none": lambda: walk(sshd, control_path="none"),
        "ControlPath=none": lambda: walk(sshd, "ControlPath=none"),
    }[way]()
    with wanted.reached() as found:
        assert found.started and found.private
        directory = Path(found.path).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert directory.parent == sshd.runtime_dir / "sshmux"
        assert walk(sshd).run().pid == master.pid
        assert walk(sshd, share=False).may_downstream
        assert sshd.ssh("-S", found.path, HOST, "echo", "here").stdout == "here\n"
    assert not directory.exists()
    assert logins(sshd) == before + 1


@pytest.mark.usefixtures("shared_master")
def test_without_a_configured_path_ours_is_used(sshd: Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("\n".join(line for line in sshd.ssh_config.read_text().splitlines() if "ControlPath" not in line))
    with walk(sshd, config=config).reached() as found:
        assert os.path.dirname(found.path) == f"{sshd.runtime_dir}/sshmux"
        assert walk(sshd, config=config).run().pid == found.pid


def test_without_any_runtime_directory_tmp_is_used(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.path.isdir(f"/run/user/{os.geteuid()}"):
        monkeypatch.setattr("mux.rendezvous.target.runtime_directory", lambda: None)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    config = tmp_path / "config"
    config.write_text("\n".join(line for line in sshd.ssh_config.read_text().splitlines() if "ControlPath" not in line))
    directory = f"/tmp/sshmux-{os.geteuid()}"
    was_there = os.path.exists(directory)
    with walk(sshd, config=config).reached() as found:
        assert os.path.dirname(found.path) == directory
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    assert not os.path.exists(found.path)
    if not was_there:
        with suppress(OSError):  # another run on this machine may use it by now
            os.rmdir(directory)


def test_a_configured_path_that_is_too_long_gives_way_to_ours(sshd: Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    text = sshd.ssh_config.read_text()
    long = f"{sshd.control_dir}/".ljust(95, "x")
    config.write_text(text.replace(f"{sshd.control_dir}/%C", long))
    with walk(sshd, config=config).reached() as found:
        assert os.path.dirname(found.path) == f"{sshd.runtime_dir}/sshmux"


def test_the_length_is_known_before_the_login(sshd: Sshd) -> None:
    before = logins(sshd)
    path = str(sshd.control_dir / "x").ljust(91, "x")
    with pytest.raises(JoinError, match="can have 90") as caught:
        walk(sshd, control_path=path).run()
    assert caught.value.exit_code is ExitCode.UNSAFE_SOCKET
    assert logins(sshd) == before


def test_a_missing_directory_is_known_before_the_login(sshd: Sshd) -> None:
    before = logins(sshd)
    with pytest.raises(JoinError) as caught:
        walk(sshd, control_path=sshd.control_dir / "none" / "c").run()
    assert "mkdir -p -m 700" in caught.value.hint
    assert logins(sshd) == before


def test_a_login_that_fails_leaves_nothing(sshd: Sshd) -> None:
    there = places(sshd)
    with pytest.raises(JoinError) as caught:
        walk(
            sshd, "IdentityFile=/nonexistent", "IdentitiesOnly=yes", config=keyless(sshd), terms=Terms(batch=True)
        ).run()
    assert caught.value.exit_code is ExitCode.AUTH_FAILED
    assert places(sshd) == there
    assert not upstreams(sshd)


def keyless(sshd: Sshd) -> Path:
    path = sshd.directory / "keyless"
    lines = sshd.ssh_config.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "IdentityFile" not in line))
    return path


def test_a_server_that_is_not_there(sshd: Sshd, make_sshd: Callable[..., Sshd]) -> None:
    gone = make_sshd()
    gone.kill()
    with pytest.raises(JoinError) as caught:
        walk(gone).run()
    assert caught.value.exit_code is ExitCode.UNREACHABLE


def test_what_we_cannot_do_is_done_by_ssh(sshd: Sshd) -> None:
    wanted = walk(sshd, "KnownHostsCommand=/bin/true")
    with wanted.reached() as found:
        assert found.started
        assert "ssh itself" in wanted.said[0]
        assert processes.known(found.pid or 0).command.startswith("ssh -f -N")
        assert sshd.ssh("-O", "check", HOST).stderr == f"Master running (pid={found.pid})\n"


def test_ssh_by_name(sshd: Sshd) -> None:
    wanted = walk(sshd, terms=Terms(ssh_command=("ssh", "-oLogLevel=QUIET"), persist="60"))
    with wanted.reached() as found:
        command = processes.known(found.pid or 0).command
        assert command.startswith("ssh -oLogLevel=QUIET -f -N")
        assert "ControlPersist=60" in command
        assert walk(sshd).run().pid == found.pid


def test_a_private_ssh_ends_by_itself(sshd: Sshd) -> None:
    found = walk(sshd, share=False, terms=Terms(ssh_command=("ssh",))).run()
    with ending(found.pid) as process:
        assert found.private and os.path.exists(found.path)
        sshd.ssh("-S", found.path, HOST, "true")
        assert not processes.wait_ended([process], 60)
    os.rmdir(os.path.dirname(found.path))


def test_ssh_that_fails_says_why(sshd: Sshd) -> None:
    there = places(sshd)
    terms = Terms(ssh_command=("ssh",), batch=True)
    with pytest.raises(JoinError, match="Permission denied") as caught:
        walk(sshd, "IdentityFile=/nonexistent", config=keyless(sshd), terms=terms).run()
    assert caught.value.exit_code is ExitCode.FAILURE
    assert places(sshd) == there
