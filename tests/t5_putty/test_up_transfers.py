"""pscp and psftp on our upstream (U12-U14)."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.putty import ADDRESS
from tests.support.sshd import Sshd
from tests.support.upstream import Upstream
from tests.t5_putty.riders import Riders

SIZES = (0, 1, 16384, 16385, 3 << 20)
MODES = ((), ("-scp",), ("-sftp",))


@pytest.mark.parametrize("mode", MODES, ids=["default", "scp", "sftp"])
@pytest.mark.parametrize("size", SIZES)
def test_u12_files_up_and_down(
    riders: Riders, directory: Path, tmp_path: Path, mode: tuple[str, ...], size: int
) -> None:
    source, there, back = tmp_path / "source", directory / "there", tmp_path / "back"
    source.write_bytes(os.urandom(size))
    os.utime(source, (1_600_000_000, 1_500_000_000))
    assert riders.pscp(*mode, "-p", str(source), f"{{}}:{there}").returncode == 0
    assert there.read_bytes() == source.read_bytes() and there.stat().st_mtime == 1_500_000_000
    assert riders.pscp(*mode, "-p", f"{{}}:{there}", str(back)).returncode == 0
    assert back.read_bytes() == source.read_bytes() and back.stat().st_mtime == 1_500_000_000


@pytest.mark.parametrize("mode", MODES, ids=["default", "scp", "sftp"])
def test_u12_a_tree(riders: Riders, directory: Path, tmp_path: Path, mode: tuple[str, ...]) -> None:
    tree = tmp_path / "tree"
    for number in range(30):
        below = tree / f"d{number % 3}" / f"e{number % 5}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"file {number}").write_bytes(os.urandom(100 * number))
    assert riders.pscp(*mode, "-r", str(tree), f"{{}}:{directory}").returncode == 0
    assert riders.pscp(*mode, "-r", f"{{}}:{directory}/tree", str(tmp_path / "back")).returncode == 0
    for copy in (directory / "tree", tmp_path / "back"):
        assert same(tree, copy)


def same(one: Path, other: Path) -> bool:
    names = [sorted(str(path.relative_to(top)) for path in top.rglob("*")) for top in (one, other)]
    files = [name for name in names[0] if (one / name).is_file()]
    return names[0] == names[1] and filecmp.cmpfiles(one, other, files, shallow=False)[1:] == ([], [])


def test_u12_many_at_once(riders: Riders, directory: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(2 << 20))
    with riders.started("cat > /dev/null") as bulk:
        for number in range(6):
            assert riders.pscp(str(source), f"{{}}:{directory}/{number}").returncode == 0
        bulk.communicate(bytes(8 << 20), timeout=20)
    assert all((directory / str(number)).read_bytes() == source.read_bytes() for number in range(6))


def test_u13_a_batch_of_psftp(riders: Riders, directory: Path, tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    (directory / "there").write_bytes(data)
    (tmp_path / "part").write_bytes(data[:300_000])
    (tmp_path / "mine").write_bytes(data[::-1])
    done = riders.psftp(
        f"lcd {tmp_path}",
        f"cd {directory}",
        "ls",
        "get there whole",
        "reget there part",
        "put mine",
        "chmod 600 mine",
        "mkdir sub",
        "mv mine sub/moved",
        "quit",
    )
    assert done.returncode == 0, done
    assert b"there" in done.stdout
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "part").read_bytes() == data
    assert (directory / "sub" / "moved").read_bytes() == data[::-1]
    assert (directory / "sub" / "moved").stat().st_mode & 0o777 == 0o600


def test_u13_psftp_that_names_no_user(riders: Riders) -> None:
    done = riders.psftp("pwd", destination=ADDRESS)
    assert done.returncode == 0 and b"Remote working directory" in done.stdout, done


def test_u13_no_name_without_a_user_for_who_logs_in_as_somebody_else() -> None:
    """Whoever names nobody means himself, or is asked: he does not get another's login."""
    from mux.rendezvous import putty
    from mux.rendezvous.target import SshOptions, resolve

    options = SshOptions(config_file="/dev/null", port=2200)
    own = putty.candidates(resolve("host", putty.local_user(), options))
    other = putty.candidates(resolve("host", "somebody-else", options))
    assert own == (f"{putty.local_user()}@host:2200", "host:2200")
    assert other == ("somebody-else@host:2200",)


def test_u14_a_server_without_sftp(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]], tmp_path: Path
) -> None:
    sshd = make_sshd(sftp=None)
    _, riders = make_ours(sshd)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(200_000))
    done = riders.pscp("-v", str(source), f"{{}}:{sshd.root}/there")
    assert done.returncode == 0 and (sshd.root / "there").read_bytes() == source.read_bytes()
    assert b"Using SCP1" in done.stderr  # asked for on the channel on which sftp was refused
