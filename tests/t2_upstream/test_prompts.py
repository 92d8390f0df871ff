"""Questions on a real pseudo-terminal and through askpass: what is shown, what is hidden, what is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mux.errors import ExitCode
from mux.upstream.prompts import Interrupted, Prompts, shown
from tests.support import processes
from tests.support.sshd import Sshd
from tests.t2_upstream.logins import DEADLINE_S, OnTerminal, asked, askpass, keygen, on_terminal
from tests.t2_upstream.other_server import OtherServer, Wish

PASSPHRASE = "correct horse"
PASSWORD = "tester@box's password: "


@pytest.fixture
def locked(make_sshd: Callable[..., Sshd], tmp_path: Path) -> tuple[Sshd, str, str]:
    """A server that takes one encrypted key; the option that names it, and the question for its passphrase."""
    server = make_sshd()
    key = keygen(tmp_path / "locked", passphrase=PASSPHRASE)
    (server.directory / "authorized_keys").write_text(Path(f"{key}.pub").read_text())
    return server, f"IdentityFile={key}", f"Enter passphrase for key '{key}': "


def at(terminal: OnTerminal, question: str) -> None:
    """Wait until the question is shown."""
    terminal.expect(question)


def test_a_passphrase_is_not_shown(locked: tuple[Sshd, str, str]) -> None:
    server, option, question = locked
    with on_terminal(server, option) as terminal:
        at(terminal, question)
        assert not terminal.echoes()
        terminal.type("wrong\n")
        at(terminal, question)
        terminal.type(f"{PASSPHRASE}\n")
        terminal.expect("IN")
        assert terminal.ended() == 0
        assert terminal.modes() == terminal.modes_before
        assert PASSPHRASE not in terminal.text and "wrong" not in terminal.text


@pytest.mark.parametrize(
    ("number", "key"),
    [(signal.SIGINT, "\x03"), (signal.SIGQUIT, "\x1c"), (signal.SIGTERM, ""), (signal.SIGHUP, "")],
)
def test_whatever_ends_a_question_leaves_the_terminal_as_it_was(
    locked: tuple[Sshd, str, str], number: signal.Signals, key: str
) -> None:
    server, option, question = locked
    with on_terminal(server, option) as terminal:
        at(terminal, question)
        assert not terminal.echoes()
        if key:
            terminal.type(key)
        else:
            terminal.process.send_signal(number)
        terminal.expect(f"FAILED {int(ExitCode.INTERRUPTED)} interrupted at a question ({number.name})")
        assert terminal.ended() == ExitCode.INTERRUPTED
        assert terminal.modes() == terminal.modes_before
        assert "Traceback" not in terminal.text


def test_an_end_of_input_gives_the_key_up(locked: tuple[Sshd, str, str]) -> None:
    server, option, question = locked
    with on_terminal(server, option) as terminal:
        at(terminal, question)
        terminal.type("\x04")
        terminal.ended()
        terminal.rest()
        assert terminal.echoes()
        assert "Traceback" not in terminal.text


def test_stopped_and_continued(locked: tuple[Sshd, str, str]) -> None:
    """Ctrl-Z hands the terminal back; once continued the question is there again."""
    server, option, question = locked
    with on_terminal(server, option) as terminal:
        at(terminal, question)
        # The child leads its session: the terminal's own Ctrl-Z would not stop an orphaned group.
        terminal.process.send_signal(signal.SIGTSTP)
        pid, status = os.waitpid(terminal.process.pid, os.WUNTRACED)
        assert pid == terminal.process.pid and os.WIFSTOPPED(status)
        assert terminal.echoes()
        terminal.process.send_signal(signal.SIGCONT)
        at(terminal, question)
        assert not terminal.echoes()
        terminal.type(f"{PASSPHRASE}\n")
        terminal.expect("IN")
        assert terminal.ended() == 0


def test_a_password_and_a_dialogue_on_the_terminal(sshd: Sshd, tmp_path: Path) -> None:
    wish = Wish(
        passwords=["sesame"],
        rounds=[("", "Hello \x1b]0;title\x07", (("Name: ", True), ("Code: ", False)))],
        answers=[["me", "42"]],
        steps=["password", "keyboard-interactive"],
    )
    with OtherServer(tmp_path, wish) as server, on_terminal(sshd, config=server.config) as terminal:
        at(terminal, PASSWORD)
        terminal.type("nonsense\n")
        terminal.expect("Permission denied, please try again.\n")
        at(terminal, PASSWORD)
        terminal.type("sesame\n")
        terminal.expect("Hello \\x1b]0;title\\x07\n")
        at(terminal, "(tester@box) Name: ")
        assert terminal.echoes()
        terminal.type("me\n")
        at(terminal, "(tester@box) Code: ")
        assert not terminal.echoes()
        terminal.type("42\n")
        terminal.expect("IN")
        assert terminal.ended() == 0
        assert terminal.echoes()


def test_the_server_hangs_up_during_a_question(sshd: Sshd, tmp_path: Path) -> None:
    server = OtherServer(tmp_path, Wish(passwords=["x"]), login_timeout=8)
    with server, on_terminal(sshd, config=server.config) as terminal:
        at(terminal, PASSWORD)
        terminal.expect("FAILED ")
        assert terminal.ended() == ExitCode.UNREACHABLE
        terminal.rest()
        assert "during the authentication" in terminal.text
        assert terminal.echoes()


def test_odd_answers_reach_the_server_whole(sshd: Sshd, tmp_path: Path) -> None:
    password = "päss wörd!"
    server = OtherServer(tmp_path, Wish(passwords=[password]))
    with server, on_terminal(sshd, config=server.config) as terminal:
        at(terminal, PASSWORD)
        os.write(terminal.master, password.encode("latin-1") + b"\n")
        terminal.expect("IN")
        assert terminal.ended() == 0


@pytest.mark.parametrize(
    ("environment", "uses_askpass"),
    [
        ({}, False),
        ({"DISPLAY": ":0"}, False),
        ({"DISPLAY": ":0", "SSH_ASKPASS_REQUIRE": "prefer"}, True),
        ({"WAYLAND_DISPLAY": "w", "SSH_ASKPASS_REQUIRE": "prefer"}, True),
        ({"SSH_ASKPASS_REQUIRE": "prefer"}, False),
        ({"SSH_ASKPASS_REQUIRE": "force"}, True),
        ({"DISPLAY": ":0", "SSH_ASKPASS_REQUIRE": "never"}, False),
    ],
)
def test_terminal_or_askpass(sshd: Sshd, tmp_path: Path, environment: dict[str, str], uses_askpass: bool) -> None:
    program = askpass(tmp_path, "sesame")["SSH_ASKPASS"]
    server = OtherServer(tmp_path, Wish(passwords=["sesame"]))
    with server, on_terminal(sshd, config=server.config, SSH_ASKPASS=program, **environment) as terminal:
        if not uses_askpass:
            at(terminal, PASSWORD)
            terminal.type("sesame\n")
        terminal.expect("IN")
        assert terminal.ended() == 0
    assert asked(tmp_path) == ([f"|{PASSWORD}"] if uses_askpass else [])


class TestWithoutTerminal:
    """Askpass alone: no terminal was ever there, or it was given away."""

    def ask(self, prompts: Prompts, text: str = "Q? ", echo: bool = False) -> str | None:
        async def main() -> str | None:
            async with asyncio.timeout(DEADLINE_S):
                return await prompts.ask(text, echo=echo)

        return asyncio.run(main())

    def confirm(self, prompts: Prompts) -> bool:
        async def main() -> bool:
            async with asyncio.timeout(DEADLINE_S):
                return await prompts.confirm("Allow it?")

        return asyncio.run(main())

    @pytest.mark.parametrize(
        ("environment", "can"),
        [
            ({}, False),
            ({"DISPLAY": ":0"}, True),
            ({"SSH_ASKPASS_REQUIRE": "force"}, True),
            ({"SSH_ASKPASS_REQUIRE": "FORCE"}, True),
            ({"SSH_ASKPASS_REQUIRE": "prefer"}, False),
            ({"DISPLAY": ":0", "SSH_ASKPASS_REQUIRE": "never"}, False),
        ],
    )
    def test_when_it_may_be_used(self, tmp_path: Path, environment: dict[str, str], can: bool) -> None:
        program = askpass(tmp_path, "answer")
        full = {"PATH": program["PATH"], "SSH_ASKPASS": program["SSH_ASKPASS"], **environment}
        prompts = Prompts(environment=full, terminal="/nonexistent")
        assert prompts.can_ask() is can
        assert self.ask(prompts) == ("answer" if can else None)

    @pytest.mark.parametrize(
        ("answer", "status", "yes"),
        [("", 0, True), ("yes", 0, True), ("YES", 0, True), ("no", 0, False), ("", 1, False)],
    )
    def test_confirmations(self, tmp_path: Path, answer: str, status: int, yes: bool) -> None:
        prompts = Prompts(environment=askpass(tmp_path, answer, status=status), terminal="/nonexistent")
        assert self.confirm(prompts) is yes
        assert asked(tmp_path) == ["confirm|Allow it?"]

    def test_a_missing_program_answers_nothing(self) -> None:
        environment = {"SSH_ASKPASS": "/nonexistent", "SSH_ASKPASS_REQUIRE": "force"}
        prompts = Prompts(environment=environment, terminal="/nonexistent")
        assert self.ask(prompts) is None
        assert not self.confirm(prompts)

    def test_a_flood_of_an_answer_is_cut(self, tmp_path: Path) -> None:
        prompts = Prompts(environment=askpass(tmp_path, "x" * 100_000), terminal="/nonexistent")
        assert self.ask(prompts) == "x" * 1024

    def test_batch_asks_nobody(self, tmp_path: Path) -> None:
        prompts = Prompts(batch=True, environment=askpass(tmp_path, "answer"), terminal="/nonexistent")
        assert not prompts.can_ask() and self.ask(prompts) is None and not self.confirm(prompts)
        assert asked(tmp_path) == []

    def test_one_at_a_time(self, tmp_path: Path) -> None:
        prompts = Prompts(environment=askpass(tmp_path, "a", "b", "c"), terminal="/nonexistent")

        async def main() -> list[str | None]:
            return list(await asyncio.gather(*(prompts.ask(f"{n}? ", echo=True) for n in range(3))))

        assert asyncio.run(main()) == ["a", "b", "c"]
        assert asked(tmp_path) == ["|0? ", "|1? ", "|2? "]

    def test_a_question_given_up_ends_the_program(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "asking")
        program = tmp_path / "slow"
        program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/asking\nexec sleep 1000\n")
        program.chmod(stat.S_IRWXU)
        environment = {"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force", "PATH": os.environ["PATH"]}
        prompts = Prompts(environment=environment, terminal="/nonexistent")

        async def main() -> int:
            question = asyncio.ensure_future(prompts.ask("Q? ", echo=False))
            pid = int(await asyncio.to_thread((tmp_path / "asking").read_text))
            question.cancel()
            await asyncio.gather(question, return_exceptions=True)
            return pid

        assert processes.look(asyncio.run(main())) is None

    def test_the_watch_is_told_of_waiting(self, tmp_path: Path) -> None:
        prompts = Prompts(environment=askpass(tmp_path, "a"), terminal="/nonexistent")
        told: list[bool] = []
        prompts.watch = told.append
        self.ask(prompts)
        assert told == [True, False]

    def test_after_detach_the_terminal_is_left_alone(self, tmp_path: Path) -> None:
        master, slave = os.openpty()
        try:
            prompts = Prompts(environment=askpass(tmp_path, "from askpass"), terminal=os.ttyname(slave))
            quiet = Prompts(environment={}, terminal=os.ttyname(slave))
            assert quiet.can_ask()
            quiet.detach()
            prompts.detach()
            assert not quiet.can_ask() and self.ask(quiet) is None
            assert self.ask(prompts) == "from askpass"
        finally:
            os.close(slave)
            os.close(master)

    def test_the_password_handed_in_is_for_passwords_and_for_once(self, tmp_path: Path) -> None:
        prompts = Prompts(password="sesame", environment=askpass(tmp_path, "typed"), terminal="/nonexistent")

        async def main() -> list[str | None]:
            return [
                await prompts.ask("Enter passphrase: ", echo=False),
                await prompts.password("Password: "),
                await prompts.password("Password: "),
            ]

        assert asyncio.run(main()) == ["typed", "sesame", None]
        assert not prompts.has_password


def test_interrupted_is_an_error_of_ours() -> None:
    assert Interrupted("x").exit_code is ExitCode.INTERRUPTED


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("Password: ", "Password: "),
        ("two\r\nlines\n\ttab", "two\nlines\n\ttab"),
        ("\x1b[2J\x07\x9b", "\\x1b[2J\\x07\\x9b"),
        ("a\rb", "a\\rb"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("naïve ☂", "naïve ☂"),
    ],
)
def test_what_a_server_wants_shown(text: str, safe: str) -> None:
    assert shown(text) == safe


def test_a_flood_of_text_is_cut() -> None:
    assert len(shown("x" * 1_000_000)) <= 8192
