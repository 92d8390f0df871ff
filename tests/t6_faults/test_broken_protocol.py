"""A server that breaks the protocol loses its channel, at once; the mount opens another and goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounted import Mount
from tests.t6_faults.faults import CONTENT, DISCONNECTED, make, names, outcome, read, serves_others, size, sound

ACTIONS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "stat": ("file", size),
    "read": ("file", read),
    "list": ("directory", names),
    "readlink": ("link", os.readlink),
}

# What is done to the file, and how the log calls it.
BREAKS: dict[str, dict[str, str]] = {
    "stat": {
        "packet_length:0x7fffffff": "a reply announces 2147483647 bytes",
        "packet_length:0xffffffff": "a reply announces 4294967295 bytes",
        "packet_length:0x40001": "a reply announces 262145 bytes",
        "packet_length:0": "a reply announces 0 bytes",
        "packet_length:4": "a reply announces 4 bytes",
        "unknown_id": "which is not waiting for one",
        "flood": "which is not waiting for one",
        "reply_type:Lstat=99": "asked for ATTRS and was answered by type 99",
        "reply_type:Lstat=2": "asked for ATTRS and was answered by type 2",
        "reply_type:Lstat=102": "asked for ATTRS and was answered by type 102",
        "reply_type:Lstat=103": "asked for ATTRS and was answered by type 103",
        "ok:Lstat": "asked for ATTRS and was answered by OK alone",
        "body:0": "an? ATTRS reply of 0 bytes is cut short",
        "body:3": "an? ATTRS reply of 3 bytes is cut short",
        "body:30": "an? ATTRS reply of 30 bytes is cut short",
        "attributes:pairs": "an? ATTRS reply of [0-9]+ bytes is cut short",
    },
    "read": {
        "reply_type:Open=104": "asked for HANDLE and was answered by type 104",
        "reply_type:Read=102": "asked for DATA and was answered by type 102",
        "ok:Open": "asked for HANDLE and was answered by OK alone",
        "ok:Read": "asked for DATA and was answered by OK alone",
        "handle_length:257": "a handle of 257 bytes",
        "handle_length:300": "a handle of 300 bytes",
        "read_answer:longer": "bytes of DATA answer a READ of",
        "read_answer:much_longer": "(announces|bytes of DATA answer a READ of)",
        "read_answer:lying": "a DATA packet of",
    },
    "list": {
        "reply_type:Readdir=105": "asked for NAME and was answered by type 105",
        "ok:Opendir": "asked for HANDLE and was answered by OK alone",
        "ok:Readdir": "asked for NAME and was answered by OK alone",
        "name_count:2": "an? NAME reply of [0-9]+ bytes is cut short",
        "name_count:0xffffffff": "an? NAME reply of [0-9]+ bytes is cut short",
    },
    "readlink": {
        "reply_type:Readlink=103": "asked for NAME and was answered by type 103",
        "ok:Readlink": "asked for NAME and was answered by OK alone",
    },
}


@pytest.mark.parametrize("action", BREAKS)
def test_the_request_fails_and_others_go_on(
    evil: Callable[..., Mount], reopens: Callable[[str], None], remote_dir: Path, action: str
) -> None:
    """Without waiting for any deadline, and without a byte that the server did not send."""
    kind, act = ACTIONS[action]
    cases = {case: make(remote_dir, case, kind) for case in BREAKS[action]}
    mount = evil()
    found = {}
    for case, name in cases.items():
        reopens(BREAKS[action][case])
        found[case] = outcome(act, mount.path / name)
        serves_others(mount, remote_dir)
    assert {case: each for case, each in found.items() if each not in DISCONNECTED} == {}
    sound(mount, remote_dir)


def test_a_second_answer_to_one_request(
    evil: Callable[..., Mount], reopens: Callable[[str], None], remote_dir: Path
) -> None:
    """The first may count; the second answers nothing."""
    reopens("which is not waiting for one")
    name = make(remote_dir, "twice")
    mount = evil()
    assert outcome(size, mount.path / name) in (len(CONTENT), *DISCONNECTED)
    sound(mount, remote_dir)


def test_handles_of_any_length_that_is_allowed(evil: Callable[..., Mount], remote_dir: Path) -> None:
    found = [make(remote_dir, f"handle_length:{length}") for length in (0, 1, 256)]
    mount = evil()
    assert [outcome(read, mount.path / name) == CONTENT for name in found] == [True] * 3
    sound(mount, remote_dir)
