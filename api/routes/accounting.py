"""What follows from factors and registers: the factor library, the green electricity ledger, periods compared."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from api.answer import Json, number
from api.deps import InPlant, InServices, InWho, Services
from api.routes.registers import Cursor, Limit, Who, after, page, table
from api.routes.series import InBasis, MethodSet, asked_method_set, inventories_at
from api.table import InMedia, Sheet, download
from api.window import moment_ns, period_span
from core.answers.footprint import BatchFootprint
from core.answers.inventory import Standing
from core.carbon.factor_row import FactorRow, published_ns
from core.carbon.green_power import fossil_remainder_kg
from core.carbon.indicators import ELECTRICITY, schemes, trajectory
from core.carbon.method import METHOD_SET_IDS, method_of
from core.carbon.method import MethodSet as MethodSetRules
from core.carbon.sector import sectors
from core.carbon.uncertainty import combined_uncertainty, monte_carlo
from core.clock import rfc3339
from core.errors import BadRequest
from core.plant.model import NodeKind, Origin, Plant
from core.registers.monte_carlo import MonteCarloRuns, Run
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
    before_uncertainty: float | None
    after_uncertainty: float | None


class CompareAnswer(BaseModel):
    period: str
    against: str
    basis: str
    method_set: str
    factors: list[str]
    levels: list[str]
    unverified: bool
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
    made = await services.inventories().of(span.start_ns, span.end_ns, method)
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
            **_standing("location_based", made.standing(services.library(), Basis.LOCATION, 2)),
            **_standing("market_based", made.standing(services.library(), Basis.MARKET, 2)),
            "location_based_uncertainty": made.uncertainty(Basis.LOCATION, 2),
            "market_based_uncertainty": made.uncertainty(Basis.MARKET, 2),
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
    after, before = [await services.inventories().of(span.start_ns, span.end_ns, method) for span in spans]
    lines = [
        {
            "line": change.line,
            "scope": change.scope,
            "before_kgco2e": change.before_kg,
            "after_kgco2e": change.after_kg,
            "energy_effect_kgco2e": change.energy_kg,
            "factor_effect_kgco2e": change.factor_kg,
            "before_uncertainty": change.before_uncertainty,
            "after_uncertainty": change.after_uncertainty,
        }
        for change in after.against(before, basis)
    ]
    return Json(
        {
            "period": period,
            "against": against,
            "basis": basis.value,
            "method_set": method,
            **asdict(after.standing(services.library(), basis, 1, 2)),
            "lines": lines,
            "energy_effect_kgco2e": sum(float(str(line["energy_effect_kgco2e"])) for line in lines),
            "factor_effect_kgco2e": sum(float(str(line["factor_effect_kgco2e"])) for line in lines),
        }
    )


@router.get("/footprints")
async def footprints(
    services: InServices,
    plant: InPlant,
    media: InMedia,
    product: Annotated[str, Query(description="Product id of plant.yaml.")],
    period: Annotated[str, Query(description="A year, month or day in the plant's zone.")],
    basis: InBasis = Basis.LOCATION,
    method_set: MethodSet = None,
) -> Response:
    """Carbon of each batch, shift or order: its nodes' own, its part of shared ones, embedded emissions for CBAM."""
    span = period_span(plant, period)
    method = asked_method_set(plant, method_set)
    found = await services.footprints(product, span.start_ns, span.end_ns, basis.value, method)
    made = await services.inventories().of(span.start_ns, span.end_ns, method)
    sure = {scope: made.uncertainty(basis, scope) for scope in (1, 2)}
    rows = [_footprint(batch) | {"uncertainty": batch.uncertainty(sure)} for batch in found.batches]
    if media is not None:
        columns = [name for name in (rows[0] if rows else {}) if name != "cbam"]
        sheet = Sheet(
            "footprints",
            columns,
            [[str(r[c]) if c == "direct_kgco2e" else r[c] for c in columns] for r in rows],
        )
        return download(media, f"footprints-{product}-{period}", lambda: [sheet])
    good = sum(batch.made.good for batch in found.batches)
    total = sum(batch.total_kg for batch in found.batches)
    return Json(
        {
            "product": product,
            "period": period,
            "basis": basis.value,
            "method_set": method,
            "unit": found.product.unit,
            "allocation": found.product.allocation,
            "batches": rows,
            "good": good,
            "total_kgco2e": total,
            "per_good_kgco2e": total / good if good > 0 else math.nan,
            "idle_kgco2e": found.idle_kg,
            "unknown_hours": found.unknown_hours,
            **asdict(made.standing(services.library(), basis, 1, 2)),
            "life_cycle_factor": found.product.life_cycle_factor,
            "cbam_counts_bought_heat_as_indirect": found.product.cbam_sector is not None
            and not method_of(plant, method).heat_is_direct
            and _buys_heat(plant),
            "design": "designed toward ISO 14067:2018 and GB/T 24067-2024; gate to gate",
        }
    )


