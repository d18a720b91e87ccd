"""OPC UA against a server of another stack: every change arrives, every gap is marked, nothing is made up."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asyncua import ua

from collector.drivers import opcua, opcua_session
from collector.drivers.opcua import OpcuaDriver
from collector.drivers.opcua_decode import times_of
from collector.drivers.opcua_session import Service
from collector.drivers.opcua_wire import PublishAnswer, values_of
from collector.pki import Pki
from core import quality
from core.errors import DeviceRefused, DeviceUnreachable
from core.plant.model import OpcuaSource, Plant
from core.samples import NS_PER_S, SampleBatch

LINE = "nsu=urn:plant:line1;s="
POINTS = {
    "power": OpcuaSource(f"{LINE}Power"),
    "energy": OpcuaSource(f"{LINE}Energy", scale=0.001),
    "volume": OpcuaSource(f"{LINE}Volume", offset=10.0),
    "voltage_l1": OpcuaSource(f"{LINE}Voltage", element=0),
    "voltage_l3": OpcuaSource(f"{LINE}Voltage", element=2),
}

Rows = list[tuple[str, int, float, int]]


class Reading:
    """Collects what a driver reads, until a condition holds."""

    def __init__(self, driver: OpcuaDriver) -> None:
        self.driver = driver
        self.rows: Rows = []

    async def until(self, done: Callable[[Rows], object], within_s: float = 10.0) -> Rows:
        async with asyncio.timeout(within_s):
            while not done(self.rows):
                self.rows += rows_of(await self.driver.read())
        return self.rows

    def values(self, point: str) -> list[float]:
        return [value for name, _, value, _ in self.rows if name == point]


def rows_of(batch: SampleBatch) -> Rows:
    return list(
        zip(batch.names(), batch.time_ns.tolist(), batch.value.tolist(), batch.status.tolist(), strict=True)
    )


def seen(*points: str) -> Callable[[Rows], bool]:
    return lambda rows: set(points) <= {row[0] for row in rows}


@asynccontextmanager
async def opened(plant: Plant) -> AsyncIterator[Reading]:
    async with OpcuaDriver(plant, plant.connections[0]) as driver:
        yield Reading(driver)


@pytest.fixture(params=["subscribe", "read"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_values_arrive_scaled_by_element_and_good(
    server: Any, mode: str, plant_of: Callable[..., Plant]
) -> None:
    server.set("Power", 12.5)
    async with opened(plant_of(server.port, POINTS, mode=mode)) as reading:
        rows = await reading.until(seen(*POINTS))

    first = {name: (value, status) for name, _, value, status in reversed(rows)}
    assert first == {
        "power": (12.5, quality.GOOD),
        "energy": (pytest.approx(1.00025), quality.GOOD),
        "volume": (3.0, quality.GOOD),
        "voltage_l1": (230.0, quality.GOOD),
        "voltage_l3": (229.0, quality.GOOD),
    }
    assert all(abs(row[1] - time.time_ns()) < 5 * NS_PER_S for row in rows if row[0] == "power")


async def test_every_change_between_two_publishes_arrives_in_order(
    server: Any, plant_of: Callable[..., Plant]
) -> None:
    plant = plant_of(server.port, POINTS, period_s=0.1, publish_interval_s=0.5)
    async with opened(plant) as reading:
        await reading.until(seen("volume"))
        for value in range(5):
            server.set("Volume", value)
            await asyncio.sleep(0.12)
        await reading.until(lambda rows: rows and reading.values("volume")[-1] == 14.0)

    server.set("Volume", -7)
    assert reading.values("volume") == [3.0, 10.0, 11.0, 12.0, 13.0, 14.0]
    times = [row[1] for row in reading.rows if row[0] == "volume"]
    assert times == sorted(times)


async def test_a_bad_status_takes_the_number_with_it(server: Any, plant_of: Callable[..., Plant]) -> None:
    async with opened(plant_of(server.port, {"energy": POINTS["energy"]})) as reading:
        await reading.until(seen("energy"))
        server.bad("Energy")
        rows = await reading.until(lambda rows: rows[-1][3] < 0)
        assert not reading.driver.devices()["line"].up
        server.set("Energy", 1000.25)
        await reading.until(lambda rows: rows[-1][3] == quality.GOOD)

    bad = next(row for row in rows if row[3] < 0)
    assert bad[3] == quality.BAD_SENSOR_FAILURE
    assert np.isnan(bad[2])


async def test_an_unknown_node_is_bad_configuration_and_the_others_go_on(
    server: Any, plant_of: Callable[..., Plant]
) -> None:
    points = {
        **POINTS,
        "nowhere": OpcuaSource(f"{LINE}Nowhere"),
        "foreign": OpcuaSource("nsu=urn:not:here;s=Power"),
        "garbled": OpcuaSource("power please"),
        "beyond": OpcuaSource(f"{LINE}Voltage", element=3),
    }
    async with opened(plant_of(server.port, points)) as reading:
        rows = await reading.until(seen(*points))

    of = {name: status for name, _, _, status in rows}
    wrong = {"nowhere", "foreign", "garbled", "beyond"}
    assert {name for name, status in of.items() if status == quality.BAD_CONFIGURATION_ERROR} == wrong
    assert {name for name, status in of.items() if status == quality.GOOD} == set(POINTS)


async def test_a_node_that_comes_later_is_asked_for_again(
    server: Any, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opcua, "REFUSED_RETRY_S", 0.3)
    points = {"late": OpcuaSource(f"{LINE}Late"), "power": POINTS["power"]}
    async with opened(plant_of(server.port, points)) as reading:
        await reading.until(seen(*points))
        server.add("Late", 42)
        rows = await reading.until(lambda rows: reading.values("late")[-1] == 42.0)

    assert [row[3] for row in rows if row[0] == "late"] == [quality.BAD_CONFIGURATION_ERROR, quality.GOOD]


async def test_a_server_that_will_not_subscribe_is_read_in_turn(
    server: Any, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: object) -> None:
        raise ua.UaStatusCodeError(ua.StatusCodes.BadTooManySubscriptions)

    monkeypatch.setattr("collector.drivers.opcua_publish.Publisher.subscribe", refuses)
    async with opened(plant_of(server.port, {"power": POINTS["power"]})) as reading:
        rows = await reading.until(lambda rows: len(rows) >= 3)

    assert [row[2] for row in rows] == [12.5, 12.5, 12.5]


async def test_5001_nodes_against_a_limit_of_5000_are_split_and_so_again_after_a_cut(
    large_server: Any,
    wire: Callable[[int], Any],
    mode: str,
    plant_of: Callable[..., Plant],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for service in Service:  # else ours, which is lower, would hide the server's
        monkeypatch.setitem(opcua_session.MOST_PER_CALL, service, 100_000)
    monkeypatch.setattr(opcua, "ITEMS_PER_SUBSCRIPTION", 100_000)
    points = {f"n{i}": OpcuaSource(f"{LINE}N{i}") for i in range(5001)}
    async with wire(large_server.port) as line:
        plant = plant_of(line.port, points, period_s=1.0, mode=mode)
        driver = OpcuaDriver(plant, plant.connections[0])
        for _ in range(2):
            reading = Reading(driver)
            async with driver:
                assert driver._session.limits[Service.READ] == 5000
                await reading.until(lambda rows: len({row[0] for row in rows}) == 5001)
                line.cut()
                with pytest.raises(DeviceUnreachable):
                    await reading.until(lambda rows: False)
            line.heal()
            values = {name: value for name, _, value, status in reading.rows if status == quality.GOOD}

            assert values == {f"n{i}": float(i) for i in range(5001)}


async def test_a_limit_the_server_only_shows_by_refusing_is_found(
    large_server: Any, mode: str, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def says_nothing(session: opcua_session.Session) -> None:
        session.limits = dict.fromkeys(Service, 100_000)

    monkeypatch.setattr(opcua_session.Session, "_read_limits", says_nothing)
    monkeypatch.setattr(opcua, "ITEMS_PER_SUBSCRIPTION", 100_000)
    points = {f"n{i}": OpcuaSource(f"{LINE}N{i}") for i in range(5001)}
    async with opened(plant_of(large_server.port, points, period_s=1.0, mode=mode)) as reading:
        await reading.until(lambda rows: len({row[0] for row in rows}) == 5001)

        asked = Service.READ if mode == "read" else Service.MONITOR
        assert reading.driver._session.limits[asked] == 2501


async def test_what_a_server_has_no_room_to_watch_is_read_in_turn(
    start_server: Callable[..., Any], plant_of: Callable[..., Plant]
) -> None:
    server = start_server(capabilities={"maxMonitoredItemsPerSubscription": 2})
    async with opened(plant_of(server.port, POINTS)) as reading:
        await reading.until(seen(*POINTS))
        for value in (1, 2):
            server.set("Volume", value)
            await reading.until(lambda rows, value=value: reading.values("volume")[-1] == 10.0 + value)

    assert {status for *_, status in reading.rows} == {quality.GOOD}


async def test_while_nothing_goes_to_disk_the_server_s_queues_wait_and_not_our_memory(
    server: Any, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opcua, "ROWS_AHEAD", 3)
    asked = {"period_s": 0.1, "publish_interval_s": 0.1, "queue_size": 4}
    async with opened(plant_of(server.port, {"volume": POINTS["volume"]}, **asked)) as reading:
        await reading.until(seen("volume"))
        for value in range(25):
            server.set("Volume", value)
            await asyncio.sleep(0.08)
        waiting = sum(map(len, reading.driver._rows))
        await reading.until(lambda rows: reading.values("volume")[-1] == 34.0)

        assert waiting <= 3 + 2 * 4
        assert reading.driver.devices()["line"].counters["overflows"] >= 1
        assert len(reading.rows) < 24
    server.set("Volume", -7)


async def test_values_the_server_dropped_from_its_queue_are_counted_and_said(
    server: Any, plant_of: Callable[..., Plant]
) -> None:
    asked = {"period_s": 0.1, "publish_interval_s": 1.0, "queue_size": 2}
    async with opened(plant_of(server.port, {"volume": POINTS["volume"]}, **asked)) as reading:
        await reading.until(seen("volume"))
        for value in range(6):
            server.set("Volume", value)
            await asyncio.sleep(0.12)
        await reading.until(lambda rows: reading.values("volume")[-1] == 15.0)
        state = reading.driver.devices()["line"]

    server.set("Volume", -7)
    assert state.counters["overflows"] >= 1
    assert "the server's queues were too short" in state.detail


async def test_a_cut_link_marks_one_gap_and_comes_back_with_the_values_of_now(
    server: Any, wire: Callable[[int], Any], plant_of: Callable[..., Plant]
) -> None:
    async with wire(server.port) as line:
        plant = plant_of(line.port, {"volume": POINTS["volume"]})
        driver = OpcuaDriver(plant, plant.connections[0])
        reading = Reading(driver)
        async with driver:
            await reading.until(seen("volume"))
            line.cut()
            with pytest.raises(DeviceUnreachable, match="ua1: link lost"):
                await reading.until(lambda rows: False)
        with pytest.raises(DeviceUnreachable):
            await driver.__aenter__()
        server.set("Volume", 55)
        line.heal()
        started = time.monotonic()
        async with driver:
            await reading.until(lambda rows: rows[-1][2] == 65.0)
        server.set("Volume", -7)

    assert [(value, status) for _, _, value, status in reading.rows if status < 0] == [
        (pytest.approx(np.nan, nan_ok=True), quality.BAD_NO_COMMUNICATION)
    ]
    assert reading.rows[-1][3] == quality.GOOD
    assert time.monotonic() - started < 10.0


async def test_a_link_that_only_goes_silent_is_noticed(
    server: Any,
    wire: Callable[[int], Any],
    plant_of: Callable[..., Plant],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opcua_session, "WATCHDOG_S", 0.5)
    async with wire(server.port) as line:
        plant = plant_of(line.port, {"volume": POINTS["volume"]}, timeout_s=1.0)
        async with opened(plant) as reading:
            await reading.until(seen("volume"))
            line.silence()
            with pytest.raises(DeviceUnreachable):
                await reading.until(lambda rows: False)

            assert reading.rows[-1][3] == quality.BAD_NO_COMMUNICATION
            assert not reading.driver.devices()["line"].up


async def test_a_restarted_server_is_read_again(
    start_server: Callable[..., Any], plant_of: Callable[..., Plant]
) -> None:
    server = start_server()
    plant = plant_of(server.port, {"power": POINTS["power"]})
    driver = OpcuaDriver(plant, plant.connections[0])
    reading = Reading(driver)
    async with driver:
        await reading.until(seen("power"))
        server.kill()
        with pytest.raises(DeviceUnreachable):
            await reading.until(lambda rows: False)
    await asyncio.to_thread(start_server, port=server.port)
    async with driver:
        await reading.until(lambda rows: rows[-1][3] == quality.GOOD)

    assert [status for *_, status in reading.rows] == [
        quality.GOOD,
        quality.BAD_NO_COMMUNICATION,
        quality.GOOD,
    ]


async def test_an_unchanged_value_is_repeated_while_the_server_vouches_for_it(
    server: Any, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in [("HEARTBEAT_S", 0.6), ("KEEP_ALIVE_S", 0.3), ("CLOCK_TOLERANCE_S", 0.1)]:
        monkeypatch.setattr(opcua, name, seconds)
    async with opened(plant_of(server.port, {"power": POINTS["power"]})) as reading:
        rows = await reading.until(lambda rows: len(rows) >= 4)
        now_ns = time.time_ns()

    times = np.array([row[1] for row in rows])
    assert {row[2:] for row in rows} == {(12.5, quality.GOOD)}
    assert (np.diff(times) >= 0.6 * NS_PER_S).all()
    assert times[-1] < now_ns - 0.1 * NS_PER_S


def test_a_server_vouches_no_further_than_it_had_collected_when_it_answers_in_parts(
    plant_of: Callable[..., Plant],
) -> None:
    plant = plant_of(1, {"power": POINTS["power"]})
    driver = OpcuaDriver(plant, plant.connections[0])
    group = opcua._Group(sampling_s=0.0, publishing_s=1.0)
    tolerance_ns = int(opcua.CLOCK_TOLERANCE_S * NS_PER_S)
    now_ns = time.time_ns()
    vouched = []
    for second, more in [(-30, True), (-20, True), (-10, False), (-5, False)]:
        driver._published(group, PublishAnswer(1, 1, now_ns + second * NS_PER_S, more=more))
        vouched.append((group.vouched_ns - now_ns + tolerance_ns) // NS_PER_S if group.vouched_ns else None)

    assert vouched == [None, None, -30, -5]


async def test_a_wrong_password_is_a_refusal(
    server: Any, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UA_PASSWORD", "wrong")
    plant = plant_of(server.port, POINTS, username="reader", password_env="UA_PASSWORD")

    with pytest.raises(DeviceRefused, match=r"BadUserAccessDenied|BadIdentityToken"):
        await OpcuaDriver(plant, plant.connections[0]).__aenter__()


async def test_nobody_listening_is_unreachable(plant_of: Callable[..., Plant]) -> None:
    plant = plant_of(1, POINTS)

    with pytest.raises(DeviceUnreachable, match=r"ua1 opc\.tcp://127\.0\.0\.1:1/"):
        await OpcuaDriver(plant, plant.connections[0]).__aenter__()


@pytest.mark.parametrize("security", ["Basic256Sha256_Sign", "Basic256Sha256_SignAndEncrypt"])
async def test_signed_and_encrypted_with_login(
    server: Any,
    security: str,
    tmp_path: Path,
    plant_of: Callable[..., Plant],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UA_PASSWORD", "right")
    store = Pki(tmp_path / "pki")
    store.create("test")
    store.trust(str(server.pki / "own" / "certs" / "certificate.pem"))
    plant = plant_of(
        server.port,
        {"power": POINTS["power"]},
        security=security,
        folder=str(tmp_path),
        certificate="pki/own/certificate.der",
        private_key="pki/own/key.pem",
        username="reader",
        password_env="UA_PASSWORD",
    )

    async with opened(plant) as reading:
        await reading.until(seen("power"))

    assert reading.values("power")[0] == 12.5


async def test_answers_under_a_token_renewed_since_are_read_whatever_the_server_s_clock_says(
    start_server: Callable[..., Any], tmp_path: Path, plant_of: Callable[..., Plant]
) -> None:
    server = start_server(tokenLifetimeMs=3500, clockBehindMs=60_000)  # renewed each 2.6 s
    store = Pki(tmp_path / "pki")
    store.create("test")
    store.trust(str(server.pki / "own" / "certs" / "certificate.pem"))
    plant = plant_of(
        server.port,
        {"volume": POINTS["volume"]},
        security="Basic256Sha256_SignAndEncrypt",
        folder=str(tmp_path),
        certificate="pki/own/certificate.der",
        private_key="pki/own/key.pem",
        sampling_interval_s=0.0,
        publish_interval_s=0.1,
    )

    async with opened(plant) as reading:
        for value in range(20):
            if value == 10:
                await asyncio.sleep(5.5)  # of silence: the next answers come under tokens long at their end
            server.set("Volume", value)
            await reading.until(lambda rows, sent=value: rows and rows[-1][2] == sent + 10.0)
        counters = reading.driver.devices()["line"].counters
        client: Any = reading.driver._session._client
        renewals = client.uaclient.protocol._connection.security_token.TokenId - 1

    changes = [value for value, _ in itertools.groupby(reading.values("volume")) if value >= 10]
    assert changes == [10.0 + i for i in range(20)]
    assert counters["gaps"] == 0
    assert renewals >= 2


async def test_a_renewal_answered_too_late_renews_and_the_next_one_follows(
    server: Any, wire: Callable[..., Any], plant_of: Callable[..., Plant]
) -> None:
    async with (
        wire(server.port) as link,
        opened(plant_of(link.port, {"volume": POINTS["volume"]})) as reading,
    ):
        await reading.until(seen("volume"))
        client: Any = reading.driver._session._client
        channel = client.uaclient.protocol._connection

        link.silence()
        client.uaclient.protocol.timeout = 0.2
        await client.open_secure_channel(renew=True)
        assert channel.security_token.TokenId == 1
        client.uaclient.protocol.timeout = 4.0
        link.heal()
        async with asyncio.timeout(4):
            while channel.security_token.TokenId == 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await client.open_secure_channel(renew=True)
        server.set("Volume", 5)
        await reading.until(lambda rows: rows and rows[-1][2] == 15.0)

    server.set("Volume", -7)
    assert channel.security_token.TokenId == 3


NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * NS_PER_S
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("source", "server_time", "standing", "seconds", "doubtful"),
    [
        (NOW - SECOND, NOW, False, -1, False),
        (NOW - 3600 * SECOND, NOW, True, 0, False),  # an old value that still stands
        (NOW - 3600 * SECOND, NOW, False, 0, True),  # a change an hour ago, told only now: a wrong clock
        (NOW + 3600 * SECOND, NOW, True, 0, True),  # the wrong zone on the PLC
        (None, NOW - SECOND, False, -1, False),
        (NOW - 2 * SECOND, None, False, -2, False),
        (None, None, False, 0, False),
        (datetime(2000, 1, 1, tzinfo=UTC), datetime(2000, 1, 1, tzinfo=UTC), False, 0, True),
    ],
)
def test_the_time_of_a_value_is_the_source_s_unless_its_clock_is_wrong(
    source: datetime | None, server_time: datetime | None, standing: bool, seconds: int, doubtful: bool
) -> None:
    values = values_of(
        [(0, ua.DataValue(ua.Variant(1.0), SourceTimestamp=source, ServerTimestamp=server_time))]
    )

    time_ns, in_doubt = times_of(values.source_ns, values.server_ns, NOW_NS, np.array([standing]))

    assert ((time_ns[0] - NOW_NS) / NS_PER_S, in_doubt[0]) == (seconds, doubtful)
