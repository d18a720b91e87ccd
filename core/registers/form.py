"""Rows as people send them, JSON or CSV, checked into entries: every fault with its row and field.

A period is a year, month or day of the plant's zone (`2026-09`), or `start` and
`end` as RFC 3339 times. Rows are taken together or not at all.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo

import orjson
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from core.carbon.certificates import Event, State
from core.carbon.factors import FactorLibrary
from core.carbon.method import method_of
from core.clock import datetime_of, parse_rfc3339, time_ns_of
from core.energy.register import EventKind, MeterEvent
from core.errors import BadRequest
from core.plant.model import Plant
from core.registers.activity import Activity, ActivityKind, Spread, StockBalance, activity_carbon
from core.registers.book import FaultyRows, NewEntry, Register, RowFault
from core.registers.green import GreenEntry, GreenKind
from core.registers.meter_event import checked_event
from core.registers.own_factor import new_factor
from core.registers.production import Production

MOST_ROWS = 20_000

Amount = Annotated[FiniteFloat, Field(ge=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Percent = Annotated[FiniteFloat, Field(ge=0, le=1000)]
Word = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=2000)]


class Row(BaseModel):
    """One row; a key nobody knows is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PeriodRow(Row):
    period: str | None = None
    start: str | None = None
    end: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> PeriodRow:
        if (self.period is None) == (self.start is None) or (self.start is None) != (self.end is None):
            raise ValueError("period: wanted either period, or start and end")
        return self

    def span_ns(self, zone: ZoneInfo) -> tuple[int, int]:
        """[start_ns, end_ns)."""
        if self.period is not None:
            return period_ns(self.period, zone)
        start_ns, end_ns = parse_rfc3339(str(self.start)), parse_rfc3339(str(self.end))
        if end_ns <= start_ns:
            raise BadRequest(f"end {self.end} is not after start {self.start}")
        return start_ns, end_ns


class BalanceRow(Row):
    opening: Amount
    bought: Amount
    closing: Amount
    sold: Amount = 0.0
    nameplate_change: FiniteFloat = 0.0


class ActivityRow(PeriodRow):
    kind: ActivityKind
    subject: Word
    amount: Amount | None = None
    balance: BalanceRow | None = None
    unit: Annotated[str, Field(max_length=40)] = ""
    use: Text = ""
    scope: Annotated[int, Field(ge=1, le=3)] | None = None
    category: Annotated[int, Field(ge=1, le=6)] | None = None
    carrier: Literal["", "electricity", "heat", "steam", "cooling"] = ""
    details: dict[str, Any] = Field(default_factory=dict)
    spread: Spread = Spread.EVEN
    uncertainty_pct: Percent | None = None
    evidence_file: Text = ""
    evidence_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    note: Text = ""

    @model_validator(mode="after")
    def _counted_once(self) -> ActivityRow:
        if (self.amount is None) == (self.balance is None) and self.subject != "carbon-balance":
            raise ValueError("amount: wanted either an amount or a stock balance")
        if bool(self.evidence_file) != bool(self.evidence_sha256):
            raise ValueError(
                "evidence_sha256: a file of evidence comes with its SHA-256, and the other way round"
            )
        return self


class PrecursorRow(Row):
    cn_code: Word
    mass_t: Amount
    direct_t_per_t: Amount | None = None
    indirect_t_per_t: Amount | None = None
    default: str = ""

    @model_validator(mode="after")
    def _stated_or_default(self) -> PrecursorRow:
        if (self.direct_t_per_t is None) != bool(self.default):
            raise ValueError(
                "wanted either direct_t_per_t as the supplier states it, or the code of a default value"
            )
        return self


class ProductionRow(PeriodRow):
    product: Word
    amount: Amount
    unit: Word
    scrap: Amount = 0.0
    node: str = ""
    batch: str = ""
    driver: Amount = 0.0
    value_cny: Amount | None = None
    precursors: tuple[PrecursorRow, ...] = ()
    note: Text = ""


class GreenPowerRow(PeriodRow):
    kind: GreenKind
    value: Amount
    contract: Text = ""
    document: Text = ""
    note: Text = ""


class FactorRow(Row):
    series: Word
    value: Amount
    unit: Word
    source: Word
    valid_from: Word
    valid_to: str | None = None
    region: str = ""
    document: Text = ""
    uncertainty_pct: Percent | None = None
    note: Text = ""


class CertificateRow(Row):
    serial: Word
    state: State
    on: date
    generated: str = ""
    technology: str = ""
    province: str = ""
    claim: str | None = None

    def event(self) -> Event:
        return Event(**self.model_dump())


