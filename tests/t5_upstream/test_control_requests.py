"""What is asked of the holder itself: check, stop, exit, information; and refusals for want of sessions."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mux.protocol.messages import Failure, Info, InfoRequest, Ok, StopListening, Terminate
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import DEADLINE_S, NOT_JOINED, SSH_FAILED, Clients, ended, line_of, say
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.raw import Raw, null, session


def test_01_check(clients: Clients, holder: Master) -> None:
    done = clients.control("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"Master running (pid=%d)\r\n" % holder.pid)


def test_01_check_with_nobody_there(server: Sshd) -> None:
    """What the installed client says then; the same whoever held it."""
    done = Clients(server, str(server.control_dir / "nobody")).control("check")
    assert done.returncode == SSH_FAILED
    assert b"No such file or directory" in done.stderr


def test_01_the_pid_is_for_window_sizes(clients: Clients, holder: Master) -> None:
    """Any client may send it SIGWINCH."""
    subprocess.run(["kill", "-WINCH", str(holder.pid)], check=True, timeout=DEADLINE_S)
    assert clients.ssh(HOST, "exit 3").returncode == 3


@pytest.fixture
def own(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> Master:
    """A connection that a test may end."""
    return make_holder(make_sshd())


def wait_for_end(holder: Master) -> None:
    wait_until(lambda: not holder.running, "the holder has ended")


def test_37_stop(own: Master) -> None:
    """The socket goes; a session that runs goes on to its end, and then the holder ends."""
    clients = Clients.of(own)
    with clients.started(HOST, "echo ready; read line; echo $line; exit 4") as process:
        assert line_of(process) == b"ready"
        done = clients.control("stop")
        assert (done.returncode, done.stderr) == (0, b"Stop listening request sent.\r\n")
        assert not Path(own.control_path).exists()
        assert clients.control("check").returncode == SSH_FAILED
        say(process, b"word\n")
        assert line_of(process) == b"word"
        assert ended(process) == 4
    wait_for_end(own)


def test_37_stop_with_nobody_riding(own: Master) -> None:
    Clients.of(own).control("stop")
    wait_for_end(own)
    assert not Path(own.control_path).exists()


def test_37_a_new_holder_after_stop(own: Master, make_holder: Callable[..., Master]) -> None:
    """The path is free at once, while the first still serves."""
    clients = Clients.of(own)
    with clients.started(HOST, "echo ready; read line; exit 4") as process:
        assert line_of(process) == b"ready"
        clients.control("stop")
        second = make_holder(own.sshd, control_path=own.control_path)
        assert second.pid != own.pid
        say(process, b"\n")
        assert ended(process) == 4
        wait_for_end(own)
        # The first one's end has not taken the second one's socket away.
        assert Clients.of(second).ssh(HOST, "exit 3").returncode == 3


def test_38_exit(own: Master) -> None:
    """At once: every session ends with 255, and the socket goes."""
    clients = Clients.of(own)
    with ExitStack() as stack:
        running = [stack.enter_context(clients.started(HOST, "echo ready; cat")) for _ in range(3)]
        assert [line_of(process) for process in running] == [b"ready"] * 3
        done = clients.control("exit")
        assert (done.returncode, done.stderr) == (0, b"Exit request sent.\r\n")
        assert [ended(process) for process in running] == [SSH_FAILED] * 3
        wait_for_end(own)
    assert not Path(own.control_path).exists()
    wait_until(lambda: not own.sshd.sessions(), "the server has nobody any more")


def test_38_exit_quietly(own: Master) -> None:
    done = Clients.of(own).control("exit", "-q")
    assert (done.returncode, done.stderr) == (0, b"")
    wait_for_end(own)


def test_38_requests_by_hand(own: Master) -> None:
    """The replies have the request's own number, and nothing else comes."""
    with Raw(own.control_path) as raw:
        raw.say(StopListening(41))
        assert raw.expect(Ok) == Ok(41)
        raw.say(Terminate(42))
        # A holder may be gone before it could answer; a client takes the end for a yes.
        assert raw.hung_up()
    wait_for_end(own)


@pytest.fixture
def crowded(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> Iterator[Any]:
    """A server that allows two sessions, both taken: (clients, the two)."""
    clients = Clients.of(make_holder(make_sshd(max_sessions=2)))
    with ExitStack() as stack:
        running = [stack.enter_context(clients.started(HOST, "echo ready; cat")) for _ in range(2)]
        assert [line_of(process) for process in running] == [b"ready"] * 2
        yield clients, running


def test_39_more_sessions_than_allowed(crowded: Any) -> None:
    """It is told, the client tries by itself, those there are go on, and later there is room again."""
    clients, running = crowded
    done = clients.ssh(HOST, "true")
    assert done.returncode == SSH_FAILED
    assert b"session request failed: Session open refused by peer" in done.stderr
    assert NOT_JOINED in done.stderr
    for process in running:
        say(process, b"word\n")
        assert line_of(process) == b"word"
    running[0].stdin.close()
    assert ended(running[0]) == 0
    # The server frees a session a moment after its client has heard of the end.
    wait_until(lambda: clients.ssh(HOST, "exit 3").returncode == 3, "there is room for a session again")


def test_39_client_with_a_login_of_its_own(crowded: Any) -> None:
    """A client that may log in does, and its command runs."""
    clients, _ = crowded
    plain = clients.sshd.ssh("-S", clients.control_path, HOST, "exit 5", check=False)
    assert plain.returncode == 5


def test_39_refusal_by_hand(crowded: Any) -> None:
    clients, _ = crowded
    with Raw(clients.control_path) as raw, null() as descriptors:
        raw.say(session(9), descriptors)
        assert raw.expect(Failure) == Failure(9, b"Session open refused by peer")


@ours_only
def test_42_connection_information(clients: Clients, holder: Master, server: Sshd) -> None:
    """`ssh -O conninfo` of 10.3, by hand."""
    with Raw(holder.control_path) as raw:
        assert raw.extensions == ((b"info", b"0"),)
        raw.say(InfoRequest(5, b"connection"))
        info = raw.expect(Info)
    assert (info.request_id, info.supported) == (5, True)
    lines = info.text.decode().split("\r\n")
    assert re.fullmatch(rf"Connection information for \S+ pid {holder.pid}", lines[0])
    assert re.fullmatch(rf"  tcp 127\.0\.0\.1:\d+ -> 127\.0\.0\.1:{server.port}", lines[1])
    told = dict(line.strip().partition(" ")[::2] for line in lines[2:] if line)
    assert {"duration", "kexalgorithm", "hostkeyalgorithm", "cipher", "mac", "compression"} <= set(told)
    assert "gcm" in told["cipher"] or "chacha" in told["cipher"] or "ctr" in told["cipher"]
    assert told["hostkeyalgorithm"] == "ssh-ed25519"
    assert re.search(r"\d\S* in, \d.* out", told["traffic"])


@ours_only
def test_42_channels(clients: Clients, holder: Master) -> None:
    with clients.started(HOST, "echo ready; cat") as process, Raw(holder.control_path) as raw:
        assert line_of(process) == b"ready"
        raw.say(InfoRequest(5, b"channels"))
        info = raw.expect(Info)
    lines = info.text.decode().split("\r\n")
    assert lines[0] == "The following connections are open:"
    assert re.match(r"  #\d+ \S+", lines[1])


@ours_only
def test_42_information_nobody_has(holder: Master) -> None:
    with Raw(holder.control_path) as raw:
        raw.say(InfoRequest(5, b"weather"))
        assert raw.expect(Info) == Info(5, False, b"info request type not supported")
        assert raw.alive() == holder.pid
