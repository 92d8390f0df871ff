"""The text of `sshmuxfs -h`, made from the tables.

The one rule: nothing about an option is said here. Imported by `sshmuxfs.options` alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import Final

from sshmuxfs.option_tables import FLAGS, OPTIONS, Group
from sshmuxfs.ssh_keywords import SSH_NAMES

USAGE: Final = "sshmuxfs [user@]host:[dir] mountpoint [options]"

_COLUMNS: Final = 80
_INDENT: Final = 28
_ABOUT_SSH_OPTIONS: Final = (
    "They decide which connection is found, and how one is started. What belongs to the connection itself, "
    "such as its cipher, cannot be changed by who joins it; such options are named in a warning."
)


def help_text() -> str:
    """Return what `-h` prints: every option, by what it is about."""
    lines = [f"usage: {USAGE}", ""]
    lines += textwrap.wrap(
        "Mounts a directory of a host through an SSH connection that is already open, such as one "
        "started by `ssh -fNM host`, or starts one that others can share. Unmount with `fusermount3 -u mountpoint`.",
        _COLUMNS,
    )
    lines += ["", *(line for flag in FLAGS for line in _entry(flag.usage, flag.help))]
    for group in Group:
        lines += ["", f"{group.value} (-o):"]
        members = [option for option in OPTIONS if option.group is group]
        for text, same in groupby(members, key=lambda option: option.help):
            together = list(same)
            older = [name for option in together for name in option.older_names]
            also = f"; older: {', '.join(older)}" if older else ""
            lines += _entry(", ".join(option.usage for option in together), text + also)
    lines += ["", "Options of ssh_config (-o Name=value):"]
    names = textwrap.wrap(", ".join(SSH_NAMES.values()), _COLUMNS, break_on_hyphens=False)
    return "\n".join([*lines, *textwrap.wrap(_ABOUT_SSH_OPTIONS, _COLUMNS), *names, ""])


def _entry(usage: str, text: str) -> Iterator[str]:
    body = textwrap.wrap(text, _COLUMNS - _INDENT, break_on_hyphens=False)
    heads = textwrap.wrap(usage, _COLUMNS - 2, break_on_hyphens=False)
    yield from (f"  {head}" for head in heads[:-1])
    if len(heads[-1]) + 4 > _INDENT:
        yield f"  {heads[-1]}"
        heads[-1] = ""
    yield f"  {heads[-1]}".ljust(_INDENT) + body[0]
    yield from (" " * _INDENT + line for line in body[1:])
