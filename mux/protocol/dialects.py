"""The two ways in which a client speaks the SSH connection protocol on a socket of ours, and where they differ.

OpenSSH's proxy mode (`ssh -O proxy`) and PuTTY's sharing are one protocol in two frames. One rule: what differs is
told here, as data, so that `nat.py` asks nobody which of them it serves. Imported by `nat.py` and `mux.upstream`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .connection import Message
from .packets import PROXY, PUTTY, Framing

# Without effect on this side of a connection: IGNORE, UNIMPLEMENTED, DEBUG (RFC 4253 section 11).
_WITHOUT_EFFECT: Final = frozenset({2, 3, 4})
_GLOBAL_ANSWERS: Final = frozenset({int(Message.REQUEST_SUCCESS), int(Message.REQUEST_FAILURE)})


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of the two.

    name       for logs and lists
    framing    of packets
    swallowed  messages that are dropped; others that have no place end the client
    promises   whether no-more-sessions is a promise of this client, and kept; else it is refused
    """

    name: str
    framing: Framing
    swallowed: frozenset[int]
    promises: bool


# Its client answers global requests, of which it never gets one: a late answer is no reason to end it.
PROXY_MODE: Final = Dialect("proxy", PROXY, _WITHOUT_EFFECT | _GLOBAL_ANSWERS, promises=True)
# As PuTTY's own upstream has it (share_got_pkt_from_downstream of its ssh/sharing.c), which would die of message 3.
PUTTY_SHARING: Final = Dialect("putty", PUTTY, _WITHOUT_EFFECT, promises=False)
