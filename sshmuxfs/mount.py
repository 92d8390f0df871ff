"""A mount from birth to death: connection joined, sftp ready, mounted, told, served, unmounted.

The rules of this file:
- Connect first, mount after: nothing is mounted until every question that can fail has been answered.
- This process never touches its own mount: a request to ourselves could not be answered while we wait for it. Its
  working directory is `/`, everything it needs is imported and opened before the mount exists.

Imported by `sshmuxfs.cli`.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic

import pyfuse3
import trio

from mux import signals
from mux.downstream.join import join
from mux.downstream.openssh import SessionStream
from mux.downstream.start import Leash
from mux.errors import ExitCode, SharingError, printable
from mux.heap import keep_freed_memory
from mux.rendezvous.target import ignored_options
from mux.scheduling import ask_for_short_turns
from sshmuxfs import mountpoint, pages, turns
from sshmuxfs.approach import Approach
from sshmuxfs.names import Names
from sshmuxfs.operations import Manners, Operations
from sshmuxfs.options import Options
from sshmuxfs.session import Link
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import ChannelLost, Client, RequestTimeout, describe
from sshmuxfs.sftp.protocol import Attributes, DecodeError, StatusError
from sshmuxfs.tree.attributes import View
from sshmuxfs.tree.cache import NEGATIVE_S, CacheTimes
from sshmuxfs.tree.identity import IdentityMap, identity_map
from sshmuxfs.tree.inodes import Tree
from sshmuxfs.tree.symlinks import SymlinkPolicy

log = logging.getLogger(__name__)

# Requests handled at a time; each may hold one write of up to 1 MiB twice (in libfuse's buffer and as bytes), which
# bounds the memory that writers can make us use. The kernel keeps the others waiting.
MAX_REQUESTS = 40
# Tasks that wait for the next request; fewer would be ended and started anew all the time.
SPARE_TASKS = 8
# How long an orderly end waits for what was written and not yet acknowledged.
SETTLE_S = 10.0
# How much of that the kernel may take to hand over what it still holds; the rest is left to the server.
HAND_OVER_S = 5.0
# Between two looks whether the kernel has more: long enough for a handler whose write was acknowledged to say so.
_LOOK_S = 0.01


class MountError(SharingError):
    """The mount could not be made, or did not end well; the exit code says of what kind the reason is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be mounted where. `announce` is called once the mount works; `warn` takes lines for the user."""

    options: Options
    place: str
    approach: Approach
    announce: Callable[[], None]
    warn: Callable[[str], None]


def run(
    options: Options, place: str, approach: Approach, announce: Callable[[], None], warn: Callable[[str], None]
) -> None:
    """Mount at `place`, which was looked at, and serve until unmounted; for `announce` and `warn` see `Plan`.

    Raises SharingError for whatever stood in the way. In the foreground it returns when a connection that was started
    there has ended as well: others may still ride on it. One more signal ends that wait, as KeyboardInterrupt.
    """
    os.chdir("/")
    leashes: list[Leash] = []
    try:
        with signals.noted() as unheeded:
            refusal = trio.run(_live, Plan(options, place, approach, announce, warn), leashes, unheeded)
    finally:
        for leash in leashes:
            leash.let_off()
            if unheeded:  # while the mount ended: the wait is over before it begins
                raise KeyboardInterrupt
            leash.wait()
    if refusal is not None:
        raise refusal


async def _live(plan: Plan, leashes: list[Leash], unheeded: list[signal.Signals]) -> SharingError | None:
    """Run until the mount is gone; return what stood in the way of it (a nursery would wrap an exception).

    `leashes` gets that of an upstream in the foreground; `unheeded` holds the signals that came before we receive them,
    and in the end those that were received and ended nothing.
    """
    refusal: SharingError | None = None
    with trio.open_signal_receiver(*signals.heeded()) as received:
        if unheeded:
            return MountError("interrupted", ExitCode.INTERRUPTED)
        async with trio.open_nursery() as nursery:
            mounted: list[Operations] = []
            nursery.start_soon(_end_on_signal, received, mounted, nursery.cancel_scope, _Flusher(plan.place))
            try:
                await _serve(plan, nursery, mounted, leashes)
            except trio.Cancelled:
                refusal = MountError("interrupted", ExitCode.INTERRUPTED)
                raise
            except SharingError as error:
                refusal = error
            except (ChannelLost, RequestTimeout, StatusError, DecodeError) as error:
                refusal = MountError(f"{printable(plan.approach.target.typed)}: {error}", ExitCode.PROTOCOL)
            finally:
                nursery.cancel_scope.cancel()
    return refusal


async def _end_on_signal(
    received: AsyncIterator[int], mounted: list[Operations], everything: trio.CancelScope, flusher: _Flusher
) -> None:
    """End on the first; what comes after it is not for the mount (see `run`)."""
    number = await anext(received)
    log.info("ending on %s", signal.Signals(number).name)
    if not mounted:
        everything.cancel()
        return
    until_s = trio.current_time() + SETTLE_S
    if mounted[0].is_writable:
        with trio.move_on_after(HAND_OVER_S):
            await flusher.run(mounted[0])
    await mounted[0].settle(until_s - trio.current_time())
    pyfuse3.terminate()


class _Flusher:
    """Has the kernel hand over what was changed in mappings of our files and is not written back.

    It does that for whoever asks it to sync the file system. A process of its own asks, while we still serve: this one
    would wait for itself. Where the program lies is found out before there is a mount, in which it could lie.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._program = shutil.which("sync")

    async def run(self, operations: Operations) -> None:
        """Return when the kernel has nothing more and all of it was answered. For how long to wait, the caller says."""
        if self._program is None:
            return
        try:
            await self._ask(self._program)
        except OSError as error:
            log.warning("the kernel was not asked for what mappings have changed: %s", error)
            return
        # The kernel may call it done when all is in its queue, of which it shows us only a part at a time.
        device = select.poll()
        for descriptor in _devices():
            device.register(descriptor, select.POLLIN)
        while True:
            await operations.settled()
            await trio.sleep(_LOOK_S)
            if not operations.is_writing and not device.poll(0):
                return

    async def _ask(self, program: str) -> None:
        asking = await trio.lowlevel.open_process(
            [program, "-f", self._place],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # it is not the terminal's to interrupt
        )
        try:
            await asking.wait()
        finally:
            if asking.returncode is None:
                asking.kill()


