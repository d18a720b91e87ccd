"""Closed periods: which days and months are sealed, at which revision, and why a revision came about."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from api.answer import Json
from api.deps import InPlant, InServices
from api.routes.registers import table
from api.table import InMedia
from api.window import moment_ns
from core.clock import rfc3339
from core.errors import BadRequest
from core.seal import Seal

router = APIRouter(prefix="/v1", tags=["pedigree"])

_EARLIEST_NS, _LATEST_NS = 0, 2**62  # 1970 .. 2116


class SealRow(BaseModel):
    period: Literal["day", "month"]
    label: str
    start: str
    end: str
    revision: int
    newest: bool
    digest: str
    chain: str
    factors: int
    who: str
    why: str
    sealed_at: str
    explain: str


class SealsAnswer(BaseModel):
    zone: str
    seal_after_days: int
    seals: list[SealRow]


@router.get("/seals", response_model=SealsAnswer)
async def seals(
    services: InServices,
    plant: InPlant,
    media: InMedia,
    start: Annotated[str | None, Query(description="RFC 3339; periods that end later.")] = None,
    end: Annotated[str | None, Query(description="RFC 3339; periods that begin before.")] = None,
    period: Annotated[Literal["day", "month"] | None, Query()] = None,
) -> Response:
    """Every sealing of the periods that touch the range, each revision, with its hash, its chain and its reason."""
    start_ns = _EARLIEST_NS if start is None else moment_ns("start", start)
    end_ns = _LATEST_NS if end is None else moment_ns("end", end)
    if start_ns >= end_ns:
        raise BadRequest(f"the range is empty: start {rfc3339(start_ns)} is not before end {rfc3339(end_ns)}")
    found = await services.store.seals(start_ns, end_ns, period)
    newest = {(seal.period, seal.label): seal.revision for seal in found}
    rows = [_row(seal, newest[seal.period, seal.label] == seal.revision) for seal in found]
    if media:
        return table(media, "seals", rows)
    return Json({"zone": plant.zone.key, "seal_after_days": plant.seal_after_days, "seals": rows})


def _row(seal: Seal, newest: bool) -> dict[str, Any]:
    start, end = rfc3339(seal.start_ns), rfc3339(seal.end_ns)
    return {
        "period": seal.period,
        "label": seal.label,
        "start": start,
        "end": end,
        "revision": seal.revision,
        "newest": newest,
        "digest": seal.digest.hex(),
        "chain": seal.chain.hex(),
        "factors": len(seal.factors),
        "who": seal.who,
        "why": seal.why,
        "sealed_at": rfc3339(seal.sealed_at_ns),
        "explain": f"/v1/explain?node=site&start={start}&end={end}&revision={seal.revision}",
    }
