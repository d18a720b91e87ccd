"""Units against definitions and the reference conditions of gas billing."""

from __future__ import annotations

import pytest

from core.units import kwh_per_unit, nm3_per_m3


def test_a_gigajoule_is_277_8_kilowatt_hours() -> None:
    assert kwh_per_unit("GJ") == pytest.approx(1e9 / 3.6e6, rel=1e-15)
    assert kwh_per_unit("kWh") == kwh_per_unit("kW") == 1.0


def test_a_tonne_is_no_energy_by_itself() -> None:
    with pytest.raises(ValueError, match="unit 't' is no energy"):
        kwh_per_unit("t")


def test_a_billed_cubic_metre_at_20_degrees_is_0_9318_normal_ones() -> None:
    assert nm3_per_m3(20.0) == pytest.approx(273.15 / 293.15, rel=1e-15)
    assert nm3_per_m3(20.0) == pytest.approx(0.9318, abs=5e-5)
    assert nm3_per_m3(0.0, 202.65) == pytest.approx(2.0)


def test_a_gas_below_absolute_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be meant"):
        nm3_per_m3(-300.0)
