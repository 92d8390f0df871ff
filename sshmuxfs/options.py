"""The command line of `sshmuxfs` -> one frozen `Options`.

The one rule: whatever is wrong is found here, before anything is opened or started, and is told with the option's name,
what was found, and what is allowed. Nothing is looked up: no file, no environment, no host.

The form is sshfs's: options may stand before, between and behind `[user@]host:[dir] mountpoint`, `-o` may be repeated
and glued, its list is cut at commas, and a backslash takes a comma's meaning away, as in libfuse. Of two contradicting
`-o` options the last counts, as in libfuse; options of ssh_config go to ssh in the order given, where the first counts.

What each option is called and takes stands in `sshmuxfs.option_tables`, what ssh calls its own in
`sshmuxfs.ssh_keywords`. Imported by `sshmuxfs.cli` and `sshmuxfs.mount`.
"""

from __future__ import annotations

import difflib
import getopt
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from mux.errors import ExitCode, JoinError, SharingError, printable
from mux.rendezvous.roles import Putty
from mux.rendezvous.target import SshOptions, check_user, option_name, split_host
from sshmuxfs.option_help import USAGE, help_text
from sshmuxfs.option_tables import BY_NAME, FLAGS, OPTIONS, Group, Kind, Option
from sshmuxfs.ssh_keywords import ONLY_IN_SSH_CONFIG, SSH_NAMES


class UsageError(SharingError):
    """A command line that cannot be meant as it stands."""

    usual_exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True)
class Options:
    """What one mount was asked for. Sizes in bytes, times in seconds; None means our own default."""

    user: str | None  # as typed before the `@`, or by -l
    host: str  # without brackets
    directory: str  # "" is the home directory; may begin with `~`
    mountpoint: str
    ssh: SshOptions
    share: bool = True
    may_downstream: bool = True
    may_upstream: bool = True
    putty: Putty = Putty.YES
    password_stdin: bool = False
    ssh_command: str | None = None  # as typed; its words are `ssh.program`
    foreground: bool = False
    debug: bool = False
    single_thread: bool = False
    read_only: bool = False
    allow_other: bool = False
    allow_root: bool = False
    default_permissions: bool = False
    suid: bool = False
    dev: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    idmap: Literal["none", "user"] = "none"
    attr_timeout: float | None = None
    entry_timeout: float | None = None
    negative_timeout: float | None = None
    dcache: bool = True
    stat_timeout_s: float = 20.0
    link_timeout_s: float = 20.0
    dir_timeout_s: float = 20.0
    dcache_max_size: int = 10_000
    max_read: int | None = None
    max_write: int | None = None
    direct_io: bool | None = None  # None: as each open file has need of the kernel's cache
    follow_symlinks: bool = False
    transform_symlinks: bool = False
    contain_symlinks: bool = True
    sftp_server: str = "sftp"
    fsname: str | None = None
    reconnect: bool = False
    sync_writes: bool = False
    no_readahead: bool = False
    log_file: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    deadline_s: float = 30.0
    nonempty: bool = False
    disable_hardlink: bool = False
    fuse_options: tuple[str, ...] = ()  # for the mount, as they are
    warnings: tuple[str, ...] = ()  # under -d: what was accepted and changes nothing


@dataclass(frozen=True, slots=True)
class Help:
    """`-h`: the text to print."""

    text: str


@dataclass(frozen=True, slots=True)
class Version:
    """`-V`: the line to print."""

    text: str


def parse(argv: Sequence[str]) -> Options | Help | Version:
    """Read the arguments, without the program's name. Raises UsageError."""
    given, positional = _take_apart(argv)
    letters = {letter for letter, _ in given}
    if "h" in letters:
        return Help(help_text())
    if "V" in letters:
        from sshmuxfs import __version__

        return Version(f"sshmuxfs {__version__}")
    draft = _Draft()
    for letter, value in given:
        draft.flag(letter, value)
    if len(positional) < 2:
        missing = "the mount point is missing" if positional else "what to mount, and where, is missing"
        raise UsageError(missing, hint=f"usage: {USAGE}; sshmuxfs -h lists the options")
    if len(positional) > 2:
        raise UsageError(f"one argument too many: {_quoted(positional[2])}", hint=f"usage: {USAGE}")
    return draft.options(*positional)


