"""Data sets by name, as float32 tensors in [0, 1] held in memory, split into train, validation and test.

Names: ``digits`` (scikit-learn's 1797 handwritten digits, always there); ``mnist``, ``cifar10``, ``cifar100`` (NAME.npz in
the folder that PINCHPOINT_DATA names); ``npz:PATH``; ``torchvision:CLASS`` (downloaded by torchvision into ``root``).
Normalisation belongs to the model, so a threat is always in pixels.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pinchpoint.errors import ConfigError, DataError

NPZ_NAMES = ("mnist", "cifar10", "cifar100")
TORCHVISION_NAMES = ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN")
_REMEDY = (
    f"use digits, {', '.join(NPZ_NAMES)}, npz:PATH or torchvision:NAME with NAME in {', '.join(TORCHVISION_NAMES)}"
)


class DataConfig(BaseModel):
    """Which data, and how it is split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "digits"
    test_share: float = Field(default=0.25, gt=0, lt=1, description="only for data without a test set of its own")
    validation_share: float = Field(default=0.15, gt=0, lt=1, description="of the training part, stratified")
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    limit_train: int | None = Field(default=None, ge=1, description="keep the first n training samples")
    limit_test: int | None = Field(default=None, ge=1, description="keep the first n test samples")
    root: str = Field(default="~/.cache/pinchpoint", description="where torchvision keeps its files")


@dataclass(frozen=True)
class Dataset:
    """Images in [0, 1] and labels. ``classes`` counts them."""

    name: str
    classes: int
    x_train: Float[Tensor, "train *shape"]
    y_train: Int[Tensor, "train"]
    x_validation: Float[Tensor, "validation *shape"]
    y_validation: Int[Tensor, "validation"]
    x_test: Float[Tensor, "test *shape"]
    y_test: Int[Tensor, "test"]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return tuple(self.x_train.shape[1:])


def load(config: DataConfig) -> Dataset:
    """Load and split a data set.

    Raises:
        DataError: for a name that is unknown, a file that is missing or malformed.
        ConfigError: where PINCHPOINT_DATA is needed and not set.

    >>> data = load(DataConfig(name="digits"))
    >>> data.input_shape, data.classes, len(data.x_train) + len(data.x_validation), len(data.x_test)
    ((1, 8, 8), 10, 1347, 450)
    """
    kind, _, rest = config.name.partition(":")
    if config.name == "digits":
        arrays = _digits(config)
    elif config.name in NPZ_NAMES:
        arrays = _from_npz(_npz_path(config.name))
    elif kind == "npz" and rest:
        arrays = _from_npz(Path(rest).expanduser())
    elif kind == "torchvision" and rest in TORCHVISION_NAMES:
        from pinchpoint.learn.vision import torchvision_arrays

        arrays = torchvision_arrays(rest, Path(config.root).expanduser())
    else:
        raise DataError("a data set must be known by name", config.name, _REMEDY)
    return _split(config, *arrays)


Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
"""x_train, y_train, x_test, y_test; images as uint8 or as floats in [0, 1]."""


def _digits(config: DataConfig) -> Arrays:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = (bunch.images / 16.0).astype(np.float32)[:, None], bunch.target
    train, test = _stratified(y, config.test_share, config.split_seed)
    return x[train], y[train], x[test], y[test]


def _npz_path(name: str) -> Path:
    folder = os.environ.get("PINCHPOINT_DATA")
    if not folder:
        raise ConfigError(
            f"the data set '{name}' is read from the folder that PINCHPOINT_DATA names",
            "no PINCHPOINT_DATA",
            f"set PINCHPOINT_DATA to a folder with {name}.npz, or use torchvision:{name.upper()}",
        )
    return Path(folder) / f"{name}.npz"


def _from_npz(path: Path) -> Arrays:
    if not path.is_file():
        raise DataError("a data file must exist", str(path), "check the path or PINCHPOINT_DATA")
    wanted = ("x_train", "y_train", "x_test", "y_test")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(
                f"{path.name} must be an .npz of plain arrays", "a single array", "write it with numpy.savez"
            )
        with loaded as file:
            missing = [key for key in wanted if key not in file]
            if missing:
                raise DataError(
                    f"{path.name} must hold the arrays {', '.join(wanted)}", f"none called {missing[0]}", "rename them"
                )
            x_train, y_train, x_test, y_test = (file[key] for key in wanted)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name} must be a readable .npz of plain arrays", str(error), "write it anew") from None
    for name, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if x.ndim < 2 or y.ndim != 1 or x.shape[1:] != x_train.shape[1:] or x.size == 0:
            raise DataError(
                f"x_{name} must hold images, all of one shape, and y_{name} one label each",
                f"shapes {x.shape} and {y.shape}" + (f" beside x_train {x_train.shape}" if name == "test" else ""),
                "mend the file",
            )
        if len(x) != len(y) or len(x) == 0:
            raise DataError(
                f"x_{name} and y_{name} must be equally long and not empty", f"{len(x)} and {len(y)}", "mend the file"
            )
    return x_train, y_train, x_test, y_test


def _split(
    config: DataConfig,
    x_train: npt.NDArray[Any],
    y_train: npt.NDArray[Any],
    x_test: npt.NDArray[Any],
    y_test: npt.NDArray[Any],
) -> Dataset:
    if not np.issubdtype(y_train.dtype, np.integer) or int(min(y_train.min(), y_test.min())) < 0:
        raise DataError("labels must be integers from 0", str(y_train.dtype), "encode the classes as 0, 1, 2, ...")
    classes = int(max(y_train.max(), y_test.max())) + 1  # of the whole data set, whatever the limits leave
    x_train, y_train = x_train[: config.limit_train], y_train[: config.limit_train]
    x_test, y_test = x_test[: config.limit_test], y_test[: config.limit_test]
    rows, validation = _stratified(y_train, config.validation_share, config.split_seed)
    return Dataset(
        config.name,
        classes,
        _images(x_train[rows]),
        torch.from_numpy(y_train[rows].astype(np.int64)),
        _images(x_train[validation]),
        torch.from_numpy(y_train[validation].astype(np.int64)),
        _images(x_test),
        torch.from_numpy(y_test.astype(np.int64)),
    )


def _stratified(y: npt.NDArray[Any], share: float, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Rows of the larger and of the smaller part."""
    from sklearn.model_selection import train_test_split

    try:
        rows, held_out = train_test_split(np.arange(len(y)), test_size=share, stratify=y, random_state=seed)
    except ValueError as error:
        raise DataError(
            "the data must hold enough samples of each class for a stratified split",
            str(error),
            "use more samples or another share",
        ) from None
    return rows, held_out


def _images(x: npt.NDArray[Any]) -> Tensor:
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x)).float() / 255.0
    seen = str(x.dtype)
    if np.issubdtype(x.dtype, np.floating):
        if bool(np.isfinite(x).all()) and x.min() >= 0 and x.max() <= 1:
            return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        seen = f"{x.dtype} in [{x.min():.4g}, {x.max():.4g}]"
    raise DataError(
        "images must be uint8, or floats in [0, 1]", seen, "rescale them; normalisation belongs to the model"
    )
