"""`sshmux stop` and `sshmux exit`: as `ssh -O stop` and `-O exit`, but nobody's session ends by surprise.

The one rule: while others ride on a connection it is ended only by `--now`, or when a person at the terminal says yes
to their names.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

from mux.errors import ConnectionLost, ExitCode, printable
from mux.protocol.messages import StopListening, Terminate

from .processes import look
from .reach import SSH_FAILED, Master, Reached, Refused, reach, say
from .upstreams import Rider, Sockets

_MOST_SHOWN: Final = 20


def stop(arguments: argparse.Namespace) -> int:
    """Have it take no more clients; those there are stay, and it ends with the last of them."""
    with reach(arguments).open() as master:
        try:
            master.ask(StopListening)
        except Refused as refusal:
            say(f"Master refused stop listening request: {refusal.reason}")
            return SSH_FAILED
    print("Stop listening request sent.", file=sys.stderr)
    return ExitCode.OK


def exit_(arguments: argparse.Namespace) -> int:
    """End it with every session on it, unless somebody rides and nobody said that this is meant."""
    found = reach(arguments)
    with found.open() as master:
        if not arguments.now and not _may_end(found, master):
            return ExitCode.FAILURE
        try:
            master.ask(Terminate)
        except Refused as refusal:
            say(f"Master refused termination request: {refusal.reason}")
            return SSH_FAILED
        except ConnectionLost:  # it may go before its answer comes, which is as good
            pass
    print("Exit request sent.", file=sys.stderr)
    return ExitCode.OK


def _may_end(found: Reached, master: Master) -> bool:
    """Whether nobody rides, or a person says that they may be cut off. Says who rides."""
    who = riders(found, master)
    if who is None:
        say("who uses the connection cannot be told on this system; end it with --now")
        return False
    if not who:
        return True
    host = printable(found.target.typed) if found.target else "this host"
    say(f"{_counted(len(who), 'program')} would lose the connection to {host}:")
    for rider in who[:_MOST_SHOWN]:
        print(f"  {rider.pid or '?'} {rider.command or '(another user, or gone)'}", file=sys.stderr)
    if len(who) > _MOST_SHOWN:
        print(f"  and {len(who) - _MOST_SHOWN} more", file=sys.stderr)
    if sys.stdin.isatty() and sys.stderr.isatty():
        print("End it for all of them? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    say("nothing was ended. Give --now to end it all the same, or `sshmux stop` to let them finish")
    return False


def riders(found: Reached, master: Master) -> list[Rider] | None:
    """Who is connected, but us; None when it cannot be told. An upstream of ours knows; for others the kernel does."""
    status = master.status()
    if status is None:
        seen = Sockets().riders(found.pid, ours=1)
        return None if seen is None else list(dict.fromkeys(seen))  # a mount has more connections than one
    pids = {int(client["pid"]) for client in status["clients"]} - {os.getpid()}
    processes = ((pid, look(pid)) for pid in sorted(pids))
    return [Rider(pid, process.command if process else "") for pid, process in processes]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
