"""What an activity can be about, for whoever has to pick: subjects by kind, the units that fit, the numbers they need.

Read from the same tables and formulas that count the entry later, so a form
never offers what the register would refuse.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.carbon.accounting import MOLAR_MASS_G
from core.carbon.factor_row import FactorRow, Fuel
from core.carbon.factors import FactorLibrary
from core.carbon.method import method_of
from core.errors import BadRequest
from core.plant.model import Label, Plant
from core.registers.activity import ActivityKind, units_of_factor
from core.registers.process import PROCESSES

_MASSES = ("kg", "t", "g")
# Life-cycle factors of electricity belong to footprints, default values of CBAM to precursors.
_OF_FOOTPRINTS = ("grid_cn_history:", "generation_footprint_cn:", "materials:cbam_")


@dataclass(frozen=True, slots=True)
class Choice:
    """A subject of a kind; `units` begin with the usual one, `needs` and `may` name its details."""

    kind: ActivityKind
    subject: str
    name: Label
    units: tuple[str, ...]
    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    source: str = ""
    unverified: bool = False


def choices(plant: Plant, library: FactorLibrary) -> list[Choice]:
    """Every subject the plant can choose from: fuels, gases that all its method sets can count, factors of its region."""
    gwp_sets = {method_of(plant, name).gwp_set for name in plant.method_sets}
    gases = [
        {row.id.split(":")[1]: row for row in library.rows if row.quantity == "gwp" and row.gwp_set == name}
        for name in sorted(gwp_sets)
    ]
    found = [_fuel(fuel) for fuel in library.fuels.values()]
    found += [
        Choice(
            ActivityKind.GAS,
            code,
            Label(row.kind or code, row.kind or code),
            _MASSES,
            source=row.source,
            unverified=row.unverified,
        )
        for code, row in gases[0].items()
        if all(code in others for others in gases[1:])
    ]
    shielding = Label("保护气,按体积", "shielding gas by volume")
    known = ", ".join(MOLAR_MASS_G)
    found.append(Choice(ActivityKind.WELDING, "CO2:0.2 Ar:0.8", shielding, _MASSES, source=known))
    found += [
        Choice(
            ActivityKind.PROCESS,
            name,
            Label(process.source, process.source),
            (process.unit,),
            process.needs,
            process.may,
            process.source,
        )
        for name, process in PROCESSES.items()
    ]
    return found + _factors(plant, library)


def _fuel(fuel: Fuel) -> Choice:
    units = ("t", "kg", "g") if fuel.amount_unit == "t" else ("10^4 Nm3", "Nm3", "m3@20C")
    name = Label(fuel.name_zh, fuel.name_en)
    return Choice(
        ActivityKind.FUEL, fuel.id, name, units, source=fuel.row.source, unverified=fuel.row.unverified
    )


def _factors(plant: Plant, library: FactorLibrary) -> list[Choice]:
    regions = {"", plant.region}
    regions.update(at for level in ("national", "regional") if (at := library.region_at(plant.region, level)))
    newest: dict[str, FactorRow] = {}
    for row in library.rows:
        if (
            row.quantity in ("gwp", "fuel")
            or row.region not in regions
            or row.series.startswith(_OF_FOOTPRINTS)
        ):
            continue
        if row.valid_from is not None or row.series not in newest:
            newest[row.series] = row
    found = []
    for series, row in newest.items():
        try:
            units = units_of_factor(row)
        except BadRequest:
            continue  # no emission per amount
        told = f"{row.value} {row.unit}"
        found.append(
            Choice(
                ActivityKind.FACTOR,
                series,
                Label(told, told),
                units,
                source=row.source,
                unverified=row.unverified,
            )
        )
    return found
