"""`sshmux config`: the lines of ssh_config by which plain ssh finds the connections of sshmux.

The one rule: who pastes the lines loses nothing. They name a path and no more: ssh joins a connection that is there,
and connects by itself as before when there is none. `ControlMaster auto` is not among them, because ssh would then want
to listen in a directory that is gone after the next start of the machine, and end when it cannot.
"""

from __future__ import annotations

import argparse
import dataclasses
import os

from mux.errors import ExitCode, JoinError, printable
from mux.rendezvous.sockets import shown
from mux.rendezvous.target import SshOptions, Target, resolve

from .reach import resolve_host, ssh_options


def config(arguments: argparse.Namespace) -> int:
    """Print the lines; only comments when ssh knows where to look already."""
    print("\n".join(_lines(resolve_host(arguments), ssh_options(arguments))))
    return ExitCode.OK


def _lines(target: Target, options: SshOptions) -> list[str]:
    """The lines for a host as typed. Raises JoinError where there is no directory for sockets."""
    name = printable(target.typed)
    if target.control_path is not None:
        return [
            f"# Nothing to add for {name}: its ControlPath is configured already, and sshmux uses it.",
            f"# ControlPath now: {shown(target.control_path)}",
        ]
    if not target.own_control_path:
        message = "there is no private directory for sockets: XDG_RUNTIME_DIR is not set, or not yours"
        raise JoinError(message, hint=f"choose a ControlPath for {name} yourself, as `ControlPath ~/.ssh/%C`")
    path = _with_tokens(target.own_control_path)
    lines = [f"# Plain ssh, scp, sftp, rsync and git then share the connection of sshmux to {name} while there is one."]
    if not _leads_to(path, target, options):
        # A name too long for a socket was cut, for which ssh has no token.
        path = target.own_control_path.replace("%", "%%")
        lines.append(
            f"# Only as {printable(target.user)} on port {target.port}: no other user or port may use this path."
        )
    return [*lines, f"Host {name}", f"    ControlPath {_quoted(path)}"]


def _with_tokens(path: str) -> str:
    """Our own path as ssh_config writes it: %C tells users, hosts and ports apart, %i fits whoever copies the line."""
    directory = os.path.dirname(path)
    runtime = f"/run/user/{os.geteuid()}/"
    below = directory.removeprefix(runtime).replace("%", "%%")
    return f"/run/user/%i/{below}/%C" if directory.startswith(runtime) else f"{below}/%C"


def _leads_to(path: str, target: Target, options: SshOptions) -> bool:
    """Whether ssh makes our own path of this one."""
    asked = dataclasses.replace(options, control_path=None, options=(f"ControlPath={_quoted(path)}", *options.options))
    return resolve(target.typed, target.user, asked).control_path == target.own_control_path


def _quoted(path: str) -> str:
    return f'"{path}"' if any(character.isspace() for character in path) else path
