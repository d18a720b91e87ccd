"""What a request asks about: a half-open range of time, a bucket, names the plant must know."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, cast
from zoneinfo import ZoneInfo

from fastapi import Depends, Query

from api.deps import InPlant
from api.errors import UnknownName
from core.clock import NS_PER_S, datetime_of, parse_rfc3339, rfc3339, time_ns_of
from core.errors import BadRequest
from core.plant.model import Plant, Shift
from core.registers.form import period_ns
from core.samples import Times
from core.store.seam import Bucket

LONGEST_ANSWER_ROWS: Final = 200_000

SHIFT: Final[Bucket] = "shift"
BUCKET_S: Final = {
    "1m": 60,
    "5m": 300,
    "15m": 900,
    "30m": 1800,
    "1h": 3600,
    "1d": 86_400,
    "1mo": 28 * 86_400,
    "1y": 365 * 86_400,
}


@dataclass(frozen=True, slots=True)
class Span:
    """[start_ns, end_ns)."""

    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class ShiftNames:
    """Which shift is on at a time."""

    zone: ZoneInfo
    shifts: tuple[Shift, ...]

    def of(self, time_ns: Times) -> list[str]:
        begins = [shift.begin_min for shift in self.shifts]
        here = [datetime_of(at).astimezone(self.zone) for at in time_ns.tolist()]
        # Before the first of a day the last of the day before is on.
        return [self.shifts[bisect_right(begins, 60 * at.hour + at.minute) - 1].id for at in here]


@dataclass(frozen=True, slots=True)
class BucketedSpan:
    """A span and the bucket its answer comes in; `guard` before asking."""

    start_ns: int
    end_ns: int
    bucket: Bucket
    bucket_s: int
    shifts: ShiftNames | None = None  # where the buckets are shifts

    def guard(self, series: int) -> None:
        """Raises BadRequest where the answer would be longer than anybody reads."""
        rows = self._rows(series, self.bucket_s)
        if rows <= LONGEST_ANSWER_ROWS:
            return
        longer = [
            name
            for name, seconds in BUCKET_S.items()
            if seconds > self.bucket_s and self._rows(series, seconds) <= LONGEST_ANSWER_ROWS
        ]
        way_out = f"ask for bucket={longer[0]} or a shorter range" if longer else "ask for a shorter range"
        raise BadRequest(
            f"this would be {rows:,} rows, at most {LONGEST_ANSWER_ROWS:,} are answered: {way_out}"
        )

    def _rows(self, series: int, bucket_s: int) -> int:
        return series * -(-(self.end_ns - self.start_ns) // (bucket_s * NS_PER_S))


def moment_ns(name: str, text: str) -> int:
    """UTC nanoseconds of a time in a query; a '+' that arrived as a blank is put back."""
    try:
        return parse_rfc3339(re.sub(r" (\d\d:\d\d)$", r"+\1", text))
    except ValueError as why:
        raise BadRequest(f"{name}: {why}") from None


def _span(
    start: Annotated[str, Query(description="RFC 3339; inside the range.")],
    end: Annotated[str, Query(description="RFC 3339; outside the range.")],
) -> Span:
    return span_of(start, end)


def span_of(start: str, end: str) -> Span:
    """[start, end) of two times as they are asked for; BadRequest where there is nothing between them."""
    span = Span(moment_ns("start", start), moment_ns("end", end))
    if span.start_ns >= span.end_ns:
        raise BadRequest(
            f"the range is empty: start {rfc3339(span.start_ns)} is not before end {rfc3339(span.end_ns)}"
        )
    return span


def _bucketed(
    plant: InPlant,
    span: InSpan,
    bucket: Annotated[
        str | None,
        Query(
            description=f"{', '.join(BUCKET_S)}, {SHIFT}; default the base interval. Shifts, days and longer by the plant's zone."
        ),
    ] = None,
) -> BucketedSpan:
    if bucket == SHIFT:
        if not plant.shifts:
            raise BadRequest("the plant names no shifts: plant.yaml says when they begin, under shifts")
        names = ShiftNames(plant.zone, plant.shifts)
        return BucketedSpan(span.start_ns, span.end_ns, SHIFT, 86_400 // len(plant.shifts), names)
    name, seconds = bucket_of(bucket, plant.base_interval_s)
    return BucketedSpan(span.start_ns, span.end_ns, name, seconds)


InSpan = Annotated[Span, Depends(_span)]
InBucketedSpan = Annotated[BucketedSpan, Depends(_bucketed)]


def bucket_of(text: str | None, base_interval_s: int) -> tuple[Bucket, int]:
    """The bucket and its (shortest) seconds; where none is asked for, the base interval.

    A base interval that is no bucket itself, say 10 s, is answered by the shortest bucket it fills.
    """
    fitting = [name for name, seconds in BUCKET_S.items() if seconds % base_interval_s == 0]
    if text is None or text == f"{BUCKET_S[fitting[0]]}s":
        text = fitting[0]
    seconds = BUCKET_S.get(text)
    if seconds is None:
        raise BadRequest(f"bucket {text!r} is not one of {', '.join(BUCKET_S)}")
    if seconds < base_interval_s:
        raise BadRequest(f"bucket {text} is shorter than the plant's base interval of {base_interval_s} s")
    if text not in fitting:
        raise BadRequest(f"bucket {text} is no multiple of the plant's base interval of {base_interval_s} s")
    return cast("Bucket", text), seconds


def known(what: str, asked: Sequence[str], names: Collection[str]) -> list[str]:
    """The names asked for, all of them where none was; UnknownName where the plant lacks one."""
    for name in asked:
        if name not in names:
            raise UnknownName(f"the plant has no {what} {name!r}")
    return list(dict.fromkeys(asked)) or list(names)


def period_span(plant: Plant, period: str) -> Span:
    """The year, month or day `2026`, `2026-10`, `2026-10-05` in the plant's zone."""
    return Span(*period_ns(period, plant.zone))


def day_start_ns(plant: Plant, now_ns: int) -> int:
    """The last midnight in the plant's zone."""
    here = datetime_of(now_ns).astimezone(plant.zone)
    return time_ns_of(datetime(here.year, here.month, here.day, tzinfo=plant.zone))