async def _serve(plan: Plan, nursery: trio.Nursery, mounted: list[Operations], leashes: list[Leash]) -> None:
    """Join, mount, serve, unmount. `mounted` holds the operations while there is a mount."""
    options, approach = plan.options, plan.approach
    joined = await join(approach.target, approach.wish, approach.terms, plan.warn, approach.running, keep=True)
    if joined.leash is not None:
        leashes.append(joined.leash)
    mountpoint.refuse_inside(plan.place, {"the control path": joined.path})
    unheard = ignored_options(options.ssh)
    if unheard and not joined.started:
        where = printable(joined.path)
        plan.warn(f"{', '.join(unheard)}: no effect on a connection that is already open (joined at {where})")
    if options.allow_other and not options.default_permissions:
        plan.warn("allow_other without default_permissions: every user of this machine acts as the login on the server")
    for line in options.warnings:
        log.debug(line)
    streams: list[SessionStream] = []

    async def open_stream() -> SessionStream:
        stream = await joined.open_sftp(options.sftp_server)
        streams[:] = [stream]
        return stream

    link = Link(
        open_stream,
        lambda stream: Client(
            stream, deadline_s=options.deadline_s, max_read_bytes=options.max_read, max_write_bytes=options.max_write
        ),
        nursery,
        server=options.sftp_server,
        deadline_s=options.deadline_s,
    )
    try:
        client = await link.start()
        operations = await _prepare(options, link, client, plan.place)
        _mount(operations, options, plan.place)
        try:
            ask_for_short_turns()
            keep_freed_memory()
            link.watch(*_devices())
            # It delivers that much in a millisecond or two: the kernel may ask for it at once.
            if client.pace.near:
                operations.on_ready = partial(mountpoint.widen_read_ahead, plan.place)
            mounted.append(operations)
            plan.announce()
            await pyfuse3.main(min_tasks=SPARE_TASKS, max_tasks=MAX_REQUESTS)
            await operations.settle(SETTLE_S)
        finally:
            lost = _tell_losses(plan, operations)
            with signals.held_back():  # who is not root is unmounted by a program, which Ctrl-C would reach
                pyfuse3.close(unmount=True)
        if lost:
            files = "one file" if lost == 1 else f"{lost} files"
            raise MountError(f"unmounted; what was written last to {files} may be lost", ExitCode.LOST_WRITES)
    finally:
        link.close()
        # Whoever holds the connection in front waits for its riders, of whom we are none from here on.
        for stream in streams:
            stream.close()
        joined.let_go()


def _tell_losses(plan: Plan, operations: Operations) -> int:
    """Of how many files something may be lost, without a program having been told.

    Each is in the log, which in the foreground is the terminal; they are told there if it is a file instead.
    """
    lines = operations.give_up()
    if lines and plan.options.foreground and plan.options.log_file is not None:
        for line in lines:
            plan.warn(line)
    return operations.lossy_files


