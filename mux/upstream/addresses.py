"""What a host's name stands for, for whoever connects or listens on this side.

One rule: a name whose servers are dead costs one thread for as long as the system's resolver tries, and delays no
other name, nor the end of the process: whoever asks for it again shares the answer. What is an address already waits
for nothing.

Imported by `connect.py`, `targets.py` and `listeners.py`.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any, Final, TypeAlias

from .workers import Workers, in_thread

# Targets that may be connected to at once (`incoming.MAX_CONNECTING`), each by a name of its own, if a SOCKS client on
# the server's side chooses them.
MAX_THREADS: Final = 64

Address: TypeAlias = tuple[int, tuple[Any, ...]]  # the family, and what `connect` and `bind` take
_Name: TypeAlias = tuple[asyncio.AbstractEventLoop, str, int, int]

_RESOLVERS: Final = Workers(MAX_THREADS)
_ASKED: Final[dict[_Name, asyncio.Task[list[Address]]]] = {}


async def addresses(host: str, port: int, *, family: int = socket.AF_UNSPEC, flags: int = 0) -> list[Address]:
    """The addresses of a host, in the system's order of preference; `family` and `flags` as for getaddrinfo(3).

    Raises `OSError`, and `UnicodeError` for what is no name.
    """
    try:
        found = _look_up(host, family, flags | socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await _answer((asyncio.get_running_loop(), host, family, flags))
    return [(number, (address[0], port, *address[2:])) for number, address in found]


async def _answer(name: _Name) -> list[Address]:
    asked = _ASKED.get(name)
    if asked is None:
        asked = _ASKED[name] = asyncio.ensure_future(in_thread(partial(_look_up, *name[1:]), _RESOLVERS))
        asked.add_done_callback(lambda _: _ASKED.pop(name, None))
    # Whoever gives up does so alone.
    return await asyncio.shield(asked)


def _look_up(host: str, family: int, flags: int) -> list[Address]:
    found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM, 0, flags)
    return [(number, address) for number, _, _, _, address in found]