def split_source(text: str) -> tuple[str | None, str, str]:
    """`[user@]host:[dir]` -> (user or None, host without brackets, directory). Raises UsageError."""
    parts = re.fullmatch(r"((?:[^:\[]*@)?(?:\[[^\]]*\]|[^:]*)):(.*)", text, re.DOTALL)
    if parts is None:
        hint = "the home directory is mounted with `host:`; IPv6 addresses go into brackets, as [::1]:dir"
        raise UsageError(f"{_quoted(text)} is not of the form [user@]host:[dir]", hint=hint)
    before, directory = parts.groups()
    if directory.startswith("//") and before in ("ssh", "sftp", "scp", "fish"):
        raise UsageError(f"{_quoted(text)} is an address: write it as [user@]host:[dir], with the port as -p PORT")
    if directory.startswith(":") or _IPV6.match(text):
        hint = "write [::1]:dir; a directory that begins with a colon is written ./:name"
        raise UsageError(f"{_quoted(text)} looks like an IPv6 address without its brackets", hint=hint)
    if not before:
        raise UsageError(f"{_quoted(text)} has no host before its colon", hint=f"usage: {USAGE}")
    try:
        return *split_host(before), directory
    except JoinError as error:
        raise UsageError(error.message, hint=error.hint) from None


def split_list(text: str) -> list[str]:
    """Cut the argument of `-o` at its commas, as libfuse does (fuse_opt.c), and leave out what is empty.

    A backslash makes the character behind it an ordinary one; with three octal digits it is the byte of that number,
    as in /etc/fstab.
    """
    items = [b""]
    whole = os.fsencode(text)
    for octal, escaped, plain in re.findall(rb"\\(?:([0-3][0-7]{2})|(.))|(.)", whole, re.DOTALL):
        if plain == b",":
            items.append(b"")
        else:
            items[-1] += bytes([int(octal, 8)]) if octal else escaped or plain
    return [os.fsdecode(item) for item in items if item]


_IPV6: Final = re.compile("[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{0,4}:")  # how such an address begins

# Options of ssh that a hand may type, and how to say them here.
_OF_SSH: Final = {
    "1": "only version 2 of the SSH protocol is spoken",
    "4": "write -o AddressFamily=inet",
    "6": "write -o AddressFamily=inet6",
    "B": "write -o BindInterface=NAME",
    "c": "write -o Ciphers=LIST",
    "i": "write -o IdentityFile=FILE",
    "J": "write -o ProxyJump=HOST",
    "P": "the port is -p PORT",
    "v": "for messages, use -d",
}


