"""`inventory` in plant.yaml: what people declare beside what is metered.

Base year, what is left out and why, and how far a factor may be off that does
not say so itself. Source: ISO 14064-1:2018, 5.2 to 6.4 and 8.
"""

from __future__ import annotations

from collections.abc import Collection

from core.plant.document import Entry, did_you_mean
from core.plant.model import Exclusion, Label, Statement


def read_statement(entry: Entry, sources: Collection[str]) -> Statement:
    """Args:
    sources: What an uncertainty may be stated for: nodes, factor and fuel ids, `grid`.
    """
    stated = Statement(
        base_year=entry.integer("base_year", None, least=1990, most=2200),
        base_year_kgco2e=entry.number("base_year_kgco2e", None, least=0),
        recalculation_threshold=entry.number("recalculation_threshold_pct", 5.0, above=0, most=100) / 100,
        exclusions=tuple(_exclusion(one) for one in entry.children("exclusions", "exclusion")),
        uncertainty=_uncertainty(entry, sources),
    )
    if stated.base_year_kgco2e is not None and stated.base_year is None:
        entry.fault("base_year_kgco2e", "base_year_kgco2e without its base_year")
    entry.finish()
    return stated


def _exclusion(one: Entry) -> Exclusion:
    what, reason = one.label("what"), one.label("reason")
    for key, label in (("what", what), ("reason", reason)):
        if label is None:
            one.fault(key, f"{key} is missing: an exclusion names what is left out and why")
    scope = one.integer("scope", 3, least=1, most=3)
    one.finish()
    return Exclusion(what or Label("", ""), scope, reason or Label("", ""))


def _uncertainty(entry: Entry, sources: Collection[str]) -> dict[str, float]:
    stated = entry.child("uncertainty_pct")
    if stated is None:
        return {}
    shares: dict[str, float] = {}
    for key in stated.data:
        name = str(key)
        if name not in sources:
            hint = did_you_mean(name, sources)
            stated.fault(name, f"{name!r} is no source node, factor, fuel or grid{hint}")
        shares[name] = stated.number(name, 0.0, least=0, most=1000) / 100
    stated.finish()
    return shares
