"""What an upstream tells of itself: the two texts of OpenSSH 10.3, and all there is as JSON for `sshmux status`.

The one rule: telling waits for nothing. Each function reads the live objects once, in one synchronous step, so that
what it tells belongs together. The round trip is that of the last measurement; who asks for the status has the next one
made, so that whoever goes on asking is told how it is now. Text that came from a peer is made printable here, since it
ends on a terminal. What is told is bounded, since a client takes no message above 256 KiB: of too many clients and
channels the first are told, and how many there are. Imported by `clients.py`, which answers an `InfoRequest`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from mux.errors import SharingError, printable
from mux.protocol.messages import UNIX_SOCKET_PORT, ForwardKind

if TYPE_CHECKING:
    from mux.protocol.nat import NatChannel

    from .channels import LiveChannel
    from .clients import Client
    from .engine import Engine
    from .forwards import Standing
    from .putty import PuttyClient
    from .routes import Address, Facts
    from .upstream import Upstream

STATUS_NAME: Final = b"sshmux-status"
STATUS_VERSION: Final = 1  # grows when a field changes its meaning; new fields do not change it

_MEASURE_DEADLINE_S: Final = 60.0  # later the link is dead, and whoever asks again measures again
LONGEST_TEXT_BYTES: Final = 190_000  # `clients.py` cuts a text at 200 KiB, and JSON cannot be cut
_SHOWN_CHARACTERS: Final = 160  # of a command line, a description
_MEASUREMENTS: Final[weakref.WeakKeyDictionary[Engine, asyncio.Future[None]]] = weakref.WeakKeyDictionary()
_MOST_LINES: Final = 500  # of a text for people
_MOST_TOLD: Final = 300  # of clients, of channels, of forwardings; halved until all fits


def info_text(upstream: Upstream, name: bytes) -> bytes | None:
    """Return the text for an `InfoRequest` of this name, or None when there is none such."""
    if name == b"connection":
        return connection_text(upstream)
    if name == b"channels":
        return channels_text(upstream)
    if name == STATUS_NAME:
        _measure(upstream.engine)
        most = _MOST_TOLD
        while len(text := json.dumps(status_json(upstream, most)).encode("ascii")) > LONGEST_TEXT_BYTES:
            most //= 2
        return text
    return None


def _measure(engine: Engine) -> None:
    """Have a round trip measured, unless one is under way."""
    under_way = _MEASUREMENTS.get(engine)
    if engine.lost is None and (under_way is None or under_way.done()):
        _MEASUREMENTS[engine] = asyncio.ensure_future(_measured(engine))


async def _measured(engine: Engine) -> None:
    try:
        await engine.measure(_MEASURE_DEADLINE_S)
    except (TimeoutError, SharingError):  # the keepalive finds out what is wrong, and when that is too long
        pass


def connection_text(upstream: Upstream) -> bytes:
    """What `ssh -O conninfo` and ~I print (clientloop.c of 10.3): lines that end with CR LF."""
    facts = upstream.engine.facts()
    lines = [f"Connection information for {printable(facts.host)} pid {os.getpid()}"]
    if facts.local is not None and facts.peer is not None:
        lines.append(f"  tcp {_address(facts.local)} -> {_address(facts.peer)}")
    lines += [
        f"  duration {_duration(time.monotonic() - facts.started_s)}",
        f"  kexalgorithm {facts.kex}",
        f"  hostkeyalgorithm {facts.host_key}",
        f"  cipher {facts.sending.cipher}",
        f"  mac {_mac(facts)}",
        f"  compression {facts.sending.compression}",
        f"  rekey {facts.rekeys} done",
        f"  traffic {_scaled(facts.received_bytes)} in, {_scaled(facts.sent_bytes)} out",
    ]
    return _text(lines)


def channels_text(upstream: Upstream) -> bytes:
    """What `ssh -O channels` and ~# print (channels.c, channel_open_message): lines that end with CR LF."""
    lines = ["The following connections are open:"]
    for one in channels(upstream)[:_MOST_LINES]:
        rider = f", process {one['pid']}" if one["pid"] else ""
        moved = f"{one['received_bytes']} bytes in, {one['sent_bytes']} out"
        lines.append(f"  #{one['number']} {one['description']} ({moved}{rider})")
    return _text(lines)


