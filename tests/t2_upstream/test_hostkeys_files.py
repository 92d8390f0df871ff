"""known_hosts files as such: every line there can be, and changes that fail halfway."""

from __future__ import annotations

import base64
import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.protocol.wire import string
from mux.upstream import knownhosts, sshagent

BLOB = string(b"ssh-ed25519") + string(b"k" * 32)
OTHER = string(b"ssh-ed25519") + string(b"o" * 32)


def text(blob: bytes) -> str:
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


@given(st.text(max_size=300))
def test_garbage_is_no_entry_and_no_error(garbage: str) -> None:
    for entry in knownhosts.parse(garbage, "f"):
        entry.names("box")


@given(st.text(alphabet="bBo?x*,![]:1|= ", max_size=12), st.sampled_from(["box", "[box]:1", "b"]))
def test_every_pattern_is_yes_or_no(pattern: str, host: str) -> None:
    assert knownhosts.matches(pattern, host) in (True, False)


@pytest.mark.parametrize(
    ("pattern", "host", "about"),
    [
        ("box", "BOX", True),
        ("Box", "box", True),
        ("*.example,!bad.example", "good.example", True),
        ("*.example,!bad.example", "bad.example", False),
        ("!bad.example", "good.example", False),
        ("[box]:2222", "[box]:2222", True),
        ("[box]:2222", "b", False),
        ("[b?x]:*", "[box]:2222", True),
        ("b.x", "box", False),
        ("|1|c2FsdA==|bm90aGluZw==", "box", False),
        ("|1|!|!", "box", False),
        ("|2|c2FsdA==|bm90aGluZw==", "box", False),
    ],
)
def test_patterns(pattern: str, host: str, about: bool) -> None:
    assert knownhosts.matches(pattern, host) is about


def test_lines_of_every_shape() -> None:
    lines = [
        f"box {text(BLOB)} comment",
        "",
        f"# {text(BLOB)}",
        f"@revoked * {text(OTHER)}",
        f"@cert-authority *.example\t{text(OTHER)}",
        f"@unknown box {text(BLOB)}",
        "box ssh-ed25519",
        "box ssh-ed25519 !!!!",
        f"box ssh-rsa {base64.b64encode(BLOB).decode()}",
        f"last {text(BLOB)}\r",
    ]
    found = knownhosts.parse("\n".join(lines), "file")
    assert [(entry.number, entry.marker, entry.hosts) for entry in found] == [
        (1, "", "box"),
        (4, "@revoked", "*"),
        (5, "@cert-authority", "*.example"),
        (10, "", "last"),
    ]
    assert [entry.blob for entry in found] == [BLOB, OTHER, OTHER, BLOB]


@pytest.mark.parametrize("salt", [b"s" * 20, bytes(20)])
def test_hashed_lines_are_found_by_their_name_alone(salt: bytes) -> None:
    line = knownhosts.line("[Box]:2222", BLOB, hashed=True, salt=salt)
    (entry,) = knownhosts.parse(line, "f")
    assert entry.is_hashed and entry.names("[box]:2222")
    assert not entry.names("box") and "ox" not in entry.hosts.lower().split("|")[0]


def test_a_change_that_cannot_be_written_leaves_the_file(tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"box {text(OTHER)}\n")
    (tmp_path / "known.old").mkdir()  # nothing can take its place
    with pytest.raises(OSError):
        knownhosts.replace(str(known), "box", [BLOB], add_missing=True, hashed=False)
    assert known.read_text() == f"box {text(OTHER)}\n"
    assert sorted(os.listdir(tmp_path)) == ["known", "known.old"]


def test_an_update_leaves_the_old_file_beside(tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"box {text(OTHER)}\n")
    assert knownhosts.replace(str(known), "box", [BLOB], add_missing=True, hashed=False)
    assert known.read_text() == f"box {text(BLOB)}\n"
    assert (tmp_path / "known.old").read_text() == f"box {text(OTHER)}\n"
    assert not knownhosts.replace(str(known), "box", [BLOB], add_missing=True, hashed=False)


def test_a_file_that_cannot_be_read_knows_nobody(tmp_path: Path) -> None:
    assert knownhosts.read([str(tmp_path), str(tmp_path / "missing")]) == []


class TestAgents:
    """The agent as it is asked before the login."""

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"\0\0",
            b"\0\0\0\0",
            b"\xff\xff\xff\xff",
            b"\0\0\0\1\x05",
            b"\0\0\0\5\x0c\0\0\0\x09",
            b"\0\0\0\x09\x0c\0\0\0\1\xff\xff\xff\xff",
            b"\0\0\0\5\x0c\xff\xff\xff\xff",
        ],
    )
    def test_a_bad_answer_holds_nothing(self, tmp_path: Path, answer: bytes) -> None:

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "agent"))
            listener.listen()

            def serve() -> None:
                client, _ = listener.accept()
                with client:
                    client.recv(5)
                    client.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            assert sshagent.blobs(str(tmp_path / "agent")) == frozenset()
            thread.join(60)

    def test_nobody_there_holds_nothing(self, tmp_path: Path) -> None:
        assert sshagent.blobs(str(tmp_path / "none")) == frozenset()
        assert sshagent.blobs(None) == frozenset()
