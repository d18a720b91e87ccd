"""Modbus: polls the devices of one connection and hands over columns."""

from collector.drivers.modbus.build import modbus_driver
from collector.drivers.modbus.driver import ModbusDriver

__all__ = ["ModbusDriver", "modbus_driver"]
