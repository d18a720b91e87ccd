"""`tariff` of a source: what a kWh costs, by the hour of the day in the plant's zone.

`tariff: {currency: CNY, price: 0.62, periods: [{from: "08:00", to: "11:00", price: 1.05, months: [7, 8], days: workdays}]}`;
of several periods that hold at a time the first counts, where none does, `price`.
"""

from __future__ import annotations

import re

from core.plant.document import Entry
from core.plant.model import Tariff, TariffPeriod

_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00")
_DAYS = {"all": tuple(range(7)), "workdays": (0, 1, 2, 3, 4), "weekend": (5, 6)}


def read_tariff(entry: Entry) -> Tariff | None:
    given = entry.child("tariff")
    if given is None:
        return None
    currency = given.text("currency", required=True)
    price = given.number("price", 0.0, required=True)
    periods = tuple(_period(one) for one in given.children("periods", "period", id_key="from"))
    given.finish()
    return Tariff(currency, price, periods)


def _period(one: Entry) -> TariffPeriod:
    begin, end = read_minute(one, "from"), read_minute(one, "to")
    months = tuple(one.numbers("months")) or tuple(range(1, 13))
    if any(not 1 <= month <= 12 for month in months):
        one.fault("months", f"months are {list(months)}, wanted 1 to 12")
    days = one.text("days", "all", choices=list(_DAYS))
    price = one.number("price", 0.0, required=True)
    one.finish()
    if begin == end:
        one.fault("to", "a period that ends where it begins holds never")
    return TariffPeriod(begin, end, price, months, _DAYS.get(days, _DAYS["all"]))


def read_minute(one: Entry, key: str) -> int:
    """Minutes after midnight of a time of day like "08:30"."""
    text = one.text(key, required=True)
    if not _TIME.fullmatch(text):
        one.fault(key, f'{key} is {text!r}, wanted a time of day like "08:30"')
        return 0
    return 60 * int(text[:2]) + int(text[3:])
