"""The two folders every command stands on: the plant's, which its owner keeps, and the data's, which is ours."""

from __future__ import annotations

from pathlib import Path

from core.errors import Fault, FaultyInput
from core.plant.load import load_plant
from core.plant.model import Plant
from core.settings import default_data_folder, prepare_data_folder
from core.store.archive import Archive

PROFILES = Path(__file__).resolve().parent.parent / "collector" / "profiles"


def read_plant(folder: Path) -> Plant:
    """The checked plant of a folder; FaultyInput with every fault otherwise."""
    if not folder.is_dir():
        raise FaultyInput([Fault(str(folder), 0, 0, "no such plant folder")])
    return load_plant(folder, [PROFILES])


def data_folder(plant: Plant, data: Path | None) -> Path:
    """The data folder named, or the plant's default; ready to be written."""
    return prepare_data_folder(data or default_data_folder(plant.id))


def archive_in(data: Path) -> Archive:
    """Where a data folder keeps closed months of samples as files, if it does."""
    return Archive(data / "parquet" / "samples")
