"""The certificate register: which green certificates a plant holds, and that none counts twice.

A certificate stands for 1 MWh of one month's generation and has one life:
issued or bought, then sold, cancelled or expired, never anything after that.
What surprises: it counts for the year its power was *generated*, not for the
year it was bought or cancelled, and only once it is cancelled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum

from core.carbon.sheet import Sheet
from core.errors import BadRequest

KWH_PER_CERTIFICATE = 1000.0


class State(StrEnum):
    ISSUED = "issued"  # of own generation
    BOUGHT = "bought"
    SOLD = "sold"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


_NEXT = {
    None: frozenset({State.ISSUED, State.BOUGHT}),
    State.ISSUED: frozenset({State.SOLD, State.CANCELLED, State.EXPIRED}),
    State.BOUGHT: frozenset({State.SOLD, State.CANCELLED, State.EXPIRED}),
    State.SOLD: frozenset[State](),
    State.CANCELLED: frozenset[State](),
    State.EXPIRED: frozenset[State](),
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate as the register holds it.

    Attributes:
        serial: The registry's number, unique.
        generated: Month of generation, `2026-03`.
        own: Issued for the plant's own generation.
        claim: What it was cancelled for; None until it is.
    """

    serial: str
    generated: str
    technology: str
    province: str
    state: State
    own: bool
    changed_on: date
    claim: str | None = None

    @property
    def vintage(self) -> int:
        """The year it counts for."""
        return int(self.generated[:4])


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a certificate; the first event of a serial says what it is."""

    serial: str
    state: State
    on: date
    generated: str = ""
    technology: str = ""
    province: str = ""
    claim: str | None = None


EVENT_COLUMNS = ("serial", "state", "on", "generated", "technology", "province", "claim")


def read_events(content: bytes, file: str) -> tuple[Event, ...]:
    """Events of a CSV with the columns EVENT_COLUMNS, in the file's order; the first three are required.

    Raises:
        FaultyInput: Every faulty cell by line and column.
    """
    sheet = Sheet.read(content, file)
    sheet.require(EVENT_COLUMNS[:3])
    events = []
    for record in sheet.records():
        serial, _, _ = (record.text(column) for column in EVENT_COLUMNS[:3])
        state = record.parsed("state", State, f"one of {', '.join(State)}")
        on = record.parsed("on", date.fromisoformat, "a date like 2026-03-31")
        if serial and state is not None and on is not None:
            generated, technology, province, claim = (
                record.optional(name) or "" for name in EVENT_COLUMNS[3:]
            )
            events.append(Event(serial, state, on, generated, technology, province, claim or None))
    sheet.raise_faults()
    return tuple(events)


def register(events: Iterable[Event], before: Iterable[Certificate] = ()) -> dict[str, Certificate]:
    """The register after the events, by serial. All or nothing: a wrong event changes nothing.

    Raises:
        BadRequest: An event that cannot follow: a serial twice, sold or cancelled again, going back in time,
            or a cancellation that names no claim.
    """
    held = {certificate.serial: certificate for certificate in before}
    for event in events:
        held[event.serial] = _after(held.get(event.serial), event)
    return held


def cancelled_kwh(certificates: Iterable[Certificate], year: int) -> float:
    """What counts as non-fossil electricity of that year: cancelled, and generated in it."""
    counting = sum(1 for c in certificates if c.state is State.CANCELLED and c.vintage == year)
    return counting * KWH_PER_CERTIFICATE


def own_sold_kwh(certificates: Iterable[Certificate], year: int) -> float:
    """Own generation of that year whose certificates were sold: its use here gives up the claim."""
    sold = sum(1 for c in certificates if c.own and c.state is State.SOLD and c.vintage == year)
    return sold * KWH_PER_CERTIFICATE


def _after(certificate: Certificate | None, event: Event) -> Certificate:
    state = None if certificate is None else certificate.state
    if event.state not in _NEXT[state]:
        raise BadRequest(
            f"certificate {event.serial} is {state or 'not in the register'}: it cannot be {event.state}"
        )
    if event.state is State.CANCELLED and not event.claim:
        raise BadRequest(f"certificate {event.serial}: a cancellation names the claim it backs")
    if certificate is None:
        _month(event)
        return Certificate(
            serial=event.serial,
            generated=event.generated,
            technology=event.technology,
            province=event.province,
            state=event.state,
            own=event.state is State.ISSUED,
            changed_on=event.on,
        )
    if event.on < certificate.changed_on:
        raise BadRequest(
            f"certificate {event.serial} was {certificate.state} on {certificate.changed_on}: "
            f"it cannot be {event.state} on {event.on}"
        )
    return replace(certificate, state=event.state, changed_on=event.on, claim=event.claim)


def _month(event: Event) -> None:
    try:
        first = date.fromisoformat(f"{event.generated}-01")
    except ValueError:
        raise BadRequest(
            f"certificate {event.serial}: generated {event.generated!r}, wanted a month like 2026-03"
        ) from None
    if first > event.on:
        raise BadRequest(
            f"certificate {event.serial}: generated {event.generated}, after it was {event.state}"
        )
