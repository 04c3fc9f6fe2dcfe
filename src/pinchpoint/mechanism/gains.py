"""How much each layer raises an adversarial perturbation, beside a random one of the same length.

With r(z, a) = ||z_adv - z||_2 / ||z||_2, the relative size of a perturbation, a layer's log gain is the mean over samples of
log(r at its output / r at its input). Along a chain of layers the gains of all that stands between two points add up. What
the layer does to adversarial perturbations beyond what it does to random ones is where the adversary gains.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.attack.gradient import eval_mode
from pinchpoint.attack.threat import own_draws
from pinchpoint.errors import ModelError
from pinchpoint.measure.compressibility import dominant_terms
from pinchpoint.measure.layers import Layer, layers
from pinchpoint.mechanism.directions import baseline
from pinchpoint.mechanism.dominant_energy import Inside, inside
from pinchpoint.mechanism.layer_hooks import Seen, sample_dimension, samples_first, watching
from pinchpoint.mechanism.pairs import changed_pairs
from pinchpoint.records import ThreatNorm
from pinchpoint.utils.model_output import called

_NUMBERS = 2**20
"""Input numbers that go through the model at a time: 340 CIFAR images, 6 of ImageNet's, in memory for any of them."""


@dataclass(frozen=True)
class LayerGain:
    """What one linear operator does to perturbations.

    Attributes:
        name, kind: of the layer, as in ``measure.layers``.
        gain: mean log gain of the adversarial perturbations.
        random_gain: that of random ones.
        source_amplification, amplification: mean ||z_adv - z||_2 / ||z||_2 at its input and at its output.
        k: number of dominant directions looked at.
        alignment: mean share of the perturbation's length at the layer's input in those directions. A convolution's
            input is taken in patches as the kernel sees them, tokens one by one, and each counts by its energy. None
            where the layer's input is no such thing (transposed convolutions).
        baseline: what random directions have, sqrt(k / d).
        samples: how many samples have a finite gain; the others are zero somewhere, and left out.
    """

    name: str
    kind: str
    gain: float
    random_gain: float
    source_amplification: float
    amplification: float
    k: int
    alignment: float | None
    baseline: float
    samples: int


