"""Every option of the tables, and every error that is about one."""

from __future__ import annotations

import dataclasses

import pytest

from mux.errors import ExitCode
from mux.rendezvous.roles import Putty
from mux.rendezvous.target import SshOptions
from sshmuxfs.option_tables import BY_NAME, FLAGS, OPTIONS, Group, Kind, Option
from sshmuxfs.options import Help, Options, UsageError, Version, parse
from sshmuxfs.ssh_keywords import SSH_NAMES

PLAIN = Options(user=None, host="host", directory="dir", mountpoint="/mnt", ssh=SshOptions())


def options(*arguments: str) -> Options:
    """What `host:dir /mnt` and these arguments mean."""
    parsed = parse(["host:dir", "/mnt", *arguments])
    assert isinstance(parsed, Options)
    return parsed


def changed(*arguments: str) -> dict[str, object]:
    """The fields of `Options` that these arguments set otherwise than they are by themselves."""
    found = options(*arguments)
    names = [field.name for field in dataclasses.fields(Options)]
    return {name: getattr(found, name) for name in names if getattr(found, name) != getattr(PLAIN, name)}


def refusal(*arguments: str) -> str:
    """The message that this command line ends with."""
    with pytest.raises(UsageError) as caught:
        parse(arguments)
    assert caught.value.exit_code is ExitCode.USAGE
    assert str(caught.value).isprintable()
    return str(caught.value)


def option_refusal(item: str) -> str:
    return refusal("host:", "/mnt", "-o", item)


# -- every option of the tables ---------------------------------------------------------------------------------------

MEANT: dict[str, dict[str, object]] = {
    "ro": {"read_only": True},
    "rw": {},
    "nosuid": {},
    "suid": {"suid": True},
    "nodev": {},
    "dev": {"dev": True},
    "noexec": {"fuse_options": ("noexec",)},
    "exec": {"fuse_options": ("exec",)},
    "sync": {"fuse_options": ("sync",)},
    "async": {"fuse_options": ("async",)},
    "dirsync": {"fuse_options": ("dirsync",)},
    "noatime": {"fuse_options": ("noatime",)},
    "atime": {"fuse_options": ("atime",)},
    "auto_unmount": {"fuse_options": ("auto_unmount",)},
    "fsname=a b": {"fsname": "a b"},
    "nonempty": {"nonempty": True},
    "allow_other": {"allow_other": True},
    "allow_root": {"allow_root": True},
    "default_permissions": {"default_permissions": True},
    "uid=0": {"uid": 0},
    "gid=4294967294": {"gid": 4294967294},
    "umask=027": {"umask": 0o27},
    "idmap=user": {"idmap": "user"},
    "contain_symlinks": {},
    "no_contain_symlinks": {"contain_symlinks": False},
    "transform_symlinks": {"transform_symlinks": True},
    "follow_symlinks": {"follow_symlinks": True},
    "disable_hardlink": {"disable_hardlink": True},
    "attr_timeout=0": {"attr_timeout": 0.0},
    "entry_timeout=1.5": {"entry_timeout": 1.5},
    "negative_timeout=.25": {"negative_timeout": 0.25},
    "dir_cache=no": {"dcache": False},
    "cache=no": {"dcache": False},
    "dcache_timeout=5": {"stat_timeout_s": 5.0, "link_timeout_s": 5.0, "dir_timeout_s": 5.0},
    "cache_timeout=5": {"stat_timeout_s": 5.0, "link_timeout_s": 5.0, "dir_timeout_s": 5.0},
    "dcache_stat_timeout=0": {"stat_timeout_s": 0.0},
    "cache_stat_timeout=6": {"stat_timeout_s": 6.0},
    "dcache_link_timeout=7": {"link_timeout_s": 7.0},
    "cache_link_timeout=7": {"link_timeout_s": 7.0},
    "dcache_dir_timeout=8": {"dir_timeout_s": 8.0},
    "cache_dir_timeout=8": {"dir_timeout_s": 8.0},
    "dcache_max_size=1": {"dcache_max_size": 1},
    "cache_max_size=500": {"dcache_max_size": 500},
    "max_read=512": {"max_read": 512},
    "max_write=1048576": {"max_write": 1048576},
    "direct_io": {"direct_io": True},
    "no_direct_io": {"direct_io": False},
    "sshfs_sync": {"sync_writes": True},
    "no_readahead": {"no_readahead": True},
    "sftp_server=sudo -n /usr/lib/sftp-server": {"sftp_server": "sudo -n /usr/lib/sftp-server"},
    "share=no": {"share": False},
    "downstream=no": {"may_downstream": False},
    "upstream=no": {"may_upstream": False},
    "putty=only": {"putty": Putty.ONLY},
    "password_stdin": {"password_stdin": True},
    "ssh_command=/opt/ssh -i 'a b'": {
        "ssh_command": "/opt/ssh -i 'a b'",
        "ssh": SshOptions(program=("/opt/ssh", "-i", "a b")),
    },
    "deadline=0.5": {"deadline_s": 0.5},
    "reconnect": {"reconnect": True},
    "debug": {"debug": True, "foreground": True, "log_level": "debug"},
    "sshfs_debug": {"debug": True, "foreground": True, "log_level": "debug"},
    "log_file=/var/log/x=y": {"log_file": "/var/log/x=y"},
    "log_level=warning": {"log_level": "warning"},
}


