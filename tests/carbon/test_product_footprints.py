"""Footprints of batches and embedded emissions of CBAM goods."""

from __future__ import annotations

import math

import pytest

from core.carbon.product import (
    Allocation,
    Batch,
    CbamSector,
    Precursor,
    default_with_markup,
    footprints,
    specific_embedded,
)
from core.errors import BadRequest


def test_shared_carbon_is_split_and_nothing_of_it_vanishes() -> None:
    batches = [Batch("a", 100, driver=3, good=10), Batch("b", 50, driver=1, good=5)]

    made = footprints(batches, 40, Allocation.MACHINE_HOURS)

    assert [footprint.total_kg for footprint in made] == [130, 60]
    assert sum(footprint.total_kg for footprint in made) == 100 + 50 + 40
    assert made[0].allocation is Allocation.MACHINE_HOURS


def test_scrap_is_carried_by_good_output() -> None:
    (clean,) = footprints([Batch("a", 100, 1, good=10)], 0, Allocation.MASS)
    (scrapped,) = footprints([Batch("a", 100, 1, good=8, scrap=2)], 0, Allocation.MASS)

    assert (clean.per_good_kg, scrapped.per_good_kg) == (10, 12.5)


def test_a_batch_without_good_output_has_no_footprint_per_piece() -> None:
    (footprint,) = footprints([Batch("a", 100, 1, good=0, scrap=4)], 0, Allocation.MASS)

    assert math.isnan(footprint.per_good_kg)
    assert footprint.total_kg == 100


def test_shared_carbon_without_a_driver_is_refused() -> None:
    with pytest.raises(BadRequest, match="no batch has any"):
        footprints([Batch("a", 100, driver=0, good=1)], 40, Allocation.VALUE)


def test_a_complex_good_carries_its_precursors() -> None:
    slab = Precursor("7207", mass_t=1050, direct_t_per_t=1.9, indirect_t_per_t=0.1)

    coil = specific_embedded("7208", CbamSector.IRON_AND_STEEL, 1000, 80_000, 50_000, [slab])

    assert coil.direct_t_per_t == pytest.approx((80 + 1995) / 1000)
    assert coil.indirect_t_per_t == pytest.approx((50 + 105) / 1000)
    assert coil.see_t_per_t == coil.direct_t_per_t  # indirect is reported, not declared, for steel


def test_cement_declares_its_indirect_emissions_too() -> None:
    cement = specific_embedded("2523", CbamSector.CEMENT, 1000, 700_000, 60_000)

    assert cement.see_t_per_t == pytest.approx(0.76)


def test_a_precursor_without_needed_indirect_emissions_is_refused() -> None:
    clinker = Precursor("2523 10", 900, 0.85)

    with pytest.raises(BadRequest, match="2523 10 lacks its indirect"):
        specific_embedded("2523 29", CbamSector.CEMENT, 1000, 10_000, 40_000, [clinker])


def test_a_default_value_takes_the_mark_up_of_its_year() -> None:
    markup = {2026: 0.10, 2027: 0.20, 2028: 0.30}

    assert default_with_markup(2.0, 2026, markup) == pytest.approx(2.2)
    assert default_with_markup(2.0, 2030, markup) == pytest.approx(2.6)
    with pytest.raises(BadRequest, match="known from 2026"):
        default_with_markup(2.0, 2025, markup)
