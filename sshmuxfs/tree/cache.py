"""How long what is known of a name may be believed. Pure; time comes as an argument.

The rule of this file: every clock of the caches is here, with its default and its reason.

Imported by `sshmuxfs.tree`, `sshmuxfs.operations`.
"""

from __future__ import annotations

from dataclasses import dataclass

# sshfs's dcache_timeout: what its users have come to expect of names changed elsewhere.
DEFAULT_S = 20.0
# That a name is absent is believed for less long: people and programs wait for files to appear (a build on the server,
# a lock), and nothing tells us when they do. Long enough for one program's pass over a directory (git asks for
# .gitignore everywhere, a compiler for headers along its path).
NEGATIVE_S = 3.0


@dataclass(frozen=True, slots=True)
class CacheTimes:
    """The life of each kind of knowledge, in seconds; 0 switches it off.

    `kernel_*_s` is what the kernel may believe without asking us; None means: as long as we would ourselves.
    """

    stat_s: float = DEFAULT_S
    link_s: float = DEFAULT_S
    dir_s: float = DEFAULT_S
    negative_s: float = NEGATIVE_S
    kernel_attr_s: float | None = None
    kernel_entry_s: float | None = None
    kernel_negative_s: float = 0.0

    def attr_timeout_s(self, fetched_at_s: float, now_s: float) -> float:
        """How long the kernel may believe attributes fetched at `fetched_at_s`."""
        if self.kernel_attr_s is not None:
            return self.kernel_attr_s
        return max(0.0, fetched_at_s + self.stat_s - now_s)

    def entry_timeout_s(self, fetched_at_s: float, now_s: float) -> float:
        """How long the kernel may believe that a name leads to its inode."""
        if self.kernel_entry_s is not None:
            return self.kernel_entry_s
        return max(0.0, fetched_at_s + self.stat_s - now_s)
