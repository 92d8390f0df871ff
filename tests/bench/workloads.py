"""The work that is timed, in the order of the report: real commands, as users type them."""

from __future__ import annotations

import filecmp
import hashlib
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench import corpus, random_reads
from tests.bench.sizes import MIB
from tests.bench.workload import Outcome, Setting, Workload, expect

# The whole big file once more, at the slowest rate that a run is waited for.
COMPARE_DEADLINE_S = 300.0


class Start(Workload):
    """From the command to the working mount."""

    name = "start"
    # Reading the programs themselves from the disk is no part of joining.
    cold = False
    title = "mount, by joining"
    TEXT = "it works\n"

    @property
    def command(self) -> Sequence[str]:
        return ["cat", self.made("works", lambda path: path.write_text(self.TEXT)).name]

    def elapsed_s(self, outcome: Outcome) -> float:
        return outcome.start_s

    def check(self, outcome: Outcome, *, first: bool) -> None:
        expect("cat", outcome.output, self.TEXT)


class SequentialRead(Workload):
    name = "read"

    @property
    def title(self) -> str:
        return f"read {self.setting.sizes.big_bytes // MIB} MiB"

    @property
    def command(self) -> Sequence[str]:
        return ["dd", f"if={self.big().name}", "of=/dev/null", "bs=128k"]

    @property
    def moved_bytes(self) -> int | None:
        return self.setting.sizes.big_bytes

    def check(self, outcome: Outcome, *, first: bool) -> None:
        expect("dd's count", copied_bytes(outcome.complaint), self.setting.sizes.big_bytes)
        if first:
            served = self.big()
            compared = subprocess.run(
                ["cmp", str(outcome.mount_point / served.name), str(served)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMPARE_DEADLINE_S,
            )
            expect("cmp", (compared.returncode, compared.stdout + compared.stderr), (0, ""))


class SequentialWrite(Workload):
    name = "write"
    makes = ("written",)

    @property
    def title(self) -> str:
        return f"write {self.setting.sizes.big_bytes // MIB} MiB, fsync"

    @property
    def command(self) -> Sequence[str]:
        return ["dd", f"if={self.big()}", "of=written", "bs=128k", "conv=fsync"]

    @property
    def moved_bytes(self) -> int | None:
        return self.setting.sizes.big_bytes

    def check(self, outcome: Outcome, *, first: bool) -> None:
        expect("dd's count", copied_bytes(outcome.complaint), self.setting.sizes.big_bytes)
        # fsync has returned: all of it has to be there now, not when the mount has gone.
        expect("whether the written file is right", self.served_is_right(), True)

    def served_is_right(self) -> bool:
        filecmp.clear_cache()
        return filecmp.cmp(self.setting.served / "written", self.big(), shallow=False)


class RandomReads(Workload):
    name = "random"
    SEED = 20_260

    @property
    def title(self) -> str:
        return f"{self.setting.sizes.random_reads} random reads of 4 KiB"

    @property
    def command(self) -> Sequence[str]:
        script = str(Path(random_reads.__file__))
        return [
            sys.executable,
            "-I",
            "-S",
            script,
            self.big().name,
            str(self.setting.sizes.random_reads),
            str(self.SEED),
        ]

    def elapsed_s(self, outcome: Outcome) -> float:
        return float(outcome.output.split()[0])

    def check(self, outcome: Outcome, *, first: bool) -> None:
        _, right = random_reads.read_blocks(str(self.big()), self.setting.sizes.random_reads, self.SEED)
        expect("the hash of the blocks", outcome.output.split()[1], right)


class LongListing(Workload):
    name = "ls"

    @property
    def title(self) -> str:
        return f"ls -l of {self.setting.sizes.list_entries} entries"

    def many(self) -> Path:
        entries = self.setting.sizes.list_entries
        return self.made(f"many-{entries}", lambda path: corpus.make_listing(path, entries))

    @property
    def command(self) -> Sequence[str]:
        return ["ls", "-l", self.many().name]

    def check(self, outcome: Outcome, *, first: bool) -> None:
        rows = [line.split(None, 8) for line in outcome.output.splitlines()[1:]]
        right = {(name, str(size)) for kind, name, _, size, _ in corpus.listing(self.many()) if kind == "f"}
        expect("the number of lines", len(rows), len(right))
        expect("names and sizes", {(row[8], row[4]) for row in rows} ^ right, set())


class Find(Workload):
    name = "find"

    @property
    def title(self) -> str:
        return f"find -printf, {self.setting.sizes.find_files} files"

    @property
    def command(self) -> Sequence[str]:
        return ["find", self.tree(self.setting.sizes.find_files).name, "-printf", "%y|%P|%m|%s|%T@\\n"]

    def check(self, outcome: Outcome, *, first: bool) -> None:
        rows = [line.split("|") for line in outcome.output.splitlines()]
        # The size of a directory is the server's file system's affair.
        found = {(y, p, int(m, 8), 0 if y == "d" else int(s), int(float(t))) for y, p, m, s, t in rows}
        right = corpus.listing(self.tree(self.setting.sizes.find_files))
        expect("the number of lines", len(rows), len(right))
        expect("names and attributes", found ^ right, set())


class Grep(Workload):
    name = "grep"

    @property
    def title(self) -> str:
        return f"grep -r, {self.setting.sizes.grep_files} files"

    @property
    def command(self) -> Sequence[str]:
        return ["grep", "-r", corpus.NEEDLE, self.tree(self.setting.sizes.grep_files).name]

    def check(self, outcome: Outcome, *, first: bool) -> None:
        files = self.setting.sizes.grep_files
        top = self.tree(files).name
        holding = list(corpus.tree_paths(files))[:: corpus.NEEDLE_EVERY]
        right = sorted(f"{top}/{path}:{corpus.NEEDLE} {path}" for path in holding)
        expect("the lines found", sorted(outcome.output.splitlines()), right)


class Untar(Workload):
    name = "untar"
    makes = ("unpacked",)

    @property
    def title(self) -> str:
        return f"untar {self.setting.sizes.untar_files} files"

    def archive(self) -> Path:
        path = self.setting.scratch / f"tree-{self.setting.sizes.untar_files}.tar"
        if not path.exists():
            corpus.make_tar(path, self.tree(self.setting.sizes.untar_files))
        return path

    @property
    def command(self) -> Sequence[str]:
        return ["tar", "-xf", str(self.archive()), "-C", "unpacked"]

    def reset(self) -> None:
        super().reset()
        (self.setting.served / "unpacked").mkdir()

    def check(self, outcome: Outcome, *, first: bool) -> None:
        expect("tar's output", outcome.output, "")

    def served_is_right(self) -> bool:
        tree = self.tree(self.setting.sizes.untar_files)
        return corpus.digest(self.setting.served / "unpacked" / tree.name) == corpus.digest(tree)


class GitStatus(Workload):
    """The index was written on the server: in the mount git finds other inode numbers, and reads every file."""

    name = "git"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.repository = setting.served / f"repository-{setting.sizes.git_files}"
        self.right = corpus.make_repository(self.repository, setting.sizes.git_files, setting.environment)
        self.index = (self.repository / ".git/index").read_bytes()

    @property
    def title(self) -> str:
        return f"git status, {self.setting.sizes.git_files} files"

    @property
    def command(self) -> Sequence[str]:
        return ["git", "-C", self.repository.name, "status", "--porcelain"]

    def reset(self) -> None:
        # git has left there what it learnt through the other mount.
        (self.repository / ".git/index").write_bytes(self.index)

    def check(self, outcome: Outcome, *, first: bool) -> None:
        expect("git status", outcome.output, self.right)


class Tar(Workload):
    name = "tar"
    extra = True

    @property
    def title(self) -> str:
        return f"tar, {self.setting.sizes.grep_files} files"

    @property
    def command(self) -> Sequence[str]:
        return ["tar", "-cf", str(self.setting.scratch / "packed.tar"), self.tree(self.setting.sizes.grep_files).name]

    def check(self, outcome: Outcome, *, first: bool) -> None:
        tree = self.tree(self.setting.sizes.grep_files)
        found, right = set(), set()
        with tarfile.open(self.setting.scratch / "packed.tar") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                found.add((member.name, member.mode, member.mtime, sha256(content.read() if content else b"")))
        for kind, name, mode, _, mtime in corpus.listing(tree):
            content_hash = sha256((tree / name).read_bytes() if kind == "f" else b"")
            right.add((f"{tree.name}/{name}".rstrip("/"), mode, mtime, content_hash))
        expect("the archive's members", found ^ right, set())


class Remove(Workload):
    name = "rm"
    makes = ("doomed",)
    extra = True

    @property
    def title(self) -> str:
        return f"rm -r, {self.setting.sizes.untar_files} files"

    @property
    def command(self) -> Sequence[str]:
        return ["rm", "-r", "doomed"]

    def reset(self) -> None:
        super().reset()
        corpus.make_tree(self.setting.served / "doomed", self.setting.sizes.untar_files)

    def check(self, outcome: Outcome, *, first: bool) -> None:
        expect("rm's output", outcome.output, "")

    def served_is_right(self) -> bool:
        return not (self.setting.served / "doomed").exists()


# In the order of the report.
ALL: tuple[type[Workload], ...] = (
    Start,
    SequentialRead,
    SequentialWrite,
    RandomReads,
    LongListing,
    Find,
    Grep,
    Untar,
    GitStatus,
    Tar,
    Remove,
)


def copied_bytes(complaint: str) -> int | None:
    """What dd says that it copied."""
    match = re.search(r"^(\d+) bytes? ", complaint, re.MULTILINE)
    return int(match[1]) if match else None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
