"""What runs between the parts: samples by `feed`, and news: what was committed, what is live, which alarms moved."""

from __future__ import annotations

from dataclasses import dataclass

from core.bus.local import LocalBus, Subscription, Topic
from core.samples import SampleBatch

__all__ = [
    "ALERTS",
    "COMMITTED",
    "LIVE",
    "AlertNews",
    "LiveNode",
    "LiveUpdate",
    "LocalBus",
    "Subscription",
    "Topic",
]


@dataclass(frozen=True, slots=True)
class LiveNode:
    """Power through a node now and its carbon rate: an estimate from the newest readings and intensities."""

    node: str
    power_kw: float | None
    emissions_kgco2e_per_h: float | None
    intensity_kgco2e_per_kwh: float | None


@dataclass(frozen=True, slots=True)
class LiveUpdate:
    time_ns: int
    nodes: tuple[LiveNode, ...]
    edges_kw: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class AlertNews:
    """An alarm moved; `alert` is the body `/v1/alerts` would answer."""

    alert: dict[str, object]


COMMITTED: Topic[SampleBatch] = Topic("committed")  # samples now in the database
LIVE: Topic[LiveUpdate] = Topic("live")
ALERTS: Topic[AlertNews] = Topic("alerts")
