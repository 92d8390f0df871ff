"""The benchmarks that need no sshfs: each works, in little; nothing is judged by its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.bench.putty import BY_ITSELF, DIRECTIONS, QUICK_BYTES, THROUGH_PLINK, WAYS
from tests.bench.sizes import MIB

DEADLINE_S = 100.0


def test_putty(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    quickly = ["--quick", "--limit", "20"]  # what psftp takes by itself is its own affair
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--putty", *quickly, "--json", str(told), "--dir", str(tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["psftp", "mount", "ratio"]
    titles = [f"{way} {QUICK_BYTES // MIB} MiB, {base}" for way in DIRECTIONS for base in (THROUGH_PLINK, BY_ITSELF)]
    assert [line[:44].rstrip() for line in lines] == titles
    assert ["at least 0.9" in line for line in lines] == [True, False] * 2
    document = json.loads(told.read_text())
    assert [figure["title"] for figure in document["figures"]] == titles
    expected = [(direction, way) for direction in DIRECTIONS for way in WAYS]
    assert [(one["direction"], one["way"]) for one in document["samples"]] == expected
    assert all(len(one["seconds"]) == 1 and one["seconds"][0] > 0 for one in document["samples"])
    assert list(tmp_path.iterdir()) == [told]
