"""Ports of loopback on which somebody under test is told to listen, and sockets on which somebody does.

The rule: they lie below those that the kernel hands out by itself (`ip_local_port_range`, ip(7)). One of these, free a
moment ago, may be the near end of anybody's outgoing connection when it is to be listened on.
"""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

LOWEST = 10000
ATTEMPTS = 100
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
DEFAULT_FIRST = 32768


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody has now, and that nobody gets without asking for it by number."""
    for _ in range(ATTEMPTS):
        # Not `random`, which hypothesis seeds: runs side by side would all try the same ones.
        port = LOWEST + secrets.randbelow(_first_of_the_kernel() - LOWEST)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"none of {ATTEMPTS} ports from {LOWEST} on is free")


def is_listening(path: Path | str) -> bool:
    """Whether a unix socket takes connections: it has its name before it does."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _first_of_the_kernel() -> int:
    try:
        first = int(RANGE.read_text().split()[0])
    except OSError:
        return DEFAULT_FIRST
    return first if first > LOWEST + ATTEMPTS else DEFAULT_FIRST
