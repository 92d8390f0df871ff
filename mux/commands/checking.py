"""`sshmux check`: as `ssh -O check`, but it never logs in, never hangs, and says why not."""

from __future__ import annotations

import argparse

from mux.errors import ExitCode, JoinError
from mux.rendezvous.sockets import shown

from .reach import reach, reach_putty


def check(arguments: argparse.Namespace) -> int:
    """Tell on stdout that a connection to the host can be shared now, and whose it is.

    A PuTTY's stands behind the master's, which comes first. Our own upstreams share with PuTTY's tools as well: that is
    the same connection.
    """
    try:
        found = reach(arguments)
    except JoinError:
        putty = reach_putty(arguments)
        if putty is None:
            raise
    else:
        print(f"Master running (pid={found.pid}) at {shown(found.path)}")
        putty = reach_putty(arguments)
        if putty is not None and putty.pid == found.pid:
            putty = None
    if putty is not None:
        print(f"PuTTY upstream running (pid={putty.pid}) at {shown(putty.path)}")
    return ExitCode.OK
