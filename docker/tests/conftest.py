"""Fixtures: the hosts of a run, and a client's state put back after each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from docker.tests.hosts import Hosts


@pytest.fixture(scope="session")
def all_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture
def hosts(all_hosts: Hosts) -> Iterator[Hosts]:
    """The hosts, with nothing mounted and nothing connected when the test begins; whatever it left is an error."""
    yield all_hosts
    left = []
    for client in (all_hosts.client, all_hosts.other):
        for user in ("ann", "root"):
            mounted = client.run("grep -o 'fuse.sshmuxfs' /proc/mounts || true", user=user).stdout.strip()
            left += [f"{client.alias}: a mount"] if mounted else []
            client.run("fusermount3 -uz mnt 2>/dev/null; for s in run/* .ssh/run/*; do :; done; true", user=user)
            client.run("sshmux exit --now server >/dev/null 2>&1; true", user=user)
            client.run("pkill -u \"$(id -u)\" -f '[m]ux.upstream|[s]shmuxfs' || true", user=user)
    assert not left, left


@pytest.fixture
def tmp_served(hosts: Hosts) -> Path:
    """An empty directory on the server, ann's."""
    hosts.server.run("rm -rf /srv/data/* && mkdir -p /srv/data/t && chown ann /srv/data/t", user="root")
    return Path("/srv/data/t")
