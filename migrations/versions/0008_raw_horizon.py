"""Roll-ups outlive their samples."""

from __future__ import annotations

from alembic import op

from migrations import run_sql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run_sql(op.get_bind(), "0008_raw_horizon.sql")
