"""One SSH packet sealed and opened with AES-GCM (RFC 5647, as OpenSSH names it: aes128-gcm@openssh.com).

A packet is `uint32 length | byte padding | byte kind | body | padding | tag`; the length is authenticated but not
encrypted, so that packets can be told apart without a key. One rule: pure functions of bytes; keys and nonces, and when
they change, are the caller's. Imported by `mux.upstream.engine` only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Part: TypeAlias = bytes | bytearray | memoryview
# `AESGCM.encrypt` and `AESGCM.decrypt` of one key: (nonce, data, associated data) -> data.
Cipher: TypeAlias = Callable[[bytes, Part, Part], bytes]

BLOCK_BYTES: Final = 16
TAG_BYTES: Final = 16
LENGTH_BYTES: Final = 4
# What no packet can be shorter than: the length, one block, the tag.
SMALLEST_BYTES: Final = LENGTH_BYTES + BLOCK_BYTES + TAG_BYTES
# RFC 4253 section 6.
SMALLEST_PADDING_BYTES: Final = 4

# Padding has to be there, and "SHOULD be random" (RFC 4253 section 6); under an AEAD cipher it hides nothing, so it is
# drawn once: a call of the system for each packet would cost as much as the encryption of a small one.
_PADDINGS: Final = tuple(os.urandom(count) for count in range(BLOCK_BYTES + SMALLEST_PADDING_BYTES))
_HEADS: Final = tuple(
    tuple(bytes((padding, kind)) for kind in range(256)) for padding in range(BLOCK_BYTES + SMALLEST_PADDING_BYTES)
)


def sealer(key: bytes) -> Cipher:
    """How `seal` encrypts with this key (16 or 32 bytes)."""
    return AESGCM(key).encrypt


def opener(key: bytes) -> Cipher:
    """How packets that were sealed with this key are decrypted; raises `cryptography.exceptions.InvalidTag`."""
    return AESGCM(key).decrypt


def seal(encrypt: Cipher, nonce: bytes, kind: int, parts: Sequence[Part]) -> tuple[bytes, bytes]:
    """Return the length and the sealed rest of one packet. `parts` are what follows `kind`."""
    size = 2 + sum(map(len, parts))
    padding = -size % BLOCK_BYTES
    if padding < SMALLEST_PADDING_BYTES:
        padding += BLOCK_BYTES
    length = (size + padding).to_bytes(LENGTH_BYTES, "big")
    return length, encrypt(nonce, b"".join((_HEADS[padding][kind], *parts, _PADDINGS[padding])), length)
