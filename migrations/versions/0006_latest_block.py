"""The newest sample of each point, many points a row."""

from __future__ import annotations

from alembic import op

from migrations import run_sql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run_sql(op.get_bind(), "0006_latest_block.sql")
