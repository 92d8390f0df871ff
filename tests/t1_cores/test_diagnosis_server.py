"""The diagnosis against the real sftp-server: the errno that the same call gives on the server's own file system.

Where the call can be made here it is made, on the same files: a wrong expectation would show. In worlds of the server's
own (no privileges, read-only, full, several file systems) what the kernel would say is written down.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sshmuxfs.diagnosis import diagnose, diagnose_write
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import Client
from sshmuxfs.sftp.protocol import NO_ATTRIBUTES, Attributes, OpenFlag, Request, StatusError
from tests.support import processes
from tests.support.sftp_process import SftpProcess, in_namespace, in_trio, real_channel, unprivileged

LONG = b"n" * 256


async def found(client: Client, request: Request) -> str:
    """The name of the errno for a request that has to fail."""
    try:
        await client.call(request)
    except StatusError as error:
        return errno.errorcode[await diagnose(client, request, error)]
    return "it did not fail"


def local(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "it did not fail"


def layout(top: bytes) -> None:
    """What the situations are about."""
    for name in (b"dir", b"full", b"empty"):
        os.mkdir(top + b"/" + name)
    for name in (b"file", b"full/file"):
        with open(top + b"/" + name, "wb"):
            pass
    os.symlink(b"loop", top + b"/loop")
    os.symlink(b"nowhere", top + b"/dangling")


def opens(path: bytes, flags: int) -> None:
    os.close(os.open(path, flags, 0o600))


EXCLUSIVELY = OpenFlag.WRITE | OpenFlag.CREAT | OpenFlag.EXCL
# What is asked of the server below the directory `top`, and the call that does the same.
CALLS: dict[str, tuple[Callable[[bytes], Request], Callable[[bytes], object]]] = {
    "lstat nothing": (lambda top: sftp.Lstat(top + b"/none"), lambda top: os.lstat(top + b"/none")),
    "lstat below nothing": (lambda top: sftp.Lstat(top + b"/none/x"), lambda top: os.lstat(top + b"/none/x")),
    "lstat below a file": (lambda top: sftp.Lstat(top + b"/file/x"), lambda top: os.lstat(top + b"/file/x")),
    "lstat a long name": (lambda top: sftp.Lstat(top + b"/" + LONG), lambda top: os.lstat(top + b"/" + LONG)),
    "open nothing": (
        lambda top: sftp.Open(top + b"/none", OpenFlag.READ, NO_ATTRIBUTES),
        lambda top: opens(top + b"/none", os.O_RDONLY),
    ),
    "write a directory": (
        lambda top: sftp.Open(top + b"/dir", OpenFlag.WRITE, NO_ATTRIBUTES),
        lambda top: opens(top + b"/dir", os.O_WRONLY),
    ),
    "create what is there": (
        lambda top: sftp.Open(top + b"/file", EXCLUSIVELY, NO_ATTRIBUTES),
        lambda top: opens(top + b"/file", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    ),
    "create where a directory is": (
        lambda top: sftp.Open(top + b"/dir", EXCLUSIVELY, NO_ATTRIBUTES),
        lambda top: opens(top + b"/dir", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    ),
    "create where a dangling link is": (
        lambda top: sftp.Open(top + b"/dangling", EXCLUSIVELY, NO_ATTRIBUTES),
        lambda top: opens(top + b"/dangling", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    ),
    "create below a file": (
        lambda top: sftp.Open(top + b"/file/x", EXCLUSIVELY, NO_ATTRIBUTES),
        lambda top: opens(top + b"/file/x", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    ),
    "create a long name": (
        lambda top: sftp.Open(top + b"/" + LONG, EXCLUSIVELY, NO_ATTRIBUTES),
        lambda top: opens(top + b"/" + LONG, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    ),
    "list a file": (lambda top: sftp.Opendir(top + b"/file"), lambda top: os.listdir(top + b"/file")),
    "list nothing": (lambda top: sftp.Opendir(top + b"/none"), lambda top: os.listdir(top + b"/none")),
    "mkdir over a directory": (
        lambda top: sftp.Mkdir(top + b"/dir", NO_ATTRIBUTES),
        lambda top: os.mkdir(top + b"/dir"),
    ),
    "mkdir over a file": (lambda top: sftp.Mkdir(top + b"/file", NO_ATTRIBUTES), lambda top: os.mkdir(top + b"/file")),
    "mkdir below nothing": (
        lambda top: sftp.Mkdir(top + b"/none/x", NO_ATTRIBUTES),
        lambda top: os.mkdir(top + b"/none/x"),
    ),
    "mkdir a long name": (
        lambda top: sftp.Mkdir(top + b"/" + LONG, NO_ATTRIBUTES),
        lambda top: os.mkdir(top + b"/" + LONG),
    ),
    "symlink over a file": (
        lambda top: sftp.Symlink(b"t", top + b"/file"),
        lambda top: os.symlink(b"t", top + b"/file"),
    ),
    "symlink below a file": (
        lambda top: sftp.Symlink(b"t", top + b"/file/x"),
        lambda top: os.symlink(b"t", top + b"/file/x"),
    ),
    "readlink a file": (lambda top: sftp.Readlink(top + b"/file"), lambda top: os.readlink(top + b"/file")),
    "remove nothing": (lambda top: sftp.Remove(top + b"/none"), lambda top: os.unlink(top + b"/none")),
    "remove a directory": (lambda top: sftp.Remove(top + b"/dir"), lambda top: os.unlink(top + b"/dir")),
    "rmdir a file": (lambda top: sftp.Rmdir(top + b"/file"), lambda top: os.rmdir(top + b"/file")),
    "rmdir a link": (lambda top: sftp.Rmdir(top + b"/loop"), lambda top: os.rmdir(top + b"/loop")),
    "rmdir a full one": (lambda top: sftp.Rmdir(top + b"/full"), lambda top: os.rmdir(top + b"/full")),
    "rmdir nothing": (lambda top: sftp.Rmdir(top + b"/none"), lambda top: os.rmdir(top + b"/none")),
    "link over a file": (
        lambda top: sftp.Hardlink(top + b"/file", top + b"/full/file"),
        lambda top: os.link(top + b"/file", top + b"/full/file"),
    ),
    "link a directory": (
        lambda top: sftp.Hardlink(top + b"/dir", top + b"/new"),
        lambda top: os.link(top + b"/dir", top + b"/new"),
    ),
    "link nothing": (
        lambda top: sftp.Hardlink(top + b"/none", top + b"/new"),
        lambda top: os.link(top + b"/none", top + b"/new"),
    ),
    "rename nothing": (
        lambda top: sftp.PosixRename(top + b"/none", top + b"/new"),
        lambda top: os.rename(top + b"/none", top + b"/new"),
    ),
    "rename to below nothing": (
        lambda top: sftp.PosixRename(top + b"/file", top + b"/none/new"),
        lambda top: os.rename(top + b"/file", top + b"/none/new"),
    ),
    "rename to below a file": (
        lambda top: sftp.PosixRename(top + b"/dir", top + b"/file/new"),
        lambda top: os.rename(top + b"/dir", top + b"/file/new"),
    ),
    "rename a file over a directory": (
        lambda top: sftp.PosixRename(top + b"/file", top + b"/empty"),
        lambda top: os.rename(top + b"/file", top + b"/empty"),
    ),
    "rename a directory over a file": (
        lambda top: sftp.PosixRename(top + b"/dir", top + b"/file"),
        lambda top: os.rename(top + b"/dir", top + b"/file"),
    ),
    "rename a directory over a full one": (
        lambda top: sftp.PosixRename(top + b"/dir", top + b"/full"),
        lambda top: os.rename(top + b"/dir", top + b"/full"),
    ),
    "rename a directory into itself": (
        lambda top: sftp.PosixRename(top + b"/full", top + b"/full/below"),
        lambda top: os.rename(top + b"/full", top + b"/full/below"),
    ),
    "rename to a long name": (
        lambda top: sftp.PosixRename(top + b"/file", top + b"/" + LONG),
        lambda top: os.rename(top + b"/file", top + b"/" + LONG),
    ),
    "chmod nothing": (
        lambda top: sftp.Setstat(top + b"/none", Attributes(permissions=0o600)),
        lambda top: os.chmod(top + b"/none", 0o600),
    ),
    "chmod below a file": (
        lambda top: sftp.Setstat(top + b"/file/x", Attributes(permissions=0o600)),
        lambda top: os.chmod(top + b"/file/x", 0o600),
    ),
    "truncate nothing": (
        lambda top: sftp.Setstat(top + b"/none", Attributes(size=0)),
        lambda top: os.truncate(top + b"/none", 0),
    ),
}


@in_trio
async def test_what_the_server_refuses_is_what_the_kernel_refuses(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path)
    layout(top)
    async with real_channel() as (client, _):
        answers = {name: await found(client, request(top)) for name, (request, _) in CALLS.items()}
    assert answers == {name: local(lambda: call(top)) for name, (_, call) in CALLS.items()}  # noqa: B023
    assert "it did not fail" not in answers.values()


@in_trio
async def test_a_rename_that_must_not_replace(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path)
    layout(top)
    async with real_channel() as (client, _):
        assert await found(client, sftp.Rename(top + b"/file", top + b"/full/file")) == "EEXIST"
        assert await found(client, sftp.Rename(top + b"/dir", top + b"/full")) == "EEXIST"
        assert await found(client, sftp.Rename(top + b"/none", top + b"/new")) == "ENOENT"


@in_trio
async def test_a_path_too_long_for_any_file_system(tmp_path: Path) -> None:
    deep = os.fsencode(tmp_path) + b"/d" * 2100
    async with real_channel() as (client, _):
        assert await found(client, sftp.Lstat(deep)) == "ENAMETOOLONG"


@pytest.fixture
def running_program(tmp_path: Path) -> Iterator[bytes]:
    """The path of a program that is being executed."""
    path = tmp_path / "program"
    shutil.copy("/bin/sleep", path)
    with subprocess.Popen([path, "60"]) as running:
        yield os.fsencode(path)
        running.kill()


@in_trio
async def test_a_program_that_runs_on_the_server(running_program: bytes) -> None:
    async with real_channel() as (client, _):
        emptying = OpenFlag.WRITE | OpenFlag.TRUNC
        answers = {
            "write": await found(client, sftp.Open(running_program, OpenFlag.WRITE, NO_ATTRIBUTES)),
            "empty": await found(client, sftp.Open(running_program, emptying, NO_ATTRIBUTES)),
            "truncate": await found(client, sftp.Setstat(running_program, Attributes(size=0))),
        }
        assert answers == {
            "write": local(lambda: opens(running_program, os.O_WRONLY)),
            "empty": local(lambda: opens(running_program, os.O_WRONLY | os.O_TRUNC)),
            "truncate": local(lambda: os.truncate(running_program, 0)),
        }
        client.close_nowait(await client.open(running_program, OpenFlag.READ))


@in_trio
async def test_a_server_that_has_no_handles_left(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "file")
    (tmp_path / "file").touch(mode=0o755)
    few = SftpProcess(command=["sh", "-c", 'ulimit -n 20; exec "$0"'])
    async with real_channel(few) as (client, _):
        handles: list[bytes] = []
        while len(handles) < 20:
            try:
                handles.append(await client.open(path, OpenFlag.READ))
            except StatusError:
                break
        for flags in (OpenFlag.READ, OpenFlag.WRITE, EXCLUSIVELY):
            name = b"/new" if flags == EXCLUSIVELY else b"/file"
            request = sftp.Open(os.fsencode(tmp_path) + name, flags, NO_ATTRIBUTES)
            assert await found(client, request) == "ENFILE"
        for handle in handles:
            await client.call(sftp.Close(handle))
        await client.call(sftp.Close(await client.open(path, OpenFlag.WRITE)))


# -- without privileges -----------------------------------------------------------------------------------------------


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody can reach and change."""
    path = processes.make_directory()
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@in_trio
async def test_without_privileges(open_directory: Path) -> None:
    top = os.fsencode(open_directory)
    async with real_channel(unprivileged()) as (client, _):
        await client.call(sftp.Mkdir(top + b"/locked", NO_ATTRIBUTES))
        client.close_nowait(await client.open(top + b"/locked/file", EXCLUSIVELY))
        client.close_nowait(await client.open(top + b"/unreadable", EXCLUSIVELY))
        await client.call(sftp.Setstat(top + b"/unreadable", Attributes(permissions=0)))
        await client.call(sftp.Setstat(top + b"/locked", Attributes(permissions=0o500)))
        chown = Attributes(uid=0, gid=0)
        assert {
            "read": await found(client, sftp.Open(top + b"/unreadable", OpenFlag.READ, NO_ATTRIBUTES)),
            "write": await found(client, sftp.Open(top + b"/unreadable", OpenFlag.WRITE, NO_ATTRIBUTES)),
            "truncate": await found(client, sftp.Setstat(top + b"/unreadable", Attributes(size=0))),
            "create": await found(client, sftp.Open(top + b"/locked/new", EXCLUSIVELY, NO_ATTRIBUTES)),
            "mkdir": await found(client, sftp.Mkdir(top + b"/locked/new", NO_ATTRIBUTES)),
            "symlink": await found(client, sftp.Symlink(b"t", top + b"/locked/new")),
            "link": await found(client, sftp.Hardlink(top + b"/locked/file", top + b"/locked/new")),
            "remove": await found(client, sftp.Remove(top + b"/locked/file")),
            "rename": await found(client, sftp.PosixRename(top + b"/locked/file", top + b"/new")),
        } == dict.fromkeys(
            ["read", "write", "truncate", "create", "mkdir", "symlink", "link", "remove", "rename"], "EACCES"
        )
        assert {
            "give away": await found(client, sftp.Setstat(top + b"/unreadable", chown)),
            "give a link away": await found(client, sftp.Lsetstat(top + b"/unreadable", chown)),
            "chmod of root's": await found(client, sftp.Setstat(b"/", Attributes(permissions=0o777))),
            "times of root's": await found(client, sftp.Setstat(b"/", Attributes(atime=1, mtime=1))),
        } == dict.fromkeys(["give away", "give a link away", "chmod of root's", "times of root's"], "EPERM")
        await client.call(sftp.Setstat(top + b"/locked", Attributes(permissions=0)))
        assert await found(client, sftp.Lstat(top + b"/locked/file")) == "EACCES"
        assert await found(client, sftp.Opendir(top + b"/locked")) == "EACCES"
        await client.call(sftp.Setstat(top + b"/locked", Attributes(permissions=0o700)))


