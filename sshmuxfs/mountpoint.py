"""The place where a mount is to appear: what may be wrong with it, each said by name.

The rule of this file: nothing below the mount point is opened or waited for; a dead mount of ours that is still in the
way is taken away, anybody else's is left and named. It loads fast: the place is looked at before anything else happens.

Imported by `sshmuxfs.cli` and `sshmuxfs.mount`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mux.errors import ExitCode, SharingError, printable
from sshmuxfs.sftp.protocol import OpenFlag, StatusError

if TYPE_CHECKING:
    from sshmuxfs.sftp.client import Client

FS_TYPE = "fuse.sshmuxfs"
_UNMOUNT_S = 10.0
# Four times fewer requests than with the usual 128. With 1024, the most that FUSE passes on in one piece, long reads
# are no faster, and each page of a mapping that is read at random brings as much.
READ_AHEAD_KB = 512
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class BadMountPoint(SharingError):
    """The mount point cannot be used; the message says why."""

    usual_exit_code = ExitCode.BAD_MOUNT_POINT


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of /proc/self/mountinfo (proc(5)): device as "major:minor", where, type, source."""

    device: str
    place: str
    fs_type: str
    source: str


def mounted_at(place: str) -> Mounted | None:
    """Return what is mounted at `place`, the topmost if several, without touching it."""
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            where = _unescaped(fields.split()[4])
            if where == place:
                fs_type, source = rest.split()[:2]
                found = Mounted(fields.split()[2], where, fs_type, _unescaped(source))
    return found


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def located(given: str) -> str:
    """Where a mount point lies, without asking what is mounted there: its last component may still be a link."""
    parent, name = os.path.split(os.path.abspath(given))
    return os.path.join(os.path.realpath(parent), name)


def prepare(given: str, *, allow_nonempty: bool) -> str:
    """Return the absolute path of a mount point that can be used. Raises BadMountPoint."""
    shown = printable(given)
    place = located(given)
    try:
        _remove_dead(place)
        place = os.path.realpath(place)
        found = os.stat(place)
    except FileNotFoundError:
        raise BadMountPoint(f"the mount point {shown} does not exist; make it with: mkdir -p {shown}") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise BadMountPoint(
                f"the mount point {shown} is a dead mount of something else; take it away with: fusermount3 -uz {shown}"
            ) from None
        raise BadMountPoint(f"the mount point {shown} cannot be used: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise BadMountPoint(f"the mount point {shown} is not a directory")
    there = mounted_at(place)
    if there is not None:
        raise BadMountPoint(
            f"the mount point {shown} is busy: {printable(there.source)} ({there.fs_type}) is mounted there"
        )
    try:
        empty = not os.listdir(place)
    except PermissionError:
        raise BadMountPoint(f"the mount point {shown} may not be read by you") from None
    if not empty and not allow_nonempty:
        raise BadMountPoint(
            f"the mount point {shown} is not empty; what is in it would be hidden (-o nonempty to do it anyway)"
        )
    return place


def _remove_dead(place: str) -> None:
    """If a mount of ours at `place` has lost its process, take it away."""
    try:
        os.stat(place)
    except OSError as error:
        there = mounted_at(place)
        if error.errno != errno.ENOTCONN or there is None or there.fs_type != FS_TYPE:
            raise
        unmount = shutil.which("fusermount3") or "fusermount3"
        subprocess.run([unmount, "-u", "-z", "--", place], check=False, timeout=_UNMOUNT_S, stdin=subprocess.DEVNULL)


def widen_read_ahead(place: str) -> None:
    """Let the kernel read ahead READ_AHEAD_KB on our mount, where we may say so (root may); never less than it does."""
    try:
        there = mounted_at(place)
        if there is None:
            return
        setting = Path(f"/sys/class/bdi/{there.device}/read_ahead_kb")
        if int(setting.read_text()) < READ_AHEAD_KB:
            setting.write_text(str(READ_AHEAD_KB))
    except (OSError, ValueError):
        pass  # an ordinary user, or a container's read-only /sys: 128 KiB at a time is slower, not wrong


def refuse_inside(place: str, needed: Mapping[str, str | None]) -> None:
    """Refuse a mount point that would hide what the mount itself lives on. Raises BadMountPoint."""
    for what, path in needed.items():
        if path is not None and os.path.realpath(path).startswith(place + "/"):
            raise BadMountPoint(
                f"the mount point {printable(place)} is inside itself: {what} ({printable(path)}) lies below it"
            )


async def refuse_itself(client: Client, base: bytes, place: str) -> None:
    """Refuse to show a directory of this machine below itself. Raises BadMountPoint.

    The server would then wait for us while we wait for the server.
    """
    local = os.fsencode(place)
    below = base if base.endswith(b"/") else base + b"/"
    if local != base and not local.startswith(below):
        return
    try:
        there = await client.stat(local)
        here = os.stat(place)
        if (there.uid, there.gid, there.permissions) != (here.st_uid, here.st_gid, here.st_mode):
            return
        same = Path(_BOOT_ID).read_bytes() == await _read_file(client, os.fsencode(_BOOT_ID))  # noqa: ASYNC240 - /proc
    except (StatusError, OSError):
        return
    if same:
        raise BadMountPoint(
            f"the mount point {printable(place)} is inside itself: the server is this machine, "
            f"and {printable(base)} on it holds the mount point"
        )


async def _read_file(client: Client, path: bytes) -> bytes:
    """The first kilobyte of a remote file."""
    handle = await client.open(path, OpenFlag.READ)
    try:
        buffer = bytearray(1024)
        (pending,) = client.submit_reads(handle, [(0, memoryview(buffer))])
        return bytes(buffer[: await client.wait(pending)])
    finally:
        client.close_nowait(handle)
