"""Views on the energy network: what a node's energy was made of, and meters corrected against each other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from api.answer import Json, number
from api.deps import InPlant, InServices
from api.errors import UnknownName
from api.routes.registers import table
from api.table import InMedia
from api.window import InSpan, known
from core.answers.reconciliation import ASSUMED_CLASS, ReconciledEdge
from core.answers.shares import Made
from core.clock import rfc3339
from core.plant.model import NodeKind
from core.results import SITE

router = APIRouter(prefix="/v1", tags=["energy and carbon"])


class SourceRow(BaseModel):
    source: str
    kwh: float
    share: float | None


class MadeRow(BaseModel):
    node: str
    energy_kwh: float
    source_kwh: float
    unknown_kwh: float
    sources: list[SourceRow]
    cost: dict[str, float]
    priced_share: float | None
    non_fossil_kwh: float
    non_fossil_share: float | None


class ReconciledRow(BaseModel):
    edge: str
    measured_kwh: float | None
    reconciled_kwh: float | None
    correction_kwh: float | None
    class_pct: float | None
    class_assumed: bool
    test: float | None
    suspect: bool


class ReconciliationAnswer(BaseModel):
    start: str
    end: str
    assumed_class_pct: float
    edges: list[ReconciledRow]


@router.get("/participation", response_model=list[MadeRow])
async def participation(
    services: InServices,
    plant: InPlant,
    span: InSpan,
    media: InMedia,
    node: Annotated[
        list[str], Query(description="Load, export or `site`; all loads where none is given.")
    ] = [],  # noqa: B006
) -> Response:
    """Which source a node's energy came from, kWh at the source; what it cost, and how much of it was non-fossil.

    `earlier` is what storages held when the range began.
    """
    if services.shares is None:
        raise UnknownName("shares cannot be told here: no store of results stands behind this process")
    takers = [n.id for n in plant.nodes if n.kind in (NodeKind.LOAD, NodeKind.EXPORT)]
    nodes = known("load", node, [*takers, SITE])
    rows = [_made(made) for made in await services.shares.of(nodes, span.start_ns, span.end_ns)]
    if media:
        flat = [{"node": row["node"], **source} for row in rows for source in row["sources"]]
        return table(media, "participation", flat)
    return Json(rows)


@router.get("/reconciliation", response_model=ReconciliationAnswer)
async def reconciliation(services: InServices, span: InSpan, media: InMedia) -> Response:
    """Every edge beside what would close all balances; `suspect` names meters that are likely wrong. A view only."""
    if services.reconciliation is None:
        raise UnknownName("meters cannot be reconciled here: no store of results stands behind this process")
    rows = [_reconciled(edge) for edge in await services.reconciliation(span.start_ns, span.end_ns)]
    if media:
        return table(media, "reconciliation", rows)
    return Json(
        {
            "start": rfc3339(span.start_ns),
            "end": rfc3339(span.end_ns),
            "assumed_class_pct": ASSUMED_CLASS,
            "edges": rows,
        }
    )


def _made(made: Made) -> dict[str, Any]:
    total = sum(made.source_kwh.values())
    row = asdict(made)
    return {
        "node": made.node,
        "energy_kwh": made.energy_kwh,
        "source_kwh": total,
        "unknown_kwh": made.unknown_kwh,
        "sources": [
            {"source": name, "kwh": kwh, "share": kwh / total if total else None}
            for name, kwh in sorted(made.source_kwh.items(), key=lambda item: -item[1])
        ],
        "cost": row["cost"],
        "priced_share": made.priced_kwh / total if total else None,
        "non_fossil_kwh": made.non_fossil_kwh,
        "non_fossil_share": made.non_fossil_kwh / total if total else None,
    }


def _reconciled(edge: ReconciledEdge) -> dict[str, Any]:
    return {
        "edge": edge.edge,
        "measured_kwh": number(edge.measured_kwh),
        "reconciled_kwh": number(edge.reconciled_kwh),
        "correction_kwh": number(edge.reconciled_kwh - edge.measured_kwh),
        "class_pct": edge.class_pct,
        "class_assumed": edge.assumed,
        "test": number(edge.test),
        "suspect": edge.suspect,
    }
