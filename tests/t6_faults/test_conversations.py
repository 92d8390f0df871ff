"""Servers that talk otherwise: in another order, byte by byte, on stderr, not SFTP at all, or nonsense at the start."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mux.errors import ExitCode
from tests.support.mounted import Mount, MountError
from tests.t6_faults.faults import CONTENT, DISCONNECTED, MIB, names, outcome, read, sound


def tree(top: Path) -> dict[str, bytes]:
    """Every file below, with its content."""
    return {
        os.path.relpath(os.path.join(where, name), top): (Path(where) / name).read_bytes()
        for where, _, files in os.walk(top)
        for name in files
    }


def work(top: Path) -> dict[str, bytes]:
    """A little of everything, and what is there in the end."""
    top.mkdir()
    (top / "dir").mkdir()
    for number in range(30):
        (top / "dir" / f"file-{number}").write_bytes(b"%d" % number * 100)
    (top / "dir" / "file-3").rename(top / "dir" / "renamed")
    (top / "dir" / "file-4").unlink()
    with (top / "dir" / "file-5").open("r+b") as file:
        file.truncate(7)
        file.seek(100_000)
        file.write(b"end")
        os.fsync(file.fileno())
    (top / "copy").write_bytes(b"".join(tree(top / "dir").values()))
    assert len(names(top / "dir")) == 29
    return tree(top)


@pytest.mark.parametrize("conversation", ["plain", "reorder", "dribble"])
def test_what_is_allowed_works(evil: Callable[..., Mount], remote_dir: Path, conversation: str) -> None:
    """Answers in the reverse order, and answers that come byte by byte, are answers."""
    mount = evil(conversation=conversation)
    found = outcome(work, mount.path / "top", within_s=60.0)
    assert found == tree(remote_dir / "top")
    assert len(found) == 30
    sound(mount, remote_dir)


def test_much_is_read_and_written_out_of_order(evil: Callable[..., Mount], remote_dir: Path) -> None:
    mount = evil(conversation="reorder")
    assert outcome(read, mount.path / "content", within_s=60.0) == CONTENT
    assert outcome((mount.path / "copy").write_bytes, CONTENT, within_s=60.0) == len(CONTENT)
    assert (remote_dir / "copy").read_bytes() == CONTENT
    sound(mount, remote_dir)


@pytest.mark.parametrize("limits", ["huge_limits", "small_limits", "packet_limits"])
def test_limits_that_make_no_sense(evil: Callable[..., Mount], remote_dir: Path, limits: str) -> None:
    """They are bounded by what is sensible, and what is read and written is right."""
    mount = evil(conversation=f"root:{limits}")
    assert outcome(read, mount.path / "content", within_s=60.0) == CONTENT
    assert outcome((mount.path / "copy").write_bytes, CONTENT, within_s=60.0) == len(CONTENT)
    assert (remote_dir / "copy").read_bytes() == CONTENT
    sound(mount, remote_dir)


# How a mount that cannot start ends: the exit code, and what it says.
NO_MOUNT: dict[str, tuple[ExitCode, str]] = {
    "version:2": (ExitCode.PROTOCOL, "SFTP version 2"),
    "version:0": (ExitCode.PROTOCOL, "SFTP version 0"),
    "greeting:banner": (ExitCode.PROTOCOL, r"not speak SFTP; it began with b'Welcome to \x1b[31mthis\x07 machine"),
    "greeting:text": (ExitCode.PROTOCOL, "not speak SFTP; it began with b'short'"),
    "greeting:flood": (ExitCode.PROTOCOL, "not speak SFTP; it began with b'All work and no play"),
    "greeting:length": (ExitCode.PROTOCOL, "not speak SFTP"),
    "greeting:garbled": (ExitCode.PROTOCOL, "runs past the end of the packet"),
    "quits": (ExitCode.NO_SUBSYSTEM, r"(exit status 3): sftp-server: \x1b]0;title\x07 cannot do this; second line"),
    "root:no_limits": (ExitCode.PROTOCOL, "a limits reply has 32 bytes, this one 7"),
    "root:relative": (ExitCode.PROTOCOL, "no absolute path"),
    "root:two": (ExitCode.BAD_REMOTE_DIRECTORY, "one name was expected"),
    "root:denied": (ExitCode.BAD_REMOTE_DIRECTORY, "permission denied"),
    "root:missing": (ExitCode.BAD_REMOTE_DIRECTORY, "no such directory"),
    "root:file": (ExitCode.BAD_REMOTE_DIRECTORY, "is not a directory"),
    "root:unknown": (ExitCode.BAD_REMOTE_DIRECTORY, "is not a directory"),
}


@pytest.mark.parametrize("conversation", NO_MOUNT)
@pytest.mark.parametrize("foreground", [True, False])
def test_no_mount(evil: Callable[..., Mount], conversation: str, foreground: bool) -> None:
    """One line that says what was found, safe for a terminal; an exit code; and nothing mounted."""
    code, text = NO_MOUNT[conversation]
    with pytest.raises(MountError) as caught:
        evil(conversation=conversation, foreground=foreground)
    assert caught.value.exit_code == code
    output = caught.value.output
    assert "\x1b" not in output and "\x07" not in output
    assert "Traceback" not in output
    assert len(output) < 2000
    assert text in output


def test_ten_megabytes_of_complaints(evil: Callable[..., Mount], remote_dir: Path) -> None:
    """Nobody waits for stderr, and it is not kept."""
    for number in range(3):
        (remote_dir / f"talk-{number}").write_bytes(CONTENT)
    mount = evil(conversation="talk")
    for number in range(3):
        assert outcome(read, mount.path / f"talk-{number}", within_s=60.0) == CONTENT
    sound(mount, remote_dir)
    assert len(mount.log_text()) < 10_000


def test_complaints_before_death(evil: Callable[..., Mount], reopens: Callable[[str], None], remote_dir: Path) -> None:
    """The end of what was said is in the log, escaped."""
    reopens(r"exit status 4.*\\x1b\[2J a complaint")
    mount = evil(conversation="talk")
    assert outcome(read, mount.path / "talk-and-die") in DISCONNECTED
    sound(mount, remote_dir)
    log = mount.log_text()
    assert "\x1b" not in log
    assert len(log) < 20_000
    assert mount.peak_rss_bytes() < 100 * MIB
