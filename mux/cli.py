"""`sshmux`: what can be known and done about shared connections from a command line.

The one rule: it starts fast, because scripts call it in loops. What a subcommand needs is imported by that subcommand,
and neither trio nor anything of the file system ever is. Messages go to stderr, each led by `sshmux:`; stdout has the
answer only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from .errors import ExitCode, SharingError

if TYPE_CHECKING:
    from .rendezvous.target import SshOptions

_CHECK_DEADLINE_S: Final = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(_check(arguments))
    except SharingError as error:
        _complain(error)
        return ExitCode.USAGE if error.exit_code is ExitCode.USAGE else ExitCode.FAILURE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _check(arguments: argparse.Namespace) -> ExitCode:
    """`sshmux check HOST`: as `ssh -O check`, but it never logs in, never hangs, and says why not."""
    from .rendezvous.roles import Join, Wish, candidates, decide, nothing_to_join
    from .rendezvous.sockets import look, shown
    from .rendezvous.target import resolve, split_host

    user, host = split_host(arguments.host)
    options = _ssh_options(arguments)
    target = resolve(host, user, options)
    wish = Wish.of(options, may_upstream=False)
    probes = look(candidates(wish, target), deadline_s=_CHECK_DEADLINE_S)
    decision = decide(wish, probes)
    if not isinstance(decision, Join):
        raise nothing_to_join(wish, target, probes)
    print(f"Master running (pid={decision.pid}) at {shown(decision.path)}")
    return ExitCode.OK


def _ssh_options(arguments: argparse.Namespace) -> SshOptions:
    from .rendezvous.target import SshOptions

    return SshOptions(
        config_file=arguments.config_file,
        port=arguments.port,
        user=arguments.user,
        control_path=arguments.control_path,
        options=tuple(arguments.options),
    )


def _complain(error: SharingError) -> None:
    print(f"sshmux: {error}", file=sys.stderr)
    if error.hint:
        print(f"sshmux: {error.hint}", file=sys.stderr)


class _Version(argparse.Action):
    """`-V`. importlib.metadata is slow to import, and nothing else needs it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("sshmuxfs")
        except PackageNotFoundError:
            number = "unknown"
        print(f"sshmux {number}")
        parser.exit()


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sshmux", description="Share one SSH connection between shells, transfers and mounts.", allow_abbrev=False
    )
    parser.add_argument("-V", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="tell whether a connection to a host can be shared now",
        description="Exit status 0 and one line on stdout when a connection to HOST can be shared now; "
        "1 when not, with the reason on stderr; 2 for a mistake in the command line.",
        allow_abbrev=False,
    )
    check.add_argument("-F", dest="config_file", metavar="FILE", help="ssh's configuration file")
    check.add_argument("-p", dest="port", type=_port, metavar="PORT", help="port on the host")
    check.add_argument("-l", dest="user", metavar="USER", help="user on the host")
    check.add_argument("-S", dest="control_path", metavar="PATH", help="control path, in place of the configured one")
    check.add_argument(
        "-o", dest="options", action="append", default=[], metavar="NAME=VALUE", help="an option of ssh_config"
    )
    check.add_argument("host", metavar="[USER@]HOST", help="as for ssh; an IPv6 address may stand in brackets")
    return parser
