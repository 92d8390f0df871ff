"""Directories that are open: what the kernel reads of them, entry by entry.

The rule of this file: an entry that the kernel took is one more reference to its inode, and one of a reply that failed
is none.

Imported by `sshmuxfs.operations`.
"""

from __future__ import annotations

from collections.abc import Callable

import pyfuse3
from pyfuse3 import EntryAttributes, ReaddirToken

from sshmuxfs.io.listing import Listing
from sshmuxfs.names import Names
from sshmuxfs.tree.inodes import Inode


class Directories:
    """The open directories of one mount. `entry` tells what the kernel is to know of an inode."""

    def __init__(self, names: Names, entry: Callable[[Inode], EntryAttributes]) -> None:
        self._names = names
        self._tree = names.tree
        self._entry = entry
        self._listings: dict[int, Listing] = {}
        self._next_handle = 1

    async def open(self, directory: Inode) -> int:
        """Begin to list `directory`; return the handle. Raises what the server refuses it with."""
        listing = await self._names.list(directory)
        self._next_handle += 1
        self._listings[self._next_handle] = listing
        return self._next_handle

    async def read(self, handle: int, start_id: int, token: ReaddirToken) -> None:
        """Fill a reply from position `start_id` on.

        Position 0 is '.', 1 is '..', and n + 2 the n-th name; the kernel is given the position behind each entry.
        """
        listing = self._listings[handle]
        if start_id == 0 and listing.begun:  # rewinddir: the directory as it is now
            renewed = await self._names.list(listing.inode)
            listing.close()
            self._listings[handle] = listing = renewed
        if listing.inode.gone:
            return  # removed while it was open: nothing is in it
        await self._names.refresh(listing.inode)
        for position, dots in enumerate((b".", b"..")):
            if start_id <= position and not pyfuse3.readdir_reply(
                token, dots, self._entry(listing.inode), position + 1
            ):
                return
        told: list[Inode] = []
        try:
            await self._tell_names(listing, max(0, start_id - 2), token, told)
        except BaseException:
            # The kernel gets an error in place of the entries, and will not forget what it was not told of.
            for inode in told:
                self._tree.forget(inode.number, 1)
            raise

    async def _tell_names(self, listing: Listing, index: int, token: ReaddirToken, told: list[Inode]) -> None:
        """Fill a reply with the names from `index` on; `told` gets the inodes that the kernel is told of."""
        while await listing.has(index):
            inode = listing.inode_at(index)
            if inode is not None:
                if not pyfuse3.readdir_reply(token, listing.names[index], self._entry(inode), index + 3):
                    return
                self._tree.refer(inode)
                told.append(inode)
            listing.given(index)
            index += 1

    def release(self, handle: int) -> None:
        """The kernel has closed it."""
        self._listings.pop(handle).close()
