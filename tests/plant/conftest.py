"""A small whole plant folder, and copies of it with something wrong in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import Fault, FaultyInput
from core.plant.load import load_plant
from core.plant.model import Plant

WORKS = Path(__file__).parent / "plants" / "works"
PROFILES = Path(__file__).parents[2] / "collector" / "profiles"

Load = Callable[[Path], Plant]
FaultsOf = Callable[[Path], list[Fault]]


@pytest.fixture
def works(tmp_path: Path) -> Path:
    """A copy of the works, to be changed."""
    return Path(shutil.copytree(WORKS, tmp_path / "works"))


@pytest.fixture
def load() -> Load:
    return lambda folder: load_plant(folder, [PROFILES])


@pytest.fixture
def faults_of() -> FaultsOf:
    """Every fault of a folder; none where it loads."""

    def faults(folder: Path) -> list[Fault]:
        try:
            load_plant(folder, [PROFILES])
        except FaultyInput as why:
            return why.faults
        return []

    return faults


@pytest.fixture
def change() -> Callable[[Path, str, str], None]:
    """Replace a text that stands in a file exactly once."""

    def changed(file: Path, old: str, new: str) -> None:
        text = file.read_text("utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file.name}"
        file.write_text(text.replace(old, new), "utf-8")

    return changed
