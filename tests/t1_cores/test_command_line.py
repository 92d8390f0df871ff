"""The command line as a whole: where options may stand, what comes of several, the forms of what is mounted."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.rendezvous.target import SshOptions
from sshmuxfs.option_tables import BY_NAME
from sshmuxfs.options import UsageError, parse, split_list, split_source
from sshmuxfs.ssh_keywords import ONLY_IN_SSH_CONFIG, SSH_NAMES
from tests.t1_cores.test_options import PLAIN, changed, options, refusal


@pytest.mark.parametrize(
    "line",
    [
        ["host:dir", "/mnt", "-o", "ro", "-f"],
        ["-o", "ro", "host:dir", "/mnt", "-f"],
        ["-f", "-oro", "host:dir", "/mnt"],
        ["host:dir", "-o", "ro", "/mnt", "-f"],
        ["-foro", "host:dir", "/mnt"],
        ["-f", "-o", "ro", "--", "host:dir", "/mnt"],
        ["-f", "host:dir", "-o", "ro", "--", "/mnt"],
        ["host:dir", "/mnt", "-fo", "ro", "--"],
    ],
)
def test_options_stand_anywhere(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dataclasses.replace(PLAIN, read_only=True, foreground=True)
    assert parse(line) == expected
    monkeypatch.setenv("POSIXLY_CORRECT", "1")
    assert parse(line) == expected


def test_behind_two_dashes_nothing_is_an_option() -> None:
    assert parse(["host:dir", "--", "-f"]) == dataclasses.replace(PLAIN, mountpoint="-f")
    assert refusal("--", "-oProxyCommand=x:", "/mnt").endswith("the host name begins with '-'")
    assert parse(["-F", "--", "host:dir", "/mnt"]) == dataclasses.replace(PLAIN, ssh=SshOptions(config_file="--"))


def test_of_two_the_last_counts() -> None:
    assert changed("-o", "ro,rw") == changed("-o", "suid", "-o", "nosuid") == {}
    assert options("-o", "no_contain_symlinks,contain_symlinks").contain_symlinks
    assert not options("-o", "contain_symlinks", "-o", "no_contain_symlinks").contain_symlinks
    assert options("-o", "max_read=1024,max_read=2048").max_read == 2048
    assert options("-o", "exec,sync,noexec,async,noexec").fuse_options == ("async", "noexec")
    times = options("-o", "dcache_stat_timeout=1,dcache_timeout=2,dcache_dir_timeout=3")
    assert (times.stat_timeout_s, times.link_timeout_s, times.dir_timeout_s) == (2, 2, 3)


def test_options_of_ssh_config_go_to_ssh_as_they_are_and_in_order() -> None:
    found = options("-o", "serveraliveinterval=15,ro,ControlPath=/a=b", "-oProxyCommand=nc -X 5\\,4 %h %p,User=bob")
    expected = ("serveraliveinterval=15", "ControlPath=/a=b", "ProxyCommand=nc -X 5,4 %h %p", "User=bob")
    assert found.ssh == SshOptions(options=expected)


def test_every_option_of_ssh_config_is_known_in_any_case() -> None:
    for name in SSH_NAMES.values():
        given = tuple(f"{spelling}=value" for spelling in (name, name.lower(), name.upper()))
        assert options("-o", ",".join(given)).ssh.options == given


def test_the_names_of_the_ssh_that_is_installed_are_known() -> None:
    run = subprocess.run(["ssh", "-F", "none", "-G", "host"], capture_output=True, text=True, check=True, timeout=10)
    printed = {line.split()[0].lower() for line in run.stdout.splitlines()}
    assert printed - ONLY_IN_SSH_CONFIG <= set(SSH_NAMES)


def test_user_is_a_word_of_fstab_and_an_option_of_ssh() -> None:
    assert changed("-o", "user") == {}
    assert options("-o", "user=bob").ssh.options == ("user=bob",)


def test_a_line_of_fstab_as_mount_passes_it_on() -> None:
    assert changed("-o", "rw,noauto,x-systemd.automount,x-foo=1,_netdev,dev,suid,comment=a b,nofail,noatime") == {
        "dev": True,
        "suid": True,
        "fuse_options": ("noatime",),
    }


def test_warnings_are_for_those_who_ask() -> None:
    assert options("-o", "max_conns=4").warnings == ()
    assert len(options("-o", "max_conns=4,noauto", "-d").warnings) == 2


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        (",,", []),
        ("a", ["a"]),
        ("a,b=c,", ["a", "b=c"]),
        ("a\\,b,c", ["a,b", "c"]),
        ("a\\\\,b", ["a\\", "b"]),
        ("a\\b", ["ab"]),
        ("a\\040b", ["a b"]),
        ("a\\303\\244", ["a\N{LATIN SMALL LETTER A WITH DIAERESIS}"]),
        ("a\\054b", ["a,b"]),
        ("a\\0", ["a0"]),
        ("a\\", ["a\\"]),
        ("a\\999", ["a999"]),
        ("\udcff,\xe4", ["\udcff", "\xe4"]),
    ],
)
def test_a_list_is_cut_as_libfuse_cuts_it(text: str, items: list[str]) -> None:
    assert split_list(text) == items


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)))
def test_escaped_items_come_back(items: list[str]) -> None:
    assert split_list(",".join(item.replace("\\", "\\\\").replace(",", "\\,") for item in items)) == items


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host:", (None, "host", "")),
        ("host:dir", (None, "host", "dir")),
        ("user@host:/a:b@c[d]", ("user", "host", "/a:b@c[d]")),
        ("host:~user/x", (None, "host", "~user/x")),
        ("[::1]:dir", (None, "::1", "dir")),
        ("user@[fe80::1%eth0]:/d", ("user", "fe80::1%eth0", "/d")),
        ("[host]:", (None, "host", "")),
        ("a@b@host:", ("a@b", "host", "")),
        ("host:new\nline", (None, "host", "new\nline")),
        ("host:\udcff", (None, "host", "\udcff")),
        ("host:-x", (None, "host", "-x")),
        ("host:./:x", (None, "host", "./:x")),
    ],
)
def test_source(text: str, expected: tuple[str | None, str, str]) -> None:
    assert split_source(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host", "'host' is not of the form [user@]host:[dir]"),
        ("/dir", "'/dir' is not of the form [user@]host:[dir]"),
        ("", "'' is not of the form [user@]host:[dir]"),
        ("[::1]", "'[::1]' looks like an IPv6 address without its brackets"),
        ("::1:dir", "'::1:dir' looks like an IPv6 address without its brackets"),
        ("fe80::1:/dir", "'fe80::1:/dir' looks like an IPv6 address without its brackets"),
        ("2001:db8::1:/dir", "'2001:db8::1:/dir' looks like an IPv6 address without its brackets"),
        ("user@::1:dir", "'user@::1:dir' looks like an IPv6 address without its brackets"),
        (":/dir", "':/dir' has no host before its colon"),
        ("@host:", "'' is not a host: the user name is empty"),
        ("user@:", "'user@' is not a host: the host name is empty"),
        ("-oProxyCommand=x:", "'-oProxyCommand=x' is not a host: the host name begins with '-'"),
        ("[-oProxyCommand=x]:/", "'[-oProxyCommand=x]' is not a host: the host name begins with '-'"),
        ("a@[-x]:/", "'a@[-x]' is not a host: the host name begins with '-'"),
        ("[]:", "'[]' is not a host: the host name is empty"),
        ("ho st:", "'ho st' is not a host: the host name has a blank or a control character"),
        ("ho\x1bst:", "'ho\\\\x1bst' is not a host: the host name has a blank or a control character"),
        ("$(x):", "'$(x)' is not a host: the host name has a character which a shell would read"),
        ("ssh://host/dir", "'ssh://host/dir' is an address: write it as [user@]host:[dir], with the port as -p PORT"),
        ("sftp://h:22/d", "'sftp://h:22/d' is an address: write it as [user@]host:[dir], with the port as -p PORT"),
    ],
)
def test_bad_source(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_source(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "what to mount, and where, is missing"),
        (["host:"], "the mount point is missing"),
        (["-f", "host:"], "the mount point is missing"),
        (["host:", ""], "the mount point is an empty name"),
        (["host:", "/dev/fd/5"], "'/dev/fd/5': a mount point opened beforehand is not in this version"),
    ],
)
def test_bad_line(line: list[str], message: str) -> None:
    assert refusal(*line) == message


def ending(line: list[str]) -> str:
    """The message of a line that is refused; nothing else may be raised."""
    try:
        parse(line)
    except UsageError as error:
        return str(error)
    return ""


# What a process can be given: text, and bytes that are none, which Python shows as surrogates of its own.
anything = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12),
    st.binary(max_size=12).map(lambda given: os.fsdecode(given.replace(b"\0", b""))),
)


@given(st.lists(anything, max_size=6))
def test_no_line_fails_in_another_way(line: list[str]) -> None:
    assert ending(line).isprintable()


@given(st.sampled_from(sorted(BY_NAME)), anything)
def test_no_value_fails_in_another_way(name: str, value: str) -> None:
    assert ending(["host:", "/mnt", "-d", "-o", f"{name}={value}"]).isprintable()


def test_reading_a_command_line_loads_nothing_heavy() -> None:
    heavy = {"trio", "pyfuse3", "asyncio", "importlib.metadata"}
    code = f"import sys, sshmuxfs.options; print(*{heavy} & {{*sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30, env=environment
    )
    assert run.stdout.split() == []
