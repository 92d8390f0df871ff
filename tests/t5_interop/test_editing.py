"""Saving a file the ways editors do: rename over, with a backup, in place; and programs that edit."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.t4_mount.descriptors import opened
from tests.t4_mount.fixtures import Area
from tests.t5_interop.programs import run

pytestmark = pytest.mark.over_putty

TEXT = "".join(f"line {number}\n" for number in range(1000))


def write_and_sync(path: Path, text: str, flags: int = os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode: int = 0o600) -> None:
    """Write it and be sure that it is written."""
    with opened(path, flags, mode) as descriptor:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)


def sides(area: Area, name: str = "file") -> set[str]:
    """The text as each side has it."""
    return {(area.here / name).read_text(), (area.there / name).read_text()}


def test_rename_over(area: Area) -> None:
    """A temporary file, synchronized, with mode and owner of the old one, is renamed over it; then the directory."""
    (area.here / "file").write_text("first")
    (area.here / "file").chmod(0o640)
    for number in range(20):
        text = f"{TEXT}{number}"
        old = (area.here / "file").stat()
        write_and_sync(area.here / ".file.tmp", text)
        os.chmod(area.here / ".file.tmp", stat.S_IMODE(old.st_mode))
        os.chown(area.here / ".file.tmp", old.st_uid, old.st_gid)
        os.rename(area.here / ".file.tmp", area.here / "file")
        with opened(area.here) as directory:
            os.fsync(directory)
        assert sides(area) == {text}
        assert stat.S_IMODE((area.here / "file").stat().st_mode) == 0o640
    assert os.listdir(area.there) == ["file"]


def test_backup_by_renaming(area: Area) -> None:
    """The old file becomes the backup, a new one gets its name (vim with backupcopy=no)."""
    (area.here / "file").write_text("0")
    for number in range(1, 20):
        probe = area.here / "4913"
        write_and_sync(probe, "")
        probe.unlink()
        os.rename(area.here / "file", area.here / "file~")
        write_and_sync(area.here / "file", f"{number}", mode=0o644)
        assert (area.here / "file~").read_text() == f"{number - 1}"
        assert sides(area) == {f"{number}"}
        os.unlink(area.here / "file~")
    assert os.listdir(area.there) == ["file"]


def test_backup_by_copying(area: Area) -> None:
    """The backup is a copy, the file is written in place and keeps its number (vim with backupcopy=yes)."""
    (area.here / "file").write_text(TEXT)
    number = (area.here / "file").stat().st_ino
    for count in range(20):
        write_and_sync(area.here / "file~", (area.here / "file").read_text())
        write_and_sync(area.here / "file", f"shorter {count}", os.O_WRONLY | os.O_TRUNC)
        assert sides(area) == {f"shorter {count}"}
        assert (area.here / "file").stat().st_ino == number
        os.unlink(area.here / "file~")


def test_backup_by_linking(area: Area) -> None:
    """A link keeps the old one while the new one is renamed over (as maildirs, news spools and some editors do)."""
    (area.here / "file").write_text("0")
    for number in range(1, 20):
        os.link(area.here / "file", area.here / "file.bak")
        write_and_sync(area.here / "file.new", f"{number}")
        os.rename(area.here / "file.new", area.here / "file")
        assert (area.here / "file.bak").read_text() == f"{number - 1}"
        assert (area.here / "file.bak").stat().st_nlink == (area.here / "file").stat().st_nlink == 1
        assert sides(area) == {f"{number}"}
        os.unlink(area.here / "file.bak")


def test_saving_through_a_link(area: Area) -> None:
    (area.here / "real").write_text("old")
    (area.here / "file").symlink_to("real")
    (area.here / "file").write_text("new")
    assert (area.there / "real").read_text() == "new" and (area.here / "file").is_symlink()


def test_a_swap_file(area: Area) -> None:
    """Small changes at places of a file that stays open, synchronized now and then."""
    expected = bytearray(40_960)
    with opened(area.here / ".file.swp", os.O_CREAT | os.O_EXCL | os.O_RDWR) as descriptor:
        os.write(descriptor, expected)
        for number in range(100):
            place = number * 4096 % 40_960
            os.pwrite(descriptor, b"%08d" % number, place)
            expected[place : place + 8] = b"%08d" % number
            if number % 10 == 0:
                os.fsync(descriptor)
                assert (area.there / ".file.swp").read_bytes() == expected
        os.unlink(area.here / ".file.swp")
    assert os.listdir(area.there) == []


def test_sed_in_place(area: Area) -> None:
    (area.here / "file").write_text(TEXT)
    run("sed", "-i", "s/^line /zeile /", area.here / "file")
    assert sides(area) == {TEXT.replace("line", "zeile")}
    run("sed", "-i.orig", "1d", area.here / "file")
    assert sides(area, "file.orig") == {TEXT.replace("line", "zeile")}
    assert (area.here / "file").read_text().startswith("zeile 1\n")
    (area.here / "one").write_text("a\n")
    (area.here / "two").write_text("a\n")
    run("sed", "-i", "s/a/b/", area.here / "one", area.here / "two")
    assert (area.there / "one").read_text() == (area.there / "two").read_text() == "b\n"


def test_perl_in_place(area: Area) -> None:
    (area.here / "file").write_text(TEXT)
    run("perl", "-pi", "-e", "s/line/row/", area.here / "file")
    assert sides(area) == {TEXT.replace("line", "row")}


def test_shell_redirection(area: Area) -> None:
    script = 'cd "$1"; for i in 1 2 3; do echo $i >>log; done; { echo a; echo b; } >both; cat both both >four; '
    script += "sort -r -o four four; echo x | tee -a four >/dev/null; : >empty; echo ok 1<>four"
    run("sh", "-e", "-c", script, "sh", area.here)
    assert (area.there / "log").read_text() == "1\n2\n3\n"
    assert (area.there / "four").read_text() == "ok\n" + "b\nb\na\na\nx\n"[3:]
    assert (area.there / "empty").read_text() == ""


def test_patch(area: Area) -> None:
    (area.here / "file").write_text(TEXT)
    (area.here / "changed").write_text(TEXT.replace("line 500\n", "line five hundred\n"))
    script = (
        "diff -u --label a/file --label b/file file changed >file.patch || :; git apply file.patch; cmp file changed"
    )
    run("sh", "-e", "-c", script, cwd=area.here)
    assert "five hundred" in (area.there / "file").read_text()
