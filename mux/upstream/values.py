"""Values as `ssh -G` prints them -> Python: switches, lists, paths, tokens, forwardings.

The one rule: pure text to value. What `ssh -G` has expanded already is taken as it is; what it prints as written in
the file (IdentityFile, CertificateFile, RevokedHostKeys, ForwardAgent, ProxyCommand) is expanded here by the rules of
ssh_config(5), TOKENS and ENVIRONMENT VARIABLES. Imported by `settings.py` and its tests.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mux.errors import ExitCode, SharingError, printable
from mux.protocol.messages import UNIX_SOCKET_PORT, Forward, ForwardKind

_TRUE: Final = frozenset({"yes", "true"})
_FALSE: Final = frozenset({"no", "false", "off"})

_VARIABLE: Final = re.compile(r"\$\{([^}]*)\}")
_TOKEN: Final = re.compile(r"%(.?)", re.DOTALL)
# A host always has brackets where `ssh -G` prints a forwarding; anything else that is not a port alone is a path.
_HOST_PORT: Final = re.compile(r"\[([^\]]*)\]:(\d+)\Z")


class SettingError(SharingError):
    """ssh_config says something that cannot be done here; the message names the option."""

    usual_exit_code = ExitCode.USAGE


def switch(value: str, *, default: bool) -> bool:
    """`yes`, `true`, `no`, `false`, `off` in any case; `default` for anything else."""
    word = value.lower()
    return word in _TRUE or (default and word not in _FALSE)


def names(value: str) -> tuple[str, ...]:
    """A list with commas; empty for none."""
    return tuple(name for name in value.split(",") if name)


def seconds(value: str) -> int | None:
    """A number of seconds; None for `none`, or where there is none."""
    return int(value) if value.isdigit() else None


def paths(value: str) -> tuple[str, ...]:
    """A list of files on one line: `ssh -G` joins them with blanks and quotes none, so blanks within are guessed.

    A name begins where a `/` or `~` follows a blank; what is left in one piece with blanks and is not there as a file
    was several names. `none` stands alone, and is none.
    """
    if value.lower() in ("", "none"):
        return ()
    found: list[str] = []
    for piece in re.split(r" (?=[/~])", value):
        found += [piece] if " " not in piece or os.path.exists(piece) else piece.split()
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the tokens of ssh_config(5) stand for, for one connection."""

    typed: str
    hostname: str
    port: int
    user: str
    key_alias: str | None = None
    jump: str | None = None
    connection_hash: str = ""  # ssh's own %C; "" where it is not known

    def table(self) -> Mapping[str, str]:
        """Letter -> text."""
        me = pwd.getpwuid(os.getuid()) if _has_account() else None
        local = socket.gethostname()
        jump = self.jump or ""
        # As OpenSSH since 9.6; before, the jump host was left out. Only used where ssh's own is not known.
        digest = hashlib.sha1(f"{local}{self.hostname}{self.port}{self.user}{jump}".encode(errors="surrogateescape"))
        return {
            "%": "%",
            "C": self.connection_hash or digest.hexdigest(),
            "d": home(),
            "h": self.hostname,
            "i": str(os.getuid()),
            "j": jump,
            "k": self.key_alias or self.typed,
            "L": local.split(".")[0],
            "l": local,
            "n": self.typed,
            "p": str(self.port),
            "r": self.user,
            "u": me.pw_name if me is not None else str(os.getuid()),
        }

    def expand(self, text: str, option: str) -> str:
        """Replace tokens. Raises SettingError for one that ssh does not know either."""
        table = self.table()

        def replace(match: re.Match[str]) -> str:
            if match[1] not in table:
                raise SettingError(f"{option} {printable(text)}: there is no token {printable(match[0])}")
            return table[match[1]]

        return _TOKEN.sub(replace, text)

    def path(self, text: str, option: str) -> str:
        """Replace `~`, `${NAME}` and tokens, in the order of ssh (ssh.c, load_public_identity_files)."""
        return self.expand(variables(tilde(text), option), option)


def _has_account() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def home() -> str:
    """The home directory by the password database, as in ssh, which does not look at $HOME."""
    return pwd.getpwuid(os.getuid()).pw_dir if _has_account() else os.environ.get("HOME", "/")


def tilde(text: str) -> str:
    """`~/x` and `~user/x` -> an absolute path, by the password database."""
    if not text.startswith("~"):
        return text
    user, slash, rest = text[1:].partition("/")
    if not user:
        return home() + slash + rest
    try:
        return pwd.getpwnam(user).pw_dir + slash + rest
    except KeyError:
        return text


def variables(text: str, option: str) -> str:
    """Replace every `${NAME}`. Raises SettingError for one that is not set, as ssh does."""

    def replace(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value is None:
            raise SettingError(f"{option} {printable(text)}: the environment variable {printable(match[1])} is not set")
        return value

    return _VARIABLE.sub(replace, text)


def agent_path(value: str | None, option: str) -> str | None:
    """The socket that IdentityAgent or ForwardAgent names; `value` None or `SSH_AUTH_SOCK` is the usual one.

    None when there is none. A name that begins with `$` is a variable that holds the path (ssh.c).
    """
    if value is None or value in ("SSH_AUTH_SOCK", "yes", "true"):
        return os.environ.get("SSH_AUTH_SOCK") or None
    if value.lower() in ("none", "no", "false", ""):
        return None
    if value.startswith("$") and not value.startswith("${"):
        return os.environ.get(value[1:]) or None
    return variables(tilde(value), option)


def local_forward(value: str) -> Forward:
    """`localforward` as printed: `8080 [host]:80`, `[*]:8080 [host]:80`, `/listen/path [host]:80`, `... /path`."""
    return _forward(ForwardKind.LOCAL, value)


def remote_forward(value: str) -> Forward:
    """`remoteforward` as printed; one without a destination (SOCKS at the far end) has the host `socks`, port 0."""
    return _forward(ForwardKind.REMOTE, value)


def dynamic_forward(value: str) -> Forward:
    """`dynamicforward` as printed: `1080` or `[host]:1080`."""
    host, port = _listen_end(value)
    return Forward(ForwardKind.DYNAMIC, host, port, b"socks", 0)


def _forward(kind: ForwardKind, value: str) -> Forward:
    connect = _HOST_PORT.search(value)
    if connect is not None:
        listen = value[: connect.start()].rstrip(" ")
        host, port = os.fsencode(connect[1]), int(connect[2])
    else:
        # A path to connect to. The listening half has no blank unless it is a path as well.
        listen, _, path = value.partition(" /")
        host, port = b"/" + os.fsencode(path), UNIX_SOCKET_PORT
    return Forward(kind, *_listen_end(listen), host, port)


def _listen_end(text: str) -> tuple[bytes, int]:
    """Nothing named: b"" (GatewayPorts decides); named empty or `*`: b"*", every address (mux.c)."""
    if text.isdigit():
        return b"", int(text)
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        return os.fsencode(text), UNIX_SOCKET_PORT
    return os.fsencode(match[1]) or b"*", int(match[2])
