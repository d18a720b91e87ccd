"""`retention` of plant.yaml: how long raw samples stay, and how much disk they may take."""

from __future__ import annotations

from core.plant.document import Entry
from core.plant.model import Retention

_LONGEST_DAYS = 36_600


def read_retention(entry: Entry) -> Retention:
    usual = Retention()
    read = Retention(
        feeding_days=entry.integer("feeding_days", usual.feeding_days, least=1, most=_LONGEST_DAYS),
        other_days=entry.integer("other_days", usual.other_days, least=1, most=_LONGEST_DAYS),
        disk_gb=entry.number("disk_gb", None, above=0),
        compress_after_days=entry.integer(
            "compress_after_days", usual.compress_after_days, least=1, most=_LONGEST_DAYS
        ),
    )
    if read.other_days > read.feeding_days:
        entry.fault(
            "other_days",
            f"other_days is {read.other_days}, more than feeding_days {read.feeding_days}: what meters an edge "
            "stays at least as long as the rest",
        )
    entry.finish()
    return read
