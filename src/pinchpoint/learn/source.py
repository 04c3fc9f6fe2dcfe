"""A model from one word: a checkpoint folder, a file of tensors, or a name of timm, torchvision or open_clip.

Whatever had to be assumed on the way is written down in ``Source.notes``; nothing is guessed and nothing is downloaded.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pinchpoint.errors import CheckpointError, ConfigError, DataError, ModelError
from pinchpoint.learn import checkpoint
from pinchpoint.learn.data import AnyDataset
from pinchpoint.learn.library import LibraryConfig, image_tower
from pinchpoint.learn.models import AnyModelConfig, CifarResNetConfig, build
from pinchpoint.learn.network import Normalize
from pinchpoint.learn.resnet import recognise
from pinchpoint.learn.weights import put, read_tensors
from pinchpoint.learn.zoo import LIBRARIES, Entry, create

_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin")
_WAYS = "a checkpoint folder, a .safetensors file, timm:NAME, torchvision:NAME or open_clip:NAME"


@dataclass(frozen=True)
class Source:
    """A model and what is known about it.

    Attributes:
        name: as it was asked for.
        model: in eval mode, on the CPU; takes images in [0, 1] (normalisation is part of it, where it is known).
        input_shape: shape of one input, e.g. (3, 32, 32).
        classes: number of logits, or None where its outputs are no logits or not known to be.
        notes: what was assumed, one sentence each.
        config: the architecture, by which the model or a smaller one made from it is saved; None where it has no logits.
    """

    name: str
    model: nn.Module
    input_shape: tuple[int, ...]
    classes: int | None
    notes: tuple[str, ...] = ()
    config: AnyModelConfig | None = None


def open_model(spec: str, input_size: tuple[int, ...] | None = None) -> Source:
    """Open the model that ``spec`` names.

    Args:
        spec: a checkpoint folder; a file with the state dict of a CIFAR ResNet; ``timm:NAME``, ``torchvision:NAME`` or
            ``open_clip:NAME`` (its image tower), with random weights or, as ``timm:NAME@FILE``, with those of a file.
        input_size: (height, width) or (channels, height, width), where it is not the model's own.

    Raises:
        ConfigError: where ``spec`` has no known form, or a package is missing.
        CheckpointError: where a file is missing, damaged, or does not fit.
        ModelError: for an unknown name, or an input the model cannot take.

    >>> source = open_model("timm:resnet18", (32, 32))
    >>> source.input_shape, source.classes, source.notes[0]
    ((3, 32, 32), 1000, 'weights are random (seed 0); for trained ones write timm:resnet18@FILE')
    """
    if not spec:
        raise ConfigError(f"a model is {_WAYS}", "an empty name", "write one of those")
    path, (prefix, colon, rest) = Path(spec), spec.partition(":")
    if path.is_dir() or (path.name == "model.safetensors" and (path.parent / "config.json").is_file()):
        source = _from_checkpoint(path)
    elif path.is_file():
        source = _from_file(path, input_size)
    elif colon and prefix in LIBRARIES:
        return _from_library(spec, prefix, rest, input_size)
    else:
        raise _unknown(spec)
    shape = source.input_shape
    if input_size is not None:
        shape = (shape[0], *_size(spec, shape[0], input_size)) if len(shape) == 3 else input_size
    return _checked(source, shape)


def fitting(source: Source, data: AnyDataset) -> Source:
    """The source, if these data can be put to it.

    Raises:
        ModelError: where its outputs are no logits, or too few for the labels.
        DataError: where the data have another shape than its inputs.
    """
    if source.classes is None:
        raise ModelError("attacks need a model that returns logits", source.name, "choose one with a classifier")
    if source.input_shape != data.input_shape:
        raise DataError(
            f"the data must have the shape that {source.name} takes, {_by(source.input_shape)}",
            f"{_by(data.input_shape)} in {data.name}",
            "choose the data it was trained on",
        )
    if source.classes < data.classes:
        raise ModelError(
            f"the model needs a logit for each of the {data.classes} classes of {data.name}",
            f"{source.classes} logits",
            "choose the data it was trained on",
        )
    return source


def parse_size(text: str) -> tuple[int, ...]:
    """(height, width) or (channels, height, width) of a size as people write it.

    >>> parse_size("32"), parse_size("224x160"), parse_size("3x32x32")
    ((32, 32), (224, 160), (3, 32, 32))
    """
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", text):
        raise ConfigError("an input size is SIDE, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH", text, "write 32 or 3x32x32")
    sizes = tuple(int(part) for part in text.split("x"))
    return sizes * 2 if len(sizes) == 1 else sizes


def _from_checkpoint(folder: Path) -> Source:
    runs = sorted(path.parent for path in folder.glob("runs/*/config.json"))
    if runs and not (folder / "config.json").exists():
        raise CheckpointError(
            "a checkpoint is one run of a study", f"all {len(runs)} in {folder}", f"choose one, for example {runs[0]}"
        )
    model, config = checkpoint.load(folder)
    return Source(str(folder), model, config.input_shape, config.classes, config=config.model)


def _from_file(path: Path, input_size: tuple[int, ...] | None) -> Source:
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"a file of weights ends in {', '.join(_SUFFIXES)}", str(path), f"give {_WAYS}")
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
    mean, std = (_numbers(path, metadata, key) for key in ("mean", "std"))
    if mean is None or std is None:
        notes.append("the file gives no mean and std, so inputs are not normalised")
    else:
        notes.append(_normalised(f"{path.name}'s metadata", mean, std))
    if input_size is None:
        notes.append(f"the input size is taken to be CIFAR's, {_by(shape)}; --input-size changes it")
    config = CifarResNetConfig(depth=found.depth, width=found.width, mean=mean, std=std)
    model = build(config, shape, found.classes)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name.startswith("normalize.")}
    put(buffers | tensors, model, str(path), "save it again")
    return Source(str(path), model.eval(), shape, found.classes, tuple(notes), config)


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


def _from_library(spec: str, library: str, rest: str, input_size: tuple[int, ...] | None) -> Source:
    name, at, file = rest.partition("@")
    size = None if input_size is None else _size(spec, 3, input_size)
    entry = create(library, name, size)
    if at:
        tensors = read_tensors(Path(file))[0]
        if library == "open_clip":
            tensors = image_tower(tensors)
        classes = _classes_of(tensors, entry)
        if classes is not None:
            entry = create(library, name, size, classes)
        put(tensors, entry.network, file, f"give the state dict of {library}'s {name}")
        notes = [f"weights are those of {file}"]
    else:
        notes = [f"weights are random (seed 0); for trained ones write {spec}@FILE"]
    notes.append(_normalised(library, entry.mean, entry.std))
    if input_size is None:
        notes.append(f"the input size is {library}'s, {_by(entry.input_shape)}; --input-size changes it")
    if not entry.logits:
        notes.append("its outputs are features, not logits")
    parts = OrderedDict([("normalize", Normalize(entry.mean, entry.std)), ("network", entry.network)])
    source = Source(spec, nn.Sequential(parts).eval(), entry.input_shape, None, tuple(notes))
    source = _checked(source, entry.input_shape)
    if not entry.logits:
        return replace(source, classes=None)
    return replace(source, config=LibraryConfig(name=f"{library}:{name}"))


def _classes_of(tensors: Mapping[str, Tensor], entry: Entry) -> int | None:
    """The number of classes of these weights where it is another than the network's, as after fine-tuning."""
    name = f"{entry.head}.weight"
    found, own = tensors.get(name), entry.network.state_dict().get(name)
    if found is None or own is None or found.shape[1:] != own.shape[1:] or len(found) in (0, len(own)):
        return None
    return len(found)


