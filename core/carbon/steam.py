"""What a kilogram of steam holds, between the rows of a steam table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.errors import BadRequest
from core.samples import Floats


@dataclass(frozen=True, slots=True, eq=False)
class SteamTable:
    """Specific enthalpy of saturated and superheated steam; pressures absolute, MPa."""

    saturated_mpa: Floats
    saturated_c: Floats
    saturated_kj_per_kg: Floats
    superheated: tuple[tuple[float, Floats, Floats], ...]  # pressure, temperatures, enthalpies

    def enthalpy_kj_per_kg(self, pressure_mpa: float, temperature_c: float | None = None) -> float:
        """Enthalpy of steam, interpolated between the table's rows.

        Args:
            pressure_mpa: Absolute; add 0.1013 to a gauge reading.
            temperature_c: None, or up to 2 K from the boiling point: saturated dry steam.

        Raises:
            BadRequest: Outside the table, or below the boiling point, where it is water.
        """
        low, high = float(self.saturated_mpa[0]), float(self.saturated_mpa[-1])
        if not low <= pressure_mpa <= high:
            raise BadRequest(f"steam of {pressure_mpa} MPa absolute is outside the table, {low} to {high}")
        boiling_c = float(np.interp(pressure_mpa, self.saturated_mpa, self.saturated_c))
        saturated = float(np.interp(pressure_mpa, self.saturated_mpa, self.saturated_kj_per_kg))
        if temperature_c is None or abs(temperature_c - boiling_c) <= 2.0:
            return saturated
        if temperature_c < boiling_c:
            raise BadRequest(
                f"at {pressure_mpa} MPa and {temperature_c} degC there is water, it boils at {boiling_c:.1f}"
            )
        pressures = np.array([pressure for pressure, _, _ in self.superheated])
        if not pressures[0] <= pressure_mpa <= pressures[-1]:
            raise BadRequest(
                f"superheated steam of {pressure_mpa} MPa is outside the table, {pressures[0]} to {pressures[-1]}"
            )
        after = int(np.clip(np.searchsorted(pressures, pressure_mpa), 1, len(pressures) - 1))
        ends = [self._isobar(i, temperature_c) for i in (after - 1, after)]
        return float(np.interp(pressure_mpa, pressures[after - 1 : after + 1], ends))

    def enthalpies(self, pressure_mpa: Floats, temperature_c: Floats) -> Floats:
        """Enthalpy by interval, kJ/kg, shape (T,); a temperature of NaN is saturated steam.

        NaN where the state lies outside the table or is water.
        """
        boiling_c = np.interp(pressure_mpa, self.saturated_mpa, self.saturated_c)
        enthalpy: Floats = np.interp(pressure_mpa, self.saturated_mpa, self.saturated_kj_per_kg)
        inside = (pressure_mpa >= self.saturated_mpa[0]) & (pressure_mpa <= self.saturated_mpa[-1])
        above = temperature_c - boiling_c
        pressures = np.array([pressure for pressure, _, _ in self.superheated])
        hot = inside & (above > 2.0)
        enthalpy = np.where(inside & ~(above < -2.0) & ~hot, enthalpy, np.nan)
        after = np.clip(np.searchsorted(pressures, pressure_mpa), 1, len(pressures) - 1)
        hot &= (pressure_mpa >= pressures[0]) & (pressure_mpa <= pressures[-1])
        for i in np.unique(after[hot]).tolist():
            here = hot & (after == i)
            low, high = (self._along(j, temperature_c[here]) for j in (i - 1, i))
            share = (pressure_mpa[here] - pressures[i - 1]) / (pressures[i] - pressures[i - 1])
            enthalpy[here] = low + (high - low) * share
        return enthalpy

    def _along(self, i: int, temperature_c: Floats) -> Floats:
        """Along one pressure, NaN beyond its last row."""
        pressure, temperatures, enthalpies = self.superheated[i]
        boiling_c = np.interp(pressure, self.saturated_mpa, self.saturated_c)
        boiling = np.interp(pressure, self.saturated_mpa, self.saturated_kj_per_kg)
        rows = np.array([boiling_c, *temperatures]), np.array([boiling, *enthalpies])
        column: Floats = np.interp(temperature_c, *rows, right=np.nan)
        return column

    def _isobar(self, i: int, temperature_c: float) -> float:
        """Along one pressure, from its boiling point up."""
        pressure, temperatures, enthalpies = self.superheated[i]
        boiling_c = np.interp(pressure, self.saturated_mpa, self.saturated_c)
        boiling = np.interp(pressure, self.saturated_mpa, self.saturated_kj_per_kg)
        if temperature_c > temperatures[-1]:
            raise BadRequest(
                f"steam of {temperature_c} degC is outside the table, up to {temperatures[-1]} degC"
            )
        return float(np.interp(temperature_c, [boiling_c, *temperatures], [boiling, *enthalpies]))
