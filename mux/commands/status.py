"""`sshmux status`: what can be told of the connection to a host, as text and as JSON.

The one rule: one of our own upstreams is asked and believed; a master of OpenSSH says little, so the system is asked as
well, and what neither knows is left out. The JSON is the upstream's own, with what is seen from outside beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mux.errors import ExitCode, printable
from mux.rendezvous.sockets import shown

from .processes import Mounted, look
from .reach import STATUS_VERSION, Master, Reached, reach
from .tables import age, milliseconds, size, table
from .upstreams import Rider, Sockets, mounts

_MEASURED_AFTER_S: Final = 0.2  # most servers are nearer; of the others it is known the next time


def status(arguments: argparse.Namespace) -> int:
    """Print what is known."""
    found = reach(arguments)
    with found.open() as master:
        told = facts(found, master)
        if told["kind"] == "sshmux" and told["connection"]["round_trip_s"] is None:
            time.sleep(_MEASURED_AFTER_S)  # it has it measured since it was asked
            told = facts(found, master)
    print(json.dumps(told, indent=2) if arguments.json else "\n".join(text(told)))
    return ExitCode.OK


def facts(found: Reached, master: Master) -> dict[str, Any]:
    """Return all that can be told of a connection, of JSON's own types."""
    told = master.status()
    if told is not None:
        told["clients"] = [client for client in told["clients"] if client["pid"] != os.getpid()]
    else:
        told = _of_openssh(found, master)
    riders = [Rider(client["pid"], client["command"]) for client in told["clients"] or ()]
    told["mounts"] = [_mount(mount) for mount in mounts(riders)]
    return told


def _of_openssh(found: Reached, master: Master) -> dict[str, Any]:
    process = look(found.pid)
    riders = Sockets().riders(found.pid, ours=1)
    target = found.target
    told: dict[str, Any] = {
        "version": STATUS_VERSION,
        "kind": "openssh",
        "pid": found.pid,
        "path": found.path,
        "host": target.typed if target else None,
        "user": target.user if target else None,
        "hostname": target.hostname if target else None,
        "port": target.port if target else None,
        "age_s": round(process.age_s, 1) if process else None,
        "clients": None if riders is None else [{"pid": one.pid, "command": one.command} for one in riders],
    }
    for name in ("connection", "channels"):
        said = master.info(name.encode())
        told[f"{name}_text"] = None if said is None else [printable(line) for line in said.splitlines()]
    return told


def _mount(mount: Mounted) -> dict[str, Any]:
    return {"pid": mount.pid, "source": mount.source, "mount_point": mount.mount_point}


def text(told: Mapping[str, Any]) -> Iterator[str]:
    """The lines for people."""
    host = printable(str(told["host"] or "-"))
    yield f"{host}: {told['kind']} process {told['pid']}, up {age(told['age_s'])}"
    yield f"  path     {shown(str(told['path']))}"
    yield f"  login    {printable(str(told['user']))}@{printable(str(told['hostname']))} port {told['port']}"
    if told.get("putty"):
        yield f"  putty    {', '.join(printable(one['name']) for one in told['putty'])}"
    if told["kind"] == "sshmux":
        yield from _connection(told)
        yield from _channels(told["channels"])
        yield from _forwards(told["forwards"])
    else:
        yield from _texts(told)
    yield from _clients(told)
    if told["mounts"]:
        yield "mounts"
        yield _indented([["PID", "SOURCE", "MOUNT POINT"], *map(_mount_row, told["mounts"])], {0})


def _connection(told: Mapping[str, Any]) -> Iterator[str]:
    link = told["connection"]
    yield f"  tcp      {link['local']} -> {link['peer']}, {printable(link['server_version'])}"
    yield f"  cipher   {link['cipher']}, mac {link['mac']}, compression {link['compression']}"
    yield f"  kex      {link['kex']}, host key {link['host_key_algorithm']}, rekeyings {link['rekeys']}"
    yield f"  trip     {milliseconds(link['round_trip_s'])}"
    yield f"  traffic  {size(link['received_bytes'])} in, {size(link['sent_bytes'])} out"
    sessions = told["sessions"]
    yield f"  sessions {sessions['open']} open, {sessions['opened']} opened, {_refusals(sessions)}"


def _refusals(sessions: Mapping[str, Any]) -> str:
    if not sessions["refused"]:
        return "none refused by the server"
    seen = sessions["max_sessions_seen"]
    return f"{sessions['refused']} refused by the server" + (f" (MaxSessions seen: {seen})" if seen else "")


def _channels(channels: list[Mapping[str, Any]]) -> Iterator[str]:
    if channels:
        yield "channels"
        rows = [
            [
                str(one["number"]),
                str(one["pid"] or "-"),
                size(one["received_bytes"]),
                size(one["sent_bytes"]),
                printable(one["description"]),
            ]
            for one in channels
        ]
        yield _indented([["#", "PID", "IN", "OUT", "WHAT"], *rows], {0, 1, 2, 3})


def _forwards(forwards: list[Mapping[str, Any]]) -> Iterator[str]:
    if forwards:
        yield "forwards"
        for one in forwards:
            connect = "by SOCKS" if one["dynamic"] else f"to {printable(one['connect'])}"
            now = f"{one['connections']} open, {one['taken']} in all"
            yield f"  {one['kind']} {printable(one['listen'])} {connect} ({now})"


def _texts(told: Mapping[str, Any]) -> Iterator[str]:
    if told["connection_text"] is None:
        yield "  OpenSSH tells more from version 10.3 on"
    for name in ("connection_text", "channels_text"):
        yield from told[name] or ()


def _clients(told: Mapping[str, Any]) -> Iterator[str]:
    riders = programs(told)
    if told["clients"] is None:
        yield "clients: this system does not tell"
    elif not riders:
        yield "clients: none"
    else:
        yield "clients"
        yield _indented([["PID", "COMMAND"], *([str(one.pid or "-"), one.command or "-"] for one in riders)], {0})


@dataclass(frozen=True, slots=True)
class Program:
    """A process that rides, and what it moved on all its connections; nothing of it is known on foreign masters."""

    pid: int
    command: str
    since_s: float
    received_bytes: int
    sent_bytes: int


def programs(told: Mapping[str, Any]) -> list[Program]:
    """The clients by process. Those whose process cannot be seen have pid 0, and each is one of its own."""
    found: dict[object, list[Mapping[str, Any]]] = {}
    for client in told["clients"] or ():
        found.setdefault(client["pid"] or object(), []).append(client)
    return [
        Program(
            ends[0]["pid"],
            printable(next((end["command"] for end in ends if end["command"]), "")),
            min(end.get("since_s", 0.0) for end in ends),
            sum(end.get("received_bytes", 0) for end in ends),
            sum(end.get("sent_bytes", 0) for end in ends),
        )
        for ends in found.values()
    ]


def _mount_row(mount: Mapping[str, Any]) -> list[str]:
    return [str(mount["pid"]), mount["source"], mount["mount_point"]]


def _indented(rows: list[list[str]], right: set[int]) -> str:
    return "\n".join(f"  {line}" for line in table(rows, right=frozenset(right)).split("\n"))
