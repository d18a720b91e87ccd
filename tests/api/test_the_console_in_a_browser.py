"""The console in a real Chromium, against the real app on a socket."""

from __future__ import annotations

import asyncio
import math
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

from core.bus import LIVE, LiveNode, LiveUpdate
from core.plant.model import AlertKind, AlertRule, Edge, Label, Node, NodeKind, Origin, RemainderMeter
from core.results import Flow
from core.samples import NS_PER_S, batch_of_rows
from core.store.seam import Series

chromium = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium is None, reason="no chromium on this machine: apt-get install chromium"),
]

DAY_START_NS = 1_791_129_600 * NS_PER_S  # 2026-10-05 00:00 in Shanghai, 12 h before the plant's clock
EDGES = {  # id: from, to, carrier, kWh so far today, kW now
    "e-grid": ("grid", "main", "electricity", 5210.0, 512.0),
    "e-roof": ("roof", "main", "electricity", 1460.0, 231.0),
    "e-bat-out": ("bat", "main", "electricity", 130.0, 0.0),
    "e-bat-in": ("main", "bat", "electricity", 210.0, 40.0),
    "e-gas": ("gas", "boiler", "natural_gas", 1900.0, 160.0),
    "e-steam": ("boiler", "steam", "steam", 1710.0, 144.0),
    "e-dry": ("steam", "drying", "steam", 1710.0, 144.0),
    "e-press": ("main", "press", "electricity", 2480.0, 264.0),
    "e-weld": ("main", "weld", "electricity", 1630.0, 171.0),
    "e-paint": ("main", "paint", "electricity", 1120.0, 118.0),
    "e-pumps": ("main", "boiler", "electricity", 80.0, 8.0),
    "e-rest": ("main", "rest", "electricity", 1280.0, 142.0),
}
NODES = {  # id: kind, carrier, zh, en, kg today, kg per kWh, coverage
    "grid": ("source", "electricity", "电网", "Grid", 2388.7, 0.45848, 1.0),
    "roof": ("source", "electricity", "屋顶光伏", "Roof PV", 0.0, 0.0, 0.98),
    "gas": ("source", "natural_gas", "天然气", "Natural gas", 0.0, 0.0, 1.0),
    "main": ("bus", "electricity", "主母线", "Main bus", 0.0, 0.352, 1.0),
    "steam": ("bus", "steam", "蒸汽母管", "Steam header", 0.0, 0.24, 1.0),
    "boiler": ("converter", None, "燃气锅炉", "Gas boiler", 0.0, 0.24, 1.0),
    "bat": ("storage", "electricity", "储能", "Battery", 28.0, 0.33, 1.0),
    "press": ("load", "electricity", "冲压车间", "Press shop", 873.0, 0.352, 1.0),
    "weld": ("load", "electricity", "焊装车间", "Welding", 574.0, 0.352, 0.94),
    "paint": ("load", "electricity", "涂装车间", "Paint shop", 394.0, 0.352, 1.0),
    "drying": ("load", "steam", "烘干", "Drying", 410.0, 0.24, 1.0),
    "rest": ("load", "electricity", "其余用电", "Everything else", 450.0, 0.352, 0.9),
}
SITE_KG = {1: 383.0, 2: 2388.7}


@pytest.fixture
def factory(world):
    """A factory at noon, with a device down and an alarm."""
    small = world.plant
    world.plant = replace(
        small,
        nodes=tuple(
            Node(
                id_,
                NodeKind(kind),
                carrier,
                Origin.PURCHASED if kind == "source" else None,
                name=Label(zh, en),
            )
            for id_, (kind, carrier, zh, en, *_) in NODES.items()
        ),
        edges=tuple(
            Edge(id_, source, target, RemainderMeter(source), carrier)
            for id_, (source, target, carrier, *_) in EDGES.items()
        ),
        alerts=(
            AlertRule(
                "grid-high", AlertKind.LIMIT, "e-grid.power", high=500.0, name=Label("进线功率", "Incomer")
            ),
            AlertRule("roof-silent", AlertKind.MISSING, "e-roof.power", for_s=60.0),
        ),
    )
    world.alarms.adopt(world.plant)
    world.devices = {
        "e-grid": _state(True, ""),
        "e-roof": _state(True, ""),
        "e-press": _state(False, "10.0.3.7:502: no answer within 1 s"),
    }
    world.live = picture(world)
    answers = world.store.answers
    answers["energy"] = lambda edges, *_: _series(
        edges,
        {
            "energy_kwh": [EDGES[edge][3] for edge in edges],
            "coverage": [1.0] * len(edges),
            "estimated_share": [0.0] * len(edges),
        },
    )
    answers["balance"] = lambda nodes, *_: _balance([node for node in nodes if node != "site"])
    answers["emissions"] = lambda nodes, *_: _emissions(nodes)
    answers["intensity"] = _intensity
    return world