def _checked(source: Source, shape: tuple[int, ...]) -> Source:
    """With the shape, and the number of logits, after one empty image has passed."""
    try:
        with torch.inference_mode():
            logits = source.model(torch.zeros(1, *shape))
    except Exception as error:  # the network may be anybody's, and say anything
        said = (str(error) or type(error).__name__).splitlines()[0]
        own = "" if shape == source.input_shape else f"; its own size is {_by(source.input_shape)}"
        raise ModelError(
            f"{source.name} must take inputs of {_by(shape)}", said, f"choose another --input-size{own}"
        ) from None
    known = isinstance(logits, Tensor) and logits.ndim == 2
    return replace(source, input_shape=shape, classes=logits.shape[1] if known else None)


def _size(name: str, channels: int, wanted: tuple[int, ...]) -> tuple[int, int]:
    """Height and width; a wrong number of channels is refused, since normalisation would broadcast it away."""
    if len(wanted) == 3 and wanted[0] != channels:
        remedy = f"use {_by((channels, *wanted[1:]))}"
        raise ModelError(f"{name} takes images of {channels} channels", _by(wanted), remedy)
    return wanted[-2], wanted[-1]


def _normalised(says: str, mean: Sequence[float], std: Sequence[float]) -> str:
    shown = (", ".join(f"{value:g}" for value in values) for values in (mean, std))
    return "inputs are pixels in [0, 1], normalised as {} says: mean {}, std {}".format(says, *shown)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _unknown(spec: str) -> ConfigError:
    prefix, colon, rest = spec.partition(":")
    if colon and re.fullmatch(r"[\w-]{2,}", prefix):
        close = difflib.get_close_matches(prefix, LIBRARIES, n=1, cutoff=0.5)
        return ConfigError(
            f"a model is {_WAYS}", spec, f"perhaps {close[0]}:{rest} is meant" if close else "use one of those"
        )
    remedy = "check the path"
    if re.fullmatch(r"\w+", spec):
        remedy += f", or write timm:{spec} for the network of that name"
    return ConfigError(f"a model is {_WAYS}", f"{spec}, where there is nothing", remedy)
