"""A CSV people keep, read with every fault at its line and column instead of stopping at the first."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from core.errors import Fault, FaultyInput

_T = TypeVar("_T")


class Sheet:
    """A CSV with a header; gathers faults instead of stopping at the first."""

    def __init__(self, file: str, header: list[str], lines: list[tuple[int, list[str]]]) -> None:
        self.file = file
        self.header = header
        self.faults: list[Fault] = []
        self.seen: dict[str, set[str | None]] = {}
        self._lines = lines

    @classmethod
    def read(cls, content: bytes, file: str) -> Sheet:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("gb18030", errors="replace")
        reader = csv.reader(io.StringIO(text, newline=""))
        header = [cell.strip() for cell in next(reader, [])]
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
        return cls(file, header, lines)

    def require(self, columns: Iterable[str]) -> None:
        missing = [column for column in columns if column not in self.header]
        if missing:
            raise FaultyInput([Fault(self.file, 1, 0, f"column {column!r} is missing") for column in missing])

    def records(self) -> Iterable[Record]:
        for line, cells in self._lines:
            if len(cells) > len(self.header):
                self.faults.append(Fault(self.file, line, len(self.header) + 1, "more cells than columns"))
            values = [cell.strip() for cell in cells] + [""] * (len(self.header) - len(cells))
            yield Record(self, line, dict(zip(self.header, values, strict=False)))

    def raise_faults(self) -> None:
        if self.faults:
            raise FaultyInput(self.faults)


class Record:
    """One line; asking for what it lacks leaves a fault and gives something harmless."""

    def __init__(self, sheet: Sheet, line: int, cells: Mapping[str, str]) -> None:
        self._sheet, self._line, self._cells = sheet, line, cells

    def fault(self, column: str, reason: str) -> None:
        at = self._sheet.header.index(column) + 1 if column in self._sheet.header else 0
        fault = Fault(self._sheet.file, self._line, at, reason)
        if fault not in self._sheet.faults:
            self._sheet.faults.append(fault)

    def text(self, column: str) -> str:
        value = self._cells.get(column, "")
        if not value:
            self.fault(column, f"{column} is empty")
        return value

    def optional(self, column: str) -> str | None:
        return self._cells.get(column) or None

    def number(self, column: str) -> float:
        text = self.text(column)
        try:
            value = float(text) if text else 0.0
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0:
            self.fault(column, f"{column} is {text!r}, wanted a number, 0 or more")
            return 0.0
        return value

    def parsed(self, column: str, parse: Callable[[str], _T], wanted: str) -> _T | None:
        """The cell as `parse` reads it; None where it is empty or, with a fault, where it cannot be read."""
        text = self.optional(column)
        try:
            return None if text is None else parse(text)
        except ValueError:
            self.fault(column, f"{column} is {text!r}, wanted {wanted}")
            return None

    def unique(self, id_: str, again_by: str | None = None) -> bool:
        """Whether the id is new; seen twice with the same `again_by` it is a fault."""
        before = self._sheet.seen.setdefault(id_, set())
        if again_by in before:
            self.fault(self._sheet.header[0], f"{id_} stands here twice")
        before.add(again_by)
        return len(before) == 1
