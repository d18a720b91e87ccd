"""One Modbus device as the driver knows it: its points, where they stand now, and how it is doing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from collector.drivers.modbus.identity import changes, texts_of
from collector.drivers.modbus.learned import CostMeter, is_news
from collector.drivers.modbus.plan import Block, Cost, Field, Refusals, block_of, halves, plan_blocks
from collector.drivers.modbus.transport import BIT_FUNCTIONS, MAX_BITS, MAX_REGISTERS, ModbusRefused
from core.plant.model import Device, ModbusSource, Point
from core.samples import NS_PER_S

TOLERATED_MISSES: Final = 0.02  # of the polls due


@dataclass(frozen=True, slots=True)
class Register:
    """A point and its place on the device; `index` is the point's in the plant's table."""

    index: int
    point: Point
    source: ModbusSource

    @property
    def period_ns(self) -> int:
        return max(1, round(self.point.period_s * NS_PER_S))

    @property
    def field(self) -> Field:
        return Field(self.source.address, 1 if self.source.function in BIT_FUNCTIONS else self.source.words)

    @property
    def scale_field(self) -> Field | None:
        return None if self.source.scale_address is None else Field(self.source.scale_address, 1)


@dataclass(frozen=True, slots=True)
class Planned:
    """A block, how often it is asked for, and the registers it brings."""

    block: Block
    period_ns: int
    registers: tuple[Register, ...]

    @property
    def points(self) -> list[int]:
        return [register.index for register in self.registers]


class Unit:
    """A device behind one unit id.

    Attributes:
        models: SunSpec model addresses; None until the device was walked.
        refusals: What it does not answer, by function.
        planned: Its requests as they stand.
        unreadable: Registers that cannot be read as configured.
        meter: What its requests cost.
        suspects: Refused blocks that are yet to be taken apart.
        rechecks: Refused fields that are yet to be asked for again, by function.
        overload: How much of what was due was not asked lately, in words; empty where next to nothing.
        identity: Who it says it is.
        exchanged: What it says otherwise than before, in words; empty while it is the same.
        texts_ns: When its identity is to be read.
        answered: Requests that brought data once, as (count, function, address).
        mute: How often a request that never did was asked for nothing.
    """

    def __init__(
        self,
        device: Device,
        registers: Sequence[Register],
        cost: Cost,
        refusals: Mapping[int, Refusals] | None = None,
        identity: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> None:
        """
        Args:
            refusals: What it is known to refuse; where a device's addresses are found by walking, it is not used.
            identity: Who it said it was.
            priority: Where its own options name none.
        """
        self.device = device
        own_priority = device.options.get("priority", priority)
        assert isinstance(own_priority, int)  # the loader typed it
        self.priority = own_priority
        self.models: Mapping[int, int] | None = None
        self.refusals: dict[int, Refusals] = {}
        self.meter = CostMeter()
        self.planned: tuple[Planned, ...] = ()
        self.unreadable: tuple[Register, ...] = ()
        self.up = False
        self.since_ns = 0
        self.detail = "waiting for its first answer"
        self.counters: Counter[str] = Counter()
        self.recheck_ns: int | None = None
        self.suspects: list[tuple[Block, ModbusRefused]] = []
        self.rechecks: list[tuple[int, Field]] = []
        self.overload = ""
        self.identity: dict[str, str] = dict(identity or {})
        self.exchanged = ""
        self.texts_ns = 0
        self.answered: set[tuple[int, int, int]] = set()
        self.mute: Counter[Block] = Counter()
        self._missed = 0
        self._probes = 0
        self._stood_at: Mapping[int, int] | None = None
        self._registers = tuple(registers)
        self._cost = cost
        self.needs_walk = bool(self.models_wanted)
        if not self.needs_walk:
            self._remember(refusals or {})
            self.replan()

    @property
    def indices(self) -> list[int]:
        return [register.index for register in self._registers]

    @property
    def models_wanted(self) -> list[int]:
        """SunSpec models its points stand in."""
        return [one.source.sunspec_model for one in self._registers if one.source.sunspec_model is not None]

    @property
    def standing(self) -> str:
        """What is wrong with it while it answers, in words; empty where nothing is."""
        if not self.unreadable:
            return ""
        names = [register.point.id for register in self.unreadable]
        return f"{len(names)} points it does not answer for: {', '.join(names[:3])}" + " …" * (len(names) > 3)

    @property
    def walk_period_ns(self) -> int:
        return min(register.period_ns for register in self._registers)

    def refused(self, function: int) -> Refusals:
        return self.refusals.setdefault(function, Refusals())

    def _remember(self, refusals: Mapping[int, Refusals]) -> None:
        for function, known in refusals.items():
            of_function = [one for one in self._registers if one.source.function == function]
            wanted = {one.field for one in of_function} | {one.scale_field for one in of_function}
            self.refusals[function] = Refusals(known.fields & (wanted - {None}), set(known.borders))

    def stand_at(self, models: Mapping[int, int]) -> None:
        """Its SunSpec models were found at these addresses; what it refused at others says nothing about it now."""
        if models != self._stood_at:
            self._forget()
        self.models = self._stood_at = models

    @property
    def warning(self) -> str:
        return "; ".join(filter(None, (self.overload, self.exchanged)))

    @property
    def texts(self) -> dict[str, ModbusSource]:
        """Where it says who it is."""
        return texts_of(self.device, self.models)

    def says(self, identity: Mapping[str, str]) -> str:
        """It says who it is; what of that is new, in words. Of another device nothing is known yet."""
        news = changes(self.identity, identity)
        self.identity = self.identity | dict(identity)
        if news:
            self.exchanged = (
                f"{self.device.id} is another one: {news}; "
                "where the meter was exchanged, write its last and first reading down as an event"
            )
            self._forget()
            self.meter = CostMeter()
        return news

    def _forget(self) -> None:
        self.refusals.clear()
        self.suspects.clear()
        self.rechecks.clear()
        self.answered.clear()
        self.mute.clear()

    def is_known(self, block: Block) -> bool:
        return (block.count, block.function, block.address) in self.answered

    def knows(self, block: Block) -> None:
        """The request brought data."""
        self.answered.add((block.count, block.function, block.address))

    def probes_alone(self, block: Block) -> Block:
        """What to ask a device that never answered: the block, and every other time one field of it.

        Some devices say nothing to a request that touches a register they do not have, or hang up.
        """
        self._probes += 1
        if self._probes % 2 or len(block.fields) < 2:
            return block
        return block_of(block.function, [block.fields[self._probes // 2 % len(block.fields)]])

    def cut(self, block: Block) -> None:
        """The block is never answered, the device is well: ask for its halves, of a single field no more."""
        refusals = self.refused(block.function)
        parts = halves(block)
        if parts is None:
            refusals.fields |= set(block.fields)
        else:
            refusals.borders.add(parts[1].address)

    def look(self, missed: int, since_ns: int) -> None:
        """Say whether it is asked too rarely, from its polls missed so far and the time since the last look."""
        due = sum(since_ns / planned.period_ns for planned in self.planned)
        skipped, self._missed = missed - self._missed, missed
        self.overload = (
            f"{self.device.id}: {skipped} of {max(skipped, round(due))} polls skipped in the last "
            f"{since_ns / NS_PER_S:g} s, its connection has no time for them"
            if skipped > TOLERATED_MISSES * due
            else ""
        )

    def take_measured_cost(self) -> bool:
        """Plan by the costs measured so far, if they are news; whether that changes its requests."""
        measured = self.meter.cost()
        if measured is None or not is_news(self._cost, measured):
            return False
        self._cost = measured
        return self._layout()[0] != self.planned

    def replan(self) -> None:
        """Lay the requests out anew after something was learned about the device."""
        self.planned, self.unreadable = self._layout()

    def _layout(self) -> tuple[tuple[Planned, ...], tuple[Register, ...]]:
        groups: dict[tuple[int, int], list[Register]] = {}
        unreadable: list[Register] = []
        for register in self._registers:
            located = self._located(register)
            if located is None or not self._readable(located):
                unreadable.append(register)
            else:
                groups.setdefault((located.source.function, located.period_ns), []).append(located)
        planned: list[Planned] = []
        for (function, period_ns), registers in sorted(groups.items(), key=lambda group: group[0]):
            wanted = {register.field for register in registers}
            wanted |= {register.scale_field for register in registers if register.scale_field is not None}
            blocks = plan_blocks(
                function, sorted(wanted), self._cost, self._most(function), self.refused(function)
            )
            for block in blocks:
                inside = set(block.fields)
                brought = tuple(register for register in registers if register.field in inside)
                planned.append(Planned(block, period_ns, brought))
        return tuple(planned), tuple(unreadable)

    def _located(self, register: Register) -> Register | None:
        """With the address it has on this device; None where its SunSpec model is missing."""
        source = register.source
        if source.sunspec_model is None:
            return register
        start = (self.models or {}).get(source.sunspec_model)
        if start is None:
            return None
        scale = None if source.scale_address is None else start + source.scale_address
        return replace(register, source=replace(source, address=start + source.address, scale_address=scale))

    def _readable(self, register: Register) -> bool:
        function = register.source.function
        bad = self.refused(function).fields
        return (
            register.field not in bad
            and register.scale_field not in bad
            and register.field.count <= self._most(function)
            and register.field.end <= 0x10000
        )

    def _most(self, function: int) -> int:
        if function in BIT_FUNCTIONS:
            return MAX_BITS
        limit = self.device.options.get("max_registers", MAX_REGISTERS)
        assert isinstance(limit, int)  # the loader typed it
        return limit
