"""Each sector's register of sources: which emissions a plant of that trade has to look for, and how they enter.

Data, not rules: `tables/sector_sources.csv` names the part of GB/T 32151, the
source, and the activity kind and subject it is entered as. A new sector is rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from core.carbon.factor_tables import TABLES
from core.carbon.sheet import Sheet

_COLUMNS = ("part", "sector", "name_zh", "name_en", "source", "kind", "subject", "how", "mark")


@dataclass(frozen=True, slots=True)
class SectorSource:
    """One source; `kind` and `subject` are those of an activity, empty where it is metered or free to choose.

    `mark` says how far the entry was compared with the document.
    """

    source: str
    kind: str
    subject: str
    how: str
    mark: str


@dataclass(frozen=True, slots=True)
class Sector:
    """A trade and the part of the standard that is designed for it; purchased power and heat come on top."""

    id: str
    part: str
    name_zh: str
    name_en: str
    sources: tuple[SectorSource, ...]


@lru_cache(maxsize=1)
def sectors() -> tuple[Sector, ...]:
    """All sectors, in the table's order.

    Raises:
        FaultyInput: A row without part, sector or source.
    """
    path = TABLES / "sector_sources.csv"
    sheet = Sheet.read(path.read_bytes(), str(path))
    sheet.require(_COLUMNS)
    found: dict[str, tuple[tuple[str, ...], list[SectorSource]]] = {}
    for record in sheet.records():
        head = tuple(record.text(column) for column in _COLUMNS[:4])
        rest = [record.optional(column) or "" for column in ("kind", "subject", "how", "mark")]
        found.setdefault(head[1], (head, []))[1].append(SectorSource(record.text("source"), *rest))
    sheet.raise_faults()
    return tuple(
        Sector(id_, head[0], head[2], head[3], tuple(sources)) for id_, (head, sources) in found.items()
    )
