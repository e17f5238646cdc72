"""The page at `/` in a real browser: Debian's Chromium, driven by Playwright, on the starter.

The doors for an image are three: a file chosen, one dropped, one pasted.

Without the browser these tests are skipped, or with `NESTLING_TEST_BROWSER=1` fail. `NESTLING_SCREENSHOTS=FOLDER` keeps
pictures of what a person would see.
"""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect, sync_playwright
from tests.contract.conftest import Served
from tests.contract.serving import running
from tests.picture_files import png, saved
from tests.pictures import bars, gradient

from nestling.server import pages
from nestling.server.pages import TRIES

CHROMIUM = shutil.which("chromium")
BROWSER_REQUIRED = bool(os.environ.get("NESTLING_TEST_BROWSER"))
SCREENSHOTS = os.environ.get("NESTLING_SCREENSHOTS")
SUNSETS = 5
PICTURES = {"it's a gradient.png": png(gradient(120, 200)), "bars.jpg": saved(bars(200, 90), "JPEG")}
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


def test_every_try_is_one_click_and_right(page: Page) -> None:
    buttons = page.locator("#tries button")
    expect(buttons).to_have_count(5)
    titles = buttons.all_inner_texts()
    for one in json.loads(TRIES.read_text("utf-8")):
        page.get_by_role("button", name=one["title"]).click()
        expect(page.locator("#answer-title")).to_have_text(f"{one['title']}: {one['query']}")
        expect(page.locator("#told")).to_contain_text(f"{one['shows']} Right: 0.")
        items, right = page.locator("#shown li").all(), len(one["answers"])
        marked = [item.get_attribute("class") == "sought" for item in items]
        assert marked == [True] * right + [False] * (len(items) - right)
        expect(page.locator("#task")).to_have_value(one["task"])
        expect(page.locator("#answer")).to_be_in_viewport()
    assert titles == [one["title"] for one in json.loads(TRIES.read_text("utf-8"))]
    keep(page, "try")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#answer-title")).to_have_text(f"{'Images' if one['images'] else 'Passages'}, nearest first")
    expect(page.locator("#told")).to_be_hidden()


