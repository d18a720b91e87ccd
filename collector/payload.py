"""Numbers and times out of JSON payloads as gateways really send them.

A path names keys from the root, `$.ENERGY.Power`; `[0]` takes one element,
`[]` all of them, `*` every value of an object, `[addr=0012]` the elements whose
key has that value, `[addr=*]` those that have the key at all, `[online!=0]` those
whose key has not that value or is missing, `['Meter 1']` a key with signs in it. A key asked of a list
is asked of each of its elements. The time that belongs to a value is looked
for in the objects passed on the way to it, so that a list of records with
their own times gives each value its own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import orjson

from core import quality
from core.clock import NS_PER_S, time_ns_of

USUAL_TIMES: Final = (
    "timestamp_ms", "timestamp", "ts", "time", "Time", "dateTime", "datetime", "DateTime", "Timestamp",
)  # fmt: skip
NO_VALUE: Final = frozenset({"", "-", "--", "---", "null", "none", "n/a", "nan"})

_STEP = re.compile(
    r"\.?(?:(?P<any>\*)|\['(?P<quoted>[^']+)'\]|\[(?P<index>\d+)\]|(?P<all>\[\*?\])"
    r"|\[(?P<where>[^=!\]]+)(?P<unequal>!?)=(?P<equal>[^\]]*)\]|(?P<key>[^.\[\]*]+))"
)


class _All:
    """Every element of a list or every value of an object."""


@dataclass(frozen=True, slots=True)
class _Where:
    key: str
    equal: str
    unequal: bool

    def holds(self, element: dict[str, Any]) -> bool:
        if self.equal == "*":
            return self.key in element
        return (str(element.get(self.key)) == self.equal) != self.unequal


_ALL = _All()
Step = str | int | _All | _Where


@dataclass(frozen=True, slots=True)
class Match:
    """A value found, and the objects passed on the way to it, outermost first."""

    value: Any
    trail: tuple[dict[str, Any], ...]
    one_of_many: bool


class JsonPath:
    """A path compiled once.

    Raises:
        ValueError: The text is no path.
    """

    def __init__(self, text: str) -> None:
        rest = text.removeprefix("$")
        steps: list[Step] = []
        at = last_at = 0
        while at < len(rest):
            last_at = len(text) - len(rest) + at
            match = _STEP.match(rest, at)
            if match is None or match.end() == at:
                raise ValueError(f"not a path: {text!r} at {rest[at:]!r}")
            at = match.end()
            if match["any"] or match["all"]:
                steps.append(_ALL)
            elif match["index"]:
                steps.append(int(match["index"]))
            elif match["where"]:
                steps.append(_Where(match["where"], match["equal"].strip("'\""), bool(match["unequal"])))
            else:
                steps.append(match["quoted"] or match["key"])
        self._steps = tuple(steps)
        self._keys = tuple(step for step in steps if isinstance(step, str))
        self._plain = len(self._keys) == len(steps)
        self._parent = text[:last_at]

    @property
    def place(self) -> tuple[str, str] | None:
        """The path of the object that holds the value, and its key there; None unless all steps are keys."""
        return (self._parent, self._keys[-1]) if self._plain and self._keys else None

    def find(self, document: Any) -> list[Match]:
        """Every value the path leads to; a list at its end counts as its elements."""
        if self._plain:  # nearly all of them; everything else takes the long way
            value, trail = document, []
            for key in self._keys:
                if type(value) is not dict:
                    break
                trail.append(value)
                if key not in value:
                    return []
                value = value[key]
            else:
                if type(value) is not list:
                    return [Match(value, tuple(trail), False)]
        return list(_walk(document, self._steps, (), False))


def _walk(
    value: Any, steps: tuple[Step, ...], trail: tuple[dict[str, Any], ...], one_of_many: bool
) -> Iterator[Match]:
    if not steps:
        if isinstance(value, list):
            for element in value:
                yield from _walk(element, steps, trail, True)
        else:
            yield Match(value, trail, one_of_many)
        return
    step, rest = steps[0], steps[1:]
    if isinstance(value, dict):
        passed = (*trail, value)
        if isinstance(step, str):
            if step in value:
                yield from _walk(value[step], rest, passed, one_of_many)
        elif isinstance(step, _All):
            for inner in value.values():
                yield from _walk(inner, rest, passed, True)
        elif isinstance(step, _Where) and step.holds(value):
            yield from _walk(value, rest, trail, one_of_many)
    elif isinstance(value, list):
        if isinstance(step, int):
            if step < len(value):
                yield from _walk(value[step], rest, trail, one_of_many)
        else:
            inner_steps = rest if isinstance(step, _All) else steps
            for element in value:
                yield from _walk(element, inner_steps, trail, True)


def document_of(payload: bytes) -> Any:
    """The JSON document of a payload; NaN and Infinity are let through, as some gateways write them.

    Raises:
        ValueError: It is none.
    """
    try:
        return orjson.loads(payload)
    except ValueError:
        try:
            return json.loads(payload)
        except RecursionError:
            raise ValueError("nested too deeply") from None


def number_of(value: Any) -> tuple[float, int]:
    """A number and its status: NaN and bad where the payload holds none."""
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return math.nan, quality.BAD_OUT_OF_RANGE
        return number, quality.GOOD if math.isfinite(number) else quality.BAD_SENSOR_FAILURE
    if value is None:
        return math.nan, quality.BAD_SENSOR_FAILURE
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in NO_VALUE:
            return math.nan, quality.BAD_SENSOR_FAILURE
        try:
            number = math.nan if "_" in text else float(text)
        except ValueError:
            return math.nan, quality.BAD_DECODING_ERROR
        return number, quality.GOOD if math.isfinite(number) else quality.BAD_DECODING_ERROR
    return math.nan, quality.BAD_CONFIGURATION_ERROR  # the path ends at an object


def time_of(value: Any, zone: ZoneInfo) -> int | None:
    """UTC nanoseconds of a payload's time; None where it is none.

    Epoch seconds, milliseconds, microseconds or nanoseconds by their size (from 2001 on), as number
    or digits; RFC 3339; the same without a zone and `20260302081500` in the plant's zone.
    """
    if isinstance(value, str):
        text = value.strip()
        try:
            if text.isdigit() and len(text) == 14:
                return time_ns_of(datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=zone))
            if not text.isdigit():
                moment = datetime.fromisoformat(text)
                return time_ns_of(moment if moment.tzinfo else moment.replace(tzinfo=zone))
            value = int(text)
        except (ValueError, OverflowError):
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e9 <= value < 1e19:
        return None
    for limit, ns in ((1e11, NS_PER_S), (1e14, 1_000_000), (1e17, 1_000), (1e20, 1)):
        if value < limit:
            # Whole units apart from the fraction, since a float does not hold today's nanoseconds.
            whole = int(value)
            return whole * ns + round((value - whole) * ns)
    return None


class Times:
    """The payload's own times, one message long: each object's time is looked for once."""

    def __init__(self, document: Any, path: JsonPath | None, zone: ZoneInfo) -> None:
        self._zone = zone
        self._found = path.find(document) if path is not None else None
        self._of_object: dict[int, int | None] = {}

    def of(self, match: Match) -> int | None:
        """The time nearest to a value: of the innermost object around it that has one."""
        if self._found is not None:
            return self._by_path(match)
        for container in reversed(match.trail):
            key = id(container)
            if key not in self._of_object:
                self._of_object[key] = self._usual(container)
            if (time_ns := self._of_object[key]) is not None:
                return time_ns
        return None

    def _by_path(self, match: Match) -> int | None:
        found = self._found or []
        for container in reversed(match.trail):
            for time in found:
                if time.trail and time.trail[-1] is container:
                    return time_of(time.value, self._zone)
        if len(found) == 1 and not found[0].one_of_many:
            return time_of(found[0].value, self._zone)
        return None

    def _usual(self, container: dict[str, Any]) -> int | None:
        for name in USUAL_TIMES:
            if name in container and (time_ns := time_of(container[name], self._zone)) is not None:
                return time_ns
        return None


def reduced(values: list[tuple[float, int]], how: str | None) -> tuple[float, int]:
    """One number of several: `sum`, `mean` or `first`; several without a `how` are nobody's value."""
    if len(values) == 1 or how == "first":
        return values[0]
    if how is None:
        return math.nan, quality.BAD_CONFIGURATION_ERROR
    worst = min(status for _, status in values)
    if worst < 0:
        return math.nan, worst
    total = math.fsum(number for number, _ in values)
    return (total if how == "sum" else total / len(values)), worst
