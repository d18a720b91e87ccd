"""An MQTT broker with two gateways behind it: a Tasmota panel meter and a unified-namespace bridge.

The broker is amqtt, MQTT 3.1.1, inside this process; the gateways' messages are
handed to it directly, as QoS 1, one set each period of the device. Faults:
`drop` on the connection takes the broker away, on a device it sends the
gateway's last will and falls silent; `stall` is silence; `exception` writes
"--" where a number belongs; `frozen` repeats the last values; `late_s` and
`clock_ahead_s` as everywhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Self

from amqtt.broker import Broker

from core.clock import datetime_of
from core.plant.model import Connection, Device, MqttSource
from core.samples import NS_PER_S
from simulators.meter import Meters

_PHASES: Final = (0.34, 0.33, 0.33)
Messages = Mapping[str, object]  # payload by topic


class MqttGateways:
    """The broker of one connection and the devices that publish to it; `async with` it, then `run()`."""

    def __init__(self, connection: Connection, meters: Meters) -> None:
        self.connection = connection
        self._meters = meters
        self._devices = [device for device in meters.plant.devices if device.connection == connection.id]
        self._broker: Any = None

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stop()

    async def run(self) -> None:
        """Publish until cancelled; take the broker away and bring it back as its faults say."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_broker(), name=f"broker:{self.connection.id}")
            for device in self._devices:
                tasks.create_task(self._publish(device), name=f"gateway:{device.id}")

    async def _keep_broker(self) -> None:
        while True:
            dropped = self._meters.faults.of(self.connection.id).drop
            if dropped and self._broker is not None:
                await self._stop()
            elif not dropped and self._broker is None:
                await self._start()
            await asyncio.sleep(0.2)

    async def _publish(self, device: Device) -> None:
        said_goodbye = False
        while True:
            trouble = self._meters.faults.of(device.id)
            if trouble.drop:
                if not said_goodbye and device.profile == "tasmota_energy":
                    await self._send({f"tele/{device.id}/LWT": "Offline"})
                said_goodbye = True
            elif not trouble.stall:
                said_goodbye = False
                messages = self.messages(device)
                await asyncio.sleep(trouble.late_s)
                await self._send(messages)
            now_ns, period_ns = self._meters.clock.now_ns(), round(device.period_s * NS_PER_S)
            await asyncio.sleep((period_ns - now_ns % period_ns) / NS_PER_S)

    def messages(self, device: Device) -> Messages:
        """What a gateway says now, by topic."""
        values = self._meters.values(device.id)
        trouble = self._meters.faults.of(device.id)
        stamp_ns = self._meters.stamp_ns(device.id)
        by_quantity = {
            point.quantity: (values[point.id], point.source.topic)
            for point in (self._meters.plant.point_by_id[name] for name in device.points)
            if isinstance(point.source, MqttSource)
        }
        number = (lambda value: "--") if trouble.exception else (lambda value: value)
        if device.profile == "tasmota_energy":
            power_kw, topic = by_quantity["active_power_total"]
            local = datetime_of(stamp_ns).astimezone(self._meters.plant.zone)
            energy_kwh, volts = by_quantity["active_energy_import_total"][0], by_quantity["voltage_l1"][0]
            return {topic: _tasmota(local, power_kw, energy_kwh, volts, number)}
        return {
            topic: {"value": number(round(value, 3)), "timestamp_ms": stamp_ns // 1_000_000}
            for value, topic in by_quantity.values()
        }

    async def _send(self, messages: Messages) -> None:
        if self._broker is None:
            return
        for topic, payload in messages.items():
            text = payload if isinstance(payload, str) else json.dumps(payload, separators=(",", ":"))
            await self._broker.internal_message_broadcast(topic, text.encode(), qos=1)

    async def _start(self) -> None:
        where = f"{self.connection.options['host']}:{self.connection.options['port']}"
        broker = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": where}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        await broker.start()
        self._broker = broker

    async def _stop(self) -> None:
        if self._broker is not None:
            broker, self._broker = self._broker, None
            await broker.shutdown()


def _tasmota(local: datetime, power_kw: float, energy_kwh: float, volts: float, number: Any) -> object:
    """A three-channel Tasmota's SENSOR message: watts in whole numbers, stamped in local time without zone."""
    watts = [round(share * power_kw * 1000) for share in _PHASES]
    return {
        "Time": local.strftime("%Y-%m-%dT%H:%M:%S"),
        "ENERGY": {
            "TotalStartTime": "2024-01-01T00:00:00",
            "Total": number(round(energy_kwh, 3)),
            "Power": [number(watt) for watt in watts],
            "Frequency": 50,
            "Voltage": number(round(volts)),
            "Current": [round(watt / volts, 2) for watt in watts],
        },
    }
