"""Programs that walk trees and programs in Python: find, grep, du, ls, rm, compileall, tempfile."""

from __future__ import annotations

import filecmp
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support import bounded
from tests.t4_mount.differences import Difference
from tests.t4_mount.fixtures import Area
from tests.t5_interop.programs import attempt, run
from tests.t5_interop.samples import make_tree


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree on the local disk."""
    path = tmp_path_factory.mktemp("sample") / "sample"
    make_tree(path)
    return path


@pytest.fixture
def copy(area: Area, sample: Path) -> Path:
    """The same on the server, seen from here."""
    run("cp", "-a", sample, area.there / "copy")
    return area.here / "copy"


@pytest.mark.parametrize(
    "expression",
    [
        (),
        ("-type", "d"),
        ("-type", "l"),
        ("-name", "*5*"),
        ("-size", "+60k"),
        ("-perm", "0600"),
        ("-newermt", "2005-01-01"),
        ("-empty",),
        ("-xtype", "l"),
    ],
)
def test_find(copy: Path, sample: Path, expression: tuple[str, ...]) -> None:
    assert sorted(run("find", ".", *expression, "-print0", cwd=copy).split("\0")) == sorted(
        run("find", ".", *expression, "-print0", cwd=sample).split("\0")
    )


def test_find_that_removes(copy: Path, area: Area) -> None:
    run("find", copy, "-name", "file-*", "-delete")
    assert run("find", area.there / "copy", "-name", "file-*") == ""
    run("find", copy, "-depth", "-delete")
    assert os.listdir(area.there) == []


def test_grep(copy: Path, sample: Path) -> None:
    assert sorted(run("grep", "-r", "-l", "needle", ".", cwd=copy).splitlines()) == sorted(
        run("grep", "-r", "-l", "needle", ".", cwd=sample).splitlines()
    )
    assert attempt("grep", "-r", "no such words", copy).returncode == 1


def test_du(copy: Path, sample: Path) -> None:
    def apparent(path: Path) -> str:
        return run("find", path, "-type", "f", "-printf", "%s+").strip("+")

    assert sorted(apparent(copy).split("+")) == sorted(apparent(sample).split("+"))
    said = int(run("du", "-s", "--block-size=1", copy).split()[0])
    content = sum(path.stat().st_size for path in sample.rglob("*") if path.is_file() and not path.is_symlink())
    assert said >= content * 0.95


def test_ls(copy: Path, sample: Path) -> None:
    """Modes, owners, sizes and times of everything but directories, whose size and count are each file system's own."""

    def lines(top: Path) -> list[str]:
        said = run("ls", "-lAR", "--time-style=+%s", "--quoting-style=escape", cwd=top)
        return sorted(" ".join(line.split()) for line in said.splitlines() if line.startswith(("-", "l")))

    assert sorted(map(without_count, lines(copy))) == sorted(map(without_count, lines(sample)))


def without_count(line: str) -> str:
    """A line of ls without the link count, which is not known of links that were made elsewhere."""
    mode, _, rest = line.split(" ", 2)
    return f"{mode} {rest}"


def test_rm(copy: Path, area: Area) -> None:
    run("rm", "-rf", copy)
    assert os.listdir(area.there) == os.listdir(area.here) == []


def test_chmod_and_chown_of_a_tree(copy: Path, area: Area) -> None:
    run("chmod", "-R", "u+rwX,go-rwx", copy)
    for path in (area.there / "copy").rglob("*"):
        assert path.is_symlink() or path.stat().st_mode & 0o077 == 0
    owner = "1234:4321" if os.geteuid() == 0 else f"{os.getuid()}:{os.getgid()}"
    run("chown", "-R", "-h", owner, copy)
    assert {f"{p.lstat().st_uid}:{p.lstat().st_gid}" for p in (area.there / "copy").rglob("*")} == {owner}


def test_two_walks_agree(copy: Path, area: Area) -> None:
    compared = filecmp.dircmp(copy, area.there / "copy")
    assert not compared.left_only and not compared.right_only and not compared.diff_files and not compared.funny_files


def test_compiling_python(area: Area) -> None:
    package = area.here / "package"
    package.mkdir()
    for number in range(20):
        (package / f"module{number}.py").write_text(f"value = {number}\n")
    (package / "__init__.py").write_text("")
    (area.here / "program.py").write_text(
        "from package import " + ", ".join(f"module{n}" for n in range(20)) + "\n"
        "print(sum(m.value for m in (" + ", ".join(f"module{n}" for n in range(20)) + ")))\n"
    )
    run(sys.executable, "-m", "compileall", "-q", area.here)
    assert len(list((area.there / "package" / "__pycache__").iterdir())) == 21
    assert run(sys.executable, area.here / "program.py") == "190\n"
    (package / "module0.py").write_text("value = 1000  # longer\n")
    assert run(sys.executable, area.here / "program.py") == "1190\n"


def test_temporary_files_of_python(area: Area) -> None:
    script = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "with tempfile.TemporaryFile() as f: f.write(b'x' * 100000); f.seek(0); assert len(f.read()) == 100000\n"
        "with tempfile.NamedTemporaryFile() as f: f.write(b'text'); f.flush(); assert open(f.name).read() == 'text'\n"
        "with tempfile.TemporaryDirectory() as d: open(d + '/file', 'w').write('text')\n"
        "with tempfile.SpooledTemporaryFile(10) as f: f.write(b'x' * 100)\n"
        "print(os.listdir(sys.argv[1]))\n"
    )
    assert run(sys.executable, "-c", script, area.here) == "[]\n"


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default:DeprecationWarning")
def test_moving_and_removing_with_python(area: Area, sample: Path, tmp_path: Path) -> None:
    shutil.copytree(sample, area.here / "copy", symlinks=True)
    shutil.move(area.here / "copy", area.here / "moved")
    shutil.move(area.here / "moved", tmp_path / "out")
    assert os.listdir(area.there) == []
    shutil.make_archive(str(area.here / "archive"), "gztar", tmp_path / "out")
    shutil.unpack_archive(area.here / "archive.tar.gz", area.here / "unpacked")
    shutil.rmtree(area.here / "unpacked")
    assert os.listdir(area.there) == ["archive.tar.gz"]


def test_shared_memory_of_programs(area: Area) -> None:
    """A program that maps its data: written by one process, read by the next, and by the server."""
    script = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:\n"
        "    n = int.from_bytes(m[:8], 'little') + 1; m[:8] = n.to_bytes(8, 'little'); m[n * 100] = n; m.flush()\n"
        "    print(n)\n"
    )
    if not area.differs(Difference.NO_SHARED_MAPPINGS):
        (area.here / "data").write_bytes(bytes(100_000))
        for number in range(1, 20):
            assert run(sys.executable, "-c", script, area.here / "data") == f"{number}\n"
        content = (area.there / "data").read_bytes()
        assert [content[number * 100] for number in range(1, 20)] == list(range(1, 20))


def test_locks_between_local_processes(area: Area) -> None:
    """Locks hold between programs here; the server knows nothing of them."""
    holder = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.{0}(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print('held')"
    for kind in ("flock", "lockf"):
        (area.here / "lock").touch()

        def body(kind: str = kind) -> int:
            import fcntl

            with open(area.here / "lock", "w") as file:
                getattr(fcntl, kind)(file, fcntl.LOCK_EX)
                return attempt(sys.executable, "-c", holder.format(kind), area.here / "lock").returncode

        assert bounded.in_subprocess(body) != 0
        assert run(sys.executable, "-c", holder.format(kind), area.here / "lock") == "held\n"
