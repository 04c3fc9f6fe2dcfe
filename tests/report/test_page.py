"""The page as a file: order of its sections, what is escaped, what it weighs, and that it appears whole or not at all."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from oracles.pages import Outline, data_of
from pinchpoint.errors import StoreError
from pinchpoint.records import Run, Summary
from pinchpoint.report.study import page, selectors

Study = tuple[Summary, list[Run]]
NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def text(study: Study) -> str:
    return page.render(*study)


def test_sections_stand_in_order_and_the_headline_comes_first(text: str, study: Study) -> None:
    ids = [item["id"] for item in Outline(text).named("section")]
    assert ids == ["found", "accuracy", "budgets", "bounds", "layers", "mechanism", "models", "repeat", "glossary"]
    summary = study[0]
    places = [
        text.index(part)
        for part in (
            'class="lead"',
            summary.families[0].findings[0],
            summary.notes[0],
            'id="figure-accuracy"',
            'id="figure-amplification"',
            'id="models-table"',
            "2 cores, 2 GB, Linux",
        )
    ]
    assert places == sorted(places)


def test_figures_are_numbered_in_order_and_each_has_a_text_for_screen_readers(text: str) -> None:
    numbers = [int(number) for number in re.findall(r'<span class="number">Figure (\d+)</span>', text)]
    assert numbers == list(range(1, 10))
    plots = [item for item in Outline(text).named("div") if item.get("class") == "plot"]
    assert len(plots) == 3 * 6 + 2 * 2 + 2
    assert all(item["role"] == "group" and len(item["aria-label"] or "") > 60 for item in plots)
    assert text.count("<figcaption>") == 9


@pytest.fixture(scope="module")
def full(factory: ModuleType, study: Study) -> str:
    """A page with pictures and claims."""
    return page.render(factory.judged(study[0]), factory.pictured(study[1]))


def test_pictures_are_numbered_where_there_are_some(full: str) -> None:
    numbers = re.findall(r'<span class="number">Figure (\d+)</span> ([^<]+)</h3>', full)
    assert [int(number) for number, _ in numbers] == list(range(1, 12))
    assert [title for _, title in numbers[9:]] == ["Decisions around a sample", "Representations, clean and attacked"]
    assert full.count("<figcaption>") == 11
    assert "Not on record" not in full
    assert len(full.encode()) < 6_000_000


def test_pictures_stand_beside_each_other_for_the_ends_of_a_family(full: str) -> None:
    made = [choice for choice in data_of(full)["choices"] if choice["exhibit"] == "decisions"]
    assert [(choice["family"], choice["option"]) for choice in made] == [
        (family, option) for family in ("group", "nuclear", "rank") for option in ("ℓ∞, ε = 0.08", "ℓ₂, ε = 0.6")
    ]
    assert [panel["title"] for panel in made[5]["panels"]] == [
        f"Level {label}, seed 0: decisions in {space}"
        for space in ("pixels", "representation")
        for label in ("full", "rank 8")
    ]
    titles = [panel["figure"]["layout"]["annotations"][0]["text"] for panel in made[5]["panels"]]
    assert titles == ["<b>sample 99: class 0 seen as class 1</b>"] * 4, "of the sample that both have"


def test_pictures_of_the_first_seed_that_has_both_ends(factory: ModuleType) -> None:
    summary, runs = factory.study(families=1)
    runs = factory.pictured(runs)
    gone = {(0, 0), (3, 1)}  # level and seed
    without = {item.run for item in summary.members if (item.level, item.seed) in gone}
    some = [
        run.model_copy(update={"audit": run.audit.model_copy(update={"pictures": []})}) if run.id in without else run
        for run in runs
    ]
    made = data_of(page.render(summary, some))["choices"]
    titles = [panel["title"] for choice in made if choice["exhibit"] == "representations" for panel in choice["panels"]]
    assert titles == [f"Level {label}, seed 2: representations" for label in ("none", "1e-2")] * 2
    one = summary.model_copy(update={"members": [item for item in summary.members if item.level == 1]})
    alone = [choice for choice in data_of(page.render(one, runs))["choices"] if choice["exhibit"] == "decisions"]
    assert [len(choice["panels"]) for choice in alone] == [2, 2]


def test_both_ends_show_the_same_sample_whatever_the_order_and_a_seed_that_has_one_comes_first(
    factory: ModuleType,
) -> None:
    summary, runs = factory.study(families=1, norms=["l2"])
    ends = {item.run: (item.level, item.seed) for item in summary.members}
    samples = {(0, 0): [3], (3, 0): [7], (0, 1): [5, 9], (3, 1): [9, 5]}  # by level and seed
    drawn = []
    for run in runs:
        wanted = samples.get(ends[run.id], [])
        made = [factory.pictures("l2", number, random.Random(0)) for number in wanted]
        planes = [plane for one in made for plane in one.planes if plane.sample != 99]
        pictures = [made[0].model_copy(update={"planes": planes})] if made else []
        drawn.append(run.model_copy(update={"audit": run.audit.model_copy(update={"pictures": pictures})}))
    (choice,) = [one for one in data_of(page.render(summary, drawn))["choices"] if one["exhibit"] == "decisions"]
    assert {panel["title"].split(": ")[0] for panel in choice["panels"]} == {
        "Level none, seed 1", "Level 1e-2, seed 1"
    }  # fmt: skip
    titles = [panel["figure"]["layout"]["annotations"][0]["text"] for panel in choice["panels"]]
    assert [title.split(":")[0] for title in titles] == ["<b>sample 5"] * 4


def test_more_pictures_than_a_page_can_hold_are_cut_and_it_says_so(
    factory: ModuleType, study: Study, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (selectors, page):
        monkeypatch.setattr(module, "MOST_PICTURES", 4)
    cut = page.render(study[0], factory.pictured(study[1]))
    kept = [item for item in data_of(cut)["choices"] if item["exhibit"] == "decisions"]
    assert [item["family"] for item in kept] == ["group", "group", "nuclear", "rank"], "all families before all attacks"
    assert "Only the first 4 pairs of models and attacks are drawn" in cut
    assert "Only the first" not in full


def test_headings_never_skip_a_rank_and_landmarks_are_there(full: str) -> None:
    tags = Outline(full)
    ranks = [int(tag[1]) for tag, _ in tags.tags if re.fullmatch("h[1-6]", tag)]
    assert ranks[0] == 1
    assert ranks.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(ranks))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(tags.named(landmark)) == 1
    assert '<a class="skip" href="#main">' in full
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    inner = {(item.get("href") or "")[1:] for item in tags.named("a") if (item.get("href") or "").startswith("#")}
    assert inner <= set(ids)


def test_nothing_is_loaded_from_the_network(text: str) -> None:
    parser = Outline(text)
    for tag, attributes in parser.tags:
        for key in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(key) or "#"
            assert value.startswith(("#", "data:")), f"{tag} {key}={value}"
    policy = next(item["content"] for item in parser.named("meta") if item.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_plotly_is_there_once_and_the_page_stays_under_6_mb(text: str) -> None:
    assert text.count("* plotly.js v") == 1
    assert len([script for script in Outline(text).scripts if len(script) > 1_000_000]) == 1
    assert len(text.encode()) < 6_000_000


@pytest.mark.slow
def test_a_wide_network_s_spectra_are_thinned_to_stay_under_6_mb(factory: ModuleType, monkeypatch: Any) -> None:
    wide = [(f"layer{index}", 300, 280) for index in range(6)]
    monkeypatch.setattr(factory, "SHAPES", wide)
    summary, runs = factory.study()
    made = page.render(summary, runs)
    assert len(made.encode()) < 6_000_000
    drawn = data_of(made)["choices"][0]["panels"][0]["figure"]["data"][0]
    assert drawn["x"][0] == 1
    assert drawn["x"][-1] == 300


def test_a_large_study_is_packed_and_says_the_same(study: Study, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PACK_ABOVE", 0)
    made = page.render(*study)
    assert len(made) < len(text) - 300_000
    assert data_of(made) == data_of(text)


def test_untrusted_text_is_escaped_everywhere(factory: ModuleType) -> None:
    summary, runs = factory.study(families=1, seeds=1, titles=[NASTY])
    family = summary.families[0].model_copy(update={"findings": [NASTY]})
    levels = [level.model_copy(update={"label": NASTY}) for level in family.levels]
    members = [member.model_copy(update={"label": NASTY}) for member in summary.members]
    family = family.model_copy(update={"levels": levels})
    nasty = {"title": NASTY, "headline": NASTY, "notes": [NASTY], "study": NASTY, "machine": NASTY}
    nasty |= {"families": [family], "members": members, "versions": {NASTY: NASTY}}
    runs = [run.model_copy(update={"config": {NASTY: NASTY}, "machine": NASTY}) for run in runs]
    made = page.render(summary.model_copy(update=nasty), runs)
    parser = Outline(made)
    assert len(parser.scripts) == 4
    assert not any("alert(" in script for place, script in enumerate(parser.scripts) if place != 1)
    assert not parser.named("img")
    assert "\\u003c/script" in made
    panels = data_of(made)["panels"]
    texts = panels["accuracy-0"]["data"][0]["text"]
    assert texts[0].startswith("&lt;/script&gt;"), "plotly's own pseudo-HTML is switched off, too"


def test_page_names_what_it_cannot_show(factory: ModuleType) -> None:
    summary, runs = factory.study(seeds=1)
    bare = [run.model_copy(update={"audit": run.audit.model_copy(update={"mechanism": []})}) for run in runs]
    made = page.render(summary, bare[1:])
    assert "3 of 12 models have no record in this store" in made
    assert made.count("Not on record for these runs") == 2


def test_runs_without_attacks_bounds_or_families_make_a_page(study: Study) -> None:
    summary, runs = study
    nothing = {"robustness": [], "bounds": [], "mechanism": []}
    bare = [run.model_copy(update={"audit": run.audit.model_copy(update=nothing)}) for run in runs]
    made = page.render(summary.model_copy(update={"members": []}), bare)
    assert made.count("Not on record for these runs") >= 6
    alone = page.render(summary.model_copy(update={"families": [], "members": [], "models": []}), runs)
    assert alone.count("Not on record for these runs") == 9


def test_one_norm_one_seed_one_family(factory: ModuleType) -> None:
    made = page.render(*factory.study(families=1, seeds=1, norms=["l2"]))
    assert "1 family" in made
    assert "ℓ∞, ε" not in made
    assert "error_y" not in json.dumps(data_of(made)["panels"]["accuracy-0"])


def test_not_a_number_stays_valid_json(factory: ModuleType) -> None:
    summary, runs = factory.study(families=1, seeds=1)
    rows = [{**row, "robust_accuracy_linf": float("nan"), "gap_bound_linf": float("inf")} for row in summary.models]
    made = page.render(summary.model_copy(update={"models": rows}), runs)
    assert data_of(made)["panels"]["accuracy-0"]["data"][2]["y"] == [None] * 4
    assert "4 models not drawn" not in made, "a figure without any point is left out and says so"
    assert "Not on record for these runs" not in made


def test_write_is_atomic_and_returns_the_path(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.html"
    assert page.write(*study, path) == path
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]
    old = path.read_bytes()

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StoreError, match=r"writable, but got .*No space left on device.*; name another path"):
        page.write(*study, path)
    assert path.read_bytes() == old
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_a_path_below_a_file_is_one_sentence(study: Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="the report's folder must exist or be creatable"):
        page.write(*study, tmp_path / "file" / "report.html")


def test_no_runs_is_one_sentence_and_writes_nothing(study: Study, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        page.write(study[0], [], tmp_path / "report.html")
    assert str(caught.value) == (
        "a report needs at least one finished run, but got none for the study 'demo'; run the study first, or name the "
        "folder that holds its records."
    )
    assert not list(tmp_path.iterdir())


def test_importing_the_package_loads_no_plotting() -> None:
    code = "import sys, pinchpoint, pinchpoint.report; sys.exit('plotly' in sys.modules or 'jinja2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
