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

from mux.protocol.connection import Packet, Part

# `AESGCM.encrypt_into` of one key: (nonce, data, associated data, room of exactly the size) -> that size.
Sealer: TypeAlias = Callable[[bytes, Part, Part, memoryview], int]
# `AESGCM.decrypt` of one key: (nonce, data, associated data) -> data.
Opener: TypeAlias = Callable[[bytes, Part, Part], bytes]

BLOCK_BYTES: Final = 16
TAG_BYTES: Final = 16
LENGTH_BYTES: Final = 4
# What no packet can be shorter than: the length, one block, the tag.
SMALLEST_BYTES: Final = LENGTH_BYTES + BLOCK_BYTES + TAG_BYTES
# RFC 4253 section 6.
SMALLEST_PADDING_BYTES: Final = 4
# Around the body of a packet: length, padding and its count, kind, tag.
_MOST_AROUND_BYTES: Final = LENGTH_BYTES + 2 + BLOCK_BYTES + SMALLEST_PADDING_BYTES - 1 + TAG_BYTES
# RFC 5647 section 7.1: of a nonce the first part stays, and the second counts the packets under this key.
_FIXED_BYTES: Final = 4
_INVOCATION_BYTES: Final = 8
_LAST_INVOCATION: Final = (1 << 8 * _INVOCATION_BYTES) - 1

# Padding has to be there, and "SHOULD be random" (RFC 4253 section 6); under an AEAD cipher it hides nothing, so it is
# drawn once: a call of the system for each packet would cost as much as the encryption of a small one.
_PADDINGS: Final = tuple(os.urandom(count) for count in range(BLOCK_BYTES + SMALLEST_PADDING_BYTES))
_HEADS: Final = tuple(
    tuple(bytes((padding, kind)) for kind in range(256)) for padding in range(BLOCK_BYTES + SMALLEST_PADDING_BYTES)
)


def sealer(key: bytes) -> Sealer:
    """How `seal` encrypts with this key (16 or 32 bytes)."""
    return AESGCM(key).encrypt_into


def opener(key: bytes) -> Opener:
    """How packets that were sealed with this key are decrypted; raises `cryptography.exceptions.InvalidTag`."""
    return AESGCM(key).decrypt


def room_bytes(posted: Sequence[Packet]) -> int:
    """How much room `seal` needs at most."""
    room = _MOST_AROUND_BYTES * len(posted)
    for _, *parts in posted:
        for part in parts:
            room += len(part)
    return room


def seal(encrypt: Sealer, nonce: bytes, posted: Sequence[Packet], room: memoryview) -> tuple[int, bytes]:
    """Seal packets in a row into the beginning of `room`; returns how much of it that took, and the next nonce.

    One loop for all of them: the pieces of a large write differ in their bytes alone.
    """
    fixed, invocation = nonce[:_FIXED_BYTES], int.from_bytes(nonce[_FIXED_BYTES:], "big")
    known, padding, inner, length, start = -1, 0, 0, b"", 0
    for kind, *parts in posted:
        size = 2
        for part in parts:
            size += len(part)
        if size != known:
            known = size
            padding = -size % BLOCK_BYTES
            if padding < SMALLEST_PADDING_BYTES:
                padding += BLOCK_BYTES
            inner = size + padding + TAG_BYTES
            length = (size + padding).to_bytes(LENGTH_BYTES, "big")
        body = start + LENGTH_BYTES
        room[start:body] = length
        start = body + inner
        plain = b"".join((_HEADS[padding][kind], *parts, _PADDINGS[padding]))
        encrypt(fixed + invocation.to_bytes(_INVOCATION_BYTES, "big"), plain, length, room[body:start])
        invocation = (invocation + 1) & _LAST_INVOCATION
    return start, fixed + invocation.to_bytes(_INVOCATION_BYTES, "big")
