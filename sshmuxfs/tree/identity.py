"""Whose files these are: user and group ids of the server and of this side. Pure.

The one rule: users and groups are mapped by the same rule, each by itself. Three things can be asked of a mount:

* nothing (`idmap=none`): the server's numbers are shown as they are;
* `idmap=user`: the id of the login on the server is shown as that of the user who mounted, and a change of owner to
  that user goes to the server as the login; all other numbers pass unchanged;
* `uid=` and `gid=`: one owner is shown, whatever the server says. A change to the owner already shown then changes
  nothing, since the id behind it is not known here; a change to another goes to the server as above.

Imported by `sshmuxfs.tree.attributes`, `sshmuxfs.operations` and `sshmuxfs.mount`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# The number -1 stands for "do not change" in chown(2), so no file can have it as its owner.
NO_ID: Final = 2**32 - 1
# What is shown for a number no file can have: the kernel's own overflow id (/proc/sys/kernel/overflowuid).
NOBODY: Final = 65534


class Unmappable(Exception):
    """An id that has no counterpart on the server. Linux answers EINVAL for ids a user namespace does not map."""


@dataclass(frozen=True, slots=True)
class IdRule:
    """How one kind of id, users or groups, is translated."""

    remote: int | None = None  # the login's id on the server, with `local` its counterpart here
    local: int | None = None
    shown: int | None = None  # shown for every file

    def to_local(self, remote: int) -> int:
        """Return what is shown for an id of the server."""
        if self.shown is not None:
            return self.shown
        if remote == self.remote and self.local is not None:
            return self.local
        return remote if 0 <= remote < NO_ID else NOBODY

    def to_remote(self, local: int | None) -> int | None:
        """Return what the server is asked for; None to leave the id as it is. Raises Unmappable."""
        if local is None or local == self.shown:
            return None
        if not 0 <= local < NO_ID:
            raise Unmappable(f"{local} is no id a file can have")
        if self.remote is None or self.local is None:
            return local
        if local == self.local:
            return self.remote
        if local == self.remote:
            # Sent as it is it would mean the login, who is somebody else here.
            raise Unmappable(f"{local} is the login's id on the server, which is shown as {self.local} here")
        return local


@dataclass(frozen=True, slots=True)
class IdentityMap:
    """The rules of one mount."""

    uid: IdRule = IdRule()
    gid: IdRule = IdRule()

    def to_local(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the owner and group shown for a file that has these on the server."""
        return self.uid.to_local(uid), self.gid.to_local(gid)

    def to_remote(self, uid: int | None, gid: int | None) -> tuple[int | None, int | None]:
        """Return what a change of owner asks of the server; None means unchanged, both ways. Raises Unmappable."""
        return self.uid.to_remote(uid), self.gid.to_remote(gid)


def identity_map(
    idmap: str,
    *,
    remote: tuple[int | None, int | None] = (None, None),
    local: tuple[int, int],
    shown: tuple[int | None, int | None] = (None, None),
) -> IdentityMap:
    """Make the map of a mount from its options; each pair is (user, group).

    `remote` is the owner of the login's home directory, which only `idmap=user` needs; a server that gives no owners
    leaves nothing to map. `local` is the user who mounts, `shown` what `uid=` and `gid=` ask for.
    """
    logins = remote if idmap == "user" else (None, None)
    uid, gid = (IdRule(logins[kind], local[kind], shown[kind]) for kind in (0, 1))
    return IdentityMap(uid, gid)
