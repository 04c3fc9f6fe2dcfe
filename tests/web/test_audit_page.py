"""An audit's pages in a real browser, from file://: drawn, quiet, usable by mouse, keyboard and screen reader."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the tests of the audit's pages need playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="they need axe-playwright-python, too")

from pinchpoint.report.audit import compare, page  # noqa: E402

DESKTOP, PHONE = 1280, 390


@pytest.fixture(scope="module")
def factory() -> ModuleType:
    source = Path(__file__).parent.parent / "report" / "audit_factory.py"
    spec = importlib.util.spec_from_file_location("web_audit_factory", source)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def files(factory: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("a folder with spaces, ü")
    models = [
        factory.report(name=name, full=False, seed=place) for place, name in enumerate(("dense", "<b>pruned", "dense"))
    ]
    return {
        "audit": page.write(factory.report(), folder / "audit.html"),
        "compare": compare.write(models, folder / "compare.html"),
    }


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@dataclass
class Opened:
    """A page that has drawn, and what it said and asked for meanwhile."""

    page: playwright.Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def opened(browser: playwright.Browser, path: Path, width: int, scheme: str = "light") -> Opened:
    tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, reduced_motion="reduce")
    tab.set_default_timeout(30_000)
    found = Opened(tab)
    tab.on("console", lambda message: found.said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: found.said.append(str(error)))
    tab.on("request", lambda request: found.asked.append(request.url))
    tab.on("dialog", lambda dialog: (found.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-drawn]")
    return found


@pytest.fixture(scope="module")
def wide(browser: playwright.Browser, files: dict[str, Path]) -> Opened:
    return opened(browser, files["audit"], DESKTOP)


@pytest.fixture(scope="module")
def narrow(browser: playwright.Browser, files: dict[str, Path]) -> Opened:
    return opened(browser, files["audit"], PHONE, "dark")


@pytest.fixture(scope="module")
def compared(browser: playwright.Browser, files: dict[str, Path]) -> Opened:
    return opened(browser, files["compare"], PHONE)


@pytest.fixture(params=["wide", "narrow", "compared"])
def any_page(request: pytest.FixtureRequest) -> Opened:
    return request.getfixturevalue(request.param)


def test_the_page_says_nothing_and_asks_for_nothing(any_page: Opened) -> None:
    assert any_page.said == []
    assert [url for url in any_page.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in any_page.asked if url.startswith("file:")]) == 1, "one file is all there is"


def test_all_figures_are_drawn(any_page: Opened) -> None:
    plots = any_page.page.locator(".plot")
    assert plots.count() >= 4
    empty = plots.evaluate_all(
        "all => all.filter(e => !e.querySelector('.js-line, .point, .points path, .hm')).map(e => e.id)"
    )
    assert empty == []


def test_the_page_does_not_scroll_sideways(any_page: Opened) -> None:
    tab = any_page.page
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    tab.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    outside = "all => all.filter(svg => svg.getBoundingClientRect().right > innerWidth + 1).length"
    assert tab.locator(".plot svg.main-svg").evaluate_all(outside) == 0


def test_images_are_shown(wide: Opened) -> None:
    sizes = wide.page.locator("#examples img").evaluate_all("all => all.map(image => image.naturalWidth)")
    assert len(sizes) == 2 * (3 * 3 + 1)
    assert set(sizes) == {32}


def test_a_table_sorts_both_ways_and_says_so(wide: Opened) -> None:
    table = wide.page.locator("#pinch-table")
    heads = table.locator("thead tr").last.locator("th")
    column = heads.all_inner_texts().index(next(text for text in heads.all_inner_texts() if text.strip() == "gain"))
    read = f"all => all.map(row => Number(row.cells[{column}].dataset.value))"
    button = heads.nth(column).locator("button")
    before = table.locator("tbody tr").evaluate_all(read)
    button.click()
    up = table.locator("tbody tr").evaluate_all(read)
    assert up == sorted(before)
    assert up != before
    assert heads.nth(column).get_attribute("aria-sort") == "ascending"
    button.focus()
    wide.page.keyboard.press("Enter")
    assert table.locator("tbody tr").evaluate_all(read) == sorted(before, reverse=True)
    assert heads.nth(column).get_attribute("aria-sort") == "descending"
    assert wide.page.locator("#sorted").inner_text() == "Sorted by gain, descending."


def test_a_definition_is_shown_on_hover_and_on_focus(wide: Opened) -> None:
    tab, tip = wide.page, wide.page.locator("#tip")
    head = tab.locator("#pinch-table th button", has_text="structure").first
    tab.mouse.move(1, 1)
    head.hover()
    tip.wait_for(state="visible")
    assert "What concentration alone adds" in tip.inner_text()
    assert tip.locator(".equation sub").count() >= 1, "the equation is set with its subscripts"
    tip.hover()
    tab.wait_for_timeout(250)
    assert tip.is_visible(), "the pointer may move onto it"
    tab.mouse.move(1, 1)
    tip.wait_for(state="hidden")
    term = tab.locator("#accuracy a.term").first
    term.focus()
    tip.wait_for(state="visible")
    assert term.get_attribute("aria-describedby") == "tip"
    assert tip.get_attribute("role") == "tooltip"
    assert "strongest attack" in tip.inner_text()
    tab.keyboard.press("Escape")
    tip.wait_for(state="hidden")


def test_every_head_of_the_layers_table_defines_its_number(wide: Opened) -> None:
    heads = wide.page.locator("#pinch-table thead tr").last.locator("th button")
    terms = heads.evaluate_all("all => all.map(head => head.dataset.term || '')")
    known = wide.page.locator("#glossary dl > div").evaluate_all("all => all.map(entry => entry.id)")
    assert len(terms) == 16
    assert {f"term-{term}" for term in terms[2:]} <= set(known)
    assert [head.strip() for head in heads.all_inner_texts()[:2]] == ["layer", "rank"]


def test_a_mark_tells_its_numbers_on_hover(wide: Opened) -> None:
    bar = wide.page.locator("#ranking-0 .barlayer .point path").first
    bar.scroll_into_view_if_needed()
    bar.hover(force=True)
    told = wide.page.locator("#ranking-0 .hoverlayer .hovertext")
    told.first.wait_for()
    assert "layer3.0.conv1, Conv2d" in told.first.text_content()
    assert "of the risk" in told.first.text_content()


def test_a_link_to_a_folded_layer_unfolds_it(wide: Opened) -> None:
    last = wide.page.locator("#pinch-20")
    wide.page.evaluate("document.querySelectorAll('details').forEach(item => { item.open = false; })")
    wide.page.locator("#pinch-table a[href='#pinch-20']").click()
    assert last.locator(".why").is_visible()


def test_a_command_is_copied_or_marked(wide: Opened) -> None:
    button = wide.page.locator("#repeat .copy")
    button.click()
    button.filter(has_text=re.compile("Copied|Marked")).wait_for()


def test_selectors_choose_threat_and_sample(wide: Opened) -> None:
    threat, sample = wide.page.locator("#figure-decisions select").all()
    threat.select_option("ℓ₂, ε = 0.5")
    sample.select_option("sample 17")
    title = wide.page.locator("#decisions-0 .annotation-text").first
    assert "sample 17" in title.text_content()
    assert "sample 17" in wide.page.locator("#decisions-0").get_attribute("aria-label")


def test_the_keyboard_reaches_the_verdict_first(browser: playwright.Browser, files: dict[str, Path]) -> None:
    tab = opened(browser, files["compare"], DESKTOP).page
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("location.hash") == "#main"
    tab.locator("#theme").focus()
    tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("Tab")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is seen"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.close()


def test_print_is_light_and_unfolded(narrow: Opened) -> None:
    tab = narrow.page
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"
    assert tab.locator("details:not([open])").count() == 0
    assert not tab.locator("nav.sections").is_visible()
    assert not tab.locator(".copy").first.is_visible()
    tab.emulate_media(media="screen", color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"


def violations(tab: playwright.Page) -> list[str]:
    """What axe-core finds that is serious or critical, all unfolded."""
    tab.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true; })")
    found = axe.Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{item['id']}: {node['target']} {node['failureSummary']}"
        for item in found
        if item["impact"] in ("serious", "critical")
        for node in item["nodes"]
    ]


def test_axe_finds_nothing_serious(compared: Opened) -> None:
    assert violations(compared.page) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audit", "compare"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_at_any_width_and_theme(
    browser: playwright.Browser, files: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    found = opened(browser, files[name], width, scheme)
    assert violations(found.page) == []
    assert found.said == []
    found.page.close()
