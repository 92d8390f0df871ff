"""known_hosts: the same host, files and answers are given to ssh and to us, and must come to the same end.

"The same end" is whether the login goes on, what the known_hosts files hold then, and what the person was shown.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from mux.errors import ExitCode
from tests.support.sshd import HOST, Sshd, program
from tests.support.waiting import DEADLINE_S
from tests.t2_upstream.logins import OnTerminal, Said, keygen, log_in, on_terminal, refused, sign

QUESTION = "Are you sure you want to continue connecting (yes/no/[fingerprint])? "


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Public keys of nobody in particular, as lines of a public key file."""
    directory = tmp_path_factory.mktemp("keys")
    for kind in ("ed25519", "rsa", "ecdsa"):
        keygen(directory / kind, kind=kind)
    return {kind: (directory / f"{kind}.pub").read_text().strip() for kind in ("ed25519", "rsa", "ecdsa")}


@dataclass
class End:
    """How a login ended."""

    accepted: bool
    files: list[str]
    shown: str


class Pair:
    """One server, asked by ssh and by us with files of the same content."""

    def __init__(self, server: Sshd, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.key = " ".join((server.directory / "host_key.pub").read_text().split()[:2])

    def both(self, files: list[str], *options: str, answers: tuple[tuple[str, str], ...] = ()) -> tuple[End, End]:
        """`files`: contents of the user's known_hosts files; `answers`: question, answer."""
        return self.one("ssh", files, options, answers), self.one("ours", files, options, answers)

    def one(self, who: str, files: list[str], options: tuple[str, ...], answers: tuple[tuple[str, str], ...]) -> End:
        directory = self.directory / who
        directory.mkdir(exist_ok=True)
        paths = [directory / f"known{number}" for number in range(len(files))]
        for path, content in zip(paths, files, strict=True):
            path.write_text(content)
        if not files:
            paths = [directory / "new" / "known0"]
        settings = [f"UserKnownHostsFile={' '.join(map(str, paths))}", "StrictHostKeyChecking=ask", *options]
        if any(option.startswith("StrictHostKeyChecking") for option in options):
            settings.pop(1)
        with self._start(who, settings) as terminal:
            for question, answer in answers:
                terminal.expect(question)
                terminal.type(f"{answer}\n")
            code = terminal.ended()
            terminal.rest()
            shown = terminal.text.replace(str(directory), "DIR")
        found = [path.read_text() if path.exists() else "" for path in paths]
        return End(code == 0, found, shown)

    def _start(self, who: str, settings: list[str]) -> OnTerminal:
        if who == "ours":
            return on_terminal(self.server, *settings)
        options = [part for setting in settings for part in ("-o", setting)]
        command = [program("ssh"), "-F", str(self.server.ssh_config), *options, HOST, "true"]
        return OnTerminal(command, self.server.environment())


@pytest.fixture
def pair(make_sshd: Callable[..., Sshd], tmp_path: Path) -> Pair:
    return Pair(make_sshd(), tmp_path)


def told(text: str) -> list[str]:
    """The lines that both say: without the prompt's line, the result of the login, and what ssh says besides."""
    lines = [line.strip("\r") for line in text.split("\n")]
    dropped = ("FAILED", "IN", "Host key verification failed.", "")
    return [re.sub(r":\d{4,5}\)", ":PORT)", line) for line in lines if not line.startswith(dropped[:3]) and line]


def test_a_new_host_is_asked_about_in_ssh_words(pair: Pair) -> None:
    for answer, accepted in (("yes", True), ("no", False), ("", False)):
        ssh, ours = pair.both([""], answers=((QUESTION, answer),))
        assert ssh.accepted is ours.accepted is accepted
        assert ours.files == ssh.files == ([f"{HOST} {pair.key}\n"] if accepted else [""])
        assert told(ours.shown) == told(ssh.shown)


def test_the_fingerprint_is_an_answer(pair: Pair) -> None:
    said = refused(pair.server.ssh_config, f"UserKnownHostsFile={pair.directory}/none", batch=True).message
    found = re.search(r"SHA256:\S+", said)
    assert found is None  # strict: nobody is asked, nothing is offered
    command = ["ssh-keygen", "-l", "-f", str(pair.server.directory / "host_key.pub")]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout
    fingerprint = listed.split()[1]
    again = "Please type 'yes', 'no' or the fingerprint: "
    ssh, ours = pair.both([""], answers=((QUESTION, "maybe"), (again, fingerprint)))
    assert ssh.accepted and ours.accepted
    assert ours.files == ssh.files


def test_a_file_and_its_directory_are_made(pair: Pair) -> None:
    ssh, ours = pair.both([], answers=((QUESTION, "yes"),))
    assert ours.accepted and ssh.accepted
    assert ours.files[0] == f"{HOST} {pair.key}\n"


def test_a_line_without_an_end_gets_one(pair: Pair, keys: dict[str, str]) -> None:
    # Older versions of ssh write on in that line, which costs both keys.
    ours = pair.one("ours", [f"other {keys['rsa']}"], (), ((QUESTION, "yes"),))
    assert ours.files == [f"other {keys['rsa']}\n{HOST} {pair.key}\n"]


def test_other_names_of_the_key_are_listed(pair: Pair) -> None:
    hashed = "|1|AAAAAAAAAAAAAAAAAAAAAAAAAAA=|AAAAAAAAAAAAAAAAAAAAAAAAAAA="
    files = [f"# comment\nelsewhere,10.0.0.1 {pair.key}\n\n{hashed} {pair.key}\n"]
    ssh, ours = pair.both(files, answers=((QUESTION, "no"),))
    assert told(ours.shown) == told(ssh.shown)
    assert "elsewhere,10.0.0.1" in ours.shown and "[hashed name]" in ours.shown


@pytest.mark.parametrize("strict", ["accept-new", "no"])
@pytest.mark.parametrize("hashed", [False, True])
def test_new_hosts_are_taken_without_a_question(pair: Pair, strict: str, hashed: bool) -> None:
    options = (f"StrictHostKeyChecking={strict}", f"HashKnownHosts={'yes' if hashed else 'no'}")
    ssh, ours = pair.both([""], *options)
    assert ssh.accepted and ours.accepted
    assert told(ours.shown) == told(ssh.shown)
    if not hashed:
        assert ours.files == ssh.files
        return
    form = r"\|1\|[A-Za-z0-9+/]{27}=\|[A-Za-z0-9+/]{27}= " + re.escape(pair.key) + "\n"
    assert re.fullmatch(form, ours.files[0]) and re.fullmatch(form, ssh.files[0])
    # Each reads what the other wrote.
    swapped = pair.one("ssh", ours.files, ("StrictHostKeyChecking=yes",), ())
    assert swapped.accepted and pair.one("ours", ssh.files, ("StrictHostKeyChecking=yes",), ()).accepted


def test_strict_means_strict(pair: Pair) -> None:
    ssh, ours = pair.both([""], "StrictHostKeyChecking=yes")
    assert not ssh.accepted and not ours.accepted
    assert "No ED25519 host key is known for box and you have requested strict checking" in ours.shown
    assert ours.files == ssh.files == [""]


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
@pytest.mark.parametrize("strict", ["ask", "accept-new", "yes"])
def test_a_changed_key_is_refused_loudly(pair: Pair, keys: dict[str, str], kind: str, strict: str) -> None:
    files = [f"other {pair.key}\n{HOST} {keys[kind]}\n"]
    ssh, ours = pair.both(files, f"StrictHostKeyChecking={strict}")
    assert not ssh.accepted and not ours.accepted
    assert ours.files == ssh.files == files
    said = told(ours.shown)
    assert "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @" in said
    # Every line of the warning; the last one of ssh is our message.
    assert said == told(ssh.shown)[: len(said)]
    assert f"FAILED {int(ExitCode.HOST_KEY)} Host key for box has changed" in ours.shown
    assert "DIR/known0:2" in ours.shown


def test_a_changed_key_with_strict_off_goes_on_without_passwords(pair: Pair, keys: dict[str, str]) -> None:
    files = [f"{HOST} {keys['ed25519']}\n"]
    ssh, ours = pair.both(files, "StrictHostKeyChecking=no")
    assert ssh.accepted and ours.accepted
    assert ours.files == ssh.files == files
    assert told(ours.shown) == told(ssh.shown)
    refusal = refused(
        pair.server.ssh_config,
        f"UserKnownHostsFile={pair.directory}/ours/known0",
        "StrictHostKeyChecking=no",
        "LocalForward=/tmp/never /tmp/never",
    )
    assert refusal.exit_code is ExitCode.HOST_KEY and "forwardings" in refusal.message


@pytest.mark.parametrize("strict", ["ask", "yes", "accept-new"])
def test_a_revoked_key_is_refused_loudly(pair: Pair, strict: str) -> None:
    files = [f"{HOST} {pair.key}\n@revoked * {pair.key}\n"]
    ssh, ours = pair.both(files, f"StrictHostKeyChecking={strict}")
    assert not ssh.accepted and not ours.accepted
    assert "@       WARNING: REVOKED HOST KEY DETECTED!               @" in ours.shown
    assert f"FAILED {int(ExitCode.HOST_KEY)} ED25519 host key for box was revoked" in ours.shown


def test_a_revoked_key_is_refused_even_where_ssh_is_told_not_to_mind(pair: Pair) -> None:
    assert not pair.one("ours", [f"@revoked {HOST} {pair.key}\n"], ("StrictHostKeyChecking=no",), ()).accepted


def test_a_file_of_revoked_keys(pair: Pair, keys: dict[str, str]) -> None:
    revoked = pair.directory / "revoked"
    for content, accepted in ((f"# none\n{keys['rsa']}\n", True), (f"{keys['rsa']}\n{pair.key} old\n", False)):
        revoked.write_text(content)
        ssh, ours = pair.both([f"{HOST} {pair.key}\n"], f"RevokedHostKeys={revoked}")
        assert ssh.accepted is ours.accepted is accepted
    assert f"revoked by file {revoked}" in ours.shown and f"revoked by file {revoked}" in ssh.shown
    ssh, ours = pair.both([f"{HOST} {pair.key}\n"], f"RevokedHostKeys={pair.directory}/missing")
    assert not ssh.accepted and not ours.accepted


KNOWN = [
    ("{name} {key}\n", True),
    ("* {key}\n", True),
    ("b?x {key}\n", True),
    ("!box,* {key}\n", False),
    ("other,BOX,third {key}\n", True),
    ("[box]:22 {key}\n", False),
    ("box2 {key}\n", False),
    ("box {key} comment\n", True),
    ("\tbox\t{key}\n", True),
    ("box ssh-ed25519 nonsense\nbox {key}\n", True),
    ("# box {key}\n", False),
    ("@cert-authority box {key}\n", False),
    ("@unknown box {key}\n", False),
]


@pytest.mark.parametrize(("content", "known"), KNOWN)
def test_which_lines_are_about_a_host(pair: Pair, content: str, known: bool) -> None:
    files = [content.format(name=HOST, key=pair.key)]
    ssh, ours = pair.both(files, "StrictHostKeyChecking=yes")
    assert ssh.accepted is ours.accepted is known


@pytest.mark.parametrize(
    ("content", "known"),
    [
        ("[127.0.0.1]:{port} {key}\n", True),
        ("127.0.0.1 {key}\n", True),  # known without the port
        ("[127.0.0.1]:{port} {other}\n127.0.0.1 {key}\n", False),  # what is known with the port counts
        ("[127.0.0.1]:1 {key}\n", False),
        ("[127.0.0.*]:* {key}\n", True),
    ],
)
def test_ports_are_part_of_the_name(pair: Pair, keys: dict[str, str], content: str, known: bool) -> None:
    config = pair.server.directory / "no_alias"
    text = pair.server.ssh_config.read_text().replace(f"HostKeyAlias {HOST}", "CheckHostIP no")
    config.write_text(text)
    pair.server.ssh_config = config
    files = [content.format(port=pair.server.port, key=pair.key, other=keys["ed25519"])]
    ssh, ours = pair.both(files, "StrictHostKeyChecking=yes")
    assert ssh.accepted is ours.accepted is known
    new = pair.one("ours", [""], ("StrictHostKeyChecking=accept-new",), ())
    assert new.files == [f"[127.0.0.1]:{pair.server.port} {pair.key}\n"]


def test_global_files_and_none(pair: Pair, tmp_path: Path) -> None:
    known = tmp_path / "global"
    known.write_text(f"{HOST} {pair.key}\n")
    for files, accepted in (
        ((f"GlobalKnownHostsFile=/nonexistent {known}",), True),
        (("GlobalKnownHostsFile=none",), False),
    ):
        ssh, ours = pair.both([""], *files, "StrictHostKeyChecking=yes")
        assert ssh.accepted is ours.accepted is accepted
    said = Said()
    log_in(pair.server.ssh_config, "UserKnownHostsFile=none", "StrictHostKeyChecking=accept-new", said=said)
    # Without a file of the user's own there is nowhere to remember what was accepted; nothing is taken unseen.
    with on_terminal(pair.server, "UserKnownHostsFile=none", "StrictHostKeyChecking=ask") as terminal:
        terminal.expect(QUESTION)
        terminal.type("yes\n")
        terminal.expect("IN")
        assert terminal.ended() == 0
    error = refused(pair.server.ssh_config, "UserKnownHostsFile=none", "StrictHostKeyChecking=yes")
    assert error.exit_code is ExitCode.HOST_KEY


def test_no_authentication_of_localhost(pair: Pair, keys: dict[str, str]) -> None:
    config = pair.server.directory / "no_alias"
    config.write_text(pair.server.ssh_config.read_text().replace(f"HostKeyAlias {HOST}", "CheckHostIP no"))
    pair.server.ssh_config = config
    files = [f"[127.0.0.1]:{pair.server.port} {keys['ed25519']}\n"]
    ssh, ours = pair.both(files, "StrictHostKeyChecking=yes", "NoHostAuthenticationForLocalhost=yes")
    assert ssh.accepted and ours.accepted
    assert ours.files == ssh.files == files


def test_a_small_rsa_key_is_refused(make_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    server = make_sshd()
    keygen(server.directory / "host_rsa", "-b", "2048", kind="rsa")
    with ExitStack() as stack:
        other = stack.enter_context(Sshd(extra=[f"HostKey {server.directory}/host_rsa"]))
        key = " ".join((server.directory / "host_rsa.pub").read_text().split()[:2])
        pair = Pair(other, tmp_path)
        options = ("HostKeyAlgorithms=rsa-sha2-256", "RequiredRSASize=3072")
        ssh, ours = pair.both([f"{HOST} {key}\n"], *options)
        assert not ssh.accepted and not ours.accepted
        assert pair.one("ours", [f"{HOST} {key}\n"], options[:1], ()).accepted


class TestCertificates:
    """@cert-authority lines."""

    @pytest.fixture
    def authority(self, tmp_path: Path) -> Path:
        return keygen(tmp_path / "host_ca")

    @pytest.fixture
    def certified(self, authority: Path, tmp_path: Path, stack: ExitStack) -> Callable[..., Pair]:
        def make(*arguments: str) -> Pair:
            key = keygen(tmp_path / "host")
            certificate = sign(authority, Path(f"{key}.pub"), "-h", *arguments)
            server = stack.enter_context(Sshd(extra=[f"HostKey {key}", f"HostCertificate {certificate}"]))
            return Pair(server, tmp_path)

        return make

    def test_a_certificate_is_accepted(self, certified: Callable[..., Pair], authority: Path) -> None:
        pair = certified("-n", f"elsewhere,{HOST}")
        line = Path(f"{authority}.pub").read_text()
        ssh, ours = pair.both([f"@cert-authority *.example,{HOST} {line}"], "StrictHostKeyChecking=yes")
        assert ssh.accepted and ours.accepted
        assert ours.files == ssh.files

    @pytest.mark.parametrize("known", [True, False])
    @pytest.mark.parametrize("arguments", [("-n", "elsewhere"), ("-n", HOST, "-V", "20200101:20200201")])
    def test_one_that_proves_nothing_leaves_the_plain_key(
        self, certified: Callable[..., Pair], authority: Path, arguments: tuple[str, ...], known: bool
    ) -> None:
        pair = certified(*arguments)
        lines = f"@cert-authority * {Path(f'{authority}.pub').read_text()}"
        if known:
            lines += f"{HOST} {pair.key}\n"
        ssh, ours = pair.both([lines], "StrictHostKeyChecking=yes", "HostKeyAlgorithms=+ssh-ed25519")
        assert ours.accepted is known
        assert ours.files == [lines]

    def test_another_authority_counts_for_nothing(self, certified: Callable[..., Pair], keys: dict[str, str]) -> None:
        pair = certified("-n", HOST)
        ssh, ours = pair.both([f"@cert-authority * {keys['ed25519']}\n"], "StrictHostKeyChecking=yes")
        assert not ssh.accepted and not ours.accepted

    def test_a_revoked_authority_or_key(self, certified: Callable[..., Pair], authority: Path, tmp_path: Path) -> None:
        pair = certified("-n", HOST)
        trusted = f"@cert-authority * {Path(f'{authority}.pub').read_text()}"
        for revoked in (f"{authority}.pub", tmp_path / "host.pub"):
            lines = f"{trusted}@revoked * {Path(revoked).read_text()}"
            ssh, ours = pair.both([lines], "StrictHostKeyChecking=yes")
            assert not ssh.accepted and not ours.accepted
            assert "revoked" in ours.shown
