"""The accounting formulas against worked examples, and what they refuse."""

from __future__ import annotations

import pytest

from core.carbon.accounting import (
    anode_effect_kgco2e,
    anode_kgco2,
    blend_gwp,
    carbon_balance_kgco2,
    carbonate_kgco2,
    clinker_kgco2,
    combustion_ch4_n2o_kgco2e,
    destroyed_gas_kgco2e,
    effects,
    etching_gas_kgco2e,
    fuel_carbon_kgco2,
    fuel_heat_kgco2,
    gas_kgco2e,
    gas_lost_kg,
    heat_kgco2,
    hot_water_gj,
    net_indirect_kg,
    recovered_kgco2,
    steam_heat_gj,
    wastewater_kgch4,
    welding_kgco2,
)
from core.carbon.factors import FactorLibrary
from core.errors import BadRequest


def test_t1_a_monthly_steel_sheet_of_the_national_ets_comes_out() -> None:
    """Monthly evidence sheet, steel, June 2026: no oxidation factor, no electricity."""
    burned = [
        (2317.68, 25.024, 0.02749, 5845.97),  # anthracite
        (120188.43, 23.736, 0.02618, 273849.07),  # bituminous
        (300810.90, 26.344, 0.02541, 738331.47),  # washed coal
        (66522.44, 28.435, 0.02942, 204049.48),  # coke
        (920.50, 173.854, 0.0121, 7100.11),  # coke-oven gas, 10^4 Nm3
    ]

    tonnes = [fuel_heat_kgco2(amount, ncv, carbon) / 1000 for amount, ncv, carbon, _ in burned]
    total = sum(tonnes) + 32394.60 - 47513.21  # process; carbon fixed in products

    assert tonnes == pytest.approx([stated for *_, stated in burned], abs=0.005)
    assert sum(tonnes) == pytest.approx(1229176.10, abs=0.01)
    assert total == pytest.approx(1214057.49, abs=0.01)
    assert total / 595279 == pytest.approx(2.0395, abs=5e-5)


def test_t2_natural_gas_and_diesel_with_oxidation(library: FactorLibrary) -> None:
    gas = library.fuel("natural_gas@gbt_32151_2015")
    diesel = library.fuel("diesel@gbt_32151_2015")

    gas_t = fuel_heat_kgco2(1, gas.ncv_gj * 1e4, gas.carbon_t_per_gj, gas.oxidation) / 1000
    diesel_t = fuel_heat_kgco2(1, diesel.ncv_gj, diesel.carbon_t_per_gj, diesel.oxidation) / 1000

    assert gas_t == pytest.approx(21.6219, abs=5e-5)
    assert diesel_t == pytest.approx(3.0959, abs=5e-5)
    # The same carbon by the kWh, as the engine counts it.
    assert gas.kgco2_per_kwh(oxidised=True) * gas.kwh_per("10^4 Nm3") / 1000 == pytest.approx(
        gas_t, rel=1e-12
    )


def test_t3_hot_water_and_steam_as_purchased_heat(library: FactorLibrary) -> None:
    steam_gj = steam_heat_gj(1, 2777, library)

    assert hot_water_gj(100, 70, library) == pytest.approx(20.934, abs=5e-4)
    assert steam_gj == pytest.approx(2.69326, abs=5e-6)
    assert heat_kgco2(steam_gj, library) / 1000 == pytest.approx(0.29626, abs=5e-6)


def test_t11_shielding_gas_lets_go_its_carbon_dioxide_by_mass() -> None:
    assert welding_kgco2(1000, {"CO2": 0.2, "Ar": 0.8}) == pytest.approx(215.686, abs=5e-4)


def test_t12_the_gwp_belongs_to_the_method_set(library: FactorLibrary) -> None:
    assert gas_kgco2e(10, "SF6", "AR5", library) == 235_000
    assert gas_kgco2e(10, "SF6", "AR6", library) == 252_000


def test_t13_clinker_by_its_oxides() -> None:
    assert clinker_kgco2(1, 0.65, 0.015) / 1000 == pytest.approx(0.52721, abs=5e-6)


def test_clinker_leaves_out_oxides_that_came_without_carbonate() -> None:
    assert clinker_kgco2(1, 0.65, 0.0, cao_not_from_carbonate=0.09) == pytest.approx(0.56 * 44 / 56 * 1000)


def test_returned_condensate_subtracts_from_steam(library: FactorLibrary) -> None:
    with_return = steam_heat_gj(10, 2777, library, condensate_t=8, condensate_c=80)

    assert steam_heat_gj(10, 2777, library) - with_return == pytest.approx(8 * 60 * 4.1868 / 1000)


def test_measured_carbon_and_heat_agree_on_the_same_fuel() -> None:
    # 0.5 tC in a tonne, said either way.
    assert fuel_carbon_kgco2(3, 0.5, 0.98) == pytest.approx(fuel_heat_kgco2(3, 20, 0.025, 0.98))


def test_a_carbonate_releases_what_stoichiometry_says(library: FactorLibrary) -> None:
    for code, molar_mass in (("CaCO3", 100.0869), ("MgCO3", 84.3139), ("BaCO3", 197.336)):
        factor = library.row(f"process:{code}").value
        assert carbonate_kgco2(2, factor, purity=0.9) == pytest.approx(
            2 * 0.9 * 44.009 / molar_mass * 1000, rel=2e-4
        )


