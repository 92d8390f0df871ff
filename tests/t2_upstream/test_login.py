"""A login as a whole: what it is made with, how it ends when it cannot be, and what is said of it."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mux.errors import ConnectionLost, ExitCode, RemoteProtocolError, SharingError
from mux.protocol.wire import string, u32
from mux.upstream import login as login_module
from mux.upstream.login import login
from mux.upstream.prompts import Prompts
from tests.support.sshd import HOST, Sshd, program
from tests.t2_upstream.logins import Said, askpass, keygen, log_in, refused, settings_for
from tests.t2_upstream.other_server import OtherServer, Wish

DEADLINE_S = 60.0


def test_what_the_connection_is_made_with(sshd: Sshd) -> None:
    facts = log_in(
        sshd.ssh_config,
        "KexAlgorithms=ecdh-sha2-nistp256",
        "Ciphers=aes256-ctr",
        "MACs=hmac-sha2-512-etm@openssh.com",
        "HostKeyAlgorithms=ssh-ed25519",
        "Compression=yes",
    )
    assert facts.kex == "ecdh-sha2-nistp256"
    for direction in (facts.sending, facts.receiving):
        assert direction.cipher == "aes256-ctr"
        assert direction.mac == "hmac-sha2-512-etm@openssh.com"
        assert direction.compression == "zlib@openssh.com"
    assert facts.host_key == "ssh-ed25519"


def test_the_order_of_ciphers_is_kept(sshd: Sshd) -> None:
    facts = log_in(sshd.ssh_config, "Ciphers=chacha20-poly1305@openssh.com,aes128-gcm@openssh.com")
    assert facts.sending.cipher == "chacha20-poly1305@openssh.com"


def test_key_types_that_are_known_come_first(make_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    keygen(tmp_path / "rsa", kind="rsa")
    server = make_sshd(extra=[f"HostKey {tmp_path}/rsa"])
    known = tmp_path / "known"
    known.write_text(f"{HOST} {(tmp_path / 'rsa.pub').read_text()}")
    assert log_in(server.ssh_config, f"UserKnownHostsFile={known}").host_key == "ssh-rsa"


@contextmanager
def speaking(*lines: bytes, hang_up: bool = True) -> Iterator[int]:
    """A server that says these bytes to everybody, and then hangs up or falls silent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        ending = threading.Event()

        def serve() -> None:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                for line in lines:
                    client.sendall(line)
                if not hang_up:
                    ending.wait(DEADLINE_S)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ending.set()
            thread.join(DEADLINE_S)


def test_nobody_is_there(sshd: Sshd) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        error = refused(sshd.ssh_config, f"Port={closed.getsockname()[1]}")
    assert error.exit_code is ExitCode.UNREACHABLE


def test_a_server_that_hangs_up(sshd: Sshd) -> None:
    with speaking() as port:
        error = refused(sshd.ssh_config, f"Port={port}")
    assert isinstance(error, ConnectionLost) and error.exit_code is ExitCode.UNREACHABLE
    assert error.message.startswith(f"the connection to 127.0.0.1 port {port} ended before the login began")


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 400 Bad\x1b[31m Request\r\n" * 2000, b"SSH-1.5-old\r\n", b"SSH-2.0-x\r\n" + b"\xff" * 64]
)
def test_a_server_that_does_not_speak_ssh(sshd: Sshd, line: bytes) -> None:
    with speaking(line) as port:
        error = refused(sshd.ssh_config, f"Port={port}")
    assert error.exit_code in (ExitCode.UNREACHABLE, ExitCode.PROTOCOL)
    assert error.message.isprintable()


def test_a_silent_server_has_a_limit(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_module, "SILENCE_S", 0.3)
    with speaking(b"SSH-2.0-silent\r\n", hang_up=False) as port:
        error = refused(sshd.ssh_config, f"Port={port}")
    assert error.exit_code is ExitCode.UNREACHABLE
    assert "gave no answer" in error.message


def test_a_person_may_think_longer_than_a_server_may_be_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_module, "SILENCE_S", 8.0)
    environment = askpass(tmp_path, "sesame")
    slow = Path(environment["SSH_ASKPASS"])
    slow.write_text(slow.read_text().replace("cat ", "sleep 10; cat "))
    with OtherServer(tmp_path, Wish(passwords=["sesame"])) as server:
        log_in(server.config, environment=environment)


def key_exchange(*names: str) -> bytes:
    """The packet by which a server offers these algorithms for it (RFC 4253 section 7.1)."""
    others = ("ssh-ed25519", "aes128-ctr", "aes128-ctr", "hmac-sha2-256", "hmac-sha2-256", "none", "none", "", "")
    lists = b"".join(string(one.encode()) for one in (",".join(names), *others))
    payload = bytes([20]) + bytes(16) + lists + b"\0" + u32(0)
    padding = 4 + -(9 + len(payload)) % 8
    return u32(1 + len(payload) + padding) + bytes([padding]) + payload + bytes(padding)


def test_nothing_in_common(sshd: Sshd) -> None:
    with speaking(b"SSH-2.0-other\r\n", key_exchange("curve25519-sha256"), hang_up=False) as port:
        error = refused(sshd.ssh_config, f"Port={port}", "KexAlgorithms=ecdh-sha2-nistp256")
    assert isinstance(error, RemoteProtocolError)
    assert error.message.startswith(f"unable to negotiate with 127.0.0.1 port {port}: ")
    assert "curve25519-sha256" in error.message


def test_a_login_through_a_program(sshd: Sshd) -> None:
    said = Said()
    config = sshd.directory / "proxied"
    command = f"sh -c 'echo noise >&2; exec {program('ssh')} -F {sshd.ssh_config} -W %h:%p {HOST}'"
    config.write_text(f"{sshd.ssh_config.read_text()}\n    ProxyCommand {command}\n")
    log_in(config, said=said)
    assert said == ["noise"]


def test_options_without_effect_are_named_once(sshd: Sshd) -> None:
    said = Said()
    log_in(sshd.ssh_config, "VisualHostKey=yes", "CheckHostIP=yes", "LogLevel=ERROR", said=said)
    assert said == ["no effect here: CheckHostIP, VisualHostKey"]


def test_a_host_that_the_configuration_refuses(sshd: Sshd) -> None:
    """RefuseConnection is of OpenSSH 10; the words are those that `ssh -G` would print there."""
    settings = settings_for(sshd.ssh_config)
    settings = dataclasses.replace(settings, config={**settings.config, "refuseconnection": ("not today",)})

    async def main() -> None:
        await login(settings, Prompts(batch=True), print)

    with pytest.raises(SharingError, match="ssh_config refuses connections to box: not today"):
        asyncio.run(main())