def gains(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    x_adv: Float[Tensor, "batch *shape"],
    *,
    norm: ThreatNorm = "linf",
    k_share: float = 0.1,
    seed: int = 0,
) -> list[LayerGain]:
    """Gains of every linear operator that the model's forward pass shows, in the order in which they act.

    Norms per sample are all that is kept. A layer that acts several times in one pass is taken as one with all its inputs
    side by side. Left out are layers that do not act, that act on something no sample owns, or whose gain is not finite
    for any sample; embeddings; projections that are bare parameters.

    Args:
        model: any module, run in eval mode.
        x, x_adv: inputs and perturbed inputs. Pairs that are equal are left out.
        norm: in which the adversary was bounded. Random perturbations are random signs for ``linf`` and normal
            otherwise, each as long in l_2 as the sample's adversarial one; they may leave the box.
        k_share: k = ceil(k_share * min(h, d)) dominant directions for each layer.
        seed: of the random perturbations.

    Raises:
        ModelError: where no pair differs or no layer has a gain, and whatever ``measure.layers`` refuses.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.diag(torch.tensor([2.0, 1.0])))
    >>> x = torch.tensor([[0.0, 1.0]])
    >>> round(gains(model, x, x + torch.tensor([[0.1, 0.0]]))[0].gain, 4)  # log 2: the input itself keeps its length
    0.6931
    """
    x, x_adv = changed_pairs(x, x_adv)
    with eval_mode(model), torch.no_grad():
        found = [layer for layer in layers(model) if layer.diagonal is None]
        sums = _find(model, found, x, k_share, seed)
        random = _as_long(x_adv - x, norm, torch.Generator().manual_seed(seed))
        for rows in torch.arange(len(x)).split(max(1, _NUMBERS // (3 * x[0].numel()))):
            clean, moved = x[rows], x_adv[rows]
            with watching(model, [one.layer for one in sums.values()], _adding(sums, len(rows))):
                called(model, torch.cat([clean, moved, clean + random[rows]]))
            for one in sums.values():
                one.close()
    results = [result for one in sums.values() if (result := one.result()) is not None]
    if not results:
        raise ModelError("gains need a layer that acts on what it is given", "none", "give a model with linear layers")
    return results


def _as_long(delta: Tensor, norm: ThreatNorm, noise: torch.Generator) -> Tensor:
    """Random perturbations, each as long as that sample's."""
    draw = own_draws(delta, noise, uniform=norm == "linf").double().to(delta.device)
    draw = (torch.where(draw < 0, -1.0, 1.0) if norm == "linf" else draw).double()
    length = _norms(delta) / _norms(draw)
    return (draw * length.reshape(-1, *(1,) * (delta.ndim - 1))).to(delta)


def _norms(z: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(z.flatten(1), dim=1, dtype=torch.float64)
    return norms


@dataclass
class _Sums:
    """Squared norms of one layer, sample by sample: columns are clean, adversarial change, random change."""

    layer: Layer
    dims: tuple[int, int]
    inside: Inside | None
    k: int
    broken: bool = False
    now: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, key: str, squares: Tensor) -> None:
        self.now[key] = self.now[key] + squares if key in self.now else squares

    def close(self) -> None:
        """The pass is over: what it added belongs to the next samples."""
        for key, squares in self.now.items():
            self.whole.setdefault(key, []).append(squares.cpu())
        self.now = {}

    def result(self) -> LayerGain | None:
        if self.broken or not self.whole:
            return None
        source, target = (torch.cat(self.whole[key]).sqrt() for key in ("source", "target"))
        before, after = source[:, 1:] / source[:, :1], target[:, 1:] / target[:, :1]
        logs = (after / before).log()
        finite = torch.isfinite(logs).all(1) & torch.isfinite(before).all(1) & torch.isfinite(after).all(1)
        if not bool(finite.any()):
            return None
        aligned = None
        if self.inside is not None:
            part, everything = torch.cat(self.whole["inside"]).T
            shares = torch.where(everything > 0, part / torch.where(everything > 0, everything, 1.0), 0.0)
            aligned = float(shares.clamp(0.0, 1.0).sqrt().mean())
        gain, random_gain = logs[finite].mean(0).tolist()
        return LayerGain(
            name=self.layer.name,
            kind=self.layer.kind,
            gain=gain,
            random_gain=random_gain,
            source_amplification=float(before[finite, 0].mean()),
            amplification=float(after[finite, 0].mean()),
            k=self.k,
            alignment=aligned,
            baseline=baseline(self.k, self.layer.shape[1]),
            samples=int(finite.sum()),
        )


def _find(model: nn.Module, found: list[Layer], x: Tensor, k_share: float, seed: int) -> dict[str, _Sums]:
    """The layers that act, in that order, and where samples stand in what they are given: a pass of three inputs."""
    noise = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(seed)).to(x)
    other = x[:1] + noise * x[:1].abs().mean().clamp_min(1e-3)
    dims: dict[str, set[tuple[int | None, int | None]]] = {}

    def seen(layer: Layer, source: Tensor, target: Tensor) -> None:
        dims.setdefault(layer.name, set()).add((sample_dimension(source), sample_dimension(target)))

    with watching(model, found, seen):
        called(model, torch.cat([x[:1], other, x[:1]]))
    by_name = {layer.name: layer for layer in found}
    sums = {}
    for name, places in dims.items():
        (source, target), layer = next(iter(places)), by_name[name]
        if len(places) == 1 and source is not None and target is not None:
            k = dominant_terms(k_share, min(layer.shape))
            sums[name] = _Sums(layer, (source, target), inside(layer, k, x), k)
    return sums


def _adding(sums: dict[str, _Sums], samples: int) -> Seen:
    """Adds up squared norms of what the layers are given and give: clean, adversarial and random ones one after another."""

    def seen(layer: Layer, source: Tensor, target: Tensor) -> None:
        one = sums[layer.name]
        for key, tensor, dim in zip(("source", "target"), (source, target), one.dims, strict=True):
            rows = samples_first(tensor, dim, 3 * samples)
            if rows is None:
                one.broken = True
                return
            clean, *moved = rows.split(samples)
            one.add(key, torch.stack([_norms(part).square() for part in (clean, *(part - clean for part in moved))], 1))
            if key == "source" and one.inside is not None:
                one.add("inside", torch.stack(one.inside(moved[0] - clean), 1))

    return seen
