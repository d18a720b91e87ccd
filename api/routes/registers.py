"""The registers people keep: activity data, production, green power, own factors, certificates, evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from api.answer import Json, LabelRow
from api.deps import InPlant, InServices, InWho, Services
from api.errors import problem
from api.table import InMedia, Sheet, download
from api.window import moment_ns
from core.carbon.certificates import EVENT_COLUMNS, Certificate, State
from core.clock import rfc3339
from core.errors import BadRequest
from core.registers.activity import ActivityKind
from core.registers.book import Entry, Register
from core.registers.book import State as EntryState
from core.registers.choice import choices
from core.registers.evidence import LARGEST_BYTES, Evidence
from core.registers.form import Context, certificate_events, entries_of, rows_of_csv
from core.registers.shelf import Registers

router = APIRouter(prefix="/v1", tags=["registers"])

Who = Annotated[
    str, Query(description="Who writes; the key's name stands where keys are asked for.", max_length=200)
]
Cursor = Annotated[str | None, Query(description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=10_000)]
LONGEST_BODY_BYTES: Final = 32 * 1024 * 1024
PATHS: Final = {
    Register.ACTIVITY: "/activities",
    Register.PRODUCTION: "/production",
    Register.GREEN_POWER: "/green-power/entries",
    Register.FACTOR: "/factors/entries",
}
ROWS_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "array", "items": {"type": "object"}}},
            "text/csv": {"schema": {"type": "string"}},
        },
    }
}


class EntryPage(BaseModel):
    items: list[dict[str, Any]]
    next: str | None


class ChoiceRow(BaseModel):
    kind: str
    subject: str
    name: LabelRow
    units: list[str]
    needs: list[str]
    may: list[str]
    source: str
    unverified: bool


class Written(BaseModel):
    ids: list[int]


class CertificatesTaken(BaseModel):
    taken: int


class WithdrawBody(BaseModel):
    why: str


def _entry_routes(register: Register, path: str) -> None:
    """The same four requests for every register of dated entries."""
    name = register.value

    @router.get(path, response_model=EntryPage, name=f"{name} entries")
    async def entries(
        services: InServices,
        media: InMedia,
        start: str | None = None,
        end: str | None = None,
        state: EntryState | None = None,
        cursor: Cursor = None,
        limit: Limit = 1000,
    ) -> Response:
        """Entries by number, page by page; with `format` csv or xlsx all of them."""
        start_ns = None if start is None else moment_ns("start", start)
        end_ns = None if end is None else moment_ns("end", end)
        book = _registers(services).book
        found = await book.entries(
            register, start_ns, end_ns, after(cursor), None if media else limit + 1, state
        )
        if media:
            return table(media, name, [_entry_row(entry) for entry in found])
        return page([_entry_row(entry) for entry in found], limit)

    @router.post(path, response_model=Written, openapi_extra=ROWS_BODY, name=f"write {name}")
    async def write(
        request: Request, services: InServices, plant: InPlant, caller: InWho, who: Who = ""
    ) -> Response:
        """Write rows down, JSON or CSV, all or none."""
        rows = await rows_of(request)
        if not isinstance(rows, list):
            return rows
        registers, now_ns = _registers(services), services.clock.now_ns()
        new = entries_of(register, rows, Context(plant, registers.library, now_ns))
        ids = await registers.book.add(register, new, caller or who or "local", now_ns)
        return Json({"ids": ids})

    @router.post(path + "/{number}/approve", name=f"approve {name}")
    async def approve(services: InServices, caller: InWho, number: int, who: Who = "") -> Response:
        """The second pair of eyes; whoever wrote the entry cannot approve it."""
        entry = await _registers(services).book.approve(
            register, number, caller or who or "local", services.clock.now_ns()
        )
        await _restate(services, entry)
        return Json(_entry_row(entry))

    @router.post(path + "/approve", name=f"approve many {name}")
    async def approve_many(
        services: InServices, caller: InWho, numbers: list[int], who: Who = ""
    ) -> Response:
        """Approve a list of entries, all or none: an hourly series is not approved by hand."""
        approved = await _registers(services).book.approve_all(
            register, numbers, caller or who or "local", services.clock.now_ns()
        )
        if register is Register.FACTOR and approved:
            await services.factors_changed(
                min(entry.start_ns for entry in approved), max(entry.end_ns for entry in approved)
            )
        return Json({"approved": len(approved)})

    @router.post(path + "/{number}/withdraw", name=f"withdraw {name}")
    async def withdraw(
        services: InServices, caller: InWho, number: int, body: WithdrawBody, who: Who = ""
    ) -> Response:
        """Take an entry out of every sum, with its reason; it stays readable."""
        entry = await _registers(services).book.withdraw(
            register, number, caller or who or "local", body.why, services.clock.now_ns()
        )
        await _restate(services, entry)
        return Json(_entry_row(entry))


@router.get("/activities/choices", response_model=list[ChoiceRow])
async def activity_choices(
    services: InServices, plant: InPlant, kind: ActivityKind | None = None
) -> Response:
    """What an activity can be about: subjects by kind, with the units that fit and the numbers they need."""
    found = choices(plant, services.library())
    return Json([asdict(choice) for choice in found if kind in (None, choice.kind)])


for _register, _path in PATHS.items():
    _entry_routes(_register, _path)


@router.post("/factors", response_model=Written, openapi_extra=ROWS_BODY)
async def write_factors(
    request: Request, services: InServices, plant: InPlant, caller: InWho, who: Who = ""
) -> Response:
    """Own and suppliers' factors; each counts once a second person has approved it."""
    rows = await rows_of(request)
    if not isinstance(rows, list):
        return rows
    registers, now_ns = _registers(services), services.clock.now_ns()
    new = entries_of(Register.FACTOR, rows, Context(plant, registers.library, now_ns))
    return Json({"ids": await registers.book.add(Register.FACTOR, new, caller or who or "local", now_ns)})


