"""Shared by all tests: shapes in annotations are enforced here, and only here."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import config, install_import_hook

from oracles import shapes

# a busy machine is no failure, and a change is not judged by the draw of the day; `make test-all` draws anew
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
settings.register_profile("quick", max_examples=10, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)

torch.set_num_threads(1)  # small tensors: a second thread only waits

# before anything imports pinchpoint: check jaxtyping's shapes and dtypes at every call
_ROOMS = (
    "measure",
    "bound",
    "attack",
    "compress",
    "data",
    "models",
    "train",
    "evaluate",
    "mechanism",
    "auditing",
)
install_import_hook([f"pinchpoint.{room}" for room in _ROOMS], f"{shapes.__name__}.{shapes.checked.__name__}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Every test begins with the same random numbers, whatever ran before it in its process.

    Shapes are checked where the rooms themselves are tested: checking takes most of the time of a whole study.
    """
    torch.manual_seed(0)
    here = Path(__file__).parent
    room = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else item.path.parent.name
    config.update("jaxtyping_disable", room not in (*_ROOMS, *(f"test_{name}.py" for name in _ROOMS)))
    return (yield)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder PINCHPOINT_DATA names; the test is skipped, saying why, where there is none."""
    folder = os.environ.get("PINCHPOINT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data: set PINCHPOINT_DATA to a folder with mnist.npz and cifar10.npz")
    return Path(folder)


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits, split once."""
    from pinchpoint.data import DataConfig, load

    return load(DataConfig(name="digits"))


@pytest.fixture(scope="session")
def trained(digits):
    """A network trained on the digits: 64-64-64-10 without biases, about 97 % clean accuracy."""
    from pinchpoint.models import ModelConfig, build
    from pinchpoint.train import TrainConfig, train

    model = build(ModelConfig(hidden=(64, 64)), digits.input_shape, digits.classes, seed=0)
    train(model, digits, TrainConfig(epochs=30, learning_rate=3e-3, patience=8), seed=0)
    return model
