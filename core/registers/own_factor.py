"""The plant's own and its suppliers' factors, entered with unit check and approved by a second person.

An approved entry becomes one more row of its series, known since its approval;
the rows before it stand. So a report of an older known time keeps its figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from zoneinfo import ZoneInfo

from core.carbon.factor_row import FactorRow, valid_ns
from core.carbon.factors import FactorLibrary
from core.clock import rfc3339
from core.errors import BadRequest
from core.registers.book import Entry, NewEntry, State

FOREVER_NS = 7_258_118_400_000_000_000  # 2200-01-01: the end of an entry that states none
UNIT = re.compile(r"(t|kg|g)CO2e?/(kWh|MWh|GJ|MJ|t|kg|m3|Nm3)")


def new_factor(body: dict[str, object], zone: ZoneInfo, library: FactorLibrary) -> NewEntry:
    """An entry for the book out of the fields people give; `series` and `unit` are checked against the library.

    Raises:
        BadRequest: A table's series, a unit that is no emission per amount, or another unit than the series has.
    """
    series, unit = str(body["series"]), str(body["unit"])
    if series == "grid" or ":" in series or "@" in series:
        raise BadRequest(f"series {series!r} is taken or holds ':' or '@', which ids of tables use")
    if UNIT.fullmatch(unit) is None:
        raise BadRequest(f"unit {unit!r} is no emission per amount, wanted one like kgCO2e/kWh or tCO2/t")
    standing = library.series.get(series, ())
    if standing and standing[0].unit.partition("/")[2] != unit.partition("/")[2]:
        raise BadRequest(f"unit {unit!r} does not fit, series {series} is in {standing[0].unit}")
    start_ns = valid_ns(str(body["valid_from"]), zone)
    end_ns = valid_ns(str(body["valid_to"]), zone) if body.get("valid_to") else FOREVER_NS
    if end_ns <= start_ns:
        raise BadRequest(f"valid_to {body['valid_to']} is not after valid_from {body['valid_from']}")
    return NewEntry(series, start_ns, end_ns, body)


def factor_rows(entries: Iterable[Entry]) -> tuple[FactorRow, ...]:
    """The library's rows of approved entries."""
    return tuple(_row(entry) for entry in entries if entry.state is State.COUNTED)


def _row(entry: Entry) -> FactorRow:
    body = entry.body
    assert entry.approved_at_ns is not None
    return FactorRow(
        id=f"{entry.subject}:{body['valid_from']}@entry-{entry.id}",
        series=entry.subject,
        quantity="supplied energy" if body["unit"].endswith(("Wh", "J")) else "own",
        value=body["value"],
        unit=body["unit"],
        source=body["source"],
        confidence="approved",
        region=body.get("region") or "",
        level="own",
        gas=body["unit"].partition("/")[0].lstrip("tkg"),
        valid_from=body["valid_from"],
        valid_to=body.get("valid_to"),
        published=rfc3339(entry.approved_at_ns),
        document=body.get("document") or "",
        uncertainty=body.get("uncertainty"),
        note=f"entered by {entry.who}, approved by {entry.approved_by}",
    )