class MeterEventRow(Row):
    meter: Word
    time: str
    kind: EventKind
    final_reading: FiniteFloat | None = None
    first_reading: FiniteFloat | None = None
    ratio: FiniteFloat | None = None
    why: Text = ""


_R = TypeVar("_R", bound=Row)


@dataclass(frozen=True, slots=True)
class Context:
    """What rows are checked against."""

    plant: Plant
    library: FactorLibrary
    now_ns: int


def entries_of(register: Register, rows: Sequence[Mapping[str, Any]], context: Context) -> list[NewEntry]:
    """Entries for the book.

    Raises:
        FaultyRows: Every fault of every row: a field that is missing, unknown or no number; a unit that does
            not fit; no such fuel, gas, factor or node.
    """
    model, make = _FORMS[register]
    return _checked(rows, model, lambda row: make(row, context))


def certificate_events(rows: Sequence[Mapping[str, Any]]) -> list[Event]:
    """Certificate events in their order.

    Raises:
        FaultyRows: As `entries_of`.
    """
    return _checked(rows, CertificateRow, CertificateRow.event)


def meter_events(
    rows: Sequence[Mapping[str, Any]], plant: Plant, now_ns: int
) -> list[tuple[str, MeterEvent, str]]:
    """(meter, event, why) of each row.

    Raises:
        FaultyRows: As `entries_of`.
    """

    def made(row: MeterEventRow) -> tuple[str, MeterEvent, str]:
        try:
            time_ns = parse_rfc3339(row.time)
        except ValueError as why:
            raise BadRequest(f"time: {why}") from None
        event = MeterEvent(time_ns, row.kind, row.final_reading, row.first_reading, row.ratio, now_ns)
        checked_event(row.meter, event, plant, now_ns)
        return row.meter, event, row.why

    return _checked(rows, MeterEventRow, made)


_T = TypeVar("_T")


def _checked(rows: Sequence[Mapping[str, Any]], model: type[_R], make: Callable[[_R], _T]) -> list[_T]:
    if not 0 < len(rows) <= MOST_ROWS:
        raise BadRequest(f"{len(rows):,} rows, wanted 1 to {MOST_ROWS:,}")
    faults: list[RowFault] = []
    made: list[_T] = []
    for number, row in enumerate(rows, 1):
        try:
            made.append(make(model.model_validate(row)))
        except ValidationError as why:
            faults += [_row_fault(number, dict(fault)) for fault in why.errors()]
        except (BadRequest, ValueError) as why:
            field, _, reason = str(why).partition(": ")
            known = field in model.model_fields
            faults.append(
                RowFault(number, field if known else _blamed(str(why)), reason if known else str(why))
            )
    if faults:
        raise FaultyRows(faults)
    return made


def _row_fault(number: int, fault: dict[str, Any]) -> RowFault:
    reason = str(fault["msg"]).removeprefix("Value error, ")
    place = ".".join(str(part) for part in fault["loc"])
    if not place:  # a rule over the whole row names its field first
        place, _, reason = reason.partition(": ")
    return RowFault(number, place, reason)


def _blamed(reason: str) -> str:
    """The field a refusal is about, by the word it uses."""
    return next(
        (field for field in ("unit", "factor", "fuel", "gas", "period", "end") if field in reason), "row"
    )


def _activity(row: ActivityRow, context: Context) -> NewEntry:
    balance = None if row.balance is None else StockBalance(**row.balance.model_dump())
    activity = Activity(
        kind=row.kind,
        subject=row.subject,
        amount=balance.gone if balance is not None else row.amount or 0.0,
        unit=row.unit,
        use=row.use,
        scope=row.scope,
        category=row.category,
        carrier=row.carrier,
        details=row.details,
        spread=row.spread,
        uncertainty=None if row.uncertainty_pct is None else row.uncertainty_pct / 100,
        balance=balance,
        evidence_file=row.evidence_file,
        evidence_sha256=row.evidence_sha256,
        note=row.note,
    )
    start_ns, end_ns = row.span_ns(context.plant.zone)
    own = context.library.series.get(row.subject, ()) if row.kind is ActivityKind.FACTOR else ()
    if row.scope is None and any(factor.quantity == "own" for factor in own):
        raise BadRequest(
            f"scope: factor {row.subject} is the plant's own or a supplier's: say whether its emissions are scope 1, 2 or 3"
        )
    for name in context.plant.method_sets:  # what cannot be counted is refused now, not at the year's end
        activity_carbon(
            activity,
            start_ns,
            context.now_ns,
            method_of(context.plant, name),
            context.plant.zone,
            context.library,
        )
    return NewEntry(activity.line, start_ns, end_ns, activity.body())


