"""Inputs and what an attack made of them: the one reader of such pairs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from pinchpoint.attack.samples import check_points
from pinchpoint.errors import DataError, ModelError


def check_pairs(
    x: Float[Tensor, "batch *shape"], x_adv: Float[Tensor, "batch *shape"]
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
    """Both, as attacks take inputs (``check_points``), of one shape, dtype and device.

    Raises:
        DataError: for inputs that are no such batches, or that do not belong together.
    """
    x, x_adv = check_points(x), check_points(x_adv)
    if x.shape != x_adv.shape:
        raise DataError(
            "there must be a perturbed input of the same shape for each input",
            f"shapes {tuple(x.shape)} and {tuple(x_adv.shape)}",
            "give both of the same samples",
        )
    return x, x_adv.to(x)


def changed_pairs(
    x: Float[Tensor, "batch *shape"], x_adv: Float[Tensor, "batch *shape"]
) -> tuple[Float[Tensor, "some *shape"], Float[Tensor, "some *shape"]]:
    """The pairs that differ.

    Raises:
        DataError: as ``check_pairs``.
        ModelError: where none does.

    >>> import torch
    >>> x = torch.zeros(3, 2)
    >>> changed_pairs(x, x + torch.tensor([[0.0], [0.5], [0.0]]))[1].tolist()
    [[0.5, 0.5]]
    """
    x, x_adv = check_pairs(x, x_adv)
    changed = (x_adv != x).flatten(1).any(1)
    if not bool(changed.any()):
        raise ModelError("at least one perturbed input must differ from the input", "none", "use a larger budget")
    return x[changed], x_adv[changed]
