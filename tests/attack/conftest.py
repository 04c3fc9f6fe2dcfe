"""Small models, a slice of the digits, and a check of ball and box in numpy that shares nothing with the library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pinchpoint.attack import Threat
from pinchpoint.data import Dataset

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
            elif threat.norm == "l1":
                assert np.abs(delta).sum() <= threat.eps + rounding * delta.size
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


@pytest.fixture(scope="session")
def small_cnn(digits: Dataset) -> nn.Sequential:
    """Two convolutions and a head, trained on the digits for a few epochs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(256, 10)),
        )
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(15):
            for rows in torch.randperm(len(digits.x_train)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(digits.x_train[rows]), digits.y_train[rows]).backward()
                optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="session")
def contested() -> tuple[nn.Sequential, Tensor, Tensor, dict[str, float]]:
    """A float64 network, nine inputs near its boundaries, their labels, and budgets at which about half of them fall."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 5)).double()
    x = torch.rand(9, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)
    return net, x, net(x).argmax(1), {"linf": 0.05, "l2": 0.1, "l1": 0.2}
