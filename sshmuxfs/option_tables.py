"""Every option of `sshmuxfs`, as data.

The one rule: what an option is called, what it takes and what it means stands here and nowhere else. The parser, the
help, the completions and the documentation are made from these tables, or tested against them.

An option of sshfs or of libfuse that is not here is unknown. One that is accepted and changes nothing says why it is
not needed; one that is refused says why, and what there is in its place. Imported by `sshmuxfs.options` and the tests.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from mux.rendezvous.roles import Putty
from sshmuxfs.tree.identity import NO_ID


class Kind(enum.Enum):
    """What an option takes behind its `=`."""

    FLAG = enum.auto()  # nothing
    COUNT = enum.auto()  # a whole number
    SECONDS = enum.auto()  # a number that may have a fraction
    OCTAL = enum.auto()  # permission bits
    TEXT = enum.auto()  # anything but the empty string
    WORD = enum.auto()  # one of `words`
    WORDS = enum.auto()  # some of `words`, with colons between them
    ANY = enum.auto()  # anything or nothing: it is not looked at


class Group(enum.Enum):
    """The headings of the help, in its order."""

    CONNECTION = "The connection"
    MOUNT = "The mount"
    OWNERS = "Owners and permissions"
    LINKS = "Links"
    CACHES = "What is remembered, and for how long"
    DATA = "Reading and writing"
    SERVER = "The server"
    RUNNING = "Running"
    UNNEEDED = "Accepted, but not needed"
    REFUSED = "Not in this version"


@dataclass(frozen=True, slots=True)
class Option:
    """One `-o` option."""

    name: str
    group: Group
    help: str  # for UNNEEDED and REFUSED: the reason
    kind: Kind = Kind.FLAG
    metavar: str = ""
    fields: tuple[str, ...] = ()  # of `Options`; none: the option itself goes to the mount, or is not needed
    value: object = True  # what a FLAG sets its fields to; for a WORD the word itself where this is True
    low: float = 0
    high: float = 0
    words: Mapping[str, object] = field(default_factory=dict)  # allowed word -> value
    refused_words: Mapping[str, str] = field(default_factory=dict)  # word -> why not
    older_names: tuple[str, ...] = ()  # means the same
    opposite: str = ""  # the option that this one takes back; the last of the two counts

    @property
    def usage(self) -> str:
        """The name with what it takes, as in help and documentation."""
        return f"{self.name}={self.metavar}" if self.metavar else self.name


@dataclass(frozen=True, slots=True)
class Flag:
    """An option with a dash."""

    letter: str
    help: str
    metavar: str = ""
    long: str = ""

    @property
    def usage(self) -> str:
        """As in help and documentation."""
        return f"-{self.letter}" + (f" {self.metavar}" if self.metavar else "") + (f", --{self.long}" * bool(self.long))


FLAGS: Final = (
    Flag("o", "mount options, or options of ssh_config as Name=value; see below", "OPTION[,OPTION...]"),
    Flag("p", "port on the host (ssh's -p)", "PORT"),
    Flag("l", "user on the host (ssh's -l)", "USER"),
    Flag("F", "ssh's configuration file (ssh's -F)", "FILE"),
    Flag("S", "control path of the connection, in place of the configured one; none for a private one", "PATH"),
    Flag("C", "ask for compression (ssh's -C)"),
    Flag("A", "let clients of a connection started here forward the agent (ssh's -A)"),
    Flag("f", "stay in the foreground, with a connection that is started"),
    Flag("d", "stay in the foreground and log everything", long="debug"),
    Flag("s", "accepted; there is one thread in any case"),
    Flag("h", "print this help and exit", long="help"),
    Flag("V", "print the version and exit", long="version"),
)

_YES_NO: Final = MappingProxyType({"yes": True, "no": False})
# Longer than any use; a bound so that arithmetic on deadlines stays exact.
_LONGEST_S: Final = 1_000_000_000
# FUSE requests carry at most 1 MiB (FUSE_MAX_MAX_PAGES of Linux); below 512 the headers are larger than the data.
_SMALLEST_REQUEST_BYTES: Final = 512
_LARGEST_REQUEST_BYTES: Final = 1024 * 1024
# A name takes some 500 bytes here, so this is 500 MB; more is a mistyped number.
_MOST_NAMES: Final = 1_000_000


def _flag(name: str, group: Group, fields: str, text: str, value: object = True, older: str = "") -> Option:
    return Option(name, group, text, fields=tuple(fields.split()), value=value, older_names=tuple(older.split()))


def _seconds(name: str, fields: str, text: str, older: str = "") -> Option:
    names, older_names = tuple(fields.split()), tuple(older.split())
    return Option(name, Group.CACHES, text, Kind.SECONDS, "SECONDS", names, high=_LONGEST_S, older_names=older_names)


def _count(name: str, group: Group, text: str, low: int, high: int, older: str = "") -> Option:
    return Option(name, group, text, Kind.COUNT, "N", (name,), low=low, high=high, older_names=tuple(older.split()))


def _text(name: str, group: Group, fields: str, metavar: str, text: str) -> Option:
    return Option(name, group, text, Kind.TEXT, metavar, tuple(fields.split()))


def _for_the_mount(name: str, text: str, opposite: str = "") -> Option:
    return Option(name, Group.MOUNT, text, opposite=opposite)


def _unneeded(names: str, why: str, kind: Kind = Kind.FLAG, metavar: str = "") -> list[Option]:
    return [
        Option(name, Group.UNNEEDED, why, kind, metavar, high=2**32 if kind is Kind.COUNT else _LONGEST_S)
        for name in names.split()
    ]


def _refused(names: str, why: str, metavar: str = "") -> list[Option]:
    return [Option(name, Group.REFUSED, why, Kind.ANY, metavar) for name in names.split()]


def _yes_no(name: str, field_name: str, text: str) -> Option:
    return Option(name, Group.CONNECTION, text, Kind.WORD, "yes|no", (field_name,), words=_YES_NO)


_HONOURED: Final = (
    _yes_no(
        "share", "share", "share a connection with others; no: a private one, with the options given (default: yes)"
    ),
    _yes_no("downstream", "may_downstream", "a connection that is open may be joined (default: yes)"),
    _yes_no("upstream", "may_upstream", "where none can be joined, one may be started (default: yes)"),
    Option(
        "putty",
        Group.CONNECTION,
        "a connection that a PuTTY shares may be joined, where no other is open; only: and no other (default: yes)",
        Kind.WORD,
        "yes|no|only",
        ("putty",),
        words=MappingProxyType({word.value: word for word in Putty}),
    ),
    _flag("password_stdin", Group.CONNECTION, "password_stdin", "read the password, one line, from standard input"),
    _text(
        "ssh_command",
        Group.CONNECTION,
        "ssh_command",
        "COMMAND",
        "let this ssh hold a connection that is started, with arguments of its own (default: built in)",
    ),
    _flag("ro", Group.MOUNT, "read_only", "mount read-only"),
    _flag("rw", Group.MOUNT, "read_only", "mount for reading and writing (default)", False),
    _flag("nosuid", Group.MOUNT, "suid", "ignore set-user-id and set-group-id bits (default)", False),
    _flag("suid", Group.MOUNT, "suid", "honour them; for root only"),
    _flag("nodev", Group.MOUNT, "dev", "device files are not devices (default)", False),
    _flag("dev", Group.MOUNT, "dev", "device files are devices; for root only"),
    _for_the_mount("noexec", "programs on the mount cannot be run"),
    _for_the_mount("exec", "they can (default)", "noexec"),
    _for_the_mount("sync", "the kernel treats every write as O_SYNC"),
    _for_the_mount("async", "it does not (default)", "sync"),
    _for_the_mount("dirsync", "the same for changes of directories"),
    _for_the_mount("noatime", "shown in the table of mounts; times of access are the server's in any case"),
    _for_the_mount("atime", "the opposite", "noatime"),
    _for_the_mount("auto_unmount", "unmount when this process ends, however it ends"),
    _text("fsname", Group.MOUNT, "fsname", "NAME", "source shown in the table of mounts (default: user@host:dir)"),
    _flag("nonempty", Group.MOUNT, "nonempty", "mount over a directory that is not empty"),
    _flag("allow_other", Group.OWNERS, "allow_other", "let other users in; needs user_allow_other in /etc/fuse.conf"),
    _flag("allow_root", Group.OWNERS, "allow_root", "let root in; needs user_allow_other in /etc/fuse.conf"),
    _flag("default_permissions", Group.OWNERS, "default_permissions", "the kernel checks permissions as well"),
    _count("uid", Group.OWNERS, "show this user as the owner of everything", 0, NO_ID - 1),
    _count("gid", Group.OWNERS, "show this group as that of everything", 0, NO_ID - 1),
    Option("umask", Group.OWNERS, "show permissions as 0777 without these bits", Kind.OCTAL, "OCTAL", ("umask",)),
    Option(
        "idmap",
        Group.OWNERS,
        "none: show ids as on the server (default); user: show the ids of the login as yours, and back",
        Kind.WORD,
        "none|user",
        ("idmap",),
        words={"none": "none", "user": "user"},
        refused_words={"file": "map files are not in this version: use idmap=user, or uid= and gid= to show one owner"},
    ),
    _flag(
        "contain_symlinks",
        Group.LINKS,
        "contain_symlinks",
        "refuse to tell targets that are absolute or have a `..` (default)",
    ),
    _flag("no_contain_symlinks", Group.LINKS, "contain_symlinks", "tell every target; for servers you trust", False),
    _flag(
        "transform_symlinks",
        Group.LINKS,
        "transform_symlinks",
        "make absolute targets inside DIR relative, before they are judged",
    ),
    _flag("follow_symlinks", Group.LINKS, "follow_symlinks", "show what links lead to on the server"),
    _flag("disable_hardlink", Group.LINKS, "disable_hardlink", "hard links fail with ENOSYS"),
    _seconds(
        "attr_timeout", "attr_timeout", "how long the kernel may believe attributes (default: as remembered here)"
    ),
    _seconds("entry_timeout", "entry_timeout", "how long the kernel may believe a name (default: as remembered here)"),
    _seconds(
        "negative_timeout", "negative_timeout", "how long the kernel may believe that a name is not there (default: 0)"
    ),
    Option(
        "dir_cache",
        Group.CACHES,
        "remember attributes, listings and link targets (default: yes)",
        Kind.WORD,
        "yes|no",
        ("dcache",),
        words=_YES_NO,
        older_names=("cache",),
    ),
    _seconds(
        "dcache_timeout",
        "stat_timeout_s link_timeout_s dir_timeout_s",
        "for how long, all three (default: 20)",
        older="cache_timeout",
    ),
    _seconds("dcache_stat_timeout", "stat_timeout_s", "for how long, attributes", older="cache_stat_timeout"),
    _seconds("dcache_link_timeout", "link_timeout_s", "for how long, link targets", older="cache_link_timeout"),
    _seconds("dcache_dir_timeout", "dir_timeout_s", "for how long, listings", older="cache_dir_timeout"),
    _count(
        "dcache_max_size",
        Group.CACHES,
        "how many names are remembered (default: 10000)",
        1,
        _MOST_NAMES,
        older="cache_max_size",
    ),
    _count(
        "max_read",
        Group.DATA,
        "most bytes of one read request (default: what the server allows)",
        _SMALLEST_REQUEST_BYTES,
        _LARGEST_REQUEST_BYTES,
    ),
    _count(
        "max_write",
        Group.DATA,
        "most bytes of one write request (default: what the server allows)",
        _SMALLEST_REQUEST_BYTES,
        _LARGEST_REQUEST_BYTES,
    ),
    _flag("direct_io", Group.DATA, "direct_io", "keep file contents out of the kernel's cache"),
    _flag("no_direct_io", Group.DATA, "direct_io", "use the kernel's cache also for what is only written", False),
    _flag("sshfs_sync", Group.DATA, "sync_writes", "a write returns when the server has answered it"),
    _flag("no_readahead", Group.DATA, "no_readahead", "read only what is asked for"),
    _text(
        "sftp_server",
        Group.SERVER,
        "sftp_server",
        "SERVER",
        "subsystem, or with a `/` or a blank in it a command, that speaks SFTP (default: sftp)",
    ),
    Option(
        "deadline",
        Group.SERVER,
        "fail a request when the server has been silent for so long (default: 30)",
        Kind.SECONDS,
        "SECONDS",
        ("deadline_s",),
        low=0.1,
        high=86400,
    ),
    _flag("reconnect", Group.SERVER, "reconnect", "accepted; a lost channel is always opened again"),
    _flag("debug", Group.RUNNING, "debug foreground", "the same as -d", older="sshfs_debug"),
    _text("log_file", Group.RUNNING, "log_file", "FILE", "log to this file, not to syslog"),
    Option(
        "log_level",
        Group.RUNNING,
        "least level that is logged: debug, info (default), warning or error",
        Kind.WORD,
        "LEVEL",
        ("log_level",),
        words={level: level for level in ("debug", "info", "warning", "error")},
    ),
)

_WORKAROUNDS: Final = ["rename", "renamexdev", "truncate", "buflimit", "fstat", "createmode", "nodelay", "nodelaysrv"]

_UNNEEDED: Final = (
    Option(
        "workaround",
        Group.UNNEEDED,
        "the servers these were for are no longer met, and EXDEV is told apart without help",
        Kind.WORDS,
        "LIST",
        words=dict.fromkeys([*_WORKAROUNDS, *(f"no{name}" for name in _WORKAROUNDS), "none", "all"]),
    ),
    Option(
        "writeback_cache",
        Group.UNNEEDED,
        "sshfs took `no` only, and there is no such cache here",
        Kind.WORD,
        "no",
        words={"no": False},
        refused_words={"yes": "writes wait in this process, not in the kernel: there is no such cache to turn on"},
    ),
    Option(
        "ssh_protocol",
        Group.UNNEEDED,
        "there is no other",
        Kind.WORD,
        "2",
        words={"2": 2},
        refused_words={"1": "version 1 of the SSH protocol is not spoken by any current ssh"},
    ),
    *_unneeded("max_conns", "everything rides on one shared connection", Kind.COUNT, "N"),
    *_unneeded("unreliable_append", "appending is done by the server"),
    *_unneeded("no_check_root", "DIR is looked at while mounting in any case"),
    *_unneeded("sync_readdir", "a listing is asked for in the order in which it is read"),
    *_unneeded(
        "dcache_clean_interval dcache_min_clean_interval cache_clean_interval cache_min_clean_interval",
        "what is remembered has a fixed bound and needs no cleaning",
        Kind.SECONDS,
        "SECONDS",
    ),
    *_unneeded(
        "auto_cache noauto_cache kernel_cache",
        "file contents stay in the kernel's cache for as long as size and time of change stay the same",
    ),
    *_unneeded("ac_attr_timeout", "each open asks the server", Kind.SECONDS, "SECONDS"),
    *_unneeded("atomic_o_trunc", "O_TRUNC goes to the server with the open"),
    *_unneeded("async_read sync_read", "the kernel reads ahead as it likes"),
    *_unneeded("big_writes large_read", "always so since libfuse 3"),
    *_unneeded("hard_remove use_ino readdir_ino", "inode numbers and deleted files need no help here"),
    *_unneeded("clone_fd", "one thread serves the mount"),
    *_unneeded("max_threads max_idle_threads", "one thread serves the mount", Kind.COUNT, "N"),
    *_unneeded("max_readahead max_background congestion_threshold", "set by this program", Kind.COUNT, "N"),
    *_unneeded(
        "splice_read splice_write splice_move no_splice_read no_splice_write no_splice_move",
        "data goes to the kernel from where it was received, without a pipe between",
    ),
    *_unneeded(
        "diratime nodiratime relatime norelatime strictatime nostrictatime lazytime nolazytime",
        "times of access are the server's",
    ),
    *_unneeded(
        "auto noauto user nouser users owner group defaults nofail _netdev _rnetdev",
        "a word of /etc/fstab for mount(8) and systemd",
    ),
    *_unneeded("x-*", "for other programs that read /etc/fstab", Kind.ANY),
    *_unneeded("comment", "a comment in /etc/fstab", Kind.ANY, "TEXT"),
)

_OUTSIDE: Final = "the server is reached as ssh reaches it"

_REFUSED: Final = (
    *_refused("delay_connect", "the mount appears when it works, so it connects first: use an automounter to wait"),
    *_refused("passive slave", "the mount rides on a shared connection, not on stdin and stdout: use sshfs for that"),
    *_refused("directport", f"{_OUTSIDE}: use sshfs for a bare TCP port", "PORT"),
    *_refused("vsock", f"{_OUTSIDE}: use sshfs for a socket of a virtual machine", "CID:PORT"),
    *_refused("uidfile gidfile", "map files are not in this version: use idmap=user, or uid= and gid=", "FILE"),
    *_refused("nomap", "it belongs to idmap=file, which is not in this version: use idmap=user", "ignore|error"),
    *_refused("subtype", "the type is fuse.sshmuxfs, by which a dead mount of ours is known", "TYPE"),
    *_refused("noforget", "inode numbers last for as long as the kernel knows them"),
    *_refused("remember", "inode numbers last for as long as the kernel knows them", "SECONDS"),
    *_refused(
        "modules", "libfuse has modules for its other interface only; a subdirectory is mounted as host:dir", "LIST"
    ),
    *_refused("setuid", "mount(8) takes it, not the mount: run it as the user", "USER"),
    *_refused("drop_privileges", "mount(8) takes it, not the mount"),
    *_refused("blkdev", "there is no block device under this mount"),
    *_refused("blksize", "there is no block device under this mount", "N"),
    *_refused("fd rootmode user_id group_id", "libfuse sets it", "N"),
)

OPTIONS: Final[tuple[Option, ...]] = (*_HONOURED, *_UNNEEDED, *_REFUSED)

BY_NAME: Final[Mapping[str, Option]] = MappingProxyType(
    {name: option for option in OPTIONS for name in (option.name, *option.older_names)}
)
