"""The inventory of a period, and its download."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from api.answer import Json, LabelRow, number, times
from api.deps import InPlant, InServices
from api.routes.series import KnownAt, MethodSet, asked_method_set, inventories_at
from api.table import InMedia, Sheet, download
from api.window import period_span
from core.answers.inventory import CATEGORIES, Inventory, Line, Total, known_sum
from core.carbon.factor_row import FactorRow
from core.clock import datetime_of, rfc3339
from core.plant.model import Label, Plant, Statement
from core.results import Basis
from core.samples import Floats

router = APIRouter(prefix="/v1", tags=["accounting"])

Period = Annotated[str, Query(description="A year or month in the plant's zone: 2026, 2026-10.")]


class LineRow(BaseModel):
    line: str
    kind: str
    name: LabelRow
    scope: int
    category: int
    basis: str | None
    kgco2e: list[float | None]
    total_kgco2e: float | None
    biogenic_kgco2: float | None
    energy_kwh: float | None
    coverage: float | None
    estimated_share: float | None
    uncertainty: float | None
    uncertainty_not_stated: list[str]
    factors: list[str]


class TotalRow(BaseModel):
    scope: int
    basis: str
    kgco2e: list[float | None]
    total_kgco2e: float | None
    coverage: list[float | None]
    uncertainty: float | None


class FactorUseRow(BaseModel):
    id: str
    value: float
    unit: str
    source: str
    document: str
    region: str
    level: str
    kind: str
    valid_from: str | None
    published: str | None
    confidence: str
    unverified: bool
    stands_in: bool
    uncertainty: float | None
    used_by: list[str]


class ExportRow(BaseModel):
    basis: str
    kgco2e: list[float | None]
    total_kgco2e: float | None
    net_kgco2e: float | None
    net_is_asked: bool


class InventoryAnswer(BaseModel):
    plant: str
    period: str
    method_set: dict[str, Any]
    base_year: dict[str, Any] | None
    months: list[str]
    month_starts: list[str]
    end: str
    categories: dict[str, LabelRow]
    lines: list[LineRow]
    totals: list[TotalRow]
    biogenic_kgco2: list[float | None]
    removed_kgco2: list[float | None]
    exports: list[ExportRow]
    factors: list[FactorUseRow]
    exclusions: list[dict[str, Any]]
    uncertainty_not_stated: list[str]
    known_at: str | None


@router.get("/inventory", response_model=InventoryAnswer)
async def inventory(
    services: InServices,
    plant: InPlant,
    period: Period,
    media: InMedia,
    method_set: MethodSet = None,
    known_at: KnownAt = None,
) -> Response:
    """Scopes and ISO 14064-1 categories by month and basis, with the factors in use. CSV and XLSX on request."""
    span = period_span(plant, period)
    books = inventories_at(services, known_at)
    made = await books.of(span.start_ns, span.end_ns, asked_method_set(plant, method_set))
    library = services.library()
    rows = {row: library.row(row) for row in made.factors}
    answer = _answer(plant, period, made, rows) | {"known_at": known_at}
    if media is not None:
        return download(media, f"inventory-{plant.id}-{period}", lambda: _sheets(answer))
    return Json(answer)


def _answer(plant: Plant, period: str, made: Inventory, rows: dict[str, FactorRow]) -> dict[str, Any]:
    method, statement = made.method, plant.statement
    return {
        "plant": plant.id,
        "period": period,
        "method_set": {
            "id": method.id,
            "name": _label(method.name),
            "edition": method.edition,
            "gwp_set": method.gwp_set,
        },
        "base_year": _base_year(statement, period, made),
        "months": [f"{datetime_of(ns).astimezone(plant.zone):%Y-%m}" for ns in made.month_ns.tolist()],
        "month_starts": times(made.month_ns),
        "end": rfc3339(made.end_ns),
        "categories": {str(number): _label(name) for number, name in CATEGORIES.items()},
        "lines": [_line(line) for line in made.lines],
        "totals": [_total(total) for total in made.totals],
        "biogenic_kgco2": _numbers(made.biogenic_kg),
        "removed_kgco2": _numbers(made.removed_kg),
        "exports": [
            {
                "basis": basis.value,
                "kgco2e": _numbers(kg),
                "total_kgco2e": number(known_sum(kg)),
                "net_kgco2e": number(known_sum(made.net_kg(basis))),
                "net_is_asked": method.nets_sold_energy,
            }
            for basis, kg in made.exported_kg.items()
        ],
        "factors": [_factor(row, made.factors[id_], id_ in made.stand_ins) for id_, row in rows.items()],
        "exclusions": [
            {"what": _label(left_out.what), "scope": left_out.scope, "reason": _label(left_out.reason)}
            for left_out in statement.exclusions
        ],
        "uncertainty_not_stated": list(made.unstated),
    }


def _base_year(statement: Statement, period: str, made: Inventory) -> dict[str, Any] | None:
    """What was declared; in the inventory of the base year itself, whether it is still what is computed.

    Source: GHG Protocol Corporate Standard, chapter 5: recalculate above a declared significance threshold.
    """
    if statement.base_year is None:
        return None
    declared, threshold = statement.base_year_kgco2e, statement.recalculation_threshold
    computed_kg, due = None, None
    if period == str(statement.base_year):
        kg = sum(t.total_kg for t in made.totals if t.basis is Basis.LOCATION and t.scope <= 2)
        computed_kg = number(kg)
        if declared and computed_kg is not None:
            due = abs(computed_kg - declared) > threshold * declared
    return {
        "year": statement.base_year,
        "kgco2e": declared,
        "recalculation_threshold": threshold,
        "computed_kgco2e": computed_kg,
        "recalculation_due": due,
    }


def _line(line: Line) -> dict[str, Any]:
    return {
        "line": line.id,
        "kind": line.kind.value,
        "name": _label(line.name),
        "scope": line.scope,
        "category": line.category,
        "basis": None if line.basis is None else line.basis.value,
        "kgco2e": _numbers(line.kg),
        "total_kgco2e": number(line.total_kg),
        "biogenic_kgco2": number(line.total_biogenic_kg),
        "energy_kwh": number(line.energy_kwh),
        "coverage": number(line.coverage),
        "estimated_share": number(line.estimated_share),
        "uncertainty": number(line.uncertainty),
        "uncertainty_not_stated": list(line.unstated),
        "factors": list(line.factors),
    }


def _total(total: Total) -> dict[str, Any]:
    return {
        "scope": total.scope,
        "basis": Basis(total.basis).value,
        "kgco2e": _numbers(total.kg),
        "total_kgco2e": number(total.total_kg),
        "coverage": _numbers(total.coverage),
        "uncertainty": number(total.uncertainty),
    }


def _factor(row: FactorRow, lines: tuple[str, ...], stands_in: bool) -> dict[str, Any]:
    return {
        "id": row.id,
        "value": row.value,
        "unit": row.unit,
        "source": row.source,
        "document": row.document,
        "region": row.region,
        "level": row.level,
        "kind": row.kind,
        "valid_from": row.valid_from,
        "published": row.published,
        "confidence": row.confidence,
        "unverified": row.unverified or stands_in,
        "stands_in": stands_in,
        "uncertainty": row.uncertainty,
        "used_by": list(lines),
    }


def _sheets(answer: dict[str, Any]) -> list[Sheet]:
    """The inventory as rows of one line and month, then totals and factors."""
    months = answer["months"]
    keys = ("line", "kind", "scope", "category", "basis", "uncertainty", "coverage")
    of_factor = {row["id"]: row for row in answer["factors"]}
    method = answer["method_set"]

    def standing(line: dict[str, Any]) -> list[object]:
        rows = [of_factor[id_] for id_ in line["factors"]]
        levels = dict.fromkeys(row["level"] for row in rows if row["level"])
        return [method["id"], " ".join(line["factors"]), " ".join(levels), any(r["unverified"] for r in rows)]

    lines = [
        [line[key] for key in keys] + [month, kg] + standing(line)
        for line in answer["lines"]
        for month, kg in zip(months, line["kgco2e"], strict=True)
    ]
    totals = [
        [total["scope"], total["basis"], month, kg, coverage, total["uncertainty"]]
        for total in answer["totals"]
        for month, kg, coverage in zip(months, total["kgco2e"], total["coverage"], strict=True)
    ]
    factors = [list((row | {"used_by": " ".join(row["used_by"])}).values()) for row in answer["factors"]]
    return [
        Sheet(
            "lines",
            (*keys, "month", "kgco2e", "method_set", "factors", "levels", "unverified"),
            lines,
        ),
        Sheet("totals", ("scope", "basis", "month", "kgco2e", "coverage", "uncertainty"), totals),
        Sheet("factors", tuple(FactorUseRow.model_fields), factors),
        Sheet("about", ("what", "value"), _about(answer)),
    ]


def _about(answer: dict[str, Any]) -> list[list[object]]:
    """What the figures are, for whoever holds the file alone."""
    method, year = answer["method_set"], answer["base_year"]
    rows: list[list[object]] = [
        ["plant", answer["plant"]],
        ["period", answer["period"]],
        ["known_at", answer["known_at"]],
        ["method_set", method["id"]],
        ["edition", method["edition"]],
        ["gwp_set", method["gwp_set"]],
    ]
    for export in answer["exports"]:
        rows.append([f"left with sold energy, {export['basis']}, kgCO2e", export["total_kgco2e"]])
        rows.append([f"net of it, {export['basis']}, kgCO2e", export["net_kgco2e"]])
    rows.append(["biogenic, outside the scopes, kgCO2", sum(kg or 0.0 for kg in answer["biogenic_kgco2"])])
    rows.append(["removed, apart, kgCO2", sum(kg or 0.0 for kg in answer["removed_kgco2"])])
    if year is not None:
        rows.append(["base year", year["year"]])
        rows.append(["base year, kgCO2e", year["kgco2e"]])
    rows += [
        [f"left out, scope {left['scope']}", f"{left['what']['en']}: {left['reason']['en']}"]
        for left in answer["exclusions"]
    ]
    return [*rows, ["uncertainty not stated", " ".join(answer["uncertainty_not_stated"])]]


def _label(label: Label) -> dict[str, str]:
    return {"zh": label.zh, "en": label.en}


def _numbers(column: Floats) -> list[float | None]:
    return [number(value) for value in column.tolist()]
