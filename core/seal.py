"""What closing a period freezes: its figures as bytes, their hash, and the chain every seal hangs on.

The canonical form of an hour is every series that has something in it, sorted
by name, as little-endian doubles with one kind of NaN and no negative zero. So
the same figures give the same hash whoever computed them, in whatever order
their rows lie, and a bit that changes shows. A seal's link covers the link
before it, so one cannot be replaced without all that follow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import orjson

from core.clock import rfc3339
from core.results import HOUR_NS, WindowResult
from core.samples import Floats


@dataclass(frozen=True, slots=True)
class Seal:
    """One closing of a day or month.

    Attributes:
        label: `2026-10-05` or `2026-10`, in the plant's zone.
        revision: 1 for the first closing; each later one has other figures, and a reason.
        digest: SHA-256 of the period's canonical rows; of a month of its days' digests.
        factors: The factor rows behind the figures as they were: id -> what the row said.
        chain: SHA-256 over the chain of the seal before and this one.
    """

    period: str
    label: str
    start_ns: int
    end_ns: int
    revision: int
    digest: bytes
    factors: Mapping[str, object]
    who: str
    why: str
    sealed_at_ns: int
    chain: bytes = field(default=b"", repr=False)

    def linked(self, before: bytes) -> bytes:
        """The chain at this seal, after that one."""
        said = orjson.dumps(
            {
                "period": self.period,
                "label": self.label,
                "start": rfc3339(self.start_ns),
                "end": rfc3339(self.end_ns),
                "revision": self.revision,
                "digest": self.digest.hex(),
                "factors": self.factors,
                "who": self.who,
                "why": self.why,
                "sealed_at": rfc3339(self.sealed_at_ns),
            },
            option=orjson.OPT_SORT_KEYS,
        )
        return hashlib.sha256(before + said).digest()


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """One kind of series: names, columns of shape (rows, T), and which row has something in which hour."""

    kind: str
    names: npt.NDArray[np.str_]
    columns: Sequence[Floats]
    present: npt.NDArray[np.bool_]  # shape (rows, H)


def whole_hours(start_ns: int, end_ns: int) -> tuple[int, int]:
    """The UTC hours that begin in [start, end): results are kept by the hour, also where a zone is half an hour off."""
    return -(-start_ns // HOUR_NS) * HOUR_NS, -(-end_ns // HOUR_NS) * HOUR_NS


def hour_digests(result: WindowResult) -> dict[int, bytes]:
    """SHA-256 of each hour that has figures, by the hour's start."""
    per_hour = HOUR_NS // result.base_ns
    hours = result.intervals // per_hour
    tables = _tables(result, hours, per_hour)
    digests: dict[int, bytes] = {}
    for h in range(hours):
        if not any(table.present[:, h].any() for table in tables[:3]):
            continue
        digest = hashlib.sha256()
        for table in tables:
            rows = table.present[:, h]
            digest.update(f"{table.kind} {int(rows.sum())}\n".encode())
            digest.update("\n".join(table.names[rows].tolist()).encode())
            for column in table.columns:
                width = column.shape[1] // hours
                digest.update(np.ascontiguousarray(column[rows, h * width : (h + 1) * width]).tobytes())
        digests[result.start_ns + h * HOUR_NS] = digest.digest()
    return digests


def day_digest(hours: Mapping[int, bytes]) -> bytes:
    """SHA-256 of a day from its hours'."""
    digest = hashlib.sha256()
    for hour in sorted(hours):
        digest.update(rfc3339(hour).encode() + hours[hour])
    return digest.digest()


def month_digest(days: Mapping[str, bytes]) -> bytes:
    """SHA-256 of a month from its days', by label."""
    digest = hashlib.sha256()
    for label in sorted(days):
        digest.update(label.encode() + days[label])
    return digest.digest()


