"""The Modbus driver: one connection, its devices polled in turn, columns out.

A tick asks for everything that is due, in the schedule's order and for at most
a quarter of a second, and decodes all answers together. Source time is the
middle between sending the request that was answered and its answer.

When a device goes down its points get one BadNoCommunication sample and the
breaker keeps it out of the others' way; when the link goes, all of them do, and
`read` then raises. A block that the device refuses is taken apart until only
the refused register is left out: that point says BadConfigurationError, the
others keep their names and values.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from collector.driver import DeviceState
from collector.drivers.modbus.decode import (
    FIRST_FREE,
    NO_SCALE,
    DecodePlan,
    Reading,
    new_image,
)
from collector.drivers.modbus.identity import text_of
from collector.drivers.modbus.learned import Learned
from collector.drivers.modbus.plan import Block, Field, halves
from collector.drivers.modbus.report import Report
from collector.drivers.modbus.sunspec import CANDIDATES, model_addresses
from collector.drivers.modbus.transport import (
    ACKNOWLEDGE,
    BIT_FUNCTIONS,
    BUSY,
    GATEWAY_PATH_UNAVAILABLE,
    GATEWAY_TARGET_SILENT,
    ILLEGAL_ADDRESS,
    ILLEGAL_FUNCTION,
    ILLEGAL_VALUE,
    READ_HOLDING_REGISTERS,
    BadReply,
    DeviceSilent,
    LinkLost,
    ModbusRefused,
    Transport,
    named,
    reply_size,
)
from collector.drivers.modbus.unit import Planned, Register, Unit
from collector.schedule import Job, Schedule, SteadyClock, Ticket
from core.clock import Clock
from core.quality import (
    BAD_COMMUNICATION_ERROR,
    BAD_CONFIGURATION_ERROR,
    BAD_DEVICE_FAILURE,
    BAD_NO_COMMUNICATION,
)
from core.samples import NS_PER_S, NS_PER_US, PointTable, SampleBatch, concatenate

log = logging.getLogger(__name__)

TICK_S = 0.25  # a batch is handed over at least this often while there is more to ask
RECHECK_NS = 600 * NS_PER_S  # refused registers and missing models are asked for again
FIRST_RECHECK_NS = 60 * NS_PER_S  # the same, of what is remembered from before the link was made
LOOK_NS = 60 * NS_PER_S  # at the wall clock
CLOCK_STEP_NS = NS_PER_S
CONFIGURATION_REFUSALS = (ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE)
FAILURES_TO_CUT = 3  # of a request that never brought data, while others do
SILENCES_TO_DROP = 2  # unanswered requests in a row, of whatever device, until the link is made anew


class _Tick:
    """What one tick brought: answered blocks with their times, and points gone bad."""

    def __init__(self) -> None:
        self.ends_s = time.monotonic() + TICK_S
        self.answered: dict[int, int] = {}
        self.gone_bad: dict[int, int] = {}  # status by point

    def bad(self, points: Sequence[int], status: int) -> None:
        self.gone_bad |= dict.fromkeys(points, status)


class ModbusDriver:
    """Reads the devices of one connection; see collector/driver.py.

    Args:
        name: The connection's id.
        transport: The link, not yet connected.
        units: The devices behind it.
        points: What the batches' point indices mean.
        report: What is worth sending of them.
        in_flight: Requests on their way at once.
        retries: Tries after an unanswered request, each with a new transaction id.
        pause_s: Silence between two requests, for gateways that need it.
        connect_delay_s: Silence after connecting.
        learned: Where to keep what the devices teach.
        connects: Held while a lost link is made anew, so that not all links of a plant are at once.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        units: Sequence[Unit],
        points: PointTable,
        report: Report,
        *,
        in_flight: int = 1,
        retries: int = 0,
        pause_s: float = 0.0,
        connect_delay_s: float = 0.0,
        learned: Learned | None = None,
        connects: asyncio.Semaphore | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self._counters: Counter[str] = Counter()
        self._transport = transport
        self._units = {unit.device.id: unit for unit in units}
        self._points = points
        self._in_flight = in_flight
        self._retries = retries
        self._pause_s = pause_s
        self._connect_delay_s = connect_delay_s
        self._learned = learned
        self._connects = connects or asyncio.Semaphore()
        self._clock = SteadyClock(clock)
        self._next_look_ns = self._clock.now_ns() + LOOK_NS
        self._schedule = Schedule()
        self._report = report
        self._replanned: set[str] = set()
        self._put_off: list[Ticket] = []
        self._lost: LinkLost | None = None
        self._connecting = asyncio.Lock()
        self._links_made = 0
        self._silences = 0
        self._image = new_image(FIRST_FREE)
        self._plan = DecodePlan([])
        self._first_block: dict[str, int] = {}  # of a device among all blocks
        self._positions: list[int] = []  # of each block in the image
        self._scales: dict[tuple[str, int, int, int | None], int] = {}  # scale registers in the image
        self._compile()

    async def __aenter__(self) -> Self:
        try:
            await self._connect(self._links_made)
        except LinkLost as why:
            for unit in self._units.values():
                unit.detail = str(why)
            raise
        self._lost = None
        self._put_off.clear()
        self._replanned = {name for name in self._replanned if not self._units[name].needs_walk}
        now_ns = self._clock.now_ns()
        for unit in self._units.values():
            unit.texts_ns = 0
            if unit.needs_walk:
                unit.models = None
            elif unit.unreadable:
                self._replanned.add(unit.device.id)  # the first tick says so
                unit.recheck_ns = now_ns + FIRST_RECHECK_NS
            self._set_jobs(unit, now_ns)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._transport.close()
        self._keep_what_was_learned()

    async def read(self) -> SampleBatch:
        while self._lost is None:
            now_ns = self._clock.now_ns()
            if now_ns >= self._next_look_ns:
                self._look_at_the_wall()
                continue
            wait_ns = 0 if self._put_off else self._schedule.wait_ns(now_ns)
            if wait_ns is None or wait_ns > 0:
                until_look_ns = self._next_look_ns - now_ns
                await asyncio.sleep(min(until_look_ns, wait_ns or until_look_ns) / NS_PER_S)
                continue
            batch = await self._tick()
            if len(batch):
                return batch
        raise self._lost

    async def stored(self) -> None:
        """Registers have no memory of being read."""

    def devices(self) -> Mapping[str, DeviceState]:
        """As the seam says; what is counted of the link stands in the counters of each of its devices."""
        of_link = self.counters
        return {
            name: DeviceState(
                unit.up,
                unit.since_ns,
                unit.detail,
                {
                    **of_link,
                    **unit.counters,
                    "missed_ticks": self._schedule.missed(name),
                    "held_back": self._schedule.held_back(name),
                },
                unit.warning,
                unit.identity,
            )
            for name, unit in self._units.items()
        }

    @property
    def counters(self) -> Mapping[str, int]:
        """Running totals of the link: reconnects, clock_steps, stray_replies, framing_lost, line_pauses."""
        return self._counters + self._transport.counters

    # --- a tick -----------------------------------------------------------------------------

    async def _tick(self) -> SampleBatch:
        tick = _Tick()
        if self._in_flight == 1:
            await self._work(tick)
        else:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._in_flight):
                    tasks.create_task(self._work(tick))
        if self._lost is not None:
            for unit in self._units.values():
                self._take_down(unit, str(self._lost), tick)
        return self._batch(tick)

    async def _work(self, tick: _Tick) -> None:
        while self._lost is None and time.monotonic() < tick.ends_s:
            ticket = self._put_off.pop() if self._put_off else self._schedule.take(self._clock.now_ns())
            if ticket is None:
                return
            if ticket.device in self._replanned or self._schedule.is_void(ticket):
                continue  # its jobs were set anew, or are about to be
            if self._first_block[ticket.device] + ticket.job in tick.answered:
                self._put_off.append(ticket)  # due again already: its first answer has to be decoded before
                return
            try:
                await self._ask(self._units[ticket.device], ticket, tick)
            except LinkLost as why:
                self._lost = why

    async def _ask(self, unit: Unit, ticket: Ticket, tick: _Tick) -> None:
        walk = unit.needs_walk and unit.models is None
        try:
            if walk:
                await self._walk(unit)
            elif unit.suspects:
                await self._narrow(unit, tick)
            else:
                if unit.planned:
                    planned = unit.planned[ticket.job]
                    await self._ask_block(unit, planned, self._first_block[unit.device.id] + ticket.job, tick)
                if self._clock.now_ns() >= unit.texts_ns:
                    await self._read_texts(unit)
                due = unit.recheck_ns is not None and self._clock.now_ns() >= unit.recheck_ns
                if due or unit.rechecks or not unit.planned:
                    await self._recheck(unit, tick)
        except DeviceSilent as why:
            now_ns = self._clock.now_ns()
            if self._schedule.failed(ticket, now_ns):
                self._take_down(unit, str(why), tick)
            return
        except BadReply as why:
            unit.counters["bad_replies"] += 1
            unit.detail = str(why)
        now_ns = self._clock.now_ns()
        if self._schedule.succeeded(ticket, now_ns) and unit.needs_walk and not walk:
            unit.models = None  # it may be another device, or have other firmware, by now
        if not unit.up:
            unit.up, unit.since_ns, unit.detail = True, now_ns, unit.standing
            tick.bad([register.index for register in unit.unreadable], BAD_CONFIGURATION_ERROR)
            log.info("device up", extra={"device": unit.device.id, "connection": self.name})

    async def _ask_block(self, unit: Unit, planned: Planned, number: int, tick: _Tick) -> None:
        block = planned.block
        if not unit.answered and (unit.mute[block] or self._schedule.is_down(unit.device.id)):
            asked = unit.probes_alone(block)
            if asked != block:
                with contextlib.suppress(ModbusRefused):  # a refusal is an answer too
                    await self._request(unit, asked.function, asked.address, asked.count)
                    unit.knows(asked)
                return
        try:
            data, time_ns = await self._request(unit, block.function, block.address, block.count)
        except DeviceSilent as why:
            if not unit.answered or unit.is_known(block):
                raise
            await self._is_mute(unit, block, why)
            tick.bad(planned.points, BAD_NO_COMMUNICATION)
            return
        except LinkLost as why:
            self._suspect(unit, block, why)
            raise
        except BadReply:
            tick.bad(planned.points, BAD_COMMUNICATION_ERROR)
            raise
        except ModbusRefused as why:
            unit.counters["refused"] += 1
            if why.code in CONFIGURATION_REFUSALS:
                unit.suspects.append((block, why))
                await self._narrow(unit, tick)
            elif why.code not in (ACKNOWLEDGE, BUSY):  # those two mean: ask again later
                unit.detail = str(why)
                tick.bad(planned.points, BAD_DEVICE_FAILURE)
                self._suspect(unit, block, why)
            return
        unit.knows(block)
        position = self._positions[number]
        if not unit.unreadable:
            unit.detail = ""
        self._image[position : position + len(data)] = np.frombuffer(data, dtype=np.uint8)
        tick.answered[number] = time_ns

    def _batch(self, tick: _Tick) -> SampleBatch:
        """The tick's samples; then the plans of devices about which it taught something."""
        blocks = tuple(sorted(tick.answered))
        times = np.array([tick.answered[block] for block in blocks], dtype=np.int64)
        point, time_ns, value, status = self._plan.decode(self._image, blocks, times)
        now_ns = self._clock.now_ns()
        for name in sorted(self._replanned):
            unit = self._units[name]
            unit.replan()
            tick.bad([register.index for register in unit.unreadable], BAD_CONFIGURATION_ERROR)
            unit.recheck_ns = (unit.recheck_ns or now_ns + RECHECK_NS) if unit.unreadable else None
        if self._replanned:
            self._compile()
            for name in self._replanned:
                self._set_jobs(self._units[name], now_ns)
            self._replanned.clear()
            self._keep_what_was_learned()
        read = SampleBatch(self._points, *self._report.due(point, time_ns, value, status))
        return concatenate([read, self._gone_bad(tick, now_ns)]) if tick.gone_bad else read

    def _gone_bad(self, tick: _Tick, now_ns: int) -> SampleBatch:
        """One sample of each point that was not bad in this way before."""
        point = np.array(list(tick.gone_bad), dtype=np.int32)
        status = np.array(list(tick.gone_bad.values()), dtype=np.int16)
        news = self._report.last_status(point) != status
        point, status = point[news], status[news]
        time_ns = np.full(point.size, now_ns - now_ns % NS_PER_US, dtype=np.int64)
        value = np.full(point.size, np.nan)
        return SampleBatch(self._points, *self._report.due(point, time_ns, value, status))

    def _take_down(self, unit: Unit, why: str, tick: _Tick) -> None:
        was_up = unit.up
        unit.detail = why
        if was_up or not unit.since_ns:
            unit.since_ns = self._clock.now_ns()
            log.warning("device down", extra={"device": unit.device.id, "connection": self.name, "why": why})
        unit.up = False
        unit.texts_ns = 0  # it may be another one when it is back, with other scales
        for (name, *_), at in self._scales.items():
            if name == unit.device.id:
                self._image[at : at + 2] = np.frombuffer(NO_SCALE, dtype=np.uint8)
        tick.bad(unit.indices, BAD_NO_COMMUNICATION)

    # --- what a device teaches --------------------------------------------------------------

    async def _walk(self, unit: Unit) -> None:
        """Find the SunSpec models; the device is planned when the tick ends."""

        async def read(address: int, count: int) -> bytes:
            return (await self._request(unit, READ_HOLDING_REGISTERS, address, count))[0]

        candidates = unit.device.options.get("sunspec_candidates", CANDIDATES)
        assert isinstance(candidates, Sequence)  # the loader typed it
        unit.stand_at(await model_addresses(read, candidates))
        self._replanned.add(unit.device.id)

    async def _read_texts(self, unit: Unit) -> None:
        """Ask it who it is; a text it refuses is left out, and all from the first it is silent about.

        It has just answered, so that is no sign of its being down.
        """
        unit.texts_ns = self._clock.now_ns() + RECHECK_NS
        said: dict[str, str] = {}
        for name, source in unit.texts.items():
            try:
                data, _ = await self._request(unit, source.function, source.address, source.words)
            except ModbusRefused:
                continue
            except DeviceSilent:
                break
            if text := text_of(data, source):
                said[name] = text
        if news := unit.says(said):
            log.warning(
                "device exchanged", extra={"device": unit.device.id, "connection": self.name, "says": news}
            )
            unit.counters["exchanges"] += 1
            self._replanned.add(unit.device.id)

    async def _narrow(self, unit: Unit, tick: _Tick) -> None:
        """Take refused blocks apart until the refused fields stand alone, and remember them.

        A step is the two halves of a block; what is left when the tick is over waits for the unit's next turn,
        so that the others behind the link do not wait for it.
        """
        while unit.suspects:
            refused, why = unit.suspects.pop()
            refusals = unit.refused(refused.function)
            parts = None if why.code == ILLEGAL_FUNCTION else halves(refused)
            if parts is None:
                refusals.fields |= set(refused.fields)
                unit.detail = str(why)
            else:
                try:
                    await self._halve(unit, parts)
                except (DeviceSilent, BadReply, LinkLost):
                    unit.suspects.append((refused, why))
                    raise
            if time.monotonic() >= tick.ends_s:
                break
        if not unit.suspects:
            self._replanned.add(unit.device.id)

    async def _is_mute(self, unit: Unit, block: Block, why: DeviceSilent) -> None:
        """A request nobody ever answered is silent again: it is the request's fault if the device answers another.

        Some devices do not refuse a register they do not have, they say nothing.

        Raises:
            DeviceSilent: It does not answer that one either.
        """
        count, function, address = min(unit.answered)
        with contextlib.suppress(ModbusRefused):
            await self._request(unit, function, address, count)
        self._suspect(unit, block, why)

    def _suspect(self, unit: Unit, block: Block, why: Exception) -> None:
        """A request brought no data; one that never did is cut where the device answers others."""
        if unit.is_known(block):
            return
        unit.mute[block] += 1
        if unit.answered and unit.mute[block] >= FAILURES_TO_CUT:
            unit.cut(block)
            unit.detail = str(why)
            self._replanned.add(unit.device.id)

    async def _halve(self, unit: Unit, parts: tuple[Block, Block]) -> None:
        refused: list[tuple[Block, ModbusRefused]] = []
        whole = True
        for part in parts:
            try:
                await self._request(unit, part.function, part.address, part.count)
            except ModbusRefused as refusal:
                whole = False
                if refusal.code in CONFIGURATION_REFUSALS:
                    refused.append((part, refusal))
        unit.suspects += refused
        if whole:  # each half is fine: it is the hole, the length or the border between them
            unit.refused(parts[0].function).borders.add(parts[1].address)

    async def _recheck(self, unit: Unit, tick: _Tick) -> None:
        """Ask once more for what was refused or missing; what answers now joins the plan again.

        As many as fit into the tick, the others at the unit's next turn.
        """
        if not unit.rechecks:
            unit.recheck_ns = self._clock.now_ns() + RECHECK_NS
            if unit.needs_walk:
                await self._walk(unit)
            unit.rechecks = [
                (function, field)
                for function, known in unit.refusals.items()
                for field in sorted(known.fields)
            ]
        while unit.rechecks:
            function, field = unit.rechecks.pop()
            try:
                await self._request(unit, function, field.address, field.count)
            except ModbusRefused:
                pass
            except DeviceSilent:
                if not unit.planned:
                    raise  # nothing else would tell that it is down
            else:
                unit.refused(function).fields.discard(field)
                self._replanned.add(unit.device.id)
            if time.monotonic() >= tick.ends_s:
                return

    # --- the link ---------------------------------------------------------------------------

    async def _request(self, unit: Unit, function: int, address: int, count: int) -> tuple[bytes, int]:
        """The bytes, and the middle of the try that brought them.

        A link that was closed meanwhile is made anew. Where it is closed again over the same question, that is
        the unit's trouble (some gateways hang up on a unit they cannot reach, some devices over a register they do
        not have), and the others keep the link.
        """
        tries = 1 + self._retries
        remade = False
        while True:
            unit.counters["requests"] += 1
            links_made = self._links_made
            sent_ns = self._clock.now_ns()
            try:
                data = await self._transport.request(unit.device.unit_id, function, address, count)
                self._silences = 0
                got_ns = self._clock.now_ns()
                if function not in BIT_FUNCTIONS:
                    unit.meter.add(count, got_ns - sent_ns)
                middle_ns = (sent_ns + got_ns) // 2
                return data, middle_ns - middle_ns % NS_PER_US
            except LinkLost as why:
                self._counters["reconnects"] += 1
                async with self._connects:
                    await self._connect(links_made)
                over_this = bool(unit.answered) and (count, function, address) not in unit.answered
                if remade and len(self._units) == 1 and not over_this:
                    raise
                if remade:
                    asked = named(unit.device.unit_id, function, address, count)
                    raise DeviceSilent(f"{why}, whenever asked for {asked}") from None
                remade = True
                continue
            except DeviceSilent:
                unit.counters["timeouts"] += 1
                await self._count_silence()
                tries -= 1
                if tries == 0:
                    raise
                continue
            except ModbusRefused as why:
                self._silences = 0
                if why.code in (GATEWAY_PATH_UNAVAILABLE, GATEWAY_TARGET_SILENT):
                    raise DeviceSilent(str(why)) from None
                raise
            finally:
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)

    async def _connect(self, links_made: int) -> None:
        """Make the link anew, unless another request did so since `links_made`."""
        async with self._connecting:
            if self._links_made != links_made:
                return
            await self._transport.connect()
            self._links_made += 1
            self._silences = 0
            if self._connect_delay_s:
                await asyncio.sleep(self._connect_delay_s)

    async def _count_silence(self) -> None:
        """A peer that answers nothing at all may be gone without a word; the next request makes a new link."""
        self._silences += 1
        if self._silences >= SILENCES_TO_DROP:
            self._silences = 0
            await self._transport.close()

    # --- plans and clock --------------------------------------------------------------------

    def _set_jobs(self, unit: Unit, now_ns: int) -> None:
        due_ns = now_ns
        if unit.needs_walk and unit.models is None:
            jobs = [Job(unit.walk_period_ns, 2)]
        elif unit.planned:
            jobs = [Job(planned.period_ns, planned.block.count) for planned in unit.planned]
        else:
            jobs, due_ns = [Job(RECHECK_NS, 1)], unit.recheck_ns or now_ns + RECHECK_NS
        self._schedule.set_jobs(unit.device.id, jobs, due_ns, unit.priority)

    def _compile(self) -> None:
        """Places in the image for every block, and the decode plan over them."""
        before, image_before = self._scales, self._image
        self._first_block, self._positions, self._scales = {}, [], {}
        end = FIRST_FREE
        readings: list[Reading] = []
        for name, unit in self._units.items():
            self._first_block[name] = len(self._positions)
            places: dict[tuple[int, int, Field], int] = {}  # of a field, by function and period
            for planned in unit.planned:
                block = planned.block
                self._positions.append(end)
                for field in block.fields:
                    offset = field.address - block.address
                    at = end + (offset // 8 if block.function in BIT_FUNCTIONS else 2 * offset)
                    places[block.function, planned.period_ns, field] = at
                end += reply_size(block.function, block.count)
            for number, planned in enumerate(unit.planned, self._first_block[name]):
                for register in planned.registers:
                    reading = _reading(register, planned, number, places)
                    readings.append(reading)
                    if reading.scale_position is not None:
                        scale = (
                            name,
                            planned.block.function,
                            planned.period_ns,
                            register.source.scale_address,
                        )
                        self._scales[scale] = reading.scale_position
        self._image = new_image(end)
        for scale, at in self._scales.items():
            old = before.get(scale)
            unread = np.frombuffer(NO_SCALE, dtype=np.uint8)
            self._image[at : at + 2] = unread if old is None else image_before[old : old + 2]
        self._plan = DecodePlan(readings)

    def _keep_what_was_learned(self) -> None:
        if self._learned is not None:
            self._learned.keep(
                {
                    name: (
                        unit.device,
                        {} if unit.needs_walk else unit.refusals,
                        unit.meter.cost(),
                        unit.identity,
                    )
                    for name, unit in self._units.items()
                }
            )

    def _look_at_the_wall(self) -> None:
        for name, unit in self._units.items():
            unit.look(self._schedule.missed(name), LOOK_NS)
            if unit.take_measured_cost():
                self._replanned.add(name)
        self._keep_what_was_learned()
        step_ns = self._clock.look()
        now_ns = self._clock.now_ns()
        self._next_look_ns = now_ns + LOOK_NS
        if abs(step_ns) > CLOCK_STEP_NS:
            self._counters["clock_steps"] += 1
            log.warning("clock was set", extra={"connection": self.name, "step_s": step_ns / NS_PER_S})
            self._schedule.realign(now_ns)


def _reading(
    register: Register, planned: Planned, number: int, places: Mapping[tuple[int, int, Field], int]
) -> Reading:
    block, source, point = planned.block, register.source, register.point
    position = places[block.function, planned.period_ns, register.field]
    scale = register.scale_field
    return Reading(
        point=register.index,
        source=source,
        block=number,
        position=position,
        coil_bit=(source.address - block.address) % 8 if block.function in BIT_FUNCTIONS else None,
        scale_position=None if scale is None else places[block.function, planned.period_ns, scale],
        low=point.low,
        high=point.high,
        invalid_values=point.invalid_values,
    )
