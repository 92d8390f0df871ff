"""Our place among PuTTY's, kept against thieves, tidiers and whoever never decides; and what is not ours left alone."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from mux.errors import JoinError
from mux.rendezvous import putty, putty_socket
from mux.upstream import putty_places
from tests.support.descriptors import only_free
from tests.support.sshd import HOST, Sshd
from tests.t2_upstream.riding import eventually, riding
from tests.t5_putty.bare_clients import entries, putty_path, works


def test_what_is_stolen_or_removed_is_published_again(sshd: Sshd, own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(putty_places, "ASK_AGAIN_S", 0.05)
        async with riding(sshd, str(sshd.control_dir / "stolen")) as ride:
            places = putty_places.PuttyPlaces([own], ride.upstream._take_in_putty, watch_s=0.02)
            ride.upstream.putty = places
            await places.open()
            path = putty_path(ride)
            os.unlink(path)
            await eventually(lambda: places.published and os.path.exists(path))
            assert await works(ride)

            os.unlink(path)
            with closing(socket.socket(socket.AF_UNIX)) as thief:
                thief.bind(path)
                thief.listen()
                theirs = putty_socket.identity(path)
                await eventually(lambda: places.published == [])
                thief.settimeout(20)
                (await asyncio.to_thread(thief.accept))[0].close()  # it was asked whether it lives
                (await asyncio.to_thread(thief.accept))[0].close()  # and again
                assert putty_socket.identity(path) == theirs
            await eventually(lambda: places.published)
            assert await works(ride)
        assert not os.path.exists(path)

    asyncio.run(main())


def test_what_is_somebody_elses_stays_at_the_end(sshd: Sshd, own: str) -> None:
    published = putty_socket.publish(own)
    os.unlink(published.path)
    with closing(socket.socket(socket.AF_UNIX)) as other, closing(published.listener):
        other.bind(published.path)
        theirs = putty_socket.identity(published.path)
        published.withdraw()
        assert putty_socket.identity(published.path) == theirs
        assert set(entries(Path(published.path).parent)) == {"lock", "socket"}


def test_a_full_queue_is_not_an_absent_upstream(own: str) -> None:
    published = putty_socket.publish(own)
    with closing(published.listener), ExitStack() as stack:
        published.listener.listen(0)
        with pytest.raises(BlockingIOError):
            while True:
                one = stack.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(published.path)
        with pytest.raises(putty_socket.Taken):
            putty_socket.publish(own)
        assert published.is_there()
        published.withdraw()


def test_out_of_descriptors_it_may_go_another_time(own: str) -> None:
    for spare in (0, 2):  # it needs three at once, one of them for the lock
        with only_free(spare), pytest.raises(TimeoutError, match="Too many open files"):
            putty_socket.publish(own)
    published = putty_socket.publish(own)
    published.withdraw()
    published.listener.close()


def test_a_file_in_the_way_is_left_alone(own: str) -> None:
    directory = Path(putty.directory_of(own))
    directory.mkdir(mode=0o700)
    (directory / "socket").write_text("precious")
    with pytest.raises(JoinError, match="in the way"):
        putty_socket.publish(own)
    assert (directory / "socket").read_text() == "precious"


def test_who_never_decides_stops_nobody(
    sshd: Sshd, own: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again and again, and told once."""

    async def main() -> None:
        directory = putty.directory_of(own)
        with tempfile.TemporaryDirectory() as elsewhere, putty.deciding(directory, create=True):
            async with riding(sshd, os.path.join(elsewhere, "s")) as ride:
                places = putty_places.PuttyPlaces([own], ride.upstream._take_in_putty, watch_s=0.02)
                ride.upstream.putty = places
                assert await places.open() == []
                assert places.published == []
                published = putty_socket.publish
                tried = []

                def publish(name: str) -> putty_socket.PuttySocket:
                    tried.append(name)
                    return published(name)

                monkeypatch.setattr(putty_socket, "publish", publish)
                await eventually(lambda: len(tried) > 2)
                assert (await ride.ssh(HOST, "echo here")).out == b"here\n"

    with caplog.at_level("INFO"):
        asyncio.run(main())
    assert caplog.text.count("for now") == 1


def test_an_end_while_names_are_published(sshd: Sshd, own: str) -> None:
    """Nothing is looked after, or left, behind it."""

    async def main() -> None:
        taken: list[socket.socket] = []
        places = putty_places.PuttyPlaces([own], taken.append, watch_s=0.02)
        opening = asyncio.create_task(places.open())
        await asyncio.sleep(0)
        places.close()
        await opening
        assert places._timer is not None and places._timer.cancelled()
        assert not taken and places.published == []

    asyncio.run(main())
    assert not os.path.exists(putty.directory_of(own))