def test_carbon_kept_in_the_product_is_not_emitted() -> None:
    kg = carbon_balance_kgco2(inputs=[(100, 0.04), (2, 0.85)], outputs=[(95, 0.002)])

    assert kg == pytest.approx((4 + 1.7 - 0.19) * 44 / 12 * 1000)


def test_a_balance_that_makes_carbon_is_refused() -> None:
    with pytest.raises(BadRequest, match="come out of"):
        carbon_balance_kgco2(inputs=[(1, 0.1)], outputs=[(1, 0.2)])


def test_aluminium_counts_anodes_and_anode_effects(library: FactorLibrary) -> None:
    assert anode_kgco2(100, 0.42, 0.02, 0.004) == pytest.approx(100 * 0.42 * 0.976 * 44 / 12 * 1000)
    assert anode_effect_kgco2e(100, 0.034, 0.0034, "AR5", library) == pytest.approx(
        100 * (0.034 * 6630 + 0.0034 * 11100)
    )


def test_an_abatement_unit_helps_only_while_in_use() -> None:
    assert destroyed_gas_kgco2e(100, 7.0, 265, destruction=0.9, in_use=0.5) == pytest.approx(700 * 0.55 * 265)


def test_etching_gas_leaves_heel_and_chamber_losses_behind() -> None:
    kg = etching_gas_kgco2e(10, 6630, heel=0.1, used=0.7, abated=0.5, abatement=0.9)

    assert kg == pytest.approx(10 * 0.9 * 0.3 * 0.55 * 6630)


def test_wastewater_gas_that_is_burned_is_not_let_go(library: FactorLibrary) -> None:
    b0 = library.row("process:wastewater_b0").value

    assert wastewater_kgch4(1000, 200, b0, 0.8, recovered_kg=100) == pytest.approx(800 * 0.25 * 0.8 - 100)
    with pytest.raises(BadRequest, match="recovered"):
        wastewater_kgch4(1000, 200, b0, 0.8, recovered_kg=161)


def test_methane_and_nitrous_oxide_of_burning_stay_small_and_are_there(library: FactorLibrary) -> None:
    one_tj_kwh = 1e6 / 3.6

    kg = combustion_ch4_n2o_kgco2e(one_tj_kwh, "natural_gas", "manufacturing", "AR5", library)

    assert kg == pytest.approx(1 * 28 + 0.1 * 265)  # IPCC 2006: 1 kg CH4 and 0.1 kg N2O per TJ


def test_refrigerant_is_lost_by_mass_balance_not_by_purchase() -> None:
    assert gas_lost_kg(opening_kg=20, bought_kg=50, sold_kg=5, closing_kg=15, nameplate_change_kg=30) == 20
    with pytest.raises(BadRequest, match="more is there than came in"):
        gas_lost_kg(opening_kg=20, bought_kg=0, sold_kg=0, closing_kg=30)


@pytest.mark.parametrize(
    ("blend", "shares", "listed"),
    [
        ("R404A", {"HFC-125": 0.44, "HFC-143a": 0.52, "HFC-134a": 0.04}, 3943),
        ("R407C", {"HFC-32": 0.23, "HFC-125": 0.25, "HFC-134a": 0.52}, 1624),
        ("R410A", {"HFC-32": 0.50, "HFC-125": 0.50}, 1924),
    ],
)
def test_a_blend_weighs_its_gases_and_agrees_with_the_uk_list(
    library: FactorLibrary, blend: str, shares: dict[str, float], listed: float
) -> None:
    """UK Government GHG Conversion Factors 2025, refrigerants (AR5)."""
    assert blend_gwp(shares, "AR5", library) == pytest.approx(library.gwp(blend, "AR5"), abs=0.05)
    assert blend_gwp(shares, "AR5", library) == pytest.approx(listed, abs=1)


def test_shares_that_do_not_add_up_are_refused(library: FactorLibrary) -> None:
    with pytest.raises(BadRequest, match="add up to"):
        blend_gwp({"HFC-32": 0.5, "HFC-125": 0.4}, "AR5", library)
    with pytest.raises(BadRequest, match="add up to"):
        welding_kgco2(1, {"CO2": 0.2, "Ar": 0.7})


def test_recovered_carbon_counts_only_with_the_receivers_record() -> None:
    assert recovered_kgco2(5, "weighbridge 12") == 5
    with pytest.raises(BadRequest, match="receiver's record"):
        recovered_kgco2(5, " ")


def test_an_export_is_never_netted_into_a_negative_figure() -> None:
    assert net_indirect_kg(100, 30) == 70
    with pytest.raises(BadRequest, match="report the export"):
        net_indirect_kg(30, 100)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_an_amount_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(BadRequest, match="amount is"):
        fuel_heat_kgco2(wrong, 20, 0.02)


def test_a_change_splits_into_energy_and_factor_without_rest() -> None:
    """Chongqing 2021 to 2023 at constant kWh: the factor alone raises emissions by 18 %."""
    constant = effects(1000, 474.3, 1000, 558.1)
    both = effects(1000, 500, 800, 480)

    assert constant.energy_kg == 0
    assert constant.factor_kg / 474.3 == pytest.approx(0.177, abs=1e-3)
    assert (both.energy_kg, both.factor_kg) == pytest.approx((-100, 80))
