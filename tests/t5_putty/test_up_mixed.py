"""Who can ride on our upstream: everybody, alone and all together; and what they see when one of them goes wrong."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.mounted import Mount
from tests.support.sshd import HOST, Sshd
from tests.support.upstream import Upstream
from tests.t2_upstream.starting import ending, logins, walk
from tests.t5_putty.riders import Riders, said
from tests.t5_putty.riders import works as riders_work
from tests.t5_putty.shown import clients
from tests.t5_upstream.clients import Clients

BULK_BYTES = 6 << 20


def test_a_proxy_client_rides_on_ours(ours: Upstream, directory: Path) -> None:
    """`ssh -O proxy`; the others stand in README.md's table (test_who_rides.py)."""
    there = directory / "there"
    there.write_bytes(os.urandom(100_000))
    before = logins(ours.sshd)
    assert Clients.of(ours).ssh("-O", "proxy", HOST, f"cat {there}").stdout == there.read_bytes()
    assert logins(ours.sshd) == before


def test_all_together_on_one_login(
    make_sshd: Callable[..., Sshd],
    make_ours: Callable[..., tuple[Upstream, Riders]],
    make_mount: Callable[..., Mount],
    tmp_path: Path,
) -> None:
    sshd = make_sshd(max_sessions=100)
    upstream, riders = make_ours(sshd)
    programs = Clients.of(upstream)
    one, other = (make_mount(sshd.root, master=upstream) for _ in range(2))
    source = tmp_path / "source"
    source.write_bytes(os.urandom(BULK_BYTES))
    data = source.read_bytes()
    digest = hashlib.sha256(data).hexdigest().encode()

    def through_the_mount(mount: Mount, name: str) -> bool:
        (mount.path / name).write_bytes(data)
        return (mount.path / name).read_bytes() == data == (sshd.root / name).read_bytes()

    def by_psftp() -> bool:
        done = riders.psftp(f"put {source} {sshd.root}/psftp", f"get {sshd.root}/psftp {tmp_path}/psftp")
        return done.returncode == 0 and (tmp_path / "psftp").read_bytes() == data

    def by_pscp() -> bool:
        return riders.pscp(str(source), f"{{}}:{sshd.root}/pscp").returncode == 0

    with riders.started("echo plink; cat") as shell, ThreadPoolExecutor(8) as pool:
        said(shell, b"plink\n")
        work: list[Future[bool]] = [
            pool.submit(through_the_mount, one, "one"),
            pool.submit(through_the_mount, other, "other"),
            pool.submit(by_psftp),
            pool.submit(by_pscp),
            pool.submit(lambda: riders.plink("sha256sum", data=data).stdout.startswith(digest)),
            pool.submit(lambda: programs.ssh(HOST, "sha256sum", input=data).stdout.startswith(digest)),
        ]
        for _ in range(10):  # those with little to say are served meanwhile
            assert programs.ssh(HOST, "echo here").stdout == b"here\n"
            assert riders.plink("echo here too").stdout == b"here too\n"
            assert (one.path / "nothing").exists() is False
        assert all(future.result(60) for future in work)
        assert (sshd.root / "pscp").read_bytes() == data
        (rider,) = clients(upstream)
        assert rider["pid"] == shell.pid
        assert shell.communicate(b"as before", timeout=20)[0] == b"as before"
    assert logins(sshd) == 1


def test_the_death_of_each_is_nobody_elses(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]], make_mount: Callable[..., Mount]
) -> None:
    sshd = make_sshd(max_sessions=100)
    upstream, riders = make_ours(sshd)
    mount = make_mount(sshd.root, master=upstream)
    (sshd.root / "file").write_bytes(os.urandom(1 << 20))
    with riders.started("echo up; cat") as first, Clients.of(upstream).started(HOST, "echo up; cat") as second:
        said(first, b"up\n")
        said(second, b"up\n")
        for command in ("cat /dev/zero", "cat >/dev/null", "cat"):
            with riders.started(f"echo up; {command}") as doomed:
                said(doomed, b"up\n")
                doomed.send_signal(signal.SIGKILL)
            assert (mount.path / "file").read_bytes() == (sshd.root / "file").read_bytes()
        for one in (first, second):
            assert one.communicate(b"as before", timeout=20)[0] == b"as before"
    assert riders_work(riders) and logins(sshd) == 1


def test_u33_what_a_mount_had_started_stays_for_a_plink(make_sshd: Callable[..., Sshd]) -> None:
    """Its starter has gone; it ends when the last who rides has left."""
    sshd = make_sshd()
    found = walk(sshd).run()
    with ending(found.pid) as upstream:
        riders = Riders(sshd)
        with riders.started("echo up; cat") as plink:
            said(plink, b"up\n")
            assert riders_work(riders) and upstream.running
            assert plink.communicate(b"to the last", timeout=20)[0] == b"to the last"
        assert not processes.wait_ended([upstream], 20)
        assert not riders.published


def test_who_comes_while_we_log_in_logs_in_himself(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]]
) -> None:
    """U18: nothing is published before we are logged in, so nobody has to wait for a login that may fail."""
    sshd = make_sshd()
    with pytest.raises(Exception, match="Permission denied"):
        make_ours(sshd, options=["-oPubkeyAuthentication=no", "-oBatchMode=yes"])
    assert not Riders(sshd).published