# -- file systems of the server's own ---------------------------------------------------------------------------------


@in_trio
async def test_a_read_only_file_system(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path / "ro")
    (tmp_path / "ro").mkdir()
    script = """
        mount -t tmpfs -o size=1m none ro
        mkdir ro/dir ro/full
        touch ro/file ro/full/file
        ln -s file ro/link
        mount -o remount,bind,ro ro
    """
    async with real_channel(in_namespace(tmp_path, script)) as (client, _):
        requests: dict[str, Request] = {
            "write": sftp.Open(top + b"/file", OpenFlag.WRITE, NO_ATTRIBUTES),
            "create": sftp.Open(top + b"/new", EXCLUSIVELY, NO_ATTRIBUTES),
            "mkdir": sftp.Mkdir(top + b"/new", NO_ATTRIBUTES),
            "symlink": sftp.Symlink(b"t", top + b"/new"),
            "link": sftp.Hardlink(top + b"/file", top + b"/new"),
            "remove": sftp.Remove(top + b"/file"),
            "rmdir": sftp.Rmdir(top + b"/dir"),
            "rmdir a full one": sftp.Rmdir(top + b"/full"),
            "rename": sftp.PosixRename(top + b"/file", top + b"/new"),
            "rename over": sftp.PosixRename(top + b"/file", top + b"/full/file"),
            "chmod": sftp.Setstat(top + b"/file", Attributes(permissions=0o600)),
            "truncate": sftp.Setstat(top + b"/file", Attributes(size=0)),
            "times of a link": sftp.Lsetstat(top + b"/link", Attributes(atime=1, mtime=1)),
        }
        answers = {name: await found(client, request) for name, request in requests.items()}
        assert answers == dict.fromkeys(requests, "EROFS")
        assert await found(client, sftp.Mkdir(top + b"/dir", NO_ATTRIBUTES)) == "EEXIST"
        assert await found(client, sftp.Open(top + b"/file", EXCLUSIVELY, NO_ATTRIBUTES)) == "EEXIST"
        assert await found(client, sftp.Remove(top + b"/none")) == "EROFS"  # as unlink(2) itself
        assert await found(client, sftp.Open(top + b"/none", OpenFlag.WRITE, NO_ATTRIBUTES)) == "ENOENT"


