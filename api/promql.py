"""The part of PromQL that ecmc answers: one selector, and sum, avg, min, max of it by labels.

Whatever is outside the subset is refused by name: a half-understood expression
would draw a wrong line. Two numbers may be added, because that is how Grafana
asks whether anybody is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from core.errors import BadRequest

NAME: Final = "__name__"
OPERATIONS: Final = ("sum", "avg", "min", "max")
_LONGEST_PATTERN: Final = 256
_TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])
    | (?P<name>[A-Za-z_:][\w:]*)
    | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)
    | (?P<sign>=~|!~|!=|=|[{}(),+\-])
    )""",
    re.VERBOSE,
)
_ESCAPE: Final = {"n": "\n", "t": "\t", "\\": "\\", '"': '"', "'": "'"}


@dataclass(frozen=True, slots=True)
class Matcher:
    """`label op value`; a label a series does not have is empty. Patterns match whole values."""

    label: str
    op: str  # = != =~ !~
    value: str
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.op not in ("=~", "!~"):
            pattern = re.escape(self.value)
        elif len(self.value) > _LONGEST_PATTERN:
            raise BadRequest(f"the pattern for {self.label} is longer than {_LONGEST_PATTERN} characters")
        else:
            pattern = self.value
        try:
            object.__setattr__(self, "_pattern", re.compile(pattern, re.DOTALL))
        except re.error as why:
            raise BadRequest(f"the pattern {self.value!r} for {self.label} is faulty: {why}") from None

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = self._pattern.fullmatch(labels.get(self.label, "")) is not None
        return found is not self.op.startswith("!")


@dataclass(frozen=True, slots=True)
class Selector:
    """Series by labels; the metric's name is the label `__name__`."""

    matchers: tuple[Matcher, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(matcher.matches(labels) for matcher in self.matchers)

    def asks_for(self, label: str) -> bool:
        return any(matcher.label == label for matcher in self.matchers)


@dataclass(frozen=True, slots=True)
class Aggregation:
    operation: str
    by: tuple[str, ...]
    inner: Expression


@dataclass(frozen=True, slots=True)
class Number:
    value: float


Expression = Selector | Aggregation | Number


def parse(text: str) -> Expression:
    """The expression a text means.

    Raises:
        BadRequest: It is none, or one outside the subset; the message names the place.
    """
    reader = _Reader(text)
    expression = reader.expression()
    reader.end()
    return expression


def parse_selector(text: str) -> Selector:
    """The selector a `match[]` means; raises BadRequest where it is something else."""
    expression = parse(text)
    if not isinstance(expression, Selector):
        raise BadRequest(f"{text!r}: a series selector is wanted here")
    return expression


class _Reader:
    """Tokens of one expression, read from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def expression(self) -> Expression:
        kind, token = self._look()
        if kind == "number":
            return self._sum()
        if kind == "name" and token in OPERATIONS:
            return self._aggregation()
        if kind == "name" or token == "{":
            return self._selector()
        raise self._refusal("a selector, or sum, avg, min, max of one, is wanted")

    def end(self) -> None:
        if self._text[self._at :].strip():
            raise self._refusal("only a selector, and sum, avg, min, max of one by labels, are answered")

    def _sum(self) -> Number:
        total = float(self._take("number"))
        while self._look()[1] in ("+", "-"):
            sign = self._take("sign")
            total += float(self._take("number")) * (1 if sign == "+" else -1)
        return Number(total)

    def _aggregation(self) -> Aggregation:
        operation = self._take("name")
        by = self._labels() if self._look() == ("name", "by") else None
        self._take("sign", "(")
        inner = self.expression()
        self._take("sign", ")")
        if by is None:
            by = self._labels() if self._look() == ("name", "by") else ()
        if isinstance(inner, Number):
            raise self._refusal(f"{operation} of a number")
        return Aggregation(operation, by, inner)

    def _labels(self) -> tuple[str, ...]:
        self._take("name", "by")
        self._take("sign", "(")
        names = []
        while self._look()[1] != ")":
            names.append(self._take("name"))
            if self._look()[1] != ")":
                self._take("sign", ",")
        self._take("sign", ")")
        return tuple(names)

    def _selector(self) -> Selector:
        matchers = []
        if self._look()[0] == "name":
            matchers.append(Matcher(NAME, "=", self._take("name")))
        if self._look()[1] == "{":
            self._take("sign", "{")
            while self._look()[1] != "}":
                label = self._take("name")
                op = self._take("sign")
                if op not in ("=", "!=", "=~", "!~"):
                    raise self._refusal(f"{op} is no matcher")
                matchers.append(Matcher(label, op, _unquoted(self._take("text"))))
                if self._look()[1] != "}":
                    self._take("sign", ",")
            self._take("sign", "}")
        if not any(matcher.op in ("=", "=~") and not matcher.matches({}) for matcher in matchers):
            raise self._refusal("a selector needs a name or a label with a value")
        return Selector(tuple(matchers))

    def _look(self) -> tuple[str, str]:
        match = _TOKEN.match(self._text, self._at)
        return (match.lastgroup or "", match[match.lastgroup or 0]) if match else ("", "")

    def _take(self, kind: str, wanted: str | None = None) -> str:
        match = _TOKEN.match(self._text, self._at)
        if match is None or match.lastgroup != kind or (wanted and match[kind] != wanted):
            raise self._refusal(f"{wanted or f'a {kind}'} is wanted")
        self._at = match.end()
        return match[kind]

    def _refusal(self, why: str) -> BadRequest:
        rest = self._text[self._at :].strip() or "the end"
        return BadRequest(f"{self._text!r}: {why}, at {rest[:40]!r}")


def _unquoted(text: str) -> str:
    inner = text[1:-1]
    if text[0] == "`":
        return inner
    return re.sub(r"\\(.)", lambda match: _ESCAPE.get(match[1], match[0]), inner)
