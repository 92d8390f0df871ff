"""What is read from command lines, and from the kernel's word on real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mux.commands import processes
from mux.commands.processes import Mounted, Process
from mux.commands.unixsockets import unix_sockets


def process(*arguments: str) -> Process:
    return Process(1, arguments, 0.0)


@pytest.mark.parametrize(
    ("line", "destination"),
    [
        ("ssh host", "host"),
        ("/usr/bin/ssh -MN -S /tmp/x me@host", "me@host"),
        ("ssh -fNMS /tmp/x -p22 -o User=me -- host", "host"),
        ("ssh host -p 22 cmd", "host"),
        ("ssh -vvL 1:a:2 host cat -n", "host"),
        ("ssh: /tmp/x [mux]", None),
        ("ssh -V", None),
        ("sshd -D", None),
        ("", None),
    ],
)
def test_the_destination_of_ssh(line: str, destination: str | None) -> None:
    assert processes.ssh_destination(process(*line.split(" "))) == destination


def test_a_persisting_master() -> None:
    persisting = process("ssh: /tmp/a b/c [mux]")
    assert processes.persisting_path(persisting) == "/tmp/a b/c"
    assert processes.is_ssh(persisting) and processes.is_ssh(process("/usr/bin/ssh", "host"))
    assert not processes.is_ssh(process("ssh-agent")) and not processes.is_ssh(process("sshd: me [priv]"))


@pytest.mark.parametrize(
    ("line", "typed", "name"),
    [
        ("plink -share -N me@host", "me@host", "me@host"),
        ("plink -batch -P 2222 host cat file", "host", "local@host:2222"),
        ("plink -l you host", "host", "you@host"),
        ("putty host 2222", "host", "local@host:2222"),
        ("putty -P 22 [::1]", "[::1]", "local@::1"),
        ("psftp -P 2222 host", "host", "host:2222"),
        ("plink -P port host", "host", "local@host"),
        ("plink a@b@host", "a@b@host", "a@b@host"),
        pytest.param(f"plink me@host {'9' * 5000}", "me@host", "me@host", id="no port"),
    ],
)
def test_the_names_of_a_putty(line: str, typed: str, name: str) -> None:
    assert (typed, name) in processes.putty_names(process(*line.split()), "local")


def test_no_name_of_a_putty_without_a_host() -> None:
    for line in ("putty", "putty -load", "plink -share -N", ""):
        assert list(processes.putty_names(process(*line.split(" ")), "local")) == []
    # A command behind the host has any length, and a look at it has an end.
    endless = process("plink", "me@host", *(str(number) for number in range(10_000)))
    names = list(processes.putty_names(endless, "local"))
    assert names[0] == ("me@host", "me@host:0") and len(names) < 1000


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        ("sshmuxfs host:dir /mnt", ("host:dir", "/mnt")),
        ("/usr/bin/python3 /usr/bin/sshmuxfs -f -o ro,uid=1 me@host: /mnt -p 22", ("me@host:", "/mnt")),
        ("python3 -m sshmuxfs -fdo ro [::1]:/x mnt", ("[::1]:/x", "mnt")),
        ("python3 -P -m sshmuxfs host:dir --debug /mnt", ("host:dir", "/mnt")),
        ("sshmuxfs host:dir", None),
        ("sshfs host:dir /mnt", None),
        ("ssh sshmuxfs:dir /mnt", None),
    ],
)
def test_the_mount_of_a_command_line(line: str, mount: tuple[str, str] | None) -> None:
    assert processes.mounted(process(*line.split())) == (mount and Mounted(1, *mount))


def test_text_of_a_command_line_is_escaped() -> None:
    assert processes.mounted(process("sshmuxfs", "h:\x1b[2J", "/m\n")) == Mounted(1, "h:\\x1b[2J", "/m")
    assert process("a\x1b]0;x\x07", "b").command == "a\\x1b]0;x\\x07 b"


def test_ourselves() -> None:
    me = processes.look(os.getpid())
    assert me is not None and me.pid == os.getpid() and me.arguments[0] and 0 < me.age_s < 1e6
    assert processes.working_directory(os.getpid()) == os.getcwd()
    assert os.getpid() in set(processes.own_pids())


def test_one_that_is_gone() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert processes.look(ended.pid) is None
    assert processes.socket_inodes(ended.pid) == frozenset()
    assert processes.working_directory(ended.pid) is None


def test_the_two_ends_of_a_connection(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        client.connect(path)
        accepted, _ = listener.accept()
        with accepted:
            known = {one.inode: one for one in unix_sockets()}
            listening, near, far = (known[os.fstat(end.fileno()).st_ino] for end in (listener, accepted, client))
            assert (listening.path, listening.listening) == (path, True)
            assert (near.path, near.listening, far.path) == (path, False, "")
            assert near.peer == far.inode and far.peer == near.inode
            assert listening.file == os.stat(path).st_ino
            assert {listening.inode, near.inode, far.inode} <= processes.socket_inodes(os.getpid())
            assert processes.holders()[near.inode] == os.getpid()
