from __future__ import annotations

import hashlib
import socket

import pytest

from api.security import Auth, auth_of, refuse_open_door
from api.server import bind
from core.errors import BadRequest, EcmcError, FaultyInput
from core.health import Status
from core.samples import batch_of_rows


def over_the_limit(world, power_kw: float = 120.0) -> None:
    world.alarms.observe(batch_of_rows([("e-grid.power", world.clock.now_ns(), power_kw, 0)]))


async def test_health_says_which_part_is_not_well(client, world) -> None:
    assert (await client.get("/v1/health")).json() == {
        "status": "ok",
        "parts": {"store": {"status": "ok", "detail": ""}},
    }
    world.health.report("collector", Status.DEGRADED, "m-grid does not answer")
    body = (await client.get("/v1/health")).json()
    assert body["status"] == "degraded"
    assert body["parts"]["collector"]["detail"] == "m-grid does not answer"


async def test_the_network_is_told_with_names_in_both_languages(client) -> None:
    body = (await client.get("/v1/network")).json()
    assert body["nodes"][3]["name"] == {"zh": "冲压", "en": "Press shop"}
    assert {(edge["from"], edge["to"], edge["meter"]) for edge in body["edges"]} == {
        ("grid", "main", "point"),
        ("roof", "main", "point"),
        ("main", "press", "point"),
        ("main", "rest", "remainder"),
    }


async def test_a_device_nobody_reads_here_is_neither_up_nor_down(client, world) -> None:
    world.devices["e-grid"] = world_state(False, world.clock.now_ns(), "timeout")
    rows = {row["device"]: row for row in (await client.get("/v1/devices")).json()}
    assert (rows["e-grid"]["up"], rows["e-grid"]["since"], rows["e-grid"]["detail"]) == (
        False,
        "2026-10-05T04:00:00Z",
        "timeout",
    )
    assert (rows["e-grid"]["identity"], rows["e-grid"]["counters"]) == (
        {"serial_number": "S1"},
        {"requests": 7},
    )
    assert rows["e-roof"]["up"] is None


def world_state(up: bool, since_ns: int, detail: str):
    from types import SimpleNamespace

    return SimpleNamespace(
        up=up,
        since_ns=since_ns,
        detail=detail,
        counters={"requests": 7},
        warning="",
        identity={"serial_number": "S1"},
    )


async def test_today_begins_at_midnight_in_the_plants_zone(client) -> None:
    assert (await client.get("/v1/plant")).json()["day_start"] == "2026-10-04T16:00:00Z"


async def test_live_figures_say_that_they_are_estimates(client, world) -> None:
    assert (await client.get("/v1/live")).status_code == 503
    world.live = world.picture(80.0)
    body = (await client.get("/v1/live")).json()
    assert body["estimate"] is True
    assert body["nodes"][0] == {
        "node": "grid",
        "power_kw": 80.0,
        "emissions_kgco2e_per_h": 40.0,
        "intensity_kgco2e_per_kwh": 0.5,
    }
    assert body["edges_kw"]["e-rest"] is None


async def test_an_alarm_is_seen_acknowledged_and_seen_again(client, world) -> None:
    over_the_limit(world)
    (alarm,) = (await client.get("/v1/alerts?state=active")).json()
    assert (alarm["id"], alarm["state"], alarm["severity"]) == ("grid-high", "active-unack", 700)

    answer = await client.post("/v1/alerts/grid-high/ack", json={"who": "li", "note": "seen"})

    assert (answer.json()["state"], answer.json()["acknowledged_by"]) == ("active-ack", "li")
    assert len((await client.get("/v1/alerts?state=active")).json()) == 1
    assert (await client.get("/v1/alerts?state=active-unack")).json() == []
    assert (await client.post("/v1/alerts/grid-high/ack")).status_code == 422
    assert (await client.post("/v1/alerts/nobody/ack")).status_code == 404


