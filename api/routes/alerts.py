"""Alarms and what people do about them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from api.answer import AlertRow, Json
from api.deps import InServices, InWho

router = APIRouter(prefix="/v1/alerts", tags=["alarms"])


class Wanted(StrEnum):
    ACTIVE = "active"  # the condition holds, acknowledged or not
    ACTIVE_UNACK = "active-unack"
    ACTIVE_ACK = "active-ack"
    RETURNED_UNACK = "returned-unack"
    SHELVED = "shelved"
    NORMAL = "normal"
    ALL = "all"


class Act(BaseModel):
    """Who does it and why; with keys, the key's name is who."""

    who: str = Field(default="", max_length=200)
    note: str = Field(default="", max_length=2000)


class Shelving(Act):
    for_s: float = Field(ge=0, description="Seconds, at most a day; 0 takes it off the shelf.")


@router.get("", response_model=list[AlertRow])
async def alerts(
    services: InServices,
    state: Annotated[Wanted | None, Query(description="Default: all that are not normal.")] = None,
) -> Json:
    """Alarms, the gravest first."""
    alarms = services.alarms
    if state is None:
        return Json(alarms.active())
    if state in (Wanted.ALL, Wanted.NORMAL):
        return Json([row for row in alarms.all() if state is Wanted.ALL or row["state"] == state])
    wanted = ("active-unack", "active-ack") if state is Wanted.ACTIVE else (state.value,)
    return Json([row for row in alarms.active() if row["state"] in wanted])


@router.post("/{alert:path}/ack", response_model=AlertRow)
async def acknowledge(services: InServices, caller: InWho, alert: str, act: Act | None = None) -> Json:
    """Somebody has seen the alarm."""
    act = act or Act()
    return Json(await services.alarms.acknowledge(alert, caller or act.who or "local", act.note))


@router.post("/{alert:path}/shelve", response_model=AlertRow)
async def shelve(services: InServices, caller: InWho, alert: str, act: Shelving) -> Json:
    """Take the alarm off the list for a while; it goes on being evaluated."""
    who = caller or act.who or "local"
    return Json(await services.alarms.shelve(alert, who, act.for_s, act.note))
