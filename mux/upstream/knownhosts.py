"""known_hosts files: reading them, looking a host up, adding to them and rewriting them.

The one rule: what is written here is what OpenSSH writes (hostfile.c), byte for byte, since the same files are read and
written by ssh. Lines that are not understood are left alone and decide nothing. Format: sshd(8), SSH_KNOWN_HOSTS FILE
FORMAT. Policy is not here: see `hostkeys.py`.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import re
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

# OpenSSH hashes names with HMAC-SHA1 and a salt of the digest's size; there is no other kind.
_HASH_PREFIX: Final = "|1|"
_SALT_BYTES: Final = 20
CA: Final = "@cert-authority"
REVOKED: Final = "@revoked"
DEFAULT_PORT: Final = 22


@dataclass(frozen=True, slots=True)
class Entry:
    """One line that names a key. `number` counts lines from 1."""

    file: str
    number: int
    marker: str  # "", CA or REVOKED
    hosts: str  # as written
    kind: str  # "ssh-ed25519" ...
    blob: bytes  # the key as on the wire

    def names(self, host: str) -> bool:
        """Whether the line is about `host` (which has its port in it, if not 22)."""
        return matches(self.hosts, host)

    @property
    def is_hashed(self) -> bool:
        return self.hosts.startswith(_HASH_PREFIX)

    @property
    def is_complex(self) -> bool:
        """Whether the line may name more hosts than it says."""
        return not self.is_hashed and any(character in self.hosts for character in "*?")


def host_and_port(host: str, port: int) -> str:
    """The name under which a host is recorded: `[host]:port` for a port that is not the usual one."""
    return host if port in (0, DEFAULT_PORT) else f"[{host}]:{port}"


def matches(pattern: str, host: str) -> bool:
    """Whether the first field of a line is about `host`: a hash, or patterns of which one may forbid with `!`."""
    host = host.lower()
    if pattern.startswith(_HASH_PREFIX):
        salt, _, digest = pattern[len(_HASH_PREFIX) :].partition("|")
        try:
            wanted = binascii.a2b_base64(digest)
            made = hmac.digest(binascii.a2b_base64(salt), host.encode(errors="surrogateescape"), "sha1")
        except ValueError:
            return False
        return hmac.compare_digest(wanted, made)
    found = False
    for name in pattern.lower().split(","):
        if _match_one(name.removeprefix("!"), host):
            if name.startswith("!"):
                return False
            found = True
    return found


def _match_one(pattern: str, host: str) -> bool:
    if "*" not in pattern and "?" not in pattern:
        return pattern == host
    # Only `*` and `?` are special; brackets are part of a name with a port.
    return re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), host) is not None


def parse(text: str, file: str) -> list[Entry]:
    """The lines of a file that name keys."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split(None, 4)
        marker = words.pop(0) if words and words[0] in (CA, REVOKED) else ""
        if len(words) < 3 or words[0].startswith(("#", "@")):
            continue
        try:
            blob = binascii.a2b_base64(words[2], strict_mode=True)
        except ValueError:
            continue
        if kind_of(blob) == words[1]:
            found.append(Entry(file, number, marker, words[0], words[1], blob))
    return found


def read(files: Iterable[str]) -> list[Entry]:
    """All entries of these files, in order. Files that are not there, or cannot be read, have none, as in ssh."""
    found: list[Entry] = []
    for file in files:
        try:
            with open(file, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
                found += parse(lines.read(), file)
        except OSError:
            continue
    return found


def line(host: str, blob: bytes, *, hashed: bool, salt: bytes | None = None) -> str:
    """One line for this key, with its end. `host` has its port in it, if not 22."""
    name = _hashed(host, os.urandom(_SALT_BYTES) if salt is None else salt) if hashed else host.lower()
    return f"{name} {public_line(blob)}\n"


def kind_of(blob: bytes) -> str:
    """The type that a key on the wire begins with."""
    return blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode("ascii", "replace")


def public_line(blob: bytes) -> str:
    """A key as in a public key file, without a comment."""
    return f"{kind_of(blob)} {base64.b64encode(blob).decode('ascii')}"


def _hashed(host: str, salt: bytes) -> str:
    digest = hmac.digest(salt, host.lower().encode(errors="surrogateescape"), hashlib.sha1)
    return f"{_HASH_PREFIX}{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def add(file: str, host: str, blob: bytes, *, hashed: bool) -> None:
    """Append one key; the file and its directory (0700, if it is the only one missing) are made. Raises OSError."""
    directory = os.path.dirname(file)
    if directory and not os.path.isdir(directory):
        os.mkdir(directory, 0o700)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        data = line(host, blob, hashed=hashed).encode(errors="surrogateescape")
        size = os.fstat(descriptor).st_size
        if size > 0 and stat.S_ISREG(os.fstat(descriptor).st_mode) and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def replace(
    file: str,
    host: str,
    keys: Collection[bytes],
    *,
    add_missing: bool,
    hashed: bool,
    said: Callable[[str], None] = lambda text: None,
) -> bool:
    """Make the plain keys of `host` in this file those in `keys`: others go, missing ones come at the end if wished.

    Written to a new file that takes the old one's place; the old one stays as FILE.old. Lines with a marker stay.
    Returns whether anything changed. Raises OSError.
    """
    try:
        with open(file, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            text = lines.read()
    except FileNotFoundError:
        text = ""
    entries = {entry.number: entry for entry in parse(text, file)}
    kept: list[str] = []
    present: set[bytes] = set()
    removed = False
    contents = text.split("\n")
    if contents[-1] == "":
        contents.pop()
    for number, content in enumerate(contents, 1):
        entry = entries.get(number)
        if entry is not None and not entry.marker and entry.names(host):
            if entry.blob not in keys:
                said(f"{file}:{number}: removed {entry.kind} key for host {host}")
                removed = True
                continue
            present.add(entry.blob)
        kept.append(f"{content}\n")
    missing = [blob for blob in keys if blob not in present] if add_missing else []
    if not missing and not removed:
        return False
    _publish(file, "".join([*kept, *(line(host, blob, hashed=hashed) for blob in missing)]))
    return True


def _publish(file: str, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f"{os.path.basename(file)}.", dir=os.path.dirname(file) or ".")
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as new:
            new.write(text)
        if os.path.exists(file):
            backup = f"{file}.old"
            if os.path.lexists(backup):
                os.unlink(backup)
            os.link(file, backup)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