def _take_apart(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the options as (letter, value), and the rest. getopt.gnu_getopt would heed POSIXLY_CORRECT."""
    letters = "".join(flag.letter + ":" * bool(flag.metavar) for flag in FLAGS)
    long_names = {flag.long: flag.letter for flag in FLAGS if flag.long}
    given: list[tuple[str, str]] = []
    positional: list[str] = []
    rest = list(argv)
    while rest:
        before = rest
        try:
            found, rest = getopt.getopt(before, letters, [*long_names])
        except getopt.GetoptError as error:
            raise _unknown_flag(error) from None
        given += [(long_names.get(name.lstrip("-"), name.lstrip("-")), value) for name, value in found]
        taken = before[: len(before) - len(rest)]
        if taken and taken[-1] == "--" and not (found and found[-1][1] == "--"):
            return given, positional + rest
        positional += rest[:1]
        rest = rest[1:]
    return given, positional


def _unknown_flag(error: getopt.GetoptError) -> UsageError:
    name = f"-{error.opt}" if len(error.opt) == 1 else f"--{error.opt}"
    if "requires argument" in error.msg:
        return UsageError(f"{name} needs a value", hint=f"usage: {USAGE}")
    return UsageError(f"unknown option {printable(name)}", hint=_OF_SSH.get(error.opt, "sshmuxfs -h lists the options"))


@dataclass(slots=True)
class _Draft:
    """Options as they are read, one by one."""

    values: dict[str, Any] = field(default_factory=dict)
    ssh: dict[str, Any] = field(default_factory=dict)
    ssh_options: list[str] = field(default_factory=list)
    for_the_mount: list[str] = field(default_factory=list)
    not_needed: list[str] = field(default_factory=list)

    def flag(self, letter: str, value: str) -> None:
        """Take one option with a dash."""
        if letter in "FSl" and not value:
            raise UsageError(f"-{letter} needs a value")
        match letter:
            case "o":
                for item in split_list(value):
                    self._option(item)
            case "p":
                self.ssh["port"] = _port(value)
            case "l":
                self.ssh["user"] = _user(value)
            case "F":
                self.ssh["config_file"] = value
            case "S":
                self.ssh["control_path"] = value
            case "C":
                self.ssh["compression"] = True
            case "A":
                self.ssh["forward_agent"] = True
            case "f":
                self.values["foreground"] = True
            case "d":
                self._option("debug")
            case "s":
                self.values["single_thread"] = True

    def _option(self, item: str) -> None:
        """Take one item of a `-o` list."""
        name, equals, text = item.partition("=")
        value = text if equals else None
        option = BY_NAME.get("x-*" if name[:2] in ("x-", "X-") else name)
        ssh_name = SSH_NAMES.get(name.lower())
        # `user` is a word of fstab, `User=name` an option of ssh_config.
        if option is not None and not (ssh_name and value is not None):
            self._own(option, name, value)
        elif ssh_name is not None:
            if not value or _has_control_characters(value):
                what = "it has a control character" if value else "a value is missing"
                raise UsageError(f"-o {name}: {what}; it is written {ssh_name}=value")
            self.ssh_options.append(item)
        else:
            raise _unknown_option(name)

    def _own(self, option: Option, name: str, text: str | None) -> None:
        if option.group is Group.REFUSED:
            raise UsageError(f"-o {name} cannot be used here: {option.help}")
        value = _value(option, name, text)
        if option.group is Group.UNNEEDED:
            self.not_needed.append(f"-o {printable(name)} changes nothing: {option.help}")
        elif option.fields:
            self.values |= dict.fromkeys(option.fields, value)
        else:
            rivals = {option.name, option.opposite, *(one.name for one in OPTIONS if one.opposite == option.name)}
            self.for_the_mount = [other for other in self.for_the_mount if other not in rivals] + [option.name]

    def options(self, source: str, mountpoint: str) -> Options:
        """Put it all together, and see that nothing contradicts."""
        user, host, directory = split_source(source)
        _check_mountpoint(mountpoint)
        command = self.values.get("ssh_command")
        program = ("ssh",) if command is None else _words(command)
        ssh = SshOptions(**self.ssh, options=tuple(self.ssh_options), program=program)
        _check_contradictions(user, ssh)
        _check_sharing(self.values, ssh)
        values = {"log_level": "debug"} | self.values if self.values.get("debug") else self.values
        if values.get("allow_other") and values.get("allow_root"):
            raise UsageError("-o allow_other and -o allow_root contradict each other: allow_other lets root in as well")
        return Options(
            user=user or ssh.user,
            host=host,
            directory=directory,
            mountpoint=mountpoint,
            ssh=ssh,
            fuse_options=tuple(self.for_the_mount),
            warnings=tuple(self.not_needed) if values.get("debug") else (),
            **values,
        )


def _check_mountpoint(mountpoint: str) -> None:
    if not mountpoint:
        raise UsageError("the mount point is an empty name")
    if mountpoint.startswith("/dev/fd/"):
        raise UsageError(f"{_quoted(mountpoint)}: a mount point opened beforehand is not in this version")


def _check_contradictions(user: str | None, ssh: SshOptions) -> None:
    """Find the same thing said twice, and differently."""
    said = {option_name(option).lower(): option for option in reversed(ssh.options)}

    def value(name: str) -> str | None:
        return said[name].partition("=")[2] if name in said else None

    pairs = (
        (f"{user}@", user, f"-l {ssh.user}", ssh.user),
        (f"{user}@", user, f"-o {said.get('user')}", value("user")),
        (f"-l {ssh.user}", ssh.user, f"-o {said.get('user')}", value("user")),
        (f"-p {ssh.port}", None if ssh.port is None else str(ssh.port), f"-o {said.get('port')}", value("port")),
        (f"-S {ssh.control_path}", ssh.control_path, f"-o {said.get('controlpath')}", value("controlpath")),
        ("-C", "yes" if ssh.compression else None, f"-o {said.get('compression')}", value("compression")),
    )
    for one, first, other, second in pairs:
        if first is not None and second is not None and first != second:
            raise UsageError(f"{printable(one)} and {printable(other)} contradict each other: give one of them")


def _check_sharing(values: Mapping[str, Any], ssh: SshOptions) -> None:
    """See that what is said about the connection leaves a way to have one."""
    path = ssh.explicit_control_path()
    if not values.get("share", True):
        if path is not None and path.lower() != "none":
            raise UsageError(
                f"-o share=no and the control path {_quoted(path)} contradict each other: give one of them"
            )
    elif not values.get("may_downstream", True) and not values.get("may_upstream", True):
        raise UsageError(
            "-o upstream=no and -o downstream=no together leave no connection to use",
            hint="-o share=no starts a private one",
        )
    if values.get("putty") is Putty.ONLY:
        if not values.get("share", True) or not values.get("may_downstream", True):
            raise UsageError("-o putty=only means to join a connection: without share=no and downstream=no")
        if path is not None:
            raise UsageError(
                f"-o putty=only and the control path {_quoted(path)} contradict each other: give one of them"
            )
    if values.get("password_stdin") and values.get("ssh_command"):
        raise UsageError("-o password_stdin and -o ssh_command: ssh asks for passwords itself, at the terminal")


def _words(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise UsageError(f"-o ssh_command={_quoted(command)}: {error}") from None
    if not words:
        raise UsageError(f"-o ssh_command={_quoted(command)} names no command")
    return words


def _value(option: Option, name: str, text: str | None) -> object:
    """Return what `text` means for this option. Raises UsageError."""
    if option.kind is Kind.ANY:
        return None
    if option.kind is Kind.FLAG:
        if text is not None:
            raise UsageError(f"-o {name} takes no value, found {_quoted(text)}")
        return option.value
    if not text:
        raise UsageError(f"-o {name} needs a value: {name}={option.metavar}")
    match option.kind:
        case Kind.COUNT:
            return int(_number(option, name, text, "[0-9]{1,15}", "a whole number"))
        case Kind.SECONDS:
            return _number(option, name, text, r"[0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15}", "a number of seconds")
        case Kind.OCTAL:
            if not re.fullmatch("0{0,3}[0-7]{1,3}", text):
                raise _bad(name, text, "an octal number from 0 to 777")
            return int(text, 8)
        case Kind.TEXT:
            if _has_control_characters(text):
                raise _bad(name, text, "text without control characters")
            return text
        case _:
            words = text.split(":") if option.kind is Kind.WORDS else [text]
            return [_word(option, name, word) for word in words][-1]


def _number(option: Option, name: str, text: str, form: str, what: str) -> float:
    number = float(text) if re.fullmatch(form, text) else -1.0
    if not option.low <= number <= option.high:
        raise _bad(name, text, f"{what} from {option.low:.15g} to {option.high:.15g}")
    return number


def _word(option: Option, name: str, word: str) -> object:
    if word in option.refused_words:
        raise UsageError(f"-o {name}={word} cannot be used here: {option.refused_words[word]}")
    if word not in option.words:
        near = difflib.get_close_matches(word, option.words, n=1) if option.kind is Kind.WORDS else []
        raise _bad(name, word, near[0] if near else _either(option.words))
    return option.words[word]


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _bad(name: str, text: str, allowed: str) -> UsageError:
    return UsageError(f"-o {name}: found {_quoted(text)}, allowed is {allowed}")


def _unknown_option(name: str) -> UsageError:
    if name.lower() in ONLY_IN_SSH_CONFIG:
        return UsageError(f"-o {name}: it groups lines of a file, give the file with -F", hint="sshmuxfs -h lists all")
    head = re.split(r"\s", name.strip(), maxsplit=1)[0].lower()
    if head in SSH_NAMES:
        return UsageError(f"unknown option -o {_quoted(name)}: it is written {SSH_NAMES[head]}=value")
    spelled = {lower: f"{shown}=value" for lower, shown in SSH_NAMES.items()}
    spelled |= {option.name: option.usage for option in OPTIONS if option.group is not Group.REFUSED}
    near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.6)
    meant = f": did you mean {spelled[near[0]]}?" if near else ""
    return UsageError(f"unknown option -o {_quoted(name)}{meant}", hint="sshmuxfs -h lists all options")


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise UsageError(f"-p: found {_quoted(text)}, allowed is a port from 1 to 65535")
    return int(text)


def _user(text: str) -> str:
    try:
        check_user(text)
    except JoinError as error:
        raise UsageError(f"-l: {error.message}") from None
    return text


def _has_control_characters(text: str) -> bool:
    return any(ord(character) < 32 or ord(character) == 127 for character in text)


def _quoted(text: str) -> str:
    return f"'{printable(text, 200)}'"
