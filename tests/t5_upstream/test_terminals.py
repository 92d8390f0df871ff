"""Sessions with a terminal: modes, sizes, escapes, and what is said at the end."""

from __future__ import annotations

import os
import re
import signal
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.master import Master
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import SSH_FAILED, Clients, ended, line_of, wait_for_file
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.terminal import Terminal

# The client's own word.
CLOSED = b"Shared connection to 127.0.0.1 closed.\r\n"
# Says its terminal's size, and again whenever that is another.
WATCHER = 'while :; do new=$(stty size); [ "$new" = "$old" ] || echo size $new; old=$new; sleep 0.02; done'


@contextmanager
def terminal(clients: Clients, *arguments: str, term: str = "vt220", **more: Any) -> Iterator[Terminal]:
    with Terminal(clients.command(*arguments), env=clients.environment(TERM=term), **more) as opened:
        yield opened


def wait_for_raw(opened: Terminal) -> None:
    """The holder writes to the terminal by itself; what it wrote may be seen before the client is in raw mode, and
    before it listens for a new size.
    """
    wait_until(lambda: not opened.cooked, "the client is in raw mode")


def unusual_attributes() -> list[Any]:
    """Modes that no terminal has by default."""
    own, other = os.openpty()
    try:
        attributes = termios.tcgetattr(other)
    finally:
        os.close(own)
        os.close(other)
    attributes[0] |= termios.IXANY | termios.INLCR
    attributes[0] &= ~termios.ICRNL
    attributes[3] &= ~termios.ECHOE
    attributes[6][termios.VINTR] = b"\x07"
    attributes[6][termios.VERASE] = b"\x0b"
    attributes[4] = attributes[5] = termios.B9600
    return attributes


def test_14_terminal_as_with_a_login_of_its_own(clients: Clients, alone: Clients) -> None:
    """Its name, TERM, size, and every mode."""
    said = []
    for programs in (clients, alone):
        command = "tty; echo $TERM; stty -a; exit 5"
        with terminal(programs, "-t", HOST, command, size=(33, 101), attributes=unusual_attributes()) as opened:
            assert opened.finish() == 5
            shown = re.sub(rb"/dev/pts/\d+", b"/dev/pts/N", opened.seen)
            said.append(re.sub(rb"(Shared c|C)onnection to 127.0.0.1 closed.\r\n$", b"", shown))
    assert said[0].startswith(b"/dev/pts/N\r\nvt220\r\n")
    assert b"rows 33; columns 101" in said[0]
    assert b"intr = ^G" in said[0]
    assert said[0] == said[1]


def test_14_shell_on_a_terminal(clients: Clients) -> None:
    with terminal(clients, HOST) as opened:
        opened.type(b"echo is $((6*7)); tty -s && exit 6\n")
        opened.expect(rb"is 42\r\n")
        assert opened.finish() == 6


def test_14_raw_while_open_and_cooked_after(clients: Clients) -> None:
    with terminal(clients, "-t", HOST, "echo ready; read line; echo got $line") as opened:
        opened.expect(b"ready")
        wait_for_raw(opened)
        opened.type(b"word\n")
        opened.expect(b"got word")
        assert opened.finish() == 0
        assert opened.cooked


def test_14_interrupt_reaches_the_command(clients: Clients) -> None:
    script = "trap 'echo interrupted; exit 8' INT; echo ready; while :; do sleep 0.02; done"
    with terminal(clients, "-t", HOST, script) as opened:
        opened.expect(b"ready")
        wait_for_raw(opened)
        opened.type(b"\x03")
        opened.expect(b"interrupted")
        assert opened.finish() == 8


def test_15_each_terminal_has_its_own_size(clients: Clients) -> None:
    with (
        terminal(clients, "-t", HOST, WATCHER, size=(33, 101)) as one,
        terminal(clients, "-t", HOST, WATCHER, size=(20, 60)) as two,
    ):
        one.expect(rb"size 33 101\r\n")
        two.expect(rb"size 20 60\r\n")
        for opened in (one, two):
            wait_for_raw(opened)
        one.resize(44, 111)
        one.expect(rb"size 44 111\r\n")
        two.resize(21, 61)
        two.expect(rb"size 21 61\r\n")
        one.resize(45, 112)
        one.expect(rb"size 45 112\r\n")
        assert one.unseen(rb" [26][01]\r") and two.unseen(rb" 11[12]\r")


