"""Every error as RFC 9457 problem+json: what was asked, what was wrong with it, what would be right."""

from __future__ import annotations

import logging
from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from core.alerts import UnknownAlarm
from core.errors import BadRequest, EcmcError, StoreUnavailable
from core.registers.book import FaultyRows, UnknownEntry

log = logging.getLogger(__name__)


class UnknownName(BadRequest):
    """A point, edge or node the plant does not have."""


def problem(status: int, detail: str, **more: object) -> Response:
    """A problem+json answer; `more` are members of their own."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **more,
    }
    return Response(orjson.dumps(body), status, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Turn what the routes raise into problems."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, why: RequestValidationError) -> Response:
        errors = [
            {"where": ".".join(str(part) for part in fault["loc"]), "reason": fault["msg"]}
            for fault in why.errors()
        ]
        detail = "; ".join(f"{fault['where']}: {fault['reason']}" for fault in errors)
        return problem(422, detail, errors=errors)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, why: HTTPException) -> Response:
        answer = problem(why.status_code, str(why.detail))
        answer.headers.update(why.headers or {})
        return answer

    @app.exception_handler(EcmcError)
    async def ours(request: Request, why: EcmcError) -> Response:
        if isinstance(why, UnknownName | UnknownAlarm | UnknownEntry):
            return problem(404, str(why))
        if isinstance(why, FaultyRows):
            rows = [{"row": f.row, "field": f.field, "reason": f.reason} for f in why.faults]
            return problem(422, str(why), errors=rows)
        if isinstance(why, BadRequest):
            return problem(422, str(why))
        if isinstance(why, StoreUnavailable):
            answer = problem(503, str(why))
            answer.headers["Retry-After"] = "2"
            return answer
        log.error("request failed", extra={"path": request.url.path, "why": str(why)})
        return problem(500, str(why))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, why: Exception) -> Response:
        log.error("request failed", exc_info=why, extra={"path": request.url.path})
        return problem(500, "something went wrong here; the log says what")
