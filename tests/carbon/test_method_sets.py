"""The same plant by several method sets: which factor each of them takes."""

from __future__ import annotations

from dataclasses import replace
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from core.carbon.factor_tables import read_own_factors
from core.carbon.factors import FactorColumn, FactorLibrary
from core.carbon.method import (
    METHOD_SET_IDS,
    GridRule,
    biogenic_kg_per_kwh,
    combustion_kg_per_kwh,
    method_set,
    read_method_sets,
    scope_of_source,
    source_factors,
    stand_ins,
)
from core.clock import parse_rfc3339
from core.errors import BadRequest, FaultyInput
from core.plant.model import Node, NodeKind, Origin
from core.registers.activity import Activity, ActivityKind, activity_carbon
from core.results import Basis, Scope

NOW_NS = parse_rfc3339("2026-11-01T00:00:00Z")
OCTOBER_NS = np.array([parse_rfc3339("2026-10-01T00:00:00Z")], np.int64)
GRID = Node("grid", NodeKind.SOURCE, "electricity", Origin.PURCHASED, "grid")


def factors(
    node: Node, method: str, basis: Basis, library: FactorLibrary, zone: ZoneInfo, region: str = "CN-CQ"
) -> FactorColumn:
    return source_factors(node, method_set(method), basis, OCTOBER_NS, NOW_NS, zone, region, library)


@pytest.mark.parametrize(
    ("method", "location", "market"),
    [
        ("zero-carbon-factory", "grid_cn:CN-CQ:2023:average", "grid_cn:CN:2023:excluding_traded_renewables"),
        ("ghg-protocol", "grid_cn:CN-CQ:2023:average", "grid_cn:CN:2023:excluding_traded_renewables"),
        ("gb-t-32150", "grid_cn:CN-CQ:2023:average", "grid_cn:CN-CQ:2023:average"),
        ("cbam", "grid_cn:CN:2023:average", "grid_cn:CN:2023:average"),
        ("in-house", "grid_cn:CN-CQ:2023:average", "grid_cn:CN:2023:excluding_traded_renewables"),
    ],
)
def test_each_method_set_takes_its_own_grid_factor(
    library: FactorLibrary, zone: ZoneInfo, method: str, location: str, market: str
) -> None:
    by_location = factors(GRID, method, Basis.LOCATION, library, zone)
    by_market = factors(GRID, method, Basis.MARKET, library, zone)

    assert (by_location.row_ids, by_market.row_ids) == ((location,), (market,))
    assert by_location.kg_per_kwh[0] == library.row(location).value
    assert by_market.kg_per_kwh[0] == library.row(market).value