def names_of(*groups: Group, other_than: bool = False) -> list[str]:
    return [name for name, option in BY_NAME.items() if (option.group in groups) != other_than]


def a_value(option: Option) -> str:
    """Some value that is allowed, with its `=`."""
    match option.kind:
        case Kind.FLAG:
            return ""
        case Kind.COUNT | Kind.SECONDS:
            return "=7"
        case Kind.WORD | Kind.WORDS:
            return "=" + ":".join(list(option.words)[: 2 if option.kind is Kind.WORDS else 1])
        case _:
            return "=anything at all"


@pytest.mark.parametrize("item", MEANT)
def test_option(item: str) -> None:
    assert changed("-o", item) == MEANT[item]
    assert changed("-o" + item) == MEANT[item]


def test_every_option_has_its_case_above() -> None:
    assert {item.partition("=")[0] for item in MEANT} == set(names_of(Group.UNNEEDED, Group.REFUSED, other_than=True))


@pytest.mark.parametrize("name", names_of(Group.UNNEEDED))
def test_accepted_and_changes_nothing(name: str) -> None:
    given_name = "x-systemd.automount" if name == "x-*" else name
    item = given_name + a_value(BY_NAME[name])
    assert changed("-o", item) == {}
    assert options("-d", "-o", item).warnings == (f"-o {given_name} changes nothing: {BY_NAME[name].help}",)


@pytest.mark.parametrize("name", names_of(Group.REFUSED))
def test_refused_with_the_reason(name: str) -> None:
    for value in ("", "=", "=1", "=x"):
        assert option_refusal(name + value) == f"-o {name} cannot be used here: {BY_NAME[name].help}"


