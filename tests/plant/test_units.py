"""Units against their definitions."""

from __future__ import annotations

import pytest

from core.units import kwh_per_unit


def test_a_gigajoule_is_277_8_kilowatt_hours() -> None:
    assert kwh_per_unit("GJ") == pytest.approx(1e9 / 3.6e6, rel=1e-15)
    assert kwh_per_unit("kWh") == kwh_per_unit("kW") == 1.0


def test_a_tonne_is_no_energy_by_itself() -> None:
    with pytest.raises(ValueError, match="unit 't' is no energy"):
        kwh_per_unit("t")
