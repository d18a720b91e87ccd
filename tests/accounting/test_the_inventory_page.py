"""The inventory page in a real Chromium: read, opened down to a register, written to and approved."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.server import bind, serve

chromium = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium is None, reason="no chromium on this machine: apt-get install chromium"),
]


@pytest.fixture
async def page(office: Any) -> AsyncIterator[Any]:
    from playwright.async_api import async_playwright

    listening = bind("127.0.0.1", 0)
    task = asyncio.create_task(serve(office.app, listening))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1366, "height": 900}, locale="en-GB")
        faults: list[str] = []
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        await page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/inventory")
        yield page
        assert faults == []
        await browser.close()
    task.cancel()
    await asyncio.wait([task], timeout=8)


async def shows(page: Any, selector: str, text: str) -> None:
    from playwright.async_api import expect

    await expect(page.locator(selector).first).to_contain_text(re.compile(text), timeout=15_000)


async def test_the_year_stands_on_paper_and_opens_down_to_a_register(page: Any) -> None:
    await shows(page, "#plant", "Small")
    await shows(page, "#edition", "designed toward")
    await shows(page, "#lines", "Boiler")
    await shows(page, "#factors", "grid_cn:CN-CQ")
    await shows(page, "#declared", "Commuting")
    assert await page.locator("#bars").get_attribute("data-bars") == "4"

    await page.locator("#lines button.link", has_text="Boiler").click()
    await shows(page, "#opened-title", "boiler")
    await page.locator("#opened button.link").first.click()
    await shows(page, "#opened-body", "gas.energy")  # the register behind the tonne
    await page.locator("#back").click()
    await shows(page, "#opened-title", "boiler")


async def test_an_activity_is_written_down_and_approved_by_somebody_else(page: Any) -> None:
    await shows(page, "#lines", "Boiler")
    await page.fill("#operator", "li")
    await page.fill("#activity [name=period]", "2026-09")
    await page.fill("#activity [name=subject]", "diesel@gbt_32151_2015")
    await page.fill("#activity [name=amount]", "1")
    await page.fill("#activity [name=unit]", "t")
    await page.set_input_files(
        "#activity [name=evidence]", {"name": "invoice.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"}
    )
    await page.click("#activity button[type=submit]")
    await shows(page, "#activities", "waits for approval")

    await page.click("#activities button.link")
    await shows(page, "#trouble", "somebody else has to approve it")
    await page.fill("#operator", "wang")
    await page.click("#activities button.link")
    await shows(page, "#activities", "counts")
    await shows(page, "#lines", "diesel@gbt_32151_2015")


async def test_a_stock_count_a_formula_and_a_csv_are_written_down_and_withdrawn(page: Any) -> None:
    await shows(page, "#lines", "Boiler")
    await page.fill("#operator", "li")
    await page.fill("#activity [name=period]", "2026-09")
    await page.select_option("#activity [name=kind]", "gas")
    await page.fill("#activity [name=subject]", "SF6")
    await page.click("#activity summary >> nth=0")
    for name, kg in (("opening", "50"), ("bought", "10"), ("closing", "58")):
        await page.fill(f"#activity [name={name}]", kg)
    await page.click("#activity button[type=submit]")
    await shows(page, "#activities", "SF6")
    await page.fill("#activity [name=period]", "2026-09")
    await page.select_option("#activity [name=kind]", "process")
    await page.fill("#activity [name=subject]", "steam")
    await page.fill("#activity [name=amount]", "12")
    await page.fill("[data-detail=enthalpy_kj_per_kg]", "2777")
    await page.click("#activity button[type=submit]")
    await shows(page, "#activities", "steam")
    faulty = b"period,kind,subject,amount,unit\n2026-10,fuel,diesel@ndrc_other_industry,x,t\n"
    await page.set_input_files("#rows", {"name": "a.csv", "mimeType": "text/csv", "buffer": faulty})
    await shows(page, "#trouble", "row 1, amount")
    good = faulty.replace(b"x,t", b"1.2,t")
    await page.set_input_files("#rows", {"name": "a.csv", "mimeType": "text/csv", "buffer": good})
    await shows(page, "#activities", "diesel")

    await page.fill("#operator", "wang")
    for subject in ("SF6", "steam"):
        row = page.locator("#activities tr", has_text=subject)
        await row.get_by_text("Approve").click()
        await shows(page, f"#activities tr:has-text('{subject}')", "counts")
    await page.locator("#lines button.link", has_text="process steam").click()
    await shows(page, "#opened-body", "heat:heat_cn")  # the entry with the factor it stands on
    await page.click("#opened [data-word=close]")
    page.once("dialog", lambda dialog: dialog.accept("counted twice"))
    await page.locator("#activities tr", has_text="SF6").get_by_text("Withdraw").click()
    await shows(page, "#activities tr:has-text('SF6')", "withdrawn: counted twice")


async def test_the_page_speaks_both_languages(page: Any) -> None:
    await shows(page, "#lines", "Boiler")
    await page.click("#language")
    await shows(page, "#lines", "锅炉")
    await shows(page, "header", "温室气体清单")
