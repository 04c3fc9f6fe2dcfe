"""The site in a real browser: quiet, asking for nothing outside, readable on a phone, found by its search."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the site is looked at with playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="and with axe")

pytestmark = pytest.mark.slow
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE, DESKTOP = 390, 1280
SERIOUS = ("serious", "critical")


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Reader:
    """A browser's page, what it said and what it asked for."""

    page: playwright.Page
    home: str
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    if BROWSER is None:
        pytest.skip("no browser found: install Chromium to look at the site")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(params=[PHONE, DESKTOP])
def reader(request: pytest.FixtureRequest, browser: playwright.Browser, address: str) -> Iterator[Reader]:
    tab = browser.new_page(viewport={"width": request.param, "height": 844}, reduced_motion="reduce")
    found = Reader(tab, address)
    tab.on("console", lambda message: found.said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: found.said.append(str(error)))
    tab.on("request", lambda request: found.asked.append(request.url))
    yield found
    tab.close()


def test_every_page_is_quiet_and_fits(reader: Reader, site: Path) -> None:
    pages = [str(page.parent.relative_to(site)) for page in sorted(site.rglob("index.html"))]
    assert len(pages) > 25
    for page in pages:
        reader.page.goto(reader.home + ("" if page == "." else page + "/"), wait_until="networkidle")
        over = reader.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over <= 1, f"{page} is {over} pixels too wide"
        assert reader.said == [], page
    assert [url for url in reader.asked if not url.startswith((reader.home, "data:", "blob:"))] == []


def test_search_finds_what_is_asked(reader: Reader) -> None:
    reader.page.goto(reader.home, wait_until="networkidle")
    if reader.page.viewport_size["width"] == PHONE:
        reader.page.locator("label.md-header__button[for=__search]").click()
    reader.page.get_by_text("Type to start searching").wait_for()
    reader.page.locator("input.md-search__input").press_sequentially("masked gradients")
    reader.page.wait_for_selector(".md-search-result__item")
    assert "gradients" in reader.page.locator(".md-search-result__list").inner_text().lower()


@pytest.mark.parametrize("page", ["", "audit/", "theory/", "tutorial/", "reference/measure/"])
def test_axe_finds_nothing_serious(reader: Reader, page: str) -> None:
    reader.page.goto(reader.home + page, wait_until="networkidle")
    found = axe.Axe().run(reader.page).response["violations"]
    serious = {one["id"]: [node["html"] for node in one["nodes"]][:3] for one in found if one["impact"] in SERIOUS}
    assert serious == {}
