"""The page in a real browser, from file://, wide and narrow at once: it draws, it reacts, and it reports no error.

One browser start serves all tests: two frames, 1280 and 390 pixels wide (the second with packed figures), each with a
copy of the page in which a probe stands before everything else. The probe collects errors, waits until all is drawn, uses
the page as a reader would, and posts what it saw to the outer page, which writes it to the browser's log.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

PROBE = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective + " " + event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...words) => errors.push(words.join(" "));
const ready = setInterval(() => {
  if (!document.documentElement.dataset.drawn && !errors.length) return;
  clearInterval(ready);
  const seen = {};
  try { use(seen); } catch (error) { errors.push(`the probe stopped: ${error}`); }
  setTimeout(() => parent.postMessage({ width: innerWidth, seen, errors }, "*"), 0);
}, 20);
function use(seen) {
  const all = (query) => [...document.querySelectorAll(query)];
  const empty = () => all(".plot").filter((plot) =>
    !plot.querySelector(".scatterlayer path.js-line, .scatterlayer .points path")).map((plot) => plot.id);
  Object.assign(seen, { plots: all(".plot").length, empty: empty() });
  seen.svgs = all(".plot").filter((plot) => plot.querySelector("svg.main-svg")).length;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.wide = all(".plot svg.main-svg").filter((svg) => svg.getBoundingClientRect().right > innerWidth + 1).length;
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  if (innerWidth < 1000) return;
  const font = () => getComputedStyle(document.querySelector("#accuracy-0 .xtitle, #accuracy-0 .x3title")).fill;
  const marks = () => all("#accuracy-0 .scatterlayer .points path").length;
  seen.light = [font(), getComputedStyle(document.body).backgroundColor];
  document.getElementById("theme").click();
  seen.dark = [font(), getComputedStyle(document.body).backgroundColor];
  seen.marks = marks();
  document.querySelector("#figure-accuracy .key").click();
  seen.hidden = marks();
  seen.pressed = document.querySelector("#figure-accuracy .key").getAttribute("aria-pressed");
  const [family, layer, scale] = all("#figure-spectra select");
  seen.layers = layer.options.length;
  family.selectedIndex = 1; family.dispatchEvent(new Event("change"));
  layer.selectedIndex = 2; layer.dispatchEvent(new Event("change"));
  scale.selectedIndex = 1; scale.dispatchEvent(new Event("change"));
  seen.label = document.getElementById("spectra-1").getAttribute("aria-label");
  seen.legend = all("#figure-spectra .keys:not([hidden])").map((keys) => keys.textContent.replace(/\\s+/g, " ").trim());
  const heads = all("#models-table thead tr:last-child th");
  const column = heads.findIndex((head) => head.textContent.trim() === "SA");
  const values = () => all("#models-table tbody tr").map((row) => Number(row.cells[column].dataset.value));
  heads[column].querySelector("button").click();
  seen.up = values(); seen.sorted = heads.map((head) => head.getAttribute("aria-sort"));
  heads[column].querySelector("button").click();
  seen.down = values();
  const said = (row) => (row.querySelector(".says") || row.cells[0]).textContent.trim();
  const claims = () => all("#claims-table tbody").map((group) => [...group.rows].map(said));
  const [rulings, effects] = all("#claims-table th button").slice(1, 3);
  rulings.click(); seen.ruled = claims();
  effects.click(); effects.click(); seen.effects = claims();
  const [, attack] = all("#figure-decisions select");
  const titles = () => all("#figure-decisions .panel:not([hidden])").map((panel) =>
    [".panel-title", ".plot svg .annotation-text"].map((part) => panel.querySelector(part).textContent).join("; "));
  seen.pictures = [titles()];
  const chooser = document.querySelector("#figure-decisions select");
  chooser.selectedIndex = 1; chooser.dispatchEvent(new Event("change"));
  attack.selectedIndex = 1; attack.dispatchEvent(new Event("change"));
  seen.pictures.push(titles());
  seen.attack = attack.value;
  const heats = () => all("#decisions-0 .heatmaplayer .hm").length;
  seen.heats = [heats()];
  document.querySelector("#figure-decisions .panel .keys:not([hidden]) .key").click();
  seen.heats.push(heats());
  dispatchEvent(new Event("beforeprint"));
  seen.print = { theme: document.documentElement.dataset.theme, open: all("details:not([open])").length, empty: empty() };
}
</script>"""

