"""Files of samples put into a folder: taken whole, refused whole, and never half read."""

from __future__ import annotations

import gzip
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from core.errors import BadRequest, StoreRefused, StoreUnavailable
from core.files.inbox import FAULTS_KEPT, PART, WRITE_ROWS, Inbox
from core.health import Health, Status
from core.plant.model import Kind, Label, Plant, Point
from core.samples import SampleBatch
from core.store.seam import Conflict, WriteReport

GOOD = "point,time,value\nm.p,2026-03-02T00:01:00Z,2\nm.p,2026-03-02T00:00:00Z,1\n"


def plant() -> Plant:
    return Plant(
        id="t", name=Label("测", "t"), zone=ZoneInfo("Asia/Shanghai"), region="CN", base_interval_s=60,
        method_sets=("ghg-protocol",), areas=(), connections=(), devices=(),
        points=(Point("m.p", "active_power_total", "kW", Kind.GAUGE),),
        nodes=(), edges=(), alerts=(), folder="", fingerprint="",
    )  # fmt: skip


class Store:
    """Keeps what is written; fails on demand."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float]] = []
        self.fails: Exception | None = None
        self.fails_after = 0
        self.report = WriteReport()

    async def write(self, batch: SampleBatch) -> WriteReport:
        if self.fails is not None and self.fails_after <= 0:
            raise self.fails
        self.fails_after -= 1
        self.rows += zip(batch.time_ns.tolist(), batch.value.tolist(), strict=True)
        return self.report


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "inbox"


@pytest.fixture
async def inbox(folder: Path, store: Store, health: Health) -> Inbox:
    made = Inbox(folder, plant, store.write, health)
    await made.look()
    return made


def under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def test_a_file_that_stands_still_is_stored_in_time_order_and_moved(
    inbox: Inbox, folder: Path, store: Store, health: Health
) -> None:
    (folder / "a.csv").write_text(GOOD)
    (folder / "b.csv.gz").write_bytes(gzip.compress(GOOD.replace("2026", "2025").encode()))

    await inbox.look()
    assert not store.rows  # it may still be on its way
    await inbox.look()

    assert [value for _, value in store.rows] == [1.0, 2.0, 1.0, 2.0]
    assert under(folder) == {"done/a.csv", "done/b.csv.gz"}
    assert health.parts[PART].status is Status.OK


async def test_a_file_that_still_grows_is_waited_for(inbox: Inbox, folder: Path, store: Store) -> None:
    file = folder / "a.csv"
    text = GOOD
    for _ in range(3):
        file.write_text(text)
        await inbox.look()
        text += "m.p,2026-03-02T00:02:00Z,3\n"

    assert not store.rows
    assert under(folder) == {"a.csv"}


@pytest.mark.parametrize("name", [".hidden.csv", "a.csv.part", "a.csv.tmp"])
async def test_unfinished_names_are_left_alone(inbox: Inbox, folder: Path, name: str) -> None:
    (folder / name).write_text(GOOD)

    for _ in range(3):
        await inbox.look()

    assert under(folder) == {name}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", GOOD + "m.p,2199-03-02T00:00:00Z,1\n", "a.csv:4:2: 2199-03-02T00:00:00+00:00 lies ahead"),
        ("a.csv", GOOD + "m.p,0001-01-01T00:00:00Z,1\n", "a.csv:4:2: a time from 1678 to 2261 wanted"),
        ("a.csv", GOOD + "m.q,2026-03-02T00:00:00Z,1\n", "a.csv:4:1: unknown point 'm.q'"),
        ("a.csv", "point,when\n", "a.csv:1:1: header point,time,value"),
        ("a.xlsx", "PK", "a.xlsx:0:0: a .csv or .csv.gz wanted"),
        ("a.csv.gz", "\x1f\x8bnot really", "cannot be read"),
    ],
)
async def test_a_faulty_file_is_refused_whole_with_its_faults_beside_it(
    inbox: Inbox, folder: Path, store: Store, health: Health, name: str, text: str, said: str
) -> None:
    (folder / name).write_bytes(text.encode("latin-1"))

    for _ in range(2):
        await inbox.look()

    assert not store.rows
    assert under(folder) == {f"faulty/{name}", f"faulty/{name}.faults.txt"}
    assert said in (folder / "faulty" / f"{name}.faults.txt").read_text("utf-8")
    assert health.parts[PART].status is Status.DEGRADED
    assert name in health.parts[PART].detail
    (folder / "faulty" / name).unlink()
    await inbox.look()
    assert health.parts[PART].status is Status.OK


async def test_a_database_away_costs_no_row_and_no_file(inbox: Inbox, folder: Path, store: Store) -> None:
    rows = "".join(
        f"m.p,2026-03-02T{s // 3600:02}:{s // 60 % 60:02}:{s % 60:02}Z,{s}\n" for s in range(WRITE_ROWS + 5)
    )
    (folder / "a.csv").write_text("point,time,value\n" + rows)
    store.fails, store.fails_after = StoreUnavailable("away"), 1

    for _ in range(3):
        await inbox.look()
    assert under(folder) == {"a.csv"}
    assert len(store.rows) == WRITE_ROWS
    store.fails = None
    await inbox.look()

    assert under(folder) == {"done/a.csv"}
    assert len(set(store.rows)) == WRITE_ROWS + 5  # the first part came once more, and is the same


async def test_a_database_that_lacks_a_right_gets_the_file_once_it_has_it(
    inbox: Inbox, folder: Path, store: Store, health: Health
) -> None:
    (folder / "a.csv").write_text(GOOD)
    store.fails = StoreRefused("no rights")

    for _ in range(3):
        await inbox.look()
    assert under(folder) == {"a.csv"}
    assert health.parts[PART].status is Status.DEGRADED
    assert "no rights" in health.parts[PART].detail
    store.fails = None
    await inbox.look()

    assert under(folder) == {"done/a.csv"}
    assert health.parts[PART].status is Status.OK


@pytest.mark.parametrize("why", [BadRequest("not these"), RuntimeError("not these")])
async def test_a_file_that_cannot_be_stored_is_faulty_and_stops_no_other(
    inbox: Inbox, folder: Path, store: Store, why: Exception
) -> None:
    (folder / "a.csv").write_text(GOOD)
    store.fails = why

    for _ in range(2):
        await inbox.look()

    assert "not these" in (folder / "faulty" / "a.csv.faults.txt").read_text("utf-8")


async def test_of_many_faults_the_first_are_told_and_the_others_counted(inbox: Inbox, folder: Path) -> None:
    (folder / "a.csv").write_text("point,time,value\n" + "m.q,2026-03-02T00:00:00Z,1\n" * (FAULTS_KEPT + 7))

    for _ in range(2):
        await inbox.look()

    lines = (folder / "faulty" / "a.csv.faults.txt").read_text("utf-8").splitlines()
    assert len(lines) == FAULTS_KEPT + 1
    assert lines[-1] == "and 7 more"


async def test_values_that_differ_from_stored_ones_are_listed_beside_the_file(
    inbox: Inbox, folder: Path, store: Store
) -> None:
    (folder / "a.csv").write_text(GOOD)
    store.report = WriteReport(conflicts=(Conflict("m.p", 0, 1.0, 0, 2.0, 0),), conflict_count=1)

    for _ in range(2):
        await inbox.look()

    said = (folder / "done" / "a.csv.conflicts.txt").read_text("utf-8")
    assert said == "m.p 1970-01-01T00:00:00Z: 1.0 stands, 2.0 was offered\n"


async def test_a_second_file_of_the_same_name_replaces_nothing(inbox: Inbox, folder: Path) -> None:
    for number in range(2):
        (folder / "a.csv").write_text(GOOD.replace("2026", f"202{number}"))
        for _ in range(2):
            await inbox.look()

    assert under(folder) == {"done/a.csv", "done/2-a.csv"}


async def test_a_file_that_cannot_be_moved_is_stored_once_and_said(
    inbox: Inbox, folder: Path, store: Store, health: Health
) -> None:
    (folder / "done").write_text("a file where the folder should be")
    (folder / "a.csv").write_text(GOOD)

    for _ in range(4):
        await inbox.look()

    assert len(store.rows) == 2
    assert health.parts[PART].status is Status.DEGRADED
    assert "a.csv" in health.parts[PART].detail
