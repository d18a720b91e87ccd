"""Alarms after ISA-18.2: rules in columns, transitions as an append-only log."""

from core.alerts.machine import Alarms, AlarmState, AlertEvent, AlertLog, UnknownAlarm

__all__ = ["AlarmState", "Alarms", "AlertEvent", "AlertLog", "UnknownAlarm"]
