"""The one gate that every certified number goes through: a finite number that nothing at hand refutes."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from pinchpoint.bound.methods.lower import changes, starting_points
from pinchpoint.bound.network.trace import Network
from pinchpoint.errors import ContradictionError, ModelError
from pinchpoint.records import Norm


def certified(upper: float, what: str, *, at_least: float = 0.0) -> float:
    """A certified upper bound, if it is one.

    Args:
        upper: the bound.
        what: it bounds.
        at_least: what two inputs reach.

    Raises:
        ModelError: where it is not finite.
        ContradictionError: where it is below what two inputs reach.

    >>> certified(2.0, "the l2 constant", at_least=1.5)
    2.0
    """
    if not math.isfinite(upper):
        raise ModelError(
            "a certified bound must be a number that float64 can hold",
            f"{upper} for {what}",
            "look for very large or very small weights, or bound a part of the network",
        )
    if not upper >= at_least:
        raise ContradictionError(
            "a certified bound must be no smaller than what two inputs reach",
            f"{what}: at most {upper:.17g}, and {at_least:.17g} is reached",
        )
    return upper


def check_pairs(network: Network, constants: Float[Tensor, "classes classes"], norm: Norm) -> None:
    """Refuse constants of differences of outputs that a few pairs of inputs refute, along the steepest directions.

    Raises:
        ContradictionError: where a difference of two outputs changes by more than its constant allows.
    """
    points = starting_points(network, None, most=2 if network.nodes[0].size <= 4096 else 1)
    for change, off, moved in changes(network, points, norm):
        reached = ((change[:, None] - change).abs() - 2.0 * off).cpu()
        excess = reached / moved - constants
        if bool((excess > 0).any()):
            row, column = divmod(int(excess.argmax()), len(constants))
            raise ContradictionError(
                "a certified bound must be no smaller than what two inputs reach",
                f"{norm} constant {float(constants[row, column]):.17g} of logits {row} and {column}, and "
                f"{float(reached[row, column]) / moved:.17g} is reached",
            )
