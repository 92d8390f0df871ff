"""Clients that speak the connection protocol themselves: `ssh -O proxy`, and packets made by hand."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from mux.protocol.messages import Proxy, ProxyReady
from tests.support.master import Master
from tests.support.ports import free_port
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import SSH_FAILED, Clients, ended, line_of, say, wait_for_file
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.raw import Raw, well
from tests.t5_upstream.sockets import Server, connected, echoes, refused, there_and_back
from tests.t5_upstream.terminal import Terminal

DISCONNECT, KEXINIT = 1, 20
GLOBAL_REQUEST, REQUEST_SUCCESS, REQUEST_FAILURE = 80, 81, 82
OPEN, OPEN_CONFIRMATION, OPEN_FAILURE, DATA, CLOSE, REQUEST = 90, 91, 92, 94, 97, 98
WINDOW, PACKET = 0x200000, 0x8000


@pytest.mark.parametrize("code", [0, 3, 255])
def test_41_exit_code(clients: Clients, code: int) -> None:
    done = clients.ssh("-O", "proxy", HOST, f"echo out; echo err >&2; exit {code}")
    assert (done.returncode, done.stdout) == (code, b"out\n")
    assert done.stderr.startswith(b"err\n")


def test_41_there_and_back(clients: Clients) -> None:
    data = os.urandom(5_000_000)
    done = clients.ssh("-O", "proxy", HOST, "cat", input=data)
    assert (done.returncode, done.stdout == data) == (0, True)


def test_41_terminal(clients: Clients) -> None:
    command = clients.command("-O", "proxy", "-t", HOST, "tty; stty size; exit 4")
    with Terminal(command, env=clients.environment(TERM="vt220"), size=(33, 101)) as opened:
        opened.expect(rb"/dev/pts/\d+\r\n33 101\r\n")
        assert opened.finish() == 4


def test_41_killed_by_a_signal(clients: Clients) -> None:
    assert clients.ssh("-O", "proxy", HOST, "kill -9 $$").returncode == SSH_FAILED


def test_41_several_at_once(clients: Clients) -> None:
    with clients.started("-O", "proxy", HOST, "cat") as one, clients.started("-O", "proxy", HOST, "cat") as two:
        for process, word in ((one, b"one"), (two, b"two"), (one, b"three")):
            say(process, word + b"\n")
            assert line_of(process) == word
        one.kill()
        say(two, b"four\n")
        assert line_of(two) == b"four"


@ours_only
def test_41_client_with_keepalive(clients: Clients) -> None:
    """A real master hangs up at the first one; a client that is never answered, after four of them."""
    options = ("-oServerAliveInterval=1", "-oServerAliveCountMax=4")
    with clients.started("-O", "proxy", *options, HOST, "echo ready; sleep 7; read line; exit 5") as process:
        assert line_of(process) == b"ready"
        say(process, b"\n")
        assert ended(process) == 5


def test_41_local_forwarding(clients: Clients) -> None:
    """Its own: it goes with the client."""
    port = free_port()
    with Server() as server:
        spec = f"{port}:127.0.0.1:{server.port}"
        with clients.started("-O", "proxy", "-L", spec, HOST, "echo ready; cat") as process:
            assert line_of(process) == b"ready"
            assert echoes(port)
        wait_until(lambda: refused(port), f"nobody listens on port {port}")


@ours_only
def test_41_remote_forwarding(clients: Clients) -> None:
    """It goes with the client, however that ends; a real master may be of no use to anybody afterwards."""
    port = free_port()
    with Server() as server:
        spec = f"{port}:127.0.0.1:{server.port}"
        with clients.started("-O", "proxy", "-R", spec, HOST, "echo ready; cat") as process:
            assert line_of(process) == b"ready"
            wait_until(lambda: not refused(port), f"port {port} listens")
            assert echoes(port)
        wait_until(lambda: refused(port), f"nobody listens on port {port}")


@ours_only
def test_41_remote_forwarding_of_the_server_s_choice(clients: Clients) -> None:
    """The reply with the port comes back to the client, which says it."""
    with Server() as server:
        spec = f"0:127.0.0.1:{server.port}"
        with clients.started("-O", "proxy", "-R", spec, HOST, "echo ready; cat") as process:
            assert process.stderr is not None
            said = process.stderr.readline().decode()
            assert said.startswith("Allocated port ")
            assert echoes(int(said.split()[2]))


@ours_only
def test_41_remote_forwarding_from_a_unix_socket(clients: Clients, directory: Path) -> None:
    path = directory / "there"
    with Server() as server:
        spec = f"{path}:127.0.0.1:{server.port}"
        with clients.started("-O", "proxy", "-R", spec, HOST, "echo ready; cat") as process:
            assert line_of(process) == b"ready"
            wait_until(lambda: not refused(path), f"{path} listens")
            assert echoes(path)


@ours_only
def test_41_remote_forwarding_that_fails(clients: Clients) -> None:
    with Server() as taken:
        spec = f"127.0.0.1:{taken.port}:127.0.0.1:1"
        done = clients.ssh("-O", "proxy", "-oExitOnForwardFailure=yes", "-R", spec, HOST, "true")
        assert done.returncode == SSH_FAILED
        assert b"remote port forwarding failed" in done.stderr


@ours_only
def test_41_refused_session_costs_nobody(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> None:
    """It ends a real master, with everybody on it."""
    clients = Clients.of(make_holder(make_sshd(max_sessions=1)))
    with clients.started(HOST, "echo ready; read line; exit 5") as process:
        assert line_of(process) == b"ready"
        done = clients.ssh("-O", "proxy", HOST, "true")
        assert done.returncode == SSH_FAILED
        assert b"open failed" in done.stderr
        say(process, b"\n")
        assert ended(process) == 5


class Packets:
    """A proxy client by hand."""

    def __init__(self, path: str) -> None:
        self._raw = Raw(path)
        self._raw.say(Proxy(0))
        self._raw.expect(ProxyReady)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def send(self, kind: int, body: bytes = b"") -> None:
        self._raw.send(struct.pack("!IBB", len(body) + 2, 0, kind) + body)

    def receive(self) -> tuple[int, bytes]:
        packet = self._raw.packet()
        return packet[1], packet[2:]

    def open_session(self, number: int = 0) -> int:
        """Returns the number to name it by."""
        self.send(OPEN, string(b"session") + struct.pack("!III", number, WINDOW, PACKET))
        kind, body = self.receive()
        assert kind == OPEN_CONFIRMATION
        recipient, theirs = struct.unpack("!II", body[:8])
        assert recipient == number
        return int(theirs)

    def hung_up(self) -> bool:
        return self._raw.hung_up()


def string(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


def request(number: int, name: bytes, *, answer: bool, body: bytes = b"") -> bytes:
    return struct.pack("!I", number) + string(name) + bytes([answer]) + body


@ours_only
def test_41_by_hand_session(holder: Master) -> None:
    """Our own number comes back in what is for us, whatever it is."""
    for number in (0, 5, 0xFFFFFFFF):
        with Packets(holder.control_path) as packets:
            theirs = packets.open_session(number)
            packets.send(REQUEST, request(theirs, b"exec", answer=True, body=string(b"echo hi; exit 3")))
            seen: dict[int, bytes] = {}
            while CLOSE not in seen:
                kind, body = packets.receive()
                assert struct.unpack("!I", body[:4]) == (number,)
                seen[kind] = seen.get(kind, b"") + body[4:]
            packets.send(CLOSE, struct.pack("!I", theirs))
            assert seen[DATA] == string(b"hi\n")
            assert seen[REQUEST] == string(b"exit-status") + b"\0" + struct.pack("!I", 3)


@ours_only
def test_41_by_hand_keepalive_is_answered(holder: Master) -> None:
    with Packets(holder.control_path) as packets:
        for _ in range(3):
            packets.send(GLOBAL_REQUEST, string(b"keepalive@openssh.com") + b"\1")
            assert packets.receive()[0] in (REQUEST_SUCCESS, REQUEST_FAILURE)


@ours_only
def test_41_by_hand_requests_are_answered_in_order(holder: Master) -> None:
    """Two ports, a refusal, a keepalive: each its own reply."""
    with Packets(holder.control_path) as packets, Server() as taken:
        any_port = string(b"tcpip-forward") + b"\1" + string(b"127.0.0.1") + struct.pack("!I", 0)
        this_port = string(b"tcpip-forward") + b"\1" + string(b"127.0.0.1") + struct.pack("!I", taken.port)
        packets.send(GLOBAL_REQUEST, any_port)
        packets.send(GLOBAL_REQUEST, this_port)
        packets.send(GLOBAL_REQUEST, any_port)
        packets.send(GLOBAL_REQUEST, string(b"keepalive@openssh.com") + b"\1")
        (first, port), (second, _), (third, other_port), (fourth, _) = (packets.receive() for _ in range(4))
        assert (first, second, third) == (REQUEST_SUCCESS, REQUEST_FAILURE, REQUEST_SUCCESS)
        assert fourth in (REQUEST_SUCCESS, REQUEST_FAILURE)
        ports = [struct.unpack("!I", body)[0] for body in (port, other_port)]
        for number in ports:
            with connected(number):
                kind, body = packets.receive()
                assert kind == OPEN
                assert body.startswith(string(b"forwarded-tcpip"))
                assert struct.pack("!I", number) in body
                sender = body[len(string(b"forwarded-tcpip")) :][:4]
                packets.send(OPEN_FAILURE, sender + struct.pack("!I", 1) + string(b"no") + string(b""))
        cancel = string(b"cancel-tcpip-forward") + b"\1" + string(b"127.0.0.1") + struct.pack("!I", ports[0])
        packets.send(GLOBAL_REQUEST, cancel)
        assert packets.receive()[0] == REQUEST_SUCCESS
        assert refused(ports[0]) and not refused(ports[1])
    wait_until(lambda: refused(ports[1]), "the other went with its client")


FORBIDDEN = {
    "disconnect": (DISCONNECT, struct.pack("!I", 11) + string(b"bye") + string(b"")),
    "key exchange": (KEXINIT, bytes(100)),
    "user authentication": (50, string(b"root") + string(b"ssh-connection") + string(b"none")),
    "a number nobody has": (255, b""),
    "somebody else's channel": (CLOSE, struct.pack("!I", 0)),
    "a channel of nobody": (DATA, struct.pack("!I", 4711) + string(b"data")),
    "a cut packet": (OPEN, string(b"session")[:5]),
    "a stray confirmation": (OPEN_CONFIRMATION, struct.pack("!IIII", 0, 0, WINDOW, PACKET)),
}


@ours_only
@pytest.mark.parametrize("what", FORBIDDEN)
def test_41_by_hand_what_would_end_the_connection_for_all(clients: Clients, holder: Master, what: str) -> None:
    """It is dropped, or its sender is; a session of somebody else goes on."""
    with clients.started(HOST, "echo ready; read line; exit 5") as process:
        assert line_of(process) == b"ready"
        with Packets(holder.control_path) as packets:
            packets.open_session()
            packets.send(*FORBIDDEN[what])
            wait_until(well(holder.control_path, holder.pid), "the holder is well")
        say(process, b"\n")
        assert ended(process) == 5


@ours_only
def test_41_by_hand_cut_off_at_every_step(clients: Clients, holder: Master, directory: Path) -> None:
    """Gone right after asking for a channel, with one open, with a command running in it."""
    path = holder.control_path
    with Packets(path) as packets:
        packets.send(OPEN, string(b"session") + struct.pack("!III", 0, WINDOW, PACKET))
    with Packets(path) as packets:
        packets.open_session()
    with Packets(path) as packets:
        theirs = packets.open_session()
        command = f"cat; echo over > {directory}/over".encode()
        packets.send(REQUEST, request(theirs, b"exec", answer=True, body=string(command)))
        packets.receive()
    assert wait_for_file(directory / "over") == "over\n"
    assert well(path, holder.pid)()
    assert clients.ssh("-O", "proxy", HOST, "exit 3").returncode == 3


@ours_only
def test_41_by_hand_reader_that_never_reads(clients: Clients, holder: Master) -> None:
    """A window of four gigabytes, and nothing taken: others go on, and the holder keeps a bounded part of it."""
    with Packets(holder.control_path) as packets:
        packets.send(OPEN, string(b"session") + struct.pack("!III", 0, 0xFFFFFFFF, PACKET))
        theirs = struct.unpack("!I", packets.receive()[1][4:8])[0]
        before = resident_bytes(holder.pid)
        packets.send(REQUEST, request(theirs, b"exec", answer=False, body=string(b"head -c 300000000 /dev/zero")))
        for number in range(5):
            data = os.urandom(1_000_000)
            done = clients.ssh(HOST, f"cat; exit {number}", input=data)
            assert (done.returncode, done.stdout == data) == (number, True)
        assert resident_bytes(holder.pid) - before < 100_000_000


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_41_forwarding_there_and_back(clients: Clients) -> None:
    """Several streams of one proxy client, large ones."""
    port = free_port()
    with Server() as server:
        spec = f"{port}:127.0.0.1:{server.port}"
        with clients.started("-O", "proxy", "-L", spec, HOST, "echo ready; cat") as process:
            assert line_of(process) == b"ready"
            data = os.urandom(3_000_000)
            with connected(port) as one, connected(port) as two:
                assert there_and_back(one, data) == data
                assert there_and_back(two, data) == data