def test_the_national_ets_for_steel_leaves_electricity_out_and_says_so(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    column = factors(GRID, "national-ets", Basis.LOCATION, library, zone)

    assert column.kg_per_kwh[0] == 0
    assert column.row_ids == ("out-of-scope:national-ets",)
    assert "national-ets" in library.row(column.row_ids[0]).source


@pytest.mark.parametrize(("region", "expected"), [("CN", 0.5306), ("CN-GRID-SOUTHWEST", 0.2472)])
def test_a_plant_without_a_province_keeps_its_region_marked_where_the_provincial_factor_is_asked(
    library: FactorLibrary, zone: ZoneInfo, region: str, expected: float
) -> None:
    asked = factors(GRID, "zero-carbon-factory", Basis.LOCATION, library, zone, region)
    free = factors(GRID, "ghg-protocol", Basis.LOCATION, library, zone, region)

    assert (asked.kg_per_kwh[0], asked.unverified[0]) == (expected, True)
    assert (free.kg_per_kwh[0], free.unverified[0]) == (expected, False)
    in_place = method_set("zero-carbon-factory"), Basis.LOCATION, asked.row_ids, zone, region, library
    assert stand_ins(GRID, *in_place) == asked.row_ids


def test_a_country_without_a_residual_mix_uses_its_own_average(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    column = factors(GRID, "ghg-protocol", Basis.MARKET, library, zone, "DEU")

    assert column.row_ids == ("grid_world:DEU:2023:average",)


def test_a_stated_factor_holds_on_both_bases(library: FactorLibrary, zone: ZoneInfo) -> None:
    stated = replace(GRID, factor=0.45848)

    assert factors(stated, "ghg-protocol", Basis.LOCATION, library, zone).kg_per_kwh[0] == 0.45848
    assert factors(stated, "ghg-protocol", Basis.MARKET, library, zone).kg_per_kwh[0] == 0.45848


def test_a_source_without_a_factor_is_unknown_not_zero(library: FactorLibrary, zone: ZoneInfo) -> None:
    column = factors(replace(GRID, factor=None), "ghg-protocol", Basis.LOCATION, library, zone)

    assert np.isnan(column.kg_per_kwh).all()


def test_a_fuel_carries_nothing_until_it_burns(library: FactorLibrary, zone: ZoneInfo) -> None:
    gas = Node(
        "gas", NodeKind.SOURCE, "natural_gas", Origin.PURCHASED, fuel="natural_gas@ndrc_other_industry"
    )

    column = factors(gas, "ghg-protocol", Basis.LOCATION, library, zone)

    assert column.kg_per_kwh[0] == 0
    assert combustion_kg_per_kwh(library.fuel(str(gas.fuel)), method_set("ghg-protocol"), library) > 0


def test_oxidation_counts_where_the_method_set_says_so(library: FactorLibrary) -> None:
    coal = library.fuel("bituminous@ndrc_other_industry")

    with_oxidation = combustion_kg_per_kwh(coal, method_set("gb-t-32150"), library)
    without = combustion_kg_per_kwh(coal, method_set("national-ets"), library)

    assert without == pytest.approx(0.02618 * 44 / 12 * 3.6)
    assert with_oxidation / without == pytest.approx(0.93)


def test_biogenic_carbon_is_shown_apart(library: FactorLibrary) -> None:
    wood, gas = library.fuel("wood@ipcc_2006"), library.fuel("natural_gas@ndrc_other_industry")
    method = method_set("gb-t-32150")

    assert combustion_kg_per_kwh(wood, method, library) == 0
    assert biogenic_kg_per_kwh(wood, method) == pytest.approx(0.0305 * 44 / 12 * 3.6)
    assert biogenic_kg_per_kwh(gas, method) == 0


def test_methane_and_nitrous_oxide_of_burning_count_where_the_method_set_says_so(
    library: FactorLibrary,
) -> None:
    """Table 2.3 of the IPCC guidelines: 1 kg CH4 and 0.1 kg N2O a TJ of natural gas, 30 and 4 of wood."""
    gas, wood = library.fuel("natural_gas@ndrc_other_industry"), library.fuel("wood@ipcc_2006")
    protocol, chinese = method_set("ghg-protocol"), method_set("gb-t-32150")
    ch4, n2o = library.gwp("CH4", "AR6"), library.gwp("N2O", "AR6")

    beside = combustion_kg_per_kwh(gas, protocol, library) - combustion_kg_per_kwh(gas, chinese, library)
    assert beside == pytest.approx((1 * ch4 + 0.1 * n2o) * 3.6e-6)
    # The CO2 of wood stands apart; what else it lets go stays in scope 1.
    assert combustion_kg_per_kwh(wood, protocol, library) == pytest.approx((30 * ch4 + 4 * n2o) * 3.6e-6)


def test_a_fuel_is_read_under_its_ipcc_name(library: FactorLibrary) -> None:
    rows = library.burning_rows(library.fuel("diesel@gbt_32151_2015"))

    assert [row.id for row in rows] == [
        "ipcc_2006:gas_diesel_oil:manufacturing:CH4",
        "ipcc_2006:gas_diesel_oil:manufacturing:N2O",
    ]


def test_every_method_set_names_its_edition_and_claims_no_conformity() -> None:
    for method in map(method_set, METHOD_SET_IDS):
        assert "designed toward" in method.edition or method.id == "in-house"
        assert "conform" not in method.edition


HEADER = "id,name_zh,name_en,edition,gwp_set,oxidation,other_gases,scopes,location,market,tce_basis,nets_sold_energy\n"


def test_a_plants_own_method_set_is_a_row_of_its_folder() -> None:
    row = "group,集团,Group,group rules 2026,AR6,yes,no,1 2,average:national,fossil:national average,calorific,no\n"

    (own,) = read_method_sets((HEADER + row).encode(), "method_sets.csv").values()

    assert own.location == GridRule("average", "national")
    assert own.market == (GridRule("fossil", "national"), GridRule("average"))
    assert (own.gwp_set, own.oxidation, own.nets_sold_energy) == ("AR6", True, False)


def test_every_fault_of_a_method_set_comes_with_its_row_and_column() -> None:
    rows = (
        "a,甲,A,,AR6,yes,no,1 2,average,average,calorific,no\n"  # without an edition
        "b,乙,B,conforms to GB/T 32150,AR7,maybe,no,1 3,mean,average:county,gross,no\n"
        "a,甲,A,rules 1,AR6,yes,no,1 2,average,average,calorific,no\n"
    )

    with pytest.raises(FaultyInput) as caught:
        read_method_sets((HEADER + rows).encode(), "method_sets.csv")

    at = [(fault.line, fault.column) for fault in caught.value.faults]
    assert sorted(at) == [(2, 4), (3, 4), (3, 5), (3, 6), (3, 8), (3, 9), (3, 10), (3, 11), (4, 1)]
    assert caught.value.faults[0].reason == "edition is empty"


def test_an_unknown_method_set_names_the_known_ones() -> None:
    with pytest.raises(BadRequest, match="ghg-protocol"):
        method_set("iso")


def test_own_generation_with_a_factor_is_direct_and_stays_in_the_national_ets(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    own = Node("genset", NodeKind.SOURCE, "electricity", Origin.OWN, 0.7)

    assert factors(own, "national-ets", Basis.LOCATION, library, zone).kg_per_kwh[0] == 0.7


def test_where_the_hourly_series_says_nothing_the_annual_factor_holds_marked(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    text = (
        "id,value,unit,valid_from,source,approved_by,published\n"
        "hourly,0.9,kgCO2/kWh,2026-10-01T00:00:00Z,operator,wang,2026-10-01\n"
        "hourly,0.8,kgCO2/kWh,2026-10-01T01:00:00Z,operator,wang,2026-10-01\n"
    )
    own = library.with_rows(read_own_factors(text.encode(), "factors.csv"))
    hours = OCTOBER_NS + np.arange(3) * 3600 * 10**9

    column = source_factors(
        replace(GRID, factor="hourly"),
        method_set("in-house"),
        Basis.LOCATION,
        hours,
        NOW_NS,
        zone,
        "CN-CQ",
        own,
    )

    np.testing.assert_array_equal(column.kg_per_kwh, [0.9, 0.8, 0.5581])
    assert column.unverified.tolist() == [False, False, True]
    assert column.row_ids[-1] == "grid_cn:CN-CQ:2023:average"
    asked = method_set("in-house"), Basis.LOCATION, column.row_ids, zone, "CN-CQ", own
    assert stand_ins(replace(GRID, factor="hourly"), *asked) == ("grid_cn:CN-CQ:2023:average",)


def test_cbam_counts_bought_heat_as_direct_and_the_others_as_indirect() -> None:
    steam = Node("steam", NodeKind.SOURCE, "steam", Origin.PURCHASED, "heat:heat_cn")
    scopes = {name: scope_of_source(steam, method_set(name)) for name in METHOD_SET_IDS}

    assert scopes.pop("cbam") is Scope.DIRECT
    assert set(scopes.values()) == {Scope.ENERGY_INDIRECT}
    assert scope_of_source(GRID, method_set("cbam")) is Scope.ENERGY_INDIRECT


def test_heat_on_an_invoice_follows_the_same_rule(library: FactorLibrary, zone: ZoneInfo) -> None:
    by_factor = Activity(ActivityKind.FACTOR, "heat:heat_cn", 10, "GJ")
    by_formula = Activity(ActivityKind.PROCESS, "hot-water", 10, "t", details={"temperature_c": 70})
    power = Activity(ActivityKind.FACTOR, "grid_cn:CN:average", 10, "kWh")

    def scopes(method: str) -> list[int]:
        asked = int(OCTOBER_NS[0]), NOW_NS, method_set(method), zone, library
        return [activity_carbon(one, *asked).scope for one in (by_factor, by_formula, power)]

    assert scopes("cbam") == [1, 1, 2]
    assert scopes("ghg-protocol") == [2, 2, 2]