@in_trio
async def test_a_full_file_system(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path / "small")
    (tmp_path / "small").mkdir()
    async with real_channel(in_namespace(tmp_path, "mount -t tmpfs -o size=64k,nr_inodes=4 none small")) as (client, _):
        handle = await client.open(top + b"/file", EXCLUSIVELY)
        free = await client.fstatvfs(handle)
        space_bytes = free.bavail * free.frsize
        assert 0 < space_bytes <= 65536
        with pytest.raises(StatusError) as caught:
            await client.call(sftp.Write(handle, 0, bytes(space_bytes + 1)))
        assert errno.errorcode[await diagnose_write(client, handle, space_bytes + 1, caught.value)] == "ENOSPC"
        await client.call(sftp.Fsetstat(handle, Attributes(size=0)))
        for name in (b"/b", b"/c"):
            await client.call(sftp.Mkdir(top + name, NO_ATTRIBUTES))
        for request in (
            sftp.Mkdir(top + b"/d", NO_ATTRIBUTES),
            sftp.Open(top + b"/d", EXCLUSIVELY, NO_ATTRIBUTES),
            sftp.Symlink(b"t", top + b"/d"),
        ):
            assert await found(client, request) == "ENOSPC"
        assert await found(client, sftp.Mkdir(top + b"/b", NO_ATTRIBUTES)) == "EEXIST"


