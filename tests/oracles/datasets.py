"""Data sets small enough to train on in a moment."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pinchpoint.data import Dataset, load
from pinchpoint.data.config import DataConfig


class Trap:
    """Sets an environment variable as soon as it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("import os; os.environ['PINCHPOINT_TRAP'] = 'fired'",)


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether a trap has been unpickled. It works: that is tried first."""
    monkeypatch.setenv("PINCHPOINT_TRAP", "")
    pickle.loads(pickle.dumps(Trap()))
    assert os.environ["PINCHPOINT_TRAP"] == "fired"
    monkeypatch.setenv("PINCHPOINT_TRAP", "")
    return lambda: os.environ["PINCHPOINT_TRAP"] == "fired"


@pytest.fixture
def trapped() -> object:
    """What must never be unpickled."""
    return Trap()


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """60 training and 12 test images of three classes, as an .npz holds them."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (60, 1, 4, 4), dtype=np.uint8),
        "y_train": np.arange(60) % 3,
        "x_test": rng.integers(0, 256, (12, 1, 4, 4), dtype=np.uint8),
        "y_test": np.arange(12) % 3,
    }


@pytest.fixture
def write(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Callable[..., DataConfig]:
    """Writes the arrays, some of them replaced or (None) left out, and names the file."""

    def write_npz(**changes: np.ndarray | None) -> DataConfig:
        kept = {name: array for name, array in (arrays | changes).items() if array is not None}
        np.savez(tmp_path / "data.npz", **kept)
        return DataConfig(name=f"npz:{tmp_path / 'data.npz'}")

    return write_npz


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three classes that a linear model separates."""
    rng = np.random.default_rng(1)
    y = np.arange(240) % 3
    x = np.clip(0.3 + 0.15 * rng.normal(size=(240, 1, 3, 3)) + 0.5 * np.eye(9)[4 * y].reshape(240, 1, 3, 3), 0, 1)
    path = tmp_path_factory.mktemp("few") / "few.npz"
    np.savez(path, x_train=x[:180], y_train=y[:180], x_test=x[180:], y_test=y[180:])
    return load(DataConfig(name=f"npz:{path}"))
