"""Memory mappings. Each test's body is a child: a page fault that is never answered holds a whole interpreter."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tests.support import bounded
from tests.t4_mount.descriptors import opened
from tests.t4_mount.differences import Difference
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.fixtures import Area
from tests.t4_mount.trees import MOUNT, PLAIN, Setup

SIZE = 300_000
TEXT = bytes(range(256)) * (SIZE // 256) + b"end"


def mapped(path: Path, access: int, flags: int = os.O_RDWR) -> mmap.mmap:
    """The whole file as a mapping."""
    with opened(path, flags) as descriptor:
        return mmap.mmap(descriptor, 0, access=access)


def test_reading(area: Area) -> None:
    (area.there / "file").write_bytes(TEXT)

    def body() -> bool:
        with mapped(area.here / "file", mmap.ACCESS_READ, os.O_RDONLY) as view:
            return view[:] == TEXT and view[-3:] == b"end" and view.find(b"end") == len(TEXT) - 3

    assert bounded.in_subprocess(body)


def test_private_changes_stay_private(area: Area) -> None:
    (area.here / "file").write_bytes(TEXT)

    def body() -> None:
        with mapped(area.here / "file", mmap.ACCESS_COPY) as view:
            view[0:5] = b"local"
            assert view[0:5] == b"local"

    bounded.in_subprocess(body)
    assert (area.here / "file").read_bytes() == (area.there / "file").read_bytes() == TEXT


def test_shared_changes_reach_the_server(area: Area) -> None:
    (area.here / "file").write_bytes(TEXT)

    def body() -> bytes:
        with mapped(area.here / "file", mmap.ACCESS_WRITE) as view:
            view[100:106] = b"shared"
            view[-3:] = b"END"
            view.flush()
            return (area.there / "file").read_bytes()

    expected = TEXT[:100] + b"shared" + TEXT[106:-3] + b"END"
    assert bounded.in_subprocess(body) == expected
    assert (area.there / "file").read_bytes() == (area.here / "file").read_bytes() == expected


def test_shared_changes_without_msync(area: Area) -> None:
    """Unmapping and closing is enough for whoever opens the file here; fsync brings them to the server."""
    (area.here / "file").write_bytes(TEXT)

    def body() -> None:
        with mapped(area.here / "file", mmap.ACCESS_WRITE) as view:
            view[0:6] = b"shared"
            assert (area.here / "file").read_bytes()[:6] == b"shared"

    bounded.in_subprocess(body)
    assert (area.here / "file").read_bytes() == b"shared" + TEXT[6:]
    with opened(area.here / "file", os.O_RDWR) as descriptor:
        os.fsync(descriptor)
    assert (area.there / "file").read_bytes() == b"shared" + TEXT[6:]


def test_mapping_and_writing(area: Area) -> None:
    """One file, both ways at once: each sees the other at once."""
    (area.here / "file").write_bytes(TEXT)

    def body() -> None:
        with opened(area.here / "file", os.O_RDWR) as descriptor, mmap.mmap(descriptor, 0) as view:
            for number in range(50):
                offset = number * 4999
                view[offset : offset + 4] = b"mmap"
                assert os.pread(descriptor, 4, offset) == b"mmap"
                os.pwrite(descriptor, b"pwrite", offset + 100)
                assert view[offset + 100 : offset + 106] == b"pwrite"

    bounded.in_subprocess(body)


def test_a_mapping_outlives_its_descriptor_and_its_name(area: Area) -> None:
    (area.here / "file").write_bytes(TEXT)

    def body() -> bytes:
        with mapped(area.here / "file", mmap.ACCESS_WRITE) as view:
            os.unlink(area.here / "file")
            view[0:4] = b"gone"
            view.flush()
            return view[:10] + view[-3:]

    assert bounded.in_subprocess(body) == b"gone" + TEXT[4:10] + b"end"
    assert os.listdir(area.there) == []


def test_two_processes_share_a_mapping(area: Area) -> None:
    (area.here / "file").write_bytes(bytes(8192))

    def write() -> None:
        with mapped(area.here / "file", mmap.ACCESS_WRITE) as view:
            view[4096:4100] = b"text"

    def body() -> bytes:
        with mapped(area.here / "file", mmap.ACCESS_READ) as view:
            assert view[4096:4100] == bytes(4)
            bounded.in_subprocess(write)
            return view[4096:4100]

    assert bounded.in_subprocess(body) == b"text"


def test_growing_a_file_and_mapping_it_again(area: Area) -> None:
    (area.here / "file").write_bytes(b"")

    def body() -> bytes:
        with opened(area.here / "file", os.O_RDWR) as descriptor:
            for pages in range(1, 20):
                os.ftruncate(descriptor, pages * 4096)
                with mmap.mmap(descriptor, 0) as view:
                    view[(pages - 1) * 4096] = pages
            os.fsync(descriptor)
        return (area.there / "file").read_bytes()

    assert [byte for byte in bounded.in_subprocess(body) if byte] == list(range(1, 20))


def test_running_a_program(area: Area) -> None:
    """Programs are mapped."""
    program = Path("/bin/true").resolve().read_bytes()
    (area.here / "program").write_bytes(program)
    (area.here / "program").chmod(0o755)
    assert bounded.in_subprocess([str(area.here / "program")]).returncode == 0
    (area.here / "script").write_text("#!/bin/sh\necho $1\n")
    (area.here / "script").chmod(0o755)
    assert bounded.in_subprocess([str(area.here / "script"), "said"]).stdout == "said\n"


@pytest.mark.variants(PLAIN, MOUNT, Setup("mount", ("direct_io",)))
def test_shared_mappings_are_there_or_refused(area: Area) -> None:
    (area.here / "file").write_bytes(TEXT)

    def body() -> str:
        return errno_of(lambda: mapped(area.here / "file", mmap.ACCESS_WRITE).close())

    found = bounded.in_subprocess(body)
    assert found in (("ENODEV", "success") if area.differs(Difference.NO_SHARED_MAPPINGS) else ("success",))
    with opened(area.here / "file", os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"x", 0)
    assert (area.there / "file").read_bytes() == b"x" + TEXT[1:]
