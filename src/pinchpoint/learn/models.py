"""Networks built from a configuration. Normalisation is part of the model, so inputs are pixels in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pinchpoint.compress.factorize import LowRankLinear
from pinchpoint.errors import ModelError
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


def build(config: ModelConfig, input_shape: Sequence[int], classes: int, *, seed: int = 0) -> nn.Sequential:
    """A network with weights drawn from the seed; the global RNG is left as it was.

    Args:
        config: what to build.
        input_shape: shape of one input, e.g. (1, 28, 28).
        classes: number of logits.
        seed: of the initial weights.

    Raises:
        ModelError: for a width below 1, a rank above a layer's, or a mean that does not fit the input.

    >>> build(ModelConfig(hidden=(128, 128)), (1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if any(width < 1 for width in config.hidden) or classes < 2:
        raise ModelError(
            "widths must be one or more and classes two or more", f"{config.hidden} and {classes}", "check the model"
        )
    steps: list[nn.Module] = []
    if (config.mean is None) != (config.std is None):
        raise ModelError("mean and std come together", "only one of them", "give both or none")
    if config.mean is not None and config.std is not None:
        if len(input_shape) != 3:
            raise ModelError(
                "mean and std need images (channels, height, width)", tuple(input_shape), "leave mean and std out"
            )
        if len(config.mean) not in (1, input_shape[0]):
            raise ModelError("mean needs one value or one a channel", len(config.mean), f"give {input_shape[0]}")
        steps.append(Normalize(config.mean, config.std))
    steps.append(nn.Flatten())
    width = math.prod(input_shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for hidden in config.hidden:
            if config.rank is None:
                steps.append(nn.Linear(width, hidden, bias=config.bias))
            else:
                steps.append(LowRankLinear(width, hidden, config.rank, bias=config.bias))
            steps.append(nn.ReLU())
            width = hidden
        steps.append(nn.Linear(width, classes, bias=config.bias))
    return nn.Sequential(*steps)
