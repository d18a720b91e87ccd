"""The first schema: registries, samples, results by block with roll-ups, ledger, alarms, boards."""

from __future__ import annotations

from alembic import op

from core.store.series import make_series, probe
from migrations import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    connection = op.get_bind()
    tier = probe(connection)
    run_sql(connection, "0001_series.sql")
    if not tier.has_timescale:
        run_sql(connection, "0001_time_bucket.sql")
    make_series(connection, tier)
    run_sql(connection, "0001_board.sql")
