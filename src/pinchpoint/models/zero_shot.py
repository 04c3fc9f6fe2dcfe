"""CLIP as a network that a recipe names: its image tower is trained, under a frozen head made from the classes' names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, field_validator
from torch import nn

from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.models.base import NetworkConfig, Normalize, channels_of

if TYPE_CHECKING:
    from pinchpoint.models.clip import Clip

CLASS_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")}
)
"""Names in the order of the labels, for data that everybody knows."""


class ZeroShotConfig(NetworkConfig):
    """``name`` is ``clip:NAME``, with NAME one of open_clip's: logits are cosines with the features of prompts (zero-shot).

    The head is frozen, so that training changes the image tower alone. ``weights`` is a local file with both towers (random
    ones where null), ``classes`` is cifar10 or a name for each label, ``templates`` are prompts with {} where it goes.
    ``mean`` and ``std`` are the model's own where they are not given.
    """

    name: str = Field(pattern=r"^clip:.+$")
    weights: str | None = None
    classes: str | tuple[str, ...] = "cifar10"
    templates: tuple[str, ...] | None = Field(default=None, min_length=1, description="null: eight usual ones")

    @field_validator("classes", mode="before")
    @classmethod
    def _known(cls, classes: Any) -> Any:
        listed = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
        if not listed and (not isinstance(classes, str) or classes not in CLASS_NAMES):
            raise ConfigError(
                f"classes are {' or '.join(CLASS_NAMES)}, or a list with a name for each label",
                classes,
                "write for example [cat, dog]",
            )
        return classes

    def bare(self) -> ZeroShotConfig:
        """For a network whose weights, and so its head, lie in a checkpoint: no file is read, and no prompt."""
        return self.model_copy(update={"weights": None, "templates": ()})

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each label."""
        return CLASS_NAMES[self.classes] if isinstance(self.classes, str) else self.classes

    def clip(self, input_shape: Sequence[int], *, seed: int | None = None) -> Clip:
        """Both towers, as they are before any training.

        Args:
            input_shape: of the images.
            seed: of random weights; None: they are drawn from the global RNG.

        Raises:
            ConfigError: where open_clip is not installed.
            ModelError: for an unknown name, or images it cannot take.
            CheckpointError: where the weights are not there, are damaged, or do not fit.
        """
        from pinchpoint.models.clip import load_clip

        channels, size = channels_of(input_shape), (input_shape[1], input_shape[2])
        file = "" if self.weights is None else f"@{Path(self.weights).expanduser()}"
        clip = load_clip(f"{self.name.removeprefix('clip:')}{file}", size, torch.get_default_device(), seed=seed)
        if channels != clip.input_shape[0]:
            seen = "x".join(map(str, input_shape))
            raise ModelError(f"{self.name} takes images of {clip.input_shape[0]} channels", seen, "use other data")
        normalize = self.normalize(input_shape)
        return clip if normalize is None else dataclasses.replace(clip, normalize=normalize)

    def build(self, input_shape: Sequence[int], classes: int) -> nn.Sequential:
        """``normalize``, ``network`` (the image tower), ``unit`` and ``head``, which is frozen.

        Raises:
            ConfigError: where open_clip is not installed, or names or templates make no sense.
            ModelError: for an unknown name, images it cannot take, or another number of classes than the data's.
            CheckpointError: where the weights are not there, are damaged, or do not fit.
        """
        from pinchpoint.models.clip import TEMPLATES, text_features, under, zero_shot

        if len(self.class_names) != classes:
            raise ModelError(
                f"{self.name} needs a name for each of the data's {classes} classes",
                f"{len(self.class_names)} names",
                "list them under model.classes, in the order of the labels",
            )
        clip = self.clip(input_shape)
        if self.templates == ():
            return under(text_features(clip, [""]).expand(classes, -1), clip)
        return zero_shot(clip, self.class_names, TEMPLATES if self.templates is None else self.templates)


def with_tower(clip: Clip, model: nn.Module) -> Clip:
    """The CLIP model with the image tower of one that ``ZeroShotConfig`` built, trained or made smaller since.

    Args:
        clip: lends its text tower, and is changed.
        model: where it is, the CLIP model goes.

    Raises:
        ModelError: where the model is no such one.
    """
    parts = dict(model.named_children())
    if not {"normalize", "network", "unit", "head"} <= parts.keys():
        raise ModelError("the model must have the parts of a zero-shot classifier", list(parts), "use clip:NAME")
    normalize, tower, network = parts["normalize"], parts["network"], clip.network
    assert isinstance(normalize, Normalize)
    network.visual = tower
    return dataclasses.replace(clip, network=network.to(normalize.mean.device).eval(), normalize=normalize)
