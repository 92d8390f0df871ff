"""Starting under every kind of disturbance: taken back, killed, raced, waited for, in the foreground."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mux.downstream import openssh_master, start, waiting
from mux.downstream.start import Running, Terms
from mux.downstream.waiting import LockWait
from mux.errors import ExitCode, JoinError
from mux.rendezvous.order import Kind, Order
from mux.rendezvous.publish import Lock
from mux.rendezvous.roles import Wish
from mux.rendezvous.sockets import Found, probe
from tests.support import processes
from tests.support.descriptors import only_free
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until
from tests.t2_upstream.starting import DEADLINE_S, ending, gated, logins, upstreams, walk

SLOW_MAIN = Path(__file__).with_name("slow_publisher.py")
STRUCK_MAIN = Path(__file__).with_name("struck.py")


@pytest.fixture(autouse=True)
def _own_runtime_directory(monkeypatch: pytest.MonkeyPatch, sshd: Sshd) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sshd.runtime_dir))


@pytest.fixture
def path(sshd: Sshd) -> Iterator[Path]:
    """A control path of this test's own, at which and beside which nothing is left."""
    found = sshd.control_dir / "own"
    yield found
    # Who gave up waiting for the lock still takes it in its thread, once it is free, and gives it back.
    for thread in threading.enumerate():
        if thread.name == "lock":
            thread.join(DEADLINE_S)
    assert not [name for name in os.listdir(sshd.control_dir) if name.startswith("own")]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def wait_for_login(gate: Path, running: Running | None = None) -> int:
    """Wait until a login stands at the gate; gives the descriptor to let it through by, with `os.close`."""
    held: list[int] = []

    def comes() -> bool:
        try:
            held.append(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:  # which is that nobody reads
                raise
            assert running is None or not running.wait(0), f"it ended before: {running.result()}"
        return bool(held)

    wait_until(comes, "somebody comes to the gate")
    return held[0]


def test_taken_back_while_it_logs_in(sshd: Sshd, path: Path, gate: Path) -> None:
    running = walk(sshd, *gated(sshd, gate), control_path=path).begin()
    held = wait_for_login(gate, running)
    running.cancel()
    assert running.wait(DEADLINE_S)
    with pytest.raises(JoinError, match="interrupted") as caught:
        running.result()
    assert caught.value.exit_code is ExitCode.INTERRUPTED
    assert not upstreams(sshd)
    os.close(held)


def test_taken_back_at_once(sshd: Sshd, path: Path) -> None:
    search = walk(sshd, control_path=path).search()
    search.cancel()
    with pytest.raises(JoinError, match="interrupted"):
        search.run()
    assert not upstreams(sshd)
    search.cancel()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_logs_in(sshd: Sshd, path: Path, gate: Path, number: signal.Signals) -> None:
    running = walk(sshd, *gated(sshd, gate), control_path=path).begin()
    held = wait_for_login(gate, running)
    (process,) = upstreams(sshd)
    processes.send_signal(process, number)
    assert running.wait(DEADLINE_S)
    with pytest.raises(JoinError) as caught:
        running.result()
    assert caught.value.exit_code is ExitCode.INTERRUPTED
    assert not upstreams(sshd)
    os.close(held)


def test_killed_while_it_logs_in(sshd: Sshd, path: Path, gate: Path) -> None:
    running = walk(sshd, *gated(sshd, gate), control_path=path).begin()
    held = wait_for_login(gate, running)
    (process,) = upstreams(sshd)
    processes.send_signal(process, signal.SIGKILL)
    assert running.wait(DEADLINE_S)
    with pytest.raises(JoinError, match="without a word"):
        running.result()
    os.close(held)


STARTER = """
import sys
from mux.downstream.start import Search, Terms
from mux.rendezvous.roles import Wish
from mux.rendezvous.target import SshOptions, resolve
options = SshOptions(config_file=sys.argv[1], control_path=sys.argv[2], options=tuple(sys.argv[4:]))
Search(resolve("box", None, options), Wish.of(options), Terms(foreground="-f" in sys.argv[3]), print).run()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_starter_is_killed_while_it_logs_in(sshd: Sshd, path: Path, gate: Path, number: signal.Signals) -> None:
    options = gated(sshd, gate)
    command = [sys.executable, "-c", STARTER, str(sshd.ssh_config), str(path), "", *options]
    starter = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    held = wait_for_login(gate)
    (process,) = upstreams(sshd)
    starter.send_signal(number)
    starter.wait(DEADLINE_S)
    assert not processes.wait_ended([process], DEADLINE_S)
    os.close(held)
    Path(f"{path}.lock").unlink(missing_ok=True)  # killed, it could not


@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize("explicit_start", [False, True])
def test_taken_back_while_it_publishes(
    sshd: Sshd, path: Path, monkeypatch: pytest.MonkeyPatch, foreground: bool, explicit_start: bool
) -> None:
    monkeypatch.setattr(start, "_MAIN", SLOW_MAIN)
    # Looking for PuTTY's names it would have another moment to notice.
    terms = Terms(foreground=foreground, explicit_start=explicit_start, putty=False)
    running = walk(sshd, control_path=path, terms=terms).begin()
    wait_until(path.exists, "it publishes")
    running.cancel()
    assert running.wait(DEADLINE_S)
    with pytest.raises(JoinError, match="interrupted"):
        running.result()
    assert not [one for one in processes.descendants(os.getpid()) if str(SLOW_MAIN) in one.command]


def test_who_waits_says_so_and_joins(
    sshd: Sshd,
    path: Path,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "SAY_WAITING_S", 0.05)
    before = logins(sshd)
    first = walk(sshd, *gated(sshd, gate), control_path=path).begin()
    held = wait_for_login(gate, first)
    told = threading.Event()
    second = walk(sshd, control_path=path)
    search = second.search()

    def say(line: str) -> None:
        second.said.append(line)
        told.set()

    search._say = say
    running = Running(search)
    assert told.wait(DEADLINE_S)
    assert second.said == [f"waiting for process {os.getpid()}, which is logging in to box"]
    os.close(held)
    assert first.wait(DEADLINE_S) and running.wait(DEADLINE_S)
    with ending(first.result().pid):
        assert first.result().started and not running.result().started
        assert running.result().pid == first.result().pid
    assert logins(sshd) == before + 1


def test_who_waits_can_give_up(sshd: Sshd, path: Path) -> None:
    lock = Lock.take(str(path), wait=False)
    assert lock is not None
    running = walk(sshd, control_path=path).begin()
    take_back(running)
    lock.release()
    # Its thread still waited for the lock: it has given it back by now, or does so at once.
    again = Lock.take(str(path), wait=True)
    assert again is not None
    again.release()


def test_a_lock_that_was_waited_for_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by who waits while it handles an error."""
    monkeypatch.setattr(waiting, "SAY_WAITING_S", 0.05)
    before = Lock.take(str(path), wait=False)
    assert before is not None
    never = waiting.make_event()
    try:
        raise ValueError
    except ValueError:
        lock = LockWait(str(path)).result(DEADLINE_S, never, before.release)
    assert Lock.take(str(path), wait=False) is None
    lock.release()
    os.close(never)


def test_out_of_descriptors_nothing_is_started(sshd: Sshd, path: Path) -> None:
    target = walk(sshd).target()
    order = Order(target=target, path=str(path))
    for spare in range(7):  # four of two pipes; three of what subprocess needs
        with only_free(spare), pytest.raises(JoinError, match="no upstream process can be started: Too many open"):
            start._Process(order, None)
    with only_free(0):
        with pytest.raises(JoinError, match="Too many open"):
            start.Search(target, Wish())
        with pytest.raises(JoinError, match="Too many open"):
            LockWait(str(path))


def test_after_a_failed_login_the_next_one_logs_in(sshd: Sshd, path: Path, gate: Path) -> None:
    first = walk(sshd, *gated(sshd, gate), "HostKeyAlias=x", control_path=path).begin()
    held = wait_for_login(gate, first)
    second = walk(sshd, control_path=path).begin()
    os.close(held)
    assert first.wait(DEADLINE_S) and second.wait(DEADLINE_S)
    with pytest.raises(JoinError) as caught:
        first.result()
    assert caught.value.exit_code is ExitCode.HOST_KEY
    with ending(second.result().pid):
        assert second.result().started


def test_a_race_lost_against_ssh_is_joined(
    sshd: Sshd, path: Path, gate: Path, make_master: Callable[..., Master]
) -> None:
    running = walk(sshd, *gated(sshd, gate), control_path=path).begin()
    held = wait_for_login(gate, running)
    faster = make_master(sshd, control_path=path)
    os.close(held)
    assert running.wait(DEADLINE_S)
    found = running.result()
    assert (found.pid, found.started) == (faster.pid, False)
    assert not processes.wait_ended(upstreams(sshd), DEADLINE_S)
    assert probe(str(path)).pid == faster.pid


def test_a_race_lost_by_ssh_as_our_engine_is_joined(
    sshd: Sshd, path: Path, gate: Path, make_master: Callable[..., Master]
) -> None:
    terms = Terms(ssh_command=("ssh",))
    running = walk(sshd, *gated(sshd, gate), control_path=path, terms=terms).begin()
    held = wait_for_login(gate, running)
    faster = make_master(sshd, control_path=path)
    os.close(held)
    assert running.wait(DEADLINE_S)
    assert (running.result().pid, running.result().started) == (faster.pid, False)


def test_ssh_as_our_engine_is_taken_back(sshd: Sshd, path: Path, gate: Path) -> None:
    options = gated(sshd, gate)
    running = walk(sshd, *options, control_path=path, terms=Terms(ssh_command=("ssh",))).begin()
    held = wait_for_login(gate, running)
    take_back(running)
    os.close(held)


def test_a_stopped_ssh_as_our_engine_is_taken_back(sshd: Sshd, path: Path, gate: Path) -> None:
    options = gated(sshd, gate)
    running = walk(sshd, *options, control_path=path, terms=Terms(ssh_command=("ssh",))).begin()
    held = wait_for_login(gate, running)
    ssh = engine(path)
    processes.send_signal(ssh, signal.SIGSTOP)
    take_back(running)
    assert processes.look(ssh.pid) is None
    os.close(held)


def test_ssh_as_our_engine_that_ignores_its_end_is_killed(
    sshd: Sshd, path: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openssh_master, "_END_DEADLINE_S", 0.05)
    options = gated(sshd, gate)
    deaf = Terms(ssh_command=("sh", "-c", "trap '' TERM; exec ssh \"$@\"", "sh"))
    running = walk(sshd, *options, control_path=path, terms=deaf).begin()
    held = wait_for_login(gate, running)
    ssh = engine(path)
    take_back(running)
    assert processes.look(ssh.pid) is None
    os.close(held)


def take_back(running: Running) -> None:
    """Cancel it, and see it end for that reason."""
    running.cancel()
    assert running.wait(DEADLINE_S)
    with pytest.raises(JoinError, match="interrupted"):
        running.result()


def engine(path: Path) -> processes.Process:
    """The ssh that logs in for this path."""
    (found,) = [
        one
        for one in processes.descendants(os.getpid())
        if one.command.startswith("ssh ") and f"-S {path} " in one.command
    ]
    return found


def test_something_else_came_while_we_logged_in(sshd: Sshd, path: Path, gate: Path) -> None:
    running = walk(sshd, *gated(sshd, gate), control_path=path).begin()
    held = wait_for_login(gate, running)
    path.write_text("x")
    os.close(held)
    assert running.wait(DEADLINE_S)
    with pytest.raises(JoinError, match="is a regular file") as caught:
        running.result()
    assert caught.value.exit_code is ExitCode.UNSAFE_SOCKET
    assert path.read_text() == "x"
    path.unlink()


@pytest.mark.parametrize(
    ("moment", "code"), [("at its beginning", ExitCode.INTERRUPTED), ("at its end", ExitCode.AUTH_FAILED)]
)
def test_ctrl_c_outside_of_its_loop(
    sshd: Sshd,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    moment: str,
    code: ExitCode,
) -> None:
    """It waits for the loop, or comes too late to change what is told."""
    monkeypatch.setattr(start, "_MAIN", STRUCK_MAIN)
    monkeypatch.setenv("STRUCK", moment)
    with pytest.raises(JoinError) as caught:
        walk(sshd, "User=nobody", control_path=path, terms=Terms(batch=True)).run()
    assert caught.value.exit_code is code
    said = capfd.readouterr().err
    assert "Traceback" not in said and "Exception ignored" not in said


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_in_order(sshd: Sshd, path: Path, number: signal.Signals) -> None:
    found = walk(sshd, control_path=path).run()
    with ending(found.pid) as process:
        shell = subprocess.Popen(
            ["ssh", "-F", str(sshd.ssh_config), "-S", str(path), HOST, "echo here; cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"here\n"
        processes.send_signal(process, number)
        assert shell.wait(DEADLINE_S) == 255
        shell.communicate()
        assert not processes.wait_ended([process], DEADLINE_S)
        assert not path.exists()


def test_at_its_end_it_leaves_what_is_not_its_own(sshd: Sshd, path: Path, make_master: Callable[..., Master]) -> None:
    found = walk(sshd, control_path=path).run()
    with ending(found.pid) as process:
        path.unlink()
        other = make_master(sshd, control_path=path)
        processes.send_signal(process, signal.SIGTERM)
        assert not processes.wait_ended([process], DEADLINE_S)
        assert probe(str(path)).pid == other.pid


def test_it_ends_with_its_last_rider(sshd: Sshd, path: Path) -> None:
    found = walk(sshd, control_path=path, terms=Terms(persist="no")).run()
    with ending(found.pid) as process:
        assert probe(str(path)).found is Found.LIVE  # a look
        sshd.ssh("-S", str(path), HOST, "true")
        assert not processes.wait_ended([process], DEADLINE_S)


@pytest.mark.parametrize("terms", [Terms(explicit_start=True), Terms(persist="yes"), Terms(persist="1h")])
def test_it_stays_without_riders(sshd: Sshd, path: Path, terms: Terms) -> None:
    with walk(sshd, control_path=path, terms=terms).reached() as found:
        sshd.ssh("-S", str(path), HOST, "true")
        assert processes.wait_ended([processes.known(found.pid or 0)], 2.0)
        assert sshd.ssh("-S", str(path), HOST, "echo", "here").stdout == "here\n"


def test_as_ssh_without_riders_it_counts_from_its_start(sshd: Sshd, path: Path) -> None:
    found = walk(sshd, control_path=path, terms=Terms(explicit_start=True, persist="1")).run()
    with ending(found.pid) as process:
        assert not processes.wait_ended([process], DEADLINE_S)


def test_a_persist_that_means_nothing_is_told_before_the_login(sshd: Sshd, path: Path) -> None:
    before = logins(sshd)
    with pytest.raises(JoinError, match="yes, no or a time") as caught:
        walk(sshd, control_path=path, terms=Terms(persist="soon")).run()
    assert caught.value.exit_code is ExitCode.USAGE
    assert logins(sshd) == before


def test_a_forwarding_that_fails_is_said_or_ends_it(
    sshd: Sshd, path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "taken"
    in_the_way.write_text("x")
    forward = f"LocalForward={in_the_way} 127.0.0.1:1"
    with walk(sshd, forward, control_path=path).reached():
        assert "could not be opened" in capfd.readouterr().err
    with pytest.raises(JoinError, match="could not be opened"):
        walk(sshd, forward, "ExitOnForwardFailure=yes", control_path=path).run()
    assert not upstreams(sshd)


# -- the foreground ---------------------------------------------------------------------------------------------------


def test_in_the_foreground_it_stays_with_its_starter(sshd: Sshd, path: Path) -> None:
    found = walk(sshd, control_path=path, terms=Terms(foreground=True)).run()
    assert found.leash is not None and found.pid is not None
    with ending(found.pid) as process:
        assert process.parent == os.getpid()
        assert os.getpgid(found.pid) == os.getpgid(0)
        processes.send_signal(process, signal.SIGINT)  # as Ctrl-C sends it to all: meant for the mount
        sshd.ssh("-S", str(path), HOST, "true")
        found.leash.wait()
        assert not processes.look(process.pid)


def test_in_the_foreground_told_to_end_alone_it_serves_on_for_a_mount_and_ends(sshd: Sshd, path: Path) -> None:
    """As long as the mount would need, had it been told as well: it was not, and never lets it off."""
    found = walk(sshd, control_path=path, terms=Terms(foreground=True)).run()
    assert found.leash is not None
    with ending(found.pid) as process:
        with subprocess.Popen(
            ["ssh", "-F", str(sshd.ssh_config), "-S", str(path), HOST, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as shell:
            assert shell.stdin is not None and shell.stdout is not None
            for number in (signal.SIGTERM, signal.SIGHUP):
                processes.send_signal(process, number)
                shell.stdin.write(b"still here\n")
                shell.stdin.flush()
                assert shell.stdout.readline() == b"still here\n"
            assert shell.wait(DEADLINE_S) == 255
        found.leash.wait()


def test_in_the_foreground_it_ends_when_its_starter_has_gone_before_it_rode(sshd: Sshd, path: Path) -> None:
    """Interrupted just as the report came. Killed for not ending, it would leave its socket."""
    never = waiting.make_event()
    upstream = start._Process(Order(target=walk(sshd).target(), path=str(path), foreground=True), None)
    assert upstream.report(DEADLINE_S, never).kind is Kind.READY
    upstream.close()
    assert not path.exists()
    os.close(never)


def test_in_the_foreground_it_waits_for_who_still_rides(sshd: Sshd, path: Path) -> None:
    command = [sys.executable, "-c", STARTER + "input()", str(sshd.ssh_config), str(path), "-f"]
    starter = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert starter.stderr is not None
    seen = []
    for line in starter.stderr:
        seen.append(line)
        if "shared at" in line:
            break
    rider = subprocess.Popen(
        ["ssh", "-F", str(sshd.ssh_config), "-S", str(path), HOST, "echo here; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert rider.stdout is not None
    assert rider.stdout.readline() == b"here\n"
    (process,) = upstreams(sshd)
    starter.kill()
    starter.wait()
    for line in starter.stderr:
        seen.append(line)
        if "Ctrl-C" in line:
            break
    assert "1 client still rides on the connection to box; Ctrl-C ends it for all" in seen[-1]
    rider.communicate(timeout=DEADLINE_S)
    assert rider.returncode == 0
    assert not processes.wait_ended([process], DEADLINE_S)
    starter.stderr.close()
    assert starter.stdin is not None
    starter.stdin.close()


# -- the process by itself --------------------------------------------------------------------------------------------

MAIN = Path(__file__).resolve().parents[2] / "mux" / "upstream" / "__main__.py"


@pytest.mark.parametrize("line", [b"", b"garbage", b"garbage\n", b"{}\n", b'{"target": {}}\n', b"x" * 70000])
def test_an_order_that_is_none(line: bytes) -> None:
    orders, order = os.pipe()
    reports, report = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", str(MAIN), str(orders), str(report)], pass_fds=(orders, report), stderr=subprocess.PIPE
    )
    for descriptor in (orders, report):
        os.close(descriptor)
    with os.fdopen(order, "wb") as pipe:
        pipe.write(line)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == (ExitCode.USAGE if line else ExitCode.INTERRUPTED)
    assert said.startswith(b"sshmux: an order that") if line else not said
    assert b"Traceback" not in said
    assert os.read(reports, 1) == b""
    os.close(reports)


def test_modules_are_not_taken_from_where_the_user_stands(
    sshd: Sshd, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mux", "asyncssh"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('taken from the working directory')")
    monkeypatch.chdir(tmp_path)
    with walk(sshd, control_path=path).reached() as found:
        assert found.started


def test_the_log_goes_to_the_file(sshd: Sshd, path: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    terms = Terms(log_file=str(log), debug=True)
    with walk(sshd, control_path=path, terms=terms).reached():
        pass
    text = log.read_text()
    assert f"connected to box, shared at {path}" in text
    assert "ends: SIGTERM was received" in text


def test_a_log_file_that_cannot_be_written(sshd: Sshd, path: Path) -> None:
    with pytest.raises(JoinError, match="/nonexistent/log"):
        walk(sshd, control_path=path, terms=Terms(log_file="/nonexistent/log")).run()


def test_a_password_is_in_no_argument_and_no_environment(sshd: Sshd, path: Path) -> None:
    with walk(sshd, control_path=path, terms=Terms(password="swordfish")).reached() as found:
        for name in ("cmdline", "environ"):
            assert b"swordfish" not in Path(f"/proc/{found.pid}/{name}").read_bytes()
