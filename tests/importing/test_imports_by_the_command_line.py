"""`ecmc import` as people run it: killed, repeated, faulty, from a workbook."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg

ECMC = Path(sys.executable).with_name("ecmc")
Cli = Callable[..., subprocess.CompletedProcess[str]]


def ask(dsn: str, query: str) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(run())


def test_a_killed_import_is_finished_by_the_same_command(
    cli: Cli, plant_folder: Path, database: str, tmp_path: Path
) -> None:
    file = tmp_path / "b.csv"  # no edge: nothing to compute
    rows = 150_000
    with file.open("w") as out:
        out.write("point,time,value\n")
        out.writelines(
            f"b,2026-03-{i // 5000 + 1:02d}T{i % 5000 // 250:02d}:{i % 250 // 5:02d}:{i % 5:02d}Z,{i}\n"
            for i in range(rows)
        )
    words = ["import", file, "--plant", plant_folder, "--dsn", database]
    first = subprocess.Popen([str(w) for w in (ECMC, *words)], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while _samples(database) == 0:
        assert time.monotonic() < until
        time.sleep(0.01)
    first.kill()
    first.wait()
    there = _samples(database)

    second = cli(*words)

    assert 0 < there < rows
    assert second.returncode == 0, second.stderr
    assert f"accepted {rows - there}, repeated {there}, conflicting 0, faulty 0" in second.stdout
    assert _samples(database) == rows


def _samples(dsn: str) -> int:
    there: int = ask(dsn, "SELECT count(*) FROM ecmc.sample")
    return there


def test_every_fault_is_printed_and_the_good_rows_come_only_when_asked_for(
    cli: Cli, plant_folder: Path, database: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    bad = [f"nobody,2026-03-02T00:{i % 60:02d}:00Z,1" for i in range(1500)]
    file.write_text("\n".join(["point,time,value", "t,2026-03-02T00:00:00Z,20.5", *bad]))

    refused = cli("import", file, "--plant", plant_folder, "--dsn", database)
    refused_rows = _samples(database)
    taken = cli("import", file, "--plant", plant_folder, "--dsn", database, "--skip-faulty")

    assert (refused.returncode, refused_rows) == (2, 0)
    lines = [line for line in refused.stdout.splitlines() if line.startswith("faulty line")]
    assert lines[0] == "faulty line 3: column 1: unknown point 'nobody'"
    assert len(lines) == 1500
    assert "nothing was imported" in refused.stderr
    assert taken.returncode == 0
    assert "accepted 1, repeated 0, conflicting 0, faulty 1500" in taken.stdout
    assert _samples(database) == 1


def test_no_progress_is_drawn_where_nobody_looks(
    cli: Cli, plant_folder: Path, database: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("point,time,value\nt,2026-03-02T00:00:00Z,20.5\n")

    done = cli("import", file, "--plant", plant_folder, "--dsn", database)

    assert done.stderr == ""
    assert done.stdout == "accepted 1, repeated 0, conflicting 0, faulty 0\n"
