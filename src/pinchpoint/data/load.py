"""Data sets by name, as float32 images in [0, 1], split into train, validation and test.

In memory: ``digits`` (scikit-learn's 1797 handwritten digits, always there); ``mnist``, ``cifar10``, ``cifar100`` (NAME.npz
in the folder that PINCHPOINT_DATA names); ``npz:PATH``; ``torchvision:CLASS`` (downloaded by torchvision into ``root``).

Decoded from files as they are needed: ``imagefolder:PATH`` (one folder a class, in ``train``, ``val`` and ``test`` or in
PATH itself); ``imagenet:PATH`` (the same, with all 1000 classes of ImageNet-1k, in ``train`` and ``val`` or ``val`` alone);
``huggingface:PATH`` (what ``save_to_disk`` of Hugging Face's datasets wrote).

Normalisation belongs to the model, so a threat is always in pixels.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pinchpoint.data.config import FILE_KINDS, IMAGENET_SIZE, NPZ_NAMES, TORCHVISION_NAMES, Arrays, DataConfig
from pinchpoint.data.listing import MOST_CLASSES
from pinchpoint.data.npz import read_npz
from pinchpoint.data.part import Part, TensorPart
from pinchpoint.data.split import stratified
from pinchpoint.data.streamed import StreamedDataset
from pinchpoint.errors import ConfigError, DataError

_REMEDY = (
    f"use digits, {', '.join(NPZ_NAMES)}, npz:PATH, {', '.join(f'{kind}:PATH' for kind in FILE_KINDS)} or "
    f"torchvision:NAME with NAME in {', '.join(TORCHVISION_NAMES)}"
)


@dataclass(frozen=True)
class Dataset:
    """Images in [0, 1] and labels. ``classes`` counts them, ``class_names`` names them where the data do."""

    name: str
    classes: int
    x_train: Float[Tensor, "train *shape"]
    y_train: Int[Tensor, "train"]
    x_validation: Float[Tensor, "validation *shape"]
    y_validation: Int[Tensor, "validation"]
    x_test: Float[Tensor, "test *shape"]
    y_test: Int[Tensor, "test"]
    class_names: tuple[str, ...] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return tuple(self.x_train.shape[1:])

    @cached_property
    def train(self) -> Part:
        """The training part, as batches."""
        return TensorPart(self.x_train, self.y_train)

    @cached_property
    def validation(self) -> Part:
        """The validation part, as batches."""
        return TensorPart(self.x_validation, self.y_validation)

    @cached_property
    def test(self) -> Part:
        """The test part, as batches."""
        return TensorPart(self.x_test, self.y_test)


AnyDataset = Dataset | StreamedDataset


def load(config: DataConfig) -> AnyDataset:
    """Load and split a data set; one of image files is listed, and decoded when it is used.

    Raises:
        DataError: for a name that is unknown, a file that is missing or malformed.
        ConfigError: where PINCHPOINT_DATA or a package is needed and not there, or an option does not belong to the data.

    >>> data = load(DataConfig(name="digits"))
    >>> data.input_shape, data.classes, len(data.x_train) + len(data.x_validation), len(data.x_test)
    ((1, 8, 8), 10, 1347, 450)
    """
    kind, _, rest = config.name.partition(":")
    if kind in FILE_KINDS and rest:
        if config.group_labels is not None:
            rule = "data.group_labels is for data held in memory"
            raise ConfigError(rule, config.name, "leave it out, or sort the images into other folders")
        return _from_files(config, kind, Path(rest).expanduser())
    if config.image_size is not None or config.resize is not None:
        rule = f"data.image_size and data.resize are for {', '.join(FILE_KINDS)}"
        raise ConfigError(rule, config.name, "leave them out")
    names: tuple[str, ...] | None = None
    if config.name == "digits":
        arrays = _digits(config)
    elif config.name in NPZ_NAMES:
        arrays, names = _from_npz(_npz_path(config.name), config.memory_gb)
    elif kind == "npz" and rest:
        arrays, names = _from_npz(Path(rest).expanduser(), config.memory_gb)
    elif kind == "torchvision" and rest in TORCHVISION_NAMES:
        from pinchpoint.data.torchvision import torchvision_arrays

        arrays = torchvision_arrays(rest, Path(config.root).expanduser())
    else:
        raise DataError("a data set must be known by name", config.name, _REMEDY)
    return _split(config, names, *arrays)


def _from_files(config: DataConfig, kind: str, path: Path) -> StreamedDataset:
    if importlib.util.find_spec("PIL") is None:
        raise ConfigError(f"{kind}:PATH needs Pillow", "an installation without it", "pip install 'pinchpoint[vision]'")
    from pinchpoint.data.folders import list_folder, list_imagenet
    from pinchpoint.data.from_listing import assemble
    from pinchpoint.data.huggingface import list_saved

    if kind == "huggingface":
        return assemble(config, *list_saved(path, config.label_column), None)
    if kind == "imagenet":
        return assemble(config, *list_imagenet(path), IMAGENET_SIZE)
    return assemble(config, *list_folder(path), None)


def _digits(config: DataConfig) -> Arrays:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = (bunch.images / 16.0).astype(np.float32)[:, None], bunch.target
    train, test = stratified(y, config.test_share, config.split_seed)
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


def _from_npz(path: Path, memory_gb: float) -> tuple[Arrays, tuple[str, ...] | None]:
    """The four arrays, and the names of the classes where it has ``classes``."""
    (x_train, y_train, x_test, y_test), names = read_npz(
        path, ("x_train", "y_train", "x_test", "y_test"), memory_gb, "classes"
    )
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
    return (x_train, y_train, x_test, y_test), names


def _split(
    config: DataConfig,
    class_names: tuple[str, ...] | None,
    x_train: npt.NDArray[Any],
    y_train: npt.NDArray[Any],
    x_test: npt.NDArray[Any],
    y_test: npt.NDArray[Any],
) -> Dataset:
    for part, labels in (("training", y_train), ("test", y_test)):
        integers = np.issubdtype(labels.dtype, np.integer)
        if not integers or int(labels.min()) < 0:
            seen = f"{int(labels.min()) if integers else labels.dtype} in the {part} labels"
            raise DataError("labels must be integers from 0", seen, "encode the classes as 0, 1, 2, ...")
    classes = max(int(y_train.max()), int(y_test.max())) + 1  # of the whole data set, whatever the limits leave
    if classes > MOST_CLASSES:
        raise DataError(f"labels must be below {MOST_CLASSES}", classes - 1, "encode the classes as 0, 1, 2, ...")
    if class_names is not None and len(class_names) < classes:
        seen = f"{len(class_names)} names and the label {classes - 1}"
        raise DataError("each class must have its name, where any has", seen, "mend the array classes")
    y_train, y_test = y_train.astype(np.int64), y_test.astype(np.int64)
    x_train, y_train = x_train[: config.limit_train], y_train[: config.limit_train]
    x_test, y_test = x_test[: config.limit_test], y_test[: config.limit_test]
    rows, validation = stratified(y_train, config.validation_share, config.split_seed)  # the same, grouped or not
    names = _classes(config, classes)
    return Dataset(
        config.name,
        int(names.max()) + 1,
        _images(x_train[rows]),
        torch.from_numpy(names[y_train[rows]]),
        _images(x_train[validation]),
        torch.from_numpy(names[y_train[validation]]),
        _images(x_test),
        torch.from_numpy(names[y_test]),
        class_names[:classes] if class_names is not None and config.group_labels is None else None,
    )


def _classes(config: DataConfig, labels: int) -> npt.NDArray[np.int64]:
    """The class of each label."""
    if config.group_labels is None:
        return np.arange(labels)
    grouped = sum(map(len, config.group_labels))
    if grouped != labels:
        raise ConfigError(
            f"data.group_labels must have each label of {config.name} once, 0 ... {labels - 1}",
            f"0 ... {grouped - 1}",
            "list them all, and no others",
        )
    classes = np.empty(labels, dtype=np.int64)
    for number, group in enumerate(config.group_labels):
        classes[list(group)] = number
    return classes


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
