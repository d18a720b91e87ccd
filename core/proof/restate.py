"""Years under other knowledge, as files beside the database: another factor vintage, another method set.

Nothing that is stored changes. Energies do not depend on factors, so months are
written once as interval energies in Parquet and counted from there, part by
part, on any executor; memory is that of the parts under way. With what is known
now the figures are the stored ones to the last bit, with what was known then
those that `ecmc recompute --known-at` would store. Begun again after a kill,
it makes the parts that are missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from core.carbon.factor_row import FactorRow, published_ns
from core.carbon.factors import FactorLibrary
from core.carbon.method import method_of
from core.clock import datetime_of, rfc3339, time_ns_of
from core.compute.engine import Engine
from core.compute.history import History
from core.compute.pipeline import stocks_before
from core.compute.workers import Workers
from core.errors import BadRequest
from core.results import HOUR_NS, SITE, Flow, IntervalEnergy, WindowResult, spread
from core.samples import NS_PER_S, Floats
from core.store.part import (
    Rows,
    emission_schema,
    energies,
    energy_schema,
    forget_others,
    known_folder,
    month_folder,
    part_writer,
    said_of,
)
from core.store.rollup import QUARTER_NS, Ends, Parts, columns_of_nodes, emission_parts, node_parts
from core.store.seam import Computed, Stocks, Store
from core.store.table import months_between

BUCKETS: Final = ("base", "15m", "1h")
GROUP_CELLS: Final = 1_000_000  # edge intervals of a row group
_WINDOW_CELLS: Final = 200_000  # of what is counted at once: columns that stay near the processor
PARTS_AT_ONCE: Final = 4
_REPORT_NS: Final = 24 * HOUR_NS  # how much of the reported states of charge is read at once


@dataclass(frozen=True, slots=True)
class Asked:
    """What makes a part what it is, beside its energies.

    Attributes:
        start_ns, end_ns: What the site's sums are of.
        bucket: One of `BUCKETS`.
    """

    start_ns: int
    end_ns: int
    known_at_ns: int
    bucket: str
    method_sets: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Part:
    """Whole hours of one month.

    Attributes:
        edges: In the order of the energy part.
        models: What of it each engine counts, [start, end); several within an hour in which the model changed.
        ends: Whether its first and last hour are the oldest and newest there are.
        energy_read_ns: When the energies were read, or have to be read at the earliest.
    """

    start_ns: int
    end_ns: int
    energy: Path
    emissions: Path
    edges: tuple[str, ...]
    base_ns: int
    models: tuple[tuple[int, int], ...]
    ends: Ends
    energy_read_ns: int


@dataclass(slots=True)
class Counted:
    """What became of a part: the site's kg by flow within the time asked for, and what its storages hold at the end."""

    rows: int = 0
    intervals: int = 0  # edges x base intervals
    cpu_s: float = 0.0
    site_kg: dict[Flow, float] = field(default_factory=dict)
    factors: dict[str, str] = field(default_factory=dict)
    stocks: Stocks | None = None
    is_new: bool = True


@dataclass(slots=True)
class Restated:
    """What a restatement wrote.

    Attributes:
        site: By flow what is stored, NaN where nothing is, and what was written; kgCO2e over the time asked for.
        factors: Ids of the factor rows behind it.
        parts, kept: How many parts there are, and how many of them stood already.
        intervals, cpu_s: Edge intervals counted, and the processor's time for it, reading and writing included.
    """

    folder: Path
    known_at_ns: int
    site: dict[Flow, tuple[float, float]] = field(default_factory=dict)
    factors: set[str] = field(default_factory=set)
    parts: int = 0
    kept: int = 0
    rows: int = 0
    intervals: int = 0
    cpu_s: float = 0.0


