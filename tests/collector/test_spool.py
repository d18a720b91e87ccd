"""The spool loses nothing it called durable: over kills, torn tails, full disks and its own size limit."""

# ruff: noqa: ASYNC240, ASYNC251
from __future__ import annotations

import asyncio
import contextlib
import errno
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from collector.spool import Spool
from core.errors import DataFolderError
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch

TABLE = PointTable(("m-grid.active_power_total", "m-press.active_power_total", "温度"))

# Appends numbered rows for ever and says each number once the spool called it durable.
WRITER = """
import asyncio
from collector.spool import Spool
from core.samples import PointTable, sample_batch

async def main(number):
    table = PointTable(("a", "b"))
    async with Spool(folder, segment_bytes=4096, sync_interval_s=0.0) as spool:
        say.send("ready")
        while True:
            rows = [number, number + 1]
            await spool.append(sample_batch(table, [0, 1], [n * 1000 for n in rows], rows))
            number += 2
            say.send(number)

asyncio.run(main(first))
"""


def numbered(first: int, n: int, table: PointTable = TABLE) -> SampleBatch:
    rows = np.arange(first, first + n)
    return sample_batch(table, rows % len(table), rows * 1000, rows.astype(float), -5)


async def everything(spool: Spool, max_rows: int = 1000) -> list[float]:
    values: list[float] = []
    while spool.depth_rows:
        batch, position = await spool.read(max_rows)
        values += batch.value.tolist()
        await spool.ack(position)
    return values


async def test_what_was_appended_is_read_in_order_with_names_times_and_statuses(tmp_path: Path) -> None:
    async with Spool(tmp_path) as spool:
        other = PointTable(("温度", "late"))
        await spool.append(numbered(0, 3))
        await spool.append(sample_batch(other, [1, 0], [5_000, 6_000], [np.nan, 7.5], [-4, 3]))

        batch, _ = await spool.read(100)

    assert batch.names() == [*TABLE.names, "late", "温度"]
    assert batch.time_ns.tolist() == [0, 1_000, 2_000, 5_000, 6_000]
    np.testing.assert_array_equal(batch.value, [0.0, 1.0, 2.0, np.nan, 7.5])
    assert batch.status.tolist() == [-5, -5, -5, -4, 3]


async def test_batches_read_later_share_one_point_table(tmp_path: Path) -> None:
    async with Spool(tmp_path, segment_bytes=100) as spool:
        for first in range(0, 30, 3):
            await spool.append(numbered(first, 3, PointTable(TABLE.names)))

        batches = [(await spool.read(3))[0] for _ in range(10)]

    assert len({id(batch.points) for batch in batches}) == 1
    assert [batch.value[0] for batch in batches] == [3.0 * i for i in range(10)]


async def test_only_acknowledged_rows_are_gone_after_a_new_start(tmp_path: Path) -> None:
    async with Spool(tmp_path, segment_bytes=200) as spool:
        for first in range(0, 100, 5):
            await spool.append(numbered(first, 5))
        for _ in range(3):
            _, position = await spool.read(10)
        await spool.ack(position)
        await spool.read(50)

    async with Spool(tmp_path, segment_bytes=200) as spool:
        assert spool.depth_rows == 70
        assert spool.oldest_ns == 30_000
        assert await everything(spool) == [float(i) for i in range(30, 100)]
        await spool.append(numbered(100, 5))

    async with Spool(tmp_path) as spool:
        assert await everything(spool) == [100.0, 101.0, 102.0, 103.0, 104.0]
        assert spool.oldest_ns is None


async def test_a_row_has_one_number_and_one_source_over_all_starts(tmp_path: Path) -> None:
    seen = []
    for start in range(3):
        async with Spool(tmp_path) as spool:
            await spool.append(numbered(10 * start, 10))
            batch, position = await spool.read(100)
            seen.append((spool.source, position.row, len(batch)))
            await spool.ack(position)

    assert [row for _, row, _ in seen] == [10, 20, 30]
    assert [rows for *_, rows in seen] == [10, 10, 10]
    assert len({source for source, *_ in seen}) == 1


async def test_acknowledged_segments_leave_the_disk(tmp_path: Path) -> None:
    async with Spool(tmp_path, segment_bytes=500, sync_interval_s=0.0) as spool:
        for first in range(0, 400, 10):
            await spool.append(numbered(first, 10))
        before = spool.depth_bytes
        await everything(spool)

        assert before > 10_000
        assert spool.depth_bytes < 1_000
        assert len(list(tmp_path.glob("*.seg"))) == 1


