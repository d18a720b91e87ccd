"""What a metered unit of steam or water held, interval by interval, from the state that was measured with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from core.carbon.steam import SteamTable
from core.plant.model import Medium
from core.samples import Flags, Floats
from core.units import KWH_PER_MJ

ATMOSPHERE_MPA: Final = 0.1013
STANDARD_MPA: Final = 0.7  # of steam where nothing is stated
WATER_KWH_PER_M3_K: Final = 4.1868 * KWH_PER_MJ  # a tonne of water and a kelvin, GB/T 32150-2015 (C18)


def steam_kwh_per_kg(
    medium: Medium | None,
    state: Mapping[str, Floats],
    table: SteamTable,
    feed_water_kj_per_kg: float,
    shape: int,
) -> Floats:
    """Heat of a kilogram of steam above its feed water, shape (T,); NaN where its state is not known.

    Args:
        state: By point, means over the intervals; NaN where nothing was read.

    Source: GB/T 32150-2015, purchased heat (C18): t x (h - 83.74); enthalpies of IAPWS-IF97.
    """
    pressure = _column(None if medium is None else medium.pressure, state, STANDARD_MPA, shape)
    if medium is not None and isinstance(medium.pressure, str):
        pressure = pressure * medium.mpa_per_unit
    if medium is not None and medium.gauge:
        pressure = pressure + ATMOSPHERE_MPA
    temperature = _column(None if medium is None else medium.temperature, state, np.nan, shape)
    enthalpy = table.enthalpies(pressure, temperature)
    if medium is not None and isinstance(medium.temperature, str):
        enthalpy = np.where(np.isnan(temperature), np.nan, enthalpy)  # not read is not saturated
    held: Floats = (enthalpy - feed_water_kj_per_kg) / 1000 * KWH_PER_MJ
    return held


def water_kwh_per_m3(medium: Medium, state: Mapping[str, Floats], shape: int) -> Floats:
    """Heat (or cold) a cubic metre of water gave off between supply and return, shape (T,), from zero up."""
    supply = _column(medium.supply, state, np.nan, shape)
    back = _column(medium.back, state, np.nan, shape)
    held: Floats = np.abs(supply - back) * WATER_KWH_PER_M3_K
    return held


def _column(given: float | str | None, state: Mapping[str, Floats], otherwise: float, shape: int) -> Floats:
    if isinstance(given, str):
        return state[given]
    return np.full(shape, otherwise if given is None else given)


def interval_means(cell: np.ndarray, value: Floats, last: Floats, intervals: int) -> Floats:
    """Means of readings by interval; where an interval has none, the last reading before it as far as it is fresh.

    Args:
        cell: Shape (n,), the interval of each reading, -1 where it lies outside.
        last: Shape (T,), the newest reading at each interval's end; NaN where it is too old.
    """
    inside: Flags = cell >= 0
    count = np.bincount(cell[inside], minlength=intervals)
    total = np.bincount(cell[inside], weights=value[inside], minlength=intervals)
    mean: Floats = np.where(count > 0, total / np.maximum(count, 1), last)
    return mean
