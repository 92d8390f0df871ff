"""A file each way, by every program that may ride on a connection; and who may hold one.

The rule: `down` is copied from a directory of the server to one here and `up` from here to there, by the program's own
means; `exchange` compares every byte. What a program needs it gets as `Means`: those that can only ride, or those of
somebody who logs in by himself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import mounts, processes
from tests.support.master import Master
from tests.support.mounted import Mount
from tests.support.putty import PuttyUpstream, identity
from tests.support.sshd import HOST, Sshd
from tests.support.upstream import Upstream
from tests.t2_upstream.starting import upstreams
from tests.t5_putty.riders import Riders, said
from tests.t5_upstream.clients import Clients, ended

END_S = 20.0
#: Behind git, for a commit.
AUTHOR = ("-c", "user.name=nobody", "-c", "user.email=nobody@invalid")


@dataclass
class Means:
    """What the programs have: OpenSSH's and those that use it, PuTTY's, and a mount of a directory."""

    clients: Clients
    riders: Riders
    mount: Callable[[Path], Mount]


#: `program(means, there, here)` makes `here/down` and `there/up`; returns how many connections it asked for.
Program = Callable[[Means, Path, Path], int]


def exchange(program: Program, means: Means, there: Path, here: Path, size_bytes: int) -> int:
    """Do it with new contents, in the directories `there` and `here`. Raises AssertionError; returns as `Program`."""
    down, up = os.urandom(size_bytes), os.urandom(size_bytes + 1)
    (there / "down").write_bytes(down)
    (here / "up").write_bytes(up)
    count = program(means, there, here)
    assert (here / "down").read_bytes() == down
    assert (there / "up").read_bytes() == up
    for path in (here / "down", there / "up"):
        path.unlink()
    return count


# -- programs ---------------------------------------------------------------------------------------------------------


def both_ways(there: Path) -> str:
    return f"cat {there}/down && cat >{there}/up"


def ssh(means: Means, there: Path, here: Path) -> int:
    done = means.clients.ssh(HOST, both_ways(there), input=(here / "up").read_bytes())
    assert done.returncode == 0, done
    (here / "down").write_bytes(done.stdout)
    return 1


def scp(means: Means, there: Path, here: Path) -> int:
    clients = means.clients
    clients.check(clients.command("-q", f"{HOST}:{there}/down", str(here), name="scp"))
    clients.check(clients.command("-q", f"{here}/up", f"{HOST}:{there}", name="scp"))
    return 2


def sftp(means: Means, there: Path, here: Path) -> int:
    lines = f"get {there}/down {here}/down\nput {here}/up {there}/up\n"
    clients = means.clients
    clients.check(clients.command("-q", "-b", "-", HOST, name="sftp"), input=lines.encode())
    return 1


def rsync(means: Means, there: Path, here: Path) -> int:
    means.clients.check(["rsync", f"{HOST}:{there}/down", f"{here}/down"])
    means.clients.check(["rsync", f"{here}/up", f"{HOST}:{there}/up"])
    return 2


def git(means: Means, there: Path, here: Path) -> int:
    """A clone and a push; the repository over there begins with `down` in it."""
    check = means.clients.check
    first, clone, repository = there / "first", here / "clone", there / "repository"
    with ExitStack() as stack:
        for directory in (first, clone, repository):
            stack.callback(mounts.remove_tree, directory)
        check(["git", "init", "-q", str(first)])
        (there / "down").rename(first / "down")
        check(["git", "-C", str(first), "add", "down"])
        check(["git", *AUTHOR, "-C", str(first), "commit", "-qm", "first"])
        check(["git", "clone", "-q", "--bare", str(first), str(repository)])
        check(["git", "clone", "-q", f"{HOST}:{repository}", str(clone)])
        (clone / "down").rename(here / "down")
        (clone / "up").write_bytes((here / "up").read_bytes())
        check(["git", "-C", str(clone), "add", "up"])
        check(["git", *AUTHOR, "-C", str(clone), "commit", "-qm", "second"])
        check(["git", "-C", str(clone), "push", "-q"])
        (there / "up").write_bytes(check(["git", "--git-dir", str(repository), "show", "HEAD:up"]))
    return 2


def plink(means: Means, there: Path, here: Path) -> int:
    done = means.riders.plink(both_ways(there), data=(here / "up").read_bytes())
    assert done.returncode == 0, done
    (here / "down").write_bytes(done.stdout)
    return 1


def pscp(means: Means, there: Path, here: Path) -> int:
    for arguments in ((f"{{}}:{there}/down", f"{here}/down"), (f"{here}/up", f"{{}}:{there}/up")):
        done = means.riders.pscp(*arguments)
        assert done.returncode == 0, done
    return 2


def psftp(means: Means, there: Path, here: Path) -> int:
    done = means.riders.psftp(f"get {there}/down {here}/down", f"put {here}/up {there}/up")
    assert done.returncode == 0, done
    return 1


def sshmuxfs(means: Means, there: Path, here: Path) -> int:
    with means.mount(there) as mount:
        (here / "down").write_bytes((mount.path / "down").read_bytes())
        (mount.path / "up").write_bytes((here / "up").read_bytes())
    return 1


PROGRAMS: dict[str, Program] = {one.__name__: one for one in (ssh, scp, sftp, rsync, git, plink, pscp, psftp, sshmuxfs)}


# -- means ------------------------------------------------------------------------------------------------------------


@dataclass
class Place:
    """Where a connection leads; what a `Mount` asks of a master."""

    sshd: Sshd
    config: Path


class JoiningMount(Mount):
    """With nothing but the configuration, and no login: it finds whatever is there."""

    def sharing_arguments(self) -> list[str]:
        return ["-F", str(self.master.config), "-o", "upstream=no"]


class FirstMount(Mount):
    """One that logs in if need be, and then holds a connection for everybody."""

    foreground = False

    def sharing_arguments(self) -> list[str]:
        return ["-F", str(self.master.config)]


class AnyClients(Clients):
    """Programs that log in by themselves where they find nothing to ride on."""

    def __init__(self, sshd: Sshd) -> None:
        super().__init__(sshd, None)
        self.config = sshd.ssh_config


class AnyRiders(Riders):
    """The same of PuTTY's tools: with the user's key, and the server's."""

    def command(self, tool: str, *options: str) -> list[str]:
        return super().command(tool, *identity(self.sshd), *options)


