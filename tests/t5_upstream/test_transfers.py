"""scp, sftp, rsync and git over a connection that is there."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.sshd import HOST, program
from tests.t5_upstream.clients import DEADLINE_S, Clients

MIB = 1 << 20


@pytest.fixture
def tree(directory: Path) -> Path:
    """A tree with the usual: empty and large files, a program, a link, a name with blanks."""
    root = directory / "tree"
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "empty").touch()
    (root / "large").write_bytes(os.urandom(3 * MIB + 11))
    (root / "sub" / "a name with blanks").write_text("blanks\n")
    (root / "sub" / "deeper" / "program").write_text("#!/bin/sh\n")
    (root / "sub" / "deeper" / "program").chmod(0o755)
    (root / "link").symlink_to("large")
    return root


def contents(root: Path, *, links: bool = True) -> dict[str, str]:
    """Every file below `root` with the digest of what is in it; a symbolic link's target where `links`."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink() and links:
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "directory"
    return found


def test_24_sftp_batch(clients: Clients, directory: Path, tree: Path) -> None:
    batch = directory / "batch"
    batch.write_text(
        f"put {tree}/large {directory}/there\nget {directory}/there {directory}/back\n"
        f"mkdir {directory}/made\nput {tree}/empty {directory}/made/empty\nls {directory}/made\n"
        f"rename {directory}/there {directory}/moved\nrm {directory}/moved\n"
    )
    said = clients.check(clients.command("-q", "-b", str(batch), HOST, name="sftp"))
    assert b"made/empty" in said
    assert (directory / "back").read_bytes() == (tree / "large").read_bytes()
    assert not (directory / "moved").exists()


def test_24_sftp_from_its_input(clients: Clients, directory: Path, tree: Path) -> None:
    (tree / "link").unlink()  # sftp passes over links
    commands = f"get -r {tree} {directory}/copy\nbye\n".encode()
    clients.check(clients.command("-q", HOST, name="sftp"), input=commands)
    assert contents(directory / "copy") == contents(tree)


def test_24_sftp_failure(clients: Clients, directory: Path) -> None:
    batch = directory / "batch"
    batch.write_text(f"get {directory}/missing\n")
    done = clients.run(clients.command("-q", "-b", str(batch), HOST, name="sftp"))
    assert done.returncode == 1
    assert b"missing" in done.stderr


SCP_MODES = {"sftp": [], "original": ["-O"]}


@pytest.mark.parametrize("mode", SCP_MODES)
def test_25_scp_file_both_ways(clients: Clients, directory: Path, tree: Path, mode: str) -> None:
    there, back = directory / "there", directory / "back"
    scp = clients.command("-q", *SCP_MODES[mode], name="scp")
    clients.check([*scp, str(tree / "large"), f"{HOST}:{there}"])
    clients.check([*scp, f"{HOST}:{there}", str(back)])
    assert back.read_bytes() == (tree / "large").read_bytes()


@pytest.mark.parametrize("mode", SCP_MODES)
def test_25_scp_directory_both_ways(clients: Clients, directory: Path, tree: Path, mode: str) -> None:
    scp = clients.command("-q", "-r", "-p", *SCP_MODES[mode], name="scp")
    clients.check([*scp, str(tree), f"{HOST}:{directory}/there"])
    clients.check([*scp, f"{HOST}:{directory}/there", str(directory / "back")])
    assert contents(directory / "back", links=False) == contents(tree, links=False)
    assert os.access(directory / "back" / "sub" / "deeper" / "program", os.X_OK)


@pytest.mark.parametrize("mode", SCP_MODES)
def test_25_scp_between_two_remotes(clients: Clients, directory: Path, tree: Path, mode: str) -> None:
    """`-3`: two sessions of one connection, through this machine."""
    scp = clients.command("-q", "-3", *SCP_MODES[mode], name="scp")
    clients.check([*scp, f"{HOST}:{tree}/large", f"{HOST}:{directory}/copy"])
    assert (directory / "copy").read_bytes() == (tree / "large").read_bytes()


