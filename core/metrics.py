"""ecmc's own metrics, each named once; `/metrics` shows them.

Whoever does the work counts it here. Nothing reads these back: a decision never
hangs on a metric.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from core.store.seam import WriteReport

ROWS_WRITTEN = Counter("ecmc_rows_written", "Samples by what became of them", ["outcome"])
SPOOL_BATCHES = Gauge("ecmc_spool_batches", "Batches on disk that the database has not confirmed")
SPOOL_BYTES = Gauge("ecmc_spool_bytes", "Size of the spool on disk")
DISK_FREE_BYTES = Gauge("ecmc_disk_free_bytes", "What the data folder's disk still takes")

DIRTY_RANGES = Gauge("ecmc_dirty_ranges", "Ranges of changed samples whose results are still to be computed")
ENGINE_LAG_S = Gauge("ecmc_engine_lag_seconds", "Age of the oldest change not yet computed")
ENGINE_SECONDS = Histogram("ecmc_engine_seconds", "Time one computation step takes")
ENGINE_WINDOWS = Counter("ecmc_engine_windows", "Windows computed and written")

DEVICE_UP = Gauge("ecmc_device_up", "1 where the device answers, 0 where it does not", ["device"])
DEVICE_COUNT = Gauge("ecmc_device_count", "Running totals of a device's driver", ["device", "counter"])
CERTIFICATE_DAYS = Gauge(
    "ecmc_certificate_days", "Days a certificate of a connection is still valid", ["connection", "whose"]
)

LIVE_ERROR = Gauge(
    "ecmc_live_error_share",
    "Mean of the live carbon rate over the last closed hour against what closed, less 1",
    ["node"],
)

POWER_DIFFERENCE = Gauge(
    "ecmc_power_difference_share", "Energy by power over the last day against its register, less 1", ["edge"]
)
CONSERVATION_ERROR = Gauge(
    "ecmc_conservation_error", "Largest relative break of carbon conservation in the window computed last"
)

ALERTS = Gauge("ecmc_alerts", "Alarms by state", ["state"])

HTTP_REQUESTS = Counter("ecmc_http_requests", "Requests answered", ["method", "route", "status"])
HTTP_SECONDS = Histogram("ecmc_http_seconds", "Time to the end of an answer; streams left out", ["route"])
STREAM_CLIENTS = Gauge("ecmc_stream_clients", "Event streams open")
STREAM_RESTARTS = Counter("ecmc_stream_restarts", "Times a slow stream lost events and got a fresh snapshot")


def count_written(report: WriteReport) -> None:
    """Count the rows of one write, whoever wrote it."""
    for outcome in ("accepted", "repeated", "corrected"):
        ROWS_WRITTEN.labels(outcome).inc(getattr(report, outcome))
    ROWS_WRITTEN.labels("conflict").inc(report.conflict_count)
