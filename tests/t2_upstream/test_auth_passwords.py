"""Passwords and keyboard-interactive dialogues: what is asked, how often, and what a failure says."""

from __future__ import annotations

from pathlib import Path

import asyncssh
import pytest

from mux.errors import ExitCode
from tests.t2_upstream.logins import Said, asked, askpass, keygen, log_in, refused
from tests.t2_upstream.other_server import OtherServer, Wish

TWO_FACTORS = (
    ("Two factors", "Say\x1b[2J who you are", (("Password: ", False), ("Colour? ", True))),
    ("", "", ()),
    ("", "", (("Code: ", False),)),
)


def test_a_password_is_asked_for_in_ssh_words(tmp_path: Path) -> None:
    with OtherServer(tmp_path, Wish(passwords=["sesame"])) as server:
        log_in(server.config, environment=askpass(tmp_path, "sesame"))
        assert server.wish.seen == ["password sesame"]
    assert asked(tmp_path) == ["|tester@box's password: "]


def test_number_of_password_prompts(tmp_path: Path) -> None:
    said = Said()
    with OtherServer(tmp_path, Wish(passwords=["sesame"])) as server:
        environment = askpass(tmp_path, "one", "two", "three")
        error = refused(server.config, "NumberOfPasswordPrompts=2", said=said, environment=environment)
        assert server.wish.seen == ["password one", "password two"]
    assert said == ["Permission denied, please try again."]
    assert error.exit_code is ExitCode.AUTH_FAILED
    assert error.message == "tester@box: Permission denied (password); tried: password (2 times)"
    assert error.hint == "check the user name and the password"


def test_the_second_password_is_right(tmp_path: Path) -> None:
    with OtherServer(tmp_path, Wish(passwords=["sesame"])) as server:
        log_in(server.config, environment=askpass(tmp_path, "wrong", "sesame"))
        assert server.wish.seen == ["password wrong", "password sesame"]


def test_a_password_handed_in_is_used_once_and_nobody_is_asked(tmp_path: Path) -> None:
    with OtherServer(tmp_path, Wish(passwords=["sesame"])) as server:
        log_in(server.config, password="sesame")
        error = refused(server.config, password="wrong")
        assert server.wish.seen == ["password sesame", "password wrong"]
    assert error.hint.startswith("nobody can be asked for a password")


def test_a_password_handed_in_works_in_batch_mode_too(tmp_path: Path) -> None:
    with OtherServer(tmp_path, Wish(passwords=["sesame"])) as server:
        log_in(server.config, "BatchMode=yes", password="sesame", batch=True)


def test_batch_mode_asks_nobody(tmp_path: Path) -> None:
    with OtherServer(tmp_path, Wish(passwords=["sesame"])) as server:
        environment = askpass(tmp_path, "sesame")
        error = refused(server.config, "BatchMode=yes", batch=True, environment=environment)
        assert server.wish.seen == []
    assert asked(tmp_path) == []
    assert error.message == "tester@box: Permission denied (password); tried: nothing, for there is nothing to offer"
    assert error.hint == "BatchMode forbids asking for a password"


def test_a_question_dismissed_ends_the_method(tmp_path: Path) -> None:
    with OtherServer(tmp_path, Wish(passwords=["sesame"])) as server:
        refused(server.config, environment=askpass(tmp_path, "sesame", status=1))
        assert server.wish.seen == []
    assert len(asked(tmp_path)) == 1


def test_a_dialogue_of_several_rounds(tmp_path: Path) -> None:
    said = Said()
    wish = Wish(rounds=TWO_FACTORS, answers=[["sesame", "blue"], [], ["42"]], banner="Hello\r\nthere\x07\n")
    with OtherServer(tmp_path, wish) as server:
        log_in(server.config, said=said, environment=askpass(tmp_path, "sesame", "blue", "42"))
        assert wish.seen == ["dialogue ", "answers ['sesame', 'blue']", "answers []", "answers ['42']"]
    assert asked(tmp_path) == ["|(tester@box) Password: ", "|(tester@box) Colour? ", "|(tester@box) Code: "]
    # What the server wants shown is shown without its control characters.
    assert said == ["Hello", "there\\x07", "Two factors", "Say\\x1b[2J who you are"]


def test_kbdinteractive_devices_and_quiet_banner(tmp_path: Path) -> None:
    said = Said()
    wish = Wish(rounds=[("", "", (("Code: ", False),))], banner="Hello")
    with OtherServer(tmp_path, wish) as server:
        log_in(server.config, "KbdInteractiveDevices=pam,otp", "LogLevel=ERROR", said=said, password="42")
        assert wish.seen == ["dialogue pam,otp", "answers ['42']"]
    assert said == []