@router.get("/uncertainty")
async def uncertainty(
    services: InServices,
    plant: InPlant,
    period: str,
    basis: InBasis = Basis.LOCATION,
    method_set: MethodSet = None,
    trials: Annotated[int, Query(ge=10_000, le=1_000_000)] = 100_000,
    seed: Annotated[int, Query(ge=0, description="The same seed gives the same answer.")] = 1,
) -> Response:
    """The inventory's uncertainty by error propagation and by Monte Carlo (2006 IPCC Guidelines, 1, chapter 3)."""
    span = period_span(plant, period)
    made = await services.inventories().of(span.start_ns, span.end_ns, asked_method_set(plant, method_set))
    terms = made.terms(basis)
    drawn = await asyncio.to_thread(monte_carlo, terms, trials=trials, seed=seed)
    return Json(
        {
            "period": period,
            "basis": basis.value,
            "method_set": made.method.id,
            "propagated": combined_uncertainty(terms),
            "monte_carlo": {**asdict(drawn), "uncertainty": drawn.uncertainty},
            "not_stated": list(made.unstated),
        }
    )


class MonteCarloAsked(BaseModel):
    period: str
    basis: Basis = Basis.LOCATION
    method_set: str | None = None
    known_at: str | None = None
    trials: int = Field(100_000, ge=10_000, le=1_000_000)
    seed: int | None = Field(None, ge=0, lt=2**63, description="Drawn and kept where none is given.")


class MonteCarloRow(BaseModel):
    id: int
    state: Literal["running", "done"]
    asked: dict[str, Any]
    trials: int
    seed: int
    who: str
    at: str
    done: str | None
    propagated: float | None
    mean_kgco2e: float | None
    low_kgco2e: float | None
    high_kgco2e: float | None
    uncertainty: float | None
    terms: int


class MonteCarloPage(BaseModel):
    items: list[MonteCarloRow]
    next: str | None


@router.post("/uncertainty/runs", status_code=202, response_model=MonteCarloRow)
async def begin_monte_carlo(
    body: MonteCarloAsked, services: InServices, plant: InPlant, caller: InWho, who: Who = ""
) -> Response:
    """Begin a Monte Carlo run of an inventory; its seed and terms are kept, so that it can be drawn again for ever."""
    span = period_span(plant, body.period)
    method = asked_method_set(plant, body.method_set)
    made = await inventories_at(services, body.known_at).of(span.start_ns, span.end_ns, method)
    asked = body.model_dump(exclude={"trials", "seed"}, mode="json") | {"method_set": method}
    runs = _runs(services)
    number = await runs.begin(made.terms(body.basis), asked, body.trials, body.seed, caller or who or "local")
    return Json(_run(await runs.run(number)), 202)


@router.get("/uncertainty/runs", response_model=MonteCarloPage)
async def monte_carlo_runs(
    services: InServices, media: InMedia, cursor: Cursor = None, limit: Limit = 1000
) -> Response:
    """Monte Carlo runs by number, page by page."""
    found = await _runs(services).page(after(cursor), 10_000 if media else limit + 1)
    rows = [_run(run) for run in found]
    return table(media, "monte-carlo", rows) if media else page(rows, limit)


@router.get("/uncertainty/runs/{number}", response_model=MonteCarloRow)
async def monte_carlo_run(services: InServices, number: int) -> Response:
    """One Monte Carlo run; `state` says whether it is done."""
    return Json(_run(await _runs(services).run(number)))


@router.get("/method-sets")
async def method_sets(services: InServices, plant: InPlant) -> Response:
    """The method sets there are, with their editions and rules; each sector's register of sources; the schemes."""
    return Json(
        {
            "kept": list(plant.method_sets),
            "method_sets": [
                _method(method_of(plant, name)) for name in (*METHOD_SET_IDS, *plant.own_method_sets)
            ],
            "sectors": [asdict(sector) for sector in sectors()],
            "schemes": list(schemes(services.library())),
        }
    )