def _state(up: bool, detail: str) -> SimpleNamespace:
    return SimpleNamespace(up=up, since_ns=DAY_START_NS, detail=detail, counters={}, warning="", identity={})


def _series(names, columns) -> Series:
    values = {name: np.array(column, dtype=np.float64) for name, column in columns.items()}
    return Series(tuple(names), np.full(len(names), DAY_START_NS), values)


def _balance(nodes) -> Series:
    into = [sum(e[3] for e in EDGES.values() if e[1] == node) for node in nodes]
    out = [sum(e[3] for e in EDGES.values() if e[0] == node) for node in nodes]
    return _series(nodes, {"in_kwh": into, "out_kwh": out, "residual_kwh": [0.0] * len(nodes)})


def _emissions(nodes) -> Series:
    rows = [(node, 2, NODES[node][4], NODES[node][6]) for node in nodes if node != "site"]
    rows += [("site", scope, kg, 0.985) for scope, kg in SITE_KG.items()]
    flows = (Flow(1, "location", "zero-carbon-factory"), Flow(2, "location", "zero-carbon-factory"))
    series = _series(
        [row[0] for row in rows],
        {"emissions_kgco2e": [row[2] for row in rows], "coverage": [row[3] for row in rows]},
    )
    return replace(series, flow=np.array([row[1] - 1 for row in rows], dtype=np.int32), flows=flows)


def _intensity(nodes, start_ns, end_ns, bucket, *_) -> Series:
    if bucket == "1d":
        known = [node for node in nodes if node != "site"]
        return _series(known, {"intensity_kgco2e_per_kwh": [NODES[node][5] for node in known]})
    start = np.arange(DAY_START_NS, DAY_START_NS + 12 * 3600 * NS_PER_S, 900 * NS_PER_S)
    hour = np.arange(start.size) / 4
    sun = np.clip(np.sin((hour - 6) / 12 * math.pi), 0, None)
    return Series(("main",) * start.size, start, {"intensity_kgco2e_per_kwh": 0.4585 - 0.13 * sun})


def picture(world, grid_kw: float = 512.0) -> LiveUpdate:
    kw = {edge: row[4] for edge, row in EDGES.items()} | {"e-grid": grid_kw}
    nodes = [
        LiveNode(
            node,
            sum(kw[e] for e, row in EDGES.items() if row[0 if NODES[node][0] == "source" else 1] == node),
            0.0,
            NODES[node][5],
        )
        for node in NODES
    ]
    nodes.append(LiveNode("site", grid_kw, grid_kw * 0.45848, None))
    return LiveUpdate(world.clock.now_ns(), tuple(nodes), dict(kw))


@pytest.fixture
async def page() -> AsyncIterator[object]:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1366, "height": 768}, locale="zh-CN")
        page.asked = []
        page.faults = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda fault: page.faults.append(str(fault)))
        page.on(
            "console", lambda message: page.faults.append(message.text) if message.type == "error" else None
        )
        yield page
        await browser.close()


async def shows(page, selector: str, text: str) -> None:
    from playwright.async_api import expect

    await expect(page.locator(selector).first).to_have_text(re.compile(text), timeout=10_000)


async def test_the_page_shows_the_plant_and_asks_nobody_else(factory, serving, page) -> None:
    async with serving(factory) as base_url:
        await page.goto(base_url)
        await shows(page, "#plant", "示范工厂")
        await shows(page, "#link", "在线")
        await shows(page, "#power", "^703$")  # 264 + 171 + 118 + 142 + 8 kW of electricity into its users
        await shows(page, "#carbon-rate", "^235$")  # 512 kW x 0.45848 kg/kWh
        await shows(page, "#energy-today", "^6,590$")
        await shows(page, "#carbon-today", "^2,772$")  # 383 + 2388.7
        await shows(page, "#completeness", r"^98\.5$")
        await shows(page, "#intensity", r"^0\.352$")
        await shows(page, "tr[data-node=press] td:nth-child(3) output", "2,480")
        await shows(page, "#device-count", "^2 / 3$")
        await shows(page, "li[data-device=e-press]", "离线.*no answer within 1 s")
        await shows(page, "#alarms", "没有报警")
        await page.wait_for_selector("#sankey .sankey-link")
        await page.wait_for_selector("#intensity-chart .scatterlayer .trace")
        assert await page.locator("#sankey .sankey-link").count() == len(EDGES)
        assert await page.locator(".estimate").first.text_content() == "估算"
        if folder := os.environ.get("ECMC_SCREENSHOTS"):
            await page.wait_for_timeout(500)
            await page.screenshot(path=f"{folder}/console-zh.png")

    hosts = {urlsplit(url).netloc for url in page.asked if not url.startswith("data:")}
    assert hosts == {urlsplit(base_url).netloc}
    assert page.faults == []