async def restate(
    store: Store,
    history: History,
    workers: Workers,
    folder: Path,
    start_ns: int,
    end_ns: int,
    *,
    now_ns: int,
    known_at_ns: int | None = None,
    method_sets: Sequence[str] | None = None,
    bucket: str = "1h",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Restated:
    """Write the emissions of the months (UTC) that [start, end) touches into `folder`.

    Args:
        known_at_ns: Factors published later do not count; None: all that are known now, which is named by when the
            newest of them was published.
        method_sets: By which to count; None: by those of the model of the time.
        progress: Told how many parts of how many are made.

    Raises:
        BadRequest: Nothing in the window was computed, or there is no such method set or bucket.
        FaultyInput: A file cannot be written.
    """
    for name in method_sets or ():
        method_of(history.current.plant, name)
    if bucket not in BUCKETS:
        raise BadRequest(f"bucket {bucket!r}: one of {', '.join(BUCKETS)} wanted")
    await history.refresh()
    library, zone = history.current.library, history.current.plant.zone
    if known_at_ns is None:
        published = (published_ns(row.published, zone) for row in library.rows if row.published)
        known_at_ns = max((at for at in published if at <= now_ns), default=now_ns)
    first_ns, last_ns = start_ns // HOUR_NS * HOUR_NS, -(-end_ns // HOUR_NS) * HOUR_NS
    chosen = None if method_sets is None else tuple(method_sets)
    asked = Asked(first_ns, last_ns, known_at_ns, bucket, chosen)
    made = Restated(known_folder(folder, known_at_ns), known_at_ns)
    work = _Restatement(store, history, workers, folder, asked)
    parts = await work.planned()
    if not parts:
        raise BadRequest(f"nothing was ever computed between {rfc3339(start_ns)} and {rfc3339(end_ns)}")
    site: dict[Flow, float] = {}
    async for counted in work.counted(parts):
        made.parts, made.kept = made.parts + 1, made.kept + (not counted.is_new)
        made.rows, made.intervals = made.rows + counted.rows, made.intervals + counted.intervals
        made.cpu_s += counted.cpu_s
        made.factors.update(row for rows in counted.factors.values() for row in rows.split())
        for flow, kg in counted.site_kg.items():
            site[flow] = site.get(flow, 0.0) + kg
        progress(made.parts, len(parts))
    names: dict[Path, set[str]] = {}
    for part, _ in parts:
        for path in (part.energy, part.emissions):
            names.setdefault(path.parent, set()).add(path.name)
    await asyncio.to_thread(forget_others, names)
    for flow in sorted(site):
        made.site[flow] = (await _stored_kg(store, asked, flow), site[flow])
    await asyncio.to_thread(_write_summary, made, asked, history.current)
    return made


class _Restatement:
    """The parts of one restatement: planned, and counted one after the other or side by side."""

    def __init__(self, store: Store, history: History, workers: Workers, folder: Path, asked: Asked) -> None:
        self._store = store
        self._history = history
        self._workers = workers
        self._folder = folder
        self._asked = asked
        self._counting: dict[int, Engine] = {}  # by the identity of the history's engine
        self._rows_said: dict[int, str] = {}

    async def planned(self) -> list[tuple[Part, list[Engine]]]:
        """Every part with the engines of its models, oldest first."""
        parts: list[tuple[Part, list[Engine]]] = []
        asked = self._asked
        for first, last in months_between(datetime_of(asked.start_ns), datetime_of(asked.end_ns - 1)):
            found = await self._store.computed(time_ns_of(first), time_ns_of(last))
            number = 0
            for start_ns, end_ns in found.stretches:
                cuts = [start_ns, *self._history.hours_of_change(start_ns, end_ns), end_ns]
                for begin_ns, until_ns in pairwise(cuts):
                    parts.append(await self._part(begin_ns, until_ns, number, found))
                    number += 1
        return parts

    async def _part(
        self, start_ns: int, end_ns: int, number: int, found: Computed
    ) -> tuple[Part, list[Engine]]:
        segments = await self._history.segments(start_ns, end_ns)
        edges = tuple(dict.fromkeys(edge for s in segments for edge in s.engine.edge_names))
        energy, emissions = self._folder / "energy", known_folder(self._folder, self._asked.known_at_ns)
        part = Part(
            start_ns,
            end_ns,
            month_folder(energy, start_ns) / f"part-{number}.parquet",
            month_folder(emissions, start_ns) / f"part-{number}.parquet",
            edges,
            segments[0].engine.base_ns,
            tuple((s.start_ns, s.end_ns) for s in segments),
            Ends(start_ns <= found.first_hour_ns, end_ns > found.last_hour_ns),
            found.newest_ns,
        )
        return part, [s.engine for s in segments]

    async def counted(self, parts: Sequence[tuple[Part, list[Engine]]]) -> AsyncIterator[Counted]:
        """Make the parts; side by side where no storage hands on."""
        stocks: Stocks | None = None
        reached_ns: int | None = None
        under_way: deque[asyncio.Task[Counted]] = deque()
        try:
            for part, engines in parts:
                if any(engine.storages for engine in engines):
                    while under_way:
                        yield await under_way.popleft()
                    if part.start_ns != reached_ns:
                        stocks = await stocks_before(self._store, self._history, part.start_ns, engines[0])
                    one = await self._made(part, engines, stocks)
                    stocks, reached_ns = one.stocks, part.end_ns
                    yield one
                    continue
                if len(under_way) == PARTS_AT_ONCE:
                    yield await under_way.popleft()
                under_way.append(asyncio.create_task(self._made(part, engines, None)))
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _made(self, part: Part, engines: list[Engine], stocks: Stocks | None) -> Counted:
        counting = [self._engine(engine) for engine in engines]
        part = replace(part, energy_read_ns=await self._energy(part))
        said = await asyncio.to_thread(self._said, part, counting, stocks)
        there = await asyncio.to_thread(said_of, part.emissions)
        if there is not None and there.get("of") == said:
            return _counted_then(there)
        soc = [
            await self._reported(engine, *model) for engine, model in zip(counting, part.models, strict=True)
        ]
        return await self._workers.run(count_part, counting, part, self._asked, stocks, soc, said)

    def _engine(self, engine: Engine) -> Engine:
        """The engine, counting by the method sets asked for."""
        sets = self._asked.method_sets
        if sets is None or sets == engine.plant.method_sets:
            return engine
        if id(engine) not in self._counting:
            plant = replace(engine.plant, method_sets=sets)
            self._counting[id(engine)] = Engine(plant, engine.library, engine.events)
        return self._counting[id(engine)]

    def _said(self, part: Part, engines: Sequence[Engine], stocks: Stocks | None) -> dict[str, Any]:
        """All that a part's figures follow from."""
        for engine in engines:
            if id(engine.library) not in self._rows_said:
                rows = "\n".join(map(repr, engine.library.rows))
                self._rows_said[id(engine.library)] = hashlib.sha256(rows.encode()).hexdigest()
        held = None
        if stocks is not None:
            digest = hashlib.sha256(repr((stocks.storages, stocks.flows)).encode())
            for column in (stocks.kwh, stocks.kg):
                digest.update(np.where(np.isnan(column), np.nan, column).tobytes())
            held = digest.hexdigest()
        return {
            "start": rfc3339(part.start_ns),
            "end": rfc3339(part.end_ns),
            "asked": [
                rfc3339(self._asked.start_ns),
                rfc3339(self._asked.end_ns),
                rfc3339(self._asked.known_at_ns),
                self._asked.bucket,
            ],
            "method_sets": [list(engine.plant.method_sets) for engine in engines],
            "energies_read_ns": part.energy_read_ns,
            "ends": [part.ends.oldest, part.ends.newest],
            "models": [engine.fingerprint for engine in engines],
            "factors": [self._rows_said[id(engine.library)] for engine in engines],
            "stocks": held,
            "ecmc": version("ecmc"),
        }

    async def _energy(self, part: Part) -> int:
        """Make the energy part where it is missing or older than what is stored; when it was read."""
        said: dict[str, Any] = {
            "start": rfc3339(part.start_ns),
            "end": rfc3339(part.end_ns),
            "base_interval_s": part.base_ns // NS_PER_S,
            "edges": list(part.edges),
        }
        there = await asyncio.to_thread(said_of, part.energy)
        if there is not None and there.items() >= said.items() and there["read_ns"] >= part.energy_read_ns:
            return int(there["read_ns"])
        said["read_ns"] = (await self._store.computed(part.start_ns, part.end_ns)).now_ns
        step_ns = max(1, GROUP_CELLS * part.base_ns // (len(part.edges) * HOUR_NS)) * HOUR_NS
        with part_writer(part.energy, energy_schema(), said) as out:
            for at_ns in range(part.start_ns, part.end_ns, step_ns):
                until_ns = min(at_ns + step_ns, part.end_ns)
                result = await self._store.window(at_ns, until_ns, part.edges, [], [])
                energy = result.energy
                await asyncio.to_thread(
                    out.add_energy, part.edges, at_ns, part.base_ns, energy.energy_kwh, energy.covered
                )
        return int(said["read_ns"])

    async def _reported(self, engine: Engine, start_ns: int, end_ns: int) -> Floats | None:
        """What the storages reported to hold, shape (S, T)."""
        points = engine.soc_points
        if not points:
            return None
        kept_ns = await self._store.computable_from(points)
        if kept_ns is not None and start_ns < kept_ns:
            raise BadRequest(
                f"states of charge before {rfc3339(kept_ns)} are no longer kept, and without them no carbon is traced"
                " through a storage"
            )
        columns = []
        for at_ns in range(start_ns, end_ns, _REPORT_NS):
            until_ns = min(at_ns + _REPORT_NS, end_ns)
            readings = await self._store.readings(points, at_ns, until_ns, engine.step_spread_ns)
            columns.append(engine.reported_kwh(readings, at_ns, until_ns))
        return np.concatenate([column for column in columns if column is not None], axis=-1)


# In a worker --------------------------------------------------------------------------------


def count_part(
    engines: list[Engine],
    part: Part,
    asked: Asked,
    stocks: Stocks | None,
    soc_kwh: Sequence[Floats | None],
    said: dict[str, Any],
) -> Counted:
    """Read a part's energies, count its emissions, and write them."""
    began_s = time.process_time()
    counted = Counted(stocks=stocks)
    count = _Counting(engines, part, asked, stocks, soc_kwh)
    with part_writer(part.emissions, emission_schema(), {"of": said}) as out:
        at = 0
        for kwh, covered in energies(part.energy, len(part.edges)):
            step = count.step(kwh.shape[1])
            groups = [
                count.rows(at + i, kwh[:, i : i + step], covered[:, i : i + step])
                for i in range(0, kwh.shape[1], step)
            ]
            rows = _joined(groups)
            out.add_emissions(count.nodes, count.flows, rows)
            count.add_site(counted.site_kg, rows)
            at += kwh.shape[1]
            counted.intervals += kwh.size
        counted.rows, counted.stocks, counted.factors = out.rows, count.stocks, count.factors
        counted.cpu_s = time.process_time() - began_s
        out.said |= _said_of_counted(counted)
    return counted


class _Counting:
    """Counts a part window by window."""

    def __init__(
        self,
        engines: Sequence[Engine],
        part: Part,
        asked: Asked,
        stocks: Stocks | None,
        soc_kwh: Sequence[Floats | None],
    ) -> None:
        self._engines = engines
        self._part = part
        self._asked = asked
        self._soc_kwh = soc_kwh
        self.stocks = stocks
        self.factors: dict[str, str] = {}
        self.nodes: tuple[str, ...] = engines[-1].nodes
        self.flows: tuple[Flow, ...] = engines[-1].flows
        index = {edge: i for i, edge in enumerate(part.edges)}
        self._rows_of = [
            slice(None) if engine.edge_names == part.edges else [index[edge] for edge in engine.edge_names]
            for engine in engines
        ]

    def step(self, intervals: int) -> int:
        """Base intervals to be counted at once: whole hours, and all of an hour that models share."""
        per_hour = HOUR_NS // self._part.base_ns
        if len(self._engines) > 1:
            return intervals
        return max(1, _WINDOW_CELLS // (len(self._part.edges) * per_hour)) * per_hour

    def rows(self, at: int, kwh: Floats, covered: Floats) -> Rows:
        """The sums of base intervals from `at` of the part on."""
        if len(self._engines) == 1:
            result, place = self._recounted(0, at, kwh, covered)
        else:
            parts = []
            for number, (start_ns, end_ns) in enumerate(self._part.models):
                first, last = ((t - self._part.start_ns) // self._part.base_ns for t in (start_ns, end_ns))
                one, place = self._recounted(number, first, kwh[:, first:last], covered[:, first:last])
                parts.append(one.spread(self._engines[number].flows, place))
            result = WindowResult.joined(parts)
            place = list(range(len(result.flows)))
            self.nodes, self.flows = result.nodes, result.flows
        return self._summed(result, place)

    def _recounted(
        self, number: int, at: int, kwh: Floats, covered: Floats
    ) -> tuple[WindowResult, list[int]]:
        engine, mine = self._engines[number], self._rows_of[number]
        kwh, covered = kwh[mine], covered[mine]
        none = np.zeros(kwh.shape)
        energy = IntervalEnergy(kwh, covered, none, np.zeros(kwh.shape, dtype=np.int16))
        start_ns = self._part.start_ns + at * self._part.base_ns
        soc = self._soc_kwh[number]
        if soc is not None:
            first = (start_ns - self._part.models[number][0]) // self._part.base_ns
            soc = soc[:, first : first + kwh.shape[1]]
        result, place = engine.recount(energy, soc, start_ns, self.stocks, self._asked.known_at_ns)
        if engine.storages:
            assert result.interval_stock_kwh is not None
            assert result.interval_stock_kg is not None
            held_kg = spread(result.interval_stock_kg[..., -1], place)
            held_kwh = result.interval_stock_kwh[:, -1].copy()
            self.stocks = Stocks(engine.storages, engine.flows, held_kwh, held_kg)
        for key, ids in result.factor_ids.items():
            self.factors[key] = " ".join(dict.fromkeys([*self.factors.get(key, "").split(), *ids.split()]))
        return result, place

    def _summed(self, result: WindowResult, place: list[int]) -> Rows:
        part, base_s = self._part, result.base_ns / NS_PER_S
        per_hour = HOUR_NS // result.base_ns
        ends = Ends(
            part.ends.oldest and result.start_ns == part.start_ns,
            part.ends.newest and result.end_ns == part.end_ns,
        )
        columns = columns_of_nodes(result)
        carbon = emission_parts({"emissions_kg": result.emissions_kg}, columns, per_hour, ends)
        node = node_parts(columns, result.coverage, base_s, per_hour, ends)
        backed = Parts(node.counts, {"covered_s": node.columns["covered_s"]})
        width_ns = result.base_ns
        if self._asked.bucket != "base":
            carbon, backed = (parts.summed(QUARTER_NS // result.base_ns) for parts in (carbon, backed))
            width_ns = QUARTER_NS
        if self._asked.bucket == "1h":
            carbon, backed = carbon.summed(4), backed.summed(4)
            width_ns = HOUR_NS
        buckets = carbon.counts.shape[-1]
        return Rows(
            result.start_ns + np.arange(buckets, dtype=np.int64) * width_ns,
            carbon.counts[:, place],
            spread(carbon.columns["emissions_kg"], place),
            np.clip(backed.columns["covered_s"] / (width_ns / NS_PER_S), 0.0, 1.0),
        )

    def add_site(self, site_kg: dict[Flow, float], rows: Rows) -> None:
        """Add what of the site lies in the time asked for."""
        wanted = (rows.start_ns >= self._asked.start_ns) & (rows.start_ns < self._asked.end_ns)
        site = self.nodes.index(SITE)
        for f, flow in enumerate(self.flows):
            kg = rows.emissions_kg[site, f][wanted & rows.counts[site, f]]
            if kg.size:
                site_kg[flow] = site_kg.get(flow, 0.0) + float(kg.sum())


def _joined(groups: Sequence[Rows]) -> Rows:
    return Rows(
        np.concatenate([rows.start_ns for rows in groups]),
        np.concatenate([rows.counts for rows in groups], axis=-1),
        np.concatenate([rows.emissions_kg for rows in groups], axis=-1),
        np.concatenate([rows.coverage for rows in groups], axis=-1),
    )


# What a part says of itself, so that it need not be made again ------------------------------


def _said_of_counted(counted: Counted) -> dict[str, Any]:
    stocks = counted.stocks
    return {
        "rows": counted.rows,
        "site_kg": [[*flow.words(), kg] for flow, kg in counted.site_kg.items()],
        "factors": counted.factors,
        "stocks": None if stocks is None else stocks.said(),
    }


def _counted_then(said: Mapping[str, Any]) -> Counted:
    held = said["stocks"]
    return Counted(
        rows=said["rows"],
        site_kg={Flow(*words): kg for *words, kg in said["site_kg"]},
        factors=said["factors"],
        stocks=None if held is None else Stocks.of_said(held),
        is_new=False,
    )


# The whole ----------------------------------------------------------------------------------


async def _stored_kg(store: Store, asked: Asked, flow: Flow) -> float:
    """What is stored of the site, NaN where nothing is."""
    series = await store.emissions([SITE], asked.start_ns, asked.end_ns, "1y", flow.basis, flow.method_set)
    assert series.flow is not None
    mine = [i for i, f in enumerate(series.flow.tolist()) if series.flows[f] == flow]
    return float(series.columns["emissions_kgco2e"][mine].sum()) if mine else float("nan")


def _row(library: FactorLibrary, id_: str) -> FactorRow | None:
    """The row behind an id; None where the plant's folder no longer has it, as of a model of then."""
    try:
        return library.row(id_)
    except BadRequest:
        return None


def _write_summary(made: Restated, asked: Asked, engine: Engine) -> None:
    """`restatement.json` beside the parts: what was asked, by which rows, and what came out."""
    rows = {
        id_: asdict(row) for id_ in sorted(made.factors) if (row := _row(engine.library, id_)) is not None
    }
    names = dict.fromkeys(flow.method_set for flow in made.site)
    said = {
        "plant": engine.plant.id,
        "start": rfc3339(asked.start_ns),
        "end": rfc3339(asked.end_ns),
        "known_at": rfc3339(asked.known_at_ns),
        "bucket": asked.bucket,
        "method_sets": {name: method_of(engine.plant, name).edition for name in names},
        "site": [
            {
                "scope": int(flow.scope),
                "basis": str(flow.basis),
                "method_set": flow.method_set,
                "stored_kgco2e": None if np.isnan(stored) else stored,
                "restated_kgco2e": None if np.isnan(kg) else kg,
            }
            for flow, (stored, kg) in made.site.items()
        ],
        "factors": rows,
        "parts": made.parts,
        "rows": made.rows,
        "ecmc": version("ecmc"),
    }
    text = json.dumps(said, ensure_ascii=False, indent=1, default=str)
    draft = made.folder / "restatement.json.part"
    draft.write_text(text + "\n", "utf-8")
    draft.replace(made.folder / "restatement.json")
