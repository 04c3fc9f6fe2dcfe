"""Networks built from a configuration. Normalisation is part of the model, so inputs are pixels in [0, 1]."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from torch import Tensor, nn

from pinchpoint.compress.factorize import LowRankLinear
from pinchpoint.errors import ModelError
from pinchpoint.learn.resnet import Architecture, cifar_resnet
from pinchpoint.records import Norm


class ModelConfig(BaseModel):
    """A fully connected network of any width and depth.

    ``rank`` makes every hidden layer low-rank (A B); the head stays dense. ``mean`` and ``std`` (one value, or one a
    channel) normalise the input inside the model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["fcn"] = "fcn"
    hidden: tuple[int, ...] = Field(default=(128, 128), description="width of each hidden layer")
    bias: bool = False
    rank: int | None = Field(default=None, ge=1)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class CifarResNetConfig(BaseModel):
    """A CIFAR ResNet of He et al. 2016: ``depth`` is 6n + 2 (20, 32, 44, 56, 110), ``width`` that of its first group."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["cifar_resnet"] = "cifar_resnet"
    depth: int = Field(default=20, ge=8)
    width: int = Field(default=16, ge=1)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if depth % 6 != 2:
            raise ValueError("Input should be 6n + 2, for example 20, 32, 44, 56 or 110")
        return depth


class _Named(BaseModel):
    name: Literal["fcn", "cifar_resnet"] = "fcn"


def _by_name(content: object) -> object:
    if isinstance(content, ModelConfig | CifarResNetConfig):
        return content
    if _Named.model_validate(content).name == "cifar_resnet":
        return CifarResNetConfig.model_validate(content)
    return ModelConfig.model_validate(content)


AnyModelConfig = Annotated[ModelConfig | CifarResNetConfig, BeforeValidator(_by_name)]
"""For a field that may hold either; ``name`` says which, and a fully connected network is meant where it is left out."""


class Normalize(nn.Module):
    """(x - mean) / std, channel by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ModelError(
                "mean and std need equal lengths and every std must be positive", f"{mean}, {std}", "fix them"
            )
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return (x - self.mean) / self.std

    def lipschitz_constant(self, norm: Norm) -> float:
        """1 / the smallest std, in every l_p norm."""
        return 1.0 / float(self.std.double().min())


def build(
    config: ModelConfig | CifarResNetConfig, input_shape: Sequence[int], classes: int, *, seed: int = 0
) -> nn.Sequential:
    """A network with weights drawn from the seed; the global RNG is left as it was.

    Args:
        config: what to build.
        input_shape: shape of one input, e.g. (1, 28, 28).
        classes: number of logits.
        seed: of the initial weights.

    Raises:
        ModelError: for a width below 1, a rank above a layer's, or an input or mean that does not fit.

    >>> build(ModelConfig(hidden=(128, 128)), (1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    widths = config.hidden if isinstance(config, ModelConfig) else (config.width,)
    if any(width < 1 for width in widths) or classes < 2:
        raise ModelError(
            "widths must be one or more and classes two or more", f"{widths} and {classes}", "check the model"
        )
    normalize = _normalize(config, input_shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, CifarResNetConfig):
            return _resnet(config, input_shape, classes, normalize)
        steps = _fully_connected(config, math.prod(input_shape), classes)
    return nn.Sequential(*([normalize] if normalize else []), nn.Flatten(), *steps)


def _normalize(config: ModelConfig | CifarResNetConfig, input_shape: Sequence[int]) -> Normalize | None:
    if (config.mean is None) != (config.std is None):
        raise ModelError("mean and std come together", "only one of them", "give both or none")
    if config.mean is None or config.std is None:
        return None
    if len(input_shape) != 3:
        raise ModelError(
            "mean and std need images (channels, height, width)", tuple(input_shape), "leave mean and std out"
        )
    if len(config.mean) not in (1, input_shape[0]):
        raise ModelError("mean needs one value or one a channel", len(config.mean), f"give {input_shape[0]}")
    return Normalize(config.mean, config.std)


def _fully_connected(config: ModelConfig, width: int, classes: int) -> list[nn.Module]:
    steps: list[nn.Module] = []
    for hidden in config.hidden:
        if config.rank is None:
            steps.append(nn.Linear(width, hidden, bias=config.bias))
        else:
            steps.append(LowRankLinear(width, hidden, config.rank, bias=config.bias))
        steps.append(nn.ReLU())
        width = hidden
    return [*steps, nn.Linear(width, classes, bias=config.bias)]


def _resnet(
    config: CifarResNetConfig, input_shape: Sequence[int], classes: int, normalize: Normalize | None
) -> nn.Sequential:
    if len(input_shape) != 3:
        raise ModelError(
            "a convolutional network takes images (channels, height, width)", tuple(input_shape), "use model.name fcn"
        )
    network = cifar_resnet(Architecture(config.depth, config.width, input_shape[0], classes))
    if normalize is None:
        return network
    return nn.Sequential(OrderedDict([("normalize", normalize), *network.named_children()]))
