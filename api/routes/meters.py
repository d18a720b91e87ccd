"""Meters over time: what happened to them, and their registers day by day."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from api.answer import Json
from api.deps import InPlant, InServices, InWho
from api.routes.registers import (
    ROWS_BODY,
    Cursor,
    EntryPage,
    Limit,
    Who,
    WithdrawBody,
    Written,
    after,
    page,
    rows_of,
    table,
)
from api.table import InMedia
from api.window import InSpan, known, moment_ns
from core.answers.ledger import LedgerDay
from core.clock import rfc3339
from core.registers.form import meter_events
from core.registers.meter_event import MeterEntry, points_of

router = APIRouter(prefix="/v1", tags=["meters"])


class LedgerRow(BaseModel):
    start: str
    first_time: str | None
    first_reading: float | None
    last_time: str | None
    last_reading: float | None
    readings: int
    register_kwh: float | None
    energy_kwh: float | None
    estimated_kwh: float
    coverage: float
    gap_s: float
    marks: dict[str, int]
    events: list[dict[str, Any]]
    power_kwh: float | None
    difference_kwh: float | None
    difference_share: float | None


class LedgerAnswer(BaseModel):
    point: str
    device: str | None
    unit: str
    edges: list[str]
    days: list[LedgerRow]


@router.get("/meter-events", response_model=EntryPage)
async def events(
    services: InServices,
    plant: InPlant,
    media: InMedia,
    meter: Annotated[str | None, Query(description="Point or device id.")] = None,
    start: str | None = None,
    end: str | None = None,
    cursor: Cursor = None,
    limit: Limit = 1000,
) -> Response:
    """Replacements, resets and ratio changes, by number, withdrawn ones too."""
    names = None
    if meter is not None:
        points = points_of(meter, plant)
        names = list({meter, *points, *(plant.point_by_id[p].device or meter for p in points)})
    found = await services.registers().meter_events.page(
        names,
        None if start is None else moment_ns("start", start),
        None if end is None else moment_ns("end", end),
        after(cursor),
        None if media else limit + 1,
    )
    rows = [_row(entry) for entry in found]
    return table(media, "meter-events", rows) if media else page(rows, limit)


@router.post("/meter-events", response_model=Written, openapi_extra=ROWS_BODY)
async def write_events(
    request: Request, services: InServices, plant: InPlant, caller: InWho, who: Who = ""
) -> Response:
    """Write events down, JSON or CSV, all or none; figures they touch are re-stated."""
    rows = await rows_of(request)
    if not isinstance(rows, list):
        return rows
    now_ns = services.clock.now_ns()
    made = meter_events(rows, plant, now_ns)
    ids = await services.registers().meter_events.add(made, caller or who or "local", now_ns)
    for meter, event, _ in made:
        await services.event_changed(meter, event)
    return Json({"ids": ids})


@router.post("/meter-events/{number}/withdraw")
async def withdraw_event(
    services: InServices, caller: InWho, number: int, body: WithdrawBody, who: Who = ""
) -> Response:
    """Take an event back, with its reason; it stays readable."""
    entry = await services.registers().meter_events.withdraw(
        number, caller or who or "local", body.why, services.clock.now_ns()
    )
    await services.event_changed(entry.meter, entry.event)
    return Json(_row(entry))


@router.get("/ledger", response_model=LedgerAnswer)
async def ledger(
    services: InServices, plant: InPlant, span: InSpan, media: InMedia, point: Annotated[str, Query()]
) -> Response:
    """A register day by day: first and last reading, what was counted, and what the meter's power says of it."""
    known("point", [point], plant.point_by_id)
    days = [_day(day) for day in await services.counter_ledger(point, span.start_ns, span.end_ns)]
    if media:
        return table(media, f"ledger-{point}", days)
    edges = [edge.id for edge in plant.edges if getattr(edge.meter, "point", None) == point]
    found = plant.point_by_id[point]
    return Json({"point": point, "device": found.device, "unit": found.unit, "edges": edges, "days": days})


def _row(entry: MeterEntry) -> dict[str, Any]:
    event = entry.event
    return {
        "id": entry.id,
        "meter": entry.meter,
        "time": rfc3339(event.time_ns),
        "kind": event.kind.value,
        "final_reading": event.final_reading,
        "first_reading": event.first_reading,
        "ratio": event.ratio,
        "who": entry.who,
        "why": entry.why,
        "at": rfc3339(entry.at_ns),
        "withdrawn_by": entry.withdrawn_by,
        "withdrawn_at": None if entry.withdrawn_at_ns is None else rfc3339(entry.withdrawn_at_ns),
        "withdrawn_why": entry.withdrawn_why,
    }


def _day(day: LedgerDay) -> dict[str, Any]:
    return {
        "start": rfc3339(day.start_ns),
        "first_time": None if day.first_ns is None else rfc3339(day.first_ns),
        "first_reading": day.first,
        "last_time": None if day.last_ns is None else rfc3339(day.last_ns),
        "last_reading": day.last,
        "readings": day.readings,
        "register_kwh": day.register_kwh,
        "energy_kwh": day.energy_kwh,
        "estimated_kwh": day.estimated_kwh,
        "coverage": day.coverage,
        "gap_s": day.gap_s,
        "marks": day.marks,
        "events": [
            {
                "time": rfc3339(event.time_ns),
                "kind": event.kind.value,
                "final_reading": event.final_reading,
                "first_reading": event.first_reading,
                "ratio": event.ratio,
            }
            for event in day.events
        ],
        "power_kwh": day.power_kwh,
        "difference_kwh": day.difference_kwh,
        "difference_share": day.difference_share,
    }
