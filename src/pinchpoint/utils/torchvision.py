"""torchvision, imported in one place only.

torchvision's wheel on PyPI is linked against CUDA torch. Beside a CPU build its operator library does not load, and
``import torchvision`` fails with "operator torchvision::nms does not exist". Declaring the two schemas it looks for lets
the import pass; detection operators stay unavailable. Where torchvision matches its torch, nothing is done.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from pinchpoint.errors import ConfigError

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
