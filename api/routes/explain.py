"""A figure opened: from a tonne to a register, one level at a time."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.answer import Json
from api.deps import InPlant, InServices
from api.errors import UnknownName
from api.routes.series import InBasis, MethodSet, asked_method_set
from api.window import InSpan, moment_ns
from core.errors import BadRequest
from core.proof.explain import EdgeExplained, NodeExplained
from core.results import Basis

router = APIRouter(prefix="/v1", tags=["pedigree"])


@router.get("/explain", response_model=NodeExplained | EdgeExplained)
async def explain(
    services: InServices,
    plant: InPlant,
    span: InSpan,
    node: Annotated[str | None, Query(description="Node id or `site`: opens its emissions.")] = None,
    edge: Annotated[str | None, Query(description="Edge id: opens its energy, down to the readings.")] = None,
    scope: Annotated[int, Query(ge=1, le=2)] = 2,
    basis: InBasis = Basis.LOCATION,
    method_set: MethodSet = None,
    limit: Annotated[int, Query(ge=1, le=1440, description="Base intervals a page.")] = 60,
    cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    revision: Annotated[
        int | None,
        Query(
            ge=1, description="As it was when the day, or month, of the range was closed as that revision."
        ),
    ] = None,
) -> Json:
    """What a figure is made of: items with energy, intensity and a link each, factor rows, meters, readings, runs."""
    if (node is None) == (edge is None):
        raise BadRequest("name either a node, whose emissions are opened, or an edge, whose energy is")
    from_ns = None if cursor is None else moment_ns("cursor", cursor)
    opened = services.explain
    if opened is None:
        raise UnknownName("figures cannot be opened here: no store of results stands behind this process")
    if edge is not None:
        return Json(await opened.edge(edge, span.start_ns, span.end_ns, limit, from_ns, revision))
    assert node is not None
    return Json(
        await opened.node(
            node,
            span.start_ns,
            span.end_ns,
            scope,
            basis.value,
            asked_method_set(plant, method_set),
            limit,
            from_ns,
            revision,
        )
    )
