"""What happened to meters, as people write it down: replaced, reset, transformer ratio changed.

An event re-states everything its register touches. It is knowledge with a date
of its own: a figure computed as of an earlier day does not know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from core.clock import datetime_of, time_ns_of
from core.energy.register import EventKind, MeterEvent
from core.errors import BadRequest
from core.plant.model import Plant, PointMeter, Role
from core.registers.book import UnknownEntry
from core.store.refusal import refusals


@dataclass(frozen=True, slots=True)
class MeterEntry:
    """An event as the register holds it; `meter` is a point, or a device with one register."""

    id: int
    meter: str
    event: MeterEvent
    who: str
    why: str
    at_ns: int
    withdrawn_by: str | None = None
    withdrawn_at_ns: int | None = None
    withdrawn_why: str | None = None


def checked_event(meter: str, event: MeterEvent, plant: Plant, now_ns: int) -> None:
    """Refuse what cannot be meant.

    Raises:
        BadRequest: No such meter, a device whose registers the event does not tell apart, a future time, a
            ratio that is missing, none, or not asked for.
    """
    points = points_of(meter, plant)
    if not points:
        raise BadRequest(
            f"meter: no register of an edge is called {meter!r}, nor has a device of that name one"
        )
    readings = event.final_reading is not None or event.first_reading is not None
    if readings and len(points) > 1:
        raise BadRequest(
            f"meter: {meter} has the registers {', '.join(points)}: a reading is of one of them, name it"
        )
    if event.time_ns > now_ns:
        raise BadRequest("time: the event lies in the future")
    if event.kind is EventKind.RATIO and event.ratio is None:
        raise BadRequest(
            "ratio: a change of ratio says what a unit is worth from then on, against the plant folder"
        )
    if event.ratio is not None and not event.ratio > 0:
        raise BadRequest(f"ratio: {event.ratio}, wanted more than 0")
    if event.kind is EventKind.RATIO and readings:
        raise BadRequest("final_reading: a change of ratio leaves the register as it is")


def points_of(meter: str, plant: Plant) -> list[str]:
    """Points of registers that feed edges and are called so, or belong to the device that is."""
    registers = [
        edge.meter.point
        for edge in plant.edges
        if isinstance(edge.meter, PointMeter) and edge.meter.role is Role.REGISTER
    ]
    return list(dict.fromkeys(p for p in registers if meter in (p, plant.point_by_id[p].device)))


class MeterEvents:
    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    async def add(self, events: Sequence[tuple[str, MeterEvent, str]], who: str, at_ns: int) -> list[int]:
        """Write down (meter, event, why), all or none; their numbers."""
        with refusals():
            async with self._pool.acquire() as connection, connection.transaction():
                return [
                    await connection.fetchval(
                        "INSERT INTO ecmc.meter_event"
                        " (device, time, kind, final_reading, first_reading, ratio, who, why, at)"
                        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING id",
                        meter,
                        datetime_of(event.time_ns),
                        event.kind.value,
                        event.final_reading,
                        event.first_reading,
                        event.ratio,
                        who,
                        why,
                        datetime_of(at_ns),
                    )
                    for meter, event, why in events
                ]

    async def withdraw(self, number: int, who: str, why: str, at_ns: int) -> MeterEntry:
        """Take an event back.

        Raises:
            UnknownEntry: There is none of that number.
            BadRequest: It is withdrawn already, or no reason is given.
        """
        if not why.strip():
            raise BadRequest(f"meter event {number}: a withdrawal gives its reason in why")
        with refusals():
            row = await self._pool.fetchrow(
                "UPDATE ecmc.meter_event SET withdrawn_by = $2, withdrawn_at = $3, withdrawn_why = $4"
                " WHERE id = $1 AND withdrawn_at IS NULL RETURNING *",
                number,
                who,
                datetime_of(at_ns),
                why,
            )
            if row is None:
                found = await self._pool.fetchval("SELECT id FROM ecmc.meter_event WHERE id = $1", number)
                if found is None:
                    raise UnknownEntry(f"no meter event {number}")
                raise BadRequest(f"meter event {number} is withdrawn already")
        return _entry(row)

    async def page(
        self,
        meters: Sequence[str] | None,
        start_ns: int | None,
        end_ns: int | None,
        after: int,
        limit: int | None,
    ) -> list[MeterEntry]:
        """Events by number, those after `after`, withdrawn ones too."""
        with refusals():
            rows = await self._pool.fetch(
                "SELECT * FROM ecmc.meter_event WHERE id > $1 AND ($2::text[] IS NULL OR device = ANY($2))"
                " AND ($3::timestamptz IS NULL OR time >= $3) AND ($4::timestamptz IS NULL OR time < $4)"
                " ORDER BY id LIMIT $5",
                after,
                None if meters is None else list(meters),
                None if start_ns is None else datetime_of(start_ns),
                None if end_ns is None else datetime_of(end_ns),
                limit,
            )
        return [_entry(row) for row in rows]

    async def known(self) -> tuple[tuple[str, MeterEvent], ...]:
        """Every event with the times between which it was known, for the engine."""
        return tuple((entry.meter, entry.event) for entry in await self.page(None, None, None, 0, None))


def _entry(row: asyncpg.Record | Mapping[str, Any]) -> MeterEntry:
    at_ns = time_ns_of(row["at"])
    withdrawn_ns = None if row["withdrawn_at"] is None else time_ns_of(row["withdrawn_at"])
    event = MeterEvent(
        time_ns_of(row["time"]),
        EventKind(row["kind"]),
        row["final_reading"],
        row["first_reading"],
        row["ratio"],
        at_ns,
        withdrawn_ns,
    )
    return MeterEntry(
        row["id"],
        row["device"],
        event,
        row["who"],
        row["why"],
        at_ns,
        row["withdrawn_by"],
        withdrawn_ns,
        row["withdrawn_why"],
    )
