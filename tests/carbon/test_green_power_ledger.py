"""The 622 ledger, the market-based figure that follows from it, and hourly matching."""

from __future__ import annotations

import numpy as np
import pytest

from core.carbon.factors import FactorLibrary
from core.carbon.green_power import (
    GreenPower,
    fossil_remainder_kg,
    hourly_match,
    location_based_kg,
    market_based_kg,
    non_fossil,
    period_match,
)
from core.errors import BadRequest

GWH = 1e6
T4 = GreenPower(
    grid_offtake_kwh=8.8 * GWH,
    own_use_kwh=1.2 * GWH,
    green_trade_kwh=2.0 * GWH,
    certificates_kwh=1.5 * GWH,
    province_share=0.30,
)


def test_t4_the_ledger_of_a_user(library: FactorLibrary) -> None:
    ledger = non_fossil(T4)

    assert ledger.share_kwh == pytest.approx(1.59 * GWH)
    assert ledger.non_fossil_kwh == pytest.approx(6.29 * GWH)
    assert ledger.non_fossil_share == pytest.approx(0.629)
    assert ledger.physical_share == pytest.approx(0.12)


def test_t4_certificates_never_meet_the_average_factor(library: FactorLibrary) -> None:
    ledger = non_fossil(T4)
    average, residual, fossil = (
        library.row(f"grid_cn:CN:2023:{kind}").value
        for kind in ("average", "excluding_traded_renewables", "fossil")
    )

    market_t = market_based_kg(ledger, residual) / 1000

    assert location_based_kg(T4, average) / 1000 == pytest.approx(4669.28)
    assert market_t == pytest.approx(3230.88)
    assert fossil_remainder_kg(ledger, fossil) / 1000 == pytest.approx(3069.28, abs=0.005)
    # The trap: covered kWh subtracted and the average used for the rest.
    assert (8.8 - 3.5) * GWH * average / 1000 == pytest.approx(2812.18)
    assert market_t / 2812.18 == pytest.approx(1.149, abs=1e-3)


def test_trade_and_certificates_count_up_to_the_offtake() -> None:
    ledger = non_fossil(
        GreenPower(
            grid_offtake_kwh=100,
            green_trade_kwh=80,
            nuclear_trade_kwh=10,
            certificates_kwh=30,
            province_share=0.5,
        )
    )

    assert (ledger.traded_kwh, ledger.certificate_kwh, ledger.share_kwh) == (90, 10, 0)
    assert ledger.uncounted_kwh == 20
    assert ledger.non_fossil_share == 1


def test_the_provinces_cap_limits_certificates() -> None:
    ledger = non_fossil(GreenPower(grid_offtake_kwh=100, certificates_kwh=30, certificate_cap_kwh=20))

    assert (ledger.certificate_kwh, ledger.uncounted_kwh, ledger.unclaimed_kwh) == (20, 10, 80)


def test_trade_and_certificates_are_never_physical() -> None:
    ledger = non_fossil(GreenPower(grid_offtake_kwh=100, green_trade_kwh=60, certificates_kwh=40))

    assert ledger.non_fossil_share == 1
    assert ledger.physical_share == 0


def test_own_generation_whose_certificates_were_sold_loses_its_claim() -> None:
    ledger = non_fossil(GreenPower(grid_offtake_kwh=100, own_use_kwh=50, own_certificates_sold_kwh=30))

    assert market_based_kg(ledger, 0.6) == pytest.approx(0.6 * (100 + 30))
    assert ledger.physical_kwh == 50


def test_more_sold_certificates_than_own_use_are_refused() -> None:
    with pytest.raises(BadRequest, match="sold, only 5"):
        non_fossil(GreenPower(grid_offtake_kwh=100, own_use_kwh=5, own_certificates_sold_kwh=6))


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_a_ledger_entry_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(BadRequest, match="green_trade_kwh is"):
        GreenPower(grid_offtake_kwh=100, green_trade_kwh=wrong)


def test_t8_a_surplus_at_noon_does_not_light_the_night() -> None:
    load_kwh = np.array([10.0, 10.0, 10.0, 10.0])
    clean_kwh = np.array([0.0, 25.0, 15.0, 0.0])

    assert period_match(load_kwh, clean_kwh) == 1.0
    assert hourly_match(load_kwh, clean_kwh) == 0.5


def test_the_grids_own_clean_share_adds_to_what_is_not_matched() -> None:
    share = hourly_match(np.array([10.0, 10.0]), np.array([4.0, 20.0]), np.array([0.5, 0.5]))

    assert share == pytest.approx((4 + 3 + 10) / 20)


def test_an_unknown_hour_is_left_out_of_the_match() -> None:
    assert hourly_match(np.array([10.0, np.nan, 10.0]), np.array([10.0, 10.0, 0.0])) == 0.5
