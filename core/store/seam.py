"""What the rest of ecmc may ask of a store; `core.store.postgres` answers.

Nothing outside core/store knows SQL, partitions or whether TimescaleDB is there.
Times are UTC nanoseconds, ranges half-open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from core.plant.model import Plant
from core.results import Flow, WindowResult
from core.samples import Flags, Floats, Indices, SampleBatch, Times
from core.seal import Seal

Bucket = Literal["1m", "5m", "15m", "30m", "1h", "shift", "1d", "1mo", "1y"]


@dataclass(frozen=True, slots=True)
class Correction:
    """A deliberate change of stored values: the old ones are kept with this beside them."""

    who: str
    why: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A sample refused because another value already stands at its key."""

    point: str
    time_ns: int
    stored: float
    stored_status: int
    offered: float
    offered_status: int


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What became of a batch. `replaced`: good values that took the place of bad or uncertain ones (counted in
    accepted too); `corrected`: differences taken over as a correction."""

    accepted: int = 0
    repeated: int = 0
    replaced: int = 0
    corrected: int = 0
    conflicts: tuple[Conflict, ...] = ()  # the first 1,000
    conflict_count: int = 0
    unknown_points: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class LatestColumns:
    """Newest sample by time of each point that has one."""

    points: tuple[str, ...]
    time_ns: Times
    value: Floats
    status: npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class DirtyRange:
    """[start_ns, end_ns] of sample times that changed; `points` None for "many"."""

    id: int
    start_ns: int
    end_ns: int
    points: tuple[str, ...] | None
    reason: str  # samples | correction | event | plant | factor | recompute | stock | weekday


@dataclass(frozen=True, slots=True)
class Run:
    """One computation whose results were written: enough to reproduce it."""

    known_at_ns: int
    plant_fingerprint: str
    reason: str


@dataclass(frozen=True, slots=True)
class Pin:
    """The computation behind an hour: what was known of factors, and when it was done."""

    hour_ns: int
    known_at_ns: int
    computed_ns: int


@dataclass(frozen=True, slots=True)
class Computed:
    """Hours with results.

    Attributes:
        stretches: Runs of hours without a gap, [start, end), oldest first.
        newest_ns: When the newest of them was computed; `now_ns`: the database's time of this answer.
        first_hour_ns, last_hour_ns: The oldest and newest hour there is at all.
    """

    stretches: tuple[tuple[int, int], ...]
    newest_ns: int
    now_ns: int
    first_hour_ns: int
    last_hour_ns: int


@dataclass(frozen=True, slots=True)
class Validity:
    """A plant model holds over [start_ns, end_ns), None for since ever and for ever; said at `at_ns`."""

    id: int
    fingerprint: str
    start_ns: int | None
    end_ns: int | None
    who: str
    why: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class RunSpan:
    """Neighbouring hours computed with one plant revision for one reason; [start_ns, end_ns)."""

    start_ns: int
    end_ns: int
    first_known_at_ns: int
    last_known_at_ns: int
    plant_fingerprint: str
    reason: str
    conservation_error: float


@dataclass(frozen=True, slots=True)
class CorrectedSample:
    """A stored value that was replaced on record."""

    point: str
    time_ns: int
    old: float
    new: float
    who: str
    why: str
    at_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Stocks:
    """Storage stocks at one instant: shape (S,) kWh and (S, F) kg, in the order of the names."""

    storages: tuple[str, ...]
    flows: tuple[Flow, ...]
    kwh: Floats
    kg: Floats

    def said(self) -> dict[str, Any]:
        """As JSON holds it, to the last digit."""
        return {
            "storages": self.storages,
            "flows": [flow.words() for flow in self.flows],
            "kwh": self.kwh.tolist(),
            "kg": self.kg.tolist(),
        }

    @classmethod
    def of_said(cls, said: Mapping[str, Any]) -> Stocks:
        """What `said` said."""
        return cls(
            tuple(said["storages"]),
            tuple(Flow(*words) for words in said["flows"]),
            np.array(said["kwh"], dtype=np.float64),
            np.array(said["kg"], dtype=np.float64).reshape(len(said["storages"]), len(said["flows"])),
        )

    def onto(self, storages: Sequence[str], flows: Sequence[Flow]) -> tuple[Stocks, Flags]:
        """These stocks in another order, and which of the storages they hold, shape (S,).

        Of a storage that is not among these nothing is said; a flow that is not is unknown where there is energy.
        """
        held = np.array([name in self.storages for name in storages], dtype=np.bool_)
        if tuple(storages) == self.storages and tuple(flows) == self.flows:
            return self, held
        kwh = np.zeros(len(storages))
        kg = np.zeros((len(storages), len(flows)))
        for row in np.flatnonzero(held).tolist():
            mine = self.storages.index(storages[row])
            kwh[row] = self.kwh[mine]
            kg[row] = 0.0 if kwh[row] == 0 else np.nan
            for column, flow in enumerate(flows):
                if flow in self.flows:
                    kg[row, column] = self.kg[mine, self.flows.index(flow)]
        return Stocks(tuple(storages), tuple(flows), kwh, kg), held


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Bucketed columns for an answer: row i is (name[i], start_ns[i]); buckets without any data are left out.

    `columns` by field name, NaN for unknown. For emissions, `flow` indexes `flows`.
    """

    name: tuple[str, ...]
    start_ns: Times
    columns: Mapping[str, Floats]
    flow: Indices | None = None
    flows: tuple[Flow, ...] = ()


