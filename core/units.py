"""Units as they are delivered, and what one of each is in the engine's own.

The engine counts kWh, t and Nm³ (0 °C, 101.325 kPa). Fuels become kWh by their
net calorific value, which belongs to the factor tables; here stands only what
holds everywhere.
"""

from __future__ import annotations

from typing import Final

KELVIN_AT_0_DEGC: Final = 273.15
KWH_PER_MJ: Final = 1 / 3.6  # exact: 1 kWh = 3.6 MJ

KWH_PER_UNIT: Final = {
    "Wh": 0.001,
    "kWh": 1.0,
    "MWh": 1000.0,
    "kJ": KWH_PER_MJ / 1000,
    "MJ": KWH_PER_MJ,
    "GJ": 1000 * KWH_PER_MJ,
}
KW_PER_UNIT: Final = {"W": 0.001, "kW": 1.0, "MW": 1000.0, "GJ/h": 1000 * KWH_PER_MJ}
T_PER_UNIT: Final = {"kg": 0.001, "t": 1.0}
NM3_PER_UNIT: Final = {"Nm3": 1.0}

# What a rate becomes when it is integrated over hours.
AMOUNT_OF_RATE: Final = {
    "W": "Wh",
    "kW": "kWh",
    "MW": "MWh",
    "GJ/h": "GJ",
    "t/h": "t",
    "kg/h": "kg",
    "Nm3/h": "Nm3",
    "m3/h": "m3",
}


def kwh_per_unit(unit: str) -> float:
    """kWh in one unit of energy, or kW in one unit of power.

    Raises:
        ValueError: The unit is neither (a tonne needs a calorific value or an enthalpy).
    """
    factor = KWH_PER_UNIT.get(unit, KW_PER_UNIT.get(unit))
    if factor is None:
        raise ValueError(f"unit {unit!r} is no energy and no power: wanted one of {', '.join(KWH_PER_UNIT)}")
    return factor


def nm3_per_m3(temperature_degc: float, pressure_abs_kpa: float = 101.325) -> float:
    """Normal cubic metres in one cubic metre of ideal gas at a temperature and absolute pressure.

    At 20 °C, the reference of Chinese gas billing, 0.9318. Source: ideal gas law between
    the given state and 0 °C, 101.325 kPa.
    """
    kelvin = KELVIN_AT_0_DEGC + temperature_degc
    if kelvin <= 0 or pressure_abs_kpa <= 0:
        raise ValueError(
            f"a gas at {temperature_degc:g} degC and {pressure_abs_kpa:g} kPa absolute cannot be meant"
        )
    return KELVIN_AT_0_DEGC / kelvin * pressure_abs_kpa / 101.325
