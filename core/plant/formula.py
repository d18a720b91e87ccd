"""Formulas of virtual meters: `= e-press * 0.3 + e-welding`.

Ids contain `-`, so operators stand between spaces. A formula is kept in
postfix order and evaluated over whole columns at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from core.samples import Floats

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?(?=[\s()]|$))|([A-Za-z_][\w.\-]*)|([-+*/()]))")
_BINDS = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3}


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed formula; `edges` are the ids it reads, in order of appearance."""

    text: str
    postfix: tuple[str | float, ...]
    edges: tuple[str, ...]

    def evaluate(self, energy_kwh: Mapping[str, Floats]) -> Floats:
        """The formula over columns of one shape; NaN where an input is, or where it divides by zero."""
        stack: list[Floats | float] = []
        with np.errstate(divide="ignore", invalid="ignore"):
            for item in self.postfix:
                if isinstance(item, float):
                    stack.append(item)
                elif item == "neg":
                    stack.append(-stack.pop())
                elif item in _BINDS:
                    right, left = stack.pop(), stack.pop()
                    stack.append(_apply(item, left, right))
                else:
                    stack.append(energy_kwh[item])
        shape = next(iter(energy_kwh.values())).shape if energy_kwh else ()
        result = np.broadcast_to(np.asarray(stack.pop(), dtype=np.float64), shape).copy()
        result[~np.isfinite(result)] = np.nan
        return result


def divides_by_zero(formula: Formula) -> bool:
    """Whether some division is by zero whatever the edges carry."""
    stack: list[float | None] = []  # None: depends on an edge
    for item in formula.postfix:
        if isinstance(item, float):
            stack.append(item)
        elif item == "neg":
            last = stack.pop()
            stack.append(None if last is None else -last)
        elif item in _BINDS:
            right, left = stack.pop(), stack.pop()
            if item == "/" and right == 0:
                return True
            known = left is not None and right is not None
            stack.append(float(_apply(item, left, right)) if known else None)  # type: ignore[arg-type]
        else:
            stack.append(None)
    return False


def _apply(operator: str, left: Floats | float, right: Floats | float) -> Floats | float:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return np.divide(left, right)


def parse_formula(text: str) -> Formula:
    """Parse what follows the `=`; the `=` itself may stand.

    Raises:
        ValueError: With the reason, in words, and the column it was found at.
    """
    body = text.strip().removeprefix("=")
    output: list[str | float] = []
    operators: list[str] = []
    edges: list[str] = []
    operand_wanted = True
    at = 0
    while body[at:].strip():
        match = _TOKEN.match(body, at)
        if match is None:
            raise ValueError(f"cannot read {body[at:].strip()[:12]!r} in formula {body.strip()!r}")
        at = match.end()
        number, name, sign = match.groups()
        if number is not None or name is not None:
            if not operand_wanted:
                raise ValueError(
                    f"an operator is missing before {number or name!r} in formula {body.strip()!r}"
                )
            if number is not None:
                output.append(float(number))
            else:
                output.append(name)
                edges.append(name)
            operand_wanted = False
        elif sign == "(":
            if not operand_wanted:
                raise ValueError(f"an operator is missing before '(' in formula {body.strip()!r}")
            operators.append(sign)
        elif sign == ")":
            if operand_wanted:
                raise ValueError(f"an operand is missing before ')' in formula {body.strip()!r}")
            while operators and operators[-1] != "(":
                output.append(operators.pop())
            if not operators:
                raise ValueError(f"a ')' too many in formula {body.strip()!r}")
            operators.pop()
        elif operand_wanted:
            if sign != "-":
                raise ValueError(f"an operand is missing before {sign!r} in formula {body.strip()!r}")
            operators.append("neg")
        else:
            while operators and operators[-1] != "(" and _BINDS[operators[-1]] >= _BINDS[sign]:
                output.append(operators.pop())
            operators.append(sign)
            operand_wanted = True
    if operand_wanted:
        raise ValueError(f"formula {body.strip()!r} ends where an edge or a number is wanted")
    while operators:
        operator = operators.pop()
        if operator == "(":
            raise ValueError(f"a ')' is missing in formula {body.strip()!r}")
        output.append(operator)
    return Formula(body.strip(), tuple(output), tuple(dict.fromkeys(edges)))
