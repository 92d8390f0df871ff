"""`sshmux check`: as `ssh -O check`, but it never logs in, never hangs, and says why not."""

from __future__ import annotations

import argparse
from typing import Final

from mux.errors import ExitCode
from mux.rendezvous.roles import nothing_to_join
from mux.rendezvous.sockets import Found, Probe, shown

from .reach import look_around, say

_SILENT: Final = frozenset({Found.FROZEN, Found.FULL})


def check(arguments: argparse.Namespace) -> int:
    """Tell on stdout that a connection to the host can be shared now, and whose it is; on stderr what gives no answer.

    A PuTTY's stands behind the master's, which comes first. Our own upstreams share with PuTTY's tools as well: that is
    the same connection.
    """
    seen = look_around(arguments)
    master, putty = _live(seen.masters), _live(seen.puttys)
    if master is None and putty is None:
        raise nothing_to_join(seen.wish, seen.target, [*seen.masters, *seen.puttys])
    if master is not None:
        print(f"Master running (pid={master.pid}) at {shown(master.path)}")
    if putty is not None and (master is None or putty.pid != master.pid):
        print(f"PuTTY upstream running (pid={putty.pid}) at {shown(putty.path)}")
    for probe in (*seen.masters, *seen.puttys):
        if probe.found in _SILENT:
            say(probe.detail)
    return ExitCode.OK


def _live(probes: list[Probe]) -> Probe | None:
    return next((probe for probe in probes if probe.found is Found.LIVE), None)
