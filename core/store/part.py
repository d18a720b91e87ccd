"""Years of results as Parquet, part by part: interval energies to count from, restated emissions to read.

A part holds whole hours of one month, in row groups of some hours each, which
are what is held in memory at once. An energy part has one row an edge and base
interval, sorted by (edge, start) within a group, so that whoever knows the order
reads the energies alone. What a part was made of stands in its metadata; one
whose word differs is made anew, one that agrees is not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from core.clock import rfc3339
from core.errors import Fault, FaultyInput, StoreUnavailable
from core.results import Flow
from core.samples import Flags, Floats, Times

_SAID: Final = b"ecmc"
_FIGURES: Final = ("energy_kwh", "coverage")


@dataclass(frozen=True, slots=True)
class Rows:
    """Sums by node, flow and bucket, shape (N, F, B); coverage (N, B). Rows are where `counts` is true."""

    start_ns: Times
    counts: Flags
    emissions_kg: Floats
    coverage: Floats


class PartWriter:
    """Rows into one part, group by group; what it says of itself may be completed until it is closed."""

    def __init__(self, writer: Any, said: dict[str, Any]) -> None:
        self._writer = writer
        self.said = said
        self.rows = 0

    def add_energy(
        self, edges: Sequence[str], start_ns: int, base_ns: int, energy_kwh: Floats, covered: Floats
    ) -> None:
        """One group: shape (E, T) from start_ns on."""
        import pyarrow as pa

        count, intervals = energy_kwh.shape
        times = start_ns + np.arange(intervals, dtype=np.int64) * base_ns
        self._add(
            [
                _words(np.repeat(np.arange(count, dtype=np.int32), intervals), edges),
                pa.array(np.tile(times // 1000, count), pa.timestamp("us", "UTC")),
                pa.array(np.ascontiguousarray(energy_kwh).reshape(-1), from_pandas=True),
                pa.array(np.ascontiguousarray(covered).reshape(-1)),
            ],
            energy_schema(),
        )

    def add_emissions(self, nodes: Sequence[str], flows: Sequence[Flow], rows: Rows) -> None:
        """One group."""
        import pyarrow as pa

        keep = rows.counts.reshape(-1)
        shape = rows.counts.shape

        def column(of: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
            view = of.reshape([-1 if i == axis else 1 for i in range(3)])
            return np.broadcast_to(view, shape).reshape(-1)[keep]

        bases = sorted({flow.basis for flow in flows})
        methods = list(dict.fromkeys(flow.method_set for flow in flows))
        basis = np.array([bases.index(flow.basis) for flow in flows], dtype=np.int32)
        method = np.array([methods.index(flow.method_set) for flow in flows], dtype=np.int32)
        coverage = np.broadcast_to(rows.coverage[:, None], shape)
        self._add(
            [
                _words(column(np.arange(shape[0], dtype=np.int32), 0), nodes),
                pa.array(column(rows.start_ns // 1000, 2), pa.timestamp("us", "UTC")),
                pa.array(column(np.array([flow.scope for flow in flows], dtype=np.int16), 1)),
                _words(column(basis, 1), bases),
                _words(column(method, 1), methods),
                pa.array(rows.emissions_kg.reshape(-1)[keep], from_pandas=True),
                pa.array(coverage.reshape(-1)[keep]),
            ],
            emission_schema(),
        )

    def _add(self, columns: Sequence[Any], schema: Any) -> None:
        import pyarrow as pa

        table = pa.table(columns, schema=schema)
        if len(table):
            self._writer.write_table(table, row_group_size=len(table))
        self.rows += len(table)


@contextmanager
def part_writer(path: Path, schema: Any, said: dict[str, Any]) -> Iterator[PartWriter]:
    """A part to be filled; it is in place, and on disk, when this is left without an error.

    Raises:
        FaultyInput: It cannot be written.
    """
    import pyarrow.parquet as pq

    draft = path.with_name(path.name + ".part")
    words = [field.name for field in schema if str(field.type).startswith("dictionary")]
    coded = [*words, "start", "coverage"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(draft, schema, compression="lz4", use_dictionary=coded) as writer:
            made = PartWriter(writer, said)
            yield made
            writer.add_key_value_metadata({_SAID: json.dumps(made.said)})
        settle(draft, path)
    except OSError as why:
        raise FaultyInput([Fault(str(path), 0, 0, f"cannot be written: {why.strerror or why}")]) from None
    finally:
        draft.unlink(missing_ok=True)


def settle(draft: Path, path: Path) -> None:
    """In place, and on disk, before anything that is in it may be dropped elsewhere."""
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def said_of(path: Path) -> dict[str, Any] | None:
    """What a part says of itself; None where there is none, or none of ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        said = pq.read_metadata(path).metadata[_SAID]
        return dict(json.loads(said))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def energies(path: Path, edges: int) -> Iterator[tuple[Floats, Floats]]:
    """The groups of an energy part: energy_kwh and coverage, shape (E, T), NaN where unknown.

    Raises:
        StoreUnavailable: It cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                columns = [_column(file, group, name).reshape(edges, -1) for name in _FIGURES]
                yield columns[0], columns[1]
    except (OSError, pa.ArrowException, KeyError, ValueError) as why:
        raise StoreUnavailable(f"{path}: {why}; remove it, and it is made anew") from None


def _column(file: Any, group: int, name: str) -> Floats:
    """A group's column; one value throughout is not read row by row."""
    said = file.metadata.row_group(group)
    found = said.column(file.schema_arrow.get_field_index(name)).statistics
    if found is not None and found.has_min_max and found.null_count == 0 and found.min == found.max:
        return np.full(said.num_rows, found.min + 0.0)  # statistics call zero negative
    column = file.read_row_group(group, columns=[name], use_threads=False)[name]
    values: Floats = column.combine_chunks().to_numpy(zero_copy_only=False)
    return values


def energy_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("edge", pa.dictionary(pa.int32(), pa.string())),
            ("start", pa.timestamp("us", "UTC")),
            ("energy_kwh", pa.float64()),
            ("coverage", pa.float64()),
        ]
    )


def emission_schema() -> Any:
    import pyarrow as pa

    word = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("node", word),
            ("start", pa.timestamp("us", "UTC")),
            ("scope", pa.int16()),
            ("basis", word),
            ("method_set", word),
            ("emissions_kgco2e", pa.float64()),
            ("coverage", pa.float64()),
        ]
    )


def month_folder(kind: Path, start_ns: int) -> Path:
    """Where the parts of a month (UTC) stand; readers of Hive folders see the month as a column."""
    return kind / f"month={rfc3339(start_ns)[:7]}"


def known_folder(folder: Path, known_at_ns: int) -> Path:
    """Where the emissions by what was known at a time stand; no colon, for not every disk takes one."""
    return folder / "emissions" / f"known_at={rfc3339(known_at_ns).replace(':', '')}"


def forget_others(months: Mapping[Path, set[str]]) -> None:
    """Take away parts of these months that are none of the named: the months were once cut otherwise."""
    for folder, mine in months.items():
        for path in folder.glob("*.parquet"):
            if path.name not in mine:
                path.unlink()


def _words(index: npt.NDArray[np.int32], words: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(index), pa.array(list(words), pa.string()))
