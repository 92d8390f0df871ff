"""`sshmux start`: log in here and now, and leave the connection to a process in the background.

The one rule: it ends when the connection can be shared, or tells why it cannot. What is there already is as good.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import replace
from typing import Final

from mux import signals
from mux.downstream.start import Reached, Search, Terms
from mux.errors import ExitCode, JoinError
from mux.rendezvous.roles import Putty, Wish
from mux.rendezvous.sockets import shown
from mux.rendezvous.target import option_name, resolve, split_host

from .reach import say, ssh_options

# Read from standard input by `-o password_stdin`; the longest that OpenSSH asks for has 1023 (readpass.c).
_LONGEST_PASSWORD_BYTES: Final = 1023
_PASSWORD_OPTION: Final = "password_stdin"
_PUTTY_OPTION: Final = "putty"
_SSH_OPTION: Final = "ssh_command"


def start(arguments: argparse.Namespace) -> int:
    """Find or start the connection, and say on stdout where it is."""
    password_stdin = bool(_take_option(arguments, _PASSWORD_OPTION))
    ssh_command = _words(_take_option(arguments, _SSH_OPTION))
    if ssh_command and password_stdin:
        message = f"-o {_PASSWORD_OPTION} and -o {_SSH_OPTION}: ssh asks for passwords itself, at the terminal"
        raise JoinError(message, ExitCode.USAGE)
    if ssh_command and arguments.foreground:
        message = f"-f and -o {_SSH_OPTION}: an ssh that holds a connection goes into the background by itself"
        raise JoinError(message, ExitCode.USAGE)
    password = _password() if password_stdin else None
    putty = _wants_putty(_take_option(arguments, _PUTTY_OPTION))
    if arguments.forward_agent:
        arguments.options.insert(0, "ForwardAgent=yes")
    options = ssh_options(arguments)
    if ssh_command:
        options = replace(options, program=ssh_command)
    user, host = split_host(arguments.host)
    wish = Wish.of(options, putty=Putty.NO)  # a PuTTY's connection has no control path
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
        ssh_command=ssh_command,
    )
    reached = Search(resolve(host, user, options), wish, terms, say).run()
    if reached.leash is None or reached.pid is None:
        _tell(reached, as_json=arguments.json)
        return ExitCode.OK
    # What would end this process ends the upstream in front, our child, not waited for yet; and if we end first after
    # all, so does it: it hangs on a pipe of ours.
    ended = signals.pass_on(os.pidfd_open(reached.pid))
    _tell(reached, as_json=arguments.json)
    reached.leash.hold()
    return ExitCode.INTERRUPTED if ended else ExitCode.OK


def _take_option(arguments: argparse.Namespace, name: str) -> list[str]:
    """Take an option of ours, which ssh does not know, out of the others; returns it as it was given."""
    taken = [option for option in arguments.options if option_name(option).lower() == name]
    arguments.options = [option for option in arguments.options if option not in taken]
    return taken


def _wants_putty(given: list[str]) -> bool:
    """Whether PuTTY's tools are to find the connection: yes, unless `-o putty=no`."""
    word = _value(given[0], _PUTTY_OPTION).lower() if given else "yes"
    if word not in ("yes", "no"):
        raise JoinError("-o putty is yes or no", ExitCode.USAGE)
    return word == "yes"


def _words(given: list[str]) -> tuple[str, ...]:
    """The command that is to hold the connection, in words; () for the built-in one."""
    if not given:
        return ()
    try:
        words = tuple(shlex.split(_value(given[0], _SSH_OPTION)))
    except ValueError as error:
        raise JoinError(f"-o {_SSH_OPTION}: {error}", ExitCode.USAGE) from None
    if not words:
        raise JoinError(f"-o {_SSH_OPTION} names no command", ExitCode.USAGE)
    return words


def _value(option: str, name: str) -> str:
    return option.strip()[len(name) :].lstrip(" =").strip()


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
