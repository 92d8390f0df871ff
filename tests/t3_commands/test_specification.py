"""Forwardings as ssh has them on its command line: ssh itself says what they mean."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mux.commands.specification import parse
from mux.errors import ExitCode, JoinError
from mux.protocol.messages import UNIX_SOCKET_PORT, Forward, ForwardKind
from tests.support.sshd import program
from tests.t3_commands.command import COMMAND_DEADLINE_S

LOCAL, REMOTE, DYNAMIC = ForwardKind.LOCAL, ForwardKind.REMOTE, ForwardKind.DYNAMIC
PATH = UNIX_SOCKET_PORT
KEYWORDS = {"L": "localforward", "R": "remoteforward", "D": "dynamicforward"}


@pytest.mark.parametrize(
    ("letter", "text", "expected"),
    [
        ("L", "8080:host:80", (LOCAL, b"", 8080, b"host", 80)),
        ("L", "127.0.0.1:8080:host:80", (LOCAL, b"127.0.0.1", 8080, b"host", 80)),
        ("L", ":8080:host:80", (LOCAL, b"*", 8080, b"host", 80)),
        ("L", "*:8080:host:80", (LOCAL, b"*", 8080, b"host", 80)),
        ("L", "[::1]:8080:[fe80::1]:80", (LOCAL, b"::1", 8080, b"fe80::1", 80)),
        ("L", "8080:/run/s", (LOCAL, b"", 8080, b"/run/s", PATH)),
        ("L", "localhost:8080:/run/s", (LOCAL, b"localhost", 8080, b"/run/s", PATH)),
        ("L", "/run/l:host:80", (LOCAL, b"/run/l", PATH, b"host", 80)),
        ("L", "/run/l:/run/s", (LOCAL, b"/run/l", PATH, b"/run/s", PATH)),
        ("L", "/run/a\\:b:host:80", (LOCAL, b"/run/a:b", PATH, b"host", 80)),
        ("R", "0:host:80", (REMOTE, b"", 0, b"host", 80)),
        ("R", "/run/r:/run/s", (REMOTE, b"/run/r", PATH, b"/run/s", PATH)),
        ("R", "1080", (REMOTE, b"", 1080, b"socks", 0)),
        ("R", "/run/r", (REMOTE, b"/run/r", PATH, b"socks", 0)),
        ("L", "[/run/a:b]:host:80", (LOCAL, b"/run/a:b", PATH, b"host", 80)),
        ("L", "8080:host:80:", (LOCAL, b"", 8080, b"host", 80)),
        ("R", "*:1080", (REMOTE, b"*", 1080, b"socks", 0)),
        ("D", "1080", (DYNAMIC, b"", 1080, b"socks", 0)),
        ("D", "[::1]:1080", (DYNAMIC, b"::1", 1080, b"socks", 0)),
        ("D", ":1080", (DYNAMIC, b"*", 1080, b"socks", 0)),
    ],
)
def test_forms(letter: str, text: str, expected: tuple[ForwardKind, bytes, int, bytes, int]) -> None:
    assert parse(letter, text) == Forward(*expected)
    assert by_ssh(letter, text) is not None


@pytest.mark.parametrize(
    ("letter", "text"),
    [
        ("L", ""),
        ("L", "8080"),
        ("L", "8080:80"),
        ("L", "0:host:80"),
        ("L", "8080:host:0"),
        ("L", "8080:host:65536"),
        ("L", "8080:host:80:a"),
        ("L", "a:8080:host:80:1"),
        ("L", "[::1:8080:host:80"),
        ("L", "[::1]8080:host:80"),
        ("L", "8080:host:80\\"),
        ("L", "a:/run/l:host:80"),
        ("D", ""),
        ("D", "0"),
        ("D", "a:1080:b"),
        ("R", "65536"),
        ("R", "a:b"),
        ("D", "-1"),
        ("D", "1\u0660"),
    ],
)
def test_mistakes(letter: str, text: str) -> None:
    with pytest.raises(JoinError, match=f"^-{letter} ") as raised:
        parse(letter, text)
    assert raised.value.exit_code is ExitCode.USAGE
    assert f"-{letter} is written " in raised.value.hint
    assert by_ssh(letter, text) is None


def test_what_ssh_takes_and_we_do_not() -> None:
    for letter, text in (
        ("L", "http:host:80"),
        ("L", "8080:host:http"),
        ("L", "/run/%C:host:80"),
        ("L", "8080::80"),  # a destination without a name
        ("L", "8080:/run/s:80"),  # a path with a port
        ("D", "/run/s"),  # which no server and no master serves
    ):
        assert by_ssh(letter, text) is not None
        with pytest.raises(JoinError):
            parse(letter, text)
    with pytest.raises(JoinError, match="tokens"):
        parse("L", "/run/${HOME}/s:host:80")


WORDS = st.sampled_from(["", "1", "80", "65535", "host", "127.0.0.1", "*", "[::1]", "/run/s", "a/b"])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from("LRD"), st.lists(WORDS, min_size=1, max_size=5))
def test_what_we_take_means_to_ssh_what_it_means_to_us(letter: str, words: list[str]) -> None:
    text = ":".join(words)
    try:
        ours = printed(parse(letter, text))
    except JoinError:
        return
    by_them = by_ssh(letter, text)
    assert by_them is not None and by_them.replace("[*]:", "[]:", 1) == ours


def by_ssh(letter: str, text: str) -> str | None:
    """What `ssh -G` makes of it: its value as it prints it; None when it is refused."""
    command = [program("ssh"), "-F", "none", "-G", f"-{letter}", text, "host"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S)
    lines = [line for line in done.stdout.splitlines() if line.startswith(KEYWORDS[letter] + " ")]
    return lines[0].partition(" ")[2] if done.returncode == 0 and lines else None


def printed(forward: Forward) -> str:
    """A forwarding as `ssh -G` prints it (readconf.c, dump_cfg_forwards)."""
    words = [end(forward.listen_host, forward.listen_port)]
    if forward.kind == DYNAMIC:
        return words[0]
    if (forward.connect_host, forward.connect_port) == (b"socks", 0):
        return " ".join([*words, "[socks]:0"])
    return " ".join([*words, end(forward.connect_host, forward.connect_port)])


def end(host: bytes, port: int) -> str:
    if port == PATH:
        return host.decode()
    name = "" if host == b"*" else host.decode()
    return f"[{name}]:{port}" if host else str(port)
