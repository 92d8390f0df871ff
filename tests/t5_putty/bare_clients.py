"""An upstream in this very process that PuTTYs find, and raw clients that speak PuTTY's protocol to it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from mux.protocol.packets import PUTTY
from mux.rendezvous import putty
from mux.upstream.relay import Relay
from tests.support.sshd import HOST, Sshd
from tests.t2_upstream.proxied import Proxied
from tests.t2_upstream.riding import Raw, Ride, riding

PREFIX = b"SSHCONNECTION@putty.projects.tartarus.org-2.0-"
GREETING = PREFIX + b"PuTTY_Release_0.78\r\n"


@asynccontextmanager
async def sharing(sshd: Sshd, **changes: Any) -> AsyncIterator[Ride]:
    """As `riding`, with a name of PuTTY's kind, which nobody else has; its directory has to go with it."""
    name = f"nobody@in-process-{sshd.port}.invalid"
    async with riding(sshd, str(sshd.control_dir / "shared-with-putty"), **changes) as ride:
        assert await ride.upstream.offer_to_putty([name]) == []
        path = putty_path(ride)
        assert path == os.path.join(putty.directory_of(name), putty.SOCKET)
        yield ride
    assert not os.path.exists(os.path.dirname(path))


def putty_path(ride: Ride) -> str:
    """Where PuTTYs find it."""
    assert ride.upstream.putty is not None
    (published,) = ride.upstream.putty.published
    return published["path"]


@asynccontextmanager
async def connected(ride: Ride) -> AsyncIterator[Raw]:
    """A connection on which nothing was said."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    while True:
        try:
            connection.connect(putty_path(ride))
            break
        except BlockingIOError:
            await asyncio.sleep(0)
    with Raw(connection) as raw:
        yield raw


@asynccontextmanager
async def bare(ride: Ride, greeting: bytes = GREETING) -> AsyncIterator[Proxied]:
    """A client that has greeted, and was."""
    async with connected(ride) as raw:
        await raw.write(greeting)
        await hear_greeting(raw)
        yield Proxied(raw, PUTTY)


async def hear_greeting(raw: Raw) -> bytes:
    """The upstream's line, without its end."""
    line = b""
    while not line.endswith(b"\n"):
        byte = await raw.read(1)
        assert byte, f"hung up after {line!r}"
        line += byte
    assert line.startswith(PREFIX) and line.endswith(b"\r\n")
    return line[len(PREFIX) : -2]


async def works(ride: Ride) -> bool:
    """Whether the connection serves everybody else, both sorts."""
    done = await ride.ssh(HOST, "echo still here")
    async with bare(ride) as client:
        await client.execute(b"echo here too")
        heard = await client.hear_kind(94)
    alive = ride.upstream.engine.lost is None
    return alive and (done.code, done.out, heard.body[8:]) == (0, b"still here\n", b"here too\n")


def relays(ride: Ride) -> list[Relay]:
    """Those that serve a PuTTY."""
    return [one.relay for one in ride.upstream.clients if one.purpose == "putty" and one.relay is not None]


def open_channels(ride: Ride) -> int:
    """Channels of PuTTYs, of those that have gone too."""
    return sum(len(relay.channels) for relay in relays(ride))


@contextmanager
def nothing_logged(caplog: Any) -> Any:
    """Nothing is written to the log meanwhile."""
    with caplog.at_level("INFO"):
        before = len(caplog.records)
        yield
        said = [record.getMessage() for record in caplog.records[before:] if record.name.startswith("mux")]
        assert not said, said


def entries(directory: str | Path) -> dict[str, int]:
    """What lies in a directory, with its mode."""
    return {entry.name: entry.stat(follow_symlinks=False).st_mode & 0o7777 for entry in os.scandir(directory)}
