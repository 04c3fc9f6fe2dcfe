"""Factorising a network: its layers replaced by low-rank ones, by truncated SVD or for training from scratch, and back.

Every function returns a new model; the one given stays as it is.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pinchpoint.compress.checks import check_compressible, tied
from pinchpoint.compress.lowrank import LowRank, check_rank, truncate, untrained
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.measure.compressibility import k_for_residual
from pinchpoint.measure.forward import check_weights
from pinchpoint.measure.layers import linear_modules, matrix64
from pinchpoint.measure.ranks import rank_tolerance
from pinchpoint.measure.spectrum import singular_values
from pinchpoint.measure.weights import computed_tensors

_Old = TypeVar("_Old", bound=nn.Module)


@dataclass(frozen=True)
class Plan:
    """The rank of each layer to factorise, and why others are left as they are.

    Attributes:
        ranks: by the layer's name.
        left: reasons, by the layer's name.
        before, after: how many numbers the model stores, before and after.
    """

    ranks: dict[str, int]
    left: dict[str, str]
    before: int
    after: int


def plan(
    model: nn.Module,
    *,
    rank: int | None = None,
    energy: float | None = None,
    residual: float | None = None,
    layers: str | Sequence[str] = "*",
    include_head: bool = False,
    input_shape: tuple[int, ...] | None = None,
) -> Plan:
    """Choose a rank for every layer, in one of three ways. Nothing is changed.

    Seen are ``nn.Linear`` and ``nn.Conv2d``. A layer is left as it is where its rank would save no multiplications.

    Args:
        model: any module.
        rank: the same for all.
        energy: the smallest rank that keeps this share of ||W||_F^2, in (0, 1].
        residual: the smallest rank that leaves out at most this share of the sum of the singular values, in [0, 1): the
            spectral residual of q = 1 (paper, definition 2.1).
        layers: patterns of names, as in a shell; ``layer3.*`` takes all layers below layer3.
        include_head: also the last layer, which gives the logits.
        input_shape: of one input, without the batch: where given, a model that decides by values, or whose answers depend
            on the batch, on chance or on earlier calls, is refused.

    Raises:
        ConfigError: where not exactly one of the three is given, it is out of range, or a pattern matches no layer.
        ModelError: where no layer can be factorised, one has hooks or a parametrisation, or weights are not finite or
            do not exist.

    >>> network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> chosen = plan(network, rank=8)
    >>> chosen.ranks, chosen.left, chosen.before - chosen.after
    ({'0': 8, '2': 8}, {'4': 'it is the head'}, 6144)
    """
    check_weights(model)
    if input_shape is not None:
        check_compressible(model, input_shape)
    choose, shared = _choice(rank, energy, residual), tied(model)
    wanted = _matching(model, (layers,) if isinstance(layers, str) else layers)
    head = linear_modules(model)[-1][0]
    ranks: dict[str, int] = {}
    left: dict[str, str] = {}
    saved = 0
    for name, module in wanted:
        reason = "it is the head" if name == head and not include_head else _unfit(name, module, shared)
        if reason is not None:
            left[name] = reason
            continue
        assert isinstance(module, nn.Linear | nn.Conv2d)
        with _of_layer(name):
            found = choose(module)
        h, d = _shape(module)
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        if found * (h + groups * d) < h * d:  # multiplications at each position
            ranks[name] = found
            saved += h * d - found * (h + d)
        else:
            left[name] = f"rank {found} saves nothing in a {h} x {d} layer" + f" of {groups} groups" * (groups > 1)
    if not ranks:
        name, reason = next(iter(left.items()))
        raise ModelError(
            "factorising must change at least one layer", f"none ('{name}': {reason})", "choose a lower rank"
        )
    before = sum(parameter.numel() for parameter in model.parameters())
    return Plan(ranks, left, before, before - saved)


def factorize(
    model: nn.Module,
    *,
    rank: int | None = None,
    energy: float | None = None,
    residual: float | None = None,
    ranks: Mapping[str, int] | None = None,
    layers: str | Sequence[str] = "*",
    include_head: bool = False,
    input_shape: tuple[int, ...] | None = None,
) -> nn.Module:
    """A copy of the model whose layers are replaced by their truncated SVD, in the ways ``plan`` offers.

    Args:
        model: any module.
        rank, energy, residual, layers, include_head, input_shape: see ``plan``.
        ranks: instead of all these, the rank of each layer by its name; every layer named is replaced.

    Raises:
        ConfigError: see ``plan``.
        ModelError: see ``plan``; also for a name in ``ranks`` that is no such layer, and a rank above the layer's.

    >>> small = factorize(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), rank=4)
    >>> small[0]
    LowRankLinear(in_features=64, out_features=32, rank=4)
    """
    if ranks is None:
        chosen = plan(
            model,
            rank=rank,
            energy=energy,
            residual=residual,
            layers=layers,
            include_head=include_head,
            input_shape=input_shape,
        )
        ranks = chosen.ranks
    elif [rank, energy, residual] != [None] * 3:
        raise ConfigError("ranks by name stand alone", "another target beside them", "leave one out")
    return _replaced(model, _checked(model, ranks), lambda name, layer: truncate(layer, ranks[name]))


def lowrank_like(model: nn.Module, ranks: Mapping[str, int], *, seed: int = 0) -> nn.Module:
    """A copy with low-rank layers of these ranks whose weights are new, drawn from the seed: for training from scratch.

    Everything else keeps its weights. On a model of the meta device it gives the architecture alone, into which a state
    dict of ``factorize(model, ranks=ranks)`` fits.

    Raises:
        ModelError: for a name that is no fully connected layer or convolution, and a rank above the layer's.

    >>> with torch.device("meta"):
    ...     lowrank_like(nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU()), {"0": 4})[0].weight.shape
    torch.Size([16, 8, 3, 3])
    """

    def new(name: str, layer: nn.Linear | nn.Conv2d) -> nn.Module:
        here = layer.weight.device
        return untrained(layer, ranks[name], device="meta" if here.type == "meta" else "cpu").to(here)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _replaced(model, _checked(model, ranks), new)


def merge(model: nn.Module) -> nn.Module:
    """A copy with plain layers again, each with the matrix A B.

    >>> dense = merge(factorize(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), rank=2))
    >>> dense[0], int(torch.linalg.matrix_rank(dense[0].weight))
    (Linear(in_features=6, out_features=5, bias=True), 2)
    """
    low = {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}
    return _replaced(model, low, lambda _, layer: layer.dense())


def _choice(rank: int | None, energy: float | None, residual: float | None) -> Callable[[nn.Module], int]:
    """How a layer's rank is chosen."""
    given = {"rank": rank, "energy": energy, "residual": residual}
    said = [name for name, value in given.items() if value is not None]
    if len(said) != 1:
        raise ConfigError(
            "factorising needs one of rank, energy and residual", " and ".join(said) or "none", "give exactly one"
        )
    if rank is not None:
        if rank < 1:
            raise ConfigError("a rank must be one or more", rank, "choose a higher one")
        return lambda module: rank
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError("an energy to keep lies in (0, 1]", energy, "try 0.9")
    if residual is not None and not 0 <= residual < 1:
        raise ConfigError("a target residual lies in [0, 1)", residual, "try 0.1")
    left_out, q = (math.sqrt(1.0 - energy), 2.0) if energy is not None else (residual or 0.0, 1.0)
    return lambda module: int(k_for_residual(_spectrum(module), left_out, q))


