"""git with its work tree and repository on the tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.t4_mount.fixtures import Area
from tests.t5_interop.programs import attempt, run
from tests.t5_interop.samples import make_tree
from tests.t5_interop.watching import Watch

COMMITS = 12
LONG_AGO = 1_500_000_000


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository on the local disk, with a history."""
    path = tmp_path_factory.mktemp("git") / "origin"
    make_tree(path)
    run("git", "init", "-q", "-b", "main", path)
    for number in range(COMMITS):
        (path / f"commit-{number}").write_text(f"{number}\n" * 500)
        run("git", "add", "-A", cwd=path)
        run("git", "commit", "-q", "-m", f"Commit {number}", cwd=path)
    return path


def status(path: Path) -> str:
    """What git says has changed."""
    return run("git", "status", "--porcelain", cwd=path)


@pytest.mark.deadline(180)
def test_clone_work_and_check(area: Area, origin: Path) -> None:
    clone = area.here / "clone"
    run("git", "clone", "-q", "--no-local", origin, clone)
    assert status(clone) == ""
    assert run("git", "rev-list", "--count", "HEAD", cwd=clone) == f"{COMMITS}\n"
    for number in range(5):
        (clone / f"new-{number}").write_text(f"new {number}")
        (clone / f"commit-{number}").write_text(f"changed {number}")
        assert len(status(clone).splitlines()) == 2
        run("git", "add", "-A", cwd=clone)
        run("git", "commit", "-q", "-m", f"New {number}", cwd=clone)
        assert status(clone) == ""
    run("git", "gc", "-q", "--prune=now", cwd=clone)
    run("git", "fsck", "--full", "--strict", cwd=clone)
    run("git", "fsck", "--full", "--strict", cwd=area.there / "clone")
    assert status(clone) == ""
    run("git", "push", "-q", "origin", "HEAD:refs/heads/pushed", cwd=clone)
    assert run("git", "rev-list", "--count", "pushed", cwd=origin) == f"{COMMITS + 5}\n"
    run("git", "branch", "-q", "-D", "pushed", cwd=origin)


def test_branches_stash_rebase_and_worktree(area: Area, origin: Path) -> None:
    clone = area.here / "clone"
    run("git", "clone", "-q", "--no-local", origin, clone)
    run("git", "checkout", "-q", "-b", "side", "HEAD~5", cwd=clone)
    (clone / "side").write_text("side")
    run("git", "add", "side", cwd=clone)
    run("git", "commit", "-q", "-m", "Side", cwd=clone)
    run("git", "rebase", "-q", "main", cwd=clone)
    (clone / "side").write_text("changed")
    run("git", "stash", "-q", cwd=clone)
    assert (clone / "side").read_text() == "side"
    run("git", "stash", "pop", "-q", cwd=clone)
    assert (clone / "side").read_text() == "changed"
    run("git", "commit", "-q", "-a", "-m", "Changed", cwd=clone)
    run("git", "checkout", "-q", "main", cwd=clone)
    run("git", "merge", "-q", "--no-ff", "-m", "Merge", "side", cwd=clone)
    run("git", "worktree", "add", "-q", area.here / "second", "HEAD~1", cwd=clone)
    assert status(area.here / "second") == ""
    run("git", "worktree", "remove", area.here / "second", cwd=clone)
    run("git", "reset", "-q", "--hard", "HEAD~3", cwd=clone)
    run("git", "clean", "-q", "-fdx", cwd=clone)
    assert status(clone) == ""
    run("git", "fsck", "--full", "--strict", cwd=clone)


def test_a_second_status_reads_no_file(area: Area, origin: Path) -> None:
    """What git remembers of each file (times, size, inode number...) is still so: that tells that nothing changed."""
    clone = area.here / "clone"
    run("git", "clone", "-q", "--no-local", origin, clone)
    tracked = [clone / name for name in run("git", "ls-files", "-z", cwd=clone).split("\0") if name]
    for path in tracked:
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    assert status(clone) == ""
    there = area.there / "clone"
    directories = {there / path.parent.relative_to(clone) for path in tracked}
    with Watch(*directories) as watch:
        assert status(clone) == ""
        assert run("git", "diff-files", "--name-only", cwd=clone) == ""
        assert watch.seen() - {there / ".git"} == set()
        (clone / "commit-3").read_bytes()
        (clone / "commit-4").write_text("changed")
        assert status(clone) == " M commit-4\n"
        assert {there / "commit-4"} <= watch.seen()


def test_a_change_on_the_server_is_noticed(area: Area, origin: Path) -> None:
    clone = area.here / "clone"
    run("git", "clone", "-q", "--no-local", origin, area.there / "clone")
    assert status(clone) == ""
    run("git", "commit", "-q", "--allow-empty", "-m", "There", cwd=area.there / "clone")
    assert run("git", "log", "-1", "--format=%s", cwd=clone) == "There\n"


def test_a_bare_repository(area: Area, origin: Path) -> None:
    bare = area.here / "bare.git"
    run("git", "clone", "-q", "--bare", "--no-local", origin, bare)
    run("git", "push", "-q", bare, "HEAD:refs/heads/other", cwd=origin)
    run("git", "-C", bare, "repack", "-q", "-a", "-d")
    run("git", "-C", bare, "fsck", "--full", "--strict")
    run("git", "clone", "-q", bare, area.here / "again")
    assert status(area.here / "again") == ""


def test_a_lock_that_is_held(area: Area, origin: Path) -> None:
    clone = area.here / "clone"
    run("git", "clone", "-q", "--no-local", origin, clone)
    (clone / ".git" / "index.lock").touch()
    (clone / "new").write_text("new")
    refused = attempt("git", "add", "new", cwd=clone)
    assert refused.returncode != 0 and "index.lock" in refused.stderr
    (area.there / "clone" / ".git" / "index.lock").unlink()
    (clone / ".git" / "index.lock").unlink(missing_ok=True)
    run("git", "add", "new", cwd=clone)
