"""The manual page, the README and the completions against the parser: each names every command and every option."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mux import cli

ROOT = Path(__file__).resolve().parents[2]
MANUAL = (ROOT / "man" / "sshmux.1").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The command sshmux\n")[2].partition("\n## ")[0]
BASH = ROOT / "completions" / "sshmux.bash"
ZSH = ROOT / "completions" / "_sshmux"
DEADLINE_S = 20.0

COMMANDS = tuple(cli._parsers()[1])


def options_of(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The options in the command's own help."""
    with pytest.raises(SystemExit):
        cli.main([command, "-h"])
    return set(re.findall(r"^  (?:-h, )?(--?[A-Za-z-]+)", capsys.readouterr().out, re.MULTILINE)) | {"-h"}


def completed(line: str) -> list[str]:
    """What bash offers for the word that `line` ends with."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    asked = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _sshmux"
    script = f'source "{BASH}"; {asked}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert run.stderr == ""
    return run.stdout.split()


def test_bash_offers_the_commands() -> None:
    assert set(completed("sshmux ")) == {*COMMANDS, "-V", "-h", "--help"}
    assert completed("sshmux sto") == ["stop"]


@pytest.mark.parametrize("command", COMMANDS)
def test_bash_offers_the_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(completed(f"sshmux {command} -")) == options_of(command, capsys) | {"--help"}


def test_bash_offers_nothing_where_nothing_is_known() -> None:
    for line in ("sshmux forward -L ", "sshmux check -p ", "sshmux list "):
        assert completed(line) == []
    assert completed("sshmux start --persist ") == ["yes", "no"]


def test_zsh_reads_the_script_and_it_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    text = ZSH.read_text(encoding="utf-8")
    assert re.findall(r"^        '([a-z]+):", text, re.MULTILINE) == list(COMMANDS)
    for command in COMMANDS:
        for option in options_of(command, capsys):
            assert re.search(rf"['{{,*]{option}[+\[,}}]", text), option


@pytest.mark.parametrize("command", COMMANDS)
def test_the_manual_and_the_readme_name_all(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f".It Cm {command}\n" in MANUAL
    assert f"\n| `{command}" in README
    for option in options_of(command, capsys):
        mdoc = option[1:].replace("-", "\\-")
        assert re.search(rf"Fl (\w+ )?{re.escape(mdoc)}\b", MANUAL), option
