"""Manual pages, README and completions against the tables of options."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mux.errors import ExitCode
from sshmuxfs.option_tables import BY_NAME, FLAGS, OPTIONS, Group
from sshmuxfs.ssh_keywords import SSH_NAMES

ROOT = Path(__file__).resolve().parents[2]
MAN = (ROOT / "man" / "sshmuxfs.1").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASH = ROOT / "completions" / "sshmuxfs.bash"
ZSH = (ROOT / "completions" / "_sshmuxfs").read_text(encoding="utf-8")
OFFERED = [option for option in OPTIONS if option.group not in (Group.UNNEEDED, Group.REFUSED)]
DEADLINE_S = 20
# In a message of the README: names in capitals, dots, quotes, ends of sentences, and the request that was refused.
VARIABLE = r"\b[A-Z]+\b|\.\.\.|['`]|(?<=\.) |NewSession"


def names_in_man() -> set[str]:
    """The names of -o options that the manual page's items (.It, or .Cm within one) and older names hold."""
    lines = re.findall(r"^\.(?:It |)(?:Xo|Cm) .*|^An older name is\n\.Cm .*", MAN, re.MULTILINE)
    return {word for line in lines for word in line.replace("Ns = Ns", "=").split()}


def test_every_option_is_in_the_manual_page() -> None:
    assert set(BY_NAME) - names_in_man() == set()


def test_every_option_is_in_the_readme() -> None:
    assert [name for name in BY_NAME if not re.search(rf"`{re.escape(name)}[=`]", README)] == []


def test_the_readme_says_what_the_help_says() -> None:
    rows = [f"| `{option.usage.replace('|', '/')}` | {option.help}" for option in OFFERED]
    assert [row for row in rows if row not in README.replace("\\|", "/")] == []


def test_every_flag_is_everywhere() -> None:
    offered = completed("sshmuxfs -")
    for flag in FLAGS:
        long = f" , Fl -{flag.long}" if flag.long else ""
        assert f"| `{flag.usage}` |" in README
        assert re.search(rf"^\.It Fl {flag.letter}{long}( Ar .*|)$", MAN, re.MULTILINE)
        assert f"-{flag.letter}" in offered
        assert re.search(rf"-{flag.letter}[+,\[}}]", ZSH)


def test_the_readme_documents_no_option_that_is_not_there() -> None:
    section = README.partition("## Options")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `") and "| `-" not in line]
    found = {name for cell in cells for name in re.findall(r"`([^`=]+)[^`]*`", cell)}
    assert found == {option.name for option in OPTIONS}


def test_every_message_of_the_readme_is_one_of_ours() -> None:
    sources = [
        path.read_text(encoding="utf-8") for package in ("mux", "sshmuxfs") for path in (ROOT / package).rglob("*.py")
    ]
    # Literals that stand one below the other are one message.
    everything = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))
    section = README.partition("## When it does not work")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    messages = [message for cell in cells for message in re.findall(r"(?<!`)`` ?(.+?)``|(?<!`)`([^`]+)`(?!`)", cell)]
    pieces = [max(re.split(VARIABLE, one or other), key=len).strip() for one, other in messages]
    assert len(pieces) > 30
    assert [piece for piece in pieces if piece not in everything] == []


@pytest.mark.parametrize("document", [MAN, README], ids=["man", "readme"])
def test_every_exit_code_is_documented(document: str) -> None:
    for code in ExitCode:
        assert re.search(rf"^(\.It |\| ){code.value}( \||$)", document, re.MULTILINE)


def completed(line: str, home: Path | None = None) -> list[str]:
    """What bash offers behind this line, with the words cut as it cuts them."""
    script = """
        source "$1"
        COMP_LINE=$2 COMP_POINT=${#2} COMP_WORDS=($2) COMP_CWORD=${#COMP_WORDS[@]}
        [[ $2 == *' ' ]] || COMP_CWORD=$((COMP_CWORD - 1))
        _"${COMP_WORDS[0]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    script_of = ROOT / "completions" / f"{line.split()[0]}.bash"
    run = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", script, "bash", str(script_of), line],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home or "/nonexistent")},
    )
    assert run.stderr == ""
    return run.stdout.split()


@pytest.mark.parametrize("name", ["sshmuxfs.bash", "sshmux.bash"])
def test_bash_reads_the_script(name: str) -> None:
    script = ROOT / "completions" / name
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=DEADLINE_S)
    loaded = f'source "{script}"; complete -p {script.stem}'
    run = subprocess.run(["bash", "-c", loaded], check=True, timeout=DEADLINE_S, capture_output=True, text=True)
    assert run.stdout.split()[-1] == script.stem


def test_bash_offers_the_options_and_not_those_that_are_refused() -> None:
    own = [option.name + "=" * bool(option.metavar) for option in OFFERED]
    assert sorted(completed("sshmuxfs box: /mnt -o ")) == sorted(own + [f"{name}=" for name in SSH_NAMES.values()])


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sshmuxfs box: -o ro,idm", ["ro,idmap="]),
        ("sshmuxfs box: -oro,idm", ["-oro,idmap="]),
        ("sshmuxfs -onoex", ["-onoexec"]),
        ("sshmuxfs -o ro,idmap=", ["none", "user"]),
        ("sshmuxfs -oidmap=u", ["user"]),
        ("sshmuxfs -o dir_cache=", ["yes", "no"]),
        ("sshmuxfs -o log_level=w", ["warning"]),
        ("sshmuxfs -o uid=", []),
        ("sshmuxfs -F /etc/passw", None),
        ("sshmuxfs -p 2", []),
        ("sshmuxfs box: /us", ["/usr"]),
        ("sshmuxfs -p 22 -f box: /us", ["/usr"]),
        ("sshmuxfs box: /mnt /us", []),
        (
            "sshmux ",
            [
                "check",
                "start",
                "list",
                "status",
                "top",
                "forward",
                "cancel",
                "stop",
                "exit",
                "config",
                "-V",
                "-h",
                "--help",
            ],
        ),
        ("sshmux check -", ["-F", "-p", "-l", "-S", "-o", "-h", "--help"]),
    ],
)
def test_bash_completes(line: str, offered: list[str] | None) -> None:
    assert completed(line) == offered if offered is not None else "/etc/passwd" in completed(line)


def test_bash_completes_hosts_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host boxer b?t box*\n  Port 22\nhost   boat !no\n", encoding="utf-8")
    assert completed("sshmuxfs bo", tmp_path) == ["boxer:", "boat:"]
    assert completed("sshmuxfs -f me@box", tmp_path) == ["me@boxer:"]
    assert completed("sshmux check bo", tmp_path) == ["boxer", "boat"]


def test_zsh_offers_the_options_and_not_those_that_are_refused() -> None:
    values = ZSH.partition("_values ")[2].partition("\n}\n")[0]
    assert re.findall(r"^ +'(\w+)\[", values, re.MULTILINE) == [option.name for option in OFFERED]
    names = re.search(r"ssh_options=\(([^)]*)\)", ZSH)
    assert names is not None
    assert names[1].split() == list(SSH_NAMES.values())