@router.get("/trajectory")
async def trajectory_to_final(
    services: InServices,
    plant: InPlant,
    period: Annotated[str, Query(description="The year to start from, with the plant's own figures.")],
    last_year: Annotated[int, Query(ge=2020, le=2100, description="The year of the final value.")] = 2030,
    method_set: MethodSet = None,
) -> Response:
    """Yearly targets of the three national core indicators, in equal steps from the period's value to the final one."""
    span = period_span(plant, period)
    method = asked_method_set(plant, method_set)
    tce_basis = method_of(plant, method).tce_basis.value
    made = []
    for row in await services.indicators(span.start_ns, span.end_ns, method):
        basis = str(row["basis"] or "")
        asked = row["final"] is not None and row["value"] is not None
        if asked and (not basis or basis.split(",")[-1] == tce_basis):
            steps = trajectory(int(period[:4]), float(str(row["value"])), last_year, float(str(row["final"])))
            made.append(
                {
                    "indicator": row["indicator"],
                    "unit": row["unit"],
                    "basis": row["basis"],
                    "entry": row["entry"],
                    "final": row["final"],
                    "targets": {str(year): value for year, value in steps.items()},
                }
            )
    return Json(made)


def _standing(name: str, standing: Standing) -> dict[str, Any]:
    return {f"{name}_{key}": value for key, value in asdict(standing).items()}


def _buys_heat(plant: Plant) -> bool:
    """Heat or cooling bought across the fence, which CBAM counts as direct and the scopes here as indirect."""
    return any(
        node.kind is NodeKind.SOURCE
        and node.origin is Origin.PURCHASED
        and node.fuel is None
        and node.carrier != ELECTRICITY
        for node in plant.nodes
    )


def _runs(services: Services) -> MonteCarloRuns:
    if services.monte_carlo is None:
        raise BadRequest("this process has no results to draw from")
    return services.monte_carlo


def _run(run: Run) -> dict[str, Any]:
    result = run.result
    return {
        "id": run.id,
        "state": "running" if result is None else "done",
        "asked": run.asked,
        "trials": run.trials,
        "seed": run.seed,
        "who": run.who,
        "at": rfc3339(run.at_ns),
        "done": None if run.done_ns is None else rfc3339(run.done_ns),
        "propagated": number(run.propagated),
        "mean_kgco2e": None if result is None else result.mean,
        "low_kgco2e": None if result is None else result.low,
        "high_kgco2e": None if result is None else result.high,
        "uncertainty": None if result is None else number(result.uncertainty),
        "terms": len(run.terms),
    }


def _footprint(batch: BatchFootprint) -> dict[str, Any]:
    made, embedded = batch.made, batch.embedded
    return {
        "batch": made.id,
        "start": rfc3339(made.start_ns),
        "end": rfc3339(made.end_ns),
        "nodes": " ".join(made.nodes),
        "good": made.good,
        "scrap": made.scrap,
        "direct_kgco2e": {str(scope): kg for scope, kg in batch.direct_kg.items()},
        "shared_kgco2e": sum(batch.shared_kg.values()),
        "total_kgco2e": batch.total_kg,
        "per_good_kgco2e": batch.per_good_kg,
        "electricity_kwh": batch.electricity_kwh,
        "life_cycle_electricity_kgco2e": batch.life_cycle_kg,
        "cbam": None
        if embedded is None
        else {
            "cn_code": embedded.cn_code,
            "direct_t_per_t": embedded.direct_t_per_t,
            "indirect_t_per_t": embedded.indirect_t_per_t,
            "indirect_counts": embedded.indirect_counts,
            "see_t_per_t": embedded.see_t_per_t,
            "precursors": [asdict(precursor) for precursor in made.precursors],
        },
    }


def _method(method: MethodSetRules) -> dict[str, Any]:
    return {
        "id": method.id,
        "name": {"zh": method.name.zh, "en": method.name.en},
        "edition": method.edition,
        "gwp_set": method.gwp_set,
        "oxidation": method.oxidation,
        "scopes": sorted(int(scope) for scope in method.scopes),
        "location": asdict(method.location),
        "market": [asdict(rule) for rule in method.market],
        "tce_basis": method.tce_basis.value,
        "nets_sold_energy": method.nets_sold_energy,
        "other_gases": method.other_gases,
        "heat_is_direct": method.heat_is_direct,
    }


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
