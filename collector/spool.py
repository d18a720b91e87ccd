"""Samples on disk between the socket and the database, so that neither can lose the other's: a `core.bus.feed.Feed`.

The spool is a log of rows: segments of records, each record a point table or a
batch in packed columns, with its length and CRC32. A segment's name is the
number of its first row, so depth is a subtraction and a start reads only the
last segment. A batch is durable when `append` returns; it leaves the disk only
after `ack`, which the forwarder calls when the database has committed.

Two things surprise. A repeated delivery after a crash is normal (the position
file is not synced, the rows are), because writes to the store are idempotent.
And the oldest rows give way when `max_bytes` is reached: counted, reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from collector.segment import HEADER_BYTES, SegmentReader, SegmentWriter, cut, first_time_ns, whole_records
from core.errors import DataFolderError
from core.samples import SampleBatch, concatenate, empty_batch

log = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 16 << 20
MAX_BYTES: Final = 8 << 30
FULL_ROWS: Final = 10_000  # waiting: synced at once, for a longer pause would save nothing


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place between two rows: the segment's first row, the byte in it, the row's own number."""

    segment: int
    offset: int
    row: int


@dataclass(slots=True)
class _Segment:
    first_row: int
    path: Path
    size: int  # durable bytes


@dataclass(slots=True)
class _Waiter:
    batch: SampleBatch
    durable: asyncio.Future[None]


