"""Indicators out of a period's sums."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.carbon.factor_tables import read_own_thresholds
from core.carbon.factors import FactorLibrary
from core.carbon.green_power import GreenPower, non_fossil
from core.carbon.indicators import (
    Indicator,
    PeriodSums,
    energy_tce,
    green_power_of,
    indicators,
    schemes,
    thresholds,
    trajectory,
)
from core.carbon.method import TceBasis
from core.errors import BadRequest, FaultyInput

GRID_ONLY = PeriodSums(
    method_set="zero-carbon-factory",
    coverage=0.98,
    purchased_kwh={"electricity": 1e6},
    emissions_kg={(1, "location"): 0.0, (2, "location"): 0.5306e6, (2, "market"): 0.6096e6},
)


def by_name(sums: PeriodSums, library: FactorLibrary) -> dict[tuple[str, str | None], Indicator]:
    return {(row.indicator, row.basis): row for row in indicators(sums, library)}


def test_t5_a_grid_only_factory_on_both_bases(library: FactorLibrary) -> None:
    rows = by_name(GRID_ONLY, library)

    calorific = rows["carbon_per_energy", "location,calorific"]
    primary = rows["carbon_per_energy", "location,primary"]

    assert calorific.value == pytest.approx(4.3173, abs=5e-5)
    assert primary.value == pytest.approx(1.8578, abs=5e-5)
    assert (primary.entry, primary.final, primary.reached) == (1.8, 0.2, "none")


def test_every_row_carries_coverage_and_method_set(library: FactorLibrary) -> None:
    for row in indicators(GRID_ONLY, library):
        assert (row.coverage, row.method_set) == (0.98, "zero-carbon-factory")


def test_totals_stand_beside_each_other_by_scope_and_basis(library: FactorLibrary) -> None:
    sums = replace(
        GRID_ONLY,
        purchased_kwh={"electricity": 1e6, "natural_gas": 5e5},
        emissions_kg={(1, "location"): 1e5, (2, "location"): 5e5, (2, "market"): 6e5},
    )

    rows = by_name(sums, library)

    assert rows["energy", None].value == 1.5e6
    assert rows["emissions_scope_1", None].value == 1e5
    assert rows["emissions_total", "location"].value == 6e5
    assert rows["emissions_total", "market"].value == 7e5
    assert rows["emissions_intensity", "location"].value == pytest.approx(0.4)


def test_gas_is_the_heat_it_holds_on_both_bases(library: FactorLibrary) -> None:
    gas = {"natural_gas": 29_307.6 / 3.6}  # MJ of one tonne of standard coal, in kWh

    assert energy_tce(gas, TceBasis.CALORIFIC, library) == pytest.approx(1.0)
    assert energy_tce(gas, TceBasis.PRIMARY, library) == pytest.approx(1.0)


def test_unknown_carbon_is_none_never_zero(library: FactorLibrary) -> None:
    rows = by_name(
        replace(GRID_ONLY, emissions_kg={(1, "location"): 0.0, (2, "location"): float("nan")}), library
    )

    assert rows["emissions_scope_2", "location"].value is None
    assert rows["emissions_total", "location"].value is None
    assert rows["carbon_per_energy", "location,primary"].value is None
    assert rows["carbon_per_energy", "location,primary"].reached is None


def test_own_power_is_used_here_or_sold(library: FactorLibrary) -> None:
    sums = replace(GRID_ONLY, own_kwh={"electricity": 4e5}, exported_kwh={"electricity": 1e5})

    rows = by_name(sums, library)

    assert rows["self_use", None].value == pytest.approx(75)
    assert rows["self_sufficiency", None].value == pytest.approx(100 * 3 / 13)
    physical = rows["physical_non_fossil_electricity_share", None]
    assert physical.value == pytest.approx(100 * 3 / 13)
    assert physical.reached == "entry"
    assert physical.note == "asked for above 5 GWh a year only"


def test_registered_certificates_lift_one_share_and_not_the_other(library: FactorLibrary) -> None:
    sums = replace(GRID_ONLY, power=GreenPower(grid_offtake_kwh=0, certificates_kwh=4e5, province_share=0.5))

    rows = by_name(sums, library)

    assert rows["non_fossil_share", "primary"].value == pytest.approx(70)  # 40 % cancelled, half of the rest
    assert rows["non_fossil_share", "primary"].reached == "entry"
    assert rows["physical_non_fossil_electricity_share", None].value == 0


def test_feedstock_energy_is_no_part_of_the_non_fossil_share(library: FactorLibrary) -> None:
    heat_kwh = 1e6
    sums = PeriodSums(
        method_set="zero-carbon-factory",
        coverage=1.0,
        purchased_kwh={"natural_gas": 2 * heat_kwh, "biogas": heat_kwh},
        renewable_fuel_kwh=heat_kwh,
        feedstock_kwh=heat_kwh,
    )

    rows = by_name(sums, library)

    assert rows["non_fossil_share", "calorific"].value == pytest.approx(50)


def test_a_regime_that_nets_sold_energy_takes_out_the_carbon_that_left(library: FactorLibrary) -> None:
    sums = replace(GRID_ONLY, exported_kg={"location": 0.2653e6})

    netted = by_name(replace(sums, nets_sold_energy=True), library)
    gross = by_name(sums, library)

    assert netted["carbon_per_energy", "location,calorific"].value == pytest.approx(4.3173 / 2, abs=5e-5)
    assert gross["carbon_per_energy", "location,calorific"].value == pytest.approx(4.3173, abs=5e-5)
    assert netted["emissions_total", "location"].value == 0.5306e6  # the total is never netted


def test_output_and_value_give_specific_figures(library: FactorLibrary) -> None:
    sums = replace(GRID_ONLY, output={"t": 500.0}, value_cny=2e7)

    rows = by_name(sums, library)

    assert rows["emissions_per_output", "location"].value == pytest.approx(1061.2)
    assert rows["emissions_per_output", "location"].unit == "kgCO2e/t"
    assert rows["energy_per_value", "calorific"].value == pytest.approx(122.9 / 2000)


def test_goods_counted_in_different_units_have_a_figure_each_that_says_so(library: FactorLibrary) -> None:
    sums = replace(GRID_ONLY, output={"t": 500.0, "pcs": 2000.0})

    rows = {row.key: row for row in indicators(sums, library)}
    per_t, per_piece = (rows["emissions_per_output", unit, "location"] for unit in ("kgCO2e/t", "kgCO2e/pcs"))

    assert (per_t.value, per_piece.value) == (pytest.approx(1061.2), pytest.approx(530_600 / 2000))
    assert per_t.note == "the whole plant's, which made 2000.0 pcs besides"


def test_electrification_counts_end_use(library: FactorLibrary) -> None:
    rows = by_name(replace(GRID_ONLY, end_use_kwh={"electricity": 3e5, "steam": 1e5}), library)

    assert rows["electrification", "calorific"].value == 75


def test_a_trajectory_reaches_the_final_value_in_equal_steps() -> None:
    path = trajectory(2026, 1.8, 2030, 0.2)

    assert list(path) == [2026, 2027, 2028, 2029, 2030]
    assert list(path.values()) == pytest.approx([1.8, 1.4, 1.0, 0.6, 0.2])


def test_the_final_value_of_a_core_indicator_is_seen_when_reached(library: FactorLibrary) -> None:
    sums = replace(GRID_ONLY, emissions_kg={(1, "location"): 0.0, (2, "location"): 0.2 * 285_600})

    rows = by_name(sums, library)

    assert rows["carbon_per_energy", "location,primary"].reached == "final"
    assert rows["carbon_per_energy", "location,calorific"].reached == "entry"


def test_a_provinces_thresholds_are_data_with_a_source(library: FactorLibrary) -> None:
    asked = thresholds("hunan-zero-carbon-factory", "carbon_per_energy", library)

    assert [(threshold.stage, threshold.met_by(0.9)) for threshold in asked] == [
        ("2027", True),
        ("2030", False),
        ("2035", False),
    ]
    assert library.row(asked[0].row_id).source == "Hunan zero-carbon factory indicators"
    assert thresholds("hunan-zero-carbon-factory", "electrification", library) == ()


def test_sold_certificates_are_those_of_the_exported_power_first(library: FactorLibrary) -> None:
    """100 made, 40 sold on: certificates of 50 cost the claim of 10, those of 500 the claim of all 60 used."""

    def claim_lost_kwh(sold_kwh: float) -> float:
        sums = replace(
            GRID_ONLY,
            own_kwh={"electricity": 100.0},
            exported_kwh={"electricity": 40.0},
            power=GreenPower(grid_offtake_kwh=0.0, own_certificates_sold_kwh=sold_kwh),
        )
        assert by_name(sums, library)  # the period still has its indicators
        return non_fossil(green_power_of(sums)).claim_lost_kwh

    assert [claim_lost_kwh(sold) for sold in (0.0, 40.0, 50.0, 500.0)] == [0.0, 0.0, 10.0, 60.0]


def test_a_local_schemes_stages_stand_beside_the_indicators(library: FactorLibrary) -> None:
    table = (
        "scheme,indicator,stage,value,unit,better,source,confidence\n"
        "city,carbon_per_energy,silver,4.5,tCO2/tce,at_most,city rule 7,verified\n"
        "city,carbon_per_energy,gold,2.0,tCO2/tce,at_most,city rule 7,verified\n"
    )
    own = library.with_rows(read_own_thresholds(table.encode(), "indicator_thresholds.csv"))

    rows = {(row.indicator, row.basis): row for row in indicators(GRID_ONLY, own, "city")}

    row = rows["carbon_per_energy", "location,calorific"]
    assert (row.stages, row.reached, row.entry) == ({"silver": 4.5, "gold": 2.0}, "silver", None)
    assert rows["non_fossil_share", "calorific"].reached is None
    assert schemes(own)[-1] == "city"
    with pytest.raises(BadRequest, match="hunan-zero-carbon-factory"):
        indicators(GRID_ONLY, own, "village")
    with pytest.raises(FaultyInput, match="wanted at_most or at_least"):
        read_own_thresholds(table.replace("at_most", "below").encode(), "t.csv")


def test_what_was_captured_is_a_rate_of_its_own(library: FactorLibrary) -> None:
    rows = by_name(replace(GRID_ONLY, removed_kg=0.05306e6, collected_share=0.75), library)

    assert rows["removal_rate", None].value == pytest.approx(10.0)
    assert rows["auto_collection", None].value == 75.0
    assert rows["emissions_total", "location"].value == 0.5306e6
