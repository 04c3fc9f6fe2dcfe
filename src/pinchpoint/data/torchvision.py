"""Data sets of torchvision, as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pinchpoint.data.config import Arrays
from pinchpoint.errors import DataError
from pinchpoint.utils.torchvision import import_torchvision


def torchvision_arrays(name: str, root: Path) -> Arrays:
    """Train and test part of a torchvision data set as uint8 arrays (N, C, H, W).

    Raises:
        DataError: where the files are not there and cannot be downloaded.
    """
    datasets = import_torchvision().datasets
    parts = []
    for train in (True, False):
        which = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
        try:
            part = getattr(datasets, name)(root=str(root), download=True, **which)
        except (RuntimeError, OSError, EOFError, ValueError, AssertionError, LookupError) as error:
            raise DataError(
                f"torchvision:{name} must be whole in {root} or be downloadable",
                str(error) or type(error).__name__,
                "download it on another machine",
            ) from None
        x = np.asarray(part.data)
        if x.ndim == 3:
            x = x[:, None]
        elif x.shape[-1] == 3:
            x = x.transpose(0, 3, 1, 2)
        parts += [x, np.asarray(part.labels if name == "SVHN" else part.targets)]
    return parts[0], parts[1], parts[2], parts[3]