async def test_figures_move_with_the_events(factory, serving, page) -> None:
    async with serving(factory) as base_url:
        await page.goto(base_url)
        await shows(page, "#carbon-rate", "^235$")
        factory.bus.publish(LIVE, picture(factory, grid_kw=1000.0))
        await shows(page, "#carbon-rate", "^458$")


async def test_the_whole_page_changes_language_and_remembers_it(factory, serving, page) -> None:
    async with serving(factory) as base_url:
        await page.goto(base_url)
        await shows(page, "#plant", "示范工厂")
        await page.click("#language")
        await shows(page, "#plant", "Demo plant")
        await shows(page, "#link", "Online")
        await shows(page, "tr[data-node=press]", "Press shop")
        await page.click("#flow-carbon")
        await page.click("#theme")
        await page.wait_for_function("document.querySelectorAll('#sankey .sankey-link').length > 0")
        seen = await page.locator("body").inner_text()
        if folder := os.environ.get("ECMC_SCREENSHOTS"):
            await page.wait_for_timeout(500)
            await page.screenshot(path=f"{folder}/console-en.png")
        await page.reload()
        await shows(page, "#plant", "Demo plant")
    assert re.findall(r"[\u4e00-\u9fff]+", seen.replace("中文", "")) == []


async def test_an_alarm_comes_by_itself_and_goes_on_acknowledgement(factory, serving, page) -> None:
    async with serving(factory) as base_url:
        await page.goto(base_url)
        await shows(page, "#alarms", "没有报警")
        factory.alarms.observe(batch_of_rows([("e-grid.power", factory.clock.now_ns(), 512.0, 0)]))
        await shows(page, "li[data-alarm=grid-high]", "进线功率\uff1a512 kW\uff0c上限 500 kW.*未确认")
        await page.fill("#operator", "李工")
        if folder := os.environ.get("ECMC_SCREENSHOTS"):
            await page.set_viewport_size({"width": 2560, "height": 1440})
            await page.wait_for_timeout(800)
            await page.screenshot(path=f"{folder}/console-wall.png")
        await page.click("li[data-alarm=grid-high] button")
        await shows(page, "li[data-alarm=grid-high]", "已确认.*李工")
    assert factory.alarms.one("grid-high")["acknowledged_by"] == "李工"


async def test_the_page_says_when_the_server_is_gone_and_comes_back_by_itself(factory, serving, page) -> None:
    async with serving(factory) as base_url:
        await page.goto(base_url)
        await shows(page, "#link", "在线")
    await shows(page, "#link", "断开")

    factory.boot = "b2"
    factory.live = picture(factory, grid_kw=2000.0)
    async with serving(factory, port=urlsplit(base_url).port):
        await shows(page, "#link", "在线")
        await shows(page, "#carbon-rate", "^917$")
        factory.bus.publish(LIVE, picture(factory, grid_kw=1000.0))
        await shows(page, "#carbon-rate", "^458$")


async def test_a_page_without_a_key_asks_for_one(factory, serving, page) -> None:
    from api.security import auth_of

    factory.auth = auth_of("token:a-long-enough-secret")
    async with serving(factory) as base_url:
        await page.goto(base_url)
        await page.fill("#key", "a-long-enough-secret")
        await page.click("#key-form button")
        await shows(page, "#plant", "示范工厂")
        await shows(page, "#link", "在线")


async def test_pages_are_served_with_a_policy_that_lets_nothing_else_in(client) -> None:
    for path in ("/", "/console/console.js", "/console/plotly.min.js"):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert (await client.get("/console/..%2Fapp.py")).status_code == 404
    with suppress(asyncio.CancelledError):
        assert (await client.get("/console/__init__.py")).status_code == 404
