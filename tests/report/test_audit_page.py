"""An audit's page as a file: order, what is escaped, what it weighs, and what becomes of parts that are missing."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from oracles.pages import Outline, data_of
from pinchpoint.errors import StoreError
from pinchpoint.records import AuditReport
from pinchpoint.report.audit import page, tables, terms
from pinchpoint.report.audit import text as words
from pinchpoint.report.audit.figures import curve, gains, shares
from pinchpoint.report.audit.gallery import gallery
from pinchpoint.report.audit.terms import TERMS


@pytest.fixture(scope="module")
def report(audits: ModuleType) -> AuditReport:
    return audits.report()


@pytest.fixture(scope="module")
def text(report: AuditReport) -> str:
    return page.render(report)


def test_the_verdict_comes_first_and_all_stands_in_the_issue_s_order(text: str, report: AuditReport) -> None:
    ids = [item["id"] for item in Outline(text).named("section")]
    assert ids == [
        "verdict", "accuracy", "budgets", "pinch", "trial", "comparison", "mechanism", "examples", "warnings", "repeat",
        "glossary",
    ]  # fmt: skip
    marks = [
        *report.verdict,
        "86.2 to 94.2 %",
        "withstood all",
        'id="figure-curve"',
        'id="figure-ranking"',
        'id="pinch-1"',
    ]
    marks += ['id="pinch-table"', 'id="trial-table"', 'id="compared"', 'id="figure-alignment"', "2 cores, 8 GB, Linux"]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)


def test_every_pinch_point_says_why_what_to_do_and_what_it_brings(text: str, report: AuditReport) -> None:
    for point in report.pinch_points:
        assert f'id="pinch-{point.rank}"' in text
    assert text.count('class="why"') == len(report.pinch_points)
    for place, advice in enumerate(report.advice, 1):
        assert text.count(f'id="advice-{place}"') == 1, "each suggestion stands once in full"
        if advice.command:
            assert f"<code>{advice.command}</code>" in text
    first = text[text.index('id="pinch-1"') : text.index('id="pinch-2"')]
    for shown in ("11.5 %", "19.0 %", "14.0 % to 24.0 %", "4,210", "computed from the weights of the changed copy"):
        assert shown in first
    assert "Stop pruning at 40 %" in text[text.index("For the model as a whole") :]


def test_a_prediction_that_failed_is_shown_as_failed(report: AuditReport) -> None:
    assert report.trial is not None
    held = [row[-1] for row in tables.trial(report.trial).rows]
    assert [(cell.text, cell.tone) for cell in held] == [
        ("✓ held", "good"),
        ("✗ did not hold", "bad"),
        ("✓ held", "good"),
    ]


def test_differences_are_marked_only_beyond_chance(report: AuditReport) -> None:
    assert report.comparison is not None
    rows = tables.compared(report.comparison).rows
    assert [(row[3].text, row[3].tone, row[4].text) for row in rows] == [
        ("−1.5", "", "0.450"),
        ("−16.5", "down", "< 0.001"),
        ("+3.5", "", "0.210"),
        ("+5.0", "up", "0.030"),
    ]


def test_settled_samples_add_up_and_survivors_come_last(report: AuditReport) -> None:
    rows = tables.settled(report.threats[0]).rows
    assert [row[0].text for row in rows] == ["wrong without attack", "apgd-ce", "apgd-dlr", "withstood all"]
    assert sum(row[1].value or 0 for row in rows) == 200


def test_text_from_outside_is_escaped_everywhere(text: str, audits: ModuleType) -> None:
    outline = Outline(text)
    assert len(outline.scripts) == 4
    assert not any("alert(1)" in script for place, script in enumerate(outline.scripts) if place != 1)
    assert not [
        image for image in outline.named("img") if not (image["src"] or "").startswith("data:image/png;base64,")
    ]
    assert not [tag for tag, attributes in outline.tags if any(name.startswith("on") for name in attributes)]
    assert "<b>automobile</b>" not in text
    told = json.dumps(data_of(text)["choices"])
    figures = json.dumps([panel["figure"] for choice in data_of(text)["choices"] for panel in choice["panels"]])
    assert "&lt;b&gt;automobile&lt;/b&gt;" in told
    assert "<b>automobile</b>" not in figures, "plotly's own pseudo-HTML is switched off, too"


def test_names_and_sentences_with_html_are_escaped(audits: ModuleType) -> None:
    nasty = audits.NASTY
    report = audits.report(("linf",), name=nasty, layers=["conv1", nasty])
    point = report.pinch_points[0].model_copy(update={"why": nasty})
    report = report.model_copy(
        update={
            "verdict": [nasty] * 3, "command": nasty, "warnings": [nasty], "machine": nasty, "title": nasty,
            "pinch_points": [point, *report.pinch_points[1:]], "versions": {nasty: nasty},
        }
    )  # fmt: skip
    outline = Outline(page.render(report))
    assert len(outline.scripts) == 4
    assert not any("alert(1)" in script for place, script in enumerate(outline.scripts) if place != 1)
    assert all((image["src"] or "").startswith("data:") for image in outline.named("img"))


def test_landmarks_headings_and_links_hold_together(text: str) -> None:
    outline = Outline(text)
    for landmark in ("header", "nav", "main", "footer"):
        assert len(outline.named(landmark)) == 1
    ranks = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert ranks[0] == 1
    assert ranks.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(ranks))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    inner = {item["href"][1:] for item in outline.named("a") if (item.get("href") or "").startswith("#")}  # type: ignore[index]
    assert inner <= set(ids)
    assert all("alt" in image for image in outline.named("img"))
    assert all(head.get("scope") for head in outline.named("th"))
    assert len(outline.named("caption")) == len(outline.named("table"))
    assert len(outline.named("figcaption")) == len(outline.named("figure"))
    plots = [item for item in outline.named("div") if item.get("class") == "plot"]
    assert len(plots) == 2 + 2 + 2 + 2 + 2 + 2
    assert all(len(item["aria-label"] or "") > 50 for item in plots)


def test_nothing_is_loaded_from_the_network(text: str) -> None:
    for tag, attributes in Outline(text).tags:
        for key in ("src", "srcset", "data", "action", "poster") + (("href",) if tag == "link" else ()):
            assert (attributes.get(key) or "data:").startswith("data:"), f"{tag} {key}"
    assert "default-src 'none'" in text
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style


def test_every_term_that_the_page_names_is_in_its_glossary(text: str) -> None:
    outline = Outline(text)
    named = {item["data-term"] for item in outline.named("button") if "data-term" in item}
    named |= {(item["href"] or "").removeprefix("#term-") for item in outline.named("a") if item.get("class") == "term"}
    assert named <= set(TERMS)
    assert {"share", "gain", "random_gain", "structure", "scale", "p_value", "interval"} <= named


def test_terms_link_to_the_docs_where_the_package_names_their_address(
    audits: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "address", lambda: "https://docs.example")
    made = page.render(audits.report(("l2",), full=False))
    assert '<a class="more" href="https://docs.example/attacks/">More<span class="hidden"> on Robust accuracy' in made
    assert terms.docs("share") == "https://docs.example/audit/"
    monkeypatch.setattr(terms, "address", lambda: None)
    assert terms.docs("share") is None


def test_every_term_with_a_page_of_the_docs_is_in_the_glossary() -> None:
    assert {term for known in terms.PAGES.values() for term in known} <= set(TERMS)


@pytest.mark.slow
def test_large_images_are_left_out_from_the_end_to_stay_under_6_mb(audits: ModuleType) -> None:
    report = audits.report(side=224, count=8)
    assert sum(len(item.png) for item in report.examples) > 6_000_000
    made = page.render(report)
    assert len(made.encode()) < page.LIMIT
    assert re.search(r"\d+ more are in the JSON", made)
    shown = gallery(report, 2_600_000)
    assert [title for title, _ in shown.groups] == ["ℓ∞, ε = 8/255", "ℓ₂, ε = 0.5"], "both threats have some"
    assert sum(len(strips) for _, strips in shown.groups) + shown.left_out == 2 * (8 + 1)


@pytest.mark.slow
def test_a_network_of_four_hundred_layers_stays_under_6_mb(audits: ModuleType) -> None:
    report = audits.report(layers=[f"stage.{place}.attention.projection" for place in range(400)], count=0)
    made = page.render(report)
    assert len(made.encode()) < page.LIMIT
    assert "The other 395 layers" in made


def test_a_bare_report_makes_a_page_without_the_missing_parts(audits: ModuleType) -> None:
    full = audits.report(full=False)
    nothing = {
        "threats": [],
        "pinch_points": [],
        "advice": [],
        "mechanism": [],
        "bounds": [],
        "warnings": [],
        "phases": [],
    }
    made = page.render(full.model_copy(update=nothing))
    assert [item["id"] for item in Outline(made).named("section")] == [
        "verdict", "accuracy", "pinch", "warnings", "repeat", "glossary",
    ]  # fmt: skip
    assert "No layer could be ranked" in made
    assert data_of(made)["panels"] == {}


def test_one_unseen_number_does_not_stop_a_figure(audits: ModuleType) -> None:
    report = audits.report(("l1",), full=False)
    panel = curve("l1", [("model", report.threats)])
    assert not [key for key in panel.keys if key.group == "certified"], "what is not certified has no line"
    point = report.pinch_points[0].model_copy(update={"gain": float("nan"), "share": 0.0})
    assert gains([point]).figure["data"][2]["x"] == [None]
    assert shares([point]).figure["layout"]["xaxis"]["range"][1] > 0
    assert page.render(report.model_copy(update={"pinch_points": [point]}))


def test_only_the_first_layers_are_drawn_and_the_label_says_so(audits: ModuleType) -> None:
    report = audits.report(full=False)
    panel = shares(report.pinch_points)
    assert len(panel.figure["data"][0]["x"]) == 15
    assert panel.label.endswith("The other 5 layers are in the table.")


def test_ticks_of_small_linf_budgets_are_255ths(report: AuditReport) -> None:
    axis = curve("linf", [("model", report.threats)]).figure["layout"]["xaxis"]
    assert axis["ticktext"] == ["0", "4/255", "8/255", "12/255", "16/255"]
    assert "ticktext" not in curve("l2", [("model", report.threats)]).figure["layout"]["xaxis"]


def test_warnings_stand_once_each_with_their_threat(report: AuditReport) -> None:
    assert page.warnings(report) == [
        "200 samples: an accuracy can be off by 7 points",
        "ℓ∞, ε = 8/255: queries found what gradients did not on 2 samples",
    ]


def test_an_unknown_metric_is_written_as_it_is() -> None:
    assert words.metric("spectral_flatness", None, None) == "Spectral flatness"
    assert words.amount("spectral_flatness", -0.25) == "−0.250"


def test_write_returns_the_path_and_refuses_in_one_sentence(report: AuditReport, tmp_path: Path) -> None:
    path = tmp_path / "a new folder" / "bericht ü.html"
    assert page.write(report, path) == path
    assert [item.name for item in path.parent.iterdir()] == ["bericht ü.html"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="the report's folder must exist or be creatable"):
        page.write(report, tmp_path / "file" / "report.html")


def test_the_same_report_gives_the_same_page(report: AuditReport, text: str) -> None:
    assert page.render(report) == text
