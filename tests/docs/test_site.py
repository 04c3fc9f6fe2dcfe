"""The site: built with warnings as errors, whole, with every public name, and it loads nothing from elsewhere."""

from __future__ import annotations

import importlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("measure", "bound", "attack", "evaluate", "mechanism", "compress", "compress.prune", "study")
TYPES_OF_WORDS = {"Unit", "Allocation", "Criterion", "Count", "Key", "RemoteStore", "default_workers"}
"""Names without a docstring of their own, or with one where they are used."""
_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
_LINKS_LOADED = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "manifest", "modulepreload"}


class Page(HTMLParser):
    """What a page loads, and its equations."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = {name: value or "" for name, value in attrs}
        if tag in _LOADED and _LOADED[tag] in given:
            self.loaded.append(given[_LOADED[tag]])
        if tag == "link" and set(given.get("rel", "").split()) & _LINKS_LOADED:
            self.loaded.append(given.get("href", ""))


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        found = Page(page.read_text(encoding="utf-8"))
        assert found.loaded or page.name != "index.html"
        outside = [address for address in found.loaded if re.match(r"(https?:)?//", address)]
        assert outside == [], page
    for sheet in site.rglob("*.css"):
        assert re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]*)""", sheet.read_text("utf-8")) == [], (
            sheet
        )


@pytest.mark.slow
def test_equations_are_drawn(site):
    theory = (site / "theory" / "index.html").read_text(encoding="utf-8")
    assert Page(theory).tags.count("math") > 40
    assert "arithmatex" not in theory
    assert "<mfrac>" in theory
    assert "$$" not in theory


@pytest.mark.slow
def test_every_command_is_in_the_reference(site):
    text = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    for command in (
        "audit",
        "compare",
        "attack",
        "bound",
        "profile",
        "prune",
        "factorize",
        "train",
        "study run",
        "demo",
    ):
        assert f">pinchpoint {command}<" in text
    assert "--fail-if" in text
    assert "[bold]" not in text


@pytest.mark.slow
def test_the_example_workflow_can_be_downloaded(site):
    assert (site / "examples" / "robustness.yml").read_text() == (
        ROOT / "docs" / "examples" / "robustness.yml"
    ).read_text()


def test_public_names_are_documented():
    reference = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)$", reference, re.MULTILINE)}
    for room in ROOMS:
        names = set(importlib.import_module(f"pinchpoint.{room}").__all__)
        assert names - documented - TYPES_OF_WORDS == set(), room


def test_what_pages_document_is_there():
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for path in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(module), name), path
