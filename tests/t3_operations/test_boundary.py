"""Nothing but FUSEError reaches pyfuse3; and what is absent is absent on purpose."""

from __future__ import annotations

import errno
import inspect
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import pytest
import trio
from pyfuse3 import FUSEError

from mux.errors import ConnectionLost, ExitCode, JoinError
from sshmuxfs import operations
from sshmuxfs.errors import boundary, errno_of
from sshmuxfs.io.writebehind import WriteBehind
from sshmuxfs.operations import Operations
from sshmuxfs.sftp.client import ChannelLost, RequestTimeout
from sshmuxfs.sftp.exchange import ProtocolViolation
from sshmuxfs.sftp.protocol import DecodeError, Status, StatusError
from sshmuxfs.tree.attributes import BadAttributes
from sshmuxfs.tree.identity import Unmappable
from sshmuxfs.tree.inodes import ROOT_NUMBER, Gone
from tests.support.sftp_process import in_trio
from tests.t3_operations.world import CTX, refused, world

EXPECTED: list[tuple[Exception, int]] = [
    (FUSEError(errno.EXDEV), errno.EXDEV),
    (StatusError(Status.NO_SUCH_FILE), errno.ENOENT),
    (StatusError(Status.PERMISSION_DENIED), errno.EACCES),
    (StatusError(Status.FAILURE), errno.EIO),
    (StatusError(Status.BAD_MESSAGE), errno.EINVAL),
    (StatusError(Status.OP_UNSUPPORTED), errno.EOPNOTSUPP),
    (StatusError(Status.EOF), errno.EIO),
    (StatusError(Status.NO_CONNECTION), errno.ENOTCONN),
    (StatusError(Status.CONNECTION_LOST), errno.EIO),
    (StatusError(9), errno.EIO),
    (StatusError(0xFFFFFFFF), errno.EIO),
    (Gone("gone"), errno.ESTALE),
    (ChannelLost("lost"), errno.ENOTCONN),
    (ConnectionLost("lost"), errno.ENOTCONN),
    (JoinError("nothing there", ExitCode.NOTHING_TO_JOIN), errno.ENOTCONN),
    (RequestTimeout("late"), errno.EIO),
    (ProtocolViolation("bad"), errno.EIO),
    (DecodeError("bad"), errno.EIO),
    (BadAttributes("bad"), errno.EIO),
    (Unmappable("no"), errno.EINVAL),
    (OSError(errno.ENOTEMPTY, "full"), errno.ENOTEMPTY),
    (OSError("without a number"), errno.EIO),
]
BUGS: list[Exception] = [
    *(KeyError(7), AssertionError(), AttributeError("x"), ZeroDivisionError(), RecursionError(), MemoryError()),
    *(StopIteration(), StopAsyncIteration(), ExceptionGroup("several", [KeyError(1)]), UnicodeError("no")),
]


def name_of(value: object) -> str:
    return repr(value) if isinstance(value, Exception) else ""


@pytest.mark.parametrize(("error", "number"), EXPECTED, ids=name_of)
def test_an_expected_error_has_an_errno(error: Exception, number: int) -> None:
    assert errno_of(error) == number


@pytest.mark.parametrize("error", BUGS, ids=name_of)
def test_any_other_is_a_bug(error: Exception) -> None:
    assert errno_of(error) is None


def raising(error: BaseException) -> Callable[[], object]:
    @boundary
    async def method() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    return method


@pytest.mark.parametrize(("error", "number"), EXPECTED, ids=name_of)
@in_trio
async def test_the_boundary_lets_nothing_else_out(error: Exception, number: int) -> None:
    with pytest.raises(FUSEError) as caught:
        await raising(error)()  # type: ignore[misc]
    assert caught.value.errno == number


