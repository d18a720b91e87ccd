from __future__ import annotations

import numpy as np

from core.bus import COMMITTED
from core.quality import BAD, UNCERTAIN_SUBSTITUTE_VALUE

T0 = "2026-10-05T00:00:00Z"


def sample(time: str = T0, value: object = 1.5, **more: object) -> dict[str, object]:
    return {"point": "e-grid.power", "time": time, "value": value, **more}


async def test_what_was_posted_is_there_when_the_answer_comes(client) -> None:
    answer = await client.post("/v1/samples", json=[sample(), sample("2026-10-05T08:00:01.25+08:00", 2)])

    assert answer.status_code == 200
    assert answer.json() == {
        "accepted": 2,
        "repeated": 0,
        "corrected": 0,
        "conflicts": [],
        "conflict_count": 0,
        "rejected": [],
    }
    assert (await client.get("/v1/latest?point=e-grid.power")).json() == [
        {
            "point": "e-grid.power",
            "time": "2026-10-05T00:00:01.25Z",
            "value": 2.0,
            "unit": "kW",
            "quality": "good",
            "status": 0,
        }
    ]


async def test_the_same_sample_again_is_repeated_and_another_value_is_a_conflict(client) -> None:
    await client.post("/v1/samples", json=[sample()])
    again = (await client.post("/v1/samples", json=[sample(), sample(value=9)])).json()
    assert (again["accepted"], again["repeated"]) == (0, 1)
    assert again["conflicts"] == [{"point": "e-grid.power", "time": T0, "stored": 1.5, "offered": 9.0}]


async def test_a_correction_says_who_and_why(client, world) -> None:
    await client.post("/v1/samples", json=[sample()])
    answer = await client.post(
        "/v1/samples", params={"correct": "true", "who": "li", "why": "read wrongly"}, json=[sample(value=9)]
    )
    assert answer.json()["corrected"] == 1
    (kept,) = world.store.corrections
    assert (kept.who, kept.why, kept.at_ns) == ("li", "read wrongly", world.clock.now_ns())


async def test_faulty_rows_are_named_and_the_others_land(client) -> None:
    rows = [
        sample(),
        sample(point="nobody"),
        sample(time="2026-10-05T00:00:00"),
        sample(time="yesterday"),
        sample(value="7"),
        sample(value=True),
        sample(quality="fine"),
        sample(value=None, quality="good"),
        {"point": "e-grid.power", "time": T0},
        "text",
        sample(time="2199-10-05T00:00:00Z"),
    ]
    answer = (await client.post("/v1/samples", json=rows)).json()
    assert answer["accepted"] == 1
    reasons = {row["index"]: row["reason"] for row in answer["rejected"]}
    assert sorted(reasons) == list(range(1, 11))
    assert "'nobody'" in reasons[1]
    assert "zone" in reasons[2]
    assert "yesterday" in reasons[3]
    assert "lies ahead; it is" in reasons[10]


async def test_a_null_is_a_bad_reading_and_never_zero(client, world) -> None:
    await client.post(
        "/v1/samples", json=[sample(value=None), sample("2026-10-05T00:01:00Z", 3, quality="uncertain")]
    )
    stored = sorted(world.store.rows.items(), key=lambda row: row[0][1])
    assert np.isnan(stored[0][1][0])
    assert stored[0][1][1] == BAD
    page = (await client.get(f"/v1/samples?point=e-grid.power&start={T0}&end=2026-10-06T00:00:00Z")).json()
    assert [(row["value"], row["quality"]) for row in page["items"]] == [(None, "bad"), (3.0, "uncertain")]
    assert page["items"][0]["status"] == 0x80000000


async def test_only_what_was_taken_is_told_to_the_others(client, world) -> None:
    await client.post("/v1/samples", json=[sample()])
    with world.bus.subscribe(COMMITTED) as news:
        await client.post("/v1/samples", json=[sample(value=9), sample("2026-10-05T00:00:05Z", 2)])
        batch = news.get_nowait()
        await client.post("/v1/samples", json=[sample()])
        assert news.get_nowait() is None
    assert batch.value.tolist() == [2.0]


async def test_nothing_is_taken_while_nothing_can_be_committed(client, world) -> None:
    world.store.away = True
    answer = await client.post("/v1/samples", json=[sample()])
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_form_on_a_foreign_page_cannot_write(client) -> None:
    answer = await client.post("/v1/samples", content=b"[]", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


async def test_too_many_samples_at_once_are_refused_whole(client, world) -> None:
    answer = await client.post("/v1/samples", json=[0] * 100_001)
    assert answer.status_code == 413
    assert world.store.rows == {}


async def test_pages_meet_without_gap_or_overlap(client) -> None:
    rows = [sample(f"2026-10-05T00:00:{second:02d}Z", second) for second in range(10)]
    await client.post("/v1/samples", json=rows)
    query = {"point": "e-grid.power", "start": T0, "end": "2026-10-05T00:00:09Z", "limit": 4}

    pages, cursor = [], None
    while True:
        page = (await client.get("/v1/samples", params=query | ({"cursor": cursor} if cursor else {}))).json()
        pages.append([row["value"] for row in page["items"]])
        cursor = page["next"]
        if cursor is None:
            break

    assert pages == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]  # the end itself is outside


async def test_a_status_is_given_as_its_full_opc_ua_code(client, world) -> None:
    world.store.rows["e-grid.power", 10**18] = (4.0, UNCERTAIN_SUBSTITUTE_VALUE)
    (row,) = (await client.get("/v1/latest?point=e-grid.power&point=e-roof.power")).json()
    assert (row["quality"], row["status"]) == ("uncertain", 0x40910000)


async def test_points_are_listed_with_their_units(client) -> None:
    rows = (await client.get("/v1/points")).json()
    assert {"point", "device", "quantity", "unit"} <= rows[0].keys()
    assert [row["unit"] for row in rows] == ["kWh", "kW"] * 3


async def test_metrics_count_rows_by_what_became_of_them(client) -> None:
    def count(text: str, outcome: str) -> float:
        found = [
            line
            for line in text.splitlines()
            if line.startswith(f'ecmc_rows_written_total{{outcome="{outcome}"}}')
        ]
        return float(found[0].split()[-1]) if found else 0.0

    before = (await client.get("/metrics")).text
    await client.post("/v1/samples", json=[sample(), sample(), sample(value=9)])
    after = (await client.get("/metrics")).text
    counted = {o: count(after, o) - count(before, o) for o in ("accepted", "repeated", "conflict")}
    assert counted == {"accepted": 1, "repeated": 1, "conflict": 1}