def test_the_table_is_sound() -> None:
    fields = {field.name for field in dataclasses.fields(Options)}
    names = [name for option in OPTIONS for name in (option.name, *option.older_names)]
    assert len(names) == len(set(names)) == len(BY_NAME)
    assert {name.lower() for name in names} & set(SSH_NAMES) == {"user"}
    assert len({flag.letter for flag in FLAGS}) == len(FLAGS)
    for option in OPTIONS:
        assert set(option.fields) <= fields
        assert bool(option.metavar) == (option.kind not in (Kind.FLAG, Kind.ANY)) or option.kind is Kind.ANY
        assert bool(option.words) == (option.kind in (Kind.WORD, Kind.WORDS))
        assert not option.opposite or option.opposite in BY_NAME


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("uid=bob", "-o uid: found 'bob', allowed is a whole number from 0 to 4294967294"),
        ("gid=4294967295", "-o gid: found '4294967295', allowed is a whole number from 0 to 4294967294"),
        ("uid=-1", "-o uid: found '-1', allowed is a whole number from 0 to 4294967294"),
        ("uid= 1", "-o uid: found '1', allowed is a whole number from 0 to 4294967294"),
        ("uid=1_0", "-o uid: found '1_0', allowed is a whole number from 0 to 4294967294"),
        ("uid=" + "9" * 5000, None),
        ("uid=", "-o uid needs a value: uid=N"),
        ("uid", "-o uid needs a value: uid=N"),
        ("umask=8", "-o umask: found '8', allowed is an octal number from 0 to 777"),
        ("umask=1000", "-o umask: found '1000', allowed is an octal number from 0 to 777"),
        ("umask=0o22", "-o umask: found '0o22', allowed is an octal number from 0 to 777"),
        ("max_read=511", "-o max_read: found '511', allowed is a whole number from 512 to 1048576"),
        ("max_write=1048577", "-o max_write: found '1048577', allowed is a whole number from 512 to 1048576"),
        ("max_read=64k", "-o max_read: found '64k', allowed is a whole number from 512 to 1048576"),
        ("dcache_max_size=0", "-o dcache_max_size: found '0', allowed is a whole number from 1 to 1000000"),
        ("attr_timeout=-1", "-o attr_timeout: found '-1', allowed is a number of seconds from 0 to 1000000000"),
        ("entry_timeout=nan", "-o entry_timeout: found 'nan', allowed is a number of seconds from 0 to 1000000000"),
        (
            "negative_timeout=inf",
            "-o negative_timeout: found 'inf', allowed is a number of seconds from 0 to 1000000000",
        ),
        ("dcache_timeout=1e3", "-o dcache_timeout: found '1e3', allowed is a number of seconds from 0 to 1000000000"),
        ("cache_timeout=x", "-o cache_timeout: found 'x', allowed is a number of seconds from 0 to 1000000000"),
        ("dcache_stat_timeout=.", None),
        ("deadline=0", "-o deadline: found '0', allowed is a number of seconds from 0.1 to 86400"),
        ("deadline=86401", "-o deadline: found '86401', allowed is a number of seconds from 0.1 to 86400"),
        ("dir_cache=maybe", "-o dir_cache: found 'maybe', allowed is yes or no"),
        ("cache=YES", "-o cache: found 'YES', allowed is yes or no"),
        ("idmap=all", "-o idmap: found 'all', allowed is none or user"),
        ("log_level=loud", "-o log_level: found 'loud', allowed is debug, info, warning or error"),
        ("workaround=rename:renam", "-o workaround: found 'renam', allowed is rename"),
        ("workaround=", "-o workaround needs a value: workaround=LIST"),
        ("max_conns=0x2", None),
        ("ro=yes", "-o ro takes no value, found 'yes'"),
        ("noauto=", "-o noauto takes no value, found ''"),
        ("fsname=a\nb", "-o fsname: found 'a\\nb', allowed is text without control characters"),
        ("sftp_server=\x1b[2J", "-o sftp_server: found '\\x1b[2J', allowed is text without control characters"),
        ("log_file=", "-o log_file needs a value: log_file=FILE"),
        (
            "idmap=file",
            "-o idmap=file cannot be used here: map files are not in this version: use idmap=user, "
            "or uid= and gid= to show one owner",
        ),
        (
            "ssh_protocol=1",
            "-o ssh_protocol=1 cannot be used here: version 1 of the SSH protocol is not spoken by any current ssh",
        ),
        (
            "writeback_cache=yes",
            "-o writeback_cache=yes cannot be used here: writes wait in this process, not in the kernel: "
            "there is no such cache to turn on",
        ),
        ("share=maybe", "-o share: found 'maybe', allowed is yes or no"),
        ("putty=maybe", "-o putty: found 'maybe', allowed is yes, no or only"),
        ("ssh_command=ssh 'x", "-o ssh_command='ssh 'x': No closing quotation"),
        ("ssh_command= ", "-o ssh_command='' names no command"),
        ("Port", "-o Port: a value is missing; it is written Port=value"),
        ("hostname=", "-o hostname: a value is missing; it is written HostName=value"),
        ("ProxyCommand=a\nb", "-o ProxyCommand: it has a control character; it is written ProxyCommand=value"),
        ("Host=x", "-o Host: it groups lines of a file, give the file with -F"),
        ("Port 22", "unknown option -o 'Port 22': it is written Port=value"),
    ],
)
def test_bad_value(item: str, message: str | None) -> None:
    found = option_refusal(item)
    assert found == message if message is not None else f"-o {item.partition('=')[0]}: found" in found
    assert len(found) < 400


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("no_contain_symlink", "no_contain_symlinks"),
        ("alow_other", "allow_other"),
        ("Allow_Other", "allow_other"),
        ("deadlin=5", "deadline=SECONDS"),
        ("serveraliveintervall=15", "ServerAliveInterval=value"),
        ("cypher=x", "Cipher=value"),
        ("controlpth=/x", "ControlPath=value"),
    ],
)
def test_an_unknown_option_names_the_nearest(name: str, meant: str) -> None:
    assert option_refusal(name) == f"unknown option -o '{name.partition('=')[0]}': did you mean {meant}?"


def test_an_unknown_option_that_is_near_to_nothing() -> None:
    assert option_refusal("qqqqqqqq=1") == "unknown option -o 'qqqqqqqq'"
    assert option_refusal("\x1b]0;x\x07") == "unknown option -o '\\x1b]0;x\\x07'"


# -- options with a dash ----------------------------------------------------------------------------------------------


