"""What must be known of an agent and of key files before any event loop runs: which keys an agent holds.

The one rule: synchronous, short, and never an error. An agent that cannot be asked holds nothing. Protocol:
draft-ietf-sshm-ssh-agent, section 3.5. Imported by `support.py`; the login itself talks to the agent in `keys.py`.
"""

from __future__ import annotations

import binascii
import socket
from typing import Final

from mux.errors import WireError
from mux.protocol.wire import Reader

_DEADLINE_S: Final = 2.0  # for each step; an agent on this machine answers at once, one that is forwarded in a moment
# OpenSSH's own limit on a message of an agent (authfd.c).
_MAX_ANSWER_BYTES: Final = 256 * 1024
_REQUEST_IDENTITIES: Final = b"\0\0\0\1\x0b"
_IDENTITIES_ANSWER: Final = 12


def blobs(path: str | None) -> frozenset[bytes]:
    """Public keys (as on the wire) that the agent at this socket holds; certificates are among them."""
    if path is None:
        return frozenset()
    try:
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(_DEADLINE_S)
            agent.connect(path)
            agent.sendall(_REQUEST_IDENTITIES)
            length = int.from_bytes(_exactly(agent, 4), "big")
            if not 0 < length <= _MAX_ANSWER_BYTES:
                return frozenset()
            return _parse(_exactly(agent, length))
    except (OSError, WireError, ValueError):
        return frozenset()


def security_key(path: str) -> bytes | None:
    """The public key in `path`.pub when its private half is on a security key (type `sk-...`), else None."""
    try:
        with open(f"{path}.pub", "rb") as file:
            kind, blob = file.readline(_MAX_ANSWER_BYTES).split()[:2]
        return binascii.a2b_base64(blob) if kind.startswith(b"sk-") else None
    except (OSError, ValueError):
        return None


def _exactly(agent: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        more = agent.recv(count - len(received))
        if not more:
            raise WireError("the agent hung up")
        received += more
    return received


def _parse(answer: bytes) -> frozenset[bytes]:
    reader = Reader(answer)
    if reader.u8() != _IDENTITIES_ANSWER:
        return frozenset()
    found = set()
    for _ in range(reader.u32()):
        found.add(reader.string())
        reader.string()
    return frozenset(found)
