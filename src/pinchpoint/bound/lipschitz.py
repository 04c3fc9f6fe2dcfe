"""Certified Lipschitz constants of a feed-forward network's encoder (paper, Theorem 3.2 without the alignment factors).

The model must be an ``nn.Sequential`` (nested ones are fine) of linear operators and modules known to be Lipschitz. A
module that is not known is named in the error, never guessed. A convolution's matricised norm is no operator norm, so
convolutions are refused here until they have certified norms of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import prune

from pinchpoint.bound.structure import structure_scale
from pinchpoint.errors import ModelError
from pinchpoint.measure.layers import HasMatrix, float64_copy, matrix64
from pinchpoint.measure.spectrum import EPS64, check_norm, inflate, operator_norm_upper, times_up
from pinchpoint.records import Norm

Method = Literal["tightest", "product", "structure"]

_ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Identity, nn.Flatten, nn.Dropout, nn.Hardtanh, nn.LeakyReLU)
"""Known exactly; all are 1-Lipschitz, except that a leaky ReLU may have a slope above 1."""

ASSUMPTIONS = (
    "the network is evaluated in exact arithmetic, in eval mode",
    "layer norms are float64 and inflated by their rounding error",
)


@runtime_checkable
class HasLipschitz(Protocol):
    """A module that knows its own constant; it must hold for every pair of inputs."""

    def lipschitz_constant(self, norm: Norm) -> float:
        """An upper bound on ||f(a) - f(b)|| / ||a - b|| in that norm."""
        ...


@dataclass(frozen=True)
class Lipschitz:
    """``lower <= true constant <= upper``. ``upper`` is certified under ``assumptions``; ``method`` says how."""

    norm: Norm
    lower: float
    upper: float
    method: Method
    seconds: float
    assumptions: tuple[str, ...]


def chain(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model as a list of modules applied one after the other.

    Raises:
        ModelError: where a module is not known to be Lipschitz, or has hooks that may change what it returns.
    """
    steps = list(_flatten("", model))
    for name, module in steps:
        if not (_is_linear(module) or isinstance(module, HasLipschitz) or _acts_as(module, *_ACTIVATIONS)):
            raise ModelError(
                "a Lipschitz bound needs a chain of fully connected layers and known 1-Lipschitz activations",
                f"{type(module).__name__} at '{name or 'the top level'}'",
                "bound a network without it, or give the module a lipschitz_constant(norm) method",
            )
    return steps


def encoder(model: nn.Module) -> tuple[nn.Sequential, nn.Module]:
    """Split a chain into encoder and head: logits = head(encoder(x)). The head is the last linear layer.

    The modules are shared with the model, not copied.
    """
    steps = chain(model)
    linear = [index for index, (_, module) in enumerate(steps) if _is_linear(module)]
    if not linear:
        raise ModelError("an encoder and a head need at least one linear layer", "none", "give a network")
    last = linear[-1]
    for name, module in steps[last + 1 :]:
        if not isinstance(module, nn.Identity | nn.Dropout):
            raise ModelError(
                "the last linear layer must give the logits",
                f"{type(module).__name__} at '{name}' after it",
                "return logits from the model",
            )
    return nn.Sequential(*(module for _, module in steps[:last])), steps[last][1]


def lipschitz(
    model: nn.Module,
    *,
    norm: Norm,
    method: Method = "tightest",
    inputs: Float[Tensor, "batch *shape"] | None = None,
) -> Lipschitz:
    """Bracket the Lipschitz constant of a chain of modules, from l_p to l_p.

    Args:
        model: an ``nn.Sequential``; give ``encoder(model)[0]`` for the paper's L_p.
        norm: ``linf`` or ``l2``.
        method: ``product`` of the exact layer norms; ``structure``, the product of Theorem 3.1's structure x scale;
            ``tightest``, the smallest of what is available.
        inputs: points at which a lower bound is sampled; without them ``lower`` is 0.

    Returns:
        ``Lipschitz``; ``upper`` holds for every pair of inputs. ``lower`` is the largest difference quotient found along
        the top directions of sampled Jacobians.

    Raises:
        ModelError: for modules that cannot be bounded, by name.

    Source: Barsbey et al. 2026, Theorem 3.2 with all alignment factors taken as 1.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> result = lipschitz(net, norm="l2", inputs=torch.ones(1, 2))
    >>> round(result.lower, 6), round(result.upper, 6), result.method
    (4.0, 4.0, 'product')
    """
    check_norm(norm)
    if method not in get_args(Method):
        raise ModelError(
            f"method must be one of {', '.join(get_args(Method))}", method, "leave it out for the tightest"
        )
    start = time.perf_counter()
    steps = chain(model)
    uppers: dict[Method, float] = {}
    if method in ("tightest", "product"):
        uppers["product"] = _product(steps, lambda matrix: operator_norm_upper(matrix, norm), norm)
    if method in ("tightest", "structure"):
        uppers["structure"] = _product(steps, lambda matrix: _structure_upper(matrix, norm), norm)
    best = min(uppers, key=lambda name: uppers[name])
    lower = 0.0 if inputs is None else sampled_lower(model, inputs, norm=norm)
    return Lipschitz(norm, lower, uppers[best], best, time.perf_counter() - start, ASSUMPTIONS)


