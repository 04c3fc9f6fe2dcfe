"""What must be true of a model before it is made smaller."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pinchpoint.errors import ModelError
from pinchpoint.measure.control_flow import check_decisions
from pinchpoint.measure.forward import check_forward, check_weights, own_dtype
from pinchpoint.measure.shapes import forward_pass
from pinchpoint.measure.weights import computed_tensors


def check_compressible(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Refuse a model that does not run, that decides by values, or that answers a sample differently from call to call:
    what one run tells of such a model does not hold for the next.

    Args:
        model: any module; stays as it is.
        input_shape: of one input, without the batch.

    Raises:
        ModelError: naming what is wrong.

    >>> check_compressible(nn.Linear(3, 2), (3,))
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a model to be made smaller must be made of modules", "a scripted one", "take it before it is scripted"
        )
    check_weights(model)
    if not any(parameter.is_floating_point() for parameter in model.parameters()):
        raise ModelError(
            "a model must have weights to be made smaller",
            "no real parameters",
            "give the network before it is quantised",
        )
    check_finite(model)
    tokens = forward_pass(model, input_shape).tokens
    copied = copy.deepcopy(model, computed_tensors(model)).eval()
    if own_dtype(copied) in (torch.float16, torch.bfloat16):
        copied.float()  # not every operation knows half precision
    device = next((tensor.device for tensor in copied.parameters()), torch.device("cpu"))
    if tokens:
        check_decisions(copied, torch.zeros((1, *input_shape), dtype=torch.long, device=device))
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((4, *input_shape), generator=generator).to(device=device, dtype=own_dtype(copied))
    check_decisions(copied, x[:1])
    check_forward(_Answers(copied), x)


def check_finite(model: nn.Module) -> None:
    """Refuse weights that are NaN or infinite: they have no size.

    >>> check_finite(nn.Linear(3, 2))
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError("weights must be finite", f"NaN or infinite values in '{name}'", "give another checkpoint")


def tied(model: nn.Module) -> set[int]:
    """``id`` of each parameter that several modules hold.

    >>> encoder, decoder = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> decoder.weight = encoder.weight
    >>> tied(nn.Sequential(encoder, decoder)) == {id(encoder.weight)}
    True
    """
    holders = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    return {parameter for parameter, count in holders.items() if count > 1}


def answers(outputs: object) -> list[Tensor]:
    """The tensors of what a model returns: one, several, or in a mapping.

    >>> [len(answer) for answer in answers((torch.zeros(2), {"more": torch.zeros(3)}))]
    [2, 3]
    """
    leaves = tree_leaves(dict(outputs) if isinstance(outputs, Mapping) else outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


class _Answers(nn.Module):
    """A model whose answers stand beside one another, a row a sample."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        tensors = answers(self.model(x))
        if not tensors:
            raise ModelError("a model must return tensors", "an answer without any", "return its logits")
        return torch.cat([tensor.reshape(len(x), -1) for tensor in tensors if tensor.is_floating_point()], 1)
