"""The HTTP side of a plant: one FastAPI app over the services it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import console, errors, prometheus
from api.deps import Services
from api.routes import (
    accounting,
    alerts,
    explain,
    inventory,
    meters,
    network,
    plant,
    registers,
    samples,
    seals,
    series,
    stream,
)
from api.security import Doorkeeper
from api.stream import Hub
from core.metrics import HTTP_REQUESTS, HTTP_SECONDS


def create_app(services: Services) -> FastAPI:
    """The app; its event stream runs from lifespan start to lifespan end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        publishing = asyncio.create_task(app.state.hub.run(), name="stream")
        yield
        publishing.cancel()
        with suppress(asyncio.CancelledError):
            await publishing

    app = FastAPI(
        title="ecmc",
        version="1",
        summary="Energy and carbon of a plant, from a register to a kilogram",
        lifespan=lifespan,
        docs_url=None,  # the interactive pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.services = services
    app.state.hub = Hub(services)
    errors.install(app)
    parts = (
        plant,
        samples,
        series,
        explain,
        seals,
        network,
        inventory,
        accounting,
        registers,
        meters,
        alerts,
        stream,
        prometheus,
    )
    for part in parts:
        app.include_router(part.router)
    console.mount(app)
    app.add_middleware(Doorkeeper, auth=services.auth)
    app.add_middleware(RequestCounter)
    return app


class RequestCounter:
    """Counts requests by the route that answered, so that made-up paths make no new series."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = asyncio.get_running_loop().time()

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, count)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            HTTP_REQUESTS.labels(scope["method"], route, str(status)).inc()
            if route != "/v1/stream":
                HTTP_SECONDS.labels(route).observe(asyncio.get_running_loop().time() - started)