def test_15_the_command_is_told_of_a_new_size(clients: Clients) -> None:
    script = "trap 'echo changed $(stty size); exit 0' WINCH; echo ready; while :; do sleep 0.02; done"
    with terminal(clients, "-t", HOST, script) as opened:
        opened.expect(b"ready")
        wait_for_raw(opened)
        opened.resize(50, 132)
        opened.expect(rb"changed 50 132\r\n")
        assert opened.finish() == 0


def test_16_terminal_there_without_one_here(clients: Clients) -> None:
    done = clients.ssh("-tt", HOST, "tty; stty size; exit 3", input=b"")
    assert done.returncode == 3
    assert re.fullmatch(rb"/dev/pts/\d+\r?\n0 0\r?\n", done.stdout)


def test_16_no_terminal_unless_asked_for(clients: Clients) -> None:
    with terminal(clients, HOST, "tty") as opened:
        assert opened.finish() == 1
        assert b"not a tty" in opened.seen


def test_17_terminal_refused(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> None:
    """It is told, the terminal here is as before, and the command runs."""
    clients = Clients.of(make_holder(make_sshd(extra=["PermitTTY no"])))
    with terminal(clients, "-t", HOST, "tty; echo ready; read line; exit 4") as opened:
        # In whatever order: the client writes the first, and the command the others.
        opened.expect(rb"(?=.*PTY allocation request failed)(?=.*not a tty)(?=.*ready)")
        wait_until(lambda: opened.cooked, "the terminal is cooked again")
        opened.type(b"\n")
        assert opened.finish() == 4


def test_18_last_line(clients: Clients) -> None:
    with terminal(clients, "-t", HOST, "echo output") as opened:
        assert opened.finish() == 0
        assert opened.seen == b"output\r\n" + CLOSED


def test_18_no_last_line_when_quiet(clients: Clients) -> None:
    with terminal(clients, "-q", "-t", HOST, "echo output") as opened:
        assert opened.finish() == 0
        assert opened.seen == b"output\r\n"


def test_21_client_killed_on_a_terminal(clients: Clients, directory: Path) -> None:
    """The command there is hung up, as if the terminal had gone."""
    script = f"trap 'echo hung up > {directory}/end; exit' HUP; echo ready; while :; do sleep 0.02; done"
    with terminal(clients, "-t", HOST, script) as opened:
        opened.expect(b"ready")
        opened.process.send_signal(signal.SIGKILL)
        assert opened.finish() == -signal.SIGKILL
        assert wait_for_file(directory / "end") == "hung up\n"


def test_21_client_killed_without_a_terminal(clients: Clients, directory: Path) -> None:
    """The command there sees the end of its input."""
    with clients.started(HOST, f"echo ready; cat; echo over > {directory}/over") as process:
        assert line_of(process) == b"ready"
        process.kill()
        assert ended(process) == -signal.SIGKILL
        assert wait_for_file(directory / "over") == "over\n"


@contextmanager
def echoing(clients: Clients, *arguments: str) -> Iterator[Terminal]:
    """`cat` on a terminal that does not echo there, so that what is seen was read by it."""
    with terminal(clients, *arguments, "-t", HOST, "stty -echo; echo ready; cat") as opened:
        opened.expect(b"ready\r\n")
        wait_for_raw(opened)
        yield opened


def test_19_escape_that_ends_the_session(clients: Clients) -> None:
    with echoing(clients) as ended_one, echoing(clients) as other:
        ended_one.type(b"\n~.")
        assert ended_one.finish() == SSH_FAILED
        assert ended_one.seen.endswith(CLOSED)
        other.type(b"still here\n\x04")
        other.expect(b"still here\r\n")
        assert other.finish() == 0


def test_19_escape_that_is_none(clients: Clients) -> None:
    """Doubled it is itself; before another character it is itself; in the middle of a line it is itself."""
    with echoing(clients) as opened:
        opened.type(b"\n~~doubled\n~q\nmiddle~.\n\x04")
        opened.expect(rb"~doubled\r\n~q\r\nmiddle~\.\r\n")
        assert opened.finish() == 0


def test_19_escape_help(clients: Clients) -> None:
    with echoing(clients) as opened:
        opened.type(b"\n~?")
        opened.expect(rb"Supported escape sequences:\r\n")
        opened.expect(rb"~\.\s+- \w+")
        opened.type(b"after\n\x04")
        opened.expect(b"after\r\n")
        assert opened.finish() == 0


def test_19_escape_that_lists(clients: Clients) -> None:
    with echoing(clients) as opened:
        opened.type(b"\n~#")
        opened.expect(rb"The following connections are open:\r\n")
        opened.expect(rb"  #\d+ [^\r\n]+\r\n")
        opened.type(b"\x04")
        assert opened.finish() == 0


@ours_only
def test_19_escape_that_tells_of_the_connection(clients: Clients) -> None:
    """It came with 10.3."""
    with echoing(clients) as opened:
        opened.type(b"\n~I")
        opened.expect(rb"Connection information for [^\r\n]+ pid \d+\r\n")
        opened.type(b"after\n\x04")
        opened.expect(b"after\r\n")
        assert opened.finish() == 0


def test_19_escapes_not_to_be_had(clients: Clients) -> None:
    """What belongs to a client with a connection of its own."""
    with echoing(clients) as opened:
        for typed, shown in ((b"C", b"C"), (b"&", b"&"), (b"\x1a", rb"\^Z"), (b"v", b"v"), (b"V", b"V")):
            opened.type(b"\n~" + typed)
            opened.expect(b"~" + shown + rb" escape not available to multiplexed sessions\r\n")
        opened.type(b"\nafter\n\x04")
        opened.expect(b"after\r\n")
        assert opened.finish() == 0


def test_19_escape_that_rekeys(clients: Clients) -> None:
    with echoing(clients) as opened:
        opened.type(b"\n~R")
        opened.type(b"after\n\x04")
        opened.expect(b"after\r\n")
        assert opened.finish() == 0
    assert clients.ssh(HOST, "exit 3").returncode == 3


def test_19_escape_that_breaks(clients: Clients) -> None:
    """The request goes to the server, which has no line to break; nothing of it is input."""
    with echoing(clients) as opened:
        opened.type(b"\n~B")
        opened.type(b"after\n\x04")
        opened.expect(b"\nafter\r\n")
        assert opened.finish() == 0


def test_19_another_escape_character(clients: Clients) -> None:
    with echoing(clients, "-e", "%") as opened:
        opened.type(b"\n~.\n")
        opened.expect(rb"~\.\r\n")
        opened.type(b"%.")
        assert opened.finish() == SSH_FAILED


def test_19_no_escape_character(clients: Clients) -> None:
    with echoing(clients, "-e", "none") as opened:
        opened.type(b"\n~.\n~~\n\x04")
        opened.expect(rb"~\.\r\n~~\r\n")
        assert opened.finish() == 0


def test_19_no_escapes_without_a_terminal(clients: Clients) -> None:
    assert clients.ssh(HOST, "cat", input=b"~.\n~?\n").stdout == b"~.\n~?\n"


@ours_only
def test_19_escape_as_the_very_first_characters(clients: Clients) -> None:
    """Whatever another session of this connection typed last."""
    with echoing(clients) as other, echoing(clients) as opened:
        other.type(b"middle")
        opened.type(b"~.")
        assert opened.finish() == SSH_FAILED


@ours_only
def test_19_line_starts_are_each_session_s_own(clients: Clients) -> None:
    """One at the start of a line does not make another's tilde an escape."""
    with echoing(clients) as one, echoing(clients) as two:
        two.type(b"middle")
        one.type(b"line\n")
        one.expect(b"line\r\n")
        two.type(b"~.\n\x04")
        two.expect(rb"middle~\.\r\n")
        assert two.finish() == 0