@router.get("/certificates", response_model=EntryPage)
async def certificates(
    services: InServices,
    media: InMedia,
    state: State | None = None,
    generated: Annotated[str, Query(description="Year or month of generation.")] = "",
    cursor: Cursor = None,
    limit: Limit = 1000,
) -> Response:
    """Green certificates as they stand, by serial."""
    register = _registers(services).certificates
    found = await register.page(cursor or "", None if media else limit + 1, state, generated)
    rows = [_certificate_row(certificate) for certificate in found]
    if media:
        return table(media, "certificates", rows)
    more = len(rows) > limit
    return Json({"items": rows[:limit], "next": rows[limit - 1]["serial"] if more else None})


@router.post("/certificates", response_model=CertificatesTaken, openapi_extra=ROWS_BODY)
async def take_certificates(request: Request, services: InServices, caller: InWho, who: Who = "") -> Response:
    """What happened to certificates, in its order: issued, bought, sold, cancelled, expired. All or none."""
    rows = await rows_of(request)
    if not isinstance(rows, list):
        return rows
    taken = await _registers(services).certificates.take(
        certificate_events(rows), caller or who or "local", services.clock.now_ns()
    )
    return Json({"taken": taken})


@router.put("/evidence")
async def keep_evidence(
    request: Request,
    services: InServices,
    caller: InWho,
    name: Annotated[str, Query(min_length=1, max_length=200)],
    who: Who = "",
) -> Response:
    """Keep a file that backs an entry (the body as it is); answers its SHA-256, which the entry names."""
    content = await _body(request, LARGEST_BYTES)
    if content is None:
        return problem(413, f"a file of evidence has at most {LARGEST_BYTES:,} bytes")
    media = request.headers.get("content-type", "application/octet-stream").partition(";")[0]
    sha256 = await _registers(services).evidence.keep(
        Evidence(name, media, content), caller or who or "local", services.clock.now_ns()
    )
    return Json({"sha256": sha256, "name": name})


@router.get("/evidence/{sha256}")
async def evidence(services: InServices, sha256: str) -> Response:
    """A kept file, as a download."""
    found = await _registers(services).evidence.get(sha256)
    if found is None:
        return problem(404, f"no evidence of SHA-256 {sha256}")
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in found.name)
    headers = {"Content-Disposition": f'attachment; filename="{safe}"', "X-Content-Type-Options": "nosniff"}
    return Response(found.content, media_type="application/octet-stream", headers=headers)


def _registers(services: Services) -> Registers:
    return services.registers()


async def _restate(services: Services, entry: Entry) -> None:
    if entry.register is Register.FACTOR:
        await services.factors_changed(entry.start_ns, entry.end_ns)


def _entry_row(entry: Entry) -> dict[str, Any]:
    def time(at_ns: int | None) -> str | None:
        return None if at_ns is None else rfc3339(at_ns)

    return {
        "id": entry.id,
        "start": rfc3339(entry.start_ns),
        "end": rfc3339(entry.end_ns),
        **entry.body,
        "state": entry.state.value,
        "who": entry.who,
        "at": rfc3339(entry.at_ns),
        "approved_by": entry.approved_by,
        "approved_at": time(entry.approved_at_ns),
        "withdrawn_by": entry.withdrawn_by,
        "withdrawn_at": time(entry.withdrawn_at_ns),
        "why": entry.why,
    }


def _certificate_row(certificate: Certificate) -> dict[str, Any]:
    return {
        "serial": certificate.serial,
        "generated": certificate.generated,
        "technology": certificate.technology,
        "province": certificate.province,
        "state": certificate.state.value,
        "own": certificate.own,
        "changed_on": certificate.changed_on.isoformat(),
        "claim": certificate.claim,
    }


def page(rows: list[dict[str, Any]], limit: int) -> Response:
    more = len(rows) > limit
    return Json({"items": rows[:limit], "next": str(rows[limit - 1]["id"]) if more else None})


def table(media: str, name: str, rows: Sequence[Mapping[str, Any]]) -> Response:
    columns = list(dict.fromkeys(column for row in rows for column in row)) or list(EVENT_COLUMNS)

    def cell(value: object) -> object:
        return orjson.dumps(value).decode() if isinstance(value, dict | list) else value

    return download(
        media, name, lambda: [Sheet(name, columns, [[cell(row.get(c)) for c in columns] for row in rows])]
    )


def after(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not cursor.isdecimal() or len(cursor) > 18:
        raise BadRequest(f"cursor {cursor!r} is not one this server gave")
    return int(cursor)


async def _body(request: Request, most: int) -> bytes | None:
    """The body; None where it is longer."""
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > most:
            return None
    return bytes(content)


async def rows_of(request: Request) -> list[Mapping[str, Any]] | Response:
    """Rows of a JSON list, of one JSON object, or of a CSV."""
    media = request.headers.get("content-type", "").partition(";")[0].strip()
    if media not in ("application/json", "text/csv"):
        return problem(415, "rows come as application/json or text/csv")
    content = await _body(request, LONGEST_BODY_BYTES)
    if content is None:
        return problem(413, f"at most {LONGEST_BODY_BYTES:,} bytes in one request")
    if media == "text/csv":
        return list(rows_of_csv(content))
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as why:
        raise BadRequest(f"the body is no JSON: {why}") from None
    rows = body if isinstance(body, list) else [body]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise BadRequest(f"row {number} is no object: {row!r}"[:200])
    return list(rows)