async def _prepare(options: Options, link: Link, client: Client, place: str) -> Operations:
    """Look at the remote directory, and put the file system together."""
    base, attributes = await _remote_directory(client, options)
    await mountpoint.refuse_itself(client, base, place)
    times = CacheTimes(
        stat_s=options.stat_timeout_s if options.dcache else 0.0,
        link_s=options.link_timeout_s if options.dcache else 0.0,
        dir_s=options.dir_timeout_s if options.dcache else 0.0,
        negative_s=min(NEGATIVE_S, options.dir_timeout_s) if options.dcache else 0.0,
        kernel_attr_s=options.attr_timeout,
        kernel_entry_s=options.entry_timeout,
        kernel_negative_s=options.negative_timeout or 0.0,
    )
    tree = Tree(base, max_idle=max(options.dcache_max_size, 1))
    tree.update(tree.root, attributes, monotonic(), tree.changes)
    names = Names(link, tree, times, follow=options.follow_symlinks, ahead=not options.no_readahead)
    view = View(await _identity(client, options), options.umask)
    policy = SymlinkPolicy(contain=options.contain_symlinks, transform=options.transform_symlinks, base=base)
    direct_io = options.direct_io
    if direct_io is None and not pages.dropped_by(os.uname().release):
        direct_io = False
    manners = Manners(direct_io=direct_io, sync_writes=options.sync_writes, hard_links=not options.disable_hardlink)
    return Operations(names, view, policy, manners)


async def _remote_directory(client: Client, options: Options) -> tuple[bytes, Attributes]:
    """Return the absolute remote path to mount, and its attributes. Raises MountError."""
    asked = os.fsencode(options.directory)
    shown = printable(asked) if asked else "the home directory"
    try:
        if asked.startswith(b"~") and sftp.ExpandPath.EXTENSION in client.extensions:
            base = await client.expand_path(asked)
        elif asked == b"~" or asked.startswith(b"~/"):
            base = await client.realpath(asked[2:] or b".")  # a relative path starts at home
        elif asked.startswith(b"~"):
            raise MountError(
                f"the server cannot tell where {shown} is (it has no expand-path@openssh.com); give the whole path",
                ExitCode.BAD_REMOTE_DIRECTORY,
            )
        else:
            base = await client.realpath(asked or b".")
        if not base.startswith(b"/"):
            raise MountError(
                f"the server says that {shown} is {printable(base)}, which is no absolute path", ExitCode.PROTOCOL
            )
        attributes = await client.stat(base)
    except StatusError as error:
        raise MountError(f"{shown} on the server: {_why(error)}", ExitCode.BAD_REMOTE_DIRECTORY) from error
    if not stat.S_ISDIR(attributes.permissions or 0):
        raise MountError(f"{shown} on the server is not a directory", ExitCode.BAD_REMOTE_DIRECTORY)
    return base, attributes


def _why(error: StatusError) -> str:
    known = {sftp.Status.NO_SUCH_FILE: "no such directory", sftp.Status.PERMISSION_DENIED: "permission denied"}
    return known[sftp.Status(error.code)] if error.code in known else describe(error)


async def _identity(client: Client, options: Options) -> IdentityMap:
    remote: tuple[int | None, int | None] = (None, None)
    if options.idmap == "user":
        home = await client.stat(b".")
        remote = (home.uid, home.gid)
    return identity_map(
        options.idmap, remote=remote, local=(os.getuid(), os.getgid()), shown=(options.uid, options.gid)
    )


def _mount(operations: Operations, options: Options, place: str) -> None:
    turns.install(pyfuse3)
    try:
        with signals.held_back():  # mounted by a program for who is not root, which hands over the device at last
            pyfuse3.init(operations, place, {_AsBytes(each) for each in mount_options(options)})
    except RuntimeError as error:
        raise MountError(
            f"the kernel did not take the mount at {place} ({error}); libfuse's own words stand above. "
            "Is fuse3 installed, and /dev/fuse there?",
            ExitCode.NO_FUSE,
        ) from error


class _AsBytes(str):
    """An option whose bytes the kernel is to have: pyfuse3 encodes options as ASCII, which no path promises to be."""

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        return os.fsencode(str(self))


def _devices() -> list[int]:
    """The descriptors of our FUSE device, which pyfuse3 does not tell."""
    return [int(name) for name in os.listdir("/proc/self/fd") if _leads_to(name, "/dev/fuse")]


def _leads_to(descriptor: str, device: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == device
    except FileNotFoundError:  # the directory's own, closed by now
        return False


def mount_options(options: Options) -> list[str]:
    """What is told to libfuse and the kernel; nosuid and nodev are theirs unless asked otherwise."""
    source = options.fsname or f"{options.user + '@' if options.user else ''}{options.host}:{options.directory}"
    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    said = [f"fsname={escaped}", "subtype=sshmuxfs"]
    said += [
        name
        for name, wanted in (
            ("ro", options.read_only),
            ("allow_other", options.allow_other),
            ("allow_root", options.allow_root),
            ("default_permissions", options.default_permissions),
            ("suid", options.suid),
            ("dev", options.dev),
        )
        if wanted
    ]
    return said + list(options.fuse_options)
