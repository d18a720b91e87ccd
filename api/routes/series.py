"""Energy, carbon and their ratios by bucket: sums over base intervals, unknown is null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from starlette.responses import Response

from api.answer import BalanceRow, EmissionRow, EnergyRow, IndicatorRow, IntensityRow, Json, times
from api.deps import InPlant, InServices, Services
from api.table import InMedia, Sheet, download
from api.window import InBucketedSpan, ShiftNames, known, moment_ns, period_span
from core.answers.inventory import Inventories
from core.carbon.indicators import NATIONAL
from core.errors import BadRequest
from core.plant.model import Plant
from core.results import SITE, Basis, Scope
from core.store.seam import Series

router = APIRouter(prefix="/v1", tags=["energy and carbon"])

_OF_REPORTS = ("1mo", "1y")
Edges = Annotated[list[str], Query(alias="edge", description="Edge id; all edges where none is given.")]
Nodes = Annotated[
    list[str], Query(alias="node", description="Node id or `site`; all nodes where none is given.")
]
InBasis = Annotated[Basis, Query(description="Location- or market-based.")]
KnownAt = Annotated[
    str | None, Query(description="RFC 3339: closed days as they stood then, entries as they counted then.")
]
MethodSet = Annotated[str | None, Query(description="Default: the plant's first.")]
Told = Annotated[
    bool | None,
    Query(
        alias="uncertainty",
        description="Uncertainty and factor rows with each row; default from buckets of a month on.",
    ),
]


@router.get("/energy", response_model=list[EnergyRow])
async def energy(services: InServices, plant: InPlant, span: InBucketedSpan, edge: Edges = []) -> Json:  # noqa: B006
    """Energy over edges. `coverage` is the share of time backed by good readings."""
    edges = known("edge", edge, plant.edge_by_id)
    span.guard(len(edges))
    series = await services.store.energy(edges, span.start_ns, span.end_ns, span.bucket)
    return _rows("edge", series, span.shifts)


@router.get("/emissions", response_model=list[EmissionRow])
async def emissions(
    services: InServices,
    plant: InPlant,
    span: InBucketedSpan,
    node: Nodes = [],  # noqa: B006
    basis: InBasis = Basis.LOCATION,
    method_set: MethodSet = None,
    told: Told = None,
) -> Json:
    """Emissions by node and scope: of a load what reaches it, of `site` what its meters say came in and burned.

    `uncertainty` is half of the relative 95 % interval over the range asked: of what came in, and of a load's own
    meter beside it.
    """
    nodes = known("node", node, _node_names(plant))
    span.guard(len(nodes) * len(Scope))
    method = asked_method_set(plant, method_set)
    series = await services.store.emissions(
        nodes, span.start_ns, span.end_ns, span.bucket, basis.value, method
    )
    rows = _rows_of("node", series, span.shifts)
    if rows and (span.bucket in _OF_REPORTS if told is None else told):
        books = services.inventories()
        made = (await books.of(span.start_ns, span.end_ns, method)).metered()
        stands = {s: asdict(made.standing(services.library(), basis, s)) for s in (1, 2)}
        off = {s: made.uncertainty(basis, s) for s in (1, 2)}
        own = books.own_meter_uncertainties()
        for row in rows:
            scope = int(str(row["scope"]))
            whole = math.hypot(off[scope], own.get(str(row["node"]), 0.0))
            row |= {"uncertainty": whole, **stands[scope]}
    elif rows:
        marked = await services.inventories().unverified(span.start_ns, span.end_ns, method, basis)
        for row in rows:
            row["unverified"] = marked.get(int(str(row["scope"])), False)
    return Json(rows)


@router.get("/intensity", response_model=list[IntensityRow])
async def intensity(
    services: InServices,
    plant: InPlant,
    span: InBucketedSpan,
    node: Nodes = [],  # noqa: B006
    basis: InBasis = Basis.LOCATION,
    method_set: MethodSet = None,
    told: Told = None,
) -> Json:
    """Carbon leaving over energy leaving a node (of a load: arriving), all scopes together.

    `uncertainty` is half of the relative 95 % interval over the range asked; a meter that carbon and energy both stand
    on cancels, so a node fed by one source is as uncertain as that one's factor.
    """
    nodes = known("node", node, _node_names(plant))
    span.guard(len(nodes))
    method = asked_method_set(plant, method_set)
    series = await services.store.intensity(
        nodes, span.start_ns, span.end_ns, span.bucket, basis.value, method
    )
    rows = _rows_of("node", series, span.shifts)
    if rows and (span.bucket in _OF_REPORTS if told is None else told):
        books = services.inventories()
        made = await books.of(span.start_ns, span.end_ns, method)
        stands = {
            name: {"uncertainty": off, **asdict(standing)}
            for name, (off, standing) in books.of_intensities(made, series.name, basis).items()
        }
        for row in rows:
            row |= stands[str(row["node"])]
    return Json(rows)


@router.get("/balance", response_model=list[BalanceRow])
async def balance(services: InServices, plant: InPlant, span: InBucketedSpan, node: Nodes = []) -> Json:  # noqa: B006
    """What goes into and out of a node, and what neither meters nor losses explain."""
    nodes = known("node", node, _node_names(plant))
    span.guard(len(nodes))
    series = await services.store.balance(nodes, span.start_ns, span.end_ns, span.bucket)
    return _rows("node", series, span.shifts)


@router.get("/indicators", response_model=list[IndicatorRow])
async def indicators(
    services: InServices,
    plant: InPlant,
    period: Annotated[
        str, Query(description="A year, month or day in the plant's zone: 2026, 2026-10, 2026-10-05.")
    ],
    media: InMedia,
    method_set: MethodSet = None,
    known_at: KnownAt = None,
    scheme: Annotated[
        str | None, Query(description="Whose thresholds stand beside them; default the national one.")
    ] = None,
) -> Response:
    """Indicators of a period; amounts of emissions with half their relative 95 % interval. CSV and XLSX on request."""
    span = period_span(plant, period)
    asked = (span.start_ns, span.end_ns, asked_method_set(plant, method_set))
    if known_at is None and scheme is None:
        rows = await services.indicators(*asked)
    else:
        rows = await inventories_at(services, known_at).indicators(*asked, scheme or NATIONAL)
    if media:
        columns = list(rows[0]) if rows else ["indicator"]
        sheet = Sheet("indicators", columns, [[_cell(row[column]) for column in columns] for row in rows])
        return download(media, f"indicators-{plant.id}-{period}", lambda: [sheet])
    return Json(rows)


def inventories_at(services: Services, known_at: str | None) -> Inventories:
    """What makes inventories, of now or of a past known time."""
    now = services.inventories()
    return now if known_at is None else now.known_at(moment_ns("known_at", known_at))


def _cell(value: object) -> object:
    if isinstance(value, Mapping):
        return " ".join(f"{key}:{one}" for key, one in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _node_names(plant: Plant) -> list[str]:
    return [*plant.node_by_id, SITE]


def asked_method_set(plant: Plant, asked: str | None) -> str:
    """The method set asked for, the plant's first where none is."""
    if asked is None:
        return plant.method_sets[0]
    if asked not in plant.method_sets:
        raise BadRequest(f"method set {asked!r} is not kept for this plant: {', '.join(plant.method_sets)}")
    return asked


def _rows(key: str, series: Series, shifts: ShiftNames | None = None) -> Json:
    return Json(_rows_of(key, series, shifts))


def _rows_of(key: str, series: Series, shifts: ShiftNames | None) -> list[dict[str, object]]:
    names = (key, "start", *series.columns)
    columns = [series.name, times(series.start_ns), *(column.tolist() for column in series.columns.values())]
    if series.flow is not None:
        flows = [series.flows[i] for i in np.asarray(series.flow).tolist()]
        names = (*names, "scope", "basis", "method_set")
        columns += [[f.scope for f in flows], [f.basis for f in flows], [f.method_set for f in flows]]
    if shifts is not None:
        names = (*names, "shift")
        columns.append(shifts.of(series.start_ns))
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
