"""Modbus: polls the devices of one connection and hands over columns."""

from collector.drivers.modbus.driver import ModbusDriver, modbus_driver

__all__ = ["ModbusDriver", "modbus_driver"]
