"""A perturbation's way through the fully connected layers of a model, as in the paper's section 4."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.attack.gradient import eval_mode
from pinchpoint.errors import ModelError
from pinchpoint.measure.compressibility import dominant_terms
from pinchpoint.measure.layers import linear_modules, weight_matrix
from pinchpoint.mechanism.directions import alignment, baseline
from pinchpoint.mechanism.pairs import changed_pairs
from pinchpoint.utils.model_output import called, check_module


@dataclass(frozen=True)
class LayerTrace:
    """One layer's part in a perturbation's way through the network.

    Attributes:
        name: the layer.
        k: number of dominant directions looked at.
        alignment: mean over samples of the perturbation's alignment at the layer's input.
        baseline: what random directions have.
        source_amplification: mean over samples of ||z_adv - z||_2 / ||z||_2, z the layer's input. Samples whose z is zero
            and moves have no finite value and are left out.
        amplification: the same at the layer's output.
    """

    name: str
    k: int
    alignment: float
    baseline: float
    source_amplification: float
    amplification: float


def trace(
    model: nn.Module, x: Float[Tensor, "batch *shape"], x_adv: Float[Tensor, "batch *shape"], *, k_share: float = 0.1
) -> list[LayerTrace]:
    """Follow perturbations through a model's fully connected layers, in the order they are called.

    Args:
        model: any module; fully connected (and low-rank) layers called on a (batch, d) matrix are looked at.
        x, x_adv: inputs and perturbed inputs. Pairs that are equal are left out.
        k_share: k = ceil(k_share * min(h, d)) dominant directions for each layer.

    Raises:
        ModelError: where the model has no such layer, no pair differs, or an amplification has no finite value because a
            representation is zero on every clean input.

    >>> model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    >>> [step.name for step in trace(model, torch.zeros(2, 4) + 0.5, torch.ones(2, 4))]
    ['0', '2']
    """
    x, x_adv = changed_pairs(x, x_adv)
    clean, moved = _activations(model, x), _activations(model, x_adv)
    if not clean:
        raise ModelError("a trace needs fully connected layers", "none", "give a model with nn.Linear layers")
    steps = []
    for name, (module, source, target) in clean.items():
        _, moved_source, moved_target = moved[name]
        matrix = weight_matrix(module)
        assert matrix is not None
        k = dominant_terms(k_share, min(matrix.shape))
        steps.append(
            LayerTrace(
                name=name,
                k=k,
                alignment=float(alignment(matrix, moved_source - source, k).mean()),
                baseline=baseline(k, matrix.shape[1]),
                source_amplification=_mean_change(source, moved_source, name),
                amplification=_mean_change(target, moved_target, name),
            )
        )
    return steps


def relative_change(z: Float[Tensor, "batch d"], z_adv: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
    """||z_adv - z||_2 / ||z||_2 for each sample, in float64; 0 where nothing changes, inf where zero becomes something.

    >>> relative_change(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]])).tolist()
    [0.2]
    """
    z, z_adv = z.detach().double(), z_adv.detach().double()
    change = torch.linalg.vector_norm(z_adv - z, dim=1)
    return torch.where(change > 0, change / torch.linalg.vector_norm(z, dim=1), 0.0)


def _mean_change(z: Tensor, z_adv: Tensor, name: str) -> float:
    changes = relative_change(z, z_adv)
    finite = changes[torch.isfinite(changes)]
    if len(finite) == 0:
        raise ModelError(
            "amplification needs a representation that is not zero",
            f"zero at the layer '{name}' for every clean input",
            "look for dead units",
        )
    return float(finite.mean())


def _activations(model: nn.Module, x: Tensor) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """Input and output of each fully connected layer, in the order of the calls."""
    check_module(model)
    seen: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
    handles = []
    for name, module in linear_modules(model):
        if isinstance(module, nn.modules.conv._ConvNd):
            continue

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            if inputs and inputs[0].ndim == 2 and inputs[0].layout == torch.strided:
                # what comes after may change the output in place
                seen[name] = (module, inputs[0].detach().clone(), output.detach().clone())

        handles.append(module.register_forward_hook(hook))
    try:
        with eval_mode(model), torch.no_grad():
            called(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return seen