@pytest.mark.parametrize("error", BUGS, ids=name_of)
@in_trio
async def test_a_bug_is_an_io_error_with_a_traceback_in_the_log(
    error: Exception, expect_log: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    expect_log("method failed in a way it should not")
    with pytest.raises(FUSEError) as caught:
        await raising(error)()  # type: ignore[misc]
    assert caught.value.errno == errno.EIO
    (record,) = caplog.records
    assert record.exc_info


@in_trio
async def test_a_cancellation_passes() -> None:
    @boundary
    async def method() -> None:
        await trio.sleep_forever()

    with trio.move_on_after(0) as scope:
        await method()
    assert scope.cancelled_caught


@in_trio
async def test_the_answer_and_the_arguments_pass() -> None:
    @boundary
    async def method(number: int, *, text: str) -> str:
        await trio.lowlevel.checkpoint()
        return text * number

    assert await method(2, text="x") == "xx"
    assert method.__name__ == "method"


@in_trio
async def test_a_handle_that_is_none_is_no_end_of_the_mount(tmp_path: Path, expect_log: Callable[[str], None]) -> None:
    expect_log("failed in a way it should not")
    async with world(tmp_path) as w:
        assert await refused(w.operations.read(99, 0, 1)) == "EIO"
        assert await refused(w.operations.releasedir(99)) == "EIO"
        await w.operations.forget([(99, 1)])


@in_trio
async def test_a_bug_in_writing_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    expect_log("write failed in a way it should not")
    async with world(tmp_path) as w:
        handle, _ = await w.create("file")

        async def broken(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patched:
            patched.setattr(WriteBehind, "write", broken)
            assert await refused(w.operations.write(handle, 0, b"x")) == "EIO"
        await w.operations.write(handle, 0, b"x")
        await w.operations.flush(handle)
        await w.operations.release(handle)


# -- what is there and what is not ------------------------------------------------------------------------------------

REQUESTS = {name for name, member in vars(pyfuse3.Operations).items() if inspect.isfunction(member)}
IMPLEMENTED = {
    *("lookup", "forget", "getattr", "setattr", "readlink", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename"),
    *("link", "open", "read", "write", "flush", "release", "fsync", "opendir", "readdir", "releasedir", "fsyncdir"),
    *("statfs", "access", "create"),
}
# Not requests of the kernel: what pyfuse3 calls when it starts, and when it is asked for a picture of all threads.
OWN_HOOKS = {"init", "stacktrace"}
ABSENT = {"getxattr": "ENOSYS", "setxattr": "ENOSYS", "listxattr": "ENOSYS", "removexattr": "ENOSYS", "poll": "ENOSYS"}


def test_every_request_is_served_or_absent_on_purpose() -> None:
    served = {name for name in REQUESTS if name in vars(Operations)}
    assert served - OWN_HOOKS == IMPLEMENTED
    assert REQUESTS - served - OWN_HOOKS == set(ABSENT)


def test_the_table_of_absences_names_them_all_with_their_errno() -> None:
    table = re.findall(r"^\|\s*(.*?)\s*\|\s*(E[A-Z]+|)\s*\|", operations.__doc__ or "", re.MULTILINE)
    named = {request: number for request, number in table if number}
    assert named == {
        "get-, set-, list-, removexattr": "ENOSYS",
        "mknod, not of a regular file": "EPERM",
        "rename, EXCHANGE or WHITEOUT": "EINVAL",
        "poll": "ENOSYS",
    }


@in_trio
async def test_what_is_absent_is_refused_as_the_table_says(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        calls = {
            "getxattr": w.operations.getxattr(ROOT_NUMBER, b"user.x", CTX),
            "setxattr": w.operations.setxattr(ROOT_NUMBER, b"user.x", b"1", CTX),
            "listxattr": w.operations.listxattr(ROOT_NUMBER, CTX),
            "removexattr": w.operations.removexattr(ROOT_NUMBER, b"user.x", CTX),
        }
        assert {name: await refused(call) for name, call in calls.items()} == dict.fromkeys(calls, "ENOSYS")
        assert await refused(w.operations.mknod(ROOT_NUMBER, b"x", stat.S_IFIFO, 0, CTX)) == "EPERM"


def test_every_request_but_forget_goes_through_the_boundary() -> None:
    """forget cannot fail: it has no answer, and raises nothing."""
    guarded = {name for name in IMPLEMENTED if hasattr(vars(Operations)[name], "__wrapped__")}
    assert IMPLEMENTED - guarded == {"forget"}
