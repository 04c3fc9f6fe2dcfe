"""One threat against one model, judged piece by piece, so that there is an answer early and a sharper one later."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pinchpoint.attack import Threat, standard_ensemble
from pinchpoint.attack.ensemble import Attack, Version
from pinchpoint.attack.gradient import graph_bytes
from pinchpoint.auditing.clock import Clock, TimeUp, until
from pinchpoint.auditing.intervals import counted, share
from pinchpoint.evaluate import attack_certified, default_attacks, loss_and_examples, robust_accuracy, smallest_eps
from pinchpoint.evaluate.certified import chosen
from pinchpoint.evaluate.verdict import Verdict
from pinchpoint.records import BudgetPoint, Share

_BYTES = 3 * 2**28
"""What the samples of one piece may keep for their gradients."""
_MOST = 128
_SAFE = 1.2
"""So much longer than those before the next samples may take."""
_FIRST = 4
"""The first samples of a kind are so many times fewer, where there is a budget: nobody knows yet what they take."""
_QUICK = 50
"""Steps of AutoPGD with cross-entropy in the quick ensemble."""
_PASSES = {
    "AutoPGD": 50,
    "search": 60,
    "quick": 250,
    "quick again": 250,
    "standard": 5000,
    "standard again": 5000,
}
"""Passes through the model, forward and back, that a sample takes which withstands; known before it was tried."""
_POINTS, _BEYOND = 10, 2.0
"""Budgets of a curve, and its last one in units of the judged one."""


def piece(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> int:
    """Samples attacked at a time: a power of two that memory has room for.

    >>> small, large = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 224, 224)
    >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU())
    >>> piece(model, small), piece(model, large)
    (128, 16)
    """
    room = max(1, min(_MOST, _BYTES // max(1, graph_bytes(model, x))))
    return 1 << (room.bit_length() - 1)


class Judging:
    """What is known about each sample under a threat. Samples are judged in order, so what is known is of the first ones.

    Args:
        model: returns logits, in eval mode.
        x, y: the samples.
        threat: ball and box.
        radii: certified radii in the threat's norm, where there are some.
        pass_seconds: what a sample takes through the model, forward and back, where there is a budget.
        seed: of the attacks.

    Attributes:
        losses, where: of the samples looked at, the largest cross-entropy found and the points that have it.
        attacked: the attacked images of the same samples.
        trials: of each sample, the attacks it was due for, in turn; what had fallen before counts as having faced them.
        felled: after how many of its trials each sample had fallen: 0 where it is wrong without any; None where it stands.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, "batch"],
        threat: Threat,
        *,
        radii: Float[Tensor, "batch"] | None = None,
        pass_seconds: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.model, self.x, self.y, self.threat, self.radii, self.seed = model, x, y, threat, radii, seed
        self.fallen: Bool[Tensor, "batch"] = torch.zeros(len(x), dtype=torch.bool)
        self.smallest = torch.full((len(x),), torch.inf, dtype=torch.float64)
        self.stage: list[str] = []
        self.trials: list[list[str]] = []
        self.felled: list[int | None] = []
        self.losses: Tensor = torch.zeros(0)
        self.where = self.attacked = x[:0]
        self.quick = self.sharpened = self.searched = self.tested = 0
        self._size = piece(model, x)
        self._steps, self._pass_seconds = 0, pass_seconds
        self._spent: dict[str, tuple[float, int]] = {}

    @property
    def judged(self) -> int:
        """Samples of which something is known."""
        return len(self.stage)

    def look(self, clock: Clock, count: int, steps: int) -> None:
        """A first look at ``count`` samples, whatever it takes: AutoPGD, which raises the loss as far as it can."""
        self._steps = steps
        found = []
        for begin in range(0, count, self._size):
            rows = slice(begin, min(begin + self._size, count))
            found.append(
                loss_and_examples(self.model, self.x[rows], self.y[rows], self.threat, steps=steps, seed=self.seed)
            )
            verdict = self._judge(rows, {}, found[-1][2])
            self.stage += ["apgd-ce" if name == "known" else name for name in verdict.stage]
            self.attacked = torch.cat([self.attacked, verdict.adversarial])
            self.fallen[rows] = verdict.fallen.cpu()
            self._note(rows.start, rows.stop, self._autopgd)
            clock.say(self._so_far())
        self.losses, self.where = (torch.cat(parts) for parts in list(zip(*found, strict=True))[:2])

    def widely(self, clock: Clock, reserve: float = 0.0) -> None:
        """Judge the other samples by AutoPGD as well, while more than ``reserve`` seconds are left.

        Raises:
            TimeUp: when they are over.
        """
        while self.judged < len(self.x):
            room = self._room("AutoPGD", clock, reserve, self._size)
            index = torch.arange(self.judged, min(self.judged + room, len(self.x)))
            attacks = default_attacks(self.model, self.x[index], steps=self._steps, seed=self.seed)
            name = next(iter(attacks))  # the one that comes first: along gradients, where there are any
            with self._timed("AutoPGD", len(index), clock, reserve):
                verdict = self._judge(index, {name: attacks[name]})
            self._take(index, verdict)
            self._note(int(index[0]), int(index[-1]) + 1, self._autopgd)
            clock.say(self._so_far())

    def quickly(self, clock: Clock, reserve: float = 0.0) -> None:
        """Attack what stands by the quick ensemble, then samples of which nothing is known, in order.

        Raises:
            TimeUp: when the time is over.
        """
        while self.quick < len(self.x):
            again = self.quick < self.judged
            self.quick = self._further("quick", self.quick, self.judged if again else len(self.x), clock, reserve)

    def sharply(self, clock: Clock, reserve: float = 0.0) -> None:
        """Attack what the quick ensemble left by the standard one, in the same order.

        Raises:
            TimeUp: when the time is over.
        """
        while self.sharpened < self.quick:
            self.sharpened = self._further("standard", self.sharpened, self.quick, clock, reserve)

    def _further(self, version: Version, first: int, last: int, clock: Clock, reserve: float) -> int:
        """Attack some of the samples between two that are not known to fall, and say how far it came."""
        known = first < self.judged
        rows = [row for row in range(first, last) if not known or self.stage[row] == "survived"]
        if not rows:
            self._note(first, last, version)
            return last
        what = f"{version} again" if known else version
        some = rows[: self._room(what, clock, reserve, self._size if version == "quick" else max(1, self._size // 4))]
        index = torch.tensor(some)
        attacks = standard_ensemble(self.model, self.x[index], version=version, seed=self.seed)
        if version == "quick" and known and self._steps >= _QUICK:
            attacks.pop("apgd-ce", None)  # which would go the way of the first look once more
        with self._timed(what, len(some), clock, reserve):
            verdict = self._judge(index, attacks)
        self._take(index, verdict)
        reached = some[-1] + 1 if len(some) < len(rows) else last
        self._note(first, reached, version)
        clock.say(self._so_far())
        return reached

    def search(self, clock: Clock, most: int, reserve: float = 0.0, steps: int = 30) -> None:
        """Find the smallest budget at which each judged sample falls, of ``most`` in all, for the curve; also what that
        finds counts.

        Raises:
            TimeUp: when the time is over.
        """
        eps_max = _BEYOND * self.threat.eps
        while self.searched < min(most, self.judged) and eps_max > 0:
            room = self._room("search", clock, reserve, self._size)
            rows = slice(self.searched, min(self.searched + room, most, self.judged))
            with self._timed("search", rows.stop - rows.start, clock, reserve):
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
            self._note(rows.start, rows.stop, f"the search for the smallest budget ({steps} steps)")

    def test_certificates(self, clock: Clock, reserve: float = 0.0) -> None:
        """Attack some of the certified samples as well, which must withstand.

        Raises:
            TimeUp: when the time is over.
            ContradictionError: where one falls.
        """
        if self.radii is None:
            return
        rows = chosen(self._certified(self.threat.eps), seed=self.seed)
        while self.tested < len(rows):
            some = rows[self.tested :][: self._room("quick", clock, reserve, self._size)]
            with self._timed("quick", len(some), clock, reserve):
                self.tested += attack_certified(
                    self.model, self.x[some], self.y[some], self.threat, self.radii[some], seed=self.seed
                )

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
        reached = {"standard": self.sharpened, "quick": self.quick, self._autopgd: self.judged}
        parts, before = list[tuple[str, str]](), 0
        for name, count in reached.items():
            if count > before:
                rest = "the rest" if count == self.judged else f"the next {count - before}"
                parts.append((name, rest if parts else f"the first {count}"))
                before = count
        return parts[0][0] if len(parts) == 1 else ", ".join(f"{name} for {which}" for name, which in parts)

    @property
    def _autopgd(self) -> str:
        return f"AutoPGD ({self._steps} steps)"

    def _note(self, first: int, last: int, attack: str) -> None:
        """Samples from ``first`` until before ``last`` were due for an attack, and this is what it left of them."""
        for row in range(first, last):
            if row == len(self.trials):
                self.trials.append([])
                self.felled.append(0 if self.stage[row] == "clean" else None)
            self.trials[row].append(attack)
            if self.felled[row] is None and self.fallen[row]:
                self.felled[row] = len(self.trials[row])

    def _certified(self, eps: float) -> Tensor:
        assert self.radii is not None
        radii = self.radii.cpu()
        return (radii > 0) & (radii >= eps)

    def _judge(self, rows: slice | Tensor, attacks: dict[str, Attack], known: Tensor | None = None) -> Verdict:
        radii = None if self.radii is None else self.radii[rows]
        return robust_accuracy(
            self.model, self.x[rows], self.y[rows], self.threat, attacks=attacks, known=known, certified_radii=radii
        )

    def _take(self, index: Tensor, verdict: Verdict) -> None:
        """New samples are the next ones."""
        for row, name in zip(index.tolist(), verdict.stage, strict=True):
            self.stage[row : row + 1] = [name]
        self.fallen[index] = verdict.fallen.cpu()
        mine = index < len(self.attacked)
        self.attacked[index[mine]] = verdict.adversarial[mine.to(verdict.adversarial.device)]

    def _room(self, what: str, clock: Clock, reserve: float, most: int) -> int:
        """Samples that are done in the time there is, by what those before took; the first ones are few."""
        free = clock.left - reserve
        if math.isinf(free):
            return most
        if free <= 0:
            raise TimeUp
        if what not in self._spent:
            most = max(1, most // _FIRST)
        seconds, count = self._spent.get(what, (self._pass_seconds * _PASSES[what], 1))
        room = int(free * count / max(seconds, 1e-9) / _SAFE)
        if room < 1:
            raise TimeUp
        return min(room, most)

    @contextmanager
    def _timed(self, what: str, count: int, clock: Clock, reserve: float) -> Iterator[None]:
        start = time.perf_counter()
        with until(clock, reserve, self.model):
            yield
        seconds, before = self._spent.get(what, (0.0, 0))
        self._spent[what] = (seconds + time.perf_counter() - start, before + count)

    def _so_far(self) -> str:
        one = self.robust()
        return f"{self.threat}: {one.value:.1%} of {one.of} samples stand"
