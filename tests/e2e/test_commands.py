"""Commands that end by themselves: what they print, and how they say no."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ecmc.logline import LineFormatter

ECMC = Path(sys.executable).with_name("ecmc")
DEMO = Path(__file__).resolve().parents[2] / "simulators" / "plants" / "demo"


def ecmc(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ECMC, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


def test_check_says_what_is_in_a_healthy_folder() -> None:
    done = ecmc("check", DEMO)

    assert done.returncode == 0
    assert "13 devices" in done.stdout


def test_check_of_no_folder_at_all_exits_2(tmp_path: Path) -> None:
    done = ecmc("check", tmp_path / "nowhere")

    assert done.returncode == 2
    assert "no such plant folder" in done.stdout


@pytest.mark.parametrize(
    "text", ['{"intervals": 1', '{"intervals": 1, "nodes": [{"id": "a", "kind": "zap"}], "edges": []}']
)
def test_a_bad_tracing_case_exits_2_with_one_line(tmp_path: Path, text: str) -> None:
    case = tmp_path / "case.json"
    case.write_text(text)

    done = ecmc("trace", case)

    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_with_faulty_rows_is_refused_whole(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(
        "point,time,value\n"
        "m-grid.active_power_total,2026-03-02T00:00:00Z,1\n"
        "m-grid.active_power_total,2026-03-02T00:01:00,1\n"
        "nobody,2026-03-02T00:02:00Z,1\n"
        "m-grid.active_power_total,2026-03-02T00:03:00Z,much\n"
    )

    done = ecmc("import", file, "--plant", DEMO, "--data", tmp_path / "data")

    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("faulty")] == [
        "faulty line 3",
        "faulty line 4",
        "faulty line 5",
    ]
    assert "accepted 0, repeated 0, conflicting 0, faulty 3" in done.stdout
    assert not (tmp_path / "data").exists()


def test_an_unknown_option_exits_2_and_says_which() -> None:
    done = ecmc("run", "--plnt", "x")

    assert done.returncode == 2
    assert "--plnt" in done.stderr


def test_the_version_is_the_packages_own() -> None:
    import tomllib

    project = tomllib.loads((DEMO.parents[2] / "pyproject.toml").read_text("utf-8"))["project"]

    assert ecmc("--version").stdout == f"ecmc {project['version']}\n"


def test_a_log_line_says_of_what_it_speaks() -> None:
    record = logging.makeLogRecord({"name": "a.b", "levelname": "WARNING", "msg": "device down"})
    vars(record).update(device="m-7", why="no answer within 1 s")

    line = LineFormatter().format(record)

    assert line.endswith(" WARNING a.b: device down device=m-7 why='no answer within 1 s'")