def first_difference(stored: WindowResult, computed: WindowResult) -> str | None:
    """The earliest figure in which two results of one span differ, in words; None where they are the same bits."""
    ours, theirs = (_series(result) for result in (stored, computed))
    found: tuple[int, str] | None = None
    for key in sorted(ours.keys() | theirs.keys(), key=_causes_first):
        known = ours.get(key)
        other = theirs.get(key)
        mine = np.full(other.shape, np.nan) if known is None and other is not None else known
        new = np.full(mine.shape, np.nan) if other is None and mine is not None else other
        assert mine is not None
        assert new is not None
        differs = np.flatnonzero(~((mine == new) | (np.isnan(mine) & np.isnan(new))))
        if differs.size:
            at = int(differs[0])
            time_ns = stored.start_ns + at * (HOUR_NS if key.startswith("stock") else stored.base_ns)
            if found is None or time_ns < found[0]:
                was, follows = mine[at].item(), new[at].item()
                found = (time_ns, f"{key} at {rfc3339(time_ns)}: {was!r} is stored, {follows!r} follows")
    return found[1] if found else None


def _causes_first(key: str) -> tuple[int, str]:
    return ("energy", "node", "emission", "stock").index(key.split()[0]), key


def _series(result: WindowResult) -> dict[str, Floats]:
    """Every column of every series that has something, by a name a person can read."""
    per_hour = HOUR_NS // result.base_ns
    tables = _tables(result, result.intervals // per_hour, per_hour)
    titles = {
        "energy": _ENERGY,
        "node": _NODE,
        "emission": _EMISSION,
        "stock": ("kwh",),
        "stock carbon": ("kg",),
    }
    return {
        f"{table.kind} {name} {title}": column[row]
        for table in tables
        for title, column in zip(titles[table.kind], table.columns, strict=True)
        for row, name in enumerate(table.names.tolist())
        if table.present[row].any()
    }


_ENERGY = ("energy_kwh", "covered", "estimated_kwh", "mark")
_NODE = ("in_kwh", "out_kwh", "residual_kwh", "through_kwh", "covered")
_EMISSION = ("emissions_kg", "through_kg")


def _tables(result: WindowResult, hours: int, per_hour: int) -> list[_Table]:
    r, energy = result, result.energy
    flows = [f"{flow.scope} {flow.basis} {flow.method_set}" for flow in r.flows]
    of_nodes = [f"{node} {flow}" for node in r.nodes for flow in flows]
    of_storages = [f"{storage} {flow}" for storage in r.storages for flow in flows]
    span = hours * per_hour
    at_starts = slice(0, hours)
    stock_kg = r.stock_kg[..., at_starts].reshape(len(of_storages), hours)
    # A storage that holds nothing and one that is not there are the same.
    stock_kg = np.where(stock_kg == 0, np.nan, stock_kg)
    stock_kwh = np.where(r.stock_kwh[:, at_starts] == 0, np.nan, r.stock_kwh[:, at_starts])
    return [
        _table(
            "energy",
            r.edges,
            hours,
            [energy.energy_kwh],
            [energy.covered, energy.estimated_kwh, energy.mark.astype(np.float64)],
        ),
        _table("node", r.nodes, hours, [r.in_kwh, r.out_kwh, r.residual_kwh, r.through_kwh], [r.coverage]),
        _table(
            "emission",
            of_nodes,
            hours,
            [column.reshape(len(of_nodes), span) for column in (r.emissions_kg, r.through_kg)],
        ),
        _table("stock", r.storages, hours, [stock_kwh]),
        _table("stock carbon", of_storages, hours, [stock_kg]),
    ]


def _table(
    kind: str, names: Sequence[str], hours: int, figures: Sequence[Floats], beside: Sequence[Floats] = ()
) -> _Table:
    """Sorted by name and canonical. A row has something where a figure is known or what stands beside is not zero."""
    order = sorted(range(len(names)), key=names.__getitem__)
    known = [_canonical(column[order]) for column in figures]
    told = [_canonical(np.nan_to_num(column[order])) for column in beside]
    present = np.zeros((len(names), hours), dtype=np.bool_)
    for column in known:
        present |= ~np.isnan(column.reshape(len(names), hours, column.shape[1] // hours)).all(axis=-1)
    for column in told:
        present |= (column.reshape(len(names), hours, column.shape[1] // hours) != 0).any(axis=-1)
    return _Table(kind, np.array([names[i] for i in order], dtype=np.str_), [*known, *told], present)


def _canonical(column: Floats) -> Floats:
    return np.where(np.isnan(column), np.nan, column + 0.0).astype("<f8", copy=False)