class Figures(Protocol):
    """What a period's accounts are made from: those of now (`Store`), or those of a past time (`core.answers.then`)."""

    async def readings(
        self, points: Sequence[str], start_ns: int, end_ns: int, step_spread_ns: int
    ) -> SampleBatch: ...

    async def energy(self, edge: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket) -> Series: ...

    async def emissions(
        self, node: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket, basis: str, method_set: str
    ) -> Series: ...


class Store(Protocol):
    async def close(self) -> None: ...

    async def ready(self) -> None:
        """Returns when the database answers; raises StoreUnavailable with the reason otherwise."""

    async def adopt(self, plant: Plant, fingerprint_known: bool = False, at_ns: int | None = None) -> None:
        """Register the plant's points, edges, nodes and flows (ids are kept for ever; names never reused).

        A model that is not the one adopted last holds from `at_ns` (now) on, or from the date it states.
        """

    async def validities(self) -> list[Validity]:
        """Which plant model holds when, oldest word first."""

    async def restate(self, fingerprint: str, start_ns: int, end_ns: int, who: str, why: str) -> None:
        """Put an adopted model in place of those that held over [start, end), and mark that dirty."""

    async def documents(self, fingerprint: str) -> bytes | None:
        """The plant folder of a model, packed; None where it was not kept."""

    # samples ---------------------------------------------------------------
    async def write(self, batch: SampleBatch, correction: Correction | None = None) -> WriteReport:
        """Commit a batch: samples, `latest` and the dirty ledger in one transaction.

        Unknown points are reported, never dropped silently; everything else of the batch still lands.
        """

    async def latest(self, points: Sequence[str] | None = None) -> LatestColumns: ...

    async def samples(
        self, point: str, start_ns: int, end_ns: int, limit: int, after_ns: int | None = None
    ) -> SampleBatch:
        """At most `limit` samples of one point in time order, those after `after_ns` where given."""

    async def readings(
        self,
        points: Sequence[str],
        start_ns: int,
        end_ns: int,
        step_spread_ns: int,
        as_of_ns: int | None = None,
    ) -> SampleBatch:
        """Non-bad readings of [start, end) sorted by (point, time), with the context interval energy needs:

        before start, the last reading and the first reading of its plateau (equal values) within `step_spread_ns`
        of it, with the reading before that; after end, the first reading and, within `step_spread_ns`, the first
        one with another value and the reading after it. So a window computes the same bits however it is cut.
        With `as_of_ns`, without what came or changed in closed days after that time.
        """

    async def span(self, points: Sequence[str] | None = None) -> tuple[int, int] | None:
        """First and last sample time there ever was, of all points or of these; None when there is none."""

    # ledger ----------------------------------------------------------------
    async def dirty(self, limit: int = 1000) -> list[DirtyRange]: ...

    async def mark_dirty(
        self, start_ns: int, end_ns: int, points: Sequence[str] | None, reason: str
    ) -> None: ...

    async def forget_dirty(self, ids: Sequence[int]) -> None:
        """Drop ledger rows that touch nothing the engine reads."""

    # results ---------------------------------------------------------------
    async def write_window(self, result: WindowResult, run: Run, done: Sequence[int] = ()) -> None:
        """Replace the hours of the window in every result table and roll-up, and drop the `done` dirty ranges,
        in one transaction."""

    async def stocks(self, at_ns: int, storages: Sequence[str], flows: Sequence[Flow]) -> Stocks | None:
        """Stocks at the start of an hour, None where that hour was never computed."""

    async def computed(self, start_ns: int, end_ns: int) -> Computed:
        """What of [start, end) was computed, and until when; whatever is written later is computed later."""

    async def has_run(self, hour_ns: int) -> bool:
        """Whether that hour was computed."""

    # pedigree --------------------------------------------------------------
    async def window(
        self,
        start_ns: int,
        end_ns: int,
        edges: Sequence[str],
        nodes: Sequence[str],
        flows: Sequence[Flow],
        storages: Sequence[str] = (),
        closed_at_ns: int | None = None,
    ) -> WindowResult:
        """Stored results of whole hours, NaN where none are.

        With `closed_at_ns`, here and below, the days that were closed by that time are read as they were then.
        """

    async def runs(self, start_ns: int, end_ns: int, closed_at_ns: int | None = None) -> list[RunSpan]:
        """Which computations the results of [start, end) come from, in time order."""

    async def corrections(
        self, points: Sequence[str], start_ns: int, end_ns: int, limit: int
    ) -> list[CorrectedSample]:
        """Values replaced on record in [start, end), newest correction first."""

    # seals -----------------------------------------------------------------
    async def seal_chain(self) -> list[Seal]:
        """Every seal in the order of the chain."""

    async def seals(self, start_ns: int, end_ns: int, period: str | None = None) -> list[Seal]:
        """Seals of the periods that touch [start, end)."""

    async def open_days(self, zone: str, before_ns: int) -> list[str]:
        """Days (2026-10-05) with results, over by then, that were never closed."""

    async def reopened_days(self) -> list[tuple[str, str]]:
        """Closed days whose figures have changed since, and why."""

    async def close_day(
        self,
        label: str,
        start_ns: int,
        end_ns: int,
        describe: Callable[[set[str]], dict[str, object]],
        who: str,
        why: str,
    ) -> Seal | None:
        """Close a day over whole hours as it is stored; None where something of it is still to be computed.

        `describe` says of factor row ids what the rows say.
        """

    async def close_month(self, label: str, start_ns: int, end_ns: int, who: str, why: str) -> Seal | None:
        """Close a month over the newest seals of its days; None where there are none."""

    async def stored(self, start_ns: int, end_ns: int, revision: int | None = None) -> list[WindowResult]:
        """Everything stored of whole hours; several results where the base interval changed."""

    async def silent_hours(self, start_ns: int, end_ns: int) -> list[int]:
        """Hours of [start, end) in which an edge was silent (Mark.SILENT), in time order."""

    async def pins(self, start_ns: int, end_ns: int, closed_at_ns: int | None = None) -> list[Pin]:
        """The computations behind the hours of [start, end), in time order."""

    async def kept_from(self, points: Sequence[str]) -> int | None:
        """From when on all readings of these points are still there; None where none was dropped."""

    async def computable_from(self, points: Sequence[str]) -> int | None:
        """The same, counting those that stand in files: what can be computed again as things are now."""

    async def rollup_difference(self, part: WindowResult) -> str | None:
        """The first roll-up that is not the sum of these stored intervals."""

    # series ----------------------------------------------------------------
    async def energy(self, edge: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket) -> Series:
        """Columns energy_kwh, coverage, estimated_share."""

    async def emissions(
        self, node: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket, basis: str, method_set: str
    ) -> Series:
        """Columns emissions_kgco2e, coverage; one row a scope."""

    async def intensity(
        self, node: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket, basis: str, method_set: str
    ) -> Series:
        """Column intensity_kgco2e_per_kwh, all scopes together."""

    async def balance(self, node: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket) -> Series:
        """Columns in_kwh, out_kwh, residual_kwh."""
