"""Programs that copy trees: tar, rsync, cp, zip of Python, dd."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from tests.t4_mount.fixtures import Area
from tests.t5_interop.programs import attempt, run
from tests.t5_interop.samples import describe, differing, make_tree

pytestmark = pytest.mark.over_putty


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree on the local disk."""
    path = tmp_path_factory.mktemp("sample") / "sample"
    make_tree(path)
    return path


def transferred(said: str) -> list[str]:
    """The lines of rsync --itemize-changes that stand for a change."""
    return [line for line in said.splitlines() if line.strip()]


@pytest.mark.parametrize("compression", ["", "z"])
def test_tar(area: Area, sample: Path, compression: str) -> None:
    """Made from here, unpacked here, compared here."""
    archive = area.here / "archive.tar"
    run("tar", f"-c{compression}f", archive, "-C", sample.parent, sample.name)
    run("tar", f"-x{compression}pf", archive, "-C", area.here)
    assert differing(sample, area.here / sample.name) == []
    assert differing(sample, area.there / sample.name) == []
    run("tar", f"-d{compression}f", archive, "-C", area.here)
    run("tar", f"-c{compression}f", area.here / "second.tar", "-C", area.here, sample.name)
    run("tar", f"-d{compression}f", area.here / "second.tar", "-C", sample.parent)
    assert "hard link" in run("tar", f"-t{compression}f", area.here / "second.tar")


def test_tar_unpacked_over_itself(area: Area, sample: Path) -> None:
    run("tar", "-cf", area.here / "archive.tar", "-C", sample.parent, sample.name)
    for _ in range(2):
        run("tar", "-xpf", area.here / "archive.tar", "-C", area.here)
    assert differing(sample, area.here / sample.name) == []
    run("rm", "-r", area.here / sample.name)
    assert os.listdir(area.there) == ["archive.tar"]


def test_rsync_to_the_tree(area: Area, sample: Path) -> None:
    run("rsync", "-aH", f"{sample}/", area.here / "copy")
    assert differing(sample, area.there / "copy") == []
    assert transferred(run("rsync", "-aHc", "--itemize-changes", "--delete", f"{sample}/", area.here / "copy")) == []
    assert transferred(run("rsync", "-aH", "--itemize-changes", "--delete", f"{sample}/", area.here / "copy")) == []


def test_rsync_from_the_tree(area: Area, sample: Path, tmp_path: Path) -> None:
    run("cp", "-a", f"{sample}/.", area.there / "copy")
    run("rsync", "-a", f"{area.here}/copy/", tmp_path / "back")
    assert differing(sample, tmp_path / "back") == []
    assert (
        transferred(run("rsync", "-ac", "--itemize-changes", "--delete", f"{area.here}/copy/", tmp_path / "back")) == []
    )


def test_rsync_of_changes(area: Area, sample: Path, tmp_path: Path) -> None:
    """A changed file, a new one, a missing one; by a new file renamed over, in place, and by appending."""
    work = tmp_path / "work"
    run("cp", "-a", sample, work)
    run("rsync", "-a", f"{work}/", area.here / "copy")
    (work / "file-big").write_bytes(os.urandom(700_000))
    run("rsync", "-a", "--no-whole-file", f"{work}/", area.here / "copy")
    with open(work / "file-big", "r+b") as file:
        file.seek(300_000)
        file.write(b"changed")
    (work / "new").write_text("new")
    run("rsync", "-aI", "--no-whole-file", "--inplace", "--delete", f"{work}/", area.here / "copy")
    assert differing(work, area.there / "copy") == []
    with open(work / "file-big", "ab") as file:
        file.write(os.urandom(50_000))
    (work / "new").unlink()
    run("rsync", "-a", "--append-verify", "--delete", f"{work}/", area.here / "copy")
    assert differing(work, area.there / "copy") == []


def test_cp(area: Area, sample: Path, tmp_path: Path) -> None:
    """There, within, and back; links, modes and times kept."""
    run("cp", "-a", sample, area.here / "one")
    run("cp", "-a", area.here / "one", area.here / "two")
    run("cp", "-a", area.here / "two", tmp_path / "back")
    for copy in (area.here / "one", area.there / "two", tmp_path / "back"):
        assert differing(sample, copy) == []
    assert os.path.samefile(area.here / "one" / "hard link", original_of(area.here / "one"))
    run("cp", "-au", sample, area.here / "one")
    run("cp", "-aL", area.here / "one" / "link to file", area.here / "followed")
    assert (area.here / "followed").read_bytes() == (sample / "link to file").read_bytes()