async def test_a_reader_waits_for_the_next_batch_and_lingers_for_more(tmp_path: Path) -> None:
    async with Spool(tmp_path, sync_interval_s=0.0) as spool:
        reading = asyncio.create_task(spool.read(10, linger_s=5.0))
        await asyncio.sleep(0.05)
        assert not reading.done()

        await spool.append(numbered(0, 4))
        await asyncio.sleep(0.05)
        assert not reading.done()

        await spool.append(numbered(4, 6))
        batch, _ = await asyncio.wait_for(reading, 2.0)
        assert len(batch) == 10


async def test_a_cancelled_read_takes_nothing_away(tmp_path: Path) -> None:
    async with Spool(tmp_path, segment_bytes=200, sync_interval_s=0.0) as spool:
        for first in range(0, 2000, 5):
            await spool.append(numbered(first, 5))
        for _ in range(10):
            reading = asyncio.create_task(spool.read(2000))
            await asyncio.sleep(0.002)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert reading.cancelled()

        assert await everything(spool) == [float(i) for i in range(2000)]


async def test_appends_of_many_tasks_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[float] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (syncs.append(time.monotonic()), fdatasync(fd)))
    async with Spool(tmp_path, sync_interval_s=0.1) as spool:
        started = time.monotonic()

        async def device(k: int) -> None:
            for i in range(4):
                await spool.append(numbered(k * 100 + i, 1))

        await asyncio.gather(*(device(k) for k in range(50)))
        assert spool.depth_rows == 200

    assert len(syncs) <= 6
    assert time.monotonic() - started < 1.5


async def test_a_torn_tail_is_cut_and_the_rest_is_kept(tmp_path: Path) -> None:
    async with Spool(tmp_path) as spool:
        await spool.append(numbered(0, 10))
        await spool.append(numbered(10, 10))
    (segment,) = tmp_path.glob("*.seg")
    os.truncate(segment, segment.stat().st_size - 3)

    async with Spool(tmp_path) as spool:
        await spool.append(numbered(20, 10))
        values = await everything(spool)

    assert values == [*map(float, range(10)), *map(float, range(20, 30))]


