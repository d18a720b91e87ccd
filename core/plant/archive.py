"""A plant folder in one piece, as it was when it was read: what a past model is loaded from again.

Results name the model they were computed with. So that it can still be read when
the folder has long been changed, its files are kept with its fingerprint in the
database: those that say what the plant is, and the profiles it uses. Keys,
certificates and passwords are not among them.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from core.carbon.factor_row import FactorRow
from core.carbon.factor_tables import read_own_factors
from core.plant.load import SHIPPED, load_plant
from core.plant.model import Plant

_LARGEST_BYTES = 64 << 20  # unpacked; a plant folder is a few hundred kB


@dataclass(frozen=True, slots=True)
class PastPlant:
    """A plant out of its kept documents, and the factor rows of its own it had."""

    plant: Plant
    factors: tuple[FactorRow, ...]


def read_documents(documents: bytes, fingerprint: str) -> PastPlant:
    """The plant these documents describe.

    Raises:
        FaultyInput: They are no plant to this version any more, with every fault.
    """
    files = _unpacked(documents)
    with tempfile.TemporaryDirectory(prefix="ecmc-plant-") as name:
        folder = Path(name)
        for path, content in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
        plant = load_plant(folder, [folder / SHIPPED], kept=True)
        own = files.get("factors.csv")
        factors = tuple(read_own_factors(own, "factors.csv")) if own is not None else ()
    return PastPlant(replace(plant, fingerprint=fingerprint, documents=documents), factors)


def _unpacked(documents: bytes) -> Mapping[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(documents)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > _LARGEST_BYTES:
            raise ValueError(f"kept plant documents of more than {_LARGEST_BYTES >> 20} MiB are not ours")
        return {
            entry.filename: archive.read(entry)
            for entry in entries
            if not Path(entry.filename).is_absolute() and ".." not in Path(entry.filename).parts
        }
