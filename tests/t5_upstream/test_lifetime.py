"""Ends: of the holder, of the server, of the line between them; and who knows of it, and when."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mux.protocol.messages import Alive, AliveCheck
from tests.support import processes
from tests.support.delay_proxy import DelayProxy
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd
from tests.support.upstream import SSHMUX, Upstream, sshmux
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import DEADLINE_S, SSH_FAILED, Clients, ended, line_of, say
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.raw import Raw, null, run, session

# What "at once" may take on a busy machine; nothing that waits for a keepalive's timeout (45 s) is as fast.
AT_ONCE_S = 15.0
# How a holder is told to find a silent line dead: after five answers that do not come, a second each. A busy machine is
# not silent for so long.
KEEPALIVE = ["-oServerAliveInterval=1", "-oServerAliveCountMax=5"]


@contextmanager
def riders(holder: Master, count: int = 4) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Sessions that are under way, one of them a stdio forwarding."""
    clients = Clients.of(holder)
    with ExitStack() as stack:
        running = [stack.enter_context(clients.started(HOST, "echo ready; cat")) for _ in range(count)]
        assert [line_of(process) for process in running] == [b"ready"] * count
        forward = stack.enter_context(clients.started("-W", f"127.0.0.1:{holder.sshd.port}", HOST))
        assert line_of(forward).startswith(b"SSH-2.0-")
        yield [*running, forward]


def all_know(running: list[subprocess.Popen[bytes]], deadline_s: float = AT_ONCE_S) -> None:
    """Every client has ended, within the deadline for all together."""
    until = time.monotonic() + deadline_s
    codes = [ended(process, max(0.1, until - time.monotonic())) for process in running]
    # A stdio forwarding that ends has no exit code to tell of.
    assert codes[:-1] == [SSH_FAILED] * (len(running) - 1)


def wait_for_end(holder: Master, deadline_s: float = AT_ONCE_S) -> None:
    wait_until(lambda: not holder.running, "the holder has ended", deadline_s)


