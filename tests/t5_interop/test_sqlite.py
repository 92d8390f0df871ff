"""sqlite databases, one client at a time: the command, and the library of Python."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import bounded
from tests.t4_mount.fixtures import Area
from tests.t5_interop.programs import attempt, run

pytestmark = pytest.mark.over_putty

ROWS = 2000


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_the_command(area: Area, mode: str) -> None:
    database = area.here / "data.db"
    assert run("sqlite3", database, f"PRAGMA journal_mode={mode};") == f"{mode}\n"
    run("sqlite3", database, "CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT);")
    rows = f"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<{ROWS}) "
    run("sqlite3", database, f"{rows} INSERT INTO t SELECT n, printf('row %d %s', n, hex(randomblob(100))) FROM c;")
    run("sqlite3", database, "UPDATE t SET text = 'changed' WHERE n % 3 = 0; DELETE FROM t WHERE n % 5 = 0; VACUUM;")
    for side in (area.here, area.there):
        said = run("sqlite3", side / "data.db", "PRAGMA integrity_check; SELECT count(*), sum(n) FROM t;")
        total = sum(n for n in range(1, ROWS + 1) if n % 5)
        assert said == f"ok\n{ROWS - ROWS // 5}|{total}\n"


def transactions(database: Path, mode: str) -> int:
    """Many small transactions, some of them rolled back, with a reader beside the writer."""
    with closing(sqlite3.connect(database)) as writer:
        writer.execute(f"PRAGMA journal_mode={mode}")
        writer.execute("CREATE TABLE t (n INTEGER, text BLOB)")
        with closing(sqlite3.connect(database)) as reader:
            kept = 0
            for number in range(150):
                writer.execute("INSERT INTO t VALUES (?, zeroblob(?))", (number, number * 50))
                if number % 7 == 6:
                    writer.rollback()
                else:
                    writer.commit()
                    kept += 1
                assert reader.execute("SELECT count(*) FROM t").fetchone() == (kept,)
        assert writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return kept


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_the_library(area: Area, mode: str) -> None:
    kept = bounded.in_subprocess(lambda: transactions(area.here / "data.db", mode), 60)
    assert run("sqlite3", area.there / "data.db", "PRAGMA integrity_check; SELECT count(*) FROM t;") == f"ok\n{kept}\n"


def test_a_large_transaction_rolled_back(area: Area) -> None:
    database = area.here / "data.db"
    run("sqlite3", database, "CREATE TABLE t (n, text); INSERT INTO t VALUES (1, 'kept');")
    rows = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<5000)"
    change = f"PRAGMA cache_size=10; BEGIN; {rows} INSERT INTO t SELECT n, hex(randomblob(200)) FROM c; ROLLBACK;"
    run("sqlite3", database, change)
    assert run("sqlite3", database, "SELECT * FROM t; PRAGMA integrity_check;") == "1|kept\nok\n"


def test_a_writer_that_dies(area: Area) -> None:
    """What was committed stays, what was not is rolled back by the next one."""
    database = area.here / "data.db"
    run("sqlite3", database, "CREATE TABLE t (n); INSERT INTO t VALUES (1);")
    dying = f"import os, sqlite3; c = sqlite3.connect({str(database)!r}); c.execute('PRAGMA cache_size=1'); "
    dying += "c.execute('INSERT INTO t VALUES (2)'); c.commit(); "
    dying += "c.executemany('INSERT INTO t VALUES (zeroblob(?))', [(5000,)] * 500); os._exit(9)"
    assert attempt(sys.executable, "-c", dying).returncode == 9
    assert run("sqlite3", database, "PRAGMA integrity_check; SELECT count(*) FROM t;") == "ok\n2\n"
