"""From a connection of the plant to its driver: the link, the devices behind it, what is known of them."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from collector.drivers.modbus.decode import kind_of
from collector.drivers.modbus.driver import ModbusDriver
from collector.drivers.modbus.learned import Learned
from collector.drivers.modbus.mbap import MbapTransport
from collector.drivers.modbus.plan import Cost, serial_cost
from collector.drivers.modbus.pymodbus_transport import PymodbusTransport
from collector.drivers.modbus.report import Report
from collector.drivers.modbus.transport import Transport
from collector.drivers.modbus.unit import Register, Unit
from core.errors import EcmcError
from core.plant.model import Connection, Device, ModbusSource, NodeKind, Origin, Plant, PointMeter, Protocol


def modbus_driver(
    plant: Plant,
    connection: Connection,
    transport: Transport | None = None,
    learned: Path | None = None,
    connects: asyncio.Semaphore | None = None,
) -> ModbusDriver:
    """The driver of a Modbus connection, with every device of the plant behind it.

    Connection options: host, port, timeout_s, connect_timeout_s, client (`pymodbus`
    for TCP), in_flight, retries, pause_s; of a serial line port, baud, parity,
    stop_bits; of TLS ca_file, cert_file, key_file, server_name. Device options:
    max_registers, priority, connect_delay_s, sunspec_candidates.

    Args:
        transport: The link to use instead of the connection's own.
        learned: Folder to keep what the devices teach in; None forgets it.
        connects: How many links of the plant may be made at once; None for no limit.

    Raises:
        EcmcError: The connection's options or a point's type cannot be used.
    """
    options = _Options(connection)
    rtu = connection.protocol in (Protocol.MODBUS_RTU, Protocol.MODBUS_RTU_TCP)
    memory = Learned(connection, learned)
    units = connection_units(plant, connection, memory)
    by_pymodbus = rtu or options.text("client", "mbap") == "pymodbus"
    return ModbusDriver(
        connection.id,
        transport or connection_transport(connection),
        units,
        plant.point_table,
        Report.of(plant),
        in_flight=1 if by_pymodbus else int(options.number("in_flight", 1)),
        retries=int(options.number("retries", 1 if rtu else 0)),
        pause_s=options.number("pause_s", 0.0),
        connect_delay_s=max((_connect_delay_s(unit.device) for unit in units), default=0.0),
        learned=memory,
        connects=connects,
    )


def _connect_delay_s(device: Device) -> float:
    delay_s = device.options.get("connect_delay_s", 0.0)
    assert isinstance(delay_s, int | float)  # the loader typed it
    return delay_s


def connection_units(plant: Plant, connection: Connection, learned: Learned | None = None) -> list[Unit]:
    """The devices behind a connection, with the registers their points come from and what is known of them.

    Raises:
        EcmcError: A point's type is no number.
    """
    rtu = connection.protocol in (Protocol.MODBUS_RTU, Protocol.MODBUS_RTU_TCP)
    cost = serial_cost(int(_Options(connection).number("baud", 9600))) if rtu else Cost()
    billing = _billing_devices(plant)
    units = []
    for device in plant.devices:
        if device.connection != connection.id:
            continue
        registers = []
        for point_id in device.points:
            point = plant.point_by_id[point_id]
            if isinstance(point.source, ModbusSource):
                try:
                    kind_of(point.source)
                except ValueError as why:
                    raise EcmcError(f"point {point_id}: {why}") from None
                registers.append(Register(plant.point_table.index[point_id], point, point.source))
        if registers:
            known = learned or Learned(connection, None)
            units.append(
                Unit(
                    device,
                    registers,
                    known.cost(device) or cost,
                    known.refusals(device),
                    known.identity(device),
                    int(device.id in billing),
                )
            )
    return units


def _billing_devices(plant: Plant) -> set[str | None]:
    """Devices that meter what crosses the fence: under overload they are asked first, unless the plant says otherwise."""
    return {
        plant.point_by_id[edge.meter.point].device
        for edge in plant.edges
        if isinstance(edge.meter, PointMeter)
        and (
            plant.node_by_id[edge.source].origin is Origin.PURCHASED
            or plant.node_by_id[edge.target].kind is NodeKind.EXPORT
        )
    }


def connection_transport(connection: Connection) -> Transport:
    """The link of a connection, not yet connected.

    Raises:
        EcmcError: The connection's options cannot be used.
    """
    options = _Options(connection)
    timeout_s = options.number("timeout_s", 1.0)
    if connection.protocol is Protocol.MODBUS_RTU:
        return PymodbusTransport.serial_rtu(
            options.text("port"),
            timeout_s,
            int(options.number("baud", 9600)),
            options.text("parity", "N"),
            int(options.number("stop_bits", 1)),
        )
    tls = connection.protocol is Protocol.MODBUS_TLS
    host, port = options.text("host"), int(options.number("port", 802 if tls else 502))
    if connection.protocol is Protocol.MODBUS_RTU_TCP:
        return PymodbusTransport.rtu_over_tcp(host, port, timeout_s)
    if options.text("client", "mbap") == "pymodbus" and not tls:
        return PymodbusTransport.over_tcp(host, port, timeout_s)
    return MbapTransport(
        host,
        port,
        timeout_s=timeout_s,
        connect_timeout_s=options.number("connect_timeout_s", 3.0),
        tls=_tls_context(options) if tls else None,
        server_name=options.text("server_name", host),
    )


def _tls_context(options: _Options) -> ssl.SSLContext:
    """Who we trust, and our own certificate if the device asks for one."""
    try:
        context = ssl.create_default_context(cafile=options.text("ca_file", "") or None)
        if options.text("cert_file", ""):
            context.load_cert_chain(options.text("cert_file"), options.text("key_file", "") or None)
    except OSError as why:
        raise EcmcError(f"connection {options.connection.id}: certificates cannot be used: {why}") from None
    return context


class _Options:
    """A connection's options as the loader typed them, with defaults."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def number(self, key: str, default: float) -> float:
        value = self.connection.options.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise EcmcError(f"connection {self.connection.id}: {key} is {value!r}, a number wanted")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.connection.options.get(key)
        if value is None:
            value = default
        if not isinstance(value, str):
            raise EcmcError(f"connection {self.connection.id}: {key} is {value!r}, a text wanted")
        return value