def control_path(sshd: Sshd) -> str:
    """The configured one."""
    said = sshd.ssh("-G", HOST).stdout
    return next(line.split(" ", 1)[1] for line in said.splitlines() if line.startswith("controlpath "))


def place_of(sshd: Sshd) -> Master:
    """What a mount takes for its master; it asks no more of it."""
    return Place(sshd, sshd.ssh_config)  # type: ignore[return-value]


def only_riding(sshd: Sshd) -> Means:
    """Nobody can log in."""
    mount = lambda directory: JoiningMount(place_of(sshd), directory)  # noqa: E731
    return Means(Clients(sshd, control_path(sshd)), Riders(sshd), mount)


def alone_as_well(sshd: Sshd) -> Means:
    """Everybody can log in."""
    mount = lambda directory: FirstMount(place_of(sshd), directory)  # noqa: E731
    return Means(AnyClients(sshd), AnyRiders(sshd), mount)


# -- who holds a connection -------------------------------------------------------------------------------------------


@contextmanager
def held_by_a_mount(sshd: Sshd) -> Iterator[None]:
    """That found nothing to join."""
    with FirstMount(place_of(sshd), sshd.root):
        yield
    left = processes.wait_ended(upstreams(sshd), END_S)
    processes.end(left)
    assert not left, left


@contextmanager
def held_by_a_session(sshd: Sshd) -> Iterator[None]:
    """Of an ssh with ControlMaster auto, and for as long as that lasts."""
    with AnyClients(sshd).started("-oControlMaster=auto", HOST, "echo up; cat") as process:
        said(process, b"up\n")
        yield
        assert process.stdin is not None
        process.stdin.close()
        assert ended(process) == 0


#: By the words of README.md.
HOLDERS: dict[str, Callable[[Sshd], AbstractContextManager[object]]] = {
    "sshmuxfs": held_by_a_mount,
    "sshmux start": Upstream,
    "ssh -M": Master,
    "ControlMaster auto": held_by_a_session,
    "plink -share": PuttyUpstream,
}
