"""Points and their samples: what is known, what was last read, what somebody sends."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from api.answer import CorrectionRow, Json, LatestRow, PointRow, SamplePage, WriteAnswer, qualities, times
from api.deps import InPlant, InServices, InWho
from api.errors import problem
from api.window import InSpan, known, span_of
from core.bus import COMMITTED
from core.clock import parse_rfc3339, rfc3339
from core.errors import BadRequest
from core.metrics import count_written
from core.plant.model import Plant
from core.quality import BAD, STATUS_OF_QUALITY, Quality
from core.registers.withdrawal import withdraw
from core.samples import AHEAD_NS, PointTable, SampleBatch, sample_batch
from core.store.seam import Conflict, Correction, WriteReport

router = APIRouter(prefix="/v1", tags=["samples"])

LONGEST_POST_ROWS: Final = 100_000
LONGEST_POST_BYTES: Final = 32 * 1024 * 1024


class Withdrawal(BaseModel):
    """Samples to take back: of these points over [start, end)."""

    point: list[str] = Field(min_length=1)
    start: str
    end: str
    why: str = Field(min_length=1)


class Withdrawn(BaseModel):
    withdrawn: int


@router.get("/points", response_model=list[PointRow])
async def points(plant: InPlant) -> Json:
    """Every measuring point of the plant."""
    return Json(
        [
            {"point": p.id, "device": p.device, "quantity": p.quantity, "unit": p.unit, "name": p.name}
            for p in plant.points
        ]
    )


@router.get("/latest", response_model=list[LatestRow])
async def latest(
    services: InServices,
    plant: InPlant,
    point: Annotated[list[str], Query(description="Point id; all points where none is given.")] = [],  # noqa: B006
) -> Json:
    """The newest sample of each point that has one."""
    newest = await services.store.latest(known("point", point, plant.point_by_id))
    rows = zip(
        newest.points,
        times(newest.time_ns),
        newest.value.tolist(),
        qualities(newest.status.tolist()),
        strict=True,
    )
    return Json(
        [
            {
                "point": name,
                "time": time,
                "value": value,
                "unit": plant.point_by_id[name].unit,
                "quality": quality,
                "status": status,
            }
            for name, time, value, (quality, status) in rows
        ]
    )


@router.get("/samples", response_model=SamplePage)
async def samples(
    services: InServices,
    plant: InPlant,
    span: InSpan,
    point: Annotated[str, Query(description="Point id.")],
    cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Json:
    """One point's samples of a range, oldest first, page by page."""
    known("point", [point], plant.point_by_id)
    after_ns = _after_ns(cursor)
    page = await services.store.samples(point, span.start_ns, span.end_ns, limit + 1, after_ns)
    more = len(page) > limit
    page = page.take(np.arange(min(len(page), limit)))
    rows = zip(times(page.time_ns), page.value.tolist(), qualities(page.status.tolist()), strict=True)
    return Json(
        {
            "items": [
                {"point": point, "time": time, "value": value, "quality": quality, "status": status}
                for time, value, (quality, status) in rows
            ],
            "next": str(page.time_ns[-1]) if more else None,
        }
    )


