"""The system calls that the standard library does not offer: utimensat with NOW and OMIT, renameat2, and a directory
stream with its offsets.

For the tests only.
"""

from __future__ import annotations

import ctypes
import os
from types import TracebackType
from typing import NamedTuple

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


_libc.utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_Timespec * 2), ctypes.c_int)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.opendir.argtypes = (ctypes.c_char_p,)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.argtypes = (ctypes.c_void_p,)
_libc.readdir.restype = ctypes.c_void_p
_libc.closedir.argtypes = (ctypes.c_void_p,)
_libc.rewinddir.argtypes = (ctypes.c_void_p,)
_libc.telldir.argtypes = (ctypes.c_void_p,)
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


def _raise(path: str | bytes | os.PathLike[str]) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), os.fspath(path))


def utimensat(
    path: str | os.PathLike[str], atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True
) -> None:
    """Set times as (seconds, nanoseconds); UTIME_NOW and UTIME_OMIT stand in the nanoseconds. Raises OSError."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    flags = 0 if follow else _AT_SYMLINK_NOFOLLOW
    if _libc.utimensat(_AT_FDCWD, os.fsencode(path), ctypes.byref(times), flags) != 0:
        _raise(path)


def renameat2(old: str | os.PathLike[str], new: str | os.PathLike[str], flags: int) -> None:
    """Rename with flags. Raises OSError."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) != 0:
        _raise(old)


class DirectoryEntry(NamedTuple):
    """One entry of a directory stream."""

    name: bytes
    inode: int
    kind: int


class DirectoryStream:
    """opendir and its kin, entry by entry; offsets are opaque numbers of telldir."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        if not self._stream:
            _raise(path)

    def __enter__(self) -> DirectoryStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _libc.closedir(self._stream)

    def read(self) -> DirectoryEntry | None:
        """The next entry, "." and ".." among them, or None at the end. Raises OSError."""
        ctypes.set_errno(0)
        entry = _libc.readdir(self._stream)
        if not entry:
            if ctypes.get_errno():
                _raise("readdir")
            return None
        inode = ctypes.c_uint64.from_address(entry).value
        kind = ctypes.c_uint8.from_address(entry + 18).value
        return DirectoryEntry(ctypes.string_at(entry + 19), inode, kind)

    def rest(self) -> list[bytes]:
        """The names up to the end, without "." and ".."."""
        names = []
        while (entry := self.read()) is not None:
            if entry.name not in (b".", b".."):
                names.append(entry.name)
        return names

    def tell(self) -> int:
        """Where the next entry is."""
        return int(_libc.telldir(self._stream))

    def seek(self, place: int) -> None:
        """Go back to a place that tell gave."""
        _libc.seekdir(self._stream, place)

    def rewind(self) -> None:
        """Go to the beginning and see the directory as it is now."""
        _libc.rewinddir(self._stream)