@pytest.mark.parametrize("mode", SCP_MODES)
def test_25_scp_failure(clients: Clients, directory: Path, mode: str) -> None:
    scp = clients.command("-q", *SCP_MODES[mode], name="scp")
    done = clients.run([*scp, f"{HOST}:{directory}/missing", str(directory / "copy")])
    assert done.returncode == 1
    assert b"No such file" in done.stderr


def test_26_rsync_both_ways(clients: Clients, directory: Path, tree: Path) -> None:
    rsync = [program("rsync"), "-a"]
    clients.check([*rsync, f"{tree}/", f"{HOST}:{directory}/there/"])
    clients.check([*rsync, f"{HOST}:{directory}/there/", f"{directory}/back/"])
    assert contents(directory / "back") == contents(tree)


def test_26_rsync_of_changes(clients: Clients, directory: Path, tree: Path) -> None:
    rsync = [program("rsync"), "-a", "--delete", "--stats"]
    clients.check([*rsync, f"{tree}/", f"{HOST}:{directory}/there/"])
    with (tree / "large").open("ab") as file:
        file.write(b"changed")
    (tree / "empty").unlink()
    (tree / "new").write_text("new\n")
    said = clients.check([*rsync, "--no-whole-file", f"{tree}/", f"{HOST}:{directory}/there/"])
    assert contents(directory / "there") == contents(tree)
    assert b"Number of deleted files: 1 " in said
    # The second time only what changed travels.
    sent = next(line for line in said.decode().splitlines() if line.startswith("Total bytes sent:"))
    assert int(sent.rpartition(" ")[2].replace(",", "")) < MIB


def git(clients: Clients, *arguments: str, cwd: Path) -> bytes:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    return clients.check([program("git"), *identity, *arguments], cwd=cwd)


def test_27_git(clients: Clients, directory: Path, tree: Path) -> None:
    """Clone, push from one copy, fetch into another, all over the connection."""
    git(clients, "init", "-q", "--bare", str(directory / "bare"), cwd=directory)
    url = f"ssh://{HOST}{directory}/bare"
    git(clients, "clone", "-q", url, "one", cwd=directory)
    one, two = directory / "one", directory / "two"
    clients.check(["cp", "-a", f"{tree}/.", str(one)])
    git(clients, "add", ".", cwd=one)
    git(clients, "commit", "-q", "-m", "first", cwd=one)
    git(clients, "push", "-q", "origin", "HEAD:main", cwd=one)
    git(clients, "clone", "-q", "-b", "main", url, "two", cwd=directory)
    (one / "second").write_text("second\n")
    git(clients, "add", ".", cwd=one)
    git(clients, "commit", "-q", "-m", "second", cwd=one)
    git(clients, "push", "-q", "origin", "HEAD:main", cwd=one)
    git(clients, "fetch", "-q", "origin", cwd=two)
    git(clients, "merge", "-q", "--ff-only", "origin/main", cwd=two)
    assert (two / "second").read_text() == "second\n"
    assert (two / "large").read_bytes() == (tree / "large").read_bytes()
    git(clients, "fsck", "--full", "--strict", cwd=two)
    assert git(clients, "ls-remote", url, "main", cwd=two).split()[0] == git(clients, "rev-parse", "HEAD", cwd=one)[:40]


def test_26_many_transfers_at_the_same_time(clients: Clients, directory: Path, tree: Path) -> None:
    """rsync, scp, sftp and a tar stream, side by side."""
    tar = f"tar -C {tree} -cf - . | $SSH box 'mkdir {directory}/tar && tar -C {directory}/tar -xf -'"
    commands = {
        "rsync": [program("rsync"), "-a", f"{tree}/", f"{HOST}:{directory}/rsync/"],
        "scp": clients.command("-q", "-r", str(tree), f"{HOST}:{directory}/scp", name="scp"),
        "tar": ["sh", "-c", tar],
    }
    env = clients.environment(SSH=" ".join(clients.command()))
    running = {
        name: subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
        for name, command in commands.items()
    }
    assert {name: process.wait(DEADLINE_S) for name, process in running.items()} == dict.fromkeys(commands, 0)
    for name in commands:
        assert contents(directory / name, links=False) == contents(tree, links=False)
