"""The made-up study, once for all tests of the report."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pinchpoint.records import Run, Summary


def _loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"report_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def factory() -> ModuleType:
    return _loaded("factory")


@pytest.fixture(scope="session")
def audits() -> ModuleType:
    return _loaded("audit_factory")


@pytest.fixture(scope="session")
def study(factory: ModuleType) -> tuple[Summary, list[Run]]:
    return factory.study()
