"""What is done to the weights after each optimiser step: norms kept constant, or in a ball.

Interventions are callables on the model. ``first + second`` does one after the other; what they remember is saved and put
back with ``state_dict`` and ``load_state_dict``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pinchpoint.compress.penalties.base import load_parts
from pinchpoint.errors import CheckpointError, ConfigError, ModelError
from pinchpoint.measure.forward import check_weights
from pinchpoint.measure.layers import linear_modules, weight_matrix
from pinchpoint.measure.spectrum import frobenius_norm
from pinchpoint.measure.weights import offers_matrix

_FIRST_STEPS = 100


class Intervention(ABC):
    """Rescales linear layers. A module with ``weight_matrix()`` must be a product of its two-dimensional parameters: each
    takes its share of the factor.

    Args:
        model: whose layers they are.
        include_head: also the last one.

    Raises:
        ModelError: for a layer it cannot rescale, and when called on a model with other layers than the first one's.
    """

    rule: str

    def __init__(self, model: nn.Module, include_head: bool = True) -> None:
        check_weights(model)
        self.include_head = include_head
        self.names = {name for name, _ in self._modules(model)}
        for name, module in self._modules(model):
            factors(self.rule, name, module)

    @abstractmethod
    def scale(self, name: str, module: nn.Module) -> float:
        """What the layer's matrix is to be multiplied with."""

    def __call__(self, model: nn.Module) -> None:
        with torch.no_grad():
            for name, module in self._modules(model):
                if name not in self.names:
                    raise ModelError(
                        "the model must be the one the norms were taken from", f"layer '{name}'", "make anew"
                    )
                parts, scale = factors(self.rule, name, module), self.scale(name, module)
                if scale != 1.0:
                    for parameter in parts:
                        parameter.mul_(scale ** (1.0 / len(parts)))

    def __add__(self, other: Intervention | InTurn) -> InTurn:
        return InTurn((self, *(other.parts if isinstance(other, InTurn) else (other,))))

    def state_dict(self) -> dict[str, Tensor]:
        """What it remembers between steps."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` gave.

        Raises:
            CheckpointError: where it is that of other layers.
        """
        self._check_names(state, set())

    def _check_names(self, state: Mapping[str, Tensor], names: set[str]) -> None:
        if set(state) != names:
            wrong = sorted(set(state) ^ names)[0]
            raise CheckpointError(
                f"{type(self).__name__}'s state must be that of the same layers", f"'{wrong}'", "resume the same run"
            )

    def _modules(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        found = linear_modules(model)
        return found if self.include_head else found[:-1]


class ConstantFrobenius(Intervention):
    """Rescale every linear layer to the Frobenius norm it had when this object was made, times ``factor``.

    It separates structure from scale: a penalty can then change a layer's shape of spectrum, not its size (paper,
    motivating experiment), and a factor its size alone. Call it after each optimiser step. A layer of zeros stays zero.

    >>> model = nn.Sequential(nn.Linear(3, 2, bias=False))
    >>> keep = ConstantFrobenius(model)
    >>> before = model[0].weight.norm().item()
    >>> _ = model[0].weight.data.mul_(7.0)
    >>> keep(model)
    >>> abs(model[0].weight.norm().item() - before) < 1e-6
    True
    """

    rule = "constant Frobenius norms need layers that own their weights"

    def __init__(self, model: nn.Module, include_head: bool = True, factor: float = 1.0) -> None:
        super().__init__(model, include_head)
        self.norms = {name: check_factor(factor) * _norm(module) for name, module in self._modules(model)}

    def scale(self, name: str, module: nn.Module) -> float:
        norm = _norm(module)
        return self.norms[name] / norm if norm > 0 else 1.0

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.tensor(norm, dtype=torch.float64) for name, norm in self.norms.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._check_names(state, set(self.norms))
        self.norms = {name: float(norm) for name, norm in state.items()}


class FrobeniusBall(Intervention):
    """Keep ||W||_F <= radius in every linear layer: the nearest point of the ball, up to rounding.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = model[0].weight.data.fill_(3.0)
    >>> FrobeniusBall(model, radius=1.0)(model)
    >>> model[0].weight.data.tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """

    rule = "norms in a ball need layers that own their weights"

    def __init__(self, model: nn.Module, radius: float, include_head: bool = True) -> None:
        super().__init__(model, include_head)
        self.radius = _checked(radius)

    def scale(self, name: str, module: nn.Module) -> float:
        norm = _norm(module)
        return self.radius / norm if norm > self.radius else 1.0


class SpectralBall(Intervention):
    """Keep ||W||_2 <= radius, nearly, by W -> W min(1, radius / s), with s from power iteration (Gouk et al. 2021).

    What holds: s = ||W v||_2 for a unit vector v is at most ||W||_2. So a layer inside the ball is never changed, and after
    a call ||W||_2 <= radius ||W||_2 / s: above the radius by at most the relative error of s. v is kept from call to call
    and starts from 100 iterations, so that error is soon that of rounding while weights move slowly beside the gap
    between the two largest singular values; nothing is certified (``measure.operator_norm_upper`` does that). Scaling is
    not the nearest point, which would change the largest singular values alone; it costs two products with a vector.

    Convolutions are taken as their out x (in * kernel) matrices. For stride 1 the operator's norm is at most
    sqrt(number of kernel positions) times that (Tsuzuku et al. 2018, Lemma 1).

    Args:
        model: whose layers they are.
        radius: positive.
        include_head: also the last layer.
        steps: power iterations a call.

    Source: H. Gouk, E. Frank, B. Pfahringer, M. Cree, Regularisation of Neural Networks by Enforcing Lipschitz
    Continuity, Machine Learning 110, 2021.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> model[0].weight.data = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> SpectralBall(model, radius=1.5)(model)
    >>> (1000 * model[0].weight.data).round().tolist()
    [[1500.0, 0.0], [0.0, 500.0]]
    """

    rule = "norms in a ball need layers that own their weights"

    def __init__(self, model: nn.Module, radius: float, include_head: bool = True, steps: int = 2) -> None:
        super().__init__(model, include_head)
        self.radius = _checked(radius)
        if steps < 1:
            raise ConfigError("power iteration takes one step or more", steps, "use 2")
        self.steps = steps
        self.vectors: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, module in self._modules(model):
                matrix = _matrix(module)
                start = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
                self.vectors[name] = _power(matrix, start.to(matrix), _FIRST_STEPS)[1]

    def scale(self, name: str, module: nn.Module) -> float:
        matrix = _matrix(module)
        norm, self.vectors[name] = _power(matrix, self.vectors[name].to(matrix), self.steps)
        if not math.isfinite(norm):
            raise ModelError("weights must be finite", f"NaN or infinite values in '{name}'", "lower the learning rate")
        return self.radius / norm if norm > self.radius else 1.0

    def state_dict(self) -> dict[str, Tensor]:
        return {name: vector.clone() for name, vector in self.vectors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._check_names(state, set(self.vectors))
        self.vectors = {name: vector.clone() for name, vector in state.items()}


@dataclass(frozen=True)
class InTurn:
    """Several interventions, one after the other. What the last one promises holds; an earlier one's promise holds where
    those after it only shrink, as the balls do."""

    parts: Sequence[Intervention]

    def __call__(self, model: nn.Module) -> None:
        for part in self.parts:
            part(model)

    def __add__(self, other: Intervention | InTurn) -> InTurn:
        return InTurn((*self.parts, *(other.parts if isinstance(other, InTurn) else (other,))))

    def state_dict(self) -> dict[str, Tensor]:
        """Each part's, under its number."""
        return {f"{i}.{key}": value for i, part in enumerate(self.parts) for key, value in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` gave."""
        load_parts(self.parts, state)


def check_factor(factor: float) -> float:
    """A factor of norms as it is.

    Raises:
        ConfigError: where it is none.
    """
    if not 0 < factor < math.inf:
        raise ConfigError("a factor of norms must be positive and finite", factor, "use 1 to leave them as they are")
    return factor


def _checked(radius: float) -> float:
    if not 0 < radius < math.inf:
        raise ConfigError("the radius of a ball must be positive and finite", radius, "try 1")
    return radius


def _power(matrix: Tensor, vector: Tensor, steps: int) -> tuple[float, Tensor]:
    """||W v||_2 <= ||W||_2 after so many steps of v -> W'W v, and v, of unit length; zero for a matrix of zeros."""
    vector = vector / vector.norm()
    for _ in range(steps):
        image = matrix.mT @ (matrix @ vector)
        length = image.norm()
        vector = torch.where(length > 0, image / torch.where(length > 0, length, 1.0), vector)
    return float((matrix @ vector).norm()), vector


def _matrix(module: nn.Module) -> Tensor:
    matrix = weight_matrix(module)
    assert matrix is not None  # linear_modules lists only modules that have one
    return matrix


def _norm(module: nn.Module) -> float:
    """Squares of float32 fit into float64 unscaled, which is ten times as fast; weights that are not finite are refused."""
    matrix = _matrix(module)
    norm = float(torch.linalg.vector_norm(matrix.detach(), dtype=torch.float64))
    return norm if matrix.dtype != torch.float64 and math.isfinite(norm) else frobenius_norm(matrix)


def factors(rule: str, name: str, module: nn.Module) -> list[nn.Parameter]:
    """The two-dimensional parameters whose product the layer's matrix is; the weight, where it is no product.

    Raises:
        ModelError: with this rule, where the layer computes its weight.
    """
    own = dict(module.named_parameters())
    if any(parametrize.is_parametrized(part) for part in module.modules()):
        found = []
    elif offers_matrix(module):
        found = [parameter for parameter in own.values() if parameter.ndim == 2]
    else:
        found = [own[key] for key in ("weight", "weight_orig") if key in own]  # weight_orig is under a pruning mask
    if not found:
        raise ModelError(rule, f"{type(module).__name__} at '{name}'", "remove the parametrisation")
    return found
