"""What the engine makes of a window of time: columns over base intervals.

Everything people see is a sum of these. Windows are whole hours, because the
store keeps results as one block an hour and series, so that live computation,
late data and a recomputation of years all write the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, IntFlag, StrEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from core.lookback import Wanted
from core.samples import NS_PER_S, Floats

_T = TypeVar("_T", bound=np.generic)

HOUR_NS = 3600 * NS_PER_S
NOTHING = -1  # of a flow that carries no carbon anywhere
SITE = "site"  # the node that stands for the whole inventory


class Basis(StrEnum):
    LOCATION = "location"
    MARKET = "market"


class Scope(IntEnum):
    DIRECT = 1
    ENERGY_INDIRECT = 2
    VALUE_CHAIN = 3


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """One carbon column: which scope, on which basis, by which method set."""

    scope: int
    basis: str
    method_set: str

    def words(self) -> list[Any]:
        """As JSON holds it: `Flow(*words)` is the flow again."""
        return [int(self.scope), str(self.basis), self.method_set]


class Mark(IntFlag):
    """Why an interval's energy is not simply what the meter said; kept with the energy, shown with it."""

    NONE = 0
    GAP = 1  # spread over a silence
    RESET = 2  # the register fell without rolling over: nothing invented across it
    ROLLOVER = 4
    GLITCH = 8  # a single reading set aside
    FROZEN = 16  # no step while power says otherwise
    JUMP = 32  # more than the meter can pass
    POWER = 64  # integrated from power, no register
    SUBSTITUTED = 128  # closed by the node's balance or a profile
    NEGATIVE = 256  # formula or remainder came out below zero; carries zero
    EVENT = 512  # a dated meter event lies inside
    OVERDRAWN = 1024  # a storage delivered more than it held
    SILENT = 2048  # the meter says nothing: its weekdays before tell what it carried, or how a gap lies, if they can


Marks = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, eq=False)
class IntervalEnergy:
    """Energy of one or many edges over base intervals; the last axis is time.

    Attributes:
        energy_kwh: NaN where nothing is known.
        covered: Share of the interval's time backed by good readings, 0..1.
        estimated_kwh: The part of the energy placed by spreading or substitution.
        mark: Mark bits.
    """

    energy_kwh: Floats
    covered: Floats
    estimated_kwh: Floats
    mark: Marks


def spread(column: Floats, place: Sequence[int]) -> Floats:
    """Flows put where they belong: shape (N, F, T), flow f is `place[f]` of the column, zero where NOTHING."""
    whole = column[:, place]
    whole[:, [f for f, at in enumerate(place) if at == NOTHING]] = 0.0
    return whole