def test_flags() -> None:
    assert changed("-f") == {"foreground": True}
    assert changed("-s") == {"single_thread": True}
    assert changed("-d") == changed("--debug") == MEANT["debug"]
    assert changed("-d", "-o", "log_level=error")["log_level"] == "error"
    assert options("-p", "22").ssh == options("-p22").ssh == SshOptions(port=22)
    assert options("-F", "/a b").ssh == SshOptions(config_file="/a b")
    assert options("-S", "/tmp/%C").ssh == SshOptions(control_path="/tmp/%C")
    assert options("-Snone").ssh == SshOptions(control_path="none")
    assert options("-C").ssh == SshOptions(compression=True)
    assert options("-A").ssh == SshOptions(forward_agent=True)
    assert options("-l", "bob") == dataclasses.replace(PLAIN, user="bob", ssh=SshOptions(user="bob"))
    assert changed("-fs") == {"foreground": True, "single_thread": True}
    assert options("-fCp22", "-oro").ssh == SshOptions(port=22, compression=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "x"], "-p: found 'x', allowed is a port from 1 to 65535"),
        (["-p0"], "-p: found '0', allowed is a port from 1 to 65535"),
        (["-p", "65536"], "-p: found '65536', allowed is a port from 1 to 65535"),
        (["-p"], "-p needs a value"),
        (["-o"], "-o needs a value"),
        (["-S", ""], "-S needs a value"),
        (["-F", ""], "-F needs a value"),
        (["-l", ""], "-l needs a value"),
        (["-l", "-x"], "-l: '-x' is not a host: the user name begins with '-'"),
        (["-x"], "unknown option -x"),
        (["--frobnicate"], "unknown option --frobnicate"),
        (["extra"], "one argument too many: 'extra'"),
        (["-p", "22", "-o", "port=23"], "-p 22 and -o port=23 contradict each other: give one of them"),
        (["-S", "/a", "-o", "ControlPath=/b"], "-S /a and -o ControlPath=/b contradict each other: give one of them"),
        (["-l", "a", "-o", "User=b"], "-l a and -o User=b contradict each other: give one of them"),
        (["-C", "-o", "compression=no"], "-C and -o compression=no contradict each other: give one of them"),
        (
            ["-o", "share=no", "-S", "/a"],
            "-o share=no and the control path '/a' contradict each other: give one of them",
        ),
        (
            ["-o", "upstream=no,downstream=no"],
            "-o upstream=no and -o downstream=no together leave no connection to use",
        ),
        (
            ["-o", "putty=only,downstream=no"],
            "-o putty=only means to join a connection: without share=no and downstream=no",
        ),
        (
            ["-o", "putty=only", "-o", "ControlPath=/a"],
            "-o putty=only and the control path '/a' contradict each other: give one of them",
        ),
        (
            ["-o", "password_stdin,ssh_command=ssh"],
            "-o password_stdin and -o ssh_command: ssh asks for passwords itself, at the terminal",
        ),
        (
            ["-o", "allow_root,allow_other"],
            "-o allow_other and -o allow_root contradict each other: allow_other lets root in as well",
        ),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    assert refusal("host:", "/mnt", *arguments) == message


def test_the_same_thing_said_twice_alike_is_no_contradiction() -> None:
    assert options("-p22", "-oPort=22,Port=23").ssh.port == 22
    found = parse(["bob@host:", "/mnt", "-l", "bob", "-oUser=bob"])
    assert isinstance(found, Options)
    assert found.user == "bob"
    assert refusal("a@host:", "/mnt", "-l", "b").startswith("a@ and -l b contradict each other")
    assert refusal("a@host:", "/mnt", "-o", "User=b").startswith("a@ and -o User=b contradict each other")


def test_who_shares_nothing_needs_neither_box() -> None:
    assert changed("-o", "share=no,upstream=no,downstream=no", "-S", "none")["share"] is False


@pytest.mark.parametrize(
    ("letter", "hint"), [("i", "-o IdentityFile=FILE"), ("J", "-o ProxyJump=HOST"), ("1", "version 2"), ("v", "-d")]
)
def test_an_option_of_ssh_is_told_how_to_say_it(letter: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse([f"-{letter}", "host:", "/mnt"])
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "arguments", [["-h"], ["--help"], ["-o", "nonsense", "-h"], ["-V", "-h"], ["a", "b", "c", "-h"]]
)
def test_help_comes_before_everything(arguments: list[str]) -> None:
    found = parse(arguments)
    assert isinstance(found, Help)
    assert found.text.startswith("usage: sshmuxfs [user@]host:[dir] mountpoint [options]\n")
    assert max(map(len, found.text.splitlines())) <= 80
    words = set(found.text.replace(",", " ").replace("=", " ").replace(";", " ").split())
    assert words >= set(BY_NAME) | set(SSH_NAMES.values()) | {f"-{flag.letter}" for flag in FLAGS}


@pytest.mark.parametrize("arguments", [["-V"], ["--version"], ["x", "-V"]])
def test_version(arguments: list[str]) -> None:
    found = parse(arguments)
    assert isinstance(found, Version)
    assert found.text.startswith("sshmuxfs ")
