"""The registers people keep: activity data, production, green power, own factors, certificates."""

from __future__ import annotations

from alembic import op

from migrations import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql(op.get_bind(), "0003_registers.sql")
