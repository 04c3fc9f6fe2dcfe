"""Pinch points: the layers of a network, ranked by their share of what attacks gain over random noise.

A layer's excess is how much more it raises the relative size of an adversarial perturbation than that of a random one as
long, max(0, gain - random gain), both mean logs (``mechanism.gains``). Its share is its excess over the sum of all. Along
a chain of layers the logs add up; in networks with branches the shares rank the layers by what was measured at each, and
are no proof of what the whole would lose without one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.attack import Threat
from pinchpoint.errors import ModelError
from pinchpoint.mechanism import LayerGain, gains
from pinchpoint.records import LayerProfile, PairBounds, PinchPoint, Profile, View

_MOST_ENERGY = 90
_SAME = 1.05
"""Factors below it are called "no more": the mean over some hundred samples is not more certain."""


@dataclass(frozen=True)
class Gains:
    """What a network's layers do to perturbations under one threat."""

    threat: Threat
    layers: tuple[LayerGain, ...]


def follow(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    x_adv: Float[Tensor, "batch *shape"],
    threat: Threat,
    *,
    k_share: float = 0.1,
    seed: int = 0,
) -> Gains:
    """Follow perturbations, and random ones beside them, through every layer. See ``mechanism.gains``.

    Raises:
        ModelError: where no perturbation or no layer can be followed.
    """
    return Gains(threat, tuple(gains(model, x, x_adv, norm=threat.norm, k_share=k_share, seed=seed)))


def pinch_points(profile: Profile, followed: Sequence[Gains], pairs: Sequence[PairBounds] = ()) -> list[PinchPoint]:
    """The layers by their share, the largest first; where shares are equal, in the order of the network.

    Where no layer is in excess, adversarial perturbations grow nowhere more than noise does. Then each layer counts by
    exp(gain), and ``why`` says so.

    Args:
        profile: of the model; with ``input_shape``, so that it knows the operator norms of convolutions.
        followed: what its layers do, under one threat or several; several are averaged.
        pairs: interlayer alignment, for ``neighbour``; the larger factor, where there is one in both norms.

    Raises:
        ModelError: where nothing was followed, or the layers are another model's.

    >>> import torch
    >>> from pinchpoint.measure import profile
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> x = torch.rand(8, 4)
    >>> points = pinch_points(profile(model), [follow(model, x, x + 0.1, Threat("linf", 0.1))])
    >>> [point.rank for point in points], round(sum(point.share for point in points), 9)
    ([1, 2], 1.0)
    """
    if not followed:
        raise ModelError("pinch points need perturbations that were followed", "none", "attack the model first")
    measured = {layer.name: layer for layer in profile.layers}
    found: dict[str, list[LayerGain]] = {}
    for one in followed:
        for layer in one.layers:
            found.setdefault(layer.name, []).append(layer)
    unknown = sorted(set(found) - set(measured))
    if unknown:
        raise ModelError("gains and profile must be those of one model", f"layer '{unknown[0]}'", "measure it anew")
    shares, excess = _shares({name: (_mean(own, "gain"), _mean(own, "random_gain")) for name, own in found.items()})
    factors = _factors(pairs)
    ranked = sorted(found, key=lambda name: -shares[name])
    return [
        _point(rank, measured[name], found[name], shares[name], excess, factors.get(name))
        for rank, name in enumerate(ranked, 1)
    ]


def _shares(logs: Mapping[str, tuple[float, float]]) -> tuple[dict[str, float], bool]:
    """Shares that sum to one, and whether they are shares of an excess."""
    over = {name: max(0.0, gain - random) for name, (gain, random) in logs.items()}
    excess = math.fsum(over.values()) > 0
    if not excess:
        top = max(gain for gain, _ in logs.values())
        over = {name: math.exp(gain - top) for name, (gain, _) in logs.items()}
    total = math.fsum(over.values())
    return {name: value / total for name, value in over.items()}, excess


def _point(
    rank: int, layer: LayerProfile, own: Sequence[LayerGain], share: float, excess: bool, neighbour: float | None
) -> PinchPoint:
    aligned = [one.alignment for one in own if one.alignment is not None]
    root = math.sqrt(min(layer.rows, layer.columns))
    gain, random = _mean(own, "gain"), _mean(own, "random_gain")
    return PinchPoint(
        rank=rank,
        layer=layer.name,
        kind=layer.kind,
        share=share,
        gain=gain,
        random_gain=random,
        amplification=_mean(own, "amplification"),
        alignment=math.fsum(aligned) / len(aligned) if aligned else None,
        alignment_baseline=own[0].baseline if aligned else None,
        neuron=1.0 - layer.neuron.residual,
        spectral=1.0 - layer.spectral.residual,
        stable_rank=layer.stable_rank,
        effective_rank=layer.effective_rank,
        operator_norm=layer.l2_upper,
        structure=layer.matrix_l2 * root / layer.frobenius if layer.frobenius > 0 else None,
        scale=layer.frobenius / root,
        neighbour=neighbour,
        why=_why(layer, gain, random, excess),
        advice=[],
    )


def _why(layer: LayerProfile, gain: float, random: float, excess: bool) -> str:
    """One sentence for somebody who has not read the paper."""
    ratio = math.exp(gain - random)
    if not excess:
        passed = f"passes on {math.exp(gain):.2g} times what it is given, and no layer gives attacks more than noise"
    elif ratio >= _SAME:
        passed = f"passes on {_times(ratio)} times what random noise of the same size would get"
    else:
        passed = "passes on no more of an attack than of random noise of the same size"
    count, of = _directions(layer.spectral)
    which = "direction" if of == 1 else "directions"
    return f"{layer.name} {passed}; {_MOST_ENERGY} % of its energy lies in {count} of {of} {which}."


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def _directions(spectral: View) -> tuple[int, int]:
    """How many of the singular values hold most of the sum of squares; interpolated where not all are on record."""
    values = np.interp(np.arange(1, spectral.n + 1), spectral.ranks, spectral.values)
    energy = np.cumsum(values**2)
    if energy[-1] == 0:
        return 0, spectral.n
    return int(np.searchsorted(energy, _MOST_ENERGY / 100 * energy[-1] * (1 - 1e-12))) + 1, spectral.n


def _factors(pairs: Sequence[PairBounds]) -> dict[str, float]:
    """min(1, A) of each layer with the one before it."""
    factors: dict[str, float] = {}
    for pair in pairs:
        if pair.reason is None:
            factors[pair.second] = max(pair.factor, factors.get(pair.second, 0.0))
    return factors


def _mean(own: Sequence[LayerGain], key: str) -> float:
    return math.fsum(getattr(one, key) for one in own) / len(own)
