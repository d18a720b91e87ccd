"""Reading people's files so that every fault is found in one run, with its place.

An `Entry` is one mapping of a YAML document. It hands out typed values, notes a
fault with line and column where a value cannot be meant, and remembers which
keys were asked for: what is left at `finish` is a key nobody knows, most often
a slip of the pen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from core.errors import Fault
from core.plant.model import Label

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in a file, lines and columns from 1."""

    file: str
    line: int
    column: int

    def fault(self, reason: str) -> Fault:
        return Fault(self.file, self.line, self.column, reason)


def did_you_mean(word: str, known: Collection[str], nearness: float = 0.6) -> str:
    """`; did you mean 'x'?`, or nothing where no known word is as near (1 is the same)."""
    near = get_close_matches(word, list(known), n=1, cutoff=nearness)
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(slots=True)
class Entry:
    """One mapping of a YAML document being read; `what` names it in messages ("device m-7")."""

    faults: list[Fault]
    file: str
    what: str
    data: CommentedMap
    asked: set[str] = field(default_factory=set)

    def place(self, key: str | None = None) -> Place:
        """Of the key's value; of the key's absence: the mapping's own place."""
        at = self._at(key)
        line, column = at[2:] if at else (self.data.lc.line, self.data.lc.col)
        return Place(self.file, line + 1, column + 1)

    def _at(self, key: object) -> tuple[int, int, int, int] | None:
        """Line and column of a key and of its value, from 0; None where it came by a merge (`<<`) or not at all."""
        found = (self.data.lc.data or {}).get(key)
        return None if found is None else tuple(found)

    def fault(self, key: str | None, reason: str) -> None:
        self.faults.append(self.place(key).fault(f"{self.what}: {reason}"))

    def has(self, key: str) -> bool:
        self.asked.add(key)
        return self.data.get(key) is not None

    def value(self, key: str, required: bool = False) -> object:
        if self.has(key):
            return self.data[key]
        if required:
            self.fault(key, f"{key} is missing")
        return None

    def text(
        self, key: str, default: str = "", *, required: bool = False, choices: Collection[str] = ()
    ) -> str:
        value = self.value(key, required)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fault(key, f"{key} is {value!r}, wanted text")
            return default
        if choices and value not in choices:
            hint = did_you_mean(value, choices)
            self.fault(key, f"{key} is {value!r}, wanted one of {', '.join(sorted(choices))}{hint}")
            return default
        return str(value)

    def number(
        self,
        key: str,
        default: T,
        *,
        required: bool = False,
        least: float | None = None,
        above: float | None = None,
        most: float | None = None,
    ) -> float | T:
        value = self.value(key, required)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
            self.fault(key, f"{key} is {value!r}, wanted a number")
            return default
        number = float(value)
        if least is not None and number < least:
            self.fault(key, f"{key} is {number:g}, wanted at least {least:g}")
        elif above is not None and number <= above:
            self.fault(key, f"{key} is {number:g}, wanted more than {above:g}")
        elif most is not None and number > most:
            self.fault(key, f"{key} is {number:g}, wanted at most {most:g}")
        else:
            return number
        return default

    def integer(self, key: str, default: T, *, required: bool = False, least: int, most: int) -> int | T:
        value = self.value(key, required)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.fault(key, f"{key} is {value!r}, wanted a whole number")
            return default
        if not least <= value <= most:
            self.fault(key, f"{key} is {int(value)}, wanted {least} to {most}")
            return default
        return int(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fault(key, f"{key} is {value!r}, wanted true or false")
            return default
        return value

    def label(self, key: str) -> Label | None:
        """A name in both languages; one plain text stands for both."""
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, str):
            return Label(str(value), str(value))
        names = self.child(key)
        if names is None:
            return None
        zh, en = names.text("zh"), names.text("en")
        names.finish()
        if not zh and not en:
            names.fault(None, "wanted {zh: …, en: …}")
            return None
        return Label(zh or en, en or zh)

    def child(self, key: str) -> Entry | None:
        """The mapping under a key; None where there is none."""
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, CommentedMap):
            self.fault(key, f"{key} is {value!r}, wanted a mapping of names to values")
            return None
        return Entry(self.faults, self.file, f"{self.what}, {key}", value)

    def children(self, key: str, what: str, *, required: bool = False, id_key: str = "id") -> list[Entry]:
        """The list of mappings under a key; each is named by its id in messages."""
        value = self.value(key, required)
        if value is None:
            return []
        if not isinstance(value, CommentedSeq):
            self.fault(key, f"{key} is {value!r}, wanted a list")
            return []
        entries = []
        for i, item in enumerate(value):
            if isinstance(item, CommentedMap):
                name = f"{what} {item[id_key]}" if id_key in item else f"{what} {i + 1}"
                entries.append(Entry(self.faults, self.file, name, item))
            else:
                self.faults.append(
                    self._item_place(value, i).fault(f"{what} {i + 1}: {item!r} is no mapping")
                )
        return entries

    def texts(self, key: str, *, required: bool = False) -> list[tuple[str, Place]]:
        """A list of texts with their places; one bare text is a list of one."""
        value = self.value(key, required)
        if value is None:
            return []
        if isinstance(value, str):
            return [(str(value), self.place(key))]
        if not isinstance(value, CommentedSeq) or not all(isinstance(item, str) for item in value):
            self.fault(key, f"{key} is {value!r}, wanted a list of texts")
            return []
        return [(str(item), self._item_place(value, i)) for i, item in enumerate(value)]

    def numbers(self, key: str) -> list[int]:
        """A list of whole numbers."""
        value = self.value(key)
        if value is None:
            return []
        if not isinstance(value, CommentedSeq) or not all(isinstance(item, int) for item in value):
            self.fault(key, f"{key} is {value!r}, wanted a list of whole numbers")
            return []
        return [int(item) for item in value]

    def skip(self, *keys: str) -> None:
        """Keys that are for people: known, not read."""
        self.asked.update(keys)

    def finish(self) -> None:
        """Every key was asked for, or it is a fault."""
        for key in self.data:
            if key not in self.asked:
                at = self._at(key) or (self.data.lc.line, self.data.lc.col, 0, 0)
                hint = did_you_mean(str(key), self.asked)
                reason = f"{self.what}: unknown key {key!r}{hint}"
                self.faults.append(Fault(self.file, at[0] + 1, at[1] + 1, reason))

    def _item_place(self, items: CommentedSeq, i: int) -> Place:
        line, column = items.lc.item(i)
        return Place(self.file, line + 1, column + 1)


