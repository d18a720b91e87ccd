"""Time as the engine keeps it, UTC nanoseconds, and as people write it, RFC 3339."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

NS_PER_S = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    def now_ns(self) -> int: ...


class SystemClock:
    def now_ns(self) -> int:
        return time.time_ns()


def datetime_of(time_ns: int) -> datetime:
    """An aware UTC datetime, to the microsecond."""
    seconds, rest_ns = divmod(time_ns, NS_PER_S)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest_ns // 1000)


def time_ns_of(moment: datetime) -> int:
    """UTC nanoseconds of an aware datetime.

    Raises:
        ValueError: The datetime has no zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"a time needs its zone, got {moment.isoformat()}")
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * NS_PER_S + delta.microseconds * 1000


def rfc3339(time_ns: int) -> str:
    """2026-10-01T00:00:00Z; a fraction only where there is one."""
    text = datetime_of(time_ns).isoformat().removesuffix("+00:00")
    return (text.rstrip("0") if "." in text else text) + "Z"


def parse_rfc3339(text: str) -> int:
    """UTC nanoseconds of an RFC 3339 time.

    Raises:
        ValueError: It is none, or has no zone.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"not an RFC 3339 time: {text!r}") from None
    return time_ns_of(moment)
