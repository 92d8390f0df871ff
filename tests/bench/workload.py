"""What a workload is: its name, its command, what to put back before each run, and what the right answer is.

The rule: a workload prepares on the server's side, names one command, and checks the answer when the clock has stopped;
a wrong answer raises WrongAnswer, so that it cannot look fast. Commands run in the mount point and name files relative
to it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.bench import corpus
from tests.bench.sizes import Sizes


class WrongAnswer(Exception):
    """The command ended, and what it said or left behind is not what is served."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a run works: `served` is on the server, `scratch` beside the client; both in memory where possible."""

    served: Path
    scratch: Path
    sizes: Sizes
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a timed command did, and the mount it did it in."""

    wall_s: float
    start_s: float
    output: str
    complaint: str
    mount_point: Path


class Workload(abc.ABC):
    """One row. `name` is for the command line; `extra` ones run only when asked for."""

    name: ClassVar[str]
    extra: ClassVar[bool] = False
    # Names in the served directory that it leaves behind.
    makes: ClassVar[tuple[str, ...]] = ()
    # Whether caches are emptied before it.
    cold: ClassVar[bool] = True

    def __init__(self, setting: Setting) -> None:
        """Makes what it needs of the served files. Not timed."""
        self.setting = setting

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """What the report calls it, with its size."""

    @property
    @abc.abstractmethod
    def command(self) -> Sequence[str]:
        """The command, to be run in the mount point."""

    @property
    def moved_bytes(self) -> int | None:
        """How many bytes of files it moves, where a rate says something."""
        return None

    def reset(self) -> None:
        """Put the served files back to how the command has to find them. Before the mount is made."""
        for name in self.makes:
            corpus.remove(self.setting.served / name)

    def elapsed_s(self, outcome: Outcome) -> float:
        """What counts as its time."""
        return outcome.wall_s

    @abc.abstractmethod
    def check(self, outcome: Outcome, *, first: bool) -> None:
        """With the mount still there; `first` for the one thorough look per contender. Raises WrongAnswer."""

    def served_is_right(self) -> bool:
        """Whether the server holds what it has to, when the mount is gone."""
        return True

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        """`served/name`, made by `make` unless another workload of the same sizes has made it."""
        path = self.setting.served / name
        if not path.exists():
            make(path)
        return path

    def big(self) -> Path:
        size = self.setting.sizes.big_bytes
        return self.made(f"big-{size}", lambda path: corpus.make_big(path, size))

    def tree(self, files: int) -> Path:
        return self.made(f"tree-{files}", lambda path: corpus.make_tree(path, files))


def expect(what: str, found: object, right: object) -> None:
    """Raise WrongAnswer unless they are equal; the message is bounded."""
    if found != right:
        raise WrongAnswer(f"{what}: {str(found)[:300]!r}, not {str(right)[:300]!r}")
