"""``import pinchpoint`` is light, and what it promises is there."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import pinchpoint

HEAVY = (
    "torch",
    "plotly",
    "matplotlib",
    "torchvision",
    "sklearn",
    "polars",
    "scipy",
    "pandas",
    "git",
    "jinja2",
    "rich",
)


def loaded_after(code: str) -> set[str]:
    """Top-level modules a fresh interpreter holds after running some code."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.long
def test_import_loads_nothing_heavy():
    loaded = loaded_after("import pinchpoint")
    assert "pinchpoint" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.long
def test_all_names_load_no_plotting_no_vision_no_scikit_learn():
    loaded = loaded_after("import pinchpoint; [getattr(pinchpoint, name) for name in pinchpoint.__all__]")
    assert "torch" in loaded
    assert loaded.isdisjoint({"plotly", "matplotlib", "torchvision", "sklearn", "polars"})


def test_every_promised_name_is_the_one_of_its_room():
    assert sorted(pinchpoint.__all__) == sorted(set(pinchpoint.__all__))
    for name in pinchpoint.__all__:
        assert getattr(pinchpoint, name) is not None
    promised = {name for names in pinchpoint._HOMES.values() for name in names}
    assert promised | {"__version__"} == set(pinchpoint.__all__)
    for home, names in pinchpoint._HOMES.items():
        room = importlib.import_module(f"pinchpoint.{home}")
        for name in names:
            assert getattr(pinchpoint, name) is getattr(room, name)


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'pinchpoint' has no attribute 'atack_everything'"):
        _ = pinchpoint.atack_everything
    assert not hasattr(pinchpoint, "atack_everything")