def status_json(upstream: Upstream, most: int = _MOST_TOLD) -> dict[str, Any]:
    """Return all there is to tell, of JSON's own types; times in seconds, sizes in bytes.

    At most `most` of the clients, the channels and the forwardings; "counts" has how many there are.
    """
    now_s = time.monotonic()
    settings, tally = upstream.settings, upstream.tally
    clients = sorted(upstream.clients, key=lambda client: client.since_s)
    open_channels = channels(upstream)
    forwards = list(upstream.forwards.standing.values())
    return {
        "version": STATUS_VERSION,
        "kind": "sshmux",
        "pid": os.getpid(),
        "path": upstream.path,
        "host": printable(settings.typed),
        "user": printable(settings.user),
        "hostname": printable(settings.hostname),
        "port": settings.port,
        "age_s": round(now_s - upstream.started_s, 1),
        "listening": upstream.listening,
        "putty": [] if upstream.putty is None else upstream.putty.published,
        "connection": _connection(upstream.engine.facts()),
        "sessions": {
            "open": upstream.sessions,
            "opened": tally.sessions,
            "refused": tally.refused,
            "max_sessions_seen": tally.full_at or None,
        },
        "turned_away": {"foreign": tally.foreign, "surplus": tally.surplus, "dropped": tally.dropped},
        "counts": {"clients": len(clients), "channels": len(open_channels), "forwards": len(forwards)},
        "clients": [_client(client, now_s) for client in clients[:most]],
        "channels": open_channels[:most],
        "forwards": [_forward(forward) for forward in forwards[:most]],
    }


def _connection(facts: Facts) -> dict[str, Any]:
    return {
        "local": None if facts.local is None else _address(facts.local),
        "peer": None if facts.peer is None else _address(facts.peer),
        "server_version": facts.server_version,
        "kex": facts.kex,
        "host_key_algorithm": facts.host_key,
        "cipher": facts.sending.cipher,
        "cipher_in": facts.receiving.cipher,
        "mac": _mac(facts),
        "compression": facts.sending.compression,
        "rekeys": facts.rekeys,
        "sent_bytes": facts.sent_bytes,
        "received_bytes": facts.received_bytes,
        "round_trip_s": facts.round_trip_s,
    }


def _client(client: Client | PuttyClient, now_s: float) -> dict[str, Any]:
    session, stream, relay = client.session, client.stream, client.relay
    channel = session.channel if session is not None else None
    moving = relay if relay is not None else stream.channel if stream is not None else channel
    return {
        "pid": client.pid,
        "uid": client.uid,
        "command": printable(client.command, _SHOWN_CHARACTERS),
        "software": client.software or None,
        "purpose": client.purpose,
        "age_s": round(now_s - client.since_s, 1),
        "since_s": client.since_s,
        "session": None if session is None else session.number,
        "remote_command": None if session is None else printable(session.command, _SHOWN_CHARACTERS),
        "tty": session is not None and session.tty,
        "sent_bytes": 0 if moving is None else moving.sent_bytes,
        "received_bytes": 0 if moving is None else moving.received_bytes,
    }


def channels(upstream: Upstream) -> list[dict[str, Any]]:
    """What there is to tell of each channel that is open, by number; those of forwardings belong to no process."""
    found = [_channel(client.pid, *one) for client in upstream.clients for one in _channels_of(client)]
    open_channels = (stream.channel for stream in upstream.forwards.streams)
    found += [_channel(None, channel, channel.description) for channel in open_channels if channel is not None]
    return sorted(found, key=lambda one: one["number"])


def _channels_of(client: Client | PuttyClient) -> Iterator[tuple[LiveChannel | NatChannel, str]]:
    """A client's channels, each with what it is for: of a session what runs there, which the channel does not know."""
    if client.session is not None and client.session.channel is not None:
        yield client.session.channel, f"{client.session.kind} {printable(client.session.command)}".rstrip()
    if client.stream is not None:
        yield client.stream.channel, client.stream.channel.description
    if client.relay is not None:
        yield from ((channel, f"{client.purpose}, {printable(channel.kind)}") for channel in client.relay.channels)


def _channel(pid: int | None, channel: LiveChannel | NatChannel, what: str) -> dict[str, Any]:
    return {
        "number": channel.number,
        "kind": printable(channel.kind),
        "description": printable(what, _SHOWN_CHARACTERS),
        "pid": pid,
        "sent_bytes": channel.sent_bytes,
        "received_bytes": channel.received_bytes,
    }


def _forward(standing: Standing) -> dict[str, Any]:
    forward = standing.forward
    return {
        "kind": ForwardKind(forward.kind).name.lower(),
        "dynamic": standing.dynamic,
        "listen": _end(forward.listen_host, standing.chosen_port or forward.listen_port),
        "connect": None if standing.dynamic else _end(forward.connect_host, forward.connect_port),
        "connections": standing.connections,
        "taken": standing.taken,
    }


def _end(host: bytes, port: int) -> str:
    name = printable(host)
    if port == UNIX_SOCKET_PORT:
        return name
    return str(port) if not name else f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _address(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _mac(facts: Facts) -> str:
    """A cipher that authenticates by itself has none, which OpenSSH calls so."""
    return facts.sending.mac or "<implicit>"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    words = [f"{hours}h"] * bool(hours) + [f"{minutes}m"] * bool(hours or minutes)
    return " ".join([*words, f"{seconds}s"])


def _scaled(count: float) -> str:
    """Bytes in units of 1024, as OpenSSH has them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f}{unit}" if unit == "B" else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.1f}TB"


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode(errors="backslashreplace")