@dataclass(frozen=True, slots=True, eq=False)
class WindowResult:
    """Results of [start_ns, start_ns + T base intervals); E edges, N nodes (`site` last), F flows, S storages.

    Attributes:
        energy: Shape (E, T).
        in_kwh, out_kwh, residual_kwh: Shape (N, T); residual = in - out - losses - change of store.
        coverage: Shape (N, T), share of the time the node's energy stands on good readings.
        emissions_kg: Shape (N, F, T): what a load received, a source brought in, a bus or converter or
            storage kept; `site`: the inventory. NaN where unknown.
        through_kg: Shape (N, F, T): carbon leaving (of a load: arriving), the numerator of intensity.
        through_kwh: Shape (N, T): energy leaving (of a load: arriving), its denominator.
        stock_kwh: Shape (S, H + 1) at each hour's start and the window's end.
        stock_kg: Shape (S, F, H + 1).
        conservation_error: Largest relative break of carbon conservation in the window (docs/engine.md, 4).
        factor_ids: Ids of the factor rows used, by source node or burning node and flow.
        wanted: Earlier readings without which this result is not the last word (core/lookback.py).
    """

    start_ns: int
    base_ns: int
    edges: tuple[str, ...]
    nodes: tuple[str, ...]
    flows: tuple[Flow, ...]
    storages: tuple[str, ...]
    energy: IntervalEnergy
    in_kwh: Floats
    out_kwh: Floats
    residual_kwh: Floats
    coverage: Floats
    emissions_kg: Floats
    through_kg: Floats
    through_kwh: Floats
    stock_kwh: Floats
    stock_kg: Floats
    conservation_error: float = 0.0
    factor_ids: dict[str, str] = field(default_factory=dict)
    wanted: tuple[Wanted, ...] = ()
    interval_stock_kwh: Floats | None = None  # shape (S, T + 1), where a caller may go on from inside an hour
    interval_stock_kg: Floats | None = None  # shape (S, F, T + 1)

    @property
    def intervals(self) -> int:
        return int(self.in_kwh.shape[-1])

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.intervals * self.base_ns

    def last_hour(self) -> WindowResult:
        """The window's last hour by itself."""
        first = self.intervals - HOUR_NS // self.base_ns
        if first <= 0:
            return self
        return self._cut(first, self.intervals)

    def hour(self, number: int) -> WindowResult:
        """One of the window's hours by itself."""
        per_hour = HOUR_NS // self.base_ns
        return self._cut(number * per_hour, (number + 1) * per_hour)

    def patched(self, part: WindowResult) -> WindowResult:
        """This hour with the base intervals of `part`, which ends with it, in place of its own."""
        first = (part.start_ns - self.start_ns) // self.base_ns
        last = first + part.intervals
        if first < 0 or last != self.intervals or part.edges != self.edges or part.nodes != self.nodes:
            raise ValueError("only the rest of the same hour and network can be patched in")

        def put(mine: npt.NDArray[_T], theirs: npt.NDArray[_T]) -> npt.NDArray[_T]:
            whole = mine.copy()
            whole[..., first:last] = theirs
            return whole

        assert self.interval_stock_kwh is not None
        assert self.interval_stock_kg is not None
        assert part.interval_stock_kwh is not None
        assert part.interval_stock_kg is not None
        stock_kwh, stock_kg = self.interval_stock_kwh.copy(), self.interval_stock_kg.copy()
        stock_kwh[..., first:] = part.interval_stock_kwh
        stock_kg[..., first:] = part.interval_stock_kg
        energy = IntervalEnergy(
            put(self.energy.energy_kwh, part.energy.energy_kwh),
            put(self.energy.covered, part.energy.covered),
            put(self.energy.estimated_kwh, part.energy.estimated_kwh),
            put(self.energy.mark, part.energy.mark),
        )
        return replace(
            self,
            energy=energy,
            **self._columns(lambda name, mine: put(mine, getattr(part, name))),
            stock_kwh=np.stack([stock_kwh[..., 0], stock_kwh[..., -1]], axis=-1),
            stock_kg=np.stack([stock_kg[..., 0], stock_kg[..., -1]], axis=-1),
            interval_stock_kwh=stock_kwh,
            interval_stock_kg=stock_kg,
            conservation_error=max(self.conservation_error, part.conservation_error),
            factor_ids={**self.factor_ids, **part.factor_ids},
        )

    def spread(self, flows: tuple[Flow, ...], place: Sequence[int]) -> WindowResult:
        """The same with more flows, of which several are alike: flow f is here `place[f]`, zero where NOTHING."""
        stock_kg = self.interval_stock_kg
        return replace(
            self,
            flows=flows,
            emissions_kg=spread(self.emissions_kg, place),
            through_kg=spread(self.through_kg, place),
            stock_kg=spread(self.stock_kg, place),
            interval_stock_kg=None if stock_kg is None else spread(stock_kg, place),
        )

    @staticmethod
    def joined(parts: Sequence[WindowResult]) -> WindowResult:
        """One hour of parts that follow each other, each with its own network; `parts` have one base interval.

        What a part does not have is unknown there; a storage it does not have holds nothing.
        """
        last = parts[-1]
        edges = tuple(dict.fromkeys(name for part in reversed(parts) for name in part.edges))
        flows = tuple(dict.fromkeys(flow for part in reversed(parts) for flow in part.flows))
        storages = tuple(dict.fromkeys(name for part in reversed(parts) for name in part.storages))
        inside = dict.fromkeys(name for part in reversed(parts) for name in part.nodes if name != SITE)
        nodes = (*inside, SITE)

        def put(column: Callable[[WindowResult], Floats], *axes: str, missing: float = np.nan) -> Floats:
            placed = []
            for part in parts:
                mine = column(part)
                names = {"edges": edges, "nodes": nodes, "flows": flows, "storages": storages}
                whole = np.full((*(len(names[axis]) for axis in axes), mine.shape[-1]), missing)
                at = [[names[axis].index(name) for name in getattr(part, axis)] for axis in axes]
                whole[np.ix_(*at, range(mine.shape[-1]))] = mine
                placed.append(whole)
            return np.concatenate(placed, axis=-1)

        def stocks(column: Callable[[WindowResult], Floats | None], *axes: str) -> Floats:
            def known(part: WindowResult) -> Floats:
                found = column(part)
                assert found is not None
                return found if part is last else found[..., :-1]

            return put(known, *axes, missing=0.0)

        stock_kwh = stocks(lambda part: part.interval_stock_kwh, "storages")
        stock_kg = stocks(lambda part: part.interval_stock_kg, "storages", "flows")
        energy = IntervalEnergy(
            put(lambda part: part.energy.energy_kwh, "edges"),
            put(lambda part: part.energy.covered, "edges", missing=0.0),
            put(lambda part: part.energy.estimated_kwh, "edges", missing=0.0),
            put(lambda part: part.energy.mark.astype(np.float64), "edges", missing=0.0).astype(np.int16),
        )
        return replace(
            last,
            start_ns=parts[0].start_ns,
            edges=edges,
            nodes=nodes,
            flows=flows,
            storages=storages,
            energy=energy,
            in_kwh=put(lambda part: part.in_kwh, "nodes"),
            out_kwh=put(lambda part: part.out_kwh, "nodes"),
            residual_kwh=put(lambda part: part.residual_kwh, "nodes"),
            coverage=put(lambda part: part.coverage, "nodes", missing=0.0),
            emissions_kg=put(lambda part: part.emissions_kg, "nodes", "flows"),
            through_kg=put(lambda part: part.through_kg, "nodes", "flows"),
            through_kwh=put(lambda part: part.through_kwh, "nodes"),
            stock_kwh=stock_kwh[..., [0, -1]],
            stock_kg=stock_kg[..., [0, -1]],
            conservation_error=max(part.conservation_error for part in parts),
            factor_ids={key: ids for part in parts for key, ids in part.factor_ids.items()},
            interval_stock_kwh=stock_kwh,
            interval_stock_kg=stock_kg,
        )

    def _columns(self, change: Callable[[str, Floats], Floats]) -> dict[str, Any]:
        return {name: change(name, getattr(self, name)) for name in _COLUMNS}

    def _cut(self, first: int, last: int) -> WindowResult:
        """Base intervals [first, last), whole hours."""
        per_hour = HOUR_NS // self.base_ns
        hours = slice(first // per_hour, last // per_hour + 1)
        energy = IntervalEnergy(
            self.energy.energy_kwh[..., first:last],
            self.energy.covered[..., first:last],
            self.energy.estimated_kwh[..., first:last],
            self.energy.mark[..., first:last],
        )
        stock_kwh, stock_kg = self.interval_stock_kwh, self.interval_stock_kg
        return replace(
            self,
            start_ns=self.start_ns + first * self.base_ns,
            energy=energy,
            **self._columns(lambda _, mine: mine[..., first:last]),
            stock_kwh=self.stock_kwh[..., hours],
            stock_kg=self.stock_kg[..., hours],
            interval_stock_kwh=None if stock_kwh is None else stock_kwh[..., first : last + 1],
            interval_stock_kg=None if stock_kg is None else stock_kg[..., first : last + 1],
        )


_COLUMNS = (
    "in_kwh",
    "out_kwh",
    "residual_kwh",
    "coverage",
    "emissions_kg",
    "through_kg",
    "through_kwh",
)
