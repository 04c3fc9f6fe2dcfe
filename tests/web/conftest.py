"""A browser without a window, and the pages it opens: figures as plain JSON, and packed as for a large study."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from pinchpoint.report.study import page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="session")
def chromium() -> str:
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip(f"no browser found (looked for {', '.join(_NAMES)}): install Chromium to run the tests of the page")


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    source = Path(__file__).parent.parent / "report" / "factory.py"
    spec = importlib.util.spec_from_file_location("web_report_factory", source)
    assert spec is not None
    assert spec.loader is not None
    factory = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = factory
    spec.loader.exec_module(factory)
    summary, runs = factory.study(families=2, seeds=2)
    study, folder = (factory.judged(summary), factory.pictured(runs)), tmp_path_factory.mktemp("page")
    small = page.write(*study, folder / "plain.html")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "PACK_ABOVE", 0)
        return small, page.write(*study, folder / "packed.html")
