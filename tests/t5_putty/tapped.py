"""A mount over a real plink, with every byte between the two looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mux.rendezvous import putty
from tests.support.mounted import PuttyMount
from tests.support.putty import ADDRESS, PuttyUpstream, remove_directory
from tests.support.putty_tap import Tap


class TappedMount(PuttyMount):
    """By the name of the host under which the tap is found; the upstream is to have another."""

    @property
    def host(self) -> str:
        assert isinstance(self.master, PuttyUpstream) and self.master.host != ADDRESS
        return ADDRESS


@contextmanager
def tapped(upstream: PuttyUpstream) -> Iterator[Tap]:
    """A tap where a PuTTY would share a connection to ADDRESS."""
    name = putty.connection_name(ADDRESS, upstream.sshd.user, upstream.port)
    directory = putty.directory_of(name)
    putty.make_directory(directory)
    try:
        with Tap(os.path.join(directory, putty.SOCKET), upstream.path) as tap:
            yield tap
    finally:
        remove_directory(directory)
