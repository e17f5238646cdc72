"""The page at `/` in a real browser: Debian's Chromium, driven by Playwright, on the starter.

Without the browser these tests are skipped, or with `NESTLING_TEST_BROWSER=1` fail. `NESTLING_SCREENSHOTS=FOLDER` keeps
pictures of what a person would see.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.contract.conftest import Served
from tests.contract.serving import running

CHROMIUM = shutil.which("chromium")
BROWSER_REQUIRED = bool(os.environ.get("NESTLING_TEST_BROWSER"))
SCREENSHOTS = os.environ.get("NESTLING_SCREENSHOTS")
SUNSETS = 5
expect.set_options(timeout=60_000)  # a task is built and loaded on first use


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        missing = "chromium is missing: the page is not tested; make chromium installs it on Debian"
        (pytest.fail if BROWSER_REQUIRED else pytest.skip)(missing)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root needs it
        yield started
        started.close()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, served: Served) -> Iterator[Page]:
    yield from opened(browser, served.url, color_scheme=request.param)


def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page with an eye on what goes wrong in it and where it asks."""
    context = browser.new_context(viewport={"width": 1200, "height": 1000}, **options)
    page, asked, complaints = context.new_page(), list[str](), list[str]()
    page.on("request", lambda sent: asked.append(sent.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)  # CSP's among them
    page.goto(url)
    yield page
    context.close()
    assert {one for one in asked if not one.startswith((url, "data:"))} == set()
    assert not [one for one in complaints if not one.startswith("Failed to load resource")], "an error may be asked for"


def keep(page: Page, name: str) -> None:
    if SCREENSHOTS:
        scheme = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}-{scheme}.png", full_page=True)


def cosines(page: Page) -> list[list[float]]:
    rows = page.locator("#shown tbody tr").all()
    return [[float(cell) for cell in row.locator("td:not(.tokens)").all_inner_texts()] for row in rows]


def test_type_choose_and_see_the_heat_map(page: Page) -> None:
    expect(page.locator("#task")).to_have_value("retrieval")
    page.get_by_label("Task").select_option("text-matching")
    page.get_by_label("Size").select_option("128")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#shown tbody tr")).to_have_count(SUNSETS)
    found = cosines(page)
    assert [row[place] for place, row in enumerate(found)] == [1.0] * SUNSETS
    assert min(found[0][1:4]) > found[0][4], "four sunsets are nearer to each other than to the oil of a car"
    expect(page.locator("#curl")).to_contain_text('"dimensions":128')
    expect(page.locator("#facts")).to_contain_text("tokens")
    cells = page.locator("#shown tbody td:not(.tokens)").all()
    shades = {cell.evaluate("one => getComputedStyle(one).backgroundColor") for cell in cells}
    assert len(shades) > SUNSETS
    keep(page, "compare")
    page.get_by_label("Texts, one a line").fill("one text\n\nanother text\n")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#shown tbody tr")).to_have_count(2)


def test_search_by_keyboard_alone(page: Page) -> None:
    expect(page.locator("#task")).to_have_value("retrieval")
    tab = page.get_by_role("tab", name="Compare")
    for _ in range(20):
        if tab.evaluate("one => one === document.activeElement"):
            break
        page.keyboard.press("Tab")
    expect(tab).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Search")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("textbox", name="Query")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("The sun sets in the west, over the sea.")  # a passage itself, so the nearest of all
    page.keyboard.press("Control+Enter")
    expect(page.locator("#shown li").first).to_contain_text("The sun sets in the west")
    scores = [float(text.split()[0]) for text in page.locator("#shown li").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert page.locator("#curl").inner_text().count("curl -s") == 2
    keep(page, "search")


def test_the_command_that_is_shown_gives_the_same(page: Page) -> None:
    page.get_by_label("Texts, one a line").fill('it\'s a text with "quotes" and $dollars\nanother `text` \\ more')
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#shown tbody tr")).to_have_count(2)
    done = subprocess.run(page.locator("#curl").inner_text(), shell=True, capture_output=True, check=True)
    left, right = (item["embedding"] for item in json.loads(done.stdout)["data"])
    assert sum(a * b for a, b in zip(left, right, strict=True)) == pytest.approx(cosines(page)[0][1], abs=2e-3)


def test_what_goes_wrong_is_said(browser: Browser, served: Served) -> None:
    for page in opened(browser, served.url):
        page.get_by_label("Texts, one a line").fill("\n")
        page.get_by_role("button", name="Compare", exact=True).click()
        expect(page.get_by_role("alert")).to_be_visible()
        expect(page.get_by_role("alert")).to_contain_text("text")
        keep(page, "empty")


def test_a_server_with_keys_asks_for_one(browser: Browser) -> None:
    with running(api_key=("sesame",)) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        page.get_by_label("Key", exact=True).fill("sesame")
        page.get_by_role("button", name="Use").click()
        expect(page.locator("#size")).to_have_value("64")
        page.get_by_role("button", name="Compare", exact=True).click()
        expect(page.locator("#shown tbody tr")).to_have_count(SUNSETS)
        expect(page.locator("#curl")).to_contain_text("YOUR-KEY")
        context.close()


def test_a_narrow_page_does_not_scroll_sideways(browser: Browser, served: Served) -> None:
    for page in opened(browser, served.url):
        page.set_viewport_size({"width": 390, "height": 800})
        page.get_by_role("button", name="Compare", exact=True).click()
        expect(page.locator("#shown tbody tr")).to_have_count(SUNSETS)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        keep(page, "narrow")
