"""`shifts` of plant.yaml: when each begins by the plant's clock; it lasts until the next one.

`shifts: [{id: early, start: "06:00"}, {id: late, start: "14:00"}, {id: night, start: "22:00"}]`
"""

from __future__ import annotations

from core.plant.document import Entry
from core.plant.model import Shift
from core.plant.tariff import read_minute


def read_shifts(entry: Entry, base_interval_s: int) -> tuple[Shift, ...]:
    """In the order of the day; each begins with a base interval, no two at once."""
    shifts: dict[str, Shift] = {}
    begins: set[int] = set()
    for one in entry.children("shifts", "shift"):
        shift = Shift(one.text("id", required=True), read_minute(one, "start"), one.label("name"))
        if shift.id in shifts:
            one.fault("id", f"id {shift.id!r} stands twice")
        if shift.begin_min in begins or shift.begin_min == 24 * 60:
            one.fault(
                "start",
                f"start is {one.text('start')!r}, wanted another time than the other shifts, before 24:00",
            )
        if shift.begin_min * 60 % base_interval_s:
            one.fault(
                "start", f"start is {one.text('start')!r}, no whole base interval of {base_interval_s} s"
            )
        one.finish()
        shifts[shift.id] = shift
        begins.add(shift.begin_min)
    if len(shifts) == 1:
        entry.fault("shifts", "one shift is the whole day: wanted two or more, or none")
    return tuple(sorted(shifts.values(), key=lambda shift: shift.begin_min))