async def test_a_shelved_alarm_leaves_the_active_list(client, world) -> None:
    over_the_limit(world)
    answer = await client.post("/v1/alerts/grid-high/shelve", json={"for_s": 600, "who": "li"})
    assert answer.json()["shelved_until"] == "2026-10-05T04:10:00Z"
    assert (await client.get("/v1/alerts?state=active")).json() == []
    assert len((await client.get("/v1/alerts?state=shelved")).json()) == 1


async def test_metrics_count_requests_by_route_and_show_devices(client, world) -> None:
    world.devices["e-grid"] = world_state(True, 0, "")
    for path in ("/v1/points", "/made/up/1", "/made/up/2"):
        await client.get(path)
    text = (await client.get("/metrics")).text
    assert 'ecmc_http_requests_total{method="GET",route="/v1/points",status="200"}' in text
    assert 'route="other",status="404"' in text
    assert "/made/up" not in text
    assert 'ecmc_device_up{device="e-grid"} 1.0' in text
    assert 'ecmc_device_count{counter="requests",device="e-grid"} 7.0' in text


async def test_without_keys_only_a_loopback_name_is_answered(world) -> None:
    async with world.client("http://evil.example") as stranger:
        assert (await stranger.get("/v1/points")).status_code == 421
    for name in ("localhost:8000", "[::1]:8000", "127.0.0.1:8000"):
        async with world.client(f"http://{name}") as friend:
            assert (await friend.get("/v1/points")).status_code == 200


async def test_with_keys_every_figure_needs_one(world) -> None:
    world.auth = auth_of("token:a-long-enough-secret")
    over_the_limit(world)
    async with world.client("http://plant.example") as client:
        assert (await client.get("/v1/health")).status_code == 200
        refused = await client.get("/v1/points")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert (await client.get("/metrics")).status_code == 401
        wrong = {"Authorization": "Bearer something-else-entirely"}
        assert (await client.get("/v1/points", headers=wrong)).status_code == 401
        right = {"Authorization": "Bearer a-long-enough-secret"}
        assert (await client.get("/v1/points", headers=right)).status_code == 200
        answer = await client.post("/v1/alerts/grid-high/ack", headers=right, json={"who": "somebody else"})
        assert answer.json()["acknowledged_by"] == "token"


async def test_a_browser_trades_its_key_for_a_cookie(world) -> None:
    world.auth = auth_of("token:a-long-enough-secret")
    async with world.client("http://plant.example") as client:
        assert (await client.post("/v1/session", json={"key": "wrong"})).status_code == 401
        answer = await client.post("/v1/session", json={"key": "a-long-enough-secret"})
        assert answer.status_code == 204
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert (await client.get("/v1/points")).status_code == 200


def test_keys_in_a_file_are_kept_as_hashes(tmp_path) -> None:
    digest = hashlib.sha256(b"key of the board").hexdigest()
    file = tmp_path / "keys"
    file.write_text(f"# who: hash\nboard:{digest}\n", "utf-8")
    auth = auth_of(f"file:{file}")
    assert isinstance(auth, Auth)
    assert (auth.who("key of the board"), auth.who(digest)) == ("board", None)


def test_a_faulty_key_file_is_refused_line_by_line(tmp_path) -> None:
    file = tmp_path / "keys"
    file.write_text("board:abc\nnothing\n", "utf-8")
    with pytest.raises(FaultyInput) as caught:
        auth_of(f"file:{file}")
    assert [fault.line for fault in caught.value.faults] == [1, 2]


@pytest.mark.parametrize("setting", ["secret", "token:short", "ldap:host"])
def test_a_setting_that_means_nothing_is_refused(setting: str) -> None:
    with pytest.raises(BadRequest, match="ECMC_AUTH"):
        auth_of(setting)


def test_the_door_stays_shut_without_keys() -> None:
    refuse_open_door("127.0.0.1", None)
    refuse_open_door("::1", None)
    refuse_open_door("0.0.0.0", auth_of("token:a-long-enough-secret"))
    with pytest.raises(BadRequest, match="ECMC_AUTH"):
        refuse_open_door("0.0.0.0", None)


def test_a_taken_port_is_said_plainly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EcmcError, match=f"port {port} .* is taken"):
            bind("127.0.0.1", port)
