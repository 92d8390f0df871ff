"""UpdateHostKeys: the same server and files for ssh and for us; the files must be the same afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.sshd import HOST, Sshd, program
from tests.t2_upstream.logins import OnTerminal, keygen, on_terminal

QUESTION = "Accept updated hostkeys? (yes/no): "


class Rotation:
    """A server with several host keys. `lines` are known_hosts lines of its keys, by name, and of one it has not."""

    def __init__(self, make_sshd: Callable[..., Sshd], directory: Path) -> None:
        self.directory = directory
        keygen(directory / "second", kind="ecdsa")
        keygen(directory / "third", kind="rsa")
        keygen(directory / "gone", kind="ed25519")
        self.server = make_sshd(extra=[f"HostKey {directory}/second", f"HostKey {directory}/third"])
        paths = {"first": self.server.directory / "host_key"}
        paths |= {name: directory / name for name in ("second", "third", "gone")}
        self.keys = {name: " ".join(Path(f"{path}.pub").read_text().split()[:2]) for name, path in paths.items()}

    def after(self, who: str, files: list[str], *options: str, answer: str = "") -> tuple[list[str], list[str], str]:
        """(contents of the files, of their .old, what was shown) after a login by `who`."""
        directory = self.directory / who
        directory.mkdir(exist_ok=True)
        paths = [directory / f"known{number}" for number in range(len(files))]
        for path, content in zip(paths, files, strict=True):
            path.write_text(content.format(**self.keys))
            Path(f"{path}.old").unlink(missing_ok=True)
        settings = [
            f"UserKnownHostsFile={' '.join(map(str, paths))}",
            "HostKeyAlgorithms=ssh-ed25519,ecdsa-sha2-nistp256",
            *options,
        ]
        if not any(option.startswith("UpdateHostKeys") for option in options):
            settings.insert(0, "UpdateHostKeys=yes")
        with self._start(who, settings) as terminal:
            if answer:
                terminal.expect(QUESTION)
                terminal.type(f"{answer}\n")
            assert terminal.ended() == 0, terminal.text
            terminal.rest()
        olds = [Path(f"{path}.old") for path in paths]
        return [path.read_text() for path in paths], [x.read_text() for x in olds if x.exists()], terminal.text

    def _start(self, who: str, settings: list[str]) -> OnTerminal:
        if who == "ours":
            return on_terminal(self.server, *settings)
        options = [part for setting in settings for part in ("-o", setting)]
        command = [program("ssh"), "-F", str(self.server.ssh_config), *options, HOST, "sleep 0.5"]
        return OnTerminal(command, self.server.environment())


@pytest.fixture
def rotation(make_sshd: Callable[..., Sshd], tmp_path: Path) -> Rotation:
    return Rotation(make_sshd, tmp_path)


FIRST = "# mine\nbox {first}\n"
CASES = {
    "learns": ([FIRST], True),
    "forgets": (["box {first}\nbox {gone}\nbox {second}\nother {gone_of_other}\n"], True),
    "both, keeping other lines": (["a {third}\nbox {gone}\n\nbox {first}\n# end"], True),
    "nothing new": (["box {first}\nbox {second}\n"], False),
    "all of it in several files": ([FIRST, "box {second}\nx {third}\n", "box {first}\n"], False),
    "several files": ([FIRST, "box {gone}\nx {third}\n", "box {first}\n"], True),
    "a list of names": (["box,other {first}\n"], True),
    "an old key for a list of names": (["box {first}\nbox,other {gone}\n"], True),
    "a pattern": (["bo* {first}\n"], False),
    "an authority": (["box {first}\n@cert-authority box {third}\n"], False),
    "a key under another name": (["box {first}\nother {second}\n"], False),
    "an old key under another name": (["box {first}\nbox {gone}\nother {gone}\n"], False),
}


@pytest.mark.parametrize("name", CASES)
def test_the_files_are_what_ssh_makes_of_them(rotation: Rotation, name: str) -> None:
    files, changed = CASES[name]
    files = [content.replace("other {gone_of_other}\n", "") for content in files]
    ssh, ssh_old, _ = rotation.after("ssh", files)
    ours, ours_old, _ = rotation.after("ours", files)
    assert ours == ssh
    assert ours_old == ssh_old
    assert (ours != [content.format(**rotation.keys) for content in files]) is changed


@pytest.mark.parametrize(
    "options",
    [
        ("UpdateHostKeys=no",),
        ("StrictHostKeyChecking=accept-new",),
        ("GlobalKnownHostsFile=GLOBAL", "StrictHostKeyChecking=yes"),
    ],
)
def test_who_is_not_known_teaches_nothing(rotation: Rotation, tmp_path: Path, options: tuple[str, ...]) -> None:
    known = tmp_path / "global"
    known.write_text(f"{HOST} {rotation.keys['first']}\n")
    options = tuple(option.replace("GLOBAL", str(known)) for option in options)
    files = [FIRST if options[0].startswith("UpdateHostKeys") else ""]
    ssh, _, _ = rotation.after("ssh", files, *options)
    ours, _, _ = rotation.after("ours", files, *options)
    assert ours == ssh
    assert rotation.keys["second"] not in ours[0]


def test_hashed_names(rotation: Rotation) -> None:
    ours, _, _ = rotation.after("ours", [FIRST], "HashKnownHosts=yes")
    assert ours[0].startswith(f"# mine\nbox {rotation.keys['first']}\n|1|")
    # What was written hashed is found again, by both.
    for who in ("ssh", "ours"):
        again, _, _ = rotation.after(who, [ours[0]], "HashKnownHosts=yes", "StrictHostKeyChecking=yes")
        assert again == ours


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_a_person_is_asked(rotation: Rotation, answer: str) -> None:
    ours, _, shown = rotation.after("ours", [FIRST], "UpdateHostKeys=ask", answer=answer)
    assert (rotation.keys["second"] in ours[0]) is (answer == "yes")
    assert "The server has updated its host keys." in shown
    assert "Learned new hostkey: ECDSA SHA256:" in shown
