"""`sshmux list`: every connection of this user that is shared now."""

from __future__ import annotations

import argparse
import json

from mux.errors import ExitCode
from mux.rendezvous.sockets import shown

from .hosts import control_paths
from .reach import say
from .tables import age, table
from .upstreams import Upstream, find

_COLUMNS = ("HOST", "KIND", "PID", "AGE", "CLIENTS", "STATE", "PATH")


def list_(arguments: argparse.Namespace) -> int:
    """Print one line for each; nothing but a word on stderr when there is none, which is no failure."""
    found = find(control_paths(arguments.config_file))
    if arguments.json:
        print(json.dumps([_as_json(one) for one in found], indent=2))
    elif found:
        print(table([_COLUMNS, *map(_row, found)], right=frozenset({2, 3, 4})))
    else:
        say("no connection is shared now")
    return ExitCode.OK


def _row(one: Upstream) -> tuple[str, ...]:
    clients = "-" if one.clients is None else str(one.clients)
    return (one.host or "-", one.kind, str(one.pid or "-"), age(one.age_s), clients, one.state, shown(one.path))


def _as_json(one: Upstream) -> dict[str, object]:
    return {
        "host": one.host or None,
        "kind": one.kind,
        "pid": one.pid,
        "age_s": None if one.age_s is None else round(one.age_s, 1),
        "clients": one.clients,
        "state": one.state,
        "path": one.path,
    }
