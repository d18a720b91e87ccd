"""What is installed is what runs: the built wheel, from an empty folder, without this checkout in sight."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_carries_its_data_and_no_caches(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    for wanted in (
        "core/carbon/tables/grid_cn.csv",
        "collector/profiles/schneider_iem3000.yaml",
        "migrations/sql/0001_series.sql",
        "migrations/versions/0001_first.py",
        "api/console/index.html",
        "simulators/plants/demo/plant.yaml",
        "simulators/recordings/steel_daewoo_15min.csv.gz",
        "core/store/sql/upsert_latest.sql",
    ):
        assert wanted in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "docs/"))]


def test_the_wheel_runs_isolated_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    empty = tmp_path / "empty"
    empty.mkdir()
    program = (
        f"import sys; sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]; sys.path.insert(0, {str(installed)!r});"
        "import core.results, ecmc.cli; assert core.results.__file__.startswith(sys.path[0]);"
        "sys.argv = ['ecmc', 'check', sys.path[0] + '/simulators/plants/demo']; ecmc.cli.main()"
    )

    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=empty, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "13 devices" in done.stdout