def sampled_lower(model: nn.Module, inputs: Float[Tensor, "batch *shape"], *, norm: Norm) -> float:
    """A lower bound: the largest ||f(x + tv) - f(x)|| / ||tv|| over the inputs, v the top direction of the Jacobian at x.

    A difference quotient is below the true constant even where x lies on a kink, where autograd's Jacobian need not be.
    Evaluated in float64 and eval mode; the result is lowered by a bound on its own rounding error.

    Raises:
        ModelError: for modules that cannot be bounded, by name.
    """
    check_norm(norm)
    model = float64_copy(model)
    steps = [(module, _linf_factor(module)) for _, module in chain(model)]

    def function(point: Tensor) -> Tensor:
        out: Tensor = model(point[None])
        return out.flatten()

    best = 0.0
    for point in inputs.detach().double():
        jacobian = torch.func.jacrev(function)(point).flatten(1).detach()
        if norm == "l2":
            direction = torch.linalg.svd(jacobian, full_matrices=False).Vh[0]
        else:
            direction = torch.where(jacobian[jacobian.abs().sum(1).argmax()] >= 0, 1.0, -1.0).double()
        order = torch.inf if norm == "linf" else 2
        for step in (1e-3, -1e-3, 1e-1, -1e-1):
            other = point + step * direction.reshape(point.shape)
            moved = float(torch.linalg.vector_norm(other - point, order))
            if moved == 0.0:  # the input is so large that a step is lost in rounding
                continue
            (here, off_here), (there, off_there) = _with_rounding(steps, point), _with_rounding(steps, other)
            off = (off_here + off_there) * (1.0 if norm == "linf" else here.numel() ** 0.5)
            change = float(torch.linalg.vector_norm((there - here).flatten(), order)) - off
            best = max(best, change / inflate(moved, point.numel() + here.numel()))
    return best


def _linf_factor(module: nn.Module) -> float:
    """How much a module can enlarge a rounding error in its input; for A (B x) also one made between B and A."""
    own = _constant(module, lambda matrix: operator_norm_upper(matrix, "linf"), "linf")
    if not isinstance(module, HasMatrix):
        return own
    factors = [parameter for parameter in module.parameters() if parameter.ndim == 2]
    return max(own, times_up(*(operator_norm_upper(factor, "linf") for factor in factors)))


@torch.no_grad()
def _with_rounding(steps: list[tuple[nn.Module, float]], point: Tensor) -> tuple[Tensor, float]:
    """The output at a point, and by how much rounding can have moved any entry of it."""
    value, off = point[None], 0.0
    for module, factor in steps:
        before, value = value, module(value)
        size = factor * float(before.abs().max()) + float(value.abs().max())
        off = factor * off + 8.0 * (before.numel() + value.numel()) * EPS64 * size
    return value, off


def _structure_upper(matrix: Float[Tensor, "h d"], norm: Norm) -> float:
    # where Theorem 3.1 is an equality, rounding decides which of the two is larger
    return max(inflate(structure_scale(matrix, norm).bound, sum(matrix.shape)), operator_norm_upper(matrix, norm))


def _product(steps: list[tuple[str, nn.Module]], bound: Callable[[Tensor], float], norm: Norm) -> float:
    return times_up(*(_constant(module, bound, norm) for _, module in steps))


def _constant(module: nn.Module, bound: Callable[[Tensor], float], norm: Norm) -> float:
    """One step's constant."""
    if _is_linear(module):
        matrix = matrix64(module)
        assert matrix is not None
        return bound(matrix)
    if isinstance(module, HasLipschitz):
        constant = module.lipschitz_constant(norm)
        if not constant >= 0:
            raise ModelError(
                "lipschitz_constant(norm) must be zero or more", constant, f"correct {type(module).__name__}"
            )
        return inflate(constant, 1)
    return max(1.0, abs(module.negative_slope)) if isinstance(module, nn.LeakyReLU) else 1.0


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, HasMatrix) or _acts_as(module, nn.Linear)


def _acts_as(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether it is one of these kinds and computes what that kind does: a subclass may have its own forward."""
    if "forward" in vars(module):
        return False
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _flatten(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if any(not isinstance(hook, prune.BasePruningMethod) for hook in hooks):
        raise ModelError(
            "a Lipschitz bound needs modules whose output no hook can change",
            f"a forward hook on {type(module).__name__} at '{name or 'the top level'}'",
            "remove the hook",
        )
    if not _acts_as(module, nn.Sequential):
        yield name, module
        return
    for child_name, child in module._modules.items():  # named_children() would drop a module used twice
        if child is None:
            continue
        yield from _flatten(f"{name}.{child_name}" if name else child_name, child)
