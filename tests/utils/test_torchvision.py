"""torchvision data sets from local files, and the import beside a CPU torch."""

from __future__ import annotations

import struct
import subprocess
import sys

import numpy as np
import pytest

from pinchpoint.data import DataConfig, load
from pinchpoint.errors import ConfigError, DataError
from pinchpoint.utils.torchvision import import_torchvision


@pytest.fixture(autouse=True)
def installed():
    try:
        import_torchvision()
    except ConfigError as error:
        pytest.skip(str(error))


def idx(array):
    """The idx format of MNIST: two zero bytes, type 8 (uint8), rank, sizes, values."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path):
    rng = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    found = {}
    for part, size in (("train", 60), ("t10k", 10)):
        x, y = rng.integers(0, 256, (size, 28, 28)), np.arange(size) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(x))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(y))
        found[part] = (x, y)
    return found


def test_local_mnist(mnist, tmp_path):
    data = load(DataConfig(name="torchvision:MNIST", root=str(tmp_path), validation_share=0.2))
    x, y = mnist["t10k"]
    assert (data.classes, data.input_shape) == (10, (1, 28, 28))
    np.testing.assert_allclose(data.x_test[:, 0].numpy(), x / 255, atol=1e-7)
    assert data.y_test.tolist() == y.tolist()
    assert (len(data.y_train), len(data.y_validation)) == (48, 12)


@pytest.mark.parametrize("length", [0, 8, 1000])
def test_a_damaged_file_is_named(mnist, tmp_path, length):
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        DataError, match=r"torchvision:MNIST must be whole in .* or be downloadable, but got .+; download"
    ):
        load(DataConfig(name="torchvision:MNIST", root=str(tmp_path)))


def test_channels_come_first(monkeypatch, tmp_path):
    """CIFAR-like data are stored height x width x channel; SVHN has channels first already, and other names."""
    rng = np.random.default_rng(0)

    class Part:
        def __init__(self, root, download, train=None, split=None):
            size = 60 if train or split == "train" else 10
            self.asked = (train, split)
            if split is None:
                self.data, self.targets = rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8), list(range(10)) * 6
                self.targets = self.targets[:size]
            else:
                self.data, self.labels = rng.integers(0, 256, (size, 3, 32, 32), dtype=np.uint8), np.arange(size) % 10
            made.append(self)

    datasets = import_torchvision().datasets
    for name in ("CIFAR10", "SVHN"):
        made = []
        monkeypatch.setattr(datasets, name, Part)
        data = load(DataConfig(name=f"torchvision:{name}", root=str(tmp_path), validation_share=0.2))
        stored = made[1].data / 255
        expected = stored.transpose(0, 3, 1, 2) if name == "CIFAR10" else stored
        np.testing.assert_allclose(data.x_test.numpy(), expected, atol=1e-7)
        assert [part.asked for part in made] == (
            [(True, None), (False, None)] if name == "CIFAR10" else [(None, "train"), (None, "test")]
        )


@pytest.mark.long
def test_the_import_works_in_a_fresh_process():
    code = (
        "from pinchpoint.utils.torchvision import import_torchvision as load; import torch;"
        "vision = load(); again = load();"
        "model = vision.models.resnet18().eval();"
        "print(vision is again, tuple(model(torch.zeros(1, 3, 32, 32)).shape), hasattr(vision.datasets, 'CIFAR10'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split("\n")[0] == "True (1, 1000) True", done.stderr


def test_without_torchvision(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=r"need torchvision, but got an installation without it; pip install 'pinchpoint\[vision\]'",
    ):
        load(DataConfig(name="torchvision:MNIST", root=str(tmp_path)))
