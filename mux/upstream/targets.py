"""Connections to what lies on this side: targets of remote forwardings, the owner's agent, the X server.

One rule: one deadline for everything, name and all its addresses. Imported by `forwards.py` and `incoming.py`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Final

from mux.errors import ConnectionLost, printable
from mux.protocol.messages import UNIX_SOCKET_PORT

from .addresses import addresses

DEADLINE_S: Final = 30.0  # a target that is there answers in milliseconds; whoever asked waits, and holds a channel
RETRY_S: Final = 0.02  # of a unix socket whose queue is full: poll() says nothing of one not yet connected


async def connect(host: bytes, port: int, *, deadline_s: float = DEADLINE_S) -> socket.socket:
    """Connect to a host and port, or to the path `host` where `port` is `UNIX_SOCKET_PORT`; non-blocking.

    Raises `ConnectionLost`, with a text that tells where and why.
    """
    try:
        async with asyncio.timeout(deadline_s):
            return await (_connect_unix(host) if port == UNIX_SOCKET_PORT else _connect_tcp(host, port))
    except TimeoutError:
        reason = f"no answer within {deadline_s:g} s"
    except (OSError, ValueError, OverflowError) as error:  # ValueError: a name that is none, such as one with a NUL
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
    where = printable(host) if port == UNIX_SOCKET_PORT else f"{printable(host)} port {port}"
    raise ConnectionLost(f"{where}: {reason}")


async def _connect_tcp(host: bytes, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure = OSError(errno.EADDRNOTAVAIL, "it has no address")
    for family, address in await addresses(os.fsdecode(host), port):
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            await loop.sock_connect(connection, address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
    raise failure


async def _connect_unix(path: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        while True:
            try:
                connection.connect(path)
                return connection
            except BlockingIOError:
                await asyncio.sleep(RETRY_S)
    except BaseException:
        connection.close()
        raise
