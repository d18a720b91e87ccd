"""When to ask which device: due times, priorities, and a breaker that keeps dead devices out of the way.

Pure bookkeeping for one connection's queue: time comes in as an argument and
nothing sleeps. Due times are multiples of the period plus the device's phase,
a stable hash of its name, so load is even and the same after a restart. What
could not be asked in time is counted as missed and skipped, never queued up.

A device whose request fails is suspect: it is asked when no healthy device is
due. What a higher priority has kept waiting for ten periods goes ahead once, so
that overload slows a device down and never silences it. After two failed rounds
it is down and only probed, with its smallest request, after 1, 2, 4 … 60 s; the
first answer puts all its requests back, due at once.
"""

from __future__ import annotations

import heapq
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.clock import NS_PER_S, Clock, SystemClock

FAILED_ROUNDS_TO_OPEN = 2
CONFIRM_AFTER_NS = 2 * NS_PER_S  # a first failure is asked again no later than this
PROBE_FIRST_NS = 1 * NS_PER_S
PROBE_LAST_NS = 60 * NS_PER_S
SUSPECT_WAITS_NS = 5 * NS_PER_S  # at most behind healthy devices, or one period if that is longer
PERIODS_TO_STARVE = 10  # behind higher priorities, until a job goes ahead of them
STARVES_NO_SOONER_NS = 10 * NS_PER_S
PHASE_STEP_NS = NS_PER_S // 20  # phases on a grid, so that devices of one connection share ticks


@dataclass(frozen=True, slots=True)
class Job:
    """One request that comes again every `period_ns`; `size` is what it costs, in any unit."""

    period_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class Ticket:
    """One job handed out: of which device, and of which of its rounds."""

    device: str
    job: int
    generation: int


@dataclass(slots=True)
class _Device:
    name: str
    jobs: tuple[Job, ...] = ()
    priority: int = 0
    failures: int = 0
    open: bool = False
    probe_after_ns: int = PROBE_FIRST_NS
    missed: int = 0
    held_back: int = 0
    generation: int = 0  # entries of an older one are void


@dataclass(slots=True, eq=False)
class _Entry:
    """A job's next turn. Heaps hold it behind what they go by, for tuples of numbers compare fastest."""

    due_ns: int
    order: int
    generation: int
    device: _Device
    job: int
    taken: bool = False

    @property
    def void(self) -> bool:
        return self.taken or self.generation != self.device.generation


_Ranked = tuple[int, int, int, _Entry]  # priority turned round, due time, order


def phase_ns(device: str, period_ns: int) -> int:
    """Where in its period a device is asked; the same for a name for ever."""
    steps = period_ns // PHASE_STEP_NS
    return zlib.crc32(device.encode()) % steps * PHASE_STEP_NS if steps else 0


def next_due_ns(device: str, period_ns: int, after_ns: int) -> int:
    """The first due time after `after_ns`."""
    phase = phase_ns(device, period_ns)
    return (after_ns - phase) // period_ns * period_ns + period_ns + phase


