"""The ledger of non-fossil electricity of one user, and what it does to market-based emissions.

What surprises: a certificate never makes the rest of the grid cleaner. The kWh
it covers are taken out of the purchase, and the remainder gets the factor of
the grid *without* traded non-fossil power; subtracting certificates and then
using the average factor counts the same clean power twice.

Source: 非化石能源电力消费核算指南（试行）, 发改能源〔2026〕622号; GHG Protocol Scope 2 Guidance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.errors import BadRequest
from core.samples import Floats


@dataclass(frozen=True, slots=True)
class GreenPower:
    """What one user drew, made, traded and cancelled in a period (the guide's cycle is the year), in kWh.

    Attributes:
        grid_offtake_kwh: Drawn from the public grid, what charges a storage included.
        own_use_kwh: Own non-fossil generation used on site; what was exported is not in it.
        other_own_kwh: Own or direct-line power that carries carbon: used here, and nobody's non-fossil power.
        direct_line_kwh: Non-fossil power by direct line, used here.
        micro_grid_kwh: Non-fossil power of the own micro-grid or park, used here.
        green_trade_kwh: Green-power trade settled; nuclear_trade_kwh: nuclear market trade.
        certificates_kwh: Cancelled certificates by the time of their *generation*.
        allocated_certificates_kwh: Certificates allocated to the user.
        certificate_cap_kwh: The province's published cap on certificates; None: none published.
        own_certificates_sold_kwh: Certificates of the own generation used here that were sold; those of what was
            exported are not in it.
        province_share: The province's published non-fossil coefficient k, 0..1.
    """

    grid_offtake_kwh: float
    own_use_kwh: float = 0.0
    other_own_kwh: float = 0.0
    direct_line_kwh: float = 0.0
    micro_grid_kwh: float = 0.0
    green_trade_kwh: float = 0.0
    nuclear_trade_kwh: float = 0.0
    certificates_kwh: float = 0.0
    allocated_certificates_kwh: float = 0.0
    certificate_cap_kwh: float | None = None
    own_certificates_sold_kwh: float = 0.0
    province_share: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise BadRequest(f"{name} is {value}, wanted a number, 0 or more")
        if self.province_share > 1:
            raise BadRequest(f"province_share is {self.province_share}, wanted a share from 0 to 1")


@dataclass(frozen=True, slots=True)
class NonFossil:
    """The ledger's answer, kWh.

    Attributes:
        physical_kwh: Own use, direct line and micro-grid; certificates and trade are never in it.
        traded_kwh, certificate_kwh: What counts, together at most the off-take.
        uncounted_kwh: Trade and certificates above the off-take or the province's cap.
        share_kwh: The province's share of what is left of the off-take.
        claim_lost_kwh: Physical kWh whose certificates were sold. The guide does not say whether they stay
            physical; here they do, and the market-based figure gives them up.
        use_kwh: All electricity used.
        unclaimed_kwh: Off-take that no trade or certificate covers.
    """

    physical_kwh: float
    traded_kwh: float
    certificate_kwh: float
    uncounted_kwh: float
    share_kwh: float
    claim_lost_kwh: float
    use_kwh: float
    unclaimed_kwh: float

    @property
    def non_fossil_kwh(self) -> float:
        return self.physical_kwh + self.traded_kwh + self.certificate_kwh + self.share_kwh

    @property
    def non_fossil_share(self) -> float:
        """Share of all use, 0..1; NaN without use."""
        return self.non_fossil_kwh / self.use_kwh if self.use_kwh > 0 else math.nan

    @property
    def physical_share(self) -> float:
        """Physically attributed share of all use, 0..1; NaN without use."""
        return self.physical_kwh / self.use_kwh if self.use_kwh > 0 else math.nan


def non_fossil(power: GreenPower) -> NonFossil:
    """A user's non-fossil electricity.

    Raises:
        BadRequest: More certificates of own use were sold than was used.

    Source: 发改能源〔2026〕622号; physical + traded + certificate + (off-take - traded - certificate) x k.
    """
    if power.own_certificates_sold_kwh > power.own_use_kwh:
        raise BadRequest(
            f"certificates of {power.own_certificates_sold_kwh} kWh own use sold, only {power.own_use_kwh} used"
        )
    physical = power.own_use_kwh + power.direct_line_kwh + power.micro_grid_kwh
    wanted_trade = power.green_trade_kwh + power.nuclear_trade_kwh
    traded = min(wanted_trade, power.grid_offtake_kwh)
    cancelled = power.certificates_kwh
    if power.certificate_cap_kwh is not None:
        cancelled = min(cancelled, power.certificate_cap_kwh)
    certificate = min(cancelled + power.allocated_certificates_kwh, power.grid_offtake_kwh - traded)
    unclaimed = power.grid_offtake_kwh - traded - certificate
    return NonFossil(
        physical_kwh=physical,
        traded_kwh=traded,
        certificate_kwh=certificate,
        uncounted_kwh=wanted_trade
        - traded
        + power.certificates_kwh
        + power.allocated_certificates_kwh
        - certificate,
        share_kwh=unclaimed * power.province_share,
        claim_lost_kwh=power.own_certificates_sold_kwh,
        use_kwh=power.grid_offtake_kwh + physical + power.other_own_kwh,
        unclaimed_kwh=unclaimed,
    )


def location_based_kg(power: GreenPower, average_kg_per_kwh: float) -> float:
    """All off-take at the grid's average; trade and certificates change nothing here.

    Source: GHG Protocol Scope 2 Guidance 2015, location-based method.
    """
    return power.grid_offtake_kwh * average_kg_per_kwh


def market_based_kg(ledger: NonFossil, residual_kg_per_kwh: float) -> float:
    """What no contract or certificate covers, and own use whose certificates were sold, at the residual factor.

    Args:
        residual_kg_per_kwh: The grid without traded non-fossil power (excluding_traded_renewables).

    Source: GHG Protocol Scope 2 Guidance 2015, chapter 7, market-based method.
    """
    return (ledger.unclaimed_kwh + ledger.claim_lost_kwh) * residual_kg_per_kwh


def fossil_remainder_kg(ledger: NonFossil, fossil_kg_per_kwh: float) -> float:
    """Experimental, in no official method: what is not non-fossil, at the factor of fossil generation."""
    return (ledger.use_kwh - ledger.non_fossil_kwh) * fossil_kg_per_kwh


def period_match(load_kwh: Floats, clean_kwh: Floats) -> float:
    """Share of the load that clean power covers in total over the period, 0..1; intervals unknown are left out."""
    known = np.isfinite(load_kwh) & np.isfinite(clean_kwh)
    load = float(load_kwh[known].sum())
    return min(load, float(clean_kwh[known].sum())) / load if load > 0 else math.nan


def hourly_match(load_kwh: Floats, clean_kwh: Floats, grid_clean_share: Floats | None = None) -> float:
    """Share of the load that clean power covers hour by hour, 0..1; a surplus helps no other hour.

    Args:
        load_kwh: Shape (n,), NaN where unknown; such hours are left out.
        clean_kwh: Shape (n,), own, direct and contracted clean power of the same hours.
        grid_clean_share: Shape (n,), clean share of the grid for what is not matched; None: nothing.

    Source: hourly (24/7) matching as proposed for the Scope 2 revision; sum(min(load, clean)) / sum(load).
    """
    known = np.isfinite(load_kwh) & np.isfinite(clean_kwh)
    matched = np.minimum(load_kwh, clean_kwh)
    if grid_clean_share is not None:
        known &= np.isfinite(grid_clean_share)
        matched = matched + (load_kwh - matched) * grid_clean_share
    load = float(load_kwh[known].sum())
    return float(matched[known].sum()) / load if load > 0 else math.nan
