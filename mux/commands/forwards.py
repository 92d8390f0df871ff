"""`sshmux forward` and `sshmux cancel`: forwardings of a connection that is open, as `ssh -O forward` and `-O cancel`.

The one rule: all that is asked for is read before the first is sent, so that a mistake opens nothing. What is opened
belongs to the connection and outlives this command.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

from mux.errors import ExitCode, JoinError
from mux.protocol.messages import CloseForward, Forward, OpenForward, RemotePort

from .reach import SSH_FAILED, Refused, reach, say
from .specification import parse


def forward(arguments: argparse.Namespace) -> int:
    """Open each; ports that the server chose go to stdout. The first failure ends it, as in ssh."""
    wanted = _wanted(arguments)
    with reach(arguments).open() as master:
        for one in wanted:
            try:
                reply = master.ask(partial(_open, one))
            except Refused as refusal:
                say(f"forwarding request {'refused' if refusal.denied else 'failed'}: {refusal.reason}")
                say("master forward request failed")
                return SSH_FAILED
            if isinstance(reply, RemotePort):
                print(reply.port)
                sys.stdout.flush()
    return ExitCode.OK


def cancel(arguments: argparse.Namespace) -> int:
    """Close each. One that is not open is told of, and as with ssh no failure."""
    wanted = _wanted(arguments)
    with reach(arguments).open() as master:
        for one in wanted:
            try:
                master.ask(partial(_close, one))
            except Refused as refusal:
                say(f"forwarding request {'refused' if refusal.denied else 'failed'}: {refusal.reason}")
                say("master cancel forward request failed")
                break
    return ExitCode.OK


def _wanted(arguments: argparse.Namespace) -> list[Forward]:
    wanted = [parse(letter, text) for letter, text in arguments.forwards or ()]
    if not wanted:
        raise JoinError("no forwarding is named: give -L, -R or -D", ExitCode.USAGE)
    return wanted


def _open(forward: Forward, request_id: int) -> OpenForward:
    return OpenForward(request_id, *forward)


def _close(forward: Forward, request_id: int) -> CloseForward:
    return CloseForward(request_id, *forward)
