"""Energy and power as they are delivered, and what one unit of each is in kWh or kW.

Tonnes and cubic metres become kWh by a calorific value or an enthalpy, which
belong to the factor tables (`core.carbon`); here stands only what holds everywhere.
"""

from __future__ import annotations

from typing import Final

KWH_PER_MJ: Final = 1 / 3.6  # exact: 1 kWh = 3.6 MJ

PER_UNIT: Final = {
    "Wh": 0.001,
    "kWh": 1.0,
    "MWh": 1000.0,
    "kJ": KWH_PER_MJ / 1000,
    "MJ": KWH_PER_MJ,
    "GJ": 1000 * KWH_PER_MJ,
    "W": 0.001,
    "kW": 1.0,
    "MW": 1000.0,
    "GJ/h": 1000 * KWH_PER_MJ,
}


def kwh_per_unit(unit: str) -> float:
    """kWh in one unit of energy, or kW in one unit of power.

    Raises:
        ValueError: The unit is neither.
    """
    if unit not in PER_UNIT:
        raise ValueError(f"unit {unit!r} is no energy and no power: wanted one of {', '.join(PER_UNIT)}")
    return PER_UNIT[unit]