def test_a_dialogue_is_repeated_as_often_as_a_password(tmp_path: Path) -> None:
    wish = Wish(rounds=[("", "", (("Code: ", False),))], answers=[["42"]])
    with OtherServer(tmp_path, wish) as server:
        error = refused(server.config, environment=askpass(tmp_path, "1", "2", "3", "4"))
        assert wish.seen == [x for answer in "123" for x in ("dialogue ", f"answers ['{answer}']")]
    assert error.message.endswith("Permission denied (keyboard-interactive); tried: keyboard-interactive (3 times)")


def test_a_dialogue_without_questions_is_not_repeated(tmp_path: Path) -> None:
    wish = Wish(rounds=[("", "", ())], answers=[["never"]])
    with OtherServer(tmp_path, wish) as server:
        refused(server.config, environment=askpass(tmp_path))
        # Questions were seen, if none in number: as many dialogues as passwords, and no more.
        assert wish.seen == ["dialogue ", "answers []"] * 3


@pytest.mark.parametrize(
    ("options", "tried"),
    [
        ((), ["dialogue ", "answers ['x']"] * 3 + ["password x"] * 3),
        (
            ("PreferredAuthentications=password,keyboard-interactive",),
            ["password x"] * 3 + ["dialogue ", "answers ['x']"] * 3,
        ),
        (("PreferredAuthentications=password",), ["password x"] * 3),
        (("PasswordAuthentication=no",), ["dialogue ", "answers ['x']"] * 3),
        (("KbdInteractiveAuthentication=no",), ["password x"] * 3),
    ],
)
def test_order_and_choice_of_methods(tmp_path: Path, options: tuple[str, ...], tried: list[str]) -> None:
    wish = Wish(passwords=["sesame"], rounds=[("", "", (("Code: ", False),))], answers=[["42"]])
    with OtherServer(tmp_path, wish) as server:
        error = refused(server.config, *options, environment=askpass(tmp_path, *["x"] * 6))
        assert wish.seen == tried
    # The list is the server's, whatever we would have used.
    assert "Permission denied (keyboard-interactive,password)" in error.message or (
        "Permission denied (password,keyboard-interactive)" in error.message
    )


def test_nothing_that_the_server_offers_is_allowed(tmp_path: Path) -> None:
    with OtherServer(tmp_path, Wish(passwords=["sesame"])) as server:
        error = refused(server.config, "PreferredAuthentications=publickey", environment=askpass(tmp_path, "x"))
    assert error.message.startswith("tester@box: Permission denied (password);")
    assert error.hint == "the configuration allows only publickey"


def test_first_a_key_then_a_password(tmp_path: Path) -> None:
    key = keygen(tmp_path / "key")
    wish = Wish(passwords=["sesame"], keys=[asyncssh.read_public_key(f"{key}.pub")], steps=["publickey", "password"])
    with OtherServer(tmp_path, wish) as server:
        log_in(server.config, f"IdentityFile={key}", environment=askpass(tmp_path, "sesame"))
        assert [seen.split()[0] for seen in wish.seen][-1] == "password"
        error = refused(server.config, f"IdentityFile={key}", "PasswordAuthentication=no")
    assert error.message.startswith("tester@box: Permission denied (password);")


def test_first_a_password_then_a_dialogue_then_a_key(tmp_path: Path) -> None:
    key = keygen(tmp_path / "key")
    wish = Wish(
        passwords=["sesame"],
        keys=[asyncssh.read_public_key(f"{key}.pub")],
        rounds=[("", "", (("Code: ", False),))],
        answers=[["42"]],
        steps=["password", "keyboard-interactive", "publickey"],
    )
    with OtherServer(tmp_path, wish) as server:
        log_in(server.config, f"IdentityFile={key}", environment=askpass(tmp_path, "sesame", "42"))
    assert asked(tmp_path) == ["|tester@box's password: ", "|(tester@box) Code: "]


def test_a_password_that_must_be_changed(tmp_path: Path) -> None:
    said = Said()
    with OtherServer(tmp_path, Wish(passwords=["old"], change=["old"])) as server:
        environment = askpass(tmp_path, "old", "old", "new", "typo", "new", "new")
        log_in(server.config, said=said, environment=environment)
        assert server.wish.seen == ["password old", "change old new"]
    assert said == ["Your password\\x1b[31m has expired.", "Mismatch; try again, EOF to quit."]
    assert asked(tmp_path)[1] == "|Enter tester@box's old password: "
    assert asked(tmp_path)[2:4] == ["|Enter tester@box's new password: ", "|Retype tester@box's new password: "]
