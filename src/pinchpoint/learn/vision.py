"""torchvision, imported in one place only.

torchvision's wheel on PyPI is linked against CUDA torch. Beside a CPU build its operator library does not load, and
``import torchvision`` fails with "operator torchvision::nms does not exist". Declaring the two schemas it looks for lets
the import pass; detection operators stay unavailable. Where torchvision matches its torch, nothing is done.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from pinchpoint.errors import ConfigError, DataError
from pinchpoint.learn.data_config import Arrays

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None


def import_torchvision() -> ModuleType:
    """torchvision, importable beside a CPU torch too.

    Raises:
        ConfigError: where it is not installed.
    """
    global _library
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "torchvision data sets need torchvision", "an installation without it", "pip install 'pinchpoint[vision]'"
        )
    if _library is None and not hasattr(torch.ops.torchvision, "nms"):
        try:
            for path in Path(spec.origin).parent.glob("_C*.so"):
                torch.ops.load_library(str(path))
        except OSError:
            _library = torch.library.Library("torchvision", "DEF")
            for schema in _SCHEMAS:
                _library.define(schema)
    import torchvision

    module: ModuleType = torchvision
    return module


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
