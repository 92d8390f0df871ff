"""The way to a connection, begun as early as can be: what was asked for -> a search that is under way.

The rule of this file: it loads fast, so that a connection is looked for, and an upstream process loads its own modules
and logs in, while the mount still loads its.

Imported by `sshmuxfs.cli` and `sshmuxfs.mount`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from mux.downstream.start import END_DEADLINE_S, Running, Search, Terms
from mux.rendezvous.roles import Putty, Wish, candidates
from mux.rendezvous.target import Target, resolve
from sshmuxfs import mountpoint
from sshmuxfs.options import Options, UsageError

# OpenSSH cuts passwords there as well (readpass.c).
_LONGEST_PASSWORD_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Approach:
    """What is looked for, on what terms, and the search."""

    target: Target
    wish: Wish
    terms: Terms
    running: Running

    @classmethod
    def begin(cls, options: Options, place: str, warn: Callable[[str], None]) -> Self:
        """Ask ssh what the host means, and begin the search. `warn` is called from its thread. Raises SharingError."""
        password = _password() if options.password_stdin else None
        target = resolve(options.host, options.user, options.ssh)
        wish = Wish.of(
            options.ssh,
            share=options.share,
            may_downstream=options.may_downstream,
            may_upstream=options.may_upstream,
            putty=options.putty,
        )
        # A connection that was started and then cannot be used would be there for nothing.
        for path in candidates(wish, target)[:1]:
            mountpoint.refuse_inside(place, {"the control path": path})
        terms = Terms(
            foreground=options.foreground,
            password=password,
            log_file=None if options.log_file is None else os.path.abspath(options.log_file),
            debug=options.debug,
            putty=options.putty is not Putty.NO,
            ssh_command=() if options.ssh_command is None else options.ssh.program,
        )
        return cls(target, wish, terms, Running(Search(target, wish, terms, warn)))

    def abandon(self) -> None:
        """End the search, if it goes on, and what was started for it. Idempotent."""
        self.running.cancel()
        self.running.wait(2 * END_DEADLINE_S)


def _password() -> str:
    """The first line of standard input, and not a byte more."""
    line = b""
    while len(line) <= _LONGEST_PASSWORD_BYTES:
        byte = os.read(0, 1)
        if not byte or byte == b"\n":
            break
        line += byte
    if not line or len(line) > _LONGEST_PASSWORD_BYTES:
        found = "more than a password can have" if line else "nothing"
        raise UsageError(f"-o password_stdin: found {found} on standard input; one line is read")
    return os.fsdecode(line)
