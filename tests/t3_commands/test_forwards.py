"""`sshmux forward` and `cancel` on a real master: what is opened works, and what is refused is told as ssh tells it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.support.master import Master
from tests.support.ports import free_port
from tests.support.sshd import Sshd
from tests.t3_commands.command import OK, SSH_FAILED, USAGE, about

DEADLINE_S = 60.0


@pytest.fixture
def port() -> int:
    """A port on which nobody listens."""
    return free_port()


def banner(address: tuple[str, int] | str) -> bytes:
    """What whoever is behind a forwarding says first."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(address)
        return connection.recv(8)


def test_local(holder: Master, port: int, sshd: Sshd) -> None:
    wanted = f"127.0.0.1:{port}:127.0.0.1:{sshd.port}"
    for _ in range(2):  # the same again is there already
        done = about(holder, "forward", "-L", wanted)
        assert (done.stdout, done.stderr, done.returncode) == ("", "", OK)
        assert banner(("127.0.0.1", port)) == b"SSH-2.0-"
    done = about(holder, "cancel", "-L", wanted)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", OK)
    with pytest.raises(ConnectionRefusedError):
        banner(("127.0.0.1", port))


def test_a_port_chosen_by_the_server(holder: Master, sshd: Sshd) -> None:
    done = about(holder, "forward", "-R", f"0:127.0.0.1:{sshd.port}")
    assert (done.stderr, done.returncode) == ("", OK)
    assert banner(("127.0.0.1", int(done.stdout))) == b"SSH-2.0-"
    assert about(holder, "forward", "-R", f"0:127.0.0.1:{sshd.port}").stdout == done.stdout
    # Canceled as it was opened: by 0, here and in ssh.
    assert about(holder, "cancel", "-R", f"0:127.0.0.1:{sshd.port}").returncode == OK


def test_sockets_and_several_at_once(holder: Master, sshd: Sshd, port: int) -> None:
    path = sshd.control_dir / "forwarded"
    done = about(holder, "forward", "-L", f"{path}:127.0.0.1:{sshd.port}", "-D", f"127.0.0.1:{port}")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", OK)
    assert banner(str(path)) == b"SSH-2.0-"
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as proxy:
        proxy.sendall(bytes([5, 1, 0]))
        assert proxy.recv(2) == bytes([5, 0])
    done = about(holder, "cancel", "-D", f"127.0.0.1:{port}", "-L", f"{path}:127.0.0.1:{sshd.port}")
    assert (done.stderr, done.returncode) == ("", OK)
    path.unlink(missing_ok=True)


def test_refused(holder: Master, sshd: Sshd) -> None:
    wanted = f"127.0.0.1:{sshd.port}:127.0.0.1:{sshd.port}"
    done = about(holder, "forward", "-L", wanted)
    by_ssh = holder.control("forward", "-L", wanted)
    assert (done.stdout, done.returncode) == ("", SSH_FAILED) and by_ssh.returncode == SSH_FAILED
    assert words_of(by_ssh.stderr) == words_of(done.stderr)
    assert done.stderr.splitlines() == [
        "sshmux: forwarding request failed: Port forwarding failed",
        "sshmux: master forward request failed",
    ]


def test_not_there(holder: Master, port: int) -> None:
    done = about(holder, "cancel", "-L", f"{port}:127.0.0.1:22")
    by_ssh = holder.control("cancel", "-L", f"{port}:127.0.0.1:22")
    assert done.returncode == by_ssh.returncode == OK
    assert words_of(by_ssh.stderr) == words_of(done.stderr)


def words_of(text: str) -> list[str]:
    """The words behind the colon that ends the name of a function, or of the program."""
    return [line.partition(": ")[2] for line in text.split("\r\n" if "\r\n" in text else "\n") if line]


def test_mistakes_open_nothing(holder: Master, port: int) -> None:
    for arguments in ([], ["-L", f"{port}:a:1", "-L", "nonsense"]):
        done = about(holder, "forward", *arguments)
        assert (done.stdout, done.returncode) == ("", USAGE)
        assert done.stderr.startswith("sshmux: ")
    with pytest.raises(ConnectionRefusedError):
        banner(("127.0.0.1", port))


def test_a_master_that_asks_and_is_told_no(make_master: Callable[..., Master], sshd: Sshd) -> None:
    # The second -M is `ControlMaster ask`. Without a way to ask anybody the answer is no.
    asking = make_master(sshd, control_path=sshd.control_dir / "asking", options=["-M"])
    for command, said in (("forward", "forwarding request refused"), ("stop", "Master refused stop listening request")):
        done = about(asking, command, *["-L", "127.0.0.1:1:127.0.0.1:1"] * (command == "forward"))
        assert (done.stdout, done.returncode) == ("", SSH_FAILED)
        assert done.stderr.startswith(f"sshmux: {said}: Permission denied\n")
    done = about(asking, "exit")
    assert done.stderr == "sshmux: Master refused termination request: Permission denied\n"
    assert asking.running