class Schedule:
    """The queue of one connection."""

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}
        self._later: list[tuple[int, int, _Entry]] = []  # by due time
        self._healthy: list[_Ranked] = []  # due, highest priority first
        self._suspect: list[_Ranked] = []  # due, of devices that failed last time
        self._starving: list[
            tuple[int, int, _Entry]
        ] = []  # due, not of the highest priority; by when they starve
        self._highest = 0
        self._order = 0

    def set_jobs(self, device: str, jobs: Sequence[Job], first_due_ns: int, priority: int = 0) -> None:
        """What to ask a device from now on, each job first at `first_due_ns`; higher `priority` goes first.

        A device that was down gets another chance.
        """
        record = self._devices.setdefault(device, _Device(device))
        record.jobs = tuple(jobs)
        record.priority = priority
        self._highest = max(one.priority for one in self._devices.values())
        self._close(record)
        self._restart(record, [first_due_ns] * len(jobs))

    def take(self, now_ns: int) -> Ticket | None:
        """What to ask now, or None; its next due time is set."""
        while self._later and self._later[0][0] <= now_ns:
            due = heapq.heappop(self._later)[2]
            if not due.void:
                self._wait(due)
        self._drop_void()
        entry = self._next(now_ns)
        if entry is None:
            return None
        entry.taken = True
        device, job = entry.device, entry.device.jobs[entry.job]
        if not device.open:
            device.missed += (now_ns - entry.due_ns) // job.period_ns
            self._push(device, entry.job, next_due_ns(device.name, job.period_ns, now_ns))
        return Ticket(device.name, entry.job, device.generation)

    def wait_ns(self, now_ns: int) -> int | None:
        """How long until something is due; None while there is nothing at all."""
        self._drop_void()
        if self._healthy or self._suspect:
            return 0
        return max(0, self._later[0][0] - now_ns) if self._later else None

    def succeeded(self, ticket: Ticket, now_ns: int) -> bool:
        """The device answered; true if it was down until now."""
        record = self._devices[ticket.device]
        was_open = record.open
        self._close(record)
        if was_open:
            self._restart(record, [now_ns] * len(record.jobs))
        return was_open

    def failed(self, ticket: Ticket, now_ns: int) -> bool:
        """The device did not answer; true if it is down from now on. Ends its round.

        What else of the same round was under way and fails too does not count again.
        """
        record = self._devices[ticket.device]
        if ticket.generation != record.generation:
            return False
        record.failures += 1
        if record.open:
            record.probe_after_ns = min(2 * record.probe_after_ns, PROBE_LAST_NS)
            self._probe(record, now_ns)
            return False
        if record.failures >= FAILED_ROUNDS_TO_OPEN:
            record.open = True
            self._probe(record, now_ns)
            return True
        due = [next_due_ns(record.name, each.period_ns, now_ns) for each in record.jobs]
        due[ticket.job] = min(due[ticket.job], now_ns + CONFIRM_AFTER_NS)
        self._restart(record, due)
        return False

    def realign(self, now_ns: int) -> None:
        """Every due time anew, after the clock was set."""
        for record in self._devices.values():
            if record.open:
                self._probe(record, now_ns)
            else:
                self._restart(
                    record, [next_due_ns(record.name, job.period_ns, now_ns) for job in record.jobs]
                )

    def missed(self, device: str) -> int:
        """Polls of a device that were skipped because their time had passed."""
        return self._devices[device].missed

    def held_back(self, device: str) -> int:
        """How often a device's poll was held back by higher priorities for so long that it went ahead of them."""
        return self._devices[device].held_back

    def is_void(self, ticket: Ticket) -> bool:
        """The device's jobs were set or timed anew since the ticket was given out."""
        return self._devices[ticket.device].generation != ticket.generation

    def is_down(self, device: str) -> bool:
        return self._devices[device].open

    def _wait(self, entry: _Entry) -> None:
        if entry.device.failures:
            heapq.heappush(self._suspect, (-entry.device.priority, entry.due_ns, entry.order, entry))
            return
        heapq.heappush(self._healthy, (-entry.device.priority, entry.due_ns, entry.order, entry))
        if entry.device.priority < self._highest:
            period_ns = entry.device.jobs[entry.job].period_ns
            starves_ns = entry.due_ns + max(PERIODS_TO_STARVE * period_ns, STARVES_NO_SOONER_NS)
            heapq.heappush(self._starving, (starves_ns, entry.order, entry))

    def _next(self, now_ns: int) -> _Entry | None:
        if self._starving and self._starving[0][0] <= now_ns:
            entry = heapq.heappop(self._starving)[2]
            entry.device.held_back += 1
            return entry
        if self._suspect and (not self._healthy or self._waited_long(self._suspect[0][3], now_ns)):
            return heapq.heappop(self._suspect)[3]
        return heapq.heappop(self._healthy)[3] if self._healthy else None

    def _waited_long(self, entry: _Entry, now_ns: int) -> bool:
        period_ns = entry.device.jobs[entry.job].period_ns
        return now_ns - entry.due_ns >= max(SUSPECT_WAITS_NS, period_ns)

    @staticmethod
    def _close(device: _Device) -> None:
        device.open = False
        device.failures = 0
        device.probe_after_ns = PROBE_FIRST_NS

    def _drop_void(self) -> None:
        for queue in (self._healthy, self._suspect):
            while queue and queue[0][3].void:
                heapq.heappop(queue)
        for timed in (self._later, self._starving):
            while timed and timed[0][2].void:
                heapq.heappop(timed)

    def _restart(self, device: _Device, due_ns: Sequence[int]) -> None:
        device.generation += 1
        for job, due in enumerate(due_ns):
            self._push(device, job, due)

    def _probe(self, device: _Device, now_ns: int) -> None:
        device.generation += 1
        if device.jobs:
            smallest = min(range(len(device.jobs)), key=lambda job: device.jobs[job].size)
            self._push(device, smallest, now_ns + device.probe_after_ns)

    def _push(self, device: _Device, job: int, due_ns: int) -> None:
        self._order += 1
        entry = _Entry(due_ns, self._order, device.generation, device, job)
        heapq.heappush(self._later, (due_ns, self._order, entry))


class SteadyClock:
    """Wall-clock time that runs with the monotonic clock between two looks at the wall."""

    def __init__(
        self, wall: Clock | None = None, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall = wall or SystemClock()
        self._monotonic_ns = monotonic_ns
        self._ahead_ns = self._wall.now_ns() - monotonic_ns()

    def now_ns(self) -> int:
        return self._monotonic_ns() + self._ahead_ns

    def look(self) -> int:
        """Sets itself by the wall clock; by how much it had to, in ns."""
        ahead_ns = self._wall.now_ns() - self._monotonic_ns()
        step_ns = ahead_ns - self._ahead_ns
        self._ahead_ns = ahead_ns
        return step_ns
