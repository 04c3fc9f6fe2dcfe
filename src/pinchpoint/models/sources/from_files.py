"""Models from a checkpoint folder, or from a file with the state dict of a CIFAR ResNet."""

from __future__ import annotations

import math
import re
from pathlib import Path

from pinchpoint.errors import CheckpointError, ModelError
from pinchpoint.models import checkpoint
from pinchpoint.models.build import CifarResNetConfig, build
from pinchpoint.models.cifar_resnet import recognise
from pinchpoint.models.normalisation import Normalisation, normalisation_of
from pinchpoint.models.sources.source import Source, by
from pinchpoint.models.weights import put, read_tensors


def from_checkpoint(folder: Path, asked: Normalisation | None) -> Source:
    """What a study or ``checkpoint.save`` wrote; its normalisation is a part of it.

    Raises:
        CheckpointError: where it is none, or many.
        ModelError: where another normalisation is asked for.
    """
    runs = sorted(path.parent for path in folder.glob("runs/*/config.json"))
    if runs and not (folder / "config.json").exists():
        raise CheckpointError(
            "a checkpoint is one run of a study", f"all {len(runs)} in {folder}", f"choose one, for example {runs[0]}"
        )
    if asked is not None:
        raise ModelError("a checkpoint has its normalisation in it", str(asked), "leave --normalize out")
    model, config = checkpoint.load(folder)
    says = str(normalisation_of(model))
    return Source(str(folder), model, config.input_shape, config.classes, config=config.model, normalisation=says)


def from_weights(path: Path, input_size: tuple[int, ...] | None, asked: Normalisation | None) -> Source:
    """The CIFAR ResNet whose state dict the file is; normalised as asked, else as its metadata say.

    Raises:
        CheckpointError: where it is damaged or another network's.
        ModelError: where mean and std make no sense.
    """
    tensors, metadata = read_tensors(path)
    found = recognise(tensors)
    if found is None:
        raise CheckpointError(
            f"the tensors in {path} must be those of a CIFAR ResNet (conv1, bn1, layer1..3.i, linear)",
            f"{len(tensors)} tensors, the first {min(tensors)} {tuple(tensors[min(tensors)].shape)}",
            f"say whose they are, for example timm:resnet18@{path}",
        )
    shape = (found.channels, 32, 32)
    notes = [
        f"the tensors are taken for a CIFAR ResNet-{found.depth} of width {found.width} with {found.classes} classes and "
        "option A shortcuts"
    ]
    mean, std = (_numbers(path, metadata, key) for key in ("mean", "std")) if asked is None else asked
    normalisation = str(Normalisation(mean, std))
    if asked is not None:
        notes.append(f"inputs are normalised as asked: {normalisation}")
    elif mean is None or std is None:
        notes.append("the file gives no mean and std, so inputs are not normalised")
    else:
        notes.append(f"inputs are pixels in [0, 1], normalised as {path.name}'s metadata says: {normalisation}")
    if input_size is None:
        notes.append(f"the input size is taken to be CIFAR's, {by(shape)}; --input-size changes it")
    config = CifarResNetConfig(depth=found.depth, width=found.width, mean=mean, std=std)
    model = build(config, shape, found.classes)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name.startswith("normalize.")}
    put(buffers | tensors, model, str(path), "save it again")
    known = asked is not None or mean is not None
    return Source(str(path), model.eval(), shape, found.classes, tuple(notes), config, normalisation if known else None)


def _numbers(path: Path, metadata: dict[str, str], key: str) -> tuple[float, ...] | None:
    if key not in metadata:
        return None
    try:
        numbers = tuple(float(part) for part in re.split(r"[\s,]+", metadata[key].strip("[]() ")))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise CheckpointError(
            f"{key} in the metadata of {path} must be numbers, one a channel", metadata[key], "save it again"
        )
    return numbers
