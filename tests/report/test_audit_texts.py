"""The report of an audit elsewhere: Markdown, figures for papers, and many audits side by side."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

from pinchpoint.errors import ConfigError, StoreError
from pinchpoint.records import AuditReport
from pinchpoint.report.audit import compare, markdown, print_files
from pinchpoint.report.audit.tables import Cell, Head, Table

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report(audits: ModuleType) -> AuditReport:
    return audits.report()


@pytest.fixture(scope="module")
def told(report: AuditReport) -> str:
    return markdown.text(report)


def test_markdown_has_the_page_s_sections_in_its_order(told: str) -> None:
    assert re.findall(r"^## (.*)$", told, re.M) == [
        "Verdict", "Accuracy, with and without attack", "Pinch points: which layers to treat", "The advice, tried",
        "Two models compared", "Warnings",
        "How to repeat this", "Glossary",
    ]  # fmt: skip


def test_markdown_tables_have_as_many_cells_as_heads(told: str) -> None:
    blocks = re.findall(r"(?:^\|.*\|\n)+", told, re.M)
    assert len(blocks) == 1 + 2 * 2 + 1 + 2 + 1 + 1
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1


def test_markdown_says_what_to_do_and_whether_it_held(told: str) -> None:
    assert "```console\npinchpoint compress model.safetensors --spectral-ball" in told
    assert "| 11.5 % | 19.0 % | 14.0 % to 24.0 % |" in told
    assert "✗ did not hold" in told


def test_markdown_shows_foreign_text_as_it_is() -> None:
    nasty = Table("t", "", [Head("a|b"), Head("n")], [[Cell("<img src=x>\n# no heading"), Cell("1")]])
    assert markdown.table(nasty) == ["| a\\|b | n |", "| --- | ---: |", "| \\<img src=x\\> \\# no heading | 1 |"]
    assert markdown.fenced("echo ```x```") == ["````console", "echo ```x```", "````"]


def test_figures_are_well_formed_and_need_no_css_variables(report: AuditReport) -> None:
    drawn = print_files.drawn(report)
    assert list(drawn) == [
        "budgets", "pinch-points", "layers-linf", "layers-l2", "decisions-linf-4", "decisions-linf-17",
        "representations-linf", "decisions-l2-4", "decisions-l2-17", "representations-l2",
    ]  # fmt: skip
    for text in drawn.values():
        root = ET.fromstring(text)
        assert "var(" not in text
        assert len(root.findtext(f"{SVG}desc") or "") > 20
        classes = {name for item in root.iter() for name in (item.get("class") or "").split()}
        style = root.findtext(f"{SVG}style") or ""
        assert all(f".{name}" in style for name in classes), "every class has its rule"


def test_figures_draw_what_is_on_record(report: AuditReport) -> None:
    bars = ET.fromstring(print_files.drawn(report)["pinch-points"])
    widths = [float(item.get("width", 0)) for item in bars.iter(f"{SVG}rect") if item.get("class") == "mark b"]
    expected = [point.share / report.pinch_points[0].share for point in report.pinch_points]
    assert len(widths) == 20
    assert all(abs(wide / widths[0] - share) < 0.01 for wide, share in zip(widths, expected, strict=True))
    words = "".join(bars.itertext())
    assert "layer3.0.conv1" in words


def test_figures_are_written_as_svg_alone_where_pdf_is_not_wanted(report: AuditReport, tmp_path: Path) -> None:
    paths = print_files.write(report, tmp_path / "figures ü", pdf=False)
    assert {path.suffix for path in paths} == {".svg"}
    assert sorted(paths) == sorted((tmp_path / "figures ü").iterdir())


def test_figures_as_pdf(audits: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("cairosvg", reason="PDF needs the extra `paper`", exc_type=(ImportError, OSError))
    small = audits.report(("linf",), full=False)
    paths = print_files.write(small, tmp_path, pdf=True)
    assert [path.name for path in paths] == [
        "budgets.svg", "budgets.pdf", "pinch-points.svg", "pinch-points.pdf", "layers-linf.svg", "layers-linf.pdf",
    ]  # fmt: skip
    for path in paths[1::2]:
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/FontFile" in content, "fonts are embedded, text stays text"


def test_pdf_without_cairosvg_is_one_sentence(
    report: AuditReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    with pytest.raises(ConfigError, match=r"need cairosvg and the cairo library.*pip install 'pinchpoint\[paper\]'"):
        print_files.write(report, tmp_path, pdf=True)
    assert {path.suffix for path in print_files.write(report, tmp_path)} == {".svg"}


def test_figures_below_a_file_are_one_sentence(report: AuditReport, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="the figures' folder must exist or be creatable"):
        print_files.write(report, tmp_path / "file" / "figures", pdf=False)


@pytest.fixture(scope="module")
def three(audits: ModuleType) -> list[AuditReport]:
    made = [audits.report(name=name, full=False, seed=place) for place, name in enumerate(("a", "<b>", "a"))]
    return [made[0], made[1].model_copy(update={"seed": 7}), made[2]]


def test_models_of_the_same_name_are_told_apart(three: list[AuditReport]) -> None:
    assert compare.names(three) == ["a (1)", "<b>", "a (2)"]


def test_side_by_side_has_a_row_a_model_and_a_group_a_threat(three: list[AuditReport], audits: ModuleType) -> None:
    one = audits.report(("l1",), name="other", full=False)
    table = compare.side_by_side([*three, one])
    assert [title for title, _ in table.groups] == [
        "", "Size and compressibility", "No attack", "ℓ∞, ε = 8/255", "ℓ₂, ε = 0.5", "ℓ₁, ε = 12",
    ]  # fmt: skip
    assert {len(row) for row in table.rows} == {len(table.heads)}
    assert [cell.text for cell in table.rows[3][5:8]] == ["–"] * 3, "what was not asked is a dash"
    assert table.rows[0][5].value == three[0].threats[0].robust.value


def test_compared_audits_that_were_not_done_alike_say_so(three: list[AuditReport]) -> None:
    assert compare.differences(three) == ["The audits used different seeds: 0; 7."]
    assert compare.differences(three[:1]) == []


def test_compared_audits_that_faced_different_attacks_or_samples_say_so_by_threat(three: list[AuditReport]) -> None:
    first, _, other = three
    mixed = [item.attack for item in first.threats]
    under = other.threats[0]
    quicker = other.model_copy(
        update={"threats": [under.model_copy(update={"attack": "AutoPGD (50 steps)"}), *other.threats[1:]]}
    )
    said = compare.differences([first, quicker])
    assert said == [
        f"Models faced different attacks under ℓ∞, ε = 8/255: {'; '.join(sorted({'AutoPGD (50 steps)', mixed[0]}))}."
    ]
    fewer = under.robust.model_copy(update={"of": under.robust.of - 1})
    shorter = other.model_copy(update={"threats": [under.model_copy(update={"robust": fewer}), *other.threats[1:]]})
    (sentence,) = compare.differences([first, shorter])
    assert sentence.startswith("Different numbers of samples were judged under ℓ∞, ε = 8/255: ")
    stronger = first.model_copy(update={"threats": [under.model_copy(update={"eps": 2 * under.eps})]})
    assert compare.differences([first, stronger])[0].startswith("The audits used different threats: ")


def test_the_compared_page_escapes_and_links(three: list[AuditReport]) -> None:
    text = compare.page(three, links=["one/report.html", "two/report.html", "three/report.html"])
    body = text[text.index("</style>") : text.index('id="figures"')]
    assert "<b>" not in body
    assert '<a href="two/report.html">&lt;b&gt;</a>' in text
    assert text.count('id="side-by-side"') == 1
    assert len(text.encode()) < 6_000_000


def test_no_audits_is_one_sentence() -> None:
    with pytest.raises(StoreError, match="a comparison needs at least one audit, but got none"):
        compare.page([])
