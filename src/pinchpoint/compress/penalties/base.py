"""What every penalty shares: which layers it touches, how penalties add up, what they say and what they remember.

A penalty is a callable on a model that returns a differentiable scalar. Which layers it touches: those that the patterns
in ``layers`` name; without patterns all but the head (the last layer) and but an input convolution, as in the paper.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.errors import CheckpointError, ConfigError
from pinchpoint.measure.weights import acting, is_linear, outermost, weight_matrix

_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Parameters that ``nn.MultiheadAttention`` and open_clip's attention multiply with from the left."""


@dataclass(frozen=True)
class Touched:
    """A layer that a penalty touches: a linear module, or a projection that an attention module owns as a parameter."""

    name: str
    module: nn.Module
    parameter: str | None = None

    @property
    def matrix(self) -> Float[Tensor, "h d"]:
        """The weights as they act now; autograd can follow them."""
        if self.parameter is not None:
            return acting(self.module, self.parameter)
        matrix = weight_matrix(self.module)
        assert matrix is not None  # candidates() lists only modules that have one
        return matrix

    @property
    def by_input(self) -> Float[Tensor, "groups per_group h_per_group kernel"]:
        """The same numbers with the input channels in front: one group and a kernel of 1 for a fully connected layer."""
        matrix = self.matrix
        if not isinstance(self.module, nn.modules.conv._ConvNd):
            return matrix.T[None, :, :, None]
        groups, kernel = self.module.groups, math.prod(self.module.kernel_size)
        by_input: Tensor = matrix.unflatten(1, (-1, kernel)).unflatten(0, (groups, -1)).transpose(1, 2)
        return by_input


def candidates(model: nn.Module) -> list[Touched]:
    """All layers a penalty could touch, in the order of registration, each module once.

    >>> [layer.name for layer in candidates(nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2)))]
    ['0', '1.in_proj_weight', '1.out_proj']
    """
    found = []
    for name, module in outermost(model):
        if is_linear(module):
            found.append(Touched(name, module))
            continue
        for key in _PROJECTIONS:
            if isinstance(getattr(module, key, None), Tensor):
                found.append(Touched(f"{name}.{key}" if name else key, module, key))
    return found


@dataclass(frozen=True)
class Penalty(ABC):
    """strength * value(model). Penalties add up with ``+``.

    Args:
        strength: zero or more.
        include_head: also penalise the last layer.
        layers: patterns of layer names as in ``fnmatch``, e.g. ``("layer1.*", "fc?")``; they alone then decide, whatever
            is the head or an input convolution.

    Raises:
        ConfigError: for a strength below zero or not finite; when called, where no layer is touched.
    """

    strength: float
    include_head: bool = False
    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise ConfigError(
                "a penalty's strength must be finite, zero or more", self.strength, "use 0 for no penalty"
            )
        if isinstance(self.layers, str):
            raise ConfigError("layers are a list of patterns", repr(self.layers), "write [...] around it")

    @abstractmethod
    def value(self, model: nn.Module) -> Float[Tensor, ""]:
        """The penalty without its strength."""

    def touched(self, model: nn.Module) -> list[Touched]:
        """The layers it touches.

        Raises:
            ConfigError: where there is none.
        """
        found = candidates(model)
        if self.layers is not None:
            return self.matching(found)
        if not self.include_head:
            found = found[:-1]
        if found and isinstance(found[0].module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            found = found[1:]
        if not found:
            raise ConfigError(
                f"{type(self).__name__} must touch at least one layer",
                "none",
                "use include_head=True or a deeper model",
            )
        return found

    def matching(self, found: list[Touched]) -> list[Touched]:
        """Those whose name one of the patterns fits."""
        patterns = self.layers or ()
        kept = [layer for layer in found if any(fnmatchcase(layer.name, pattern) for pattern in patterns)]
        if not kept:
            names = [layer.name for layer in found]
            known = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
            raise ConfigError(
                f"{type(self).__name__}'s layers must match at least one layer",
                ", ".join(patterns) or "no pattern",
                f"choose among {known}" if names else "give a model with linear layers",
            )
        return kept

    def names(self, model: nn.Module) -> list[str]:
        """What ``describe`` lists."""
        return [layer.name for layer in self.touched(model)]

    def __call__(self, model: nn.Module) -> Float[Tensor, ""]:
        return self.strength * self.value(model)

    def describe(self, model: nn.Module) -> str:
        """One line: the penalty, its strength and its layers."""
        return f"{type(self).__name__}({self.strength:g}) on {', '.join(self.names(model))}"

    def __add__(self, other: Penalty | Sum) -> Sum:
        return Sum((self, *(other.parts if isinstance(other, Sum) else (other,))))

    def state_dict(self) -> dict[str, Tensor]:
        """What it remembers between steps, so that a run that was cut off goes on bit for bit; most remember nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` gave.

        Raises:
            CheckpointError: where the state is another penalty's.
        """
        if state:
            raise CheckpointError(
                f"{type(self).__name__} remembers nothing", f"'{next(iter(state))}'", "resume with the same penalties"
            )


@dataclass(frozen=True)
class LayerPenalty(Penalty):
    """A penalty that is a sum over layers of ``term(W)``."""

    @abstractmethod
    def term(self, matrix: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
        """The penalty of one layer's matrix, differentiable."""

    def layer_term(self, layer: Touched) -> Float[Tensor, ""]:
        """The penalty of one layer."""
        return self.term(layer.matrix)

    def value(self, model: nn.Module) -> Float[Tensor, ""]:
        return torch.stack([self.layer_term(layer) for layer in self.touched(model)]).sum()


@dataclass(frozen=True)
class Sum:
    """Several penalties added up."""

    parts: Sequence[Penalty]

    def __call__(self, model: nn.Module) -> Float[Tensor, ""]:
        return torch.stack([part(model) for part in self.parts]).sum()

    def describe(self, model: nn.Module) -> str:
        """One line a part."""
        return "\n".join(part.describe(model) for part in self.parts)

    def __add__(self, other: Penalty | Sum) -> Sum:
        return Sum((*self.parts, *(other.parts if isinstance(other, Sum) else (other,))))

    def state_dict(self) -> dict[str, Tensor]:
        """Each part's, under its number."""
        return {f"{i}.{key}": value for i, part in enumerate(self.parts) for key, value in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` gave."""
        load_parts(self.parts, state)


@runtime_checkable
class Remembers(Protocol):
    """Something with a memory that can be saved."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` gave."""
        ...


def load_parts(parts: Sequence[Remembers], state: Mapping[str, Tensor]) -> None:
    """Hand each part what stands under its number."""
    numbers = {str(i) for i in range(len(parts))}
    for key in state:
        if key.partition(".")[0] not in numbers:
            raise CheckpointError(
                f"the state must be that of {len(parts)} parts", f"'{key}'", "resume with the same ones"
            )
    for i, part in enumerate(parts):
        own = {key.removeprefix(f"{i}."): value for key, value in state.items() if key.startswith(f"{i}.")}
        part.load_state_dict(own)


def scaled_ratio(above: Float[Tensor, "*shape"], below: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """above / below, and 0 with a gradient of 0 where ``below`` is 0."""
    return above / torch.where(below > 0, below, 1.0)
