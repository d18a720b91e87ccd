"""`medium` of an edge and `allocation` of a converter: what a unit of a medium holds, and who bears a converter's carbon.

A meter that counts tonnes or cubic metres says nothing of kWh by itself. Steam
holds what its pressure and temperature say, water what it gives off between
supply and return, air and hydrogen what the plant states for a unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from core.plant.document import Entry, did_you_mean
from core.plant.model import Allocation, AllocationRule, Medium, Node, Point

KELVIN: Final = 273.15
_STEAM: Final = ("steam",)
_WATER: Final = ("hot_water", "chilled_water", "cooling", "heat", "waste_heat")
_PRESSURES: Final = {"kPa": 1e-3, "MPa": 1.0, "bar": 0.1, "Pa": 1e-6}
_ELECTRIC: Final = "electricity"


def read_medium(entry: Entry, carrier: str, meter_unit: str, points: Mapping[str, Point]) -> Medium | None:
    """`medium: {kwh_per_unit: 3.0}`, `{pressure_mpa: 0.8, temperature_c: 180}` or `{supply_c: …, return_c: …}`.

    A pressure is absolute unless `gauge: true`; pressures and temperatures are numbers, or points that measure them.
    """
    given = entry.child("medium")
    if given is None:
        return None
    kwh_per_unit = given.number("kwh_per_unit", None, above=0)
    pressure = _state(given, "pressure_mpa", points, tuple(_PRESSURES))
    temperature = _state(given, "temperature_c", points, ("degC",))
    supply = _state(given, "supply_c", points, ("degC",))
    back = _state(given, "return_c", points, ("degC",))
    gauge = given.value("gauge")
    if gauge not in (None, True, False):
        given.fault("gauge", f"gauge is {gauge!r}, wanted true or false")
    given.finish()
    ways = [
        kwh_per_unit is not None,
        pressure is not None or temperature is not None,
        supply is not None or back is not None,
    ]
    if sum(ways) != 1:
        entry.fault(
            "medium",
            "medium states kwh_per_unit, or pressure_mpa (and temperature_c), or supply_c and return_c",
        )
    elif ways[1] and carrier not in _STEAM:
        entry.fault("medium", f"pressure and temperature tell of steam, this edge carries {carrier}")
    elif ways[1] and pressure is None:
        given.fault(
            "pressure_mpa", "pressure_mpa is missing: temperature alone does not tell what steam holds"
        )
    elif ways[2] and carrier not in _WATER:
        entry.fault("medium", f"supply and return tell of water, this edge carries {carrier}")
    elif ways[2] and (supply is None or back is None):
        entry.fault("medium", "supply_c and return_c belong together")
    if (ways[1] and meter_unit not in ("t", "kg")) or (ways[2] and meter_unit not in ("t", "kg", "m3", "L")):
        entry.fault(
            "medium",
            f"the meter counts {meter_unit or 'nothing'}: no mass or volume of {carrier} whose state would tell",
        )
    scale = _PRESSURES[points[pressure].unit] if isinstance(pressure, str) and pressure in points else 1.0
    return Medium(kwh_per_unit, pressure, temperature, supply, back, scale, gauge is True)


def _state(entry: Entry, key: str, points: Mapping[str, Point], units: tuple[str, ...]) -> float | str | None:
    value = entry.value(key)
    if not isinstance(value, str):
        return entry.number(key, None)
    if value not in points:
        entry.fault(key, f"unknown point {value!r}{did_you_mean(value, points)}")
        return None
    if points[value].unit not in units:
        entry.fault(key, f"point {value} is in {points[value].unit}, wanted {' or '.join(units)}")
        return None
    return str(value)


def read_allocation(entry: Entry) -> Allocation | None:
    """`allocation` of a converter with several outputs, such as a CHP.

    `{rule: energy}`; `{rule: efficiency, reference: {electricity: 0.35, steam: 0.8}}`; `{rule: exergy,
    temperature_c: {steam: 180}, ambient_c: 15}`.

    Source: GHG Protocol, Allocation of GHG Emissions from a Combined Heat and Power Plant, 2006: the energy content,
    the efficiency and the work potential method.
    """
    given = entry.child("allocation")
    if given is None:
        return None
    rule = given.text("rule", required=True, choices=[one.value for one in AllocationRule])
    weights: dict[str, float] = {}
    if rule == AllocationRule.EFFICIENCY:
        reference = given.child("reference")
        if reference is None:
            given.fault(
                "reference", "reference is missing: the efficiency each output would be made with by itself"
            )
        for carrier in reference.data if reference else ():
            weights[str(carrier)] = (
                1.0 / reference.number(str(carrier), 1.0, above=0, most=10) if reference else 1.0
            )
        if reference:
            reference.finish()
    if rule == AllocationRule.EXERGY:
        ambient = given.number("ambient_c", 15.0, least=-40, most=60) + KELVIN
        heat = given.child("temperature_c")
        if heat is None:
            given.fault("temperature_c", "temperature_c is missing: of each heat output, in degC")
        for carrier in heat.data if heat else ():
            hot = heat.number(str(carrier), 100.0, most=1500) if heat else 100.0
            if hot + KELVIN <= ambient:
                given.fault("temperature_c", f"{carrier} of {hot:g} degC is no warmer than its surroundings")
                continue
            weights[str(carrier)] = 1.0 - ambient / (hot + KELVIN)
        weights.setdefault(_ELECTRIC, 1.0)
        if heat:
            heat.finish()
    given.finish()
    return Allocation(AllocationRule(rule or AllocationRule.ENERGY), weights)


def weight_of(source: Node | None, carrier: str, entry: Entry) -> float:
    """What a kWh of an output bears of its converter's carbon, against the others."""
    if source is None or source.allocation is None or source.allocation.rule is AllocationRule.ENERGY:
        return 1.0
    weight = source.allocation.weights.get(carrier)
    if weight is None:
        known = ", ".join(source.allocation.weights)
        entry.fault("from", f"allocation of {source.id} says nothing of {carrier}: it knows {known}")
        return 1.0
    return weight