def read_yaml(file: Path, what: str, faults: list[Fault]) -> Entry | None:
    """The document as an `Entry`; None, with its fault noted, where it is none."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as why:
        faults.append(Fault(str(file), 0, 0, f"cannot be read: {why.strerror or why}"))
        return None
    except UnicodeDecodeError as why:
        line = file.read_bytes()[: why.start].count(b"\n") + 1
        faults.append(Fault(str(file), line, 1, "not UTF-8"))
        return None
    data, why_not = _parsed(text)
    if why_not is not None:
        faults.append(_yaml_fault(file, why_not))
        if data is None:
            return None
    if not isinstance(data, CommentedMap):
        faults.append(Fault(str(file), 1, 1, f"{what}: wanted a mapping of names to values"))
        return None
    return Entry(faults, str(file), what, data)


@lru_cache(maxsize=32)  # a check and every reload read the same device models again
def _parsed(text: str) -> tuple[object, YAMLError | None]:
    """The document and what is wrong with it; after a key written twice, the document with its first value."""
    try:
        return YAML().load(text), None
    except DuplicateKeyError as why:
        lenient = YAML()
        lenient.allow_duplicate_keys = True
        try:
            return lenient.load(text), why
        except YAMLError as further:
            return None, further
    except YAMLError as why:
        return None, why


def _yaml_fault(file: Path, why: YAMLError) -> Fault:
    if isinstance(why, MarkedYAMLError) and why.problem_mark is not None:
        mark = why.problem_mark
        problem = str(why.problem or why.context).split("\n")[0]
        return Fault(str(file), mark.line + 1, mark.column + 1, f"not YAML: {problem}")
    return Fault(str(file), 1, 1, f"not YAML: {str(why).splitlines()[0]}")


def in_order(faults: Sequence[Fault]) -> list[Fault]:
    """Sorted by file and place, each once."""
    return sorted(dict.fromkeys(faults), key=lambda fault: (fault.file, fault.line, fault.column))
