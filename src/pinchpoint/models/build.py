"""Networks built from a configuration. Normalisation is part of the model, so inputs are pixels in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Discriminator, Field, Tag, field_validator
from torch import nn

from pinchpoint.compress import LowRankLinear
from pinchpoint.errors import ModelError, brief
from pinchpoint.models.base import NetworkConfig, Normalize, channels_of
from pinchpoint.models.cifar_resnet import Architecture, cifar_resnet
from pinchpoint.models.library import LibraryConfig
from pinchpoint.models.resnet18 import CifarResNet18Config
from pinchpoint.models.vgg16 import CifarVgg16Config
from pinchpoint.models.wide_resnet import WideResNetConfig
from pinchpoint.models.zero_shot import ZeroShotConfig
from pinchpoint.models.zoo import LIBRARIES

__all__ = [
    "MODEL_NAMES",
    "AnyModelConfig",
    "CifarResNet18Config",
    "CifarResNetConfig",
    "CifarVgg16Config",
    "LibraryConfig",
    "ModelConfig",
    "Normalize",
    "WideResNetConfig",
    "ZeroShotConfig",
    "architecture",
    "build",
]


_MOST_NUMBERS = 10**10
"""Of a network, in float32 40 GB."""


class ModelConfig(NetworkConfig):
    """A fully connected network of any width and depth.

    ``rank`` makes every hidden layer low-rank (A B); the head stays dense.
    """

    name: Literal["fcn"] = "fcn"
    hidden: tuple[int, ...] = Field(default=(128, 128), description="width of each hidden layer")
    bias: bool = False
    rank: int | None = Field(default=None, ge=1)

    def build(self, input_shape: Sequence[int], classes: int) -> nn.Sequential:
        """Its parts are numbered: flattening, then linear layers and ReLUs in turn."""
        if any(width < 1 for width in self.hidden):
            raise ModelError("hidden widths must be one or more", self.hidden, "check model.hidden")
        # counted before memory is taken: weights of each layer, or of its two factors
        widths = (math.prod(input_shape), *self.hidden, classes)
        numbers = sum(before * after for before, after in pairwise(widths))
        if self.rank is not None:
            numbers = sum(self.rank * (before + after) for before, after in pairwise(widths[:-1])) + math.prod(
                widths[-2:]
            )
        if numbers > _MOST_NUMBERS:
            rule = f"a fully connected network may have at most {_MOST_NUMBERS:,} weights"
            raise ModelError(rule, f"{numbers:,} with hidden widths {brief(self.hidden)}", "make model.hidden smaller")
        normalize = self.normalize(input_shape)
        steps: list[nn.Module] = [nn.Flatten()] if normalize is None else [normalize, nn.Flatten()]
        width = math.prod(input_shape)
        for hidden in self.hidden:
            if self.rank is None:
                steps.append(nn.Linear(width, hidden, bias=self.bias))
            else:
                steps.append(LowRankLinear(width, hidden, self.rank, bias=self.bias))
            steps.append(nn.ReLU())
            width = hidden
        return nn.Sequential(*steps, nn.Linear(width, classes, bias=self.bias))


class CifarResNetConfig(NetworkConfig):
    """A CIFAR ResNet of He et al. 2016: ``depth`` is 6n + 2 (20, 32, 44, 56, 110), ``width`` that of its first group."""

    name: Literal["cifar_resnet"] = "cifar_resnet"
    depth: int = Field(default=20, ge=8)
    width: int = Field(default=16, ge=1)

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if depth % 6 != 2:
            raise ValueError("Input should be 6n + 2, for example 20, 32, 44, 56 or 110")
        return depth

    def network(self, input_shape: Sequence[int], classes: int) -> nn.Sequential:
        """It takes images of any size."""
        return cifar_resnet(Architecture(self.depth, self.width, channels_of(input_shape), classes))


_Config = (
    ModelConfig
    | CifarResNetConfig
    | CifarResNet18Config
    | CifarVgg16Config
    | WideResNetConfig
    | LibraryConfig
    | ZeroShotConfig
)
_OWN: dict[str, type[_Config]] = {
    "fcn": ModelConfig,
    "cifar_resnet": CifarResNetConfig,
    "cifar_resnet18": CifarResNet18Config,
    "cifar_vgg16": CifarVgg16Config,
    "wide_resnet": WideResNetConfig,
}

MODEL_NAMES = (*_OWN, *(f"{library}:NAME" for library in LIBRARIES), "clip:NAME")
"""What ``model.name`` may be."""


def _tag(content: object) -> str:
    """Under which of the configurations pydantic is to look."""
    name = content.get("name", "fcn") if isinstance(content, Mapping) else getattr(content, "name", "fcn")
    kind = str(name).partition(":")[0]
    return "library" if kind in LIBRARIES else "clip" if kind == "clip" else str(name)


AnyModelConfig = Annotated[
    Annotated[ModelConfig, Tag("fcn")]
    | Annotated[CifarResNetConfig, Tag("cifar_resnet")]
    | Annotated[CifarResNet18Config, Tag("cifar_resnet18")]
    | Annotated[CifarVgg16Config, Tag("cifar_vgg16")]
    | Annotated[WideResNetConfig, Tag("wide_resnet")]
    | Annotated[LibraryConfig, Tag("library")]
    | Annotated[ZeroShotConfig, Tag("clip")],
    Discriminator(
        _tag,
        custom_error_type="model_name",
        custom_error_message=f"Input should be {', '.join(MODEL_NAMES[:-1])} or {MODEL_NAMES[-1]}",
        custom_error_context={"field": "name", "choices": list(MODEL_NAMES)},
    ),
]
"""For a field that may hold any; ``name`` says which, and a fully connected network is meant where it is left out."""


def build(config: _Config, input_shape: Sequence[int], classes: int, *, seed: int = 0) -> nn.Sequential:
    """A network with weights drawn from the seed; the global RNG is left as it was.

    Args:
        config: what to build.
        input_shape: shape of one input, e.g. (1, 28, 28).
        classes: number of logits.
        seed: of the initial weights.

    Raises:
        ModelError: for a width below 1, a rank above a layer's, or an input or mean that does not fit.
        ConfigError, CheckpointError: where a library or a file of weights that the config names is not there.

    >>> build(ModelConfig(hidden=(128, 128)), (1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if classes < 2:
        raise ModelError("a model needs two classes or more", classes, "check the data")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build(input_shape, classes)


def architecture(config: _Config) -> _Config:
    """The config without a file of weights: what is left to be known once the weights lie in a checkpoint."""
    if isinstance(config, ZeroShotConfig):
        return config.bare()
    return config.model_copy(update={"weights": None}) if isinstance(config, LibraryConfig) else config