def _spectrum(module: nn.Module) -> Float[Tensor, "r"]:
    """Singular values, as ``measure.profile`` has them: what is rounding counts as zero."""
    matrix = matrix64(module)
    assert matrix is not None
    sigma = singular_values(matrix)
    return torch.where(sigma > rank_tolerance(matrix.shape[0], matrix.shape[1], torch.float64) * sigma[0], sigma, 0.0)


def _matching(model: nn.Module, patterns: Sequence[str]) -> list[tuple[str, nn.Module]]:
    found = linear_modules(model)
    if not patterns:
        raise ConfigError("factorising needs patterns of layers", "none", "leave them out for all layers")
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in found):
            near = f"use names such as '{found[0][0]}'" if found else "give a model with linear layers"
            raise ConfigError("every pattern of layers must match one", f"'{pattern}', which matches none", near)
    return [(name, module) for name, module in found if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _unfit(name: str, module: nn.Module, shared: Set[int]) -> str | None:
    """Why a layer cannot be replaced by one of low rank, where it cannot.

    Raises:
        ModelError: where more would be lost with it than its weights.
    """
    if isinstance(module, LowRank):
        return "it has low rank already"
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return f"{type(module).__name__} is neither nn.Linear nor nn.Conv2d"
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    if parametrize.is_parametrized(module) or any(hooks):
        found = "a parametrisation" if parametrize.is_parametrized(module) else "hooks (pruning masks are such)"
        remedy = "remove it first, or leave the layer out by its name"
        raise ModelError("factorising needs plain layers", f"{found} on '{name}'", remedy)
    if type(module) not in (nn.Linear, nn.Conv2d):
        return f"{type(module).__name__} may do more than nn.Linear or nn.Conv2d"
    if id(module.weight) in shared:
        return "it shares its weight with another layer"
    if not module.weight.is_floating_point():
        return "its weight is complex"
    return None if module.weight.numel() else "it has no weights"


def _checked(model: nn.Module, ranks: Mapping[str, int]) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers these ranks are for."""
    modules, shared = dict(model.named_modules(remove_duplicate=False)), tied(model)
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, rank in ranks.items():
        if name not in modules:
            raise ModelError("ranks must name layers of the model", f"'{name}', which is none", "check the names")
        module = modules[name]
        reason = _unfit(name, module, shared)
        if reason is not None or not isinstance(module, nn.Linear | nn.Conv2d):
            raise ModelError("ranks must name layers that can be factorised", f"'{name}': {reason}", "leave it out")
        with _of_layer(name):
            check_rank(rank, *_shape(module))
        found[name] = module
    return found


def _replaced(model: nn.Module, layers: Mapping[str, _Old], make: Callable[[str, _Old], nn.Module]) -> nn.Module:
    """A copy with other layers in the place of these, wherever the model holds them."""
    new: dict[int, object] = {}
    for name, layer in layers.items():
        with _of_layer(name):
            new[id(layer)] = make(name, layer)
    return copy.deepcopy(model, {**computed_tensors(model), **new})  # deepcopy takes what stands in its memo for copied


def _shape(layer: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    """h and d of its matrix."""
    return layer.weight.shape[0], layer.weight[0].numel()


@contextmanager
def _of_layer(name: str) -> Iterator[None]:
    """Errors say which layer they are about."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"layer '{name}': {error.rule}", error.value, error.remedy) from None