async def test_a_flipped_bit_never_comes_out_as_a_value(tmp_path: Path) -> None:
    async with Spool(tmp_path, segment_bytes=600, sync_interval_s=0.0) as spool:
        for first in range(0, 60, 10):
            await spool.append(numbered(first, 10))
    segments = sorted(tmp_path.glob("*.seg"))
    assert len(segments) >= 2
    data = bytearray(segments[0].read_bytes())
    data[len(data) // 2] ^= 0x10
    segments[0].write_bytes(data)

    async with Spool(tmp_path) as spool:
        values = await everything(spool)

        assert spool.unreadable_rows == 60 - len(values) > 0
        assert set(values) < set(map(float, range(60)))
        assert values[-10:] == [float(i) for i in range(50, 60)]


async def test_above_its_size_the_oldest_rows_give_way_and_are_counted(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=4_000, segment_bytes=1_000, sync_interval_s=0.0) as spool:
        for first in range(0, 1000, 10):
            await spool.append(numbered(first, 10))

        assert spool.depth_bytes <= 4_000
        assert spool.dropped_rows > 500
        dropped = spool.dropped_rows
        values = await everything(spool)

    assert values == [float(i) for i in range(dropped, 1000)]


async def test_one_process_owns_a_spool(tmp_path: Path) -> None:
    async with Spool(tmp_path):
        with pytest.raises(DataFolderError, match="another process owns it"):
            await Spool(tmp_path).__aenter__()


async def test_a_segment_of_another_version_is_refused(tmp_path: Path) -> None:
    async with Spool(tmp_path) as spool:
        await spool.append(numbered(0, 1))
    (segment,) = tmp_path.glob("*.seg")
    data = segment.read_bytes()
    segment.write_bytes(data[:8] + b"\x63" + data[9:])

    with pytest.raises(DataFolderError, match="version 99"):
        await Spool(tmp_path).__aenter__()


async def test_a_failed_write_leaves_no_trace_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Spool(tmp_path, sync_interval_s=0.0) as spool:
        await spool.append(numbered(0, 5))
        with monkeypatch.context() as broken:

            def no_space(fd: int) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            broken.setattr(os, "fdatasync", no_space)
            with pytest.raises(OSError, match="No space left") as failed:
                await spool.append(sample_batch(PointTable(("new",)), [0], [0], [1.0]))
        await spool.append(sample_batch(PointTable(("new",)), [0], [9_000], [2.0]))

        assert failed.value.errno == errno.ENOSPC
        assert await everything(spool) == [0.0, 1.0, 2.0, 3.0, 4.0, 2.0]


async def test_what_others_need_of_the_disk_is_left_to_them(tmp_path: Path) -> None:
    async with Spool(tmp_path, keep_free_bytes=1 << 60) as spool:
        with pytest.raises(OSError, match="No space left"):
            await spool.append(numbered(0, 3))
        spool.keep_free_bytes = 1
        await spool.append(numbered(0, 3))

        assert spool.depth_rows == 3


FULL_DISK = """
import asyncio, errno, sys
from pathlib import Path
from collector.spool import Spool
from core.samples import PointTable, sample_batch
import numpy as np

async def main():
    folder = Path(sys.argv[1])
    table = PointTable(("a",))
    batch = lambda k: sample_batch(table, np.zeros(2000), np.arange(2000) * 1000, np.full(2000, float(k)))
    kept = []
    async with Spool(folder / "spool", segment_bytes=100_000, sync_interval_s=0.0) as spool:
        (folder / "ballast").write_bytes(bytes(300_000))
        for k in range(100):
            try:
                await spool.append(batch(k))
                kept.append(float(k))
            except OSError as why:
                assert why.errno == errno.ENOSPC, why
                break
        else:
            raise AssertionError("the disk never filled")
        (folder / "ballast").unlink()
        await spool.append(batch(1000))
        kept.append(1000.0)
    async with Spool(folder / "spool") as spool:
        seen = []
        while spool.depth_rows:
            read, position = await spool.read(2000)
            assert len(set(read.value.tolist())) == 1
            seen.append(read.value[0])
            await spool.ack(position)
    assert seen == kept and len(kept) > 3, (seen, kept)
    print("healed")

asyncio.run(main())
"""


def test_a_really_full_disk_refuses_and_heals() -> None:
    mount = "mount -t tmpfs -o size=1m spool /mnt"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("no small file system can be mounted here")

    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$1" /mnt', sys.executable, FULL_DISK],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )

    assert ran.stdout == "healed\n", ran.stderr


async def kill_at_random(folder: Path, times: int, seed: int) -> None:
    chance = random.Random(seed)
    processes = multiprocessing.get_context("forkserver")  # which has read the modules once for all of them
    processes.set_forkserver_preload(["collector.spool"])
    durable, seen = 0, []
    for _ in range(times):
        heard, say = processes.Pipe(duplex=False)
        names = {"folder": folder, "first": durable, "say": say}
        writer = processes.Process(target=exec, args=(WRITER, names))
        writer.start()
        say.close()
        assert heard.recv() == "ready"
        time.sleep(chance.uniform(0.0, 0.06))
        writer.kill()
        with contextlib.suppress(EOFError):
            while True:
                durable = heard.recv()
        writer.join()
        async with Spool(folder, segment_bytes=4096) as spool:
            for _ in range(chance.randrange(3)):
                if spool.depth_rows:
                    batch, position = await spool.read(chance.randrange(1, 80))
                    seen += batch.value.tolist()
                    await spool.ack(position)
    async with Spool(folder) as spool:
        seen += await everything(spool)
        assert spool.unreadable_rows == 0

    # The last two rows before a kill may be there without having been confirmed, and are then written again.
    assert sorted(set(seen)) == [float(i) for i in range(len(set(seen)))]
    assert len(set(seen)) >= durable > times


@pytest.fixture
def bare_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes that do not read pytest first, which they else would as the main module of their parent."""
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)


@pytest.mark.usefixtures("bare_children")
async def test_killed_twenty_times_no_confirmed_row_is_missing(tmp_path: Path) -> None:
    await kill_at_random(tmp_path, 20, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("bare_children")
async def test_killed_two_hundred_times_no_confirmed_row_is_missing(tmp_path: Path) -> None:
    await kill_at_random(tmp_path, 200, seed=2)


async def test_a_batch_in_flight_when_its_task_is_cancelled_still_lands(tmp_path: Path) -> None:
    async with Spool(tmp_path, sync_interval_s=0.1) as spool:
        await spool.append(numbered(0, 1))
        late = asyncio.create_task(spool.append(numbered(1, 1)))
        await asyncio.sleep(0)
        late.cancel()

    async with Spool(tmp_path) as spool:
        assert await everything(spool) == [0.0, 1.0]


async def test_the_age_of_the_backlog_is_known(tmp_path: Path) -> None:
    async with Spool(tmp_path) as spool:
        await spool.append(sample_batch(TABLE, [0, 1], [7 * NS_PER_S, 3 * NS_PER_S], [1.0, 2.0]))

        assert spool.oldest_ns == 3 * NS_PER_S
