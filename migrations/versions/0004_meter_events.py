"""Meter events can be withdrawn."""

from __future__ import annotations

from alembic import op

from migrations import run_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql(op.get_bind(), "0004_meter_events.sql")
