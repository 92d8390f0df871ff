"""README.md's table of who can ride on whom, cell by cell, and which connection is taken where there are two."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mux.errors import ExitCode
from tests.support import processes
from tests.support.master import Master
from tests.support.mounted import MountError
from tests.support.putty import PuttyUpstream
from tests.support.sshd import Sshd
from tests.support.waiting import wait_until
from tests.t2_upstream.starting import logins
from tests.t5_putty.exchanges import HOLDERS, PROGRAMS, JoiningMount, alone_as_well, exchange, only_riding, place_of
from tests.t6_faults.faults import outcome

SIZE_BYTES = 300_000


def readme_table() -> dict[tuple[str, str], bool]:
    """(who holds the connection, who rides): whether that works, by the words in README.md."""
    text = (processes.CHECKOUT / "README.md").read_text()
    table = text.split("Who can ride on whom:\n\n", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    riders = [[word for word in re.findall("`(.+?)`", cell) if word != "-share"] for cell in rows[0][1:]]
    assert {cell for row in rows[2:] for cell in row[1:]} == {"yes", "no"}
    return {
        (holder, rider): cell == "yes"
        for row in rows[2:]
        for holder in re.findall("`(.+?)`", row[0])
        for cell, column in zip(row[1:], riders, strict=True)
        for rider in column
    }


TABLE = readme_table()


@pytest.fixture(scope="module", params=HOLDERS)
def holder(request: pytest.FixtureRequest) -> str:
    """Who holds the connection, as README.md calls him."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def site(holder: str) -> Iterator[Sshd]:
    """A server to which he holds one."""
    with Sshd(max_sessions=100) as sshd, HOLDERS[holder](sshd):
        yield sshd


def test_the_table_speaks_of_everybody() -> None:
    assert TABLE.keys() == {(holder, rider) for holder in HOLDERS for rider in PROGRAMS}


@pytest.mark.parametrize("rider", PROGRAMS)
def test_who_rides(site: Sshd, holder: str, rider: str, tmp_path: Path) -> None:
    """Who can ride copies a file each way without a login, and has no other means. Who cannot fails then; where he may
    log in he does, for each connection."""
    there = site.root / rider
    there.mkdir()
    before = logins(site)
    if TABLE[holder, rider]:
        exchange(PROGRAMS[rider], only_riding(site), there, tmp_path, SIZE_BYTES)
        assert logins(site) == before
        return
    with pytest.raises(AssertionError):
        exchange(PROGRAMS[rider], only_riding(site), there, tmp_path, SIZE_BYTES)
    assert logins(site) == before
    asked = exchange(PROGRAMS[rider], alone_as_well(site), there, tmp_path, SIZE_BYTES)
    assert logins(site) == before + asked


# -- where there are two ----------------------------------------------------------------------------------------------


@pytest.fixture
def both(make_sshd: Callable[..., Sshd]) -> Iterator[tuple[Master, PuttyUpstream]]:
    """A master of OpenSSH and a PuTTY, with connections to one server."""
    sshd = make_sshd()
    with Master(sshd) as master, PuttyUpstream(sshd) as plink:
        yield master, plink


def test_a_control_path_comes_before_putty(both: tuple[Master, PuttyUpstream]) -> None:
    master, plink = both
    with JoiningMount(place_of(master.sshd), master.sshd.root) as mount:
        (mount.path / "file").touch()
        assert "downstream" not in plink.log_text()
    master.exit()
    with JoiningMount(place_of(master.sshd), master.sshd.root) as mount:
        assert (mount.path / "file").exists()
        assert f"connected from pid {mount.pid} " in plink.log_text()


def test_putty_and_nobody_else(both: tuple[Master, PuttyUpstream]) -> None:
    master, plink = both
    with JoiningMount(place_of(master.sshd), master.sshd.root, options=["putty=only"]) as mount:
        assert f"connected from pid {mount.pid} " in plink.log_text()
        (mount.path / "file").touch()
    plink.close()
    with pytest.raises(MountError) as refused:
        JoiningMount(place_of(master.sshd), master.sshd.root, options=["putty=only"])
    assert refused.value.exit_code == ExitCode.NOTHING_TO_JOIN


def test_putty_is_left_alone(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    with PuttyUpstream(sshd) as plink:
        with pytest.raises(MountError) as refused:
            JoiningMount(place_of(sshd), sshd.root, options=["putty=no"])
        assert refused.value.exit_code == ExitCode.NOTHING_TO_JOIN
        assert "downstream" not in plink.log_text()


def test_a_mount_goes_from_one_kind_to_the_other(
    both: tuple[Master, PuttyUpstream], expect_log: Callable[[str], None], allow_log: Callable[[str], None]
) -> None:
    """When its connection has ended it looks for another, of whatever kind."""
    expect_log("the channel ended")
    allow_log("no channel could be opened")
    expect_log("a new channel is open")
    master, plink = both
    with JoiningMount(place_of(master.sshd), master.sshd.root) as mount:
        master.exit()
        wait_until(lambda: outcome((mount.path / "one").write_text, "by PuTTY") == 8, "the mount to work again")
        assert f"connected from pid {mount.pid} " in plink.log_text()
        with Master(master.sshd):
            plink.kill()
            wait_until(lambda: outcome((mount.path / "two").write_text, "by a master") == 11, "the mount to work again")
            mount.unmount()
    assert (master.sshd.root / "one").read_text() == "by PuTTY"
    assert (master.sshd.root / "two").read_text() == "by a master"
