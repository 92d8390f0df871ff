"""`sshmux start`: log in here and now, and leave the connection to a process in the background.

The one rule: it ends when the connection can be shared, or tells why it cannot. What is there already is as good.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import Final

from mux import signals
from mux.downstream.start import Reached, Search, Terms
from mux.errors import ExitCode, JoinError
from mux.rendezvous.roles import Putty, Wish
from mux.rendezvous.sockets import shown
from mux.rendezvous.target import option_name

from .reach import resolve_host, say, ssh_options

# Read from standard input by `-o password_stdin`; the longest that OpenSSH asks for has 1023 (readpass.c).
_LONGEST_PASSWORD_BYTES: Final = 1023
_PASSWORD_OPTION: Final = "password_stdin"
_PUTTY_OPTION: Final = "putty"


def start(arguments: argparse.Namespace) -> int:
    """Find or start the connection, and say on stdout where it is."""
    password = _password() if _take_option(arguments, _PASSWORD_OPTION) else None
    putty = _wants_putty(_take_option(arguments, _PUTTY_OPTION))
    if arguments.forward_agent:
        arguments.options.insert(0, "ForwardAgent=yes")
    wish = Wish.of(ssh_options(arguments), putty=Putty.NO)  # a PuTTY's connection has no control path
    if not wish.share:
        raise JoinError("with -S none nobody could find the connection that is started", ExitCode.USAGE)
    terms = Terms(
        foreground=arguments.foreground,
        batch=False,
        persist=arguments.persist,
        explicit_start=True,
        password=password,
        debug=arguments.foreground,
        putty=putty,
    )
    reached = Search(resolve_host(arguments), wish, terms, say).run()
    if reached.leash is None or reached.pid is None:
        _tell(reached, as_json=arguments.json)
        return ExitCode.OK
    # What would end this process ends the upstream in front, our child, not waited for yet. Ctrl-C it takes for
    # somebody else's as long as it has a starter, so it is told in words of its own.
    ended = signals.pass_on(os.pidfd_open(reached.pid), instead=signal.SIGTERM)
    _tell(reached, as_json=arguments.json)
    reached.leash.wait()
    return ExitCode.INTERRUPTED if ended else ExitCode.OK


def _take_option(arguments: argparse.Namespace, name: str) -> list[str]:
    """Take an option of ours, which ssh does not know, out of the others; returns it as it was given."""
    taken = [option for option in arguments.options if option_name(option).lower() == name]
    arguments.options = [option for option in arguments.options if option not in taken]
    return taken


def _wants_putty(given: list[str]) -> bool:
    """Whether PuTTY's tools are to find the connection: yes, unless `-o putty=no`."""
    word = given[0].strip()[len(_PUTTY_OPTION) :].lstrip(" =").strip().lower() if given else "yes"
    if word not in ("yes", "no"):
        raise JoinError("-o putty is yes or no", ExitCode.USAGE)
    return word == "yes"


def _password() -> str:
    """The first line of standard input, without its end."""
    line = sys.stdin.buffer.readline(_LONGEST_PASSWORD_BYTES + 2)
    password = line.rstrip(b"\r\n")
    if not password or len(password) > _LONGEST_PASSWORD_BYTES:
        raise JoinError("-o password_stdin: there is no password on standard input", ExitCode.USAGE)
    return os.fsdecode(password)


def _tell(reached: Reached, *, as_json: bool) -> None:
    if as_json:
        told = {"path": reached.path, "pid": reached.pid, "started": reached.started}
        print(json.dumps(told), flush=True)
    else:
        word = "started" if reached.started else "running"
        print(f"Master {word} (pid={reached.pid}) at {shown(reached.path)}", flush=True)