def test_50_server_killed(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> None:
    sshd = make_sshd()
    holder = make_holder(sshd)
    with riders(holder) as running:
        sshd.kill()
        all_know(running)
    wait_for_end(holder)
    assert not os.path.lexists(holder.control_path)


def test_50_connection_process_killed(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> None:
    """Only this connection's sshd; a new one can be had at once."""
    sshd = make_sshd()
    holder = make_holder(sshd)
    with riders(holder) as running:
        for process in sshd.sessions():
            processes.send_signal(process, signal.SIGKILL)
        all_know(running)
    wait_for_end(holder)
    assert not os.path.lexists(holder.control_path)
    second = make_holder(sshd, control_path=holder.control_path)
    assert Clients.of(second).ssh(HOST, "exit 3").returncode == 3


def test_50_line_cut(
    make_sshd: Callable[..., Sshd], make_proxy: Callable[..., DelayProxy], make_holder: Callable[..., Master]
) -> None:
    sshd = make_sshd()
    proxy = make_proxy(sshd.port, 0.0)
    holder = make_holder(sshd, config=sshd.via(proxy.port))
    with riders(holder) as running:
        proxy.stop()
        all_know(running)
    wait_for_end(holder)
    assert not os.path.lexists(holder.control_path)


def test_50_line_silent(
    make_sshd: Callable[..., Sshd], make_proxy: Callable[..., DelayProxy], make_holder: Callable[..., Master]
) -> None:
    """Found by keepalives; until then a new client is answered, and then none is left waiting."""
    sshd = make_sshd()
    proxy = make_proxy(sshd.port, 0.0)
    holder = make_holder(sshd, config=sshd.via(proxy.port), options=KEEPALIVE)
    with riders(holder) as running, proxy.silent(), null() as descriptors:
        with Raw(holder.control_path) as raw, Raw(holder.control_path) as waiting:
            raw.say(AliveCheck(1))
            assert raw.expect(Alive) == Alive(1, holder.pid)
            waiting.say(session(), descriptors)
            all_know(running, DEADLINE_S)
            assert raw.hung_up()
            assert waiting.hung_up()
        wait_for_end(holder)
        assert not os.path.lexists(holder.control_path)
    assert "Timeout, server" in holder.log_text()


@ours_only
def test_50_line_silent_for_a_moment(
    make_sshd: Callable[..., Sshd], make_proxy: Callable[..., DelayProxy], make_holder: Callable[..., Master]
) -> None:
    """Shorter than it takes to give up: everything goes on."""
    sshd = make_sshd()
    proxy = make_proxy(sshd.port, 0.0)
    holder = make_holder(sshd, config=sshd.via(proxy.port))
    with Clients.of(holder).started(HOST, "cat; exit 6") as process:
        with proxy.silent():
            say(process, b"word\n")
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.5)
        assert line_of(process) == b"word"
        assert process.stdin is not None
        process.stdin.close()
        assert ended(process) == 6


def test_51_holder_killed(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> None:
    """Every client knows at once; the socket stays, and nobody listens there."""
    sshd = make_sshd()
    holder = make_holder(sshd)
    with riders(holder) as running:
        holder.kill()
        all_know(running)
    assert os.path.lexists(holder.control_path)
    assert Clients.of(holder).ssh(HOST, "true").returncode == SSH_FAILED
    wait_until(lambda: not sshd.sessions(), "the server has nobody any more")


@ours_only
def test_51_new_start_after_a_kill(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> None:
    """The stale socket gives way."""
    sshd = make_sshd()
    holder = make_holder(sshd)
    holder.kill()
    second = make_holder(sshd, control_path=holder.control_path)
    assert second.pid != holder.pid
    assert Clients.of(second).ssh(HOST, "exit 3").returncode == 3


def test_51_holder_frozen(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> None:
    """And thawed: nothing was lost."""
    holder = make_holder(make_sshd())
    with Clients.of(holder).started(HOST, "cat; exit 6") as process:
        say(process, b"before\n")
        assert line_of(process) == b"before"
        holder.freeze()
        say(process, b"meanwhile\n")
        holder.thaw()
        assert line_of(process) == b"meanwhile"
        assert process.stdin is not None
        process.stdin.close()
        assert ended(process) == 6


@pytest.fixture
def detached(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> Callable[..., Upstream]:
    """`detached(option...)`: ours as a user starts it, in the background."""
    sshd = make_sshd()

    def make(*options: str) -> Upstream:
        holder = make_holder(sshd, options=list(options), foreground=False)
        assert isinstance(holder, Upstream)
        return holder

    return make


@ours_only
def test_38_detached_from_everything(detached: Callable[..., Upstream]) -> None:
    """No terminal, no directory, no descriptor of whoever started it."""
    pid = detached().pid
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {os.devnull}
    # The seventh field of /proc/PID/stat (proc(5)): the controlling terminal.
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"


@ours_only
def test_38_who_waits_for_the_output_of_a_start_is_not_held(
    make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]
) -> None:
    """Its pipes are closed when it returns, by everybody."""
    sshd = make_sshd()
    path = str(sshd.control_dir / "own")
    command = [*SSHMUX, "start", "-F", str(sshd.ssh_config), "-S", path, HOST]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=sshd.environment()
    )
    try:
        said, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, said
        assert run(path) == 3
    finally:
        done = sshmux("exit", "--now", "-F", str(sshd.ssh_config), "-S", path, HOST, env=sshd.environment())
    assert done.returncode == 0, done.stderr


@ours_only
def test_56_ends_by_itself_after_its_time(detached: Callable[..., Upstream]) -> None:
    """Not while somebody rides, however long; then after the time."""
    holder = detached("--persist=8")
    with Clients.of(holder).started(HOST, "echo ready; sleep 10; read line; exit 6") as process:
        assert line_of(process) == b"ready"
        say(process, b"\n")
        assert ended(process) == 6
    wait_for_end(holder, DEADLINE_S)
    assert not os.path.lexists(holder.control_path)


@ours_only
def test_56_a_look_starts_the_time_again(detached: Callable[..., Upstream]) -> None:
    """As OpenSSH counts it: any client does."""
    holder = detached("--persist=8")
    until = time.monotonic() + 12
    while time.monotonic() < until:
        assert holder.control("check").returncode == 0
        with pytest.raises(TimeoutError):
            wait_gone(holder, 0.3)
    assert holder.running
    wait_for_end(holder, DEADLINE_S)


@ours_only
def test_56_stays_without_a_time(detached: Callable[..., Upstream]) -> None:
    holder = detached()
    for number in range(3):
        assert Clients.of(holder).ssh(HOST, f"exit {number}").returncode == number
    with pytest.raises(TimeoutError):
        wait_gone(holder, 1.5)


def wait_gone(holder: Master, deadline_s: float) -> None:
    """Raises TimeoutError."""
    if processes.wait_ended([processes.known(holder.pid)], deadline_s):
        raise TimeoutError