def test_a_try_that_cannot_hold_is_not_offered_and_a_wrong_one_is_said(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a tower, for a task that is not served, and where the model finds something else."""
    search = {
        "task": "retrieval",
        "shows": "It shows something.",
        "query": "aa",
        "passages": ["bb", "aa"],
        "images": [],
    }
    picture = "sets/emoji-names/images/e52.png"
    rows = [
        {**search, "title": "Holds", "answers": [1]},
        {**search, "title": "Fails", "answers": [0]},
        {**search, "title": "Task", "answers": [1], "task": "code"},
        {**search, "title": "Pictures", "answers": [0], "passages": [], "images": [picture]},
    ]
    monkeypatch.setattr(pages, "TRIES", tmp_path / "tries.json")
    pages.TRIES.write_text(json.dumps(rows), "utf-8")
    with running(model=("fake-retrieval",)) as server:
        for page in opened(browser, server.url):
            expect(page.locator("#tries button")).to_have_text(["Holds", "Fails"])
            expect(page.locator("#tries-note")).to_contain_text("no vision tower")
            expect(page.locator("#tries-note")).to_contain_text("not for the task code")
            for name, said in (("Holds", "Right: "), ("Fails", "Wrong with this model.")):
                page.get_by_role("button", name=name).click()
                expect(page.locator("#told")).to_contain_text(f"It shows something. {said}")
            keep(page, "tries-not-offered")


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
        choose(page, {"a name that is longer than a narrow page is wide.png": png(gradient(60, 900))})
        page.get_by_role("button", name="Compare", exact=True).click()
        expect(page.locator("#shown tbody tr")).to_have_count(SUNSETS + 1)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        keep(page, "narrow")


def choose(page: Page, files: dict[str, bytes]) -> None:
    """Take files by the page's button."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add images").click()
    payloads = [FilePayload(name=name, mimeType="", buffer=data) for name, data in files.items()]
    chooser.value.set_files(payloads)


def transfer(page: Page, event: str, name: str, data: bytes) -> None:
    """Drop or paste a file, as the browser tells the page of it."""
    page.evaluate(
        """([event, name, code]) => {
          const bytes = Uint8Array.from(atob(code), one => one.charCodeAt(0)), given = new DataTransfer();
          given.items.add(new File([bytes], name, {type: "image/png"}));
          const told = {bubbles: true, cancelable: true};
          document.body.dispatchEvent(event === "drop" ? new DragEvent("drop", {...told, dataTransfer: given})
            : new ClipboardEvent("paste", {...told, clipboardData: given}));
        }""",
        [event, name, base64.b64encode(data).decode()],
    )


def tokens_of(server: Served, data: bytes) -> int:
    body = {"input": [{"image": base64.b64encode(data).decode()}]}
    found: int = httpx.post(server.url + "/v1/embeddings", json=body, timeout=60).json()["usage"]["prompt_tokens"]
    return found


def test_images_beside_texts_in_the_heat_map(page: Page, served: Served) -> None:
    choose(page, PICTURES)
    transfer(page, "drop", "dropped.png", png(gradient(56, 56)))
    transfer(page, "paste", "pasted.png", png(gradient(56, 56)))
    names = [*PICTURES, "dropped.png", "pasted.png"]
    expect(page.locator("#chosen li")).to_have_count(len(names))
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#shown tbody tr")).to_have_count(SUNSETS + len(names))
    rows = page.locator("#shown tbody th").all()[SUNSETS:]
    assert [row.inner_text().split(maxsplit=1)[1] for row in rows] == names
    for row in rows:
        assert row.locator("img").evaluate("one => one.naturalWidth") > 0, "the picture itself is seen"
    found = cosines(page)
    assert [row[place] for place, row in enumerate(found)] == [1.0] * len(found)
    assert found[-1][-2] == 1.0, "the same picture twice"
    counts = [int(one) for one in page.locator("#shown tbody td.tokens").all_inner_texts()[SUNSETS:]]
    assert counts[:2] == [tokens_of(served, data) for data in PICTURES.values()]
    keep(page, "images")
    page.get_by_role("button", name="Remove bars.jpg").press("Enter")
    expect(page.locator("#chosen li")).to_have_count(len(names) - 1)
    expect(page.get_by_role("button", name="Add images")).to_be_focused()


def test_images_among_passages(page: Page) -> None:
    page.get_by_role("tab", name="Search").click()
    choose(page, PICTURES)
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#shown li")).to_have_count(5 + len(PICTURES))
    expect(page.locator("#shown li img")).to_have_count(len(PICTURES))
    scores = [float(text.split()[0]) for text in page.locator("#shown li").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    keep(page, "images-search")
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#compare #chosen li")).to_have_count(len(PICTURES))  # the same for both


def test_the_command_for_images_gives_the_same(page: Page, tmp_path: Path) -> None:
    for name, data in PICTURES.items():
        (tmp_path / name).write_bytes(data)
    choose(page, PICTURES)
    page.get_by_label("Texts, one a line").fill('"quotes", it\'s $HOME and `id` \\n')
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#shown tbody tr")).to_have_count(3)
    expect(page.get_by_text("Run it where the image files are")).to_be_visible()
    command = page.locator("#curl").inner_text()
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True, cwd=tmp_path)
    rows = [item["embedding"] for item in json.loads(done.stdout)["data"]]
    assert len(rows) == 3
    for one, shown in zip(rows, cosines(page)[0], strict=True):
        assert sum(a * b for a, b in zip(rows[0], one, strict=True)) == pytest.approx(shown, abs=2e-3)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("half.png", png(gradient(60, 60))[:80], "half.png: cannot be read as an image: the PNG is damaged"),
        ("paper.pdf", b"%PDF-1.7", "paper.pdf: cannot be read as an image: this is a PDF"),
        ("nothing.png", b"", "nothing.png: image: empty"),
        ("long.png", png(gradient(2, 500)), "long.png: 500x2 pixels: one side is more than 200"),
    ],
)
def test_a_bad_image_is_said_by_its_name(browser: Browser, served: Served, name: str, data: bytes, said: str) -> None:
    for page in opened(browser, served.url):
        transfer(page, "drop", name, data)
        page.get_by_role("button", name="Compare", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text(said)
        keep(page, "bad-image")


def test_a_model_without_a_tower_says_so(browser: Browser) -> None:
    with running() as server:
        for page in opened(browser, server.url):
            expect(page.locator("#images-note")).to_contain_text("no vision tower")
            expect(page.get_by_role("button", name="Add images")).to_be_disabled()
            transfer(page, "drop", "a.png", png())
            expect(page.get_by_role("alert")).to_contain_text("no vision tower")
            expect(page.locator("#chosen li")).to_have_count(0)
            page.get_by_role("button", name="Compare", exact=True).click()
            expect(page.locator("#shown tbody tr")).to_have_count(SUNSETS)
            keep(page, "no-tower")
