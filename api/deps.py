"""What the routes stand on: one `Services`, given to the app by whoever composes the process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request

from api.security import Auth
from core.alerts import Alarms
from core.answers.footprint import Footprints
from core.answers.inventory import Inventories
from core.answers.ledger import LedgerDay
from core.answers.reconciliation import ReconciledEdge
from core.answers.shares import Shares
from core.bus import LiveUpdate, LocalBus
from core.carbon.factors import FactorLibrary
from core.carbon.green_power import NonFossil
from core.carbon.indicators import PeriodSums
from core.clock import Clock
from core.energy.register import MeterEvent
from core.health import Health
from core.plant.model import Plant
from core.proof.explain import Explanations
from core.registers.monte_carlo import MonteCarloRuns
from core.registers.shelf import Registers
from core.store.seam import Store


class DeviceView(Protocol):
    """A device as its collector sees it now."""

    @property
    def up(self) -> bool: ...
    @property
    def since_ns(self) -> int: ...
    @property
    def detail(self) -> str: ...
    @property
    def counters(self) -> Mapping[str, int]: ...
    @property
    def warning(self) -> str: ...
    @property
    def identity(self) -> Mapping[str, str]: ...


@dataclass(slots=True)
class Services:
    """The parts of a running plant that the API shows.

    Attributes:
        plant: Gives the plant in force; it may change while we run.
        devices: Gives each device's state by device id; empty where no collector runs in this process.
        live: Gives the newest live picture, None before the first.
        indicators: Computes the indicators of [start_ns, end_ns) by one method set.
        inventories: Gives what makes inventories, of now or of a past known time.
        green_ledger: A period's sums and its ledger of non-fossil electricity by one method set.
        green_hours: That ledger by the hour.
        counter_ledger: A register's days over [start_ns, end_ns).
        footprints: Of a product's batches over [start_ns, end_ns) by basis and method set.
        library: Gives the factor library in force.
        registers: Gives what people keep.
        factors_changed: Told that own factors of [start_ns, end_ns) were approved or withdrawn.
        event_changed: Told that an event of a meter was written down or withdrawn.
        boot: Names this run of the process; event ids carry it.
        auth: None: nobody is asked for a key.
        explain, shares, reconciliation, monte_carlo: Open figures, say what energy was made of, correct meters
            against each other, draw uncertainties; None where this process has no results.
    """

    plant: Callable[[], Plant]
    store: Store
    bus: LocalBus
    health: Health
    alarms: Alarms
    clock: Clock
    devices: Callable[[], Mapping[str, DeviceView]]
    live: Callable[[], LiveUpdate | None]
    indicators: Callable[[int, int, str], Awaitable[Sequence[Mapping[str, object]]]]
    inventories: Callable[[], Inventories]
    green_ledger: Callable[[int, int, str], Awaitable[tuple[PeriodSums, NonFossil]]]
    green_hours: Callable[[int, int, str], Awaitable[Sequence[Mapping[str, object]]]]
    counter_ledger: Callable[[str, int, int], Awaitable[Sequence[LedgerDay]]]
    footprints: Callable[[str, int, int, str, str], Awaitable[Footprints]]
    library: Callable[[], FactorLibrary]
    registers: Callable[[], Registers]
    factors_changed: Callable[[int, int], Awaitable[None]]
    event_changed: Callable[[str, MeterEvent], Awaitable[None]]
    boot: str
    auth: Auth | None = None
    explain: Explanations | None = None
    monte_carlo: MonteCarloRuns | None = None
    shares: Shares | None = None
    reconciliation: Callable[[int, int], Awaitable[Sequence[ReconciledEdge]]] | None = None


def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


def _plant(services: InServices) -> Plant:
    return services.plant()


def _who(request: Request) -> str:
    """Who asks: the name of the key, empty where none is asked for."""
    return str(request.scope.get("ecmc.who", ""))


InServices = Annotated[Services, Depends(_services)]
InPlant = Annotated[Plant, Depends(_plant)]
InWho = Annotated[str, Depends(_who)]
