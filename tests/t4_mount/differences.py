"""Where a mount may legitimately differ from a local directory, each with its reason.

The rule: a test never skips and never asks what kind of tree it has; it asks for a difference of this table, so that
everything a mount cannot do is listed here. For the tests only.
"""

from __future__ import annotations

import enum


class Difference(enum.Enum):
    """A difference; the value is why it is there."""

    WHOLE_SECONDS = "SFTP v3 carries times as whole seconds"
    TIMES_OF_1970_TO_2106 = "SFTP v3 carries times as 32 unsigned bits: others are refused with EINVAL"
    NO_CHANGE_TIME = "SFTP v3 does not carry st_ctime: what is shown follows the time of modification"
    NO_SPECIAL_FILES = "SFTP v3 cannot make fifos, sockets and devices: EPERM"
    NO_XATTRS = "SFTP v3 has no extended attributes: ENOTSUP"
    NO_RENAME_EXCHANGE = "SFTP cannot exchange two names in one step: EINVAL"
    NO_ALLOCATE = "SFTP v3 cannot reserve space: ENOTSUP"
    NO_UNNAMED_FILES = "SFTP v3 cannot make a file without a name (O_TMPFILE): ENOTSUP"
    NO_HOLES = (
        "SFTP v3 does not tell where holes are: a file is data up to its end, and blocks are computed from the size"
    )
    FOREIGN_LINKS_UNSEEN = "SFTP v3 carries no inode number and no link count: links made elsewhere look like files"
    LINKS_TO_DIRECTORIES_UNSEEN = "SFTP v3 carries no link count: a directory's does not count its sub-directories"
    NAMES_MAY_BE_STALE = (
        "names and attributes are cached for a while: what others changed may be seen later, if it was looked at before"
    )
    SERVER_PATH_LIMIT = (
        "SFTP v3 names files by whole paths: below 4096 bytes on the server there is no name (ENAMETOOLONG)"
    )
    ONE_CODE_FOR_EPERM_AND_EACCES = "SFTP v3 has one status, PERMISSION_DENIED, for both"
    LINKS_CONTAINED = "targets that are absolute or hold '..' are refused by default: EPERM"
    NO_SHARED_MAPPINGS = "direct_io bypasses the page cache, which shared mappings are made of: ENODEV"


PLAIN: frozenset[Difference] = frozenset()

MOUNT = frozenset(Difference) - {Difference.NO_SHARED_MAPPINGS}

BY_OPTION: dict[str, frozenset[Difference]] = {"direct_io": frozenset({Difference.NO_SHARED_MAPPINGS})}

LIFTED_BY_OPTION: dict[str, frozenset[Difference]] = {"no_contain_symlinks": frozenset({Difference.LINKS_CONTAINED})}


def of_mount(options: tuple[str, ...]) -> frozenset[Difference]:
    """The differences of a mount with these -o options."""
    found = MOUNT
    for option in options:
        found = (found | BY_OPTION.get(option, frozenset())) - LIFTED_BY_OPTION.get(option, frozenset())
    return found
