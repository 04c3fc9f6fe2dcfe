"""Small models, a slice of the digits, and a check of ball and box in numpy that shares nothing with the library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pinchpoint.attack import Threat
from pinchpoint.learn import Dataset

Check = Callable[[Tensor, Tensor, Threat], None]


@pytest.fixture(scope="session")
def sample(digits: Dataset) -> tuple[Tensor, Tensor]:
    """150 test digits."""
    return digits.x_test[:150], digits.y_test[:150]


@pytest.fixture(scope="session")
def assert_inside() -> Check:
    """Each sample within eps of its input and in the box: float64, plus one rounding of the stored dtype a coordinate."""

    def check(x_adv: Tensor, x: Tensor, threat: Threat) -> None:
        stored, origin = x_adv.detach().numpy(), x.detach().numpy()
        assert stored.dtype == origin.dtype
        assert stored.shape == origin.shape
        assert np.isfinite(stored).all()
        if threat.box is not None:
            low, high = np.array(threat.box, dtype=origin.dtype)
            assert stored.min() >= low
            assert stored.max() <= high
        for after, before in zip(stored, origin, strict=True):
            delta = (after.astype(np.float64) - before.astype(np.float64)).ravel()
            rounding = np.spacing(np.asarray(np.abs(before).max() + threat.eps, dtype=origin.dtype)).astype(np.float64)
            if threat.norm == "linf":
                assert np.abs(delta).max() <= threat.eps + rounding
            else:
                assert np.sqrt((delta**2).sum()) <= threat.eps + rounding * np.sqrt(delta.size)

    return check


@pytest.fixture(scope="session")
def small_net() -> Callable[..., nn.Sequential]:
    """A random two-layer ReLU network for inputs of any size."""

    def build(inputs: int, classes: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, classes)).to(dtype)

    return build
