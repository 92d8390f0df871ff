"""Servers that see something special: a full disk, a read-only one, several file systems, no privileges.

A world is a shell script that prepares the directory in a mount namespace of its own. For a mount, the sftp-server is
started through it (`-o sftp_server=`), so the server lives in that world and nobody else; for a plain directory, the
test's body runs in a child that enters the same world. For the tests only.
"""

from __future__ import annotations

import ctypes
import enum
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_REC_PRIVATE = 0x4000 | 0x40000


@dataclass(frozen=True, slots=True)
class World:
    """What is done before the server starts.

    `script` gets the directory as $1. If it mounts something, it runs as root (of a user namespace, if need be); with
    `unprivileged` what follows runs as nobody, or as ourselves unless we are root.
    """

    script: str = ":"
    unprivileged: bool = False

    @property
    def needs_namespace(self) -> bool:
        """Whether there is something to mount."""
        return "mount " in self.script and not (self.unprivileged and os.geteuid() != 0)


class Worlds(enum.Enum):
    """All worlds there are."""

    ORDINARY = World()
    UNPRIVILEGED = World(
        # As root on a file system of its own: pytest's directories are closed to nobody.
        'test "$(id -u)" != 0 || mount -t tmpfs -o mode=1777 none "$1"; cd "$1"; if test ! -e theirs; then '
        # Owned by another, if we are root: may be read, not written.
        "mkdir theirs; echo text >theirs/file; ln -s file theirs/link; chmod 0444 theirs/file; chmod 0555 theirs; "
        # A directory like /tmp: everybody may write, nobody remove what is another's.
        "mkdir sticky; chmod 1777 sticky; echo text >sticky/file; mkdir sticky/dir; fi",
        unprivileged=True,
    )
    READ_ONLY = World(
        'mkdir -p "$1/dir"; echo text >"$1/file"; ln -sf file "$1/link"; '
        'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"'
    )
    FULL = World('mount -t tmpfs -o size=1m none "$1"')
    FEW_INODES = World('mount -t tmpfs -o size=1m,nr_inodes=8 none "$1"')
    TWO_FILE_SYSTEMS = World(
        'mkdir -p "$1/one" "$1/two"; mount -t tmpfs -o size=8m none "$1/one"; mount -t tmpfs -o size=8m none "$1/two"'
    )


# A namespace that keeps a copy of a mount keeps the process behind it from ending: none is taken along.
_LEAVE_MOUNTS_BEHIND = (
    "for path in $(sed -n 's/^[0-9]* [0-9]* [^ ]* [^ ]* \\([^ ]*\\) .* - fuse.*/\\1/p' /proc/self/mountinfo); "
    'do umount -l "$path" || :; done; '
)


def server_command(world: World, directory: Path, sftp_server: str, script: Path) -> str:
    """Write the program that starts sftp-server in that world, and return its path."""
    become = ""
    if world.unprivileged and os.geteuid() == 0:
        become = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "
    namespace = behind = ""
    if world.needs_namespace:
        namespace = f"unshare {'-m' if os.geteuid() == 0 else '-rm'} --propagation slave "
        behind = _LEAVE_MOUNTS_BEHIND
    commands = shlex.quote(f"{behind}{world.script}; exec {become}{sftp_server}")
    script.write_text(f"#!/bin/sh\nexec {namespace}sh -e -c {commands} sh {shlex.quote(str(directory))}\n")
    script.chmod(0o755)
    return str(script)


def enter(world: World, directory: Path) -> None:
    """Enter the world, in a child: mount namespace, script, user."""
    if world.needs_namespace:
        _enter_mount_namespace()
    subprocess.run(["sh", "-e", "-c", world.script, "sh", str(directory)], check=True)
    if world.unprivileged and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _enter_mount_namespace() -> None:
    """As unshare(1) does it: a mount namespace, private, and unless we are root a user namespace in which we are."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWNS if uid == 0 else _CLONE_NEWNS | _CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    if libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "making / private")
