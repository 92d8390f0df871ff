"""Open directories: every name once, none that no directory can hold, and positions that stay."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.io.listing import MAX_BARREN, MAX_COMPLAINTS, NAME_MAX, Listing, acceptable
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import ChannelLost, Client
from sshmuxfs.sftp.protocol import Attributes, Request, Status, StatusError
from sshmuxfs.tree.inodes import Inode, Tree
from tests.support.sftp_process import Peer, eventually, handles_left_open, in_trio, real_channel, scripted_channel
from tests.t1_cores import replies

FILE = Attributes(size=1, permissions=stat.S_IFREG | 0o644)
LINK = Attributes(size=1, permissions=stat.S_IFLNK | 0o777)
DIRECTORY = Attributes(permissions=stat.S_IFDIR | 0o755)
LIFE_S = 1000.0


@pytest.mark.parametrize(
    ("name", "good"),
    [
        (b"a", True),
        (b"..a", True),
        (b"...", True),
        (b"\n\x1b[2J\xff\x80 -rf *", True),
        (b"n" * NAME_MAX, True),
        (b"n" * (NAME_MAX + 1), False),
        (b"", False),
        (b".", False),
        (b"..", False),
        (b"/", False),
        (b"a/b", False),
        (b"../../etc/passwd", False),
        (b"a\0b", False),
    ],
)
def test_what_a_name_can_be(name: bytes, good: bool) -> None:
    assert acceptable(name) is good


@given(st.binary(max_size=300))
def test_a_good_name_is_one_a_local_directory_would_take(name: bytes) -> None:
    alone = (b"/directory/" + name).split(b"/") == [b"", b"directory", name] and name not in (b"", b".", b"..")
    assert acceptable(name) == (alone and b"\0" not in name and len(name) <= NAME_MAX)


async def taken(listing: Listing) -> list[bytes]:
    """The names that readdir would give, from the first to the last, each referred to as the kernel would."""
    found = []
    index = 0
    while await listing.has(index):
        inode = listing.inode_at(index)
        if inode is not None:
            found.append(listing.names[index])
        listing.given(index)
        index += 1
    return found


# -- the real server --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[Listing, Tree, Client]]:
    async with real_channel() as (client, process):
        tree = Tree(os.fsencode(path))
        listing = Listing(tree, tree.root, follow=False, ask=sftp.Lstat)
        process.stream.forget()
        await listing.from_server(client, os.fsencode(path))
        yield listing, tree, client
        listing.close()


@pytest.mark.parametrize("count", [0, 1, 97, 98, 99, 100, 101, 250, 3500])
@in_trio
async def test_every_name_of_a_directory_once(tmp_path: Path, count: int) -> None:
    names = {b"%d" % number for number in range(count)}
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    async with opened(tmp_path) as (listing, tree, _):
        found = await taken(listing)
        assert len(found) == count
        assert set(found) == names
        assert tree.root.directory is not None
        assert set(tree.root.directory.children) == names
        assert tree.is_absent(tree.root, b"other", monotonic(), LIFE_S)
        assert not await listing.has(count)


@in_trio
async def test_names_of_all_bytes(tmp_path: Path) -> None:
    names = {bytes([byte]) * 3 for byte in range(1, 256) if byte != ord("/")} - {b"..."}
    for name in names:
        os.close(os.open(os.fsencode(tmp_path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    async with opened(tmp_path) as (listing, _, _):
        assert set(await taken(listing)) == names


@in_trio
async def test_attributes_come_with_the_names(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    async with opened(tmp_path) as (listing, tree, _):
        assert set(await taken(listing)) == {b"file", b"dir", b"link"}
        assert tree.root.directory is not None
        children = tree.root.directory.children
        assert children[b"file"].attributes.size == 5
        assert children[b"dir"].kind == stat.S_IFDIR
        assert children[b"link"].kind == stat.S_IFLNK


@in_trio
async def test_what_is_changed_here_meanwhile(tmp_path: Path) -> None:
    """The names heard before keep their places; what is gone is left out, what is new may be missing."""
    for number in range(300):
        (tmp_path / f"{number:03}").touch()
    async with opened(tmp_path) as (listing, tree, client):
        assert await listing.has(0)
        first = listing.names[0]
        known = listing.inode_at(0)
        assert known is not None
        for name in listing.names[1:4]:
            tree.remove(tree.root, name)
        tree.rename(tree.root, listing.names[5], tree.root, b"renamed")
        made = tree.add(tree.root, b"new")
        tree.update(made, FILE, monotonic(), tree.changes)
        found = await taken(listing)
        assert found[0] == first
        assert listing.inode_at(0) is known
        gone = {*listing.names[1:4], listing.names[5]}
        assert set(found) == set(listing.names) - gone
        assert tree.root.directory is not None
        assert set(tree.root.directory.children) == (set(listing.names) - gone) | {b"new", b"renamed"}
        assert not made.gone


@in_trio
async def test_a_listing_that_is_known_asks_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, tree, _):
        for name in (b"a", b"b"):
            tree.learn(tree.root, name, FILE, 1.0, tree.changes)
        listing = Listing(tree, tree.root, follow=False, ask=sftp.Lstat)
        listing.from_tree()
        tree.remove(tree.root, b"a")
        tree.learn(tree.root, b"c", FILE, 1.0, tree.changes)
        assert await taken(listing) == [b"b"]
        listing.close()


@in_trio
async def test_what_was_dropped_for_room_is_still_shown(tmp_path: Path) -> None:
    async with opened(tmp_path):
        tree = Tree(b"/", max_idle=3)
        for name in (b"a", b"b", b"c"):
            tree.learn(tree.root, name, FILE, 1.0, tree.changes)
        listing = Listing(tree, tree.root, follow=False, ask=sftp.Lstat)
        listing.from_tree()
        other = tree.learn(tree.root, b"other", DIRECTORY, 1.0, tree.changes)
        assert other is not None
        for name in (b"x", b"y", b"z"):
            tree.learn(other, name, FILE, 1.0, tree.changes)
        assert await taken(listing) == [b"a", b"b", b"c"]
        listing.close()


@in_trio
async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    async with real_channel() as (client, _):
        tree = Tree(os.fsencode(tmp_path))
        listing = Listing(tree, tree.root, follow=False, ask=sftp.Lstat)
        with pytest.raises(StatusError):
            await listing.from_server(client, os.fsencode(tmp_path / "none"))
        listing.close()
        listing.close()
        assert tree.root.directory is not None
        assert tree.root.directory.asking == 0


@in_trio
async def test_a_listing_given_up_in_the_middle_gives_its_handle_back(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / str(number)).touch()
    async with real_channel() as (client, process):
        tree = Tree(os.fsencode(tmp_path))
        for _ in range(50):  # one after the other: while one is open the next is not
            listing = Listing(tree, tree.root, follow=False, ask=sftp.Lstat)
            await listing.from_server(client, os.fsencode(tmp_path))
            assert await listing.has(0)
            listing.close()
        assert await handles_left_open(client) <= 1


# -- a server that says what it likes ---------------------------------------------------------------------------------


class Telling:
    """A listing of `/d`, and the peer that tells its names."""

    def __init__(self, client: Client, peer: Peer, *, follow: bool) -> None:
        self.client = client
        self.peer = peer
        self.tree = Tree(b"/")
        directory = self.tree.learn(self.tree.root, b"d", DIRECTORY, 0.0, 0)
        assert directory is not None
        self.tree.refer(directory)
        self.inode: Inode = directory
        self.listing = Listing(self.tree, directory, follow=follow, ask=sftp.Stat if follow else sftp.Lstat)
        self.found: list[bytes] | Exception | None = None

    async def take(self) -> None:
        try:
            await self.listing.from_server(self.client, b"/d")
            self.found = await taken(self.listing)
        except Exception as error:
            self.found = error

    async def answer(self, expected: type[Request], make: Callable[[int], bytes]) -> Request:
        """Answer the next request that is not a CLOSE, which has to be of that kind."""
        request_id, request = await self.peer.request()
        while isinstance(request, sftp.Close):
            request_id, request = await self.peer.request()
        assert isinstance(request, expected)
        await self.peer.send(make(request_id))
        return request

    async def tell(self, *entries: tuple[bytes, Attributes]) -> None:
        await self.answer(sftp.Readdir, lambda request_id: replies.names(request_id, *entries))

    async def end(self) -> None:
        await self.answer(sftp.Readdir, lambda request_id: replies.status(request_id, Status.EOF))

    async def finished(self) -> list[bytes]:
        await eventually(lambda: self.found is not None)
        assert isinstance(self.found, list), self.found
        return self.found

    def is_complete(self) -> bool:
        return self.tree.is_absent(self.inode, b"no such name", monotonic(), LIFE_S)


@asynccontextmanager
async def telling(*, follow: bool = False) -> AsyncIterator[Telling]:
    async with scripted_channel(replies.version()) as (client, peer), trio.open_nursery() as nursery:
        directory = Telling(client, peer, follow=follow)
        nursery.start_soon(directory.take)
        await directory.answer(sftp.Opendir, lambda request_id: replies.handle(request_id, b"h"))
        yield directory
        directory.listing.close()
        nursery.cancel_scope.cancel()


@in_trio
async def test_names_no_directory_can_hold_are_dropped_one_by_one(expect_log: Callable[[str], None]) -> None:
    expect_log("a name from the server is not shown")
    async with telling() as directory:
        bad = [b"", b"a/b", b"../../etc/evil", b"x\0y", b"n" * 300, b"/"]
        await directory.tell((b".", DIRECTORY), (b"..", DIRECTORY), (b"first", FILE), *((name, FILE) for name in bad))
        await directory.tell((b"\x1b[31mlast\n", FILE))
        await directory.end()
        assert await directory.finished() == [b"first", b"\x1b[31mlast\n"]


@in_trio
async def test_complaints_are_few_and_safe_for_a_terminal(
    expect_log: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    expect_log("a name from the server is not shown")
    async with telling() as directory:
        await directory.tell(*((b"evil/\x1b[2J%d" % number, FILE) for number in range(200)))
        await directory.end()
        assert await directory.finished() == []
    assert len(caplog.records) == MAX_COMPLAINTS
    assert all(record.getMessage().isprintable() for record in caplog.records)


@in_trio
async def test_a_name_told_again_is_shown_once(expect_log: Callable[[str], None]) -> None:
    expect_log("a name from the server is not shown: twice")
    async with telling() as directory:
        await directory.tell((b"twice", FILE), (b"twice", DIRECTORY), (b"once", FILE))
        await directory.tell((b"twice", FILE))
        await directory.end()
        assert await directory.finished() == [b"twice", b"once"]


@in_trio
async def test_attributes_no_file_can_have_hide_that_name_alone(expect_log: Callable[[str], None]) -> None:
    expect_log("kindless is not shown")
    expect_log("huge is not shown")
    async with telling() as directory:
        await directory.tell(
            (b"kindless", Attributes(size=1, permissions=0o644)),
            (b"huge", FILE._replace(size=2**63)),
            (b"good", FILE._replace(size=2**63 - 1)),
        )
        await directory.end()
        assert await directory.finished() == [b"good"]


@in_trio
async def test_attributes_that_are_missing_are_asked_for(expect_log: Callable[[str], None]) -> None:
    expect_log("vanished is not shown")
    async with telling() as directory:
        await directory.tell((b"known", FILE), (b"unknown", Attributes()), (b"vanished", Attributes(size=3)))
        await directory.end()  # the second question was out already
        request = None
        for answer in (FILE._replace(size=7), None):
            while not isinstance(request, sftp.Lstat):
                request_id, request = await directory.peer.request()
                if isinstance(request, sftp.Readdir):
                    await directory.peer.send(replies.status(request_id, Status.EOF))
            reply = replies.attributes(request_id, answer) if answer else replies.status(request_id, 2)
            await directory.peer.send(reply)
            request = None
        with trio.fail_after(20):
            found = await directory.finished()
        assert sorted(found) == [b"known", b"unknown"]
        assert directory.inode.directory is not None
        assert directory.inode.directory.children[b"unknown"].attributes.size == 7


@in_trio
async def test_links_are_shown_as_what_they_lead_to_where_that_is_asked_for() -> None:
    async with telling(follow=True) as directory:
        await directory.tell((b"file", FILE), (b"to-dir", LINK), (b"dangling", LINK))
        await directory.end()
        asked: dict[bytes, int] = {}
        while len(asked) < 2:
            request_id, request = await directory.peer.request()
            if isinstance(request, sftp.Stat):
                asked[request.path] = request_id
            elif isinstance(request, sftp.Readdir):
                await directory.peer.send(replies.status(request_id, Status.EOF))
        await directory.peer.send(
            replies.attributes(asked[b"/d/to-dir"], DIRECTORY),
            replies.status(asked[b"/d/dangling"], Status.NO_SUCH_FILE),
        )
        assert sorted(await directory.finished()) == [b"dangling", b"file", b"to-dir"]
        assert directory.inode.directory is not None
        children = directory.inode.directory.children
        assert children[b"to-dir"].kind == stat.S_IFDIR
        assert children[b"dangling"].kind == stat.S_IFLNK


@pytest.mark.parametrize("code", [Status.FAILURE, Status.PERMISSION_DENIED])
@in_trio
async def test_a_listing_that_fails_in_the_middle_is_an_error_and_not_complete(code: Status) -> None:
    async with telling() as directory:
        await directory.tell((b"first", FILE))
        await directory.answer(sftp.Readdir, lambda request_id: replies.status(request_id, code))
        await eventually(lambda: directory.found is not None)
        assert isinstance(directory.found, StatusError)
        assert directory.found.code == code
        assert not directory.is_complete()


@in_trio
async def test_a_listing_is_complete_only_at_its_end() -> None:
    async with telling() as directory:
        await directory.tell((b"first", FILE))
        await trio.testing.wait_all_tasks_blocked()
        assert not directory.is_complete()
        await directory.end()
        await directory.finished()
        assert directory.is_complete()


@in_trio
async def test_a_channel_that_dies_in_the_middle() -> None:
    async with telling() as directory:
        await directory.tell((b"first", FILE))
        directory.peer.hang_up()
        await eventually(lambda: directory.found is not None, within_s=10)
        assert isinstance(directory.found, ChannelLost)
        assert not directory.is_complete()


@pytest.mark.parametrize("entries", [[], [(b"same", FILE)]])
@in_trio
async def test_a_server_that_never_comes_to_an_end(
    entries: list[tuple[bytes, Attributes]], allow_log: Callable[[str], None]
) -> None:
    allow_log("a name from the server is not shown: same")
    async with telling() as directory:
        told = 0
        with trio.fail_after(20):
            while directory.found is None:
                with trio.move_on_after(0.1):
                    await directory.tell(*entries)
                    told += 1
        assert isinstance(directory.found, OSError)
        assert told >= MAX_BARREN
