"""`sshmux check`: as `ssh -O check`, but it never logs in, never hangs, and says why not."""

from __future__ import annotations

import argparse

from mux.errors import ExitCode
from mux.rendezvous.sockets import shown

from .reach import reach


def check(arguments: argparse.Namespace) -> int:
    """Tell on stdout that a connection to the host can be shared now, and whose it is."""
    found = reach(arguments)
    print(f"Master running (pid={found.pid}) at {shown(found.path)}")
    return ExitCode.OK
