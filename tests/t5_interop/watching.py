"""Which files of a directory tree were opened or read: the kernel's own word (inotify), on the server's side.

For the tests only.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from types import TracebackType

_OPENED_OR_READ = 0x00000001 | 0x00000020
_IS_DIRECTORY = 0x40000000
_NONBLOCK = 0o4000
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Within it, opens and reads of regular files directly in the watched directories are recorded."""

    def __init__(self, *directories: Path) -> None:
        self._directories = directories
        self._names: dict[int, Path] = {}

    def __enter__(self) -> Watch:
        self._descriptor = _libc.inotify_init1(_NONBLOCK)
        for directory in self._directories:
            watch = _libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _OPENED_OR_READ)
            if watch < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(directory))
            self._names[watch] = directory
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def seen(self) -> set[Path]:
        """What was opened or read so far."""
        found: set[Path] = set()
        while True:
            try:
                data = os.read(self._descriptor, 65536)
            except BlockingIOError:
                return found
            while data:
                watch, mask, _, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0")
                data = data[16 + length :]
                if name and not mask & _IS_DIRECTORY:
                    found.add(self._names[watch] / os.fsdecode(name))
