"""What benchmarks/attack.py attacks: an MNIST network, a CIFAR-10 ResNet, and a small net trained against an attack."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.bound import fully_connected
from pinchpoint.attack import Threat, pgd
from pinchpoint.data import DataConfig, load
from pinchpoint.data.load import Dataset
from pinchpoint.models.sources.open_model import open_model
from pinchpoint.train import TrainConfig, train

SIZES = (784, 2000, 2000, 2000, 10)
NEEDED = ("mnist.npz", "cifar10.npz", "cifar10_resnet20.safetensors")
HARD = Threat("linf", 0.1)  # what the small net is trained against


def folder() -> Path:
    """Where the data is.

    Raises:
        SystemExit: with status 2 and one sentence where it is not there.
    """
    named = os.environ.get("PINCHPOINT_DATA")
    if named and all((Path(named) / name).is_file() for name in NEEDED):
        return Path(named)
    print(f"benchmarks.attack needs real data; set PINCHPOINT_DATA to a folder with {', '.join(NEEDED)}.")
    raise SystemExit(2)


def mnist(quick: bool) -> Dataset:
    """The first 10,000 images to train on, or 20,000; the first 1000 to attack."""
    return load(DataConfig(name="mnist", limit_train=10_000 if quick else 20_000, limit_test=1000))


def cifar10(samples: int) -> tuple[Tensor, Tensor]:
    """The first test images."""
    data = load(DataConfig(name="cifar10", limit_train=100, limit_test=samples))
    return data.x_test, data.y_test


def resnet20(data: Path) -> nn.Module:
    return frozen(open_model(str(data / "cifar10_resnet20.safetensors")).model)


def small_cnn() -> nn.Sequential:
    """Two strided convolutions and two layers (Wong & Kolter 2018), PyTorch's initialisation at seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(
                nn.Conv2d(1, 16, 4, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(16, 32, 4, stride=2, padding=1),
                nn.ReLU(),
            ),
            *(nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
        )


def fcn(data: Dataset, cache: Path, epochs: int) -> nn.Module:
    """The issue's fully connected network, trained plainly."""

    def make() -> nn.Module:
        model = fully_connected(SIZES)
        train(model, data, TrainConfig(epochs=epochs, patience=None), seed=0)
        return model

    return _cached(cache / f"fcn-{epochs}-{len(data.x_train)}.safetensors", lambda: fully_connected(SIZES), make)


def robust_cnn(data: Dataset, cache: Path, epochs: int) -> nn.Module:
    """A small net trained on PGD's examples only."""

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return pgd(model, x, y, HARD, steps=5, step_size=0.03, drop_fallen=False)

    def make() -> nn.Module:
        model = small_cnn()
        config = TrainConfig(epochs=epochs, patience=None, adversarial_share=1.0, learning_rate=2e-3)
        train(model, data, config, seed=0, attack=attack)
        return model

    return _cached(cache / f"robust-{epochs}-{len(data.x_train)}.safetensors", small_cnn, make)


def _cached(path: Path, empty: Callable[[], nn.Module], make: Callable[[], nn.Module]) -> nn.Module:
    if path.is_file():
        model = empty()
        model.load_state_dict(load_file(path))
    else:
        model = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return frozen(model)


def frozen(model: nn.Module) -> nn.Module:
    """In eval mode, and no contestant computes gradients of the weights, whether or not it knows how not to."""
    return model.eval().requires_grad_(False)
