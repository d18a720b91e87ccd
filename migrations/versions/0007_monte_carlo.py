"""Monte Carlo runs, kept with what they were drawn from."""

from __future__ import annotations

from alembic import op

from migrations import run_sql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run_sql(op.get_bind(), "0007_monte_carlo.sql")
