"""What every configuration of a network has: normalisation inside the model, so that inputs are pixels in [0, 1]."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.errors import ModelError
from pinchpoint.records import Norm
from pinchpoint.utils.config import StrictModel
from pinchpoint.utils.numbers import check_normalisation


class NetworkConfig(StrictModel):
    """Any network: ``mean`` and ``std`` (one value, or one a channel) normalise the input inside the model."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def network(self, input_shape: Sequence[int], classes: int) -> nn.Sequential:
        """Without normalisation, its parts named, with weights from the global RNG."""
        raise NotImplementedError

    def build(self, input_shape: Sequence[int], classes: int) -> nn.Sequential:
        """The network, with ``normalize`` in front where mean and std are given."""
        normalize = self.normalize(input_shape)
        network = self.network(input_shape, classes)
        if normalize is None:
            return network
        return nn.Sequential(OrderedDict([("normalize", normalize), *network.named_children()]))

    def normalize(self, input_shape: Sequence[int]) -> Normalize | None:
        """The module for inputs of that shape, or None.

        Raises:
            ModelError: where mean and std do not fit each other or the input.
        """
        if (self.mean is None) != (self.std is None):
            raise ModelError("mean and std come together", "only one of them", "give both or none")
        if self.mean is None or self.std is None:
            return None
        if len(input_shape) != 3:
            raise ModelError(
                "mean and std need images (channels, height, width)", tuple(input_shape), "leave mean and std out"
            )
        if len(self.mean) not in (1, input_shape[0]):
            raise ModelError("mean needs one value or one a channel", len(self.mean), f"give {input_shape[0]}")
        return Normalize(self.mean, self.std)


class Normalize(nn.Module):
    """(x - mean) / std, channel by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        check_normalisation(mean, std)
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return (x - self.mean) / self.std

    def lipschitz_constant(self, norm: Norm) -> float:
        """1 / the smallest std, in every l_p norm."""
        return 1.0 / float(self.std.double().min())


def channels_of(input_shape: Sequence[int], smallest: int = 1) -> int:
    """The number of channels, for a network that takes images of ``smallest`` x ``smallest`` and more.

    Raises:
        ModelError: where the inputs are no such images.
    """
    if len(input_shape) != 3:
        raise ModelError(
            "a convolutional network takes images (channels, height, width)", tuple(input_shape), "use model.name fcn"
        )
    if min(input_shape[1:]) < smallest:
        raise ModelError(
            f"this network takes images of {smallest} x {smallest} and more", tuple(input_shape), "use another one"
        )
    return input_shape[0]