@router.post(
    "/samples",
    response_model=WriteAnswer,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "array",
                        "maxItems": LONGEST_POST_ROWS,
                        "items": {
                            "type": "object",
                            "required": ["point", "time", "value"],
                            "properties": {
                                "point": {"type": "string"},
                                "time": {"type": "string", "format": "date-time"},
                                "value": {"type": ["number", "null"]},
                                "quality": {"type": "string", "enum": [q.value for q in Quality]},
                            },
                        },
                    }
                }
            },
        }
    },
)
async def write_samples(
    request: Request,
    services: InServices,
    plant: InPlant,
    caller: InWho,
    correct: Annotated[
        bool, Query(description="Differing values replace the stored ones, on record.")
    ] = False,
    who: Annotated[str, Query(description="Who corrects; the key's name where keys are asked for.")] = "",
    why: Annotated[str, Query(description="Why it is corrected.")] = "",
) -> Any:
    """Write samples of any age in any order; answers after the commit, so what is counted is there."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return problem(415, "samples come as application/json")
    body = await _body(request)
    if isinstance(body, str):
        return problem(413, body)
    batch, rejected = _batch(plant, body, services.clock.now_ns() + AHEAD_NS)
    correction = Correction(caller or who or "local", why, services.clock.now_ns()) if correct else None
    report = await services.store.write(batch, correction) if len(batch) else WriteReport()
    count_written(report)
    if report.accepted or report.corrected:
        services.bus.publish(COMMITTED, _without(batch, report.conflicts))
    return Json(
        {
            "accepted": report.accepted,
            "repeated": report.repeated,
            "corrected": report.corrected,
            "conflicts": [
                {"point": c.point, "time": rfc3339(c.time_ns), "stored": c.stored, "offered": c.offered}
                for c in report.conflicts
            ],
            "conflict_count": report.conflict_count,
            "rejected": rejected,
        }
    )


@router.post("/samples/withdraw", response_model=Withdrawn)
async def withdraw_samples(
    services: InServices,
    plant: InPlant,
    caller: InWho,
    body: Withdrawal,
    who: Annotated[str, Query(description="Who withdraws; the key's name where keys are asked for.")] = "",
) -> Json:
    """Take samples back: their values leave every figure and stay on record (`/v1/corrections`) with who and why."""
    points = known("point", body.point, plant.point_by_id)
    span = span_of(body.start, body.end)
    correction = Correction(caller or who or "local", body.why, services.clock.now_ns())
    count = 0
    for point in points:
        async for gone in withdraw(services.store, point, span.start_ns, span.end_ns, correction):
            services.bus.publish(COMMITTED, gone)
            count += len(gone)
    return Json({"withdrawn": count})


@router.get("/corrections", response_model=list[CorrectionRow])
async def corrections(
    services: InServices,
    plant: InPlant,
    span: InSpan,
    point: Annotated[list[str], Query(description="Point id; all points where none is given.")] = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Json:
    """Values of a range that were corrected or withdrawn, the newest act first; `new` is null where withdrawn."""
    points = known("point", point, plant.point_by_id)
    found = await services.store.corrections(points, span.start_ns, span.end_ns, limit)
    return Json(
        [
            {
                "point": c.point,
                "time": rfc3339(c.time_ns),
                "old": c.old,
                "new": c.new,
                "who": c.who,
                "why": c.why,
                "at": rfc3339(c.at_ns),
            }
            for c in found
        ]
    )


async def _body(request: Request) -> list[object] | str:
    """The list that was sent, or why it is too much."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > LONGEST_POST_BYTES:
            return f"at most {LONGEST_POST_BYTES:,} bytes in one request"
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as why:
        raise BadRequest(f"the body is no JSON: {why}") from None
    if not isinstance(body, list):
        raise BadRequest("the body is a list of samples")
    if len(body) > LONGEST_POST_ROWS:
        return f"at most {LONGEST_POST_ROWS:,} samples in one request, got {len(body):,}"
    return body


def _batch(plant: Plant, body: list[object], latest_ns: int) -> tuple[SampleBatch, list[dict[str, object]]]:
    """The samples that can be meant, and of the others why not."""
    table = plant.point_table
    rows: list[tuple[int, int, float, int]] = []
    rejected: list[dict[str, object]] = []
    for index, row in enumerate(body):
        try:
            rows.append(_sample(table, row, latest_ns))
        except ValueError as why:
            rejected.append({"index": index, "reason": str(why)})
    point, time_ns, value, status = zip(*rows, strict=True) if rows else ((), (), (), ())
    return sample_batch(table, point, time_ns, value, np.array(status, dtype=np.int16)), rejected


def _sample(table: PointTable, row: object, latest_ns: int) -> tuple[int, int, float, int]:
    """Point index, time, value and status of one sample; ValueError with the reason otherwise."""
    if not isinstance(row, dict):
        raise ValueError("a sample is an object with point, time and value")
    point, time, value, quality = (row.get(key) for key in ("point", "time", "value", "quality"))
    if not isinstance(point, str) or point not in table.index:
        raise ValueError(f"the plant has no point {point!r}")
    if not isinstance(time, str):
        raise ValueError(f"time: wanted RFC 3339 text, got {time!r}")
    time_ns = parse_rfc3339(time)
    if time_ns < 0:
        raise ValueError(f"time {time} lies before 1970")
    if time_ns > latest_ns:
        raise ValueError(f"time {time} lies ahead; it is {rfc3339(latest_ns - AHEAD_NS)} here")
    if "value" not in row or isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError(f"value: wanted a number or null, got {value!r}")
    try:
        status = STATUS_OF_QUALITY[Quality(quality)] if quality is not None else None
    except ValueError:
        raise ValueError(f"quality: wanted good, uncertain or bad, got {quality!r}") from None
    if value is None:
        if quality not in (None, Quality.BAD):
            raise ValueError(f"a value that is null is bad, not {quality}")
        return table.index[point], time_ns, math.nan, BAD
    return table.index[point], time_ns, float(value), status or 0


def _without(batch: SampleBatch, conflicts: tuple[Conflict, ...]) -> SampleBatch:
    """The batch less what was refused, so that no listener takes it for stored."""
    if not conflicts:
        return batch
    refused = {(c.point, c.time_ns, c.offered) for c in conflicts}
    rows = zip(batch.names(), batch.time_ns.tolist(), batch.value.tolist(), strict=True)
    return batch.take(np.array([row not in refused for row in rows], dtype=np.bool_))


def _after_ns(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not cursor.isdecimal() or len(cursor) > 19:
        raise BadRequest(f"cursor {cursor!r} is not one this server gave")
    return int(cursor)
