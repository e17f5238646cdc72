"""Take `docs/page.png`, the picture of the server's page in the README, with Debian's chromium.

python -m benchmarks.page_picture
"""

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks.server_load import NESTLING, process

PICTURE = Path(__file__).parents[1] / "docs" / "page.png"
TEXTS = """A beautiful sunset over the beach
Un beau coucher de soleil sur la plage
Ein schöner Sonnenuntergang am Strand
Una hermosa puesta de sol en la playa
How do I change the oil of my car?"""
PATIENCE_MS = 60_000


def main() -> None:
    """Serve the starter, compare five texts on its page, keep what is seen."""
    with process(NESTLING, "serve", "--port", "0") as (_, url), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 700}, color_scheme="light")
        page.goto(url)
        page.get_by_label("Task").select_option("text-matching")
        page.get_by_label("Texts, one a line").fill(TEXTS)
        for _ in range(2):  # the first time, the task is loaded
            page.locator("#shown").evaluate("shown => shown.replaceChildren()")
            page.get_by_role("button", name="Compare", exact=True).click()
            page.locator("#shown tbody tr").nth(4).wait_for(timeout=PATIENCE_MS)
        page.screenshot(path=PICTURE, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