OUTER = """<!doctype html><title>probe</title><body><script>
const answers = {};
addEventListener("message", (event) => {
  answers[event.data.width] = event.data;
  if (Object.keys(answers).length === 2) console.log("ANSWERS " + encodeURIComponent(JSON.stringify(answers)) + " END");
});
</script>
<iframe src="plain.html" style="position:absolute;left:0;top:0;width:1280px;height:900px;border:0"></iframe>
<iframe src="packed.html" style="position:absolute;left:1290px;top:0;width:390px;height:800px;border:0"></iframe></body>"""

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--window-size=1700,1000",
    "--enable-logging=stderr",
]


def wait_for_answers(log: Path, browser: subprocess.Popen[bytes], seconds: float = 240) -> dict[str, Any]:
    """Read the browser's log until the outer page has spoken."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and browser.poll() is None:
        if found := re.search(r"ANSWERS (\S+) END", log.read_text(errors="replace")):
            return json.loads(unquote(found[1]))
        time.sleep(0.05)
    raise AssertionError(f"the page did not answer; the browser said: {log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="module")
def answers(chromium: str, reports: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("probe")
    for path in reports:
        text = path.read_text(encoding="utf-8")
        (folder / path.name).write_text(text.replace("<head>", "<head>" + PROBE, 1), encoding="utf-8")
    (folder / "outer.html").write_text(OUTER, encoding="utf-8")
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    command = [chromium, *FLAGS, profile, (folder / "outer.html").as_uri()]
    log = folder / "browser.log"
    with log.open("wb") as sink, subprocess.Popen(command, stderr=sink, start_new_session=True) as browser:
        try:
            return wait_for_answers(log, browser)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)


@pytest.fixture(params=["1280", "390"])
def answer(request: pytest.FixtureRequest, answers: dict[str, Any]) -> dict[str, Any]:
    return answers[request.param]


def test_no_errors_and_no_requests(answer: dict[str, Any]) -> None:
    assert answer["errors"] == []
    assert [name for name in answer["seen"]["requests"] if not name.startswith(("data:", "blob:"))] == []


def test_all_figures_are_drawn_and_fit(answer: dict[str, Any]) -> None:
    seen = answer["seen"]
    assert seen["plots"] == seen["svgs"] == 2 * 6 + 2 * 2 + 2 + 4 + 2
    assert seen["empty"] == []
    assert seen["overflow"] <= 0, "the page itself never scrolls sideways"
    assert seen["wide"] == 0


@pytest.fixture
def seen(answers: dict[str, Any]) -> dict[str, Any]:
    return answers["1280"]["seen"]


def test_theme_button_turns_page_and_figures(seen: dict[str, Any]) -> None:
    light, dark = seen["light"], seen["dark"]
    assert light[0] != dark[0]
    assert light[1] != dark[1]


def test_legend_button_hides_its_marks(seen: dict[str, Any]) -> None:
    assert seen["pressed"] == "false"
    assert seen["hidden"] == seen["marks"] - 3 * 4


def test_selectors_change_figure_label_and_legend(seen: dict[str, Any]) -> None:
    assert seen["layers"] == 3
    assert "layer output (Linear), Nuclear norm" in seen["label"]
    assert seen["legend"] == ["none 0.005 0.01 0.05"] * 2


def test_table_sorts_both_ways(seen: dict[str, Any]) -> None:
    assert seen["up"] == sorted(seen["up"])
    assert seen["down"] == sorted(seen["up"], reverse=True)
    assert seen["sorted"].count("ascending") == 1


def test_claims_sort_within_and_between_their_groups(seen: dict[str, Any]) -> None:
    curve = "It falls along the whole curve"
    first = [group[0] for group in seen["ruled"]]
    assert sorted(first) == ["It falls <i>", curve, "The gap is smaller"]
    assert len(next(group for group in seen["ruled"] if group[0] == curve)) == 1 + 8
    assert seen["effects"][0][0] == "The gap is smaller", "the largest effect first"


def test_pictures_change_with_family_and_attack(seen: dict[str, Any]) -> None:
    before, after = seen["pictures"]
    assert len(before) == len(after) == 4
    assert before[0].startswith("Level none, seed 0: decisions in pixels; sample 99")
    assert after[3].startswith("Level 0.05, seed 0: decisions in representation; sample 99")
    assert seen["attack"] == "ℓ₂, ε = 0.6"
    assert seen["heats"] == [3, 2], "a class is hidden by its key"


def test_print_is_light_and_unfolded(seen: dict[str, Any]) -> None:
    assert seen["print"] == {"theme": "light", "open": 0, "empty": []}