class Spool:
    """One folder of segments, owned by one process, written by many tasks, read by one.

    Use as an async context manager; `append`, `read` and `ack` belong to its event loop.

    Args:
        folder: Made if missing.
        max_bytes: Above this the oldest segment is dropped, delivered or not.
        keep_free_bytes: What is left to others on the disk: an append that finds less is refused as on a full one.
        segment_bytes: A segment is closed once it is this long.
        sync_interval_s: Least time between two syncs; appends of that time share one (at most 0.2). Under a flood
            the next sync begins as soon as the last is done.

    Raises:
        DataFolderError: Another process owns the folder, or a segment is of an unknown version.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = MAX_BYTES,
        keep_free_bytes: int = 0,
        segment_bytes: int = SEGMENT_BYTES,
        sync_interval_s: float = 0.05,
    ) -> None:
        if not 0 <= sync_interval_s <= 0.2:
            raise ValueError(f"sync_interval_s lies between 0 and 0.2, got {sync_interval_s}")
        self.folder = folder
        self.max_bytes = max_bytes
        self.keep_free_bytes = keep_free_bytes
        self.segment_bytes = segment_bytes
        self.sync_interval_s = sync_interval_s
        self.dropped_rows = 0  # by the size limit, since the start
        self.unreadable_rows = 0  # damaged on disk, since the start
        self.source = ""  # read from the folder when it is opened
        self._lock_fd = -1
        self._segments: list[_Segment] = []
        self._writer: SegmentWriter | None = None
        self._reader = SegmentReader()
        self._read = Position(0, HEADER_BYTES, 0)
        self._acked = Position(0, HEADER_BYTES, 0)
        self._tail_row = 0
        self._waiters: list[_Waiter] = []
        self._waiting_rows = 0
        self._full = asyncio.Event()  # enough rows wait
        self._flusher: asyncio.Task[None] | None = None
        self._last_sync = 0.0
        self._grown = asyncio.Event()
        self._oldest: tuple[Position, int] | None = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._flusher is not None:
            await self._flusher
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._reader.close()
        os.close(self._lock_fd)
        self._lock_fd = -1

    @property
    def depth_rows(self) -> int:
        """Rows durable here and not yet acknowledged."""
        return self._tail_row - self._acked.row

    @property
    def lost_rows(self) -> str:
        """What was lost since the start, in words; "" where nothing was."""
        told = ((self.dropped_rows, "dropped by the size limit"), (self.unreadable_rows, "damaged on disk"))
        return ", ".join(f"{rows} {how}" for rows, how in told if rows)

    @property
    def depth_bytes(self) -> int:
        """Bytes on disk in all segments."""
        return sum(segment.size for segment in self._segments)

    @property
    def oldest_ns(self) -> int | None:
        """Oldest sample time in the first batch not acknowledged; None when there is none."""
        if self.depth_rows <= 0:
            return None
        if self._oldest is None or self._oldest[0] != self._acked:
            self._oldest = (self._acked, self._oldest_at(self._acked))
        return self._oldest[1]

    async def append(self, batch: SampleBatch) -> None:
        """Returns when the batch is on disk for good, at most 0.2 s and one sync later.

        Once called the batch is on its way, even if the caller is cancelled while it waits.

        Raises:
            OSError: The disk would not take it (ENOSPC and the like). Nothing of the batch was kept.
        """
        if not len(batch):
            return
        if self._lock_fd < 0:
            raise ValueError("the spool is not open")
        waiter = _Waiter(batch, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._waiting_rows += len(batch)
        if self._waiting_rows >= FULL_ROWS:
            self._full.set()
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush(), name="spool-flush")
        await waiter.durable

    async def read(self, max_rows: int, linger_s: float = 0.0) -> tuple[SampleBatch, Position]:
        """The next rows in the order they were appended, and the position to acknowledge them by.

        Waits until there is at least one row, then up to `linger_s` for `max_rows`. A batch keeps
        whole: one larger than `max_rows` comes alone. Every batch read shares one `PointTable`
        until a name is seen that is not in it. Rows read and not acknowledged come again only
        after a new start.
        """
        await self._wait_for(1, None)
        if linger_s > 0:
            await self._wait_for(max_rows, linger_s)
        batches: list[SampleBatch] = []
        rows, here = 0, self._read
        try:
            while rows < max_rows and here.row < self._tail_row:
                segment = next(s for s in self._segments if s.first_row >= here.segment)
                if segment.first_row > here.segment:
                    here = self._start_of(segment)
                try:
                    found, offset, damaged = await asyncio.to_thread(
                        self._reader.take,
                        segment.path,
                        here.offset,
                        segment.size,
                        max_rows - rows,
                        bool(batches),
                    )
                except FileNotFoundError:  # the size limit dropped it meanwhile
                    here = max(here, self._read, key=_row)
                    continue
                taken = sum(len(batch) for batch in found)
                batches += found
                rows += taken
                here = Position(segment.first_row, offset, here.row + taken)
                if damaged:
                    here = self._after_damage(segment, here)
                elif offset < segment.size:  # the next batch does not fit into max_rows
                    break
                elif here.row < self._tail_row:
                    here = self._start_of(self._following(segment))
        except asyncio.CancelledError:
            self._reader = SegmentReader()  # its thread may still be at it
            raise
        self._read = max(here, self._read, key=_row)
        return (concatenate(batches) if batches else empty_batch()), self._read

    async def ack(self, position: Position) -> None:
        """The database has every row before `position`: remember it and give the disk back."""
        if position.row <= self._acked.row:
            return
        self._acked = position
        done = [s for s in self._segments if s.first_row < position.segment]
        self._segments = [s for s in self._segments if s.first_row >= position.segment]
        await asyncio.to_thread(self._settle, position, done)

    # ---- writing

    async def _flush(self) -> None:
        while self._waiters:
            pause_s = self._last_sync + self.sync_interval_s - time.monotonic()
            if pause_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), pause_s)
            group, self._waiters, self._waiting_rows = self._waiters, [], 0
            self._full.clear()
            batches = [waiter.batch for waiter in group]
            try:
                await self._write(batches)
            except Exception as why:
                for waiter in group:
                    if not waiter.durable.done():
                        waiter.durable.set_exception(_own_copy(why))
            else:
                for waiter in group:
                    if not waiter.durable.done():
                        waiter.durable.set_result(None)
                await self._keep_size()
            self._last_sync = time.monotonic()

    async def _write(self, batches: list[SampleBatch]) -> None:
        """The whole group or nothing."""
        if self.keep_free_bytes and shutil.disk_usage(self.folder).free < self.keep_free_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        writer = self._writer
        if writer is not None and (writer.broken or writer.size >= self.segment_bytes):
            writer.close()
            writer = self._writer = None
        if writer is None:
            if (
                self._segments and self._segments[-1].first_row == self._tail_row
            ):  # broken before its first row
                self._segments.pop()
            writer = await asyncio.to_thread(SegmentWriter, self.folder / f"{self._tail_row:020d}.seg")
            self._writer = writer
            self._segments.append(_Segment(self._tail_row, writer.path, writer.size))
        await asyncio.to_thread(writer.write, batches)
        self._segments[-1].size = writer.size
        self._tail_row += sum(len(batch) for batch in batches)
        self._grown.set()

    async def _keep_size(self) -> None:
        dropped: list[_Segment] = []
        while self.depth_bytes > self.max_bytes and len(self._segments) > 1:
            oldest, following = self._segments[:2]
            dropped.append(self._segments.pop(0))
            lost = following.first_row - max(oldest.first_row, self._acked.row)
            if lost > 0:
                self.dropped_rows += lost
                log.error("spool full, oldest rows dropped", extra={"rows": lost, "total": self.dropped_rows})
            self._acked = max(self._acked, self._start_of(following), key=_row)
            self._read = max(self._read, self._start_of(following), key=_row)
        if dropped:
            await asyncio.to_thread(self._settle, self._acked, dropped)

    # ---- reading

    async def _wait_for(self, rows: int, timeout_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._tail_row - self._read.row < rows:
                    self._grown.clear()
                    await self._grown.wait()

    def _start_of(self, segment: _Segment) -> Position:
        return Position(segment.first_row, HEADER_BYTES, segment.first_row)

    def _following(self, segment: _Segment) -> _Segment:
        return next(s for s in self._segments if s.first_row > segment.first_row)

    def _after_damage(self, segment: _Segment, here: Position) -> Position:
        """What follows a damaged record in its segment cannot be found again; the next segment can."""
        is_last = segment is self._segments[-1]
        next_row = self._tail_row if is_last else self._following(segment).first_row
        if lost := next_row - here.row:
            self.unreadable_rows += lost
            log.error("spool segment damaged, rows lost", extra={"segment": segment.path.name, "rows": lost})
        return Position(segment.first_row, segment.size, next_row)

    def _oldest_at(self, position: Position) -> int:
        for segment in self._segments:
            inside = segment.first_row == position.segment
            if segment.first_row >= position.segment:
                offset = position.offset if inside else HEADER_BYTES
                oldest_ns = first_time_ns(segment.path, offset, segment.size)
                if oldest_ns is not None:
                    return oldest_ns
        return 0

    # ---- files

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock_fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as why:
            raise DataFolderError(f"spool {self.folder}: {why.strerror}") from why
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock_fd)
            raise DataFolderError(f"spool {self.folder}: another process owns it") from None
        try:
            self.source = self._named()
            self._recover()
        except BaseException:
            os.close(lock_fd)
            raise
        self._lock_fd = lock_fd

    def _named(self) -> str:
        """Who these rows are from: drawn once, for rows are numbered for as long as the folder is there."""
        path = self.folder / "source"
        try:
            if found := path.read_text().strip():
                return found
        except (OSError, UnicodeDecodeError):  # not there, or not what was put there
            pass
        name = secrets.token_hex(8)
        draft = path.with_suffix(".new")
        try:
            draft.write_text(name + "\n")
            draft.replace(path)
        except OSError as why:
            raise DataFolderError(f"spool {self.folder}: {why.strerror}") from why
        return name

    def _recover(self) -> None:
        segments = [_Segment(int(p.stem), p, p.stat().st_size) for p in sorted(self.folder.glob("*.seg"))]
        position = self._load_position()
        tail_row = position.row if position else 0
        if segments:
            last = segments[-1]
            rows, whole_bytes = whole_records(last.path)
            if whole_bytes < last.size:
                log.warning(
                    "spool tail torn, cut back",
                    extra={"segment": last.path.name, "bytes": last.size - whole_bytes},
                )
                cut(last.path, whole_bytes)
                last.size = whole_bytes
            tail_row = last.first_row + rows
            if rows == 0:
                segments.pop().path.unlink()
        if position is None or position.row > tail_row:
            first_row = segments[0].first_row if segments else tail_row
            position = Position(first_row, HEADER_BYTES, first_row)
        self._segments = [s for s in segments if s.first_row >= position.segment]
        self._tail_row = tail_row
        self._acked = self._read = position
        # Saved at once, so that a position from before never points into rows numbered anew.
        self._settle(position, [s for s in segments if s.first_row < position.segment])

    def _load_position(self) -> Position | None:
        """Where reading goes on; None where the file is missing or half written, which repeats but loses nothing."""
        try:
            segment, offset, row, check = (self.folder / "position").read_text().split()
            if int(check) != zlib.crc32(f"{segment} {offset} {row}".encode()):
                return None
            return Position(int(segment), int(offset), int(row))
        except (OSError, ValueError):
            return None

    def _settle(self, position: Position, done: list[_Segment]) -> None:
        text = f"{position.segment} {position.offset} {position.row}"
        fresh = self.folder / "position.new"
        try:
            fresh.write_text(f"{text} {zlib.crc32(text.encode())}\n")
            fresh.replace(self.folder / "position")
        except OSError as why:  # a full disk: the rows would come again after a crash, which is harmless
            log.warning("spool position not saved", extra={"why": str(why)})
        for segment in done:
            segment.path.unlink(missing_ok=True)


def _row(position: Position) -> int:
    return position.row


def _own_copy(why: Exception) -> Exception:
    """An error several tasks wait for is raised in each of them, so each gets its own."""
    if isinstance(why, OSError):
        return OSError(why.errno, why.strerror, why.filename)
    return why
