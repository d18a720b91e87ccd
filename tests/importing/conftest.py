"""A plant that lives from import alone, and the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ECMC = Path(sys.executable).with_name("ecmc")

PLANT = """\
plant: paper
name: {zh: 纸, en: Paper}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 900
method_sets: [zero-carbon-factory]
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: grid}
    - {id: press, kind: load, carrier: electricity}
  edges:
    - {id: e-press, from: grid, to: press, meter: a}
"""
POINTS = "point,device,name,quantity,unit\n" + "".join(
    f"{name},,,{quantity},{unit}\n"
    for name, quantity, unit in (
        ("a", "active_energy_import_total", "kWh"),
        ("b", "active_energy_import_total", "kWh"),
        ("t", "temperature", "degC"),
    )
)


@pytest.fixture
def plant_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "plant"
    folder.mkdir()
    (folder / "plant.yaml").write_text(PLANT, "utf-8")
    (folder / "points.csv").write_text(POINTS, "utf-8")
    return folder


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`ecmc WORDS…`, ended."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ECMC, *map(str, words)], capture_output=True, text=True, timeout=100, check=False
        )

    return run
