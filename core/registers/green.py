"""Green electricity as people register it: trade, certificates, what a province publishes; and a period's ledger.

The metered kWh come from the network. What surprises: certificates and trade
only move the market-based figure where a residual factor (the grid without
traded power) exists and the regime lets them count. Taking them out and leaving
the rest at the average would count the same clean power twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from core.carbon.green_power import GreenPower
from core.registers.book import Entry
from core.registers.certificate import Claims


class GreenKind(StrEnum):
    GREEN_TRADE = "green-trade"
    NUCLEAR_TRADE = "nuclear-trade"
    MICRO_GRID = "micro-grid"
    ALLOCATED = "allocated-certificates"
    CAP = "certificate-cap"
    PROVINCE_SHARE = "province-share"

    @property
    def is_published(self) -> bool:
        """A figure a province publishes for a period, not an amount of energy that falls into it."""
        return self in (GreenKind.CAP, GreenKind.PROVINCE_SHARE)


@dataclass(frozen=True, slots=True)
class GreenEntry:
    """kWh settled in a period under a contract, or a published figure (kWh, or a share 0..1)."""

    kind: GreenKind
    value: float
    contract: str = ""
    document: str = ""
    note: str = ""

    @property
    def line(self) -> str:
        return f"{self.kind}" + (f" {self.contract}" if self.contract else "")

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> GreenEntry:
        return cls(**{**body, "kind": GreenKind(body["kind"])})


def green_power(entries: Iterable[Entry], claims: Claims, start_ns: int, end_ns: int) -> GreenPower | None:
    """The ledger's input without its metered kWh; None where nothing was registered.

    An entry longer than the period counts with its share of the time.
    """
    total = dict.fromkeys(GreenKind, 0.0)
    seen: set[GreenKind] = set()
    for entry in entries:
        made = GreenEntry.of(entry.body)
        seen.add(made.kind)
        if made.kind is GreenKind.PROVINCE_SHARE:
            covered = min(end_ns, entry.end_ns) - max(start_ns, entry.start_ns)
            total[made.kind] += made.value * covered / (end_ns - start_ns)
        else:
            total[made.kind] += made.value * entry.part_in(start_ns, end_ns)
    if not seen and claims == Claims(0.0, 0.0):
        return None
    return GreenPower(
        grid_offtake_kwh=0.0,
        micro_grid_kwh=total[GreenKind.MICRO_GRID],
        green_trade_kwh=total[GreenKind.GREEN_TRADE],
        nuclear_trade_kwh=total[GreenKind.NUCLEAR_TRADE],
        certificates_kwh=claims.cancelled_kwh,
        allocated_certificates_kwh=total[GreenKind.ALLOCATED],
        certificate_cap_kwh=total[GreenKind.CAP] if GreenKind.CAP in seen else None,
        own_certificates_sold_kwh=claims.own_sold_kwh,
        province_share=total[GreenKind.PROVINCE_SHARE],
    )
