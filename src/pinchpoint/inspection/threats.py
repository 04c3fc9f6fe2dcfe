"""One threat against one model, judged piece by piece, so that there is an answer early and a sharper one later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pinchpoint.attack import Threat, standard_ensemble
from pinchpoint.attack.ensemble import Version
from pinchpoint.evaluate import robust_accuracy, smallest_eps
from pinchpoint.evaluate.verdict import Verdict
from pinchpoint.inspection.clock import Clock, until
from pinchpoint.inspection.shares import counted, share
from pinchpoint.records import BudgetPoint, Share

_NUMBERS = 2**19
"""Input numbers in one piece: 170 CIFAR images."""
_LEAST, _MOST = 16, 128
_POINTS, _BEYOND = 10, 2.0
"""Budgets of a curve, and its last one in units of the judged one."""


def piece(input_shape: Sequence[int]) -> int:
    """Samples attacked at a time.

    >>> piece((3, 32, 32)), piece((3, 224, 224))
    (128, 16)
    """
    size = 1
    for length in input_shape:
        size *= length
    return max(_LEAST, min(_MOST, _NUMBERS // size))


class Judging:
    """What is known about each sample under a threat. Samples are judged in order, so what is known is of the first ones.

    Args:
        model: returns logits, in eval mode.
        x, y: the samples.
        threat: ball and box.
        kept: of the first so many samples the attacked images are kept.
        radii: certified radii in the threat's norm, where there are some.
        seed: of the attacks.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, "batch"],
        threat: Threat,
        *,
        kept: int,
        radii: Float[Tensor, "batch"] | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.x, self.y, self.threat, self.radii, self.seed = model, x, y, threat, radii, seed
        self.fallen: Bool[Tensor, "batch"] = torch.zeros(len(x), dtype=torch.bool)
        self.smallest = torch.full((len(x),), torch.inf, dtype=torch.float64)
        self.attacked = x[:kept].clone()
        self.stage: list[str] = []
        self.sharpened = self.searched = 0
        self._size = piece(x.shape[1:])

    @property
    def judged(self) -> int:
        """Samples of which something is known."""
        return len(self.stage)

    def quickly(self, clock: Clock, most: int, reserve: float = 0.0) -> None:
        """Judge samples by the quick ensemble, ``most`` in all, while more than ``reserve`` seconds are left."""
        while self.judged < most:
            rows = slice(self.judged, min(self.judged + self._size, most))
            with until(clock, reserve, self.model):
                verdict = self._attack(rows, "quick")
            self.stage += verdict.stage
            self._take(rows, verdict)
            clock.say(self._so_far())

    def sharply(self, clock: Clock, reserve: float = 0.0) -> None:
        """Attack what the quick ensemble left by the standard one, in the same order."""
        while self.sharpened < self.judged:
            standing = [row for row in range(self.sharpened, self.judged) if self.stage[row] == "survived"]
            some = standing[: self._size // 4]
            if some:
                index = torch.tensor(some, device=self.x.device)
                with until(clock, reserve, self.model):
                    verdict = self._attack(index, "standard")
                for row, name in zip(some, verdict.stage, strict=True):
                    self.stage[row] = name
                self._take(index.cpu(), verdict)
            self.sharpened = some[-1] + 1 if len(some) < len(standing) else self.judged
            clock.say(self._so_far())

    def search(self, clock: Clock, reserve: float = 0.0, steps: int = 30) -> None:
        """Find the smallest budget at which each judged sample falls, for the curve; also what that finds counts."""
        eps_max = _BEYOND * self.threat.eps
        while self.searched < self.judged and eps_max > 0:
            rows = slice(self.searched, min(self.searched + self._size, self.judged))
            with until(clock, reserve, self.model):
                found, examples = smallest_eps(
                    self.model, self.x[rows], self.y[rows], self.threat.norm, eps_max, steps=steps, seed=self.seed
                )
            self.smallest[rows] = found.cpu()
            nearer = found <= self.threat.eps
            for place in torch.nonzero(nearer).flatten().tolist():
                row = rows.start + place
                if self.stage[row] == "survived":
                    self.stage[row], self.fallen[row] = "minimum-norm", True
                    if row < len(self.attacked):
                        self.attacked[row] = examples[place]
            self.searched = rows.stop

    def robust(self) -> Share:
        """The share of judged samples that stand."""
        return counted((~self.fallen[: self.judged]).tolist())

    def certified(self) -> Share | None:
        """The share of judged samples that no attack can change."""
        if self.radii is None:
            return None
        return counted(self._certified(self.threat.eps)[: self.judged].tolist())

    def curve(self) -> list[BudgetPoint]:
        """Robust and certified accuracy of the searched samples at rising budgets, the judged one among them."""
        count = self.searched
        if count == 0:
            return []
        smallest = torch.where(self.fallen, self.smallest.clamp_max(self.threat.eps), self.smallest)[:count]
        points = []
        for place in range(1, _POINTS + 1):
            eps = self.threat.eps * _BEYOND * place / _POINTS
            standing = int((smallest > eps).sum())
            certified = None if self.radii is None else float(self._certified(eps)[:count].double().mean())
            points.append(BudgetPoint(eps=eps, robust=share(standing, count), certified=certified))
        return points

    def settled(self) -> dict[str, int]:
        """Number of samples by what settled them."""
        return {name: self.stage.count(name) for name in dict.fromkeys(self.stage)}

    @property
    def name(self) -> str:
        """The attack that a sample had to survive."""
        if self.sharpened == self.judged:
            return "standard"
        return "quick" if self.sharpened == 0 else f"standard for the first {self.sharpened}, quick for the rest"

    def _certified(self, eps: float) -> Tensor:
        assert self.radii is not None
        radii = self.radii.cpu()
        return (radii > 0) & (radii >= eps)

    def _attack(self, rows: slice | Tensor, version: Version) -> Verdict:
        x, y = self.x[rows], self.y[rows]
        attacks = standard_ensemble(self.model, x, version=version, seed=self.seed)
        radii = None if self.radii is None else self.radii[rows]
        return robust_accuracy(self.model, x, y, self.threat, attacks=attacks, certified_radii=radii)

    def _take(self, rows: slice | Tensor, verdict: Verdict) -> None:
        self.fallen[rows] = verdict.fallen.cpu()
        index = torch.arange(len(self.x))[rows]
        mine = index < len(self.attacked)
        self.attacked[index[mine]] = verdict.adversarial[mine.to(verdict.adversarial.device)]

    def _so_far(self) -> str:
        one = self.robust()
        return f"{self.threat}: {one.value:.1%} of {one.of} samples stand"
