"""The certificate register: one life a certificate, counted once, in the year of generation."""

from __future__ import annotations

from datetime import date

import pytest

from core.carbon.certificates import Event, State, cancelled_kwh, own_sold_kwh, read_events, register
from core.errors import BadRequest, FaultyInput

BOUGHT = Event("gec-1", State.BOUGHT, date(2027, 1, 10), "2026-11", "wind", "CN-NM")
CANCELLED = Event("gec-1", State.CANCELLED, date(2027, 1, 20), claim="2026 scope 2")


def test_a_cancelled_certificate_counts_in_the_year_of_generation() -> None:
    held = register([BOUGHT, CANCELLED]).values()

    assert cancelled_kwh(held, 2026) == 1000
    assert cancelled_kwh(held, 2027) == 0


def test_a_certificate_that_is_only_held_counts_for_nothing() -> None:
    assert cancelled_kwh(register([BOUGHT]).values(), 2026) == 0


@pytest.mark.parametrize("again", [State.CANCELLED, State.SOLD, State.BOUGHT, State.EXPIRED])
def test_a_cancelled_certificate_has_no_further_life(again: State) -> None:
    event = Event("gec-1", again, date(2027, 2, 1), "2026-11", claim="another")

    with pytest.raises(BadRequest, match=f"gec-1 is cancelled: it cannot be {again}"):
        register([BOUGHT, CANCELLED, event])


def test_a_serial_cannot_enter_twice() -> None:
    with pytest.raises(BadRequest, match="gec-1 is bought: it cannot be bought"):
        register([BOUGHT, BOUGHT])


def test_a_cancellation_names_its_claim() -> None:
    with pytest.raises(BadRequest, match="names the claim"):
        register([BOUGHT, Event("gec-1", State.CANCELLED, date(2027, 1, 20))])


def test_a_certificate_nobody_holds_cannot_be_cancelled() -> None:
    with pytest.raises(BadRequest, match="gec-1 is not in the register"):
        register([CANCELLED])


def test_a_sold_certificate_of_own_generation_gives_up_the_claim() -> None:
    issued = Event("gec-2", State.ISSUED, date(2026, 7, 1), "2026-06", "solar", "CN-CQ")
    held = register([issued, Event("gec-2", State.SOLD, date(2026, 8, 1)), BOUGHT]).values()

    assert own_sold_kwh(held, 2026) == 1000


def test_time_does_not_run_backwards_for_a_certificate() -> None:
    with pytest.raises(BadRequest, match="on 2027-01-10"):
        register([BOUGHT, Event("gec-1", State.SOLD, date(2027, 1, 9))])


@pytest.mark.parametrize(
    ("generated", "reason"), [("2026", "wanted a month"), ("2027-03", "after it was bought")]
)
def test_a_vintage_that_cannot_be_is_refused(generated: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        register([Event("gec-3", State.BOUGHT, date(2027, 1, 10), generated)])


def test_a_wrong_event_changes_nothing() -> None:
    before = register([BOUGHT])

    with pytest.raises(BadRequest):
        register([CANCELLED, CANCELLED], before.values())

    assert before["gec-1"].state is State.BOUGHT


def test_a_registers_export_is_read_from_csv() -> None:
    table = "serial,state,on,generated,claim\ngec-9,bought,2027-01-10,2026-11,\ngec-9,cancelled,2027-01-20,,2026 scope 2\n"

    held = register(read_events(table.encode(), "gec.csv")).values()

    assert cancelled_kwh(held, 2026) == 1000


def test_every_faulty_cell_of_a_certificate_file_is_named() -> None:
    table = "serial,state,on\n,bought,2027-01-10\ngec-1,lost,2027-01-10\ngec-2,bought,10.1.2027\n"

    with pytest.raises(FaultyInput) as caught:
        read_events(table.encode(), "gec.csv")

    assert [(fault.line, fault.column) for fault in caught.value.faults] == [(2, 1), (3, 2), (4, 3)]
