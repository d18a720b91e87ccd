"""A disk that fills up: said early, raw samples stop before results do, and all goes on by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import StoreUnavailable
from core.store.room import Level, Room, Usage

GB = 10**9


class Disk:
    """A disk of 100 GB and its clock, both set by hand; raw samples stop below 2 GB."""

    def __init__(self) -> None:
        self.free = 60 * GB
        self.now_s = 0.0
        self.room = Room(Path("/data"), lambda folder: Usage(100 * GB, self.free), lambda: self.now_s)

    def at(self, hours: float, free_gb: float) -> Level:
        self.now_s, self.free = hours * 3600, int(free_gb * GB)
        return self.room.look()


def test_little_room_is_said_and_less_stops_raw_samples_until_there_is_more_again() -> None:
    disk = Disk()

    levels = [
        disk.at(h / 100, gb) for h, gb in enumerate([60, 6.1, 5.9, 2.1, 1.9, 2.1, 2.4, 2.6, 5.9, 6.1], 1)
    ]

    assert [level.name for level in levels] == [
        *("PLENTY", "PLENTY", "EARLY", "EARLY", "SHORT", "SHORT", "SHORT", "EARLY", "EARLY", "PLENTY")
    ]


def test_a_disk_that_will_not_last_two_days_is_said_while_most_of_it_is_free() -> None:
    disk = Disk()

    levels = [disk.at(hour, 60 - 1.3 * hour) for hour in range(1, 9)]
    slower = [disk.at(8 + hour, 49.6 - 0.1 * hour) for hour in range(1, 9)]

    assert [level.name for level in levels] == ["PLENTY"] * 5 + ["EARLY"] * 3
    assert "enough for" not in disk.room.words()
    assert [level.name for level in slower][-1] == "PLENTY"


def test_the_words_say_what_is_left_and_what_waits_for_what() -> None:
    disk = Disk()
    disk.at(1, 1.5)

    with pytest.raises(
        StoreUnavailable, match=r"1\.50 GB free on the disk of /data: samples wait until there are 2\.50"
    ):
        disk.room.admit()


def test_looking_often_asks_the_disk_once_a_second() -> None:
    disk = Disk()
    disk.at(1, 60)
    disk.free = 0

    assert disk.room.look() is Level.PLENTY
    assert disk.at(1.001, 0) is Level.SHORT
