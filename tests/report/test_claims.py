"""The section of claims: every verdict in words, numbers and a sign, grouped by claim, and absent without any."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import ModuleType

import pytest

from pinchpoint.records import Run, Summary
from pinchpoint.report.study import page
from pinchpoint.report.study.claims import ClaimGroup, claim_groups

Study = tuple[Summary, list[Run]]


@pytest.fixture(scope="module")
def judged(factory: ModuleType, study: Study) -> Summary:
    made: Summary = factory.judged(study[0])
    return made


@pytest.fixture(scope="module")
def claims(judged: Summary) -> list[ClaimGroup]:
    return claim_groups(judged)


class Words(HTMLParser):
    """The text of a table, cell by cell, row by row, group by group."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[list[list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("thead", "tbody"):
            self.groups.append([])
        elif tag == "tr":
            self.groups[-1].append([])
        elif tag in ("td", "th"):
            self.groups[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        if self.groups and self.groups[-1] and self.groups[-1][-1]:
            self.groups[-1][-1][-1] += data


def test_a_row_a_verdict_and_a_group_a_claim(judged: Summary, claims: list[ClaimGroup]) -> None:
    assert [len(claim.rows) for claim in claims] == [1, 8, 1]
    rows = [row for claim in claims for row in claim.rows]
    for row, verdict in zip(rows, judged.verdicts, strict=True):
        assert (row.ruling, row.sentence, row.test) == (verdict.ruling, verdict.sentence, verdict.test)
        assert (row.effect.value, row.p.value, row.corrected.value) == (
            verdict.effect, verdict.p_value, verdict.p_corrected
        )  # fmt: skip
    assert {row.ruling for row in rows} == {"supported", "opposite", "undecided"}


def test_effects_intervals_and_chances_in_words(judged: Summary, claims: list[ClaimGroup]) -> None:
    trend, curve, contrast = (claim.rows for claim in claims)
    gap = judged.verdicts[-1]
    assert gap.interval is not None
    assert (trend[0].effect.text, trend[0].interval, trend[0].p.text) == ("ρ -1.00", "-1.00 to -1.00 (75%)", "0.00014")
    assert (contrast[0].effect.text, contrast[0].interval) == (
        f"{gap.effect:+.3g}", f"{gap.interval.low:+.3g} to {gap.interval.high:+.3g} (95%)"
    )  # fmt: skip
    assert (curve[2].effect.text, curve[2].interval, curve[2].corrected.text) == ("–", "", "–")
    assert [row.budget for row in (trend[0], curve[1], contrast[0])] == ["", "ℓ₂, ε = 0.171", "ℓ∞, ε = 0.08"]
    assert claims[1].ruled == "supported at 0; opposite at 0.171; undecided at 0.343, 0.514, 0.686, 0.857, 1.03, 1.2"
    free = judged.model_copy(update={"verdicts": [gap.model_copy(update={"eps": None})]})
    assert claim_groups(free)[0].rows[0].budget == "ℓ∞", "a Lipschitz constant has no budget"
    share = judged.verdicts[0].model_copy(update={"unit": "share", "effect": -0.1234})
    row = claim_groups(judged.model_copy(update={"verdicts": [share]}))[0].rows[0]
    assert (row.effect.text, row.interval) == ("-12.3 points", "-100.0 to -100.0 (75%)")


def test_tests_are_explained_where_the_glossary_knows_them(claims: list[ClaimGroup]) -> None:
    assert [claim.rows[0].term and claim.rows[0].term.name for claim in claims] == [
        "Page’s test", "Page’s test", "Paired t"
    ]  # fmt: skip


def test_the_page_shows_them_after_what_was_found(judged: Summary, study: Study) -> None:
    text = page.render(judged, study[1])
    assert re.findall(r'<section id="(\w+)"', text)[:3] == ["found", "claims", "accuracy"]
    assert '<li><a href="#claims">Claims</a></li>' in text
    assert "10 verdicts (a claim about a whole curve has one a budget): 2 supported, 2 opposite, 6 undecided." in text
    parser = Words()
    parser.feed(text[text.index('<table class="claims') : text.index("</table>", text.index('<table class="claims'))])
    (heads,), first, curve, last = [
        [[" ".join(cell.split()) for cell in row] for row in group] for group in parser.groups
    ]
    assert heads == ["claim", "ruling", "effect", "p", "corrected", "test", "verdict in words"]
    assert first[0][:5] == [
        "It falls <i> section 4.1, figure 3 · group", "✓ supported", "ρ −1.00 −1.00 to −1.00 (75%)", "0.00014", "0.00058",
    ]  # fmt: skip
    assert curve[0][0].startswith("It falls along the whole curve beyond · nuclear · supported at 0;")
    assert [row[1] for row in curve[1:]] == ["✓ supported", "✗ opposite", *["? undecided"] * 6]
    assert last[0][0] == "The gap is smaller group 1e-2 against group none · ℓ∞, ε = 0.08"
    assert [row[-1] for row in (first[0], *curve[1:], last[0])] == [item.sentence for item in judged.verdicts]


def test_a_study_without_claims_has_no_such_section(study: Study) -> None:
    text = page.render(*study)
    assert 'id="claims"' not in text
    assert 'href="#claims"' not in text
