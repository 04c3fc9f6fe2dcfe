"""Which data, and how they are split."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from pydantic import Field, field_validator

from pinchpoint.errors import ConfigError
from pinchpoint.utils.config import StrictModel

NPZ_NAMES = ("mnist", "cifar10", "cifar100")
TORCHVISION_NAMES = ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN")
FILE_KINDS = ("imagefolder", "imagenet", "huggingface")
IMAGENET_SIZE = 224


class DataConfig(StrictModel):
    """Which data, and how it is split."""

    name: str = "digits"
    test_share: float = Field(default=0.25, gt=0, lt=1, description="only for data without a test set of its own")
    validation_share: float = Field(default=0.15, gt=0, lt=1, description="of the training part, stratified")
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    limit_train: int | None = Field(default=None, ge=1, description="keep the first n training samples")
    limit_test: int | None = Field(default=None, ge=1, description="keep the first n test samples")
    group_labels: tuple[tuple[int, ...], ...] | None = Field(
        default=None,
        description="data in memory only: class i of the new ones is the labels of group i; "
        "[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]] makes digits two classes, digit >= 5 the second",
    )
    root: str = Field(default="~/.cache/pinchpoint", description="where torchvision keeps its files")
    image_size: int | None = Field(
        default=None,
        ge=1,
        description="image files only: the middle square of that side, after resizing; null: the images' own size "
        f"({IMAGENET_SIZE} for imagenet)",
    )
    resize: int | None = Field(
        default=None,
        ge=1,
        description="image files only: what the shorter side is resized to (bicubic) before that; null: image_size",
    )
    label_column: str | None = Field(default=None, description="huggingface only, where it has several")
    workers: int = Field(default=2, ge=0, le=1024, description="processes that decode image files; 0: none")
    memory_gb: float = Field(
        default=8.0, gt=0, allow_inf_nan=False, description="the most that decoded files may take where held in memory"
    )

    @field_validator("group_labels")
    @classmethod
    def _each_label_once(cls, groups: tuple[tuple[int, ...], ...] | None) -> tuple[tuple[int, ...], ...] | None:
        labels = sorted(label for group in groups or () for label in group)
        if groups is not None and (len(groups) < 2 or not all(groups) or labels != list(range(len(labels)))):
            raise ConfigError(
                "group_labels must be two groups or more, none empty, with each label from 0 on in exactly one",
                [list(group) for group in groups],
                "write for example [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]",
            )
        return groups


Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
"""x_train, y_train, x_test, y_test; images as uint8 or as floats in [0, 1]."""
