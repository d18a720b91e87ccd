"""Every worked case of the interchange format, whose results come from exact rational arithmetic."""

import json
from pathlib import Path

import pytest

from core.carbon.trace import trace_case
from core.errors import BadRequest

CASES = Path(__file__).parent / "cases"


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in CASES.glob("[0-9]*.json") if "expected" not in path.name)
)
def test_a_case_comes_out_as_rational_arithmetic_says(name: str) -> None:
    case = json.loads((CASES / f"{name}.json").read_text())
    expected = json.loads((CASES / f"{name}.expected.json").read_text())

    result = trace_case(case)

    assert result.keys() == expected.keys()
    for part, columns in expected.items():
        assert result[part].keys() == columns.keys()
        for member, numbers in columns.items():
            for t, (number, wanted) in enumerate(zip(result[part][member], numbers, strict=True)):
                where = f"{part} {member} interval {t}"
                if wanted is None:
                    assert number is None, where
                else:
                    assert number == pytest.approx(wanted, rel=1e-9, abs=1e-12), where


def small_case() -> dict:
    return {
        "intervals": 1,
        "nodes": [
            {"id": "grid", "kind": "source", "intensity": 0.5},
            {"id": "bus", "kind": "bus"},
            {"id": "shop", "kind": "load"},
        ],
        "edges": [
            {"id": "in", "from": "grid", "to": "bus", "kwh": 10},
            {"id": "out", "from": "bus", "to": "shop", "kwh": 10},
        ],
    }


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda case: case.pop("intervals"), "intervals must be a whole number from 1, got None"),
        (lambda case: case["edges"][0].update(kwh=-1), "'in' has kwh -1, at least 0 is wanted"),
        (lambda case: case["edges"][0].update(kwh=[1, 2]), "'in' has 2 numbers of kwh, 1 are wanted"),
        (lambda case: case["edges"][0].update(kwh=[None]), "'in' has kwh None, a number is wanted"),
        (lambda case: case["edges"][1].update(to="nowhere"), "edge 'out' names node 'nowhere'"),
        (
            lambda case: case["edges"][1].update({"from": "shop", "to": "bus"}),
            "edge 'out' leaves 'shop', a load",
        ),
        (lambda case: case["edges"][1].update(to="grid"), "edge 'out' enters 'grid', a source"),
        (lambda case: case["edges"][0].update(weight=2), "edge 'in' has a weight"),
        (lambda case: case["nodes"][1].update(kind="pump"), "node 'bus' has kind 'pump'"),
        (lambda case: case["nodes"].append(case["nodes"][0]), "nodes hold 'grid' twice"),
        (lambda case: case["nodes"][0].pop("intensity"), "'grid' has intensity None, a number is wanted"),
        (lambda case: case.update(nodes="none"), "nodes must be a list of objects"),
    ],
)
def test_a_case_that_cannot_be_meant_is_refused_with_its_reason(spoil, reason: str) -> None:
    case = small_case()
    spoil(case)

    with pytest.raises(BadRequest, match="case: ") as refused:
        trace_case(case)

    assert reason in str(refused.value)