def _production(row: ProductionRow, context: Context) -> NewEntry:
    if row.node and row.node not in context.plant.node_by_id:
        raise BadRequest(f"node: the plant has no node {row.node!r}")
    declared = {product.id: product for product in context.plant.products}
    if declared and row.product not in declared:
        raise BadRequest(f"product: plant.yaml declares no product {row.product!r}: {', '.join(declared)}")
    if declared and row.unit != declared[row.product].unit:
        raise BadRequest(f"unit: {row.unit!r}, product {row.product} counts in {declared[row.product].unit}")
    fields = row.model_dump(exclude={"period", "start", "end"})
    made, span = Production(**fields), row.span_ns(context.plant.zone)
    try:
        made.precursors_of(datetime_of(span[0]).astimezone(context.plant.zone).year, context.library)
    except BadRequest as why:
        raise BadRequest(f"precursors: {why}") from None
    return NewEntry(made.line, *span, fields)


def _green_power(row: GreenPowerRow, context: Context) -> NewEntry:
    if row.kind is GreenKind.PROVINCE_SHARE and row.value > 1:
        raise BadRequest(f"value: {row.value} is no share from 0 to 1")
    fields = row.model_dump(exclude={"period", "start", "end"}, mode="json")
    return NewEntry(GreenEntry.of(fields).line, *row.span_ns(context.plant.zone), fields)


def _factor(row: FactorRow, context: Context) -> NewEntry:
    body = row.model_dump(exclude={"uncertainty_pct"})
    body["uncertainty"] = None if row.uncertainty_pct is None else row.uncertainty_pct / 100
    return new_factor(body, context.plant.zone, context.library)


_FORMS: Mapping[Register, tuple[type[Any], Callable[[Any, Context], NewEntry]]] = {
    Register.ACTIVITY: (ActivityRow, _activity),
    Register.PRODUCTION: (ProductionRow, _production),
    Register.GREEN_POWER: (GreenPowerRow, _green_power),
    Register.FACTOR: (FactorRow, _factor),
}


def rows_of_csv(content: bytes) -> list[dict[str, Any]]:
    """Rows of a CSV with a header, UTF-8 or GB18030; an empty cell is a field not given.

    `details` and `balance` are JSON in their cell; `balance.opening` and the like may be columns of their own.

    Raises:
        FaultyRows: A row with more cells than columns, or JSON that is none.
        BadRequest: No header.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("gb18030", errors="replace")
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [cell.strip() for cell in next(reader, [])]
    if not any(header):
        raise BadRequest("the CSV is empty: wanted a header and rows")
    rows, faults = [], []
    lines = (cells for cells in reader if any(cell.strip() for cell in cells))
    for number, cells in enumerate(lines, 1):
        if len(cells) > len(header):
            faults.append(RowFault(number, "row", f"{len(cells)} cells, the header has {len(header)}"))
            continue
        row: dict[str, Any] = {}
        for column, cell in zip(header, cells, strict=False):
            if cell.strip():
                _put(row, column, cell.strip(), number, faults)
        rows.append(row)
    if faults:
        raise FaultyRows(faults)
    return rows


def _put(row: dict[str, Any], column: str, cell: str, number: int, faults: list[RowFault]) -> None:
    outer, dot, inner = column.partition(".")
    if dot:
        row.setdefault(outer, {})[inner] = cell
    elif column in ("details", "balance", "precursors"):
        try:
            row[column] = orjson.loads(cell)
        except orjson.JSONDecodeError as why:
            faults.append(RowFault(number, column, f"no JSON: {why}"))
    else:
        row[column] = cell


def period_ns(period: str, zone: ZoneInfo) -> tuple[int, int]:
    """[start, end) of the year, month or day `2026`, `2026-10`, `2026-10-05` in the zone.

    Raises:
        BadRequest: It is none of these.
    """
    match = re.fullmatch(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?", period)
    try:
        if match is None:
            raise ValueError
        year, month, day = (int(part) if part else None for part in match.groups())
        assert year is not None
        start = datetime(year, month or 1, day or 1, tzinfo=zone)
        if day is not None:
            end = start + timedelta(days=1)
        elif month is not None:
            end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=zone)
        else:
            end = datetime(year + 1, 1, 1, tzinfo=zone)
    except ValueError:
        raise BadRequest(f"period {period!r} is no year, month or day: 2026, 2026-10 or 2026-10-05") from None
    return time_ns_of(start), time_ns_of(end)
