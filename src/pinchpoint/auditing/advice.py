"""What to do about pinch points, and what that should bring: a rule that a trial can prove wrong.

What dominates in a layer decides: a concentrated spectrum is spread by clipping, a rank that is low by design gets a floor,
a layer that is merely large goes into a Frobenius ball, pruning that was not targeted is done anew by equal residuals, and
what is flat already is left alone.

What each should bring says ``prediction``.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from pinchpoint.auditing.actions import Action, apply
from pinchpoint.auditing.prediction import REACHED, Curves, prediction
from pinchpoint.measure.layers import layers
from pinchpoint.measure.norms import operator_norms
from pinchpoint.measure.shapes import forward_pass
from pinchpoint.measure.spectrum import row_norms, singular_values
from pinchpoint.records import (
    Advice,
    BudgetPoint,
    LayerProfile,
    PinchPoint,
    Profile,
    Pruning,
    Share,
    ThreatNorm,
)

__all__ = ["advise", "apply"]

TREATED = 3
"""Pinch points that get an advice of their own: what comes after the third has seldom a tenth of the risk."""
CONCENTRATED = 1.5
"""A spectrum is concentrated where ||W||_2 is so many times that of random weights of the same shape and ||W||_F, which is
(1 + sqrt(r / max(h, d))) ||W||_F / sqrt(r), r = min(h, d) (the Marchenko-Pastur edge). Less is noise as much as form."""
CLIP = 2.0
"""Clip at twice the median singular value: where random weights have their largest, more or less (2.4 times the median for
square matrices, 1.3 for filters of nine times as many entries as there are filters)."""
LOW_RANK = 0.5
"""A rank is low by design where it is at most this share of min(h, d): rounding does not halve a rank."""
LARGE = 2.0
"""A layer is large where ||W||_F / sqrt(r) is so many times the median of all layers."""
WORTH = 0.95
"""A change that leaves more than this share of the operator norm is not worth a fine-tuning."""
FEW = 0.02
"""A share of units below which pruning is not worth its trouble."""


def advise(
    model: nn.Module,
    input_shape: tuple[int, ...],
    points: Sequence[PinchPoint],
    profile: Profile,
    curves: Mapping[ThreatNorm, Sequence[BudgetPoint]],
    eps: Mapping[ThreatNorm, float],
    *,
    clean: Share | None = None,
    pruning: Pruning | None = None,
    lipschitz: Mapping[ThreatNorm, Callable[[nn.Module], float | None]] | None = None,
    subject: str = "MODEL",
    data: str = "DATA",
) -> list[Advice]:
    """What to do, the largest predicted gain in robust accuracy first.

    Args:
        model: the one that was audited.
        input_shape: of one input, without the batch.
        points: its pinch points.
        profile: of the same model.
        curves: robust accuracy at rising budgets, by norm.
        eps: the judged budgets, by norm.
        clean: accuracy without attack: where the curves begin.
        pruning: how the model was pruned, where that is known (``compression.json`` has it).
        lipschitz: certified bounds of a network; given, each change's is computed.
        subject, data: names for the commands.

    >>> import torch
    >>> from pinchpoint.attack import Threat
    >>> from pinchpoint.auditing.pinch_points import follow, pinch_points
    >>> from pinchpoint.measure import profile
    >>> model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 2, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.diag(torch.tensor([9.0] + 15 * [1.0])))
    >>> x, threat = torch.rand(8, 16), Threat("linf", 0.1)
    >>> worst = torch.zeros(8, 16)
    >>> worst[:, 0] = 0.1
    >>> points = pinch_points(profile(model), [follow(model, x, x + worst, threat)])
    >>> advise(model, (16,), points, profile(model), {}, {})[0].title  # no curve, no prediction
    'Spread the singular values of 0'
    """
    if not points:
        return []
    known = _Known(model, input_shape, profile, Curves(curves, eps, clean), lipschitz or {}, subject, data)
    found = [known.about(point) for point in points[:TREATED]]
    if pruning is not None and pruning.allocation != "residual":
        found.append(known.prune_anew(pruning))
    if (limit := known.limit()) is not None:
        found.append(limit)
    return sorted(found, key=lambda advice: -_promised(advice))


@dataclass(frozen=True)
class _Known:
    model: nn.Module
    input_shape: tuple[int, ...]
    profile: Profile
    curves: Curves
    lipschitz: Mapping[ThreatNorm, Callable[[nn.Module], float | None]]
    subject: str
    data: str

    def about(self, point: PinchPoint) -> Advice:
        """One layer's advice."""
        layer = next(one for one in self.profile.layers if one.name == point.layer)
        side = min(layer.rows, layer.columns)
        random = 1.0 + math.sqrt(side / max(layer.rows, layer.columns))
        structure, scale = point.structure or 0.0, point.scale or 0.0
        typical = statistics.median(
            one.frobenius / math.sqrt(min(one.rows, one.columns)) for one in self.profile.layers
        )
        if layer.numerical_rank <= LOW_RANK * side and side > 1 and layer.numerical_rank > 0:
            rank = min(side, 2 * layer.numerical_rank)
            found = self._change(
                point,
                {"kind": "rank floor", "layer": layer.name, "rank": rank},
                f"Give {layer.name} rank {rank} instead of {layer.numerical_rank}",
                f"Its {layer.rows} x {layer.columns} matrix has rank {layer.numerical_rank}, so that all it passes on goes "
                f"through {layer.numerical_rank} directions; the same weight in {rank} lowers its largest singular value.",
            )
            if found is not None:
                return found
        if structure > CONCENTRATED * random:
            because = (
                f"Its largest singular value is {structure:.1f} times what equal ones would be, and "
                f"{structure / random:.1f} times the largest of random weights of the same size: few directions carry most "
                "of it, and what points there grows most."
            )
            for keep in (True, False):
                action = {"kind": "clip", "layer": layer.name, "factor": CLIP, "keep_frobenius": keep}
                found = self._change(point, action, f"Spread the singular values of {layer.name}", because)
                if found is not None:
                    return found
        if scale > LARGE * typical and not self._normalised(layer):
            found = self._change(
                point,
                {"kind": "frobenius ball", "layer": layer.name, "radius": layer.frobenius * typical / scale},
                f"Hold {layer.name} in a Frobenius ball",
                f"Its weights are {scale / typical:.1f} times as large as in the typical layer, and its spectrum is flat.",
            )
            if found is not None:
                return found
        return self._leave(point, structure / random)

    def prune_anew(self, pruning: Pruning) -> Advice:
        """Residual-targeted pruning of the network that was pruned otherwise."""
        worst = max(pruning.layers, key=lambda layer: layer.residual)
        action = self._pruned(pruning.met, pruning.unit)
        return Advice(
            id="prune anew",
            title="Prune the original again, by equal residuals",
            layers=worst.members,
            action=action,
            command=self._prune_command(action, "ORIGINAL"),
            because=(
                f"Its {pruning.unit} were pruned with the allocation {pruning.allocation}, which took {worst.residual:.0%} "
                f"of {worst.name}'s weight; taking the same share of every layer's weight leaves no bottleneck."
            ),
            predicted=[],
        )

    def limit(self) -> Advice | None:
        """Where to stop compressing; None where the network has one layer."""
        encoder = self.profile.layers[:-1]
        if not encoder:
            return None
        units, kept = (sum(getattr(one.neuron, key) for one in encoder) for key in ("n", "k_for_target"))
        ratio, target = round((units - kept) / units, 3), encoder[0].neuron.target
        half = self.curves.half()
        rest = "" if half is None else f" At {half[0]} {half[1]:.3g} half of clean accuracy is gone already."
        lost = f"the first {ratio:.1%} of the neurons and filters hold {target:.0%} of their layers' weight at most"
        if ratio < FEW:
            return Advice(
                id="stop",
                title="Compress no further",
                layers=[one.name for one in encoder],
                action={"kind": "leave"},
                command="",
                because=f"Every neuron counts: {lost}.{rest}",
                predicted=[],
            )
        action = self._pruned(ratio, "filters")
        how = (
            f"no layer loses more than {target:.0%} of its weight, so the accuracy is taken to stay within its interval"
        )
        return Advice(
            id="stop",
            title=f"Compress by {ratio:.1%} of the neurons and filters at most",
            layers=[one.name for one in encoder],
            action=action,
            command=self._prune_command(action, self.subject),
            because=f"Up to there little goes: {lost}; what comes after is not spare.{rest}",
            predicted=[*self.curves.robust(1.0, how), *self.curves.unchanged(how)],
        )

    def _change(self, point: PinchPoint, action: Action, title: str, because: str) -> Advice | None:
        """The advice, where the changed copy's operator norm is lower by enough."""
        changed = apply(self.model, action)
        before, after = self._norm(self.model, point.layer), self._norm(changed, point.layer)
        factor = after / before if before > 0 else 1.0
        if factor > WORTH:
            return None
        kind = str(action["kind"])
        if kind == "frobenius ball":
            share, how = 0.0, "scaling changes no relative size, so robust accuracy is taken to stay as it is"
        else:
            share = point.share
            how = (
                f"operator norm of {point.layer} times {factor:.3f} (from the weights), share of the risk "
                f"{point.share:.3f}: the measured curve at eps x {factor:.3f}^{point.share:.3f} = eps x "
                f"{factor**point.share:.3f} is the most there is to gain, and {REACHED:.0%} of it what was seen elsewhere"
            )
        predicted = self.curves.robust(factor**share, how)
        predicted += self.curves.unchanged("fine-tuning is taken to bring clean accuracy back into its interval")
        for norm, bound in self.lipschitz.items():
            old, new = bound(self.model), bound(changed)
            if old is not None and new is not None:
                sure = "certified for the changed copy, before fine-tuning"
                predicted.append(prediction("lipschitz", (norm, None), old, (new, new, new), sure))
        return Advice(
            id=f"{kind} {point.layer}",
            title=title,
            layers=[point.layer],
            action=dict(action),
            command=self._snippet(action),
            because=because,
            predicted=predicted,
        )

    def _leave(self, point: PinchPoint, over_random: float) -> Advice:
        return Advice(
            id=f"leave {point.layer}",
            title=f"Leave {point.layer} as it is",
            layers=[point.layer],
            action={"kind": "leave", "layer": point.layer},
            command="",
            because=(
                f"Its largest singular value is {over_random:.1f} times that of random weights of its size: there is no "
                "concentration to undo, so what attacks gain here lies in where they point, and adversarial training is the "
                "means against that."
            ),
            predicted=[],
        )

    def _norm(self, model: nn.Module, name: str) -> float:
        """||A||_2 of one layer: what some input reaches, to rounding for a matrix, to a fraction of a percent else."""
        layer = next(one for one in layers(model, input_shape=self.input_shape) if one.name == name)
        matrix = layer.matrix
        sigma = singular_values(matrix)
        return operator_norms(layer, matrix, row_norms(matrix), sigma).l2_lower or float(sigma[0])

    def _normalised(self, layer: LayerProfile) -> bool:
        """Whether a batch norm takes the layer's scale away again."""
        return layer.name in forward_pass(self.model, self.input_shape, find_folds=True).folds.values()

    def _pruned(self, ratio: float, unit: str) -> dict[str, object]:
        shape = list(self.input_shape)
        return {"kind": "prune", "ratio": ratio, "unit": unit, "allocation": "residual", "input_shape": shape}

    def _prune_command(self, action: Action, subject: str) -> str:
        parts = ["pinchpoint", "prune", subject, "--ratio", f"{action['ratio']:g}", "--unit", str(action["unit"])]
        return shlex.join([*parts, "--allocation", "residual", "--data", self.data, "--epochs", "3"])

    def _snippet(self, action: Action) -> str:
        return (
            "from pinchpoint.auditing.advice import apply\n"
            "from pinchpoint.models.sources.open_model import open_model\n"
            f"model = apply(open_model({self.subject!r}).model, {dict(action)!r})"
        )


def _promised(advice: Advice) -> float:
    """Mean predicted gain in robust accuracy; what promises none comes last, and leaving alone after that."""
    gained = [one.after - one.before for one in advice.predicted if one.metric == "robust_accuracy"]
    if not gained:
        return -1.0 if advice.action["kind"] == "leave" else -0.5
    return statistics.fmean(gained)
