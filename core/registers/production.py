"""Production records: what was made where and when, the denominator of every figure per output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.carbon.factors import FactorLibrary
from core.carbon.product import Precursor, default_precursor
from core.registers.book import Entry


@dataclass(frozen=True, slots=True)
class Production:
    """Good output of a product in a period, on the node that made it.

    Attributes:
        scrap: Output that was none, same unit.
        node: The network's node whose carbon it bears; empty: the plant as a whole.
        batch: Batch, shift or order.
        driver: Its amount of the allocation rule (hours, t, value, rated kWh).
        value_cny: Industrial added value.
        precursors: Goods of CBAM that went in: cn_code, mass_t, and direct_t_per_t with indirect_t_per_t as the
            supplier states them, or the code of a default value.
    """

    product: str
    amount: float
    unit: str
    scrap: float = 0.0
    node: str = ""
    batch: str = ""
    driver: float = 0.0
    value_cny: float | None = None
    precursors: tuple[Mapping[str, Any], ...] = ()
    note: str = ""

    def precursors_of(self, year: int, library: FactorLibrary) -> tuple[Precursor, ...]:
        """What went in, defaults with the mark-up of the year."""
        return tuple(_precursor(given, year, library) for given in self.precursors)

    @property
    def line(self) -> str:
        parts = [self.product, f"on {self.node}" if self.node else "", self.batch]
        return " ".join(part for part in parts if part)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Production:
        return cls(**body)


def _precursor(given: Mapping[str, Any], year: int, library: FactorLibrary) -> Precursor:
    if given.get("default"):
        return default_precursor(given["cn_code"], given["mass_t"], given["default"], year, library)
    return Precursor(
        given["cn_code"], given["mass_t"], given["direct_t_per_t"], given.get("indirect_t_per_t")
    )


def output(entries: Sequence[Entry], start_ns: int, end_ns: int) -> dict[str, float]:
    """Good output in [start, end), by unit."""
    amounts: dict[str, float] = {}
    for entry in entries:
        production = Production.of(entry.body)
        made = production.amount * entry.part_in(start_ns, end_ns)
        amounts[production.unit] = amounts.get(production.unit, 0.0) + made
    return amounts


def added_value_cny(entries: Sequence[Entry], start_ns: int, end_ns: int) -> float | None:
    """Added value in [start, end); None where no record states one."""
    made = [(Production.of(entry.body), entry.part_in(start_ns, end_ns)) for entry in entries]
    stated = [production.value_cny * part for production, part in made if production.value_cny is not None]
    return sum(stated) if stated else None
