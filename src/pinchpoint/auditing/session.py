"""One model's audit while it is made.

What is worth most comes first, so that a time budget cuts the sharpening and not the answer: weights, clean accuracy,
bounds, a first look at every threat, mechanism and pinch points, the universal perturbation; then all samples, the curve,
the checks for masked gradients, and the standard ensemble on what still stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pinchpoint.attack import Threat, followable, gradient_doubt
from pinchpoint.attack.gradient import at_once
from pinchpoint.auditing import images as examples
from pinchpoint.auditing import sentences
from pinchpoint.auditing.advice import advise
from pinchpoint.auditing.clock import Clock, TimeUp, until
from pinchpoint.auditing.config import AuditConfig, ThreatConfig
from pinchpoint.auditing.effort import Effort, laid_out, pass_seconds
from pinchpoint.auditing.intervals import counted
from pinchpoint.auditing.pinch_points import Gains, follow, pinch_points
from pinchpoint.auditing.sentences import not_done, not_measured
from pinchpoint.auditing.steps import bound as bounded_by
from pinchpoint.auditing.steps import mechanism_of
from pinchpoint.auditing.threat_session import Judging, piece
from pinchpoint.auditing.trial import follow_advice
from pinchpoint.data.load import AnyDataset
from pinchpoint.errors import ContradictionError, ModelError, PinchpointError
from pinchpoint.evaluate import cross_entropy_loss, logits_of, universal_accuracy
from pinchpoint.evaluate.logits import misclassified
from pinchpoint.evaluate.masking import masking_warnings
from pinchpoint.measure import profile as profile_of
from pinchpoint.mechanism.decisions import pictures
from pinchpoint.models.sources.open_model import Source
from pinchpoint.records import (
    Advice,
    Bounded,
    Example,
    Mechanism,
    Pictures,
    PinchPoint,
    Profile,
    Share,
    Trial,
)
from pinchpoint.utils.memory import give_back

CHANGES = ("clip", "rank floor", "frobenius ball")
"""Actions on the audited model itself; pruning anew starts from another one."""
_SHARES = {
    "all samples": 0.4,
    "certificates": 0.1,
    "quick ensemble": 0.4,
    "curve": 0.5,
    "checks": 0.3,
    "standard ensemble": 1.0,
}
"""Steps of sharpening, and how much of the time that is left each may take."""
_ANSWERED = 0.2
"""Share of the time that is left which clean accuracy may take, about."""
_BOUNDED = 120.0
"""Seconds, as predicted from numbers of operations, that sharpening a constant may take where there is no budget, once for
the encoder and once for differences of logits."""
_HOPED = 8
"""Samples, at least, that are looked at before radii of large samples count as hopeless."""
_SHOWN = 4
"""Samples shown as images, under each threat."""


@dataclass
class Work:
    """One model's audit while it is made."""

    source: Source
    data: AnyDataset
    x: Tensor
    y: Tensor
    threats: tuple[Threat, ...]
    effort: Effort
    clock: Clock
    seed: int
    judging: list[Judging] = field(default_factory=list)
    bounded: dict[str, Bounded] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)
    universal: dict[str, Share] = field(default_factory=dict)
    mechanism: list[Mechanism] = field(default_factory=list)
    pictures: list[Pictures] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    masking: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    points: list[PinchPoint] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    trial: Trial | None = None
    piece: int = 1
    kept: float = 0.0

    @property
    def model(self) -> nn.Module:
        """What is audited."""
        return self.source.model

    def do(self, trial: bool = False) -> None:
        """Everything, in the order of its worth; with ``trial`` also what comes of the first advice."""
        self._weigh()
        with laid_out(self.model, self.x):
            self._assail(trial)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Timed, and its memory is given back."""
        with self.clock.phase(name):
            yield
        give_back(self.model)

    def _weigh(self) -> None:
        """What needs no attack."""
        clock = self.clock
        with self._phase("weights"):
            self._measure()
            self.warnings += _skipped(self.profile)
            clock.done("weights", f"{len(self.profile.layers)} layers measured")
        with self._phase("clean accuracy"), laid_out(self.model, self.x):
            self._answer()
        with self._phase("bounds"):
            for threat in self.threats:
                self._bound(threat)

    def _measure(self) -> None:
        """Every layer; of a model that takes no zeros, such as one that needs other samples beside each, without the sizes
        that a forward pass tells."""
        try:
            self.profile: Profile = profile_of(self.model, input_shape=self.data.input_shape)
        except ModelError as error:
            self.profile = profile_of(self.model)
            self.warnings.append(f"operator norms of convolutions are left out: {error}")

    def _answer(self) -> None:
        """What is right; where a budget would be eaten up by that, of the first samples, which then are all there are."""
        clock, asked = self.clock, len(self.x)
        rest = -math.inf if clock.budget is None else (1 - _ANSWERED) * clock.left
        right: list[bool] = []
        count = at_once(self.x, asked)
        while len(right) < asked and (not right or clock.left > rest):
            some = slice(len(right), len(right) + count)
            right += (~misclassified(logits_of(self.model, self.x[some]), self.y[some])).tolist()
            self.clean = counted(right)
            clock.say(f"{self.clean.value:.1%} of {len(right)} samples right")
        self.right = torch.tensor(right)
        self.x, self.y = self.x[: len(right)], self.y[: len(right)]
        if len(right) < asked:
            self.warnings.append(f"only the first {len(right)} of {asked} samples were audited: the time was up")
        if (outputs := self.source.classes or 0) > self.data.classes:
            self.warnings.append(
                f"the model has {outputs} outputs, and {self.data.name} has {self.data.classes} classes: every output "
                "counts, and an answer beyond the classes is wrong"
            )
        clock.done("clean accuracy", f"{len(right)} samples")

    def _assail(self, trial: bool) -> None:
        """What attacks find, and what follows from it."""
        clock = self.clock
        with self._phase("first look"):
            self._plan()
            for threat in self.threats:
                self._look(threat)
            clock.done("first look", f"{self.judging[0].judged} samples under each threat")
        with self._phase("mechanism"):
            self._explain()
        with self._phase("universal perturbation"):
            for threat in self.threats:
                self._fool(threat)
        if trial and self.clock.budget is not None:
            self.kept = self.effort.trial_seconds(self._tried, len(self.threats)) if self._tried else 0.0
        self._sharpen(self.kept)
        with self._phase("advice"):
            self._advise()
        if trial:
            self._attempt()

    @property
    def _tried(self) -> int:
        """Samples that a trial would be judged on."""
        return min(self.effort.tried, len(self.x))

    def _plan(self) -> None:
        """What the time that is left allows."""
        self.piece = piece(self.model, self.x)
        some = slice(0, self.piece)
        doubt = gradient_doubt(self.model, self.x[some], seed=self.seed)
        if doubt is not None:
            self.warnings.append(f"{doubt.sentence}; attacks that need none were added")
        led = followable(self.model, self.x[some], self.threats[0], self.seed)
        passing = pass_seconds(led, self.x[some], self.y[some]) if math.isfinite(self.clock.left) else 0.0
        self.effort = self.effort.within(self.clock.left, passing, len(self.threats))

    def _bound(self, threat: Threat) -> None:
        """Certified numbers, where the model can be bounded."""
        timed = self.clock.budget is not None
        seconds = self.clock.part(0.05, 30.0) if timed else _BOUNDED
        config = AuditConfig(bound_seconds=seconds, jacobian_samples=4)
        try:
            asked = ThreatConfig(norm=threat.norm, eps=threat.eps)
            found = bounded_by(self.model, self.x, self.y, asked, config, hoped=self._hoped, by_clock=timed)
        except ContradictionError:
            raise
        except PinchpointError as error:
            self.warnings.append(not_done("bound", threat.norm, str(error)))
            self.clock.left_out(f"bounds {threat}", str(error))
            return
        self.bounded[threat.norm] = found
        self.clock.say(f"Lipschitz constant in {threat.norm} at most {found.bounds.lipschitz:.3g}")
        self.clock.done(f"bounds {threat}", found.bounds.lipschitz_method)

    @property
    def _hoped(self) -> Tensor | None:
        """Samples that are right, large ones fewer, of which one must have a radius to speak of if all are to be given
        theirs; None where all are."""
        room = at_once(self.x, len(self.x))
        return None if room == len(self.x) else torch.nonzero(self.right).flatten()[: max(_HOPED, room // 8)]

    def _look(self, threat: Threat) -> None:
        """What the first samples say, whatever it takes."""
        radii = None
        if threat.norm in self.bounded:
            radii = torch.tensor(self.bounded[threat.norm].radii, dtype=torch.float64, device=self.x.device)
        passing = self.effort.pass_seconds
        one = Judging(self.model, self.x, self.y, threat, radii=radii, pass_seconds=passing, seed=self.seed)
        count = min(self.effort.looked, len(self.x))
        one.look(self.clock, count, self.effort.steps)
        one.search(self.clock, count, reserve=-math.inf, steps=self.effort.search_steps)
        self.judging.append(one)

    def _explain(self) -> None:
        """Perturbations that raise the loss most, followed through the network; and the layers that pinch."""
        looked = len(self.judging[0].where)
        x, y = self.x[:looked], self.y[:looked]
        before = cross_entropy_loss(self.model, x, y).mean()
        followed: list[Gains] = []
        for one in self.judging:
            threat, where = one.threat, one.where
            self.gaps[threat.norm] = float(one.losses.mean() - before)
            try:
                followed.append(follow(self.model, x, where, threat, seed=self.seed))
                self.mechanism.append(mechanism_of(threat, followed[-1].layers))
            except PinchpointError as error:
                self.warnings.append(not_done("mechanism", threat.norm, str(error)))
            if self.clock.part(0.1) < 3.0:
                self.warnings.append(not_done("pictures", threat.norm, "no time was left"))
                continue
            try:
                self.pictures.append(pictures(self.model, x, where, y, threat, size=self.effort.plane))
            except PinchpointError as error:
                self.warnings.append(not_done("pictures", threat.norm, str(error)))
        if followed:
            self.points = pinch_points(self.profile, followed)
            self.clock.say(sentences.pinched(self.points))
        self.clock.done("mechanism", f"{looked} samples followed through the network")

    def _fool(self, threat: Threat) -> None:
        """One perturbation for all."""
        effort = self.effort
        if len(self.data.train) == 0:
            self.clock.left_out(f"universal {threat}", "there are no training samples to fit it on")
            return
        if effort.fitted == 0:
            self.clock.left_out(f"universal {threat}", "there was no time for it")
            return
        fit = tuple(tensor.to(self.x.device) for tensor in self.data.train.tensors(effort.fitted))
        left, delta = universal_accuracy(
            self.model,
            (fit[0], fit[1]),
            (self.x, self.y),
            threat,
            steps=effort.universal_steps,
            at_a_time=self.piece,
            seed=self.seed,
        )
        standing = round(left * len(self.x))
        self.universal[threat.norm] = counted([True] * standing + [False] * (len(self.x) - standing))
        self.clock.say(f"one perturbation for all leaves {left:.1%}")
        self.clock.done(f"universal {threat}", f"fitted on {len(fit[0])} training samples")
        if examples.drawable(self.x):
            self.examples.append(examples.universal(delta, threat.norm))

    def _sharpen(self, kept: float) -> None:
        """What takes the time that is left: each step as far as its share goes, twice, and then as far as any time is left.
        ``kept`` seconds are for what comes after."""
        todo = [(name, one) for name in _SHARES for one in self.judging]
        for final in (False, False, True) if self.clock.budget is not None else (True,):
            left = []
            for place, (name, one) in enumerate(todo):
                alike = sum(other == name for other, _ in todo[place:])
                part = (1.0 if final else _SHARES[name]) / alike
                with self._phase(name):
                    if not self._sharper(name, one, kept, part, final):
                        left.append((name, one))
            todo = left
        for one in self.judging:
            if one.judged < len(self.x):
                self.warnings.append(
                    f"only {one.judged} of {len(self.x)} samples were judged under {one.threat}: the time was up"
                )
            self._show(one)

    def _sharper(self, name: str, one: Judging, kept: float, part: float, final: bool) -> bool:
        """Whether it came to its end."""
        clock = self.clock
        free = max(0.0, clock.left - kept)
        reserve = 0.0 if clock.budget is None else kept + free * (1 - part)
        steps = {
            "all samples": self._all,
            "certificates": self._certificates,
            "quick ensemble": self._quick,
            "curve": self._curve,
            "checks": self._check,
            "standard ensemble": self._standard,
        }
        try:
            said = steps[name](one, reserve)
        except TimeUp:
            if final:
                clock.left_out(f"{name} {one.threat}", "the time was up")
            return False
        if said:
            clock.done(f"{name} {one.threat}", said)
        return True

    def _all(self, one: Judging, reserve: float) -> str:
        """Where there is a budget, more samples are worth more than more attacks."""
        if self.clock.budget is None:
            return ""
        one.widely(self.clock, reserve)
        return one.name

    def _certificates(self, one: Judging, reserve: float) -> str:
        """Attack a share of what no attack can change."""
        one.test_certificates(self.clock, reserve)
        return f"{one.tested} certified samples withstood attacks" if one.tested else ""

    def _quick(self, one: Judging, reserve: float) -> str:
        one.quickly(self.clock, reserve)
        return one.name

    def _curve(self, one: Judging, reserve: float) -> str:
        """Where time is kept for a trial, no more than that has time to search again."""
        most = len(self.x) if self.kept == 0.0 else self._tried
        one.search(self.clock, most, reserve, steps=self.effort.search_steps)
        return f"the smallest budgets of {one.searched} samples"

    def _check(self, one: Judging, reserve: float) -> str:
        samples = self.effort.checked
        if samples == 0 or self.effort.check_seconds > self.clock.left - reserve:
            raise TimeUp
        x, y = self.x[: 4 * samples], self.y[: 4 * samples]
        with until(self.clock, reserve, self.model):
            self.masking[one.threat.norm] = masking_warnings(
                self.model, x, y, one.threat, samples=samples, seed=self.seed
            )
        return f"{samples} samples looked at"

    def _standard(self, one: Judging, reserve: float) -> str:
        if not self.effort.standard:
            return ""
        one.sharply(self.clock, reserve)
        return one.name

    def _show(self, one: Judging) -> None:
        """Images of the first samples that were right and fell."""
        if not examples.drawable(self.x):
            return
        looked = len(one.attacked)
        fell = [row for row in range(looked) if one.fallen[row] and self.right[row]]
        x, y = self.x[:looked], self.y[:looked]
        self.examples += examples.shown(self.model, x, one.attacked, y, one.threat.norm, fell[:_SHOWN])

    def _advise(self) -> None:
        """What to do about the layers that pinch."""
        try:
            self.advice = self._advised()
        except PinchpointError as error:
            self.warnings.append(f"no advice is given: {error}")
            self.clock.left_out("advice", str(error))
        named = {advice.id: advice.layers for advice in self.advice}
        self.points = [
            point.model_copy(update={"advice": [key for key, layers in named.items() if point.layer in layers]})
            for point in self.points
        ]

    def _advised(self) -> list[Advice]:
        return advise(
            self.model,
            self.data.input_shape,
            self.points,
            self.profile,
            {one.threat.norm: one.curve() for one in self.judging},
            {one.threat.norm: one.threat.eps for one in self.judging},
            clean=self.clean,
            subject=self.source.name,
            data=self.data.name,
        )

    def _attempt(self) -> None:
        """Follow the first advice that changes something."""
        advice = next((one for one in self.advice if one.predicted and one.action["kind"] in CHANGES), None)
        count = min(one.searched for one in self.judging)  # the samples of the curve that the prediction was read off
        cost = self.effort.trial_seconds(count, len(self.threats))
        reason = None
        if len(self.data.train) == 0:
            reason = "there are no training samples to tune on"
        elif cost > self.clock.left:
            reason = f"it would have taken {cost:.0f} s"
        if advice is None or reason is not None:
            reason = reason or "no advice that changes a layer predicts anything"
            self.clock.left_out("trial", reason)
            self.warnings.append(f"the advice was not tried: {reason}")
            return
        x, y, steps = self.x[:count], self.y[:count], self.effort.search_steps
        with self._phase("trial"):
            self.trial = follow_advice(self.model, self.data, advice, x, y, steps=steps, seed=self.seed)
            self.clock.done("trial", self.trial.title)


def _skipped(profile: Profile) -> list[str]:
    """What is no linear operator, one sentence for all of a kind."""
    names: dict[tuple[str, str], list[str]] = {}
    for one in profile.skipped:
        names.setdefault((one.kind, one.reason), []).append(one.name)
    said = []
    for (kind, reason), found in names.items():
        others = f"' and {len(found) - 1} others, to '{found[-1]}" if len(found) > 1 else ""
        said.append(not_measured(kind, found[0] + others, reason))
    return said
