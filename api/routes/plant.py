"""The plant as it stands: what it is made of, how its devices and parts are doing, what flows now."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.responses import Response

from api.answer import DeviceRow, HealthRow, Json, LiveAnswer, NetworkAnswer, PlantAnswer
from api.deps import InPlant, InServices
from api.errors import problem
from api.security import COOKIE
from api.stream import live_body
from api.window import day_start_ns
from core.clock import rfc3339
from core.metrics import DEVICE_COUNT, DEVICE_UP
from core.plant.model import FormulaMeter, Label, Plant, PointMeter

router = APIRouter(tags=["plant"])


@router.get("/v1/health", response_model=HealthRow)
async def health(services: InServices) -> Json:
    """`ok` when every part is; which part is not, and why."""
    parts = {
        name: {"status": part.status.value, "detail": part.detail}
        for name, part in services.health.parts.items()
    }
    return Json({"status": services.health.status.value, "parts": parts})


@router.get("/v1/plant", response_model=PlantAnswer)
async def plant_itself(services: InServices, plant: InPlant) -> Json:
    """Name, zone, method sets, and when today began there."""
    now_ns = services.clock.now_ns()
    return Json(
        {
            "plant": plant.id,
            "name": _label(plant.name, plant.id),
            "zone": plant.zone.key,
            "region": plant.region,
            "base_interval_s": plant.base_interval_s,
            "method_sets": plant.method_sets,
            "time": rfc3339(now_ns),
            "day_start": rfc3339(day_start_ns(plant, now_ns)),
            "boot": services.boot,
        }
    )


@router.get("/v1/network", response_model=NetworkAnswer)
async def network(plant: InPlant) -> Json:
    """Nodes and edges of the energy network."""
    return Json(
        {
            "nodes": [
                {
                    "node": node.id,
                    "kind": node.kind.value,
                    "carrier": node.carrier,
                    "origin": node.origin.value if node.origin else None,
                    "area": node.area,
                    "name": _label(node.name, node.id),
                }
                for node in plant.nodes
            ],
            "edges": _edges(plant),
        }
    )


@router.get("/v1/devices", response_model=list[DeviceRow])
async def devices(services: InServices, plant: InPlant) -> Json:
    """Every device and whether it answers; `up` is null where no collector in this process reads it."""
    states = services.devices()
    rows = []
    for device in plant.devices:
        connection = plant.connection_by_id.get(device.connection or "")
        state = states.get(device.id)
        rows.append(
            {
                "device": device.id,
                "name": _label(device.name, device.id),
                "connection": device.connection,
                "protocol": connection.protocol.value if connection else None,
                "profile": device.profile,
                "area": device.area,
                "up": state.up if state else None,
                "since": rfc3339(state.since_ns) if state else None,
                "detail": state.detail if state else "",
                "counters": dict(state.counters) if state else {},
                "warning": state.warning if state else "",
                "identity": dict(state.identity) if state else {},
            }
        )
    return Json(rows)


@router.get("/v1/live", response_model=LiveAnswer)
async def live(services: InServices) -> Response:
    """Power and carbon rate per node now: an estimate, never part of a report."""
    picture = services.live()
    if picture is None:
        return problem(503, "nothing has been measured yet")
    return Json(live_body(picture))


@router.get("/metrics", response_class=Response)
async def metrics(services: InServices) -> Response:
    """ecmc's own metrics, for Prometheus."""
    for device, state in services.devices().items():
        DEVICE_UP.labels(device).set(state.up)
        for counter, total in state.counters.items():
            DEVICE_COUNT.labels(device, counter).set(total)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


class Key(BaseModel):
    key: str


@router.post("/v1/session", status_code=204)
async def session(services: InServices, given: Key) -> Response:
    """Trade a key for a cookie: a browser's event stream cannot send a header."""
    if services.auth is not None and services.auth.who(given.key) is None:
        return problem(401, "this is no key of this plant")
    answer = Response(status_code=204)
    answer.set_cookie(COOKIE, given.key, max_age=30 * 86_400, httponly=True, samesite="strict")
    return answer


def _edges(plant: Plant) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for edge in plant.edges:
        meter = edge.meter
        kind = "point" if isinstance(meter, PointMeter) else "remainder"
        rows.append(
            {
                "edge": edge.id,
                "from": edge.source,
                "to": edge.target,
                "carrier": edge.carrier,
                "meter": "formula" if isinstance(meter, FormulaMeter) else kind,
                "point": meter.point if isinstance(meter, PointMeter) else None,
                "power_point": meter.power_point if isinstance(meter, PointMeter) else None,
            }
        )
    return rows


def _label(label: Label | None, fallback: str) -> dict[str, str]:
    return {"zh": label.zh, "en": label.en} if label else {"zh": fallback, "en": fallback}