def original_of(top: Path) -> Path:
    """The other name of "hard link"."""
    return next(path for path in top.rglob("file-1.txt"))


def test_mv(area: Area, sample: Path, tmp_path: Path) -> None:
    """Within the tree by renaming, in and out by copying."""
    run("cp", "-a", sample, tmp_path / "moving")
    run("mv", tmp_path / "moving", area.here / "in")
    run("mkdir", area.here / "dir")
    run("mv", area.here / "in", area.here / "dir")
    assert differing(sample, area.there / "dir" / "in") == []
    run("mv", area.here / "dir" / "in", tmp_path / "out")
    assert differing(sample, tmp_path / "out") == []
    assert os.listdir(area.there / "dir") == []
    run("mv", "-n", area.here / "dir", area.here / "other")
    assert os.listdir(area.here) == ["other"]


def test_install_and_ln(area: Area) -> None:
    (area.here / "source").write_text("text")
    run("install", "-D", "-m", "0751", area.here / "source", area.here / "a" / "b" / "target")
    assert (area.there / "a" / "b" / "target").stat().st_mode & 0o777 == 0o751
    run("ln", "-s", "a/b", area.here / "link")
    run("ln", "-sfn", "a", area.here / "link")
    assert os.readlink(area.here / "link") == "a"
    run("ln", "-f", area.here / "source", area.here / "a" / "b" / "target")
    assert os.path.samefile(area.here / "source", area.here / "a" / "b" / "target")


def test_dd(area: Area) -> None:
    """Odd block sizes, seeking, no truncating, direct and synchronous."""
    data = os.urandom(1_000_000)
    (area.here / "in").write_bytes(data)
    for size in ("1", "777", "4096", "1M"):
        count = "count=5000" if size == "1" else "count=100000"
        run("dd", f"if={area.here}/in", f"of={area.here}/out", f"bs={size}", count, "status=none")
        assert (area.there / "out").read_bytes() == (data[:5000] if size == "1" else data)
    run(
        "dd",
        f"if={area.here}/in",
        f"of={area.here}/out",
        "bs=1000",
        "skip=3",
        "seek=500",
        "count=10",
        "conv=notrunc,fsync",
    )
    expected = data[:500_000] + data[3000:13_000] + data[510_000:]
    assert (area.there / "out").read_bytes() == expected
    run("dd", "if=/dev/zero", f"of={area.here}/direct", "bs=65536", "count=4", "oflag=direct,dsync")
    assert (area.there / "direct").read_bytes() == bytes(262_144)
    run("dd", "if=/dev/null", f"of={area.here}/sparse", "bs=1", "seek=1G")
    assert (area.there / "sparse").stat().st_size == 1 << 30


def test_sparse_copies(area: Area) -> None:
    run("truncate", "-s", "50M", area.here / "sparse")
    with open(area.here / "sparse", "r+b") as file:
        file.seek(25 << 20)
        file.write(b"text")
    run("cp", "--sparse=always", area.here / "sparse", area.here / "copy")
    run("cmp", area.here / "sparse", area.here / "copy")
    assert (area.there / "copy").stat().st_blocks * 512 < 1 << 20


def test_zip(area: Area, sample: Path) -> None:
    archive = area.here / "archive.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writing:
        for path in sorted(sample.rglob("*")):
            if path.is_file():
                writing.write(path, path.relative_to(sample))
    with zipfile.ZipFile(archive) as reading:
        assert reading.testzip() is None
        reading.extractall(area.here / "out")
    with zipfile.ZipFile(archive, "a") as appending:
        appending.writestr("appended", "text")
    with zipfile.ZipFile(area.there / "archive.zip") as reading:
        assert reading.read("appended") == b"text" and reading.testzip() is None
    unpacked = describe(area.there / "out")
    for name, (_, _, content) in describe(sample).items():
        if isinstance(content, bytes):
            assert unpacked[name][2] == content, name


def test_cmp_and_diff(area: Area, sample: Path) -> None:
    run("cp", "-a", sample, area.here / "copy")
    run("diff", "-r", "--no-dereference", sample, area.here / "copy")
    (area.here / "copy" / "empty" / "new").write_text("new")
    assert attempt("diff", "-rq", "--no-dereference", sample, area.here / "copy").returncode == 1
