"""What follows from factors and registers: the factor library, the green electricity ledger, periods compared."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from api.answer import Json
from api.deps import InPlant, InServices
from api.routes.series import InBasis, MethodSet, asked_method_set
from api.table import InMedia, Sheet, download
from api.window import moment_ns, period_span
from core.carbon.factor_row import FactorRow, published_ns
from core.carbon.green_power import fossil_remainder_kg
from core.errors import BadRequest
from core.results import Basis

router = APIRouter(prefix="/v1", tags=["accounting"])


class FactorLibraryRow(BaseModel):
    id: str
    series: str
    quantity: str
    value: float
    unit: str
    region: str
    level: str
    kind: str
    gas: str
    gwp_set: str | None
    valid_from: str | None
    valid_to: str | None
    published: str | None
    source: str
    document: str
    confidence: str
    unverified: bool
    uncertainty: float | None
    note: str


class FactorPage(BaseModel):
    items: list[FactorLibraryRow]
    next: str | None


class EffectRow(BaseModel):
    line: str
    scope: int
    before_kgco2e: float | None
    after_kgco2e: float | None
    energy_effect_kgco2e: float | None
    factor_effect_kgco2e: float | None


class CompareAnswer(BaseModel):
    period: str
    against: str
    basis: str
    method_set: str
    lines: list[EffectRow]
    energy_effect_kgco2e: float | None
    factor_effect_kgco2e: float | None


@router.get("/factors", response_model=FactorPage)
async def factors(
    services: InServices,
    plant: InPlant,
    media: InMedia,
    series: Annotated[str, Query(description="Begins with, e.g. grid_cn:CN-CQ.")] = "",
    region: str = "",
    quantity: str = "",
    kind: str = "",
    year: Annotated[str, Query(description="Valid from this year.")] = "",
    gwp_set: str = "",
    unverified: bool | None = None,
    known_at: Annotated[str | None, Query(description="Leave out what was published later.")] = None,
    cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """Every factor and coefficient in use here, with source, document, edition and confidence."""
    known_at_ns = None if known_at is None else moment_ns("known_at", known_at)

    def wanted(row: FactorRow) -> bool:
        published_later = (
            known_at_ns is not None
            and row.published is not None
            and published_ns(row.published, plant.zone) > known_at_ns
        )
        return (
            row.series.startswith(series)
            and region in ("", row.region)
            and quantity in ("", row.quantity)
            and kind in ("", row.kind)
            and gwp_set in ("", row.gwp_set or "")
            and (row.valid_from or "").startswith(year)
            and unverified in (None, row.unverified)
            and not published_later
        )

    rows = [_factor(row) for row in services.library().rows if wanted(row)]
    if media is not None:
        columns = tuple(FactorLibraryRow.model_fields)
        return download(media, "factors", lambda: [Sheet("factors", columns, [[*r.values()] for r in rows])])
    first = _first(cursor)
    page = rows[first : first + limit]
    more = first + limit < len(rows)
    return Json({"items": page, "next": str(first + limit) if more else None})


@router.get("/green-power")
async def green_power(
    services: InServices,
    plant: InPlant,
    period: Annotated[
        str, Query(description="A year or month in the plant's zone; the guide's cycle is the year.")
    ],
    method_set: MethodSet = None,
) -> Response:
    """The ledger of non-fossil electricity: physical, traded, certificates, residual share (发改能源〔2026〕622号)."""
    span = period_span(plant, period)
    method = asked_method_set(plant, method_set)
    sums, ledger = await services.green_ledger(span.start_ns, span.end_ns, method)
    market = sums.emissions_kg.get((2, Basis.MARKET.value), math.nan)
    fossil = [
        row
        for row in services.library().rows
        if row.kind == "fossil" and row.region == "CN" and row.valid_from
    ]
    newest = max(fossil, key=lambda row: row.valid_from or "", default=None)
    return Json(
        {
            "period": period,
            "method_set": method,
            "coverage": sums.coverage,
            **asdict(ledger),
            "non_fossil_kwh": ledger.non_fossil_kwh,
            "non_fossil_share": ledger.non_fossil_share,
            "physical_share": ledger.physical_share,
            "location_based_kgco2e": sums.emissions_kg.get((2, Basis.LOCATION.value), math.nan),
            "market_based_kgco2e": market,
            "fossil_remainder_kgco2e_experimental": math.nan
            if newest is None
            else fossil_remainder_kg(ledger, newest.kg_per_kwh),
            "design": "designed toward 发改能源〔2026〕622号",
        }
    )


@router.get("/green-power/hours")
async def green_power_hours(
    services: InServices, plant: InPlant, media: InMedia, period: str, method_set: MethodSet = None
) -> Response:
    """The ledger hour by hour; what is settled by period is laid over its hours by the off-take."""
    span = period_span(plant, period)
    rows = await services.green_hours(span.start_ns, span.end_ns, asked_method_set(plant, method_set))
    if media is not None:
        columns = ("start", "offtake_kwh", "physical_kwh", "traded_kwh", "certificate_kwh", "share_kwh")
        sheet = Sheet("hours", columns, [[row[column] for column in columns] for row in rows])
        return download(media, f"green-power-{period}", lambda: [sheet])
    return Json(rows)


@router.get("/compare", response_model=CompareAnswer)
async def compare(
    services: InServices,
    plant: InPlant,
    period: str,
    against: str,
    basis: InBasis = Basis.LOCATION,
    method_set: MethodSet = None,
) -> Response:
    """Why emissions differ from an earlier period: by more or less energy, and by another factor, line by line."""
    method = asked_method_set(plant, method_set)
    spans = [period_span(plant, name) for name in (period, against)]
    after, before = [await services.inventory(span.start_ns, span.end_ns, method) for span in spans]
    lines = [
        {
            "line": change.line,
            "scope": change.scope,
            "before_kgco2e": change.before_kg,
            "after_kgco2e": change.after_kg,
            "energy_effect_kgco2e": change.energy_kg,
            "factor_effect_kgco2e": change.factor_kg,
        }
        for change in after.against(before, basis)
    ]
    return Json(
        {
            "period": period,
            "against": against,
            "basis": basis.value,
            "method_set": method,
            "lines": lines,
            "energy_effect_kgco2e": sum(float(str(line["energy_effect_kgco2e"])) for line in lines),
            "factor_effect_kgco2e": sum(float(str(line["factor_effect_kgco2e"])) for line in lines),
        }
    )


def _factor(row: FactorRow) -> dict[str, Any]:
    return {
        name: row.unverified if name == "unverified" else getattr(row, name)
        for name in FactorLibraryRow.model_fields
    }


def _first(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not cursor.isdecimal() or len(cursor) > 9:
        raise BadRequest(f"cursor {cursor!r} is not one this server gave")
    return int(cursor)
