"""Worked examples other people published, with where they stand."""

from __future__ import annotations

import pytest

from core.carbon.accounting import clinker_kgco2, fuel_heat_kgco2
from core.carbon.green_power import GreenPower, location_based_kg, market_based_kg, non_fossil
from core.carbon.product import CbamSector, specific_embedded

BTU_GJ = 1.05505585262e-6
C_TO_CO2 = 44 / 12


def test_certificates_for_six_tenths_of_a_gigawatt_hour() -> None:
    """Scope 2 Guidance both ways, tools.gera.services/scope2-market-vs-location-based: 200 t and 180 t."""
    power = GreenPower(grid_offtake_kwh=1_000_000, certificates_kwh=600_000)

    assert location_based_kg(power, 0.20) / 1000 == pytest.approx(200)
    assert market_based_kg(non_fossil(power), 0.45) / 1000 == pytest.approx(180)


@pytest.mark.parametrize(
    ("scf", "btu_per_scf", "stated_t"),
    [
        # California's greenhouse gas inventory, 1A1cii pipelines, natural gas, 2000 (5th edition).
        (1_293_877_097, 956, 65_606),
        # 1A4a domestic utilities, sewerage systems, natural gas, 2005 (13th edition).
        (52_693, 1023, 2.86),
    ],
)
def test_natural_gas_of_the_californian_inventory(scf: float, btu_per_scf: float, stated_t: float) -> None:
    """By heat at 53.02 g/kBtu, which the documentation prints as 0.053 g/btu (40 CFR part 98, table C-1)."""
    carbon_t_per_gj = 53.02e-9 / C_TO_CO2 / BTU_GJ

    tonnes = fuel_heat_kgco2(scf, btu_per_scf * BTU_GJ, carbon_t_per_gj) / 1000

    assert tonnes == pytest.approx(stated_t, rel=2e-3)


def test_clinker_of_sixty_five_per_cent_lime() -> None:
    """IPCC 2006 Guidelines, volume 3, chapter 2: 0.51 t CO2 a tonne of clinker with 65 % CaO, all from carbonate."""
    assert clinker_kgco2(1, 0.65, 0.0) / 1000 == pytest.approx(0.51, abs=0.005)


def test_a_hundred_tonnes_of_steel() -> None:
    """academy.emitwise.com on embedded emissions: 200 t CO2e for 100 t of steel are 2 t a tonne."""
    good = specific_embedded("7208", CbamSector.IRON_AND_STEEL, 100, 200_000, None)

    assert good.see_t_per_t == 2.0
