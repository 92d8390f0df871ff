"""From what went wrong to an errno: the one boundary between the file system and the kernel.

The rule of this file: nothing but FUSEError gets past `boundary`; pyfuse3 ends the whole mount on anything else. An
unexpected exception is EIO to the caller and a traceback in the log.

Imported by `sshmuxfs.operations` and `sshmuxfs.diagnosis`.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pyfuse3

from mux.errors import SharingError
from sshmuxfs.sftp.client import ChannelLost, RequestTimeout
from sshmuxfs.sftp.exchange import ProtocolViolation
from sshmuxfs.sftp.protocol import DecodeError, Status, StatusError
from sshmuxfs.tree.attributes import BadAttributes
from sshmuxfs.tree.identity import Unmappable
from sshmuxfs.tree.inodes import Gone
from sshmuxfs.turns import passing_on

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# What a status means when nothing more is known; OpenSSH's own mapping, read backwards (sftp-server.c). FAILURE stands
# for two dozen errnos and BAD_MESSAGE for two: `sshmuxfs.diagnosis` tells them apart.
ERRNO_OF_STATUS = {
    Status.EOF: errno.EIO,  # where no end of file can be: an end of a READ or a READDIR never comes this far
    Status.NO_SUCH_FILE: errno.ENOENT,
    Status.PERMISSION_DENIED: errno.EACCES,
    Status.FAILURE: errno.EIO,
    Status.BAD_MESSAGE: errno.EINVAL,
    Status.NO_CONNECTION: errno.ENOTCONN,
    Status.CONNECTION_LOST: errno.EIO,
    Status.OP_UNSUPPORTED: errno.EOPNOTSUPP,
}


def errno_of(error: Exception) -> int | None:
    """The errno that an expected exception stands for; None for one that is a bug."""
    match error:
        case pyfuse3.FUSEError():
            return error.errno
        case StatusError():
            return ERRNO_OF_STATUS.get(Status(error.code), errno.EIO) if error.code <= 8 else errno.EIO
        case Gone():
            return errno.ESTALE  # the kernel then looks the name up again
        case ChannelLost() | SharingError():
            return errno.ENOTCONN
        case Unmappable():
            return errno.EINVAL
        case OSError():
            return error.errno or errno.EIO
        case RequestTimeout() | ProtocolViolation() | DecodeError() | BadAttributes():
            return errno.EIO
    return None


def boundary(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let a FUSE method raise FUSEError and nothing else."""

    @functools.wraps(method)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            number = errno_of(error)
            if number is None:
                log.exception("%s failed in a way it should not", method.__name__)
                number = errno.EIO
            else:
                log.debug("%s: %s", method.__name__, error)
            raise pyfuse3.FUSEError(number) from error

    return passing_on(guarded)
