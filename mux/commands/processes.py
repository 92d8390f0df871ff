"""What /proc tells of a process: its command line, its age, its sockets, and what it is to us.

The one rule: a process may be gone, or another user's, between any two lines; then it is not told of. What a process
calls itself is its own word: it is shown, escaped, and decides nothing but how a row of a table is labelled. Where
there is no /proc, nothing is known of anybody. Imported by the subcommands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from mux.errors import printable
from mux.rendezvous import putty

_LONGEST_COMMAND_BYTES: Final = 16 * 1024  # of a command line; enough for any that a person wrote
_SHOWN_CHARACTERS: Final = 300
_LONGEST_PORT: Final = 5  # digits
_MOST_WORDS: Final = 64  # where a destination is looked for; a remote command behind it can have any number
_SOCKET_LINK: Final = re.compile(r"socket:\[(\d+)\]")

# The title a persisting master of OpenSSH gives itself (mux.c, control_persist_detach): nothing else is left of its
# command line.
_PERSISTING: Final = re.compile(r"ssh: (?P<path>.+) \[mux\]")

# Options of ssh that have an argument (ssh.c); the rest are flags.
_SSH_WITH_ARGUMENT: Final = frozenset("BbcDEeFIiJLlmOoPpQRSWw")
_SSHMUXFS_WITH_ARGUMENT: Final = frozenset("oplFS")


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was when it was looked at."""

    pid: int
    arguments: tuple[str, ...]
    age_s: float

    @property
    def command(self) -> str:
        """Its command line for people."""
        return printable(" ".join(self.arguments), _SHOWN_CHARACTERS)


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mount, by the command line of the process that serves it."""

    pid: int
    source: str  # [user@]host:[dir], as typed
    mount_point: str  # as typed


def look(pid: int) -> Process | None:
    """Return what is known of `pid`; None when it is gone, or hidden from us."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read(_LONGEST_COMMAND_BYTES)
        with open(f"/proc/{pid}/stat", "rb") as file:
            start_ticks = int(file.read().rpartition(b")")[2].split()[19])  # field 22 of proc(5); the name is field 2
        with open("/proc/uptime", "rb") as file:
            uptime_s = float(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    # A title that a process set for itself is padded with NULs and blanks.
    arguments = tuple(os.fsdecode(argument) for argument in line.rstrip(b"\0 ").split(b"\0"))
    return Process(pid, arguments, max(0.0, uptime_s - start_ticks / os.sysconf("SC_CLK_TCK")))


def own_pids() -> Iterator[int]:
    """Every process of this user; root sees those of all users, and takes its own."""
    uid = os.geteuid()
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                yield int(name)
        except OSError:
            continue


def socket_inodes(pid: int) -> frozenset[int]:
    """The sockets a process has open, by inode number."""
    found = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return frozenset()
    for name in names:
        try:
            match = _SOCKET_LINK.fullmatch(os.readlink(f"/proc/{pid}/fd/{name}"))
        except OSError:
            continue
        if match:
            found.add(int(match[1]))
    return frozenset(found)


def holders() -> Mapping[int, int]:
    """The sockets of this user's processes: inode number -> pid. One held by several is told of once."""
    return {inode: pid for pid in own_pids() for inode in socket_inodes(pid)}


def working_directory(pid: int) -> str | None:
    """Where relative paths of `pid` begin, if that can be known."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None


def is_ssh(process: Process) -> bool:
    """Whether it calls itself ssh: by its program's name, or by the title of a persisting master."""
    first = process.arguments[0]
    return os.path.basename(first) == "ssh" or _PERSISTING.fullmatch(first) is not None


def is_ours(process: Process) -> bool:
    """Whether it is an upstream process of sshmux."""
    return any(word.endswith("/mux/upstream/__main__.py") for word in process.arguments[:8])


def persisting_path(process: Process) -> str | None:
    """The control path in the title of a persisting master."""
    match = _PERSISTING.fullmatch(process.arguments[0])
    return match["path"] if match else None


def ssh_destination(process: Process) -> str | None:
    """The destination on a command line of ssh, as typed; None for what has none."""
    if os.path.basename(process.arguments[0]) != "ssh":
        return None
    return next(_positionals(process.arguments[1:], _SSH_WITH_ARGUMENT), None)


def putty_names(process: Process, local_user: str) -> Iterator[tuple[str, str]]:
    """Each word on a command line of PuTTY's that may be the destination, with each name it would share under.

    No word is excluded for what stands before it: who compares the names knows which it was.
    """
    words = process.arguments[1:_MOST_WORDS]
    following = dict(pairwise(words))
    for word, next_word in pairwise([*words, ""]):
        if word.startswith("-"):
            continue
        user, at, host = word.rpartition("@")
        users = [user] if at else [following.get("-l"), local_user, None]  # psftp knows none where none is given
        for port in (*_ports(following.get("-P"), next_word), putty.SSH_PORT):
            for name in dict.fromkeys(users):
                yield word, putty.connection_name(host, name, port)


def _ports(*words: str | None) -> Iterator[int]:
    """Those of the words that are a port."""
    for word in words:
        if word and len(word) <= _LONGEST_PORT and word.isascii() and word.isdigit():
            yield int(word)


def mounted(process: Process) -> Mounted | None:
    """The mount this process serves, if its command line is one of sshmuxfs."""
    arguments = process.arguments
    for index, argument in enumerate(arguments[:4]):
        module = argument == "sshmuxfs" and index > 0 and arguments[index - 1] == "-m"
        if module or os.path.basename(argument) == "sshmuxfs":
            words = list(_positionals(arguments[index + 1 :], _SSHMUXFS_WITH_ARGUMENT))
            if len(words) == 2:
                return Mounted(process.pid, printable(words[0]), printable(words[1]))
    return None


def _positionals(arguments: tuple[str, ...], with_argument: frozenset[str]) -> Iterator[str]:
    """What is no option and no option's argument, by the rules of getopt(3), permuted."""
    words = iter(arguments)
    for word in words:
        if word == "--":
            yield from words
        elif not word.startswith("-") or word == "-":
            yield word
        elif not word.startswith("--"):
            taking = next((index for index, letter in enumerate(word) if index and letter in with_argument), None)
            if taking == len(word) - 1:
                next(words, None)
