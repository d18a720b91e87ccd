"""The vectorised look-up against the rule said row by row."""

from __future__ import annotations

from datetime import date
from zoneinfo import ZoneInfo

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.carbon.factor_row import FactorRow, published_ns, valid_ns
from core.carbon.factors import FactorLibrary

ZONE = ZoneInfo("Asia/Shanghai")
DAY_NS = 86_400 * 10**9
START_NS = valid_ns("2020", ZONE)

rows_of_years = st.lists(
    st.tuples(
        st.integers(2020, 2026),
        st.one_of(st.none(), st.dates(min_value=date(2020, 1, 1), max_value=date(2027, 12, 31))),
        st.floats(0, 2),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda row: (row[0], row[1]),
)


@settings(max_examples=60, deadline=None)
@given(rows_of_years, st.lists(st.integers(-400, 3000), min_size=1, max_size=20), st.integers(0, 3000))
def test_the_newest_known_row_of_the_newest_year_holds_at_every_time(
    rows: list[tuple[int, date | None, float]], sample_days: list[int], known_day: int
) -> None:
    made = [
        FactorRow(
            f"own:{i}",
            "own",
            "electricity",
            value,
            "kgCO2/kWh",
            "s",
            "approved",
            valid_from=str(year),
            published=None if published is None else str(published),
        )
        for i, (year, published, value) in enumerate(rows)
    ]
    library = FactorLibrary.shipped().with_rows(made)
    time_ns = START_NS + DAY_NS * np.array(sample_days, np.int64)
    known_at_ns = START_NS + DAY_NS * known_day

    column = library.factor_column("own", time_ns, zone=ZONE, known_at_ns=known_at_ns)

    for at_ns, kg in zip(time_ns.tolist(), column.kg_per_kwh.tolist(), strict=True):
        best: tuple[int, int, float] | None = None
        for row in made:
            known_ns = -1 if row.published is None else published_ns(row.published, ZONE)
            valid_from_ns = valid_ns(str(row.valid_from), ZONE)
            if known_ns <= known_at_ns and valid_from_ns <= at_ns:
                candidate = (valid_from_ns, known_ns, row.value)
                best = candidate if best is None or candidate[:2] > best[:2] else best
        assert (best is None and np.isnan(kg)) or (best is not None and kg == best[2])