@in_trio
async def test_several_file_systems(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path)
    for name in ("one", "two", "ro", "bare"):
        (tmp_path / name).mkdir()
    script = """
        mount -t tmpfs -o size=1m none bare
        for name in one two ro; do mount -t tmpfs -o size=1m none $name; mkdir $name/dir; touch $name/file; done
        mount -o remount,bind,ro ro
    """
    async with real_channel(in_namespace(tmp_path, script)) as (client, _):
        for old, new in ((b"/one/file", b"/two/new"), (b"/one/file", b"/two/file"), (b"/one/dir", b"/two/dir")):
            assert await found(client, sftp.PosixRename(top + old, top + new)) == "EXDEV"
        assert await found(client, sftp.PosixRename(top + b"/one/file", top + b"/ro/new")) == "EXDEV"
        assert await found(client, sftp.PosixRename(top + b"/ro/file", top + b"/one/new")) == "EXDEV"
        assert await found(client, sftp.Hardlink(top + b"/one/file", top + b"/two/new")) == "EXDEV"
        assert await found(client, sftp.Hardlink(top + b"/one/file", top + b"/two/file")) == "EEXIST"
        assert await found(client, sftp.Rmdir(top + b"/bare")) == "EBUSY"


@in_trio
async def test_a_device_that_is_always_full() -> None:
    async with real_channel() as (client, _):
        handle = await client.open(b"/dev/full", OpenFlag.WRITE)
        with pytest.raises(StatusError) as caught:
            await client.call(sftp.Write(handle, 0, b"x"))
        # The file system it is on has room: what the server says by itself is all there is to tell.
        assert errno.errorcode[await diagnose_write(client, handle, 1, caught.value)] in ("EIO", "ENOSPC")


@in_trio
async def test_what_names_a_handle_is_told_by_its_status(tmp_path: Path) -> None:
    async with real_channel() as (client, _):
        handle = await client.open(os.fsencode(tmp_path / "file"), OpenFlag.WRITE | OpenFlag.CREAT)
        assert await found(client, sftp.Read(handle, 0, 10)) in ("EIO", "ENOENT")
        assert await found(client, sftp.Fstat(b"no such handle")) == "EIO"
