"""make and a compiler: what has not changed is not built again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.t4_mount.fixtures import Area
from tests.t5_interop.programs import attempt, run

UNITS = 8
MAKEFILE = """
OBJECTS = $(patsubst %.c,%.o,$(sort $(wildcard unit*.c))) main.o
program: $(OBJECTS)
\tcc -o $@ $^
%.o: %.c common.h
\tcc -O0 -c -o $@ $<
clean:
\trm -f program *.o
"""


def make_project(top: Path) -> None:
    """A program of a few files; all older than now, so that a build is newer."""
    top.mkdir()
    (top / "Makefile").write_text(MAKEFILE)
    (top / "common.h").write_text("".join(f"int unit{number}(void);\n" for number in range(UNITS)))
    for number in range(UNITS):
        (top / f"unit{number}.c").write_text(f'#include "common.h"\nint unit{number}(void) {{ return {number}; }}\n')
    calls = " + ".join(f"unit{number}()" for number in range(UNITS))
    (top / "main.c").write_text(
        f'#include <stdio.h>\n#include "common.h"\nint main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    )
    for path in top.iterdir():
        os.utime(path, (time.time() - 1000, time.time() - 1000))


def built(top: Path) -> list[str]:
    """What make compiled."""
    said = run("make", cwd=top)
    return [line.split()[-1] for line in said.splitlines() if line.startswith("cc -O0")]


def test_incremental_building(area: Area) -> None:
    top = area.here / "project"
    make_project(top)
    assert len(built(top)) == UNITS + 1
    assert run(top / "program") == f"{sum(range(UNITS))}\n"
    assert attempt("make", "-q", cwd=top).returncode == 0
    assert built(top) == []
    age(top)
    run("touch", top / "unit3.c")
    assert attempt("make", "-q", cwd=top).returncode == 1
    assert built(top) == ["unit3.c"]
    age(top)
    (top / "unit5.c").write_text('#include "common.h"\nint unit5(void) { return 1000; }\n')
    assert built(top) == ["unit5.c"]
    assert run(top / "program") == f"{sum(range(UNITS)) - 5 + 1000}\n"
    age(top)
    run("touch", top / "common.h")
    assert len(built(top)) == UNITS + 1
    run("make", "clean", cwd=top)
    assert len(built(top)) == UNITS + 1


def age(top: Path) -> None:
    """Everything gets ten seconds older, in the order it has: times are whole seconds, and a build takes less."""
    for path in top.iterdir():
        found = path.stat()
        os.utime(path, (found.st_atime - 10, found.st_mtime - 10))


def test_parallel_building(area: Area) -> None:
    top = area.here / "project"
    make_project(top)
    run("make", "-j8", cwd=top)
    assert run(area.there / "project" / "program") == f"{sum(range(UNITS))}\n"
    assert attempt("make", "-q", cwd=top).returncode == 0


def test_a_change_on_the_server_is_built(area: Area) -> None:
    top = area.here / "project"
    make_project(area.there / "project")
    assert len(built(top)) == UNITS + 1
    age(top)
    (area.there / "project" / "unit0.c").write_text('#include "common.h"\nint unit0(void) { return 7; }\n')
    assert "return 7" in (top / "unit0.c").read_text()
    assert built(top) == ["unit0.c"]
    assert run(top / "program") == f"{sum(range(UNITS)) + 7}\n"


def test_a_library_and_its_archive(area: Area) -> None:
    top = area.here / "project"
    make_project(top)
    run("cc", "-c", *sorted(path.name for path in top.glob("unit*.c")), cwd=top)
    run("ar", "rcs", "libunits.a", *sorted(path.name for path in top.glob("unit*.o")), cwd=top)
    run("cc", "-o", "program", "main.c", "-L.", "-lunits", cwd=top)
    run("strip", "program", cwd=top)
    assert run(top / "program") == f"{sum(range(UNITS))}\n"
