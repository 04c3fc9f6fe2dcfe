"""A model from one word: a checkpoint folder, a file, a name of timm, torchvision or open_clip, or the user's own code.

Whatever had to be assumed on the way is written down in ``Source.notes``; nothing is guessed and nothing is downloaded.
Nothing that a file holds is run or unpickled; only ``py:`` runs code, the user's own.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from pinchpoint.data.load import AnyDataset
from pinchpoint.errors import ConfigError, DataError, ModelError
from pinchpoint.models.normalisation import parse_normalisation
from pinchpoint.models.sources.from_export import from_exported
from pinchpoint.models.sources.from_files import from_checkpoint, from_weights
from pinchpoint.models.sources.from_library import from_library
from pinchpoint.models.sources.from_user_code import from_user
from pinchpoint.models.sources.source import Source, by, checked, resized
from pinchpoint.models.zoo import LIBRARIES
from pinchpoint.utils.model_names import WAYS, unknown_model
from pinchpoint.utils.model_output import answer
from pinchpoint.utils.numbers import NORMALISATIONS

__all__ = ["Source", "fitting", "open_model", "parse_size", "with_known_normalisation"]

_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin")
_EXPORTED, _OWN_CODE = ".pt2", "py"


def open_model(spec: str, input_size: tuple[int, ...] | None = None, normalize: str | None = None) -> Source:
    """Open the model that ``spec`` names.

    Args:
        spec: a checkpoint folder; a file with the state dict of a CIFAR ResNet; a ``.pt2`` that torch.export wrote;
            ``timm:NAME``, ``torchvision:NAME`` or ``open_clip:NAME`` (its image tower), with random weights or, as
            ``timm:NAME@FILE``, with those of a file; ``py:MODULE:FACTORY``, which runs the user's own code.
        input_size: (height, width) or (channels, height, width), where it is not the model's own.
        normalize: how inputs in [0, 1] are normalised: ``none``, ``imagenet`` or ``mean=...,std=...``; None: as the model
            says, else not at all, and ``Source.normalisation`` is None.

    Raises:
        ConfigError: where ``spec`` or ``normalize`` has no known form, or a package is missing.
        CheckpointError: where a file is missing, damaged, or does not fit.
        ModelError: for an unknown name, an input the model cannot take, or user's code that fails.

    >>> source = open_model("timm:resnet18", (32, 32))
    >>> source.input_shape, source.classes, source.notes[0]
    ((3, 32, 32), 1000, 'weights are random (seed 0); for trained ones write timm:resnet18@FILE')
    >>> source.normalisation
    'mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225'
    """
    if not spec:
        raise ConfigError(f"a model is {WAYS}", "an empty name", "write one of those")
    try:
        Path(spec).exists()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"a model is {WAYS}", f"{spec} ({said})", "check the path") from None
    asked = None if normalize is None else parse_normalisation(normalize)
    path, (prefix, colon, rest) = Path(spec), spec.partition(":")
    if path.is_dir() or (path.name == "model.safetensors" and (path.parent / "config.json").is_file()):
        source = from_checkpoint(path, asked)
    elif path.is_file() and path.suffix == _EXPORTED:
        return from_exported(path, input_size, asked)
    elif path.is_file():
        if path.suffix not in _SUFFIXES:
            raise ConfigError(f"a file of weights ends in {', '.join(_SUFFIXES)}", spec, f"give {WAYS}")
        source = from_weights(path, input_size, asked)
    elif colon and prefix in LIBRARIES:
        return from_library(spec, prefix, rest, input_size, asked)
    elif colon and prefix == _OWN_CODE:
        return from_user(spec, rest, input_size, asked)
    else:
        raise unknown_model(spec)
    return checked(source, resized(spec, source.input_shape, input_size))


def fitting(source: Source, data: AnyDataset) -> Source:
    """The source, if these data can be put to it.

    Raises:
        ModelError: where its outputs are no logits, or too few for the labels.
        DataError: where the data have another shape than its inputs.
    """
    if source.classes is None:
        with torch.no_grad():
            answer(source.model, torch.zeros(1, *source.input_shape))  # says what it returns where that is no matrix
        raise ModelError("attacks need a model that returns logits", source.name, "choose one with a classifier")
    if source.input_shape != data.input_shape:
        raise DataError(
            f"the data must have the shape that {source.name} takes, {by(source.input_shape)}",
            f"{by(data.input_shape)} in {data.name}",
            "choose the data it was trained on",
        )
    if source.classes < data.classes:
        raise ModelError(
            f"the model needs a logit for each of the {data.classes} classes of {data.name}",
            f"{source.classes} logits",
            "choose the data it was trained on",
        )
    return source


def with_known_normalisation(source: Source) -> Source:
    """The source, if it is known how its inputs are normalised: robustness is another where that is wrong.

    Raises:
        ConfigError: where nobody has said.
    """
    if source.normalisation is None:
        raise ConfigError(
            f"it must be known how the inputs of {source.name} are normalised",
            "nothing that says so",
            f"give --normalize {NORMALISATIONS}",
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
