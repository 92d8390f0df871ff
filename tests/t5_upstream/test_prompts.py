"""Questions on the way to a connection, on a real terminal, or through askpass; and those of a holder that asks."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd, program
from tests.support.upstream import SSHMUX
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import DEADLINE_S, SSH_FAILED, Clients, ended, line_of, say, wait_for_file
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.raw import run
from tests.t5_upstream.terminal import Terminal

PASSPHRASE = "a secret"
PASSPHRASE_PROMPT = rb"Enter passphrase for key '[^']*user_key': "
HOST_KEY_PROMPT = rb"Are you sure you want to continue connecting \(yes/no/\[fingerprint\]\)\? "


class Login:
    """A login to be made on a terminal, by a real master or by ours.

    path  where the connection is to be had
    """

    def __init__(self, kind: str, sshd: Sshd) -> None:
        self.sshd = sshd
        self.path = str(sshd.control_dir / "own")
        self.config = sshd.directory / "login"
        self._kind = kind
        self.configure()

    def configure(self, *lines: str) -> None:
        """`lines` come before all others."""
        text = "\n    ".join([f"Host {HOST}", *lines])
        self.config.write_text(f"{text}\n{self.sshd.ssh_config.read_text()}")

    def command(self) -> list[str]:
        """It returns once the connection is there."""
        if self._kind == "ours":
            return [*SSHMUX, "start", "-F", str(self.config), "-S", self.path, HOST]
        return [program("ssh"), "-F", str(self.config), "-M", "-N", "-f", "-S", self.path, HOST]

    def terminal(self, **env: str) -> Terminal:
        return Terminal(self.command(), env={**self.sshd.environment(), **env}, below_a_shell=True)

    def works(self) -> bool:
        """Whether the connection can be joined."""
        return os.path.lexists(self.path) and run(self.path) == 3

    def end(self) -> None:
        if os.path.lexists(self.path):
            before = processes.descendants(os.getpid())
            self.sshd.ssh("-S", self.path, "-O", "exit", HOST, check=False)
            wait_until(lambda: not os.path.lexists(self.path), "the connection has ended")
            for process in before:
                processes.reap(process.pid) if self.path in process.command else None


@pytest.fixture
def login(kind: str, make_sshd: Callable[..., Sshd]) -> Iterator[Login]:
    login = Login(kind, make_sshd())
    yield login
    login.end()


@pytest.fixture
def locked(login: Login) -> Login:
    """Its key needs a passphrase."""
    key = login.sshd.directory / "user_key"
    change = [program("ssh-keygen"), "-q", "-p", "-P", "", "-N", PASSPHRASE, "-f", str(key)]
    subprocess.run(change, check=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL)
    return login


def test_prompt_for_a_passphrase(locked: Login) -> None:
    """It is not shown, and asked for once."""
    with locked.terminal() as opened:
        opened.expect(PASSPHRASE_PROMPT)
        opened.type(f"{PASSPHRASE}\n".encode())
        assert opened.finish() == 0
        assert opened.unseen(PASSPHRASE.encode())
        assert opened.cooked
        assert locked.works()


def test_prompt_for_a_passphrase_again(locked: Login) -> None:
    with locked.terminal() as opened:
        opened.expect(PASSPHRASE_PROMPT)
        opened.type(b"wrong\n")
        opened.expect(PASSPHRASE_PROMPT)
        opened.type(f"{PASSPHRASE}\n".encode())
        assert opened.finish() == 0
        # Still on its terminal: one that closes hangs up on who has not left it yet.
        assert locked.works()


def test_prompt_for_a_passphrase_in_vain(locked: Login) -> None:
    with locked.terminal() as opened:
        for _ in range(3):
            opened.expect(PASSPHRASE_PROMPT)
            opened.type(b"wrong\n")
        assert opened.finish() != 0
        assert not opened.unseen(rb"Permission denied \(publickey\)")
        assert opened.cooked
    assert not os.path.lexists(locked.path)


def test_prompt_interrupted(locked: Login) -> None:
    """Ctrl-C ends it all; the terminal is as before."""
    with locked.terminal() as opened:
        opened.expect(PASSPHRASE_PROMPT)
        opened.type(b"\x03")
        assert opened.finish() != 0
        wait_until(lambda: opened.cooked, "the terminal is cooked again")
    assert not os.path.lexists(locked.path)


def test_prompt_in_a_batch(locked: Login) -> None:
    """None comes, on a terminal neither."""
    locked.configure("BatchMode yes")
    with locked.terminal() as opened:
        assert opened.finish() != 0
        assert opened.unseen(rb"passphrase")
        assert not opened.unseen(rb"Permission denied")


def askpass(directory: Path, answer: str) -> Path:
    """A program that notes the question, and answers."""
    path = directory / "askpass"
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >> {directory}/questions\n{answer}\n')
    path.chmod(0o700)
    return path


def test_prompt_through_askpass(locked: Login, tmp_path: Path) -> None:
    """Forced, though there is a terminal."""
    path = askpass(tmp_path, f"echo {shlex.quote(PASSPHRASE)}")
    with locked.terminal(SSH_ASKPASS=str(path), SSH_ASKPASS_REQUIRE="force") as opened:
        assert opened.finish() == 0
        assert opened.unseen(rb"passphrase")
        assert locked.works()
    assert (tmp_path / "questions").read_text().startswith("Enter passphrase for key")


def test_prompt_through_askpass_without_a_terminal(locked: Login, tmp_path: Path) -> None:
    path = askpass(tmp_path, f"echo {shlex.quote(PASSPHRASE)}")
    env = {**locked.sshd.environment(), "SSH_ASKPASS": str(path), "DISPLAY": ":99"}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    done = subprocess.run(locked.command(), env=env, timeout=DEADLINE_S, start_new_session=True, **quiet)  # type: ignore[call-overload]
    assert done.returncode == 0
    assert locked.works()


@pytest.fixture
def unknown(login: Login) -> Login:
    """Its host key is not known."""
    known = login.sshd.directory / "known"
    login.configure("StrictHostKeyChecking ask", f"UserKnownHostsFile {known}", "HashKnownHosts no")
    return login


def test_prompt_for_a_host_key(unknown: Login) -> None:
    """It is shown, and with a yes it is remembered."""
    with unknown.terminal() as opened:
        opened.expect(rb"The authenticity of host '[^']*box[^']*' can't be established")
        opened.expect(rb"SHA256:[A-Za-z0-9+/]{43}")
        opened.expect(HOST_KEY_PROMPT)
        opened.type(b"yes\n")
        assert opened.finish() == 0
        # Still on its terminal: one that closes hangs up on who has not left it yet.
        assert unknown.works()
    key = (unknown.sshd.directory / "host_key.pub").read_text().split()[1]
    assert f"{HOST} ssh-ed25519 {key}" in (unknown.sshd.directory / "known").read_text()


def test_prompt_for_a_host_key_answered_with_its_fingerprint(unknown: Login) -> None:
    with unknown.terminal() as opened:
        fingerprint = opened.expect(rb"SHA256:[A-Za-z0-9+/]{43}")[0]
        opened.expect(HOST_KEY_PROMPT)
        opened.type(b"perhaps\n")
        opened.expect(rb"Please type 'yes', 'no' or the fingerprint: ")
        opened.type(fingerprint + b"\n")
        assert opened.finish() == 0
        # Still on its terminal: one that closes hangs up on who has not left it yet.
        assert unknown.works()


def test_prompt_for_a_host_key_refused(unknown: Login) -> None:
    with unknown.terminal() as opened:
        opened.expect(HOST_KEY_PROMPT)
        opened.type(b"no\n")
        assert opened.finish() != 0
        assert not opened.unseen(rb"Host key verification failed")
    assert not os.path.lexists(unknown.path)
    known = unknown.sshd.directory / "known"
    assert not known.exists() or known.read_text() == ""


def test_prompt_never_for_a_host_key_that_has_changed(login: Login) -> None:
    """It is refused, loudly, whatever is configured; nothing is asked and nothing forgotten."""
    known = login.sshd.directory / "known"
    other = (login.sshd.directory / "user_key.pub").read_text()
    known.write_text(f"{HOST} {other}")
    login.configure("StrictHostKeyChecking accept-new", f"UserKnownHostsFile {known}")
    with login.terminal() as opened:
        assert opened.finish() != 0
        assert not opened.unseen(rb"REMOTE HOST IDENTIFICATION HAS CHANGED")
        assert not opened.unseen(rb"(?i)host key")
    assert known.read_text() == f"{HOST} {other}"
    assert "Accepted" not in login.sshd.log_text()


@pytest.fixture
def asking(
    make_sshd: Callable[..., Sshd],
    make_holder: Callable[..., Master],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Master]:
    """`asking(answer)`: a connection whose owner is asked whenever somebody would ride."""
    sshd = make_sshd()
    outer = sshd.environment

    def make(answer: str) -> Master:
        path = askpass(tmp_path, answer)
        env = {"SSH_ASKPASS": str(path), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":99"}
        monkeypatch.setattr(sshd, "environment", lambda: {**outer(), **env})
        return make_holder(sshd, options=["-oControlMaster=ask"])

    return make


@ours_only
def test_prompt_of_a_holder_that_asks(asking: Callable[[str], Master], tmp_path: Path) -> None:
    clients = Clients.of(asking("exit 0"))
    assert clients.ssh(HOST, "exit 3").returncode == 3
    # The host as ssh has it: by its alias, its name or its address.
    assert wait_for_file(tmp_path / "questions").startswith("Allow shared connection to ")


@ours_only
def test_prompt_of_a_holder_that_is_told_no(asking: Callable[[str], Master]) -> None:
    holder = asking("exit 1")
    clients = Clients.of(holder)
    done = clients.ssh(HOST, "true")
    assert done.returncode == SSH_FAILED
    assert b"Master refused session request: Permission denied" in done.stderr
    # It needs no leave to be asked whether it lives.
    assert clients.control("check").returncode == 0
    assert clients.control("exit").returncode == SSH_FAILED
    assert holder.running


@ours_only
def test_prompt_of_a_holder_holds_nobody_else_up(asking: Callable[[str], Master], tmp_path: Path) -> None:
    """While its owner thinks, who was allowed goes on, and everybody is answered."""
    (tmp_path / "yes").touch()
    clients = Clients.of(asking(f"while [ ! -e {tmp_path}/yes ]; do sleep 0.05; done; exit 0"))
    with clients.started(HOST, "echo ready; cat; exit 6") as first:
        assert line_of(first) == b"ready"
        (tmp_path / "yes").unlink()
        with clients.started(HOST, "exit 7") as second:
            wait_until(lambda: len((tmp_path / "questions").read_text().splitlines()) == 2, "the second question")
            say(first, b"word\n")
            assert line_of(first) == b"word"
            assert clients.control("check").returncode == 0
            assert second.poll() is None
            (tmp_path / "yes").touch()
            assert ended(second) == 7
        assert first.stdin is not None
        first.stdin.close()
        assert ended(first) == 6
