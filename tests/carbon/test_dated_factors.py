"""Which factor row holds: valid time, known time, region and level."""

from __future__ import annotations

import csv
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from core.carbon.factor_tables import TABLES, read_own_factors, read_tables
from core.carbon.factors import FactorLibrary
from core.clock import parse_rfc3339, rfc3339
from core.errors import BadRequest, FaultyInput
from core.samples import Times

NOW_NS = parse_rfc3339("2026-11-01T00:00:00Z")


def times(*texts: str) -> Times:
    return np.array([parse_rfc3339(text) for text in texts], np.int64)


def test_a_sample_takes_the_newest_data_year_not_after_its_own(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    column = library.grid_factor(
        "CN-CQ", times("2022-06-01T00:00:00Z", "2026-10-01T00:00:00Z"), zone=zone, known_at_ns=NOW_NS
    )

    np.testing.assert_array_equal(column.kg_per_kwh, [0.5227, 0.5581])
    assert column.row_ids == ("grid_cn:CN-CQ:2022:average", "grid_cn:CN-CQ:2023:average")


def test_the_year_is_cut_in_the_plants_zone(library: FactorLibrary, zone: ZoneInfo) -> None:
    new_year = times("2022-12-31T15:59:59Z", "2022-12-31T16:00:00Z")

    in_shanghai = library.grid_factor("CN-CQ", new_year, zone=zone, known_at_ns=NOW_NS)
    in_utc = library.grid_factor("CN-CQ", new_year, zone=ZoneInfo("UTC"), known_at_ns=NOW_NS)

    np.testing.assert_array_equal(in_shanghai.kg_per_kwh, [0.5227, 0.5581])
    np.testing.assert_array_equal(in_utc.kg_per_kwh, [0.5227, 0.5227])


def test_an_old_known_time_gives_the_answer_of_that_day(library: FactorLibrary, zone: ZoneInfo) -> None:
    october_2026 = times("2026-10-01T00:00:00Z")

    def known_at(text: str) -> float:
        column = library.grid_factor("CN-CQ", october_2026, zone=zone, known_at_ns=parse_rfc3339(text))
        return float(column.kg_per_kwh[0])

    # The notice with the 2023 factors is dated 2025-12-31, the one before 2024-12-20.
    assert known_at("2025-12-31T00:00:00+08:00") == 0.5581
    assert known_at("2025-12-30T23:59:59+08:00") == 0.5227
    assert known_at("2024-12-19T00:00:00+08:00") == 0.4743


def test_a_publication_known_by_its_month_counts_from_the_months_end(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    sample = times("2013-01-01T00:00:00Z")

    def known_at(text: str) -> float:
        at_ns = parse_rfc3339(text)
        return float(library.grid_factor("CN-GRID-EAST", sample, zone=zone, known_at_ns=at_ns).kg_per_kwh[0])

    assert np.isnan(known_at("2014-09-30T23:59:59+08:00"))  # published 2014-09
    assert known_at("2014-10-01T00:00:00+08:00") == 0.7035


def test_an_unknown_publication_date_qualifies_and_marks_the_figure(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    column = library.grid_factor("CN-CQ", times("2019-06-01T00:00:00Z"), zone=zone, known_at_ns=0)

    np.testing.assert_array_equal(column.kg_per_kwh, [0.4410])
    assert column.unverified.all()


def test_before_the_first_data_year_there_is_no_factor(library: FactorLibrary, zone: ZoneInfo) -> None:
    column = library.grid_factor("CN", times("2020-12-01T00:00:00Z"), zone=zone, known_at_ns=NOW_NS)

    assert np.isnan(column.kg_per_kwh).all()
    assert column.row_ids == ()


def test_a_region_without_a_factor_never_borrows_its_neighbours(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    column = library.grid_factor("CN-XZ", times("2026-10-01T00:00:00Z"), zone=zone, known_at_ns=NOW_NS)

    assert np.isnan(column.kg_per_kwh).all()


@pytest.mark.parametrize(
    ("level", "expected"),
    [("provincial", 0.5581), ("regional", 0.2472), ("national", 0.5306), (None, 0.5581)],
)
def test_one_plant_has_three_levels_and_names_the_row_of_each(
    library: FactorLibrary, zone: ZoneInfo, level: str | None, expected: float
) -> None:
    column = library.grid_factor(
        "CN-CQ", times("2023-07-01T00:00:00Z"), zone=zone, known_at_ns=NOW_NS, level=level
    )

    np.testing.assert_array_equal(column.kg_per_kwh, [expected])
    assert library.row(column.row_ids[0]).value == expected


def test_world_factors_come_in_grams_and_leave_in_kilograms(library: FactorLibrary, zone: ZoneInfo) -> None:
    row = library.row("grid_world:ZAF:2023:average")

    column = library.grid_factor("ZAF", times("2024-01-01T00:00:00Z"), zone=zone, known_at_ns=NOW_NS)

    assert row.unit == "gCO2e/kWh"
    np.testing.assert_allclose(column.kg_per_kwh, [row.value / 1000])
    assert column.unverified.all()  # the package does not say when it was published


def test_an_hourly_series_holds_for_its_hours_only(library: FactorLibrary, zone: ZoneInfo) -> None:
    moments = times(
        "2021-12-31T23:59:59Z", "2022-01-01T00:00:00Z", "2022-01-01T01:59:59Z", "2023-02-01T00:00:00Z"
    )

    column = library.factor_column("hourly:US-MISO:direct", moments, zone=zone, known_at_ns=NOW_NS)

    np.testing.assert_allclose(column.kg_per_kwh, [np.nan, 0.4959, 0.4922, np.nan])
    assert library.row(column.row_ids[0]).quantity == "electricity"


def test_a_missing_hour_of_a_series_is_without_factor(library: FactorLibrary, zone: ZoneInfo) -> None:
    year = np.arange(
        parse_rfc3339("2022-01-01T00:00:00Z"), parse_rfc3339("2023-01-01T00:00:00Z"), 3600 * 10**9
    )

    column = library.factor_column("hourly:US-PJM:direct", year, zone=zone, known_at_ns=NOW_NS)

    assert np.isnan(column.kg_per_kwh).sum() == 16  # tables/README.md: PJM has 16 hours missing


def test_a_row_named_by_its_id_holds_at_every_time(library: FactorLibrary, zone: ZoneInfo) -> None:
    column = library.factor_column(
        "grid_cn:CN:2022:average",
        times("2010-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        zone=zone,
        known_at_ns=NOW_NS,
    )

    np.testing.assert_array_equal(column.kg_per_kwh, [0.5366, 0.5366])


@pytest.mark.parametrize("number", [0.45848, 0.0])
def test_a_plain_number_is_a_factor_and_names_itself(
    library: FactorLibrary, zone: ZoneInfo, number: float
) -> None:
    column = library.factor_column(number, times("2026-10-01T00:00:00Z"), zone=zone, known_at_ns=NOW_NS)

    np.testing.assert_array_equal(column.kg_per_kwh, [number])
    assert library.row(column.row_ids[0]).value == number


def test_heat_per_gigajoule_becomes_heat_per_kwh(library: FactorLibrary, zone: ZoneInfo) -> None:
    column = library.factor_column("heat_cn", times("2026-10-01T00:00:00Z"), zone=zone, known_at_ns=NOW_NS)

    np.testing.assert_allclose(column.kg_per_kwh, [110 * 0.0036])  # 0.11 t/GJ


def test_a_plant_is_told_what_is_wrong_with_a_factor(library: FactorLibrary) -> None:
    assert library.reason_against("grid", "electricity") is None
    assert library.reason_against("hourly:US-MISO:direct", "electricity") is None
    assert library.reason_against("grid", "steam") == "factor grid is for electricity, not for steam"
    assert "no emission per energy" in str(library.reason_against("process:CaCO3", "electricity"))
    assert "no factor 'gird'" in str(library.reason_against("gird", "electricity"))
    assert "negative" in str(library.reason_against(-0.1, "electricity"))
    assert "negative or no number" in str(library.reason_against(float("nan"), "electricity"))


# The plant's own factors

OWN = """id,value,unit,valid_from,valid_to,published,source,approved_by
green-contract,120,gCO2e/kWh,2025,,2025-06-01,contract 7,Li
green-contract,90,gCO2e/kWh,2026-07-01,2026-10-01,,contract 8,
steam-park,0.09,tCO2/GJ,2025-01-01,,2025-01-01,park statement,Li
"""


def test_own_factors_are_dated_converted_and_marked_until_approved(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    own = library.with_rows(read_own_factors(OWN.encode(), "factors.csv"))
    moments = times(
        "2024-12-31T15:59:59Z", "2026-06-30T15:59:59Z", "2026-06-30T16:00:00Z", "2026-09-30T16:00:00Z"
    )

    column = own.factor_column("green-contract", moments, zone=zone, known_at_ns=NOW_NS)

    np.testing.assert_allclose(column.kg_per_kwh, [np.nan, 0.12, 0.09, np.nan])
    np.testing.assert_array_equal(column.unverified, [False, False, True, False])
    assert column.row_ids == ("green-contract:2025@2025-06-01", "green-contract:2026-07-01")


def test_a_new_publication_stands_beside_the_old_one(library: FactorLibrary, zone: ZoneInfo) -> None:
    first = b"id,value,unit,valid_from,published,source\nsup,0.5,kgCO2/kWh,2025,2025-03-01,a\n"
    again = b"id,value,unit,valid_from,published,source\nsup,0.4,kgCO2/kWh,2025,2026-03-01,b\n"
    both = library.with_rows(read_own_factors(first, "a.csv")).with_rows(read_own_factors(again, "b.csv"))
    sample = times("2025-06-01T00:00:00Z")

    before = both.factor_column("sup", sample, zone=zone, known_at_ns=parse_rfc3339("2025-12-01T00:00:00Z"))
    now = both.factor_column("sup", sample, zone=zone, known_at_ns=NOW_NS)

    assert (before.kg_per_kwh[0], now.kg_per_kwh[0]) == (0.5, 0.4)


def test_every_fault_of_a_factor_file_is_named_with_line_and_column() -> None:
    bad = (
        "id,value,unit,valid_from,published,source\n"
        "a,-1,kgCO2/kWh,2025,,x\n"
        "b,nan,kgCO2/kWh,2025,,x\n"
        "c,1,kgCO2/t,2025,,x\n"
        "d,1,kgCO2/kWh,,,x\n"
        "e,1,kgCO2/kWh,2025,soon,\n"
        "f,1,kgCO2/kWh,2025,,x\n"
        "f,2,kgCO2/kWh,2025,,x\n"
    )

    with pytest.raises(FaultyInput) as caught:
        read_own_factors(bad.encode(), "factors.csv")

    at = [(fault.line, fault.column) for fault in caught.value.faults]
    assert at == [(2, 2), (3, 2), (4, 3), (5, 4), (6, 5), (6, 6), (8, 1)]


def test_overlapping_periods_of_a_factor_are_refused() -> None:
    overlapping = (
        "id,value,unit,valid_from,valid_to,source\n"
        "a,1,kgCO2/kWh,2025-01-01,2025-07-01,x\n"
        "a,2,kgCO2/kWh,2025-06-01,2025-12-01,x\n"
    )

    with pytest.raises(FaultyInput, match="a:2025-06-01 begins before a:2025-01-01 ends"):
        read_own_factors(overlapping.encode(), "factors.csv")


def test_a_factor_that_stands_in_the_library_is_not_replaced(library: FactorLibrary) -> None:
    own = library.with_rows(read_own_factors(OWN.encode(), "factors.csv"))

    with pytest.raises(FaultyInput, match="stands in the library already"):
        own.with_rows(read_own_factors(OWN.encode(), "factors.csv"))


# Fuels, gases, steam


def test_a_cubic_metre_of_gas_becomes_kwh_by_its_net_calorific_value(library: FactorLibrary) -> None:
    gas = library.fuel("natural_gas@ndrc_other_industry")

    assert gas.kwh_per("Nm3") == pytest.approx(38.931 / 3.6)
    assert gas.kwh_per("10^4 Nm3") == pytest.approx(389.31 / 0.0036)
    assert gas.kwh_per("m3@20C") / gas.kwh_per("Nm3") == pytest.approx(0.9318, abs=1e-4)


def test_a_fuel_refuses_a_unit_that_does_not_fit(library: FactorLibrary) -> None:
    gas = library.fuel("natural_gas@ndrc_other_industry")

    with pytest.raises(BadRequest, match="unit 'm3' does not fit"):
        gas.kwh_per("m3")


def test_an_unknown_fuel_names_the_sets_that_have_it(library: FactorLibrary) -> None:
    with pytest.raises(BadRequest, match="it stands in gbt_32151_2015"):
        library.fuel("other_coal_products@ndrc_other_industry")


@pytest.mark.parametrize(
    ("code", "published"),
    [
        ("raw_coal", 1.9003),
        ("coke", 2.8604),
        ("crude_oil", 3.0202),
        ("fuel_oil", 3.1705),
        ("gasoline", 2.9251),
        ("kerosene", 3.0179),
        ("diesel", 3.0959),
        ("lpg", 3.1013),
        ("refinery_gas", 3.0119),
        ("natural_gas", 2.1622),  # kg per m3
    ],
)
def test_published_totals_per_unit_of_fuel_come_out(
    library: FactorLibrary, code: str, published: float
) -> None:
    fuel = library.fuel(f"{code}@provincial_inventory_2011")

    unit = "Nm3" if code == "natural_gas" else "kg"
    kgco2 = fuel.kgco2_per_kwh(oxidised=True) * fuel.kwh_per(unit)

    assert kgco2 == pytest.approx(published, rel=2e-5)


def test_a_gas_is_found_by_code_and_by_formula(library: FactorLibrary) -> None:
    assert library.gwp("PFC-14", "AR5") == library.gwp("CF4", "AR5") == 6630
    assert library.gwp("CH4", "AR6") == 27.9
    with pytest.raises(BadRequest, match="no GWP of 'CF5' in AR5"):
        library.gwp("CF5", "AR5")


@pytest.mark.parametrize(
    ("pressure_mpa", "temperature_c", "expected"),
    [
        (1.0, None, 2777.1),  # a row of the table
        (1.0, 181.0, 2777.1),  # at the boiling point, give or take a reading's error
        (0.5, 200.0, 2855.9),  # a row of the superheated table
        (1.9, None, 2797.2),  # IAPWS-IF97: 2797.3
        (3.0, 325.0, 3056.0),  # IAPWS-IF97: 3056.0
    ],
)
def test_steam_is_interpolated_between_the_rows(
    library: FactorLibrary, pressure_mpa: float, temperature_c: float | None, expected: float
) -> None:
    assert library.steam.enthalpy_kj_per_kg(pressure_mpa, temperature_c) == pytest.approx(expected, rel=1e-3)


def test_steam_below_its_boiling_point_is_water(library: FactorLibrary) -> None:
    with pytest.raises(BadRequest, match="there is water"):
        library.steam.enthalpy_kj_per_kg(1.0, 120.0)
    with pytest.raises(BadRequest, match="outside the table"):
        library.steam.enthalpy_kj_per_kg(22.0)


# The tables themselves


def test_every_shipped_row_says_where_it_is_from(library: FactorLibrary) -> None:
    assert len(library.rows) > 1300
    assert all(row.source and row.unit and row.confidence for row in library.rows)
    assert len({row.id for row in library.rows}) == len(library.rows)


def test_regional_changes_agree_with_the_ministrys_own_statement(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    regions = ["NORTH", "NORTHEAST", "EAST", "CENTRAL", "NORTHWEST", "SOUTH", "SOUTHWEST"]

    change_percent = []
    for region in regions:
        before, after = library.grid_factor(
            f"CN-GRID-{region}",
            times("2022-07-01T00:00:00Z", "2023-07-01T00:00:00Z"),
            zone=zone,
            known_at_ns=NOW_NS,
        ).kg_per_kwh
        change_percent.append(100 * (after / before - 1))

    # As the ministry published them with the 2023 factors.
    np.testing.assert_allclose(change_percent, [-6.1, -8.0, -2.1, -2.3, -5.4, 4.5, 9.0], atol=0.1)


def test_coal_equivalents_agree_with_their_calorific_values(library: FactorLibrary) -> None:
    with (TABLES / "tce.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "energy"]

    off = [abs(float(row["ncv"]) / 29.3076 / float(row["value"]) - 1) for row in rows]

    assert len(off) == 40
    assert max(off) < 0.006


def test_a_table_with_a_wrong_row_is_refused_whole(tmp_path: Path) -> None:
    for table in TABLES.glob("*.csv"):
        (tmp_path / table.name).write_bytes(table.read_bytes())
    grid = tmp_path / "grid_cn.csv"
    lines = grid.read_text(encoding="utf-8").splitlines()
    lines += [lines[1], "CN-CQ,重庆,Chongqing,2024,average,,kgCO2/kWh,2026-12,a notice,verified,"]
    grid.write_text("\n".join(lines), encoding="utf-8")

    with pytest.raises(FaultyInput) as caught:
        read_tables(tmp_path)

    assert [(fault.line, fault.column, fault.reason) for fault in caught.value.faults] == [
        (len(lines) - 1, 1, "grid_cn:CN-GRID-CENTRAL:2011:average stands here twice"),
        (len(lines), 6, "value is empty"),
    ]


def test_a_half_hourly_series_of_the_grid_operator_is_brought_in_as_a_file(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    """A year by the half hour; each value keeps its row, a missing half hour is without factor."""
    start_ns, half_ns, count = parse_rfc3339("2025-01-01T00:00:00Z"), 1800 * 10**9, 17_520
    bounds = [rfc3339(start_ns + i * half_ns) for i in range(count + 1)]
    missing = 1000
    lines = [
        f"grid-30min,{300 + i % 48},gCO2/kWh,{bounds[i]},{bounds[i + 1]},operator"
        for i in range(count)
        if i != missing
    ]
    text = "id,value,unit,valid_from,valid_to,source\n" + "\n".join(lines) + "\n"

    own = library.with_rows(read_own_factors(text.encode(), "factors.csv"))
    quarters = start_ns + np.arange(2 * count) * (half_ns // 2)
    column = own.factor_column("grid-30min", quarters, zone=zone, known_at_ns=NOW_NS)

    wanted = np.repeat((300 + np.arange(count) % 48) / 1000, 2)
    wanted[2 * missing : 2 * missing + 2] = np.nan
    np.testing.assert_allclose(column.kg_per_kwh, wanted)
    assert len(column.row_ids) == count - 1
    (listed,) = own.gathered(reversed(column.row_ids))  # as a report names them
    halves = [own.gathered(column.row_ids[:9000]), own.gathered(column.row_ids[9000:])]
    assert own.gathered([id_ for half in halves for id_ in half]) == (listed,)
    row = own.row(listed)
    assert row.value == pytest.approx(np.nanmean(column.kg_per_kwh) * 1000)
    assert (row.valid_from, row.unverified, row.note) == (bounds[0], True, f"mean of {count - 1} values")


def test_a_value_by_the_hour_holds_for_its_hour_and_not_for_ever(
    library: FactorLibrary, zone: ZoneInfo
) -> None:
    text = (
        "id,value,unit,valid_from,source\n"
        "grid-hourly,0.5,kgCO2/kWh,2026-10-01T00:00:00Z,operator\n"
        "grid-hourly,0.6,kgCO2/kWh,2026-10-01T01:00:00Z,operator\n"
        "grid-hourly,0.7,kgCO2/kWh,2026-10-01T03:00:00Z,operator\n"
    )
    own = library.with_rows(read_own_factors(text.encode(), "factors.csv"))
    hours = times(*(f"2026-10-01T{hour:02}:30:00Z" for hour in range(6)))

    column = own.factor_column("grid-hourly", hours, zone=zone, known_at_ns=NOW_NS)

    np.testing.assert_array_equal(column.kg_per_kwh, [0.5, 0.6, np.nan, 0.7, np.nan, np.nan])
