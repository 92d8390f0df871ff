"""A host as typed -> what ssh makes of it -> the control paths at which a connection to it may be found.

The one rule: ssh itself is asked, by one `ssh -G`, and nothing of ssh_config is interpreted here. So tokens, `~`,
`${ENV}`, Match, Include, canonical names and default files are those of the ssh that is installed, whatever its
version (`%C` changed its meaning in OpenSSH 9.6). Names and options go to ssh as separate arguments, the host behind
`--`; names that could be read as options, or by a shell, are refused first, as OpenSSH itself does since 9.6 (ssh.c,
valid_hostname and valid_ruser).

May be imported by anyone above `mux.protocol`. Runs one child process; holds no state.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from mux.errors import ExitCode, JoinError, printable

# Characters which a shell reads: `Match exec` and ProxyCommand hand %h and %r to one.
_UNSAFE_IN_HOST: Final = frozenset("'`\"$\\;&<>|(){}")
_UNSAFE_IN_USER: Final = frozenset("'`\";&<>|(){}")

# `ssh -G` prints RemoteCommand with its tokens expanded, and an sftp session has no use for the real one. So it is the
# vehicle that brings home ssh's own %C, in the same call that resolves the ControlPath.
_HASH_VEHICLE: Final = "RemoteCommand=%C"
_HASH: Final = re.compile(r"[0-9a-f]{40,128}")

# Where our own sockets lie: below the user's runtime directory, or where there is none (cron, containers, su) below
# /tmp, under a name that nobody else can take once we have it, as tmux does.
_OWN_DIRECTORY: Final = "sshmux"
_OWN_DIRECTORY_WITHOUT_RUNTIME: Final = "/tmp/sshmux-{uid}"
_LONGEST_OWN_PATH_BYTES: Final = 90  # to be published: `mux.rendezvous.publish`
_SHORTEST_HASH: Final = 16  # 64 bits of it: no two connections of one user will meet


@dataclass(frozen=True, slots=True)
class SshOptions:
    """What a command line says about reaching a host, in ssh's own terms.

    Of two settings of one option the first wins, as in ssh.
    """

    config_file: str | None = None  # -F
    port: int | None = None  # -p
    user: str | None = None  # -l
    control_path: str | None = None  # -S, unexpanded; "none" for none
    compression: bool = False  # -C
    options: tuple[str, ...] = ()  # -o, each "Name=value"
    forward_agent: bool = False  # -A
    program: tuple[str, ...] = ("ssh",)  # the command that is asked, with its own arguments

    def explicit_control_path(self) -> str | None:
        """The control path of this command line, unexpanded; None when it has none. `-S` beats `-o ControlPath`."""
        if self.control_path is not None:
            return self.control_path
        for option in self.options:
            if option_name(option).lower() == "controlpath":
                return option.lstrip()[len("controlpath") :].lstrip(" \t=").strip('" \t')
        return None

    def arguments(self) -> list[str]:
        """The same as arguments for `ssh`; the host is not among them."""
        arguments: list[str] = []
        if self.config_file is not None:
            arguments += ["-F", self.config_file]
        if self.port is not None:
            arguments += ["-p", str(self.port)]
        if self.user is not None:
            arguments += ["-l", self.user]
        if self.control_path is not None:
            arguments += ["-S", self.control_path]
        if self.compression:
            arguments.append("-C")
        if self.forward_agent:
            arguments.append("-A")
        for option in self.options:
            arguments += ["-o", option]
        return arguments


@dataclass(frozen=True, slots=True)
class Target:
    """A host as ssh resolved it."""

    typed: str  # without user and brackets
    user: str
    hostname: str
    port: int
    control_path: str | None  # configured or given, expanded, absolute; None when there is none
    own_control_path: str  # ours for this user, host and port; "" where there is no private directory for it
    config: Mapping[str, tuple[str, ...]] = field(repr=False)  # what `ssh -G` printed, by lower-case name
    arguments: tuple[str, ...] = ()  # ssh arguments that lead to this target, the host last

    def start_command(self, path: str) -> str:
        """Return the shell command that starts a connection which is shared at `path`, one of the two here."""
        place = [] if path == self.control_path else ["-S", path.replace("%", "%%")]
        start = shlex.join(["ssh", "-fNM", *place, *self.arguments])
        directory = os.path.dirname(path)
        return start if os.path.isdir(directory) else f"mkdir -p -m 700 {shlex.quote(directory)} && {start}"


def split_host(text: str) -> tuple[str | None, str]:
    """`host`, `user@host`, `[v6]` or `user@[v6]` -> (user or None, host without brackets).

    Raises JoinError (USAGE) for unsafe names.
    """
    if text.lower().startswith("ssh://"):
        raise _refused(text, "addresses are written user@host, the port with -p")
    before, at, host = text.rpartition("@")
    user = before if at else None
    if host.startswith("[") or host.endswith("]"):
        if not (host.startswith("[") and host.endswith("]")):
            raise _refused(text, "its brackets do not match")
        host = host[1:-1]
    if user is not None:
        check_user(user)
    _check_name(host, text, "the host name", _UNSAFE_IN_HOST)
    return user, host


def check_user(user: str) -> None:
    """Raise JoinError (USAGE) for a user name that ssh or a shell could read as something else."""
    _check_name(user, user, "the user name", _UNSAFE_IN_USER)
    if user.endswith("\\"):
        raise _refused(user, "the user name ends with a backslash")


def resolve(host: str, user: str | None, options: SshOptions, *, deadline_s: float = 10.0) -> Target:
    """Ask `ssh -G` what `host` means under these options; milliseconds, unless the configuration runs commands.

    `user` is the one typed before the `@`; as in ssh, `-l` and `-o User` beat it. Raises JoinError: USAGE for unsafe
    names, otherwise with ssh's own words.
    """
    _check_name(host, host, "the host name", _UNSAFE_IN_HOST)
    for name in (user, options.user):
        if name is not None:
            check_user(name)
    if options.explicit_control_path() == "":
        raise JoinError("-S needs a path, or the word none", ExitCode.USAGE)
    tail = ["--", f"{user}@{host}" if user is not None else host]
    output = _run([*options.program, "-G", "-o", _HASH_VEHICLE, *options.arguments(), *tail], host, deadline_s)

    config: dict[str, tuple[str, ...]] = {}
    for line in output.split("\n"):
        name, _, value = line.partition(" ")
        if name:
            config[name.lower()] = (*config.get(name.lower(), ()), value)
    connection_hash = config.pop("remotecommand", ("",))[0]
    try:
        return Target(
            typed=host,
            user=config["user"][0],
            hostname=config["hostname"][0],
            port=int(config["port"][0]),
            control_path=_absolute(config.get("controlpath", ("",))[0]),
            own_control_path=_own_control_path(connection_hash),
            config=MappingProxyType(config),
            arguments=(*options.arguments(), *tail),
        )
    except (KeyError, ValueError) as error:
        raise JoinError(
            f"`ssh -G` did not say what {printable(host)} means ({error}): is the `ssh` in PATH OpenSSH?"
        ) from error


def runtime_directory() -> str | None:
    """Return the user's private directory for sockets, or None.

    `su` leaves the directory of the other user in the environment; that one does not count.
    """
    uid = os.geteuid()
    for directory in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        try:
            if os.path.isabs(directory) and os.stat(directory).st_uid == uid:
                return directory
        except OSError:
            continue
    return None


def own_directories() -> tuple[str, ...]:
    """Return the directories for our own sockets, best first; they may still have to be made. None: there can be none.

    The second is there for a runtime directory whose name is too long for sockets.
    """
    runtime = runtime_directory()
    below_runtime = (os.path.join(runtime, _OWN_DIRECTORY),) if runtime is not None else ()
    below_tmp = _below_tmp()
    return (*below_runtime, below_tmp) if below_tmp is not None else below_runtime


def _below_tmp() -> str | None:
    directory = _OWN_DIRECTORY_WITHOUT_RUNTIME.format(uid=os.geteuid())
    try:
        found = os.lstat(directory)
    except FileNotFoundError:
        return directory
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
    return directory if ours else None


def _own_control_path(connection_hash: str) -> str:
    if not _HASH.fullmatch(connection_hash):
        return ""
    for directory in own_directories():
        left = _LONGEST_OWN_PATH_BYTES - len(os.fsencode(directory)) - 1
        if left >= _SHORTEST_HASH:
            return os.path.join(directory, connection_hash[:left])
    return ""


def _absolute(path: str) -> str | None:
    """ssh takes a relative control path from its working directory, and a daemon leaves that one.

    Not normalised: what `..` means behind a symbolic link only the kernel knows.
    """
    if not path or os.path.isabs(path):
        return path or None
    try:
        return os.path.join(os.getcwd(), path)
    except OSError as error:
        raise JoinError(f"the control path {printable(path)} starts from a directory that is gone: {error}") from error


def _run(command: list[str], host: str, deadline_s: float) -> str:
    # stderr goes to a file and not to a pipe: what a `Match exec` leaves running in the background inherits it, and
    # would keep a pipe open. The process group is its own so that at the deadline such commands end too.
    try:
        words = os.memfd_create("ssh-stderr")
    except OSError as error:  # out of descriptors
        raise JoinError(f"cannot run `ssh`: {error.strerror}") from error
    with open(words, "r+b") as stderr:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, process_group=0
            )
        except OSError as error:
            raise JoinError(f"cannot run `ssh`: {error.strerror}", hint="install the OpenSSH client") from error
        try:
            output, _ = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired as error:
            message = f"`ssh -G {printable(host)}` gave no answer within {deadline_s:g} s"
            raise JoinError(
                message, hint="look for a slow `Match exec` or a name server that is away in ssh_config"
            ) from error
        finally:
            _end(process)
        stderr.seek(0)
        complaint = stderr.read()
    if process.returncode != 0:
        raise JoinError(
            f"ssh cannot resolve {printable(host)}: {_one_line(complaint) or f'exit status {process.returncode}'}"
        )
    return os.fsdecode(output)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _one_line(text: bytes) -> str:
    return "; ".join(printable(line.strip()) for line in text.split(b"\n") if line.strip())


def _check_name(name: str, text: str, what: str, unsafe: frozenset[str]) -> None:
    if not name:
        raise _refused(text, f"{what} is empty")
    if name.startswith("-"):
        raise _refused(text, f"{what} begins with '-'")
    if any(not character.isprintable() or character.isspace() for character in name):
        raise _refused(text, f"{what} has a blank or a control character")
    if unsafe.intersection(name):
        raise _refused(text, f"{what} has a character which a shell would read")


def _refused(text: str, why: str) -> JoinError:
    return JoinError(f"{printable(text)!r} is not a host: {why}", ExitCode.USAGE)


def option_name(option: str) -> str:
    """The name in `Name=value` or `Name value`, as written."""
    return re.split(r"[\s=]", option.strip(), maxsplit=1)[0]


# ssh_config options of the connection itself: whoever joins one that is open takes it as it is (OpenSSH's mux.c never
# looks at them). Not here, and so never warned of: what acts per session or on this side (SendEnv, SetEnv, LogLevel,
# Control*, ConnectTimeout for the greeting), and what means nothing for an sftp session (RequestTTY, EscapeChar ...).
_OF_THE_CONNECTION: Final = """
    AddKeysToAgent AddressFamily BatchMode BindAddress BindInterface CASignatureAlgorithms CertificateFile
    ChallengeResponseAuthentication ChannelTimeout CheckHostIP Ciphers Compression ConnectionAttempts DynamicForward
    EnableSSHKeysign ExitOnForwardFailure ForwardX11Timeout ForwardX11Trusted GatewayPorts GlobalKnownHostsFile
    GSSAPIAuthentication GSSAPIClientIdentity GSSAPIDelegateCredentials GSSAPIKexAlgorithms GSSAPIKeyExchange
    GSSAPIRenewalForcesRekey GSSAPIServerIdentity GSSAPITrustDns HashKnownHosts HostbasedAcceptedAlgorithms
    HostbasedAuthentication HostbasedKeyTypes HostKeyAlgorithms IdentitiesOnly IdentityAgent IdentityFile IPQoS
    KbdInteractiveAuthentication KbdInteractiveDevices KexAlgorithms KnownHostsCommand LocalCommand LocalForward
    MACs NoHostAuthenticationForLocalhost NumberOfPasswordPrompts ObscureKeystrokeTiming PasswordAuthentication
    PermitLocalCommand PKCS11Provider PreferredAuthentications ProxyCommand ProxyUseFdpass PubkeyAcceptedAlgorithms
    PubkeyAcceptedKeyTypes PubkeyAuthentication RekeyLimit RemoteForward RequiredRSASize RevokedHostKeys
    SecurityKeyProvider ServerAliveCountMax ServerAliveInterval StrictHostKeyChecking TCPKeepAlive Tunnel
    TunnelDevice UpdateHostKeys UserKnownHostsFile VerifyHostKeyDNS VersionAddendum VisualHostKey WarnWeakCrypto
"""
# These matter by the tokens of a control path (%p %r %h %k %j, or %C for all), so not under one given without tokens.
_THROUGH_THE_PATH: Final = "HostKeyAlias HostName Port ProxyJump User"

_IGNORED: Final = {name.lower(): name for name in _OF_THE_CONNECTION.split()}
_IGNORED_UNDER_A_FIXED_PATH: Final = _IGNORED | {name.lower(): name for name in _THROUGH_THE_PATH.split()}


def ignored_options(options: SshOptions) -> tuple[str, ...]:
    """Return the names of the options of this command line that a joined connection cannot honour, in order."""
    path = options.explicit_control_path()
    table = _IGNORED if path is None or "%" in path else _IGNORED_UNDER_A_FIXED_PATH
    given = (
        ["Compression"] * options.compression
        + ["Port"] * (options.port is not None)
        + ["User"] * (options.user is not None)
    )
    given += [option_name(option) for option in options.options]
    return tuple(dict.fromkeys(table[name.lower()] for name in given if name.lower() in table))
