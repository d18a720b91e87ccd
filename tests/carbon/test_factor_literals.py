"""Factors live in tables: a published factor written into code is last year's number before long."""

from __future__ import annotations

import tokenize
from pathlib import Path

from core.carbon.factors import FactorLibrary

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "collector", "api", "ecmc", "dashboards", "simulators", "migrations")


def test_no_published_factor_stands_in_code(library: FactorLibrary) -> None:
    published = {
        row.value
        for row in library.rows
        if row.quantity in ("electricity", "tce") and row.value < 1 and len(repr(row.value)) >= len("0.581")
    }
    assert published >= {0.5703, 0.5810, 0.5306, 0.6096, 0.8273, 0.1229, 0.2856}

    found = []
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        with path.open("rb") as file:
            found += [
                f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}"
                for token in tokenize.tokenize(file.readline)
                if token.type == tokenize.NUMBER and "." in token.string and float(token.string) in published
            ]

    assert found == []
