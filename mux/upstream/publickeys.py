"""Public keys: from bytes and back to words, as OpenSSH names them in messages (sshkey.c).

The one rule: no policy, no file. Imported by whoever in `mux.upstream` handles keys.
"""

from __future__ import annotations

from typing import Final

import asyncssh

from mux.protocol.wire import Reader

from . import knownhosts

_WORDS: Final = {
    "ssh-rsa": "RSA",
    "ssh-dss": "DSA",
    "ssh-ed25519": "ED25519",
    "ecdsa-sha2-nistp256": "ECDSA",
    "ecdsa-sha2-nistp384": "ECDSA",
    "ecdsa-sha2-nistp521": "ECDSA",
    "sk-ssh-ed25519@openssh.com": "ED25519-SK",
    "sk-ecdsa-sha2-nistp256@openssh.com": "ECDSA-SK",
}


def public_key(blob: bytes) -> asyncssh.SSHKey | None:
    """A public key from its form on the wire; None for a type that asyncssh does not know."""
    try:
        return asyncssh.import_public_key(knownhosts.public_line(blob))
    except asyncssh.KeyImportError:
        return None


def rsa_bits(key: asyncssh.SSHKey) -> int | None:
    """The size of an RSA key; None for others."""
    if key.get_algorithm() != "ssh-rsa":
        return None
    blob = Reader(key.public_data)
    blob.string(), blob.string()  # the type, the public exponent
    return int.from_bytes(blob.string(), "big").bit_length()


def word(key: asyncssh.SSHKey) -> str:
    return word_of(key.get_algorithm())


def word_of(kind: str) -> str:
    return _WORDS.get(kind, kind)
