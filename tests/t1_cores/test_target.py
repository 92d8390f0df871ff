"""Names and options of a command line, before ssh is asked about them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import ExitCode, JoinError
from mux.rendezvous.target import SshOptions, ignored_options, resolve, split_host


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("box", (None, "box")),
        ("me@box", ("me", "box")),
        ("me@work@box", ("me@work", "box")),
        ("::1", (None, "::1")),
        ("[::1]", (None, "::1")),
        ("me@[fe80::1%eth0]", ("me", "fe80::1%eth0")),
        ("a-b.example_1", (None, "a-b.example_1")),
        ("büro.example", (None, "büro.example")),
        ("DOM\\me@box", ("DOM\\me", "box")),
        ("$me@box", ("$me", "box")),
    ],
)
def test_split_host(text: str, expected: tuple[str | None, str]) -> None:
    assert split_host(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "@box", "me@", "[]", "me@[]", "[::1", "::1]", "[", "]"),
        *("-box", "-oProxyCommand=id", "[-box]", "me@-box", "me@[-oProxyCommand=id]", "-me@box", "--"),
        *("a b", "a\tb", "a\n", "me\n@box", "m e@box", "a\x1b[1m", "a\x7f", "a\u202eb", "a\u00a0b", "a\0b", "\udc80"),
        *("a;b", "a|b", "a&b", "$(id)", "`id`", "a'b", 'a"b', "a\\b", "a<b", "a>b", "a(b", "a{b}"),
        *("me;id@box", "`id`@box", "me'@box", "me\\@box", "me$(id)@box"),
        *("ssh://box", "SSH://me@box:22"),
    ],
)
def test_names_that_could_be_read_otherwise_are_refused(text: str) -> None:
    with pytest.raises(JoinError) as caught:
        split_host(text)
    assert caught.value.exit_code is ExitCode.USAGE
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("host", "user", "options"),
    [
        ("-box", None, SshOptions()),
        ("box", "-me", SshOptions()),
        ("box", None, SshOptions(user="-me")),
        ("box", None, SshOptions(control_path="")),
        ("box", None, SshOptions(options=("ControlPath=",))),
    ],
)
def test_resolve_refuses_the_same_before_it_runs_ssh(host: str, user: str | None, options: SshOptions) -> None:
    with pytest.raises(JoinError) as caught:
        resolve(host, user, options)
    assert caught.value.exit_code is ExitCode.USAGE


@given(st.text())
def test_no_text_becomes_an_option_or_a_second_word(text: str) -> None:
    try:
        user, host = split_host(text)
    except JoinError:
        return
    for name in (host, user if user is not None else "me"):
        assert name
        assert name.isprintable()
        assert not name.startswith("-")
        assert name.split() == [name]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SshOptions(), None),
        (SshOptions(control_path="/a"), "/a"),
        (SshOptions(options=("Port=1", "ControlPath=/a", "ControlPath=/b")), "/a"),
        (SshOptions(options=(" controlpath \t /a b ",)), "/a b"),
        (SshOptions(options=('CONTROLPATH = "/a b"',)), "/a b"),
        (SshOptions(control_path="/a", options=("ControlPath=/b",)), "/a"),
    ],
)
def test_explicit_control_path(options: SshOptions, expected: str | None) -> None:
    assert options.explicit_control_path() == expected


def test_arguments_keep_every_value_in_a_word_of_its_own() -> None:
    options = SshOptions("/e f", 22, "me", "/c d", True, ("ProxyCommand=nc %h %p", "Port=-1"))
    expected = ["-F", "/e f", "-p", "22", "-l", "me", "-S", "/c d", "-C"]
    assert options.arguments() == [*expected, "-o", "ProxyCommand=nc %h %p", "-o", "Port=-1"]
    assert SshOptions().arguments() == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SshOptions(), ()),
        (SshOptions(compression=True), ("Compression",)),
        (
            SshOptions(options=("ciphers=aes128-ctr", "IDENTITYFILE ~/.ssh/x", " MACs = y")),
            ("Ciphers", "IdentityFile", "MACs"),
        ),
        (SshOptions(compression=True, options=("Compression=yes", "compression=no")), ("Compression",)),
        (
            SshOptions(options=("ServerAliveInterval=15", "StrictHostKeyChecking=no")),
            ("ServerAliveInterval", "StrictHostKeyChecking"),
        ),
        # Per session, or on this side only.
        (
            SshOptions(
                options=("SendEnv=LANG", "SetEnv=A=b", "LogLevel=ERROR", "ConnectTimeout=3", "ControlMaster=auto")
            ),
            (),
        ),
        # Through the tokens of the control path, unless the one that was given has none.
        (SshOptions(port=9, user="me", options=("HostName=h", "ProxyJump=j")), ()),
        (SshOptions(port=9, user="me", control_path="/c/%C"), ()),
        (SshOptions(port=9, user="me", control_path="/c/x"), ("Port", "User")),
        (SshOptions(options=("ControlPath=/c/x", "ProxyJump=j", "Port=9")), ("ProxyJump", "Port")),
    ],
)
def test_ignored_options(options: SshOptions, expected: tuple[str, ...]) -> None:
    assert ignored_options(options) == expected
