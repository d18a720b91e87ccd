"""A spool segment on disk: a header, then point tables and batches as framed, checksummed records.

A record is its body's length and CRC32, then the body. A point table is written
once a segment, before the first batch that speaks of it. Whatever cannot be
read back whole, a torn tail or a flipped bit, is never half a batch.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from core.errors import DataFolderError
from core.samples import Indices, PointTable, SampleBatch

SCHEMA_VERSION: Final = 1
_MAGIC: Final = b"ecmcspl\n"
_HEADER: Final = struct.Struct("<8sI")  # magic, schema version
HEADER_BYTES: Final = _HEADER.size
_FRAME: Final = struct.Struct("<II")  # body length, CRC32 of the body
_TABLE: Final = struct.Struct("<BI")  # kind, table number; then the names, NUL between them
_BATCH: Final = struct.Struct("<BIIq")  # kind, table number, rows, oldest time; then the four columns
_KIND_TABLE: Final = 1
_KIND_BATCH: Final = 2
_PARTS_A_CALL: Final = 1000  # IOV_MAX is 1024 on Linux
_READ_BYTES: Final = 1 << 20


class SegmentWriter:
    """Appends records to one segment; a failed write leaves the segment as it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.broken = False
        # By identity; the table is held with it, so that no other one can take its id.
        self._table_numbers: dict[int, tuple[PointTable, int]] = {}
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            self._put([_HEADER.pack(_MAGIC, SCHEMA_VERSION)])
            self.size = HEADER_BYTES
            _sync_folder(path.parent)
        except OSError:
            os.close(self._fd)
            path.unlink(missing_ok=True)
            raise

    def write(self, batches: list[SampleBatch]) -> None:
        numbers = dict(self._table_numbers)
        parts: list[bytes | memoryview] = []
        for batch in batches:
            known = numbers.get(id(batch.points))
            if known is None:
                known = numbers[id(batch.points)] = (batch.points, len(numbers))
                names = "\0".join(batch.points.names).encode()
                parts += _framed(_TABLE.pack(_KIND_TABLE, known[1]), [names])
            head = _BATCH.pack(_KIND_BATCH, known[1], len(batch), int(batch.time_ns.min()))
            # The columns go to the disk from where they lie.
            columns = [
                _bytes_of(batch.point, "<i4"),
                _bytes_of(batch.time_ns, "<i8"),
                _bytes_of(batch.value, "<f8"),
                _bytes_of(batch.status, "<i2"),
            ]
            parts += _framed(head, columns)
        size = sum(map(len, parts))
        try:
            self._put(parts)
            os.fdatasync(self._fd)
        except OSError:
            self._cut_back()
            raise
        self.size += size
        self._table_numbers = numbers

    def close(self) -> None:
        os.close(self._fd)

    def _put(self, parts: list[bytes | memoryview]) -> None:
        for start in range(0, len(parts), _PARTS_A_CALL):
            some = parts[start : start + _PARTS_A_CALL]
            written = os.writev(self._fd, some)
            if written < sum(map(len, some)):  # a disk that fills up takes part of it
                rest = memoryview(b"".join(some))[written:]
                while rest:
                    rest = rest[os.write(self._fd, rest) :]

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self.size)
            os.lseek(self._fd, self.size, os.SEEK_SET)
        except OSError:
            self.broken = True


class SegmentReader:
    """Takes batches out of segments and speaks of all their points in one growing table."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: FileIO | None = None
        self._onto: dict[int, Indices] = {}  # table number in this segment → index in `_points`
        self._points = PointTable(())

    def take(
        self, path: Path, offset: int, end: int, max_rows: int, only_if_fits: bool
    ) -> tuple[list[SampleBatch], int, bool]:
        """Batches from `offset` on, up to `max_rows` rows; the offset after them; whether a damaged record follows.

        The first batch comes whatever its size unless `only_if_fits`.
        """
        file = self._enter(path, offset)
        batches: list[SampleBatch] = []
        rows = 0
        data, base = b"", offset
        while offset < end:
            at = offset - base
            if at + _FRAME.size > len(data):
                data, base, at = os.pread(file.fileno(), min(_READ_BYTES, end - offset), offset), offset, 0
                if len(data) < _FRAME.size:
                    return batches, offset, True
            length, check = _FRAME.unpack_from(data, at)
            whole = _FRAME.size + length
            if length < _TABLE.size or offset + whole > end:
                return batches, offset, True
            if at + whole > len(data):
                data, base, at = os.pread(file.fileno(), max(_READ_BYTES, whole), offset), offset, 0
            body = memoryview(data)[at + _FRAME.size : at + whole]
            if len(body) != length or zlib.crc32(body) != check:
                return batches, offset, True
            if body[0] == _KIND_TABLE:
                self._learn(body)
            else:
                n = _BATCH.unpack_from(body)[2]
                if rows + n > max_rows and (batches or only_if_fits):
                    break
                batches.append(self._batch(body))
                rows += n
            offset += whole
        return batches, offset, False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = self._path = None

    def _enter(self, path: Path, offset: int) -> FileIO:
        if self._file is None or path != self._path:
            self.close()
            self._file, self._path, self._onto = FileIO(path), path, {}
            if offset > HEADER_BYTES:  # reading goes on inside: the tables stand before
                for body in _bodies(path.read_bytes()[:offset]):
                    if body[0] == _KIND_TABLE:
                        self._learn(body)
        return self._file

    def _learn(self, body: memoryview) -> None:
        _, number = _TABLE.unpack_from(body)
        text = bytes(body[_TABLE.size :]).decode()
        names = text.split("\0") if text else []
        if any(name not in self._points.index for name in names):
            self._points = PointTable(tuple(dict.fromkeys((*self._points.names, *names))))
        self._onto[number] = np.array([self._points.index[name] for name in names], dtype=np.int32)

    def _batch(self, body: memoryview) -> SampleBatch:
        _, number, n, _ = _BATCH.unpack_from(body)
        # Copied out as one row of bytes a column, since records lie at odd offsets of a passing buffer.
        point_at, time_at = _BATCH.size, _BATCH.size + 4 * n
        value_at, status_at = time_at + 8 * n, time_at + 16 * n
        return SampleBatch(
            self._points,
            self._onto[number][np.frombuffer(body, "<i4", n, point_at)],
            np.frombuffer(body, "<i8", n, time_at).astype(np.int64),
            np.frombuffer(body, "<f8", n, value_at).astype(np.float64),
            np.frombuffer(body, "<i2", n, status_at).astype(np.int16),
        )


def _bytes_of(column: npt.NDArray[Any], dtype: str) -> memoryview:
    return np.ascontiguousarray(column, dtype).data.cast("B")


def _framed(head: bytes, rest: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    check = zlib.crc32(head)
    for part in rest:
        check = zlib.crc32(part, check)
    return [_FRAME.pack(len(head) + sum(map(len, rest)), check) + head, *rest]


def _bodies(data: bytes) -> list[memoryview]:
    """The whole records of a segment, up to the first that is torn or damaged."""
    bodies = []
    view, at = memoryview(data), HEADER_BYTES
    while at + _FRAME.size <= len(data):
        length, check = _FRAME.unpack_from(data, at)
        body = view[at + _FRAME.size : at + _FRAME.size + length]
        if len(body) != length or length < _TABLE.size or zlib.crc32(body) != check:
            break
        bodies.append(body)
        at += _FRAME.size + length
    return bodies


def whole_records(path: Path) -> tuple[int, int]:
    """Rows and bytes of a segment up to its first torn record."""
    data = path.read_bytes()
    if len(data) < HEADER_BYTES:
        return 0, 0
    magic, version = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != SCHEMA_VERSION:
        raise DataFolderError(f"spool segment {path}: version {version}, wanted {SCHEMA_VERSION}")
    bodies = _bodies(data)
    rows = sum(_BATCH.unpack_from(body)[2] for body in bodies if body[0] == _KIND_BATCH)
    return rows, HEADER_BYTES + sum(_FRAME.size + len(body) for body in bodies)


def first_time_ns(path: Path, offset: int, end: int) -> int | None:
    """Oldest sample time of the first batch record from `offset` on."""
    with FileIO(path) as file:
        while offset < end:
            head = os.pread(file.fileno(), _FRAME.size + _BATCH.size, offset)
            if len(head) < _FRAME.size + _TABLE.size:
                return None
            if head[_FRAME.size] == _KIND_BATCH:
                return int(_BATCH.unpack_from(head, _FRAME.size)[3])
            offset += _FRAME.size + int(_FRAME.unpack_from(head)[0])
    return None


def cut(path: Path, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
