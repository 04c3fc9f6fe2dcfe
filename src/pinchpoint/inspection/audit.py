"""``pinchpoint.audit``: any classifier, one call, everything a report shows.

What is worth most comes first, so that a time budget cuts the sharpening and not the answer: weights, clean accuracy,
bounds, a first look at every threat, mechanism and pinch points, the universal perturbation; then all samples, the curve,
the checks for masked gradients, and the standard ensemble on what still stands.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from pinchpoint.attack import Threat
from pinchpoint.attack.gradient import eval_mode
from pinchpoint.bound.sheet import sheet
from pinchpoint.errors import ConfigError, DataError, ModelError
from pinchpoint.evaluate import adversarial_loss, cross_entropy_loss, logits_of, universal_accuracy
from pinchpoint.evaluate.logits import misclassified
from pinchpoint.evaluate.masking import masking_warnings
from pinchpoint.inspection import examples, words
from pinchpoint.inspection.advice import advise
from pinchpoint.inspection.assemble import not_done, not_measured
from pinchpoint.inspection.clock import Clock, TimeUp, Told, until
from pinchpoint.inspection.config import AuditConfig, ThreatConfig
from pinchpoint.inspection.pinch import Gains, follow, pinch_points
from pinchpoint.inspection.shares import counted, paired
from pinchpoint.inspection.steps import bound as bounded_by
from pinchpoint.inspection.threats import Judging
from pinchpoint.inspection.trial import SAMPLES, follow_advice
from pinchpoint.learn.data import AnyDataset, DataConfig, Dataset, load
from pinchpoint.learn.device import device_of
from pinchpoint.learn.source import Source, fitting, open_model, with_known_normalisation
from pinchpoint.measure import profile as profile_of
from pinchpoint.pictures import pictures
from pinchpoint.records import (
    Advice,
    AuditReport,
    Bounded,
    Example,
    LayerMechanism,
    Mechanism,
    Norm,
    PairBounds,
    Pictures,
    PinchPoint,
    Profile,
    Samples,
    Share,
    Subject,
    ThreatReport,
    Trial,
)
from pinchpoint.workshop import machine, versions

_PIXELS = 3 * 32 * 32
"""Input numbers up to which nothing is spared; larger images get fewer samples where many passes are needed."""
_BOUNDED: tuple[Norm, ...] = ("l2", "linf")
_TRIAL = 0.35
"""Share of a budget kept for a trial."""
_PASSES = 60
"""Passes through the model for each sample and threat in a trial."""
CHANGES = ("clip", "rank floor", "frobenius ball")
"""Actions on the audited model itself; pruning anew starts from another one."""
_SHOWN = 4
"""Samples shown as images, under each threat."""


@dataclass(frozen=True)
class Effort:
    """How much is done of what takes long.

    Attributes:
        traced: samples, the first ones, whose perturbations are followed through the network.
        steps: AutoPGD steps of that.
        fitted: training samples that the universal perturbation is fitted on, in ``universal_steps`` passes over them.
        checked: samples on which signs of masked gradients are sought.
        standard: whether what the quick ensemble leaves is attacked by the standard one.
    """

    traced: int = 128
    steps: int = 50
    fitted: int = 512
    universal_steps: int = 30
    checked: int = 32
    standard: bool = True

    @classmethod
    def of(cls, input_shape: Sequence[int], standard: bool = True) -> Effort:
        """What fits inputs of this size."""
        scale = min(1.0, _PIXELS / math.prod(input_shape))
        return cls(
            traced=max(32, round(128 * scale)),
            fitted=max(64, round(512 * scale)),
            universal_steps=max(10, round(30 * scale)),
            checked=max(8, round(32 * scale)),
            standard=standard,
        )


def audit(
    model: str | Path | Source | nn.Module,
    data: str | DataConfig | AnyDataset | tuple[Tensor, Tensor],
    threats: Sequence[str | Threat] = ("linf:8/255",),
    *,
    against: str | Path | Source | nn.Module | None = None,
    samples: int = 1000,
    budget: float | None = None,
    standard: bool = True,
    seed: int = 0,
    device: str = "auto",
    try_advice: bool = False,
    told: Told | None = None,
    command: str | None = None,
) -> AuditReport:
    """Audit a classifier: how compressible, how robust, and which layers pinch.

    Args:
        model: what ``pinchpoint.learn.source.open_model`` takes, or a module that returns logits for inputs in [0, 1].
        data: a name (``cifar10``, ``npz:PATH``, ``imagefolder:PATH``, ...), a configuration, data, or inputs in [0, 1] and
            labels: then those behind the first ``samples`` are what universal perturbations and trials are fitted on.
        threats: ``norm:eps`` in pixels.
        against: another model, judged on the same samples: ``comparison`` says what changed from ``model`` to it.
        samples: test samples, the first ones.
        budget: seconds in all; None for as long as it takes. A first look at everything is had whatever it is.
        standard: attack by the standard ensemble in the end, else by the quick one alone.
        seed: of everything drawn.
        device: ``cpu``, ``cuda``, ...; ``auto`` takes a GPU where there is one.
        try_advice: follow the first advice on a copy, fine-tuned shortly, and see whether its prediction holds.
        told: told the phase that runs, and what is known so far.
        command: that makes the report again, for the report.

    Raises:
        ConfigError, DataError, ModelError, CheckpointError, ThreatError: for what makes no sense, each saying why.

    >>> from pinchpoint.learn import ModelConfig, build
    >>> network = build(ModelConfig(hidden=(16,)), (1, 8, 8), 10, seed=0)
    >>> report = audit(network, "digits", ["linf:0.02"], samples=20, standard=False)
    >>> len(report.verdict), report.threats[0].robust.of
    (3, 20)
    """
    asked = parsed(threats)
    if samples < 1:
        raise ConfigError("an audit needs one sample or more", samples, "use for example 1000")
    content = _loaded(data, samples)
    place = device_of(device)
    sources = [_opened(one, content) for one in (model, against) if one is not None]
    x, y = (tensor.to(place) for tensor in content.test.tensors(samples))
    effort = Effort.of(content.input_shape, standard)
    reports: list[AuditReport] = []
    verdicts: list[_Work] = []
    spent = Clock(budget, told)
    for left, source in zip(range(len(sources), 0, -1), sources, strict=True):
        clock = Clock(None if budget is None else max(spent.left / left, 1.0), told)
        work = _Work(source, content, x, y, tuple(asked), effort, clock, seed)
        with eval_mode(source.model.to(place)):
            work.do(kept=_TRIAL if try_advice and not reports else 0.0)
            if try_advice and not reports:
                work.attempt()
        reports.append(work.report(command or _command(sources, content, asked, samples, seed), budget))
        verdicts.append(work)
    if len(reports) == 1:
        return reports[0]
    rows = [paired("clean_accuracy", verdicts[0].right.tolist(), verdicts[1].right.tolist())]
    for number, threat in enumerate(asked):
        both = [work.judging[number] for work in verdicts]
        count = min(one.judged for one in both)
        standing = [(~one.fallen[:count]).tolist() for one in both]
        rows.append(paired("robust_accuracy", standing[0], standing[1], norm=threat.norm, eps=threat.eps))
    first, second = (report.subject.name for report in reports)
    comparison = words.comparison(first, second if second != first else f"the other {second}", rows)
    return reports[0].model_copy(update={"comparison": comparison, "other": reports[1]})


def parsed(threats: Sequence[str | Threat]) -> list[Threat]:
    """Threats as they are written.

    Raises:
        ThreatError: for one that is none.
        ConfigError: for none at all, and two in one norm.
    """
    asked = [Threat.parse(one) if isinstance(one, str) else one for one in threats]
    if not asked or len({one.norm for one in asked}) < len(asked):
        seen = ", ".join(map(str, asked)) or "none"
        raise ConfigError("an audit takes one threat or more, each norm once", seen, "give for example linf:8/255")
    return asked


def _loaded(data: str | DataConfig | AnyDataset | tuple[Tensor, Tensor], samples: int) -> AnyDataset:
    if isinstance(data, str | DataConfig):
        return load(data if isinstance(data, DataConfig) else DataConfig(name=data))
    if not isinstance(data, tuple):
        return data
    x, y = data
    if len(x) != len(y) or not len(x) or y.ndim != 1 or y.is_floating_point() or int(y.min()) < 0:
        seen = f"{tuple(x.shape)} inputs, {tuple(y.shape)} labels of {y.dtype}"
        raise DataError("inputs come with a label each, a whole number from 0", seen, "give (x, y)")
    rest, labels = x[samples:].float(), y[samples:]
    classes = int(y.max()) + 1
    return Dataset("tensors", classes, rest, labels, rest[:0], labels[:0], x[:samples].float(), y[:samples])


def _opened(model: str | Path | Source | nn.Module, data: AnyDataset) -> Source:
    if isinstance(model, nn.Module):
        with torch.no_grad(), eval_mode(model):
            x = data.test.tensors(1)[0].to(next((one.device for one in model.parameters()), torch.device("cpu")))
            logits = model(x)
        known = isinstance(logits, Tensor) and logits.ndim == 2
        classes = logits.shape[1] if known else None
        notes = ("a module is taken to expect pixels in [0, 1]",)
        source = Source(type(model).__name__, model, data.input_shape, classes, notes, normalisation="none")
    else:
        source = model if isinstance(model, Source) else open_model(str(model), data.input_shape)
    return fitting(with_known_normalisation(source), data)


def _command(sources: Sequence[Source], data: AnyDataset, threats: Sequence[Threat], samples: int, seed: int) -> str:
    """The command that says the same."""
    parts = ["pinchpoint", "audit", sources[0].name, "--data", data.name]
    for threat in threats:
        parts += ["--threat", f"{threat.norm}:{threat.eps!r}"]
    if len(sources) > 1:
        parts += ["--against", sources[1].name]
    return shlex.join([*parts, "--samples", str(samples), "--seed", str(seed)])


@dataclass
class _Work:
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
    moved: dict[str, Tensor] = field(default_factory=dict)
    universal: dict[str, Share] = field(default_factory=dict)
    mechanism: list[Mechanism] = field(default_factory=list)
    pictures: list[Pictures] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    masking: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    points: list[PinchPoint] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    trial: Trial | None = None
    pass_seconds: float = 0.0

    @property
    def model(self) -> nn.Module:
        return self.source.model

    def do(self, kept: float = 0.0) -> None:
        """Everything, in the order of its worth; a share of the time is kept for what comes after."""
        clock = self.clock
        with clock.phase("weights"):
            self.profile: Profile = profile_of(self.model, input_shape=self.data.input_shape)
            self.warnings += _skipped(self.profile)
            clock.done("weights", f"{len(self.profile.layers)} layers measured")
        with clock.phase("clean accuracy"):
            self.right = ~misclassified(logits_of(self.model, self.x), self.y).cpu()
            self.clean = counted(self.right.tolist())
            clock.say(f"{self.clean.value:.1%} right")
            clock.done("clean accuracy", f"{self.clean.of} samples")
        with clock.phase("bounds"):
            for threat in self.threats:
                self._bound(threat)
        with clock.phase("first look"):
            for threat in self.threats:
                radii = None
                if threat.norm in self.bounded:
                    radii = torch.tensor(self.bounded[threat.norm].radii, dtype=torch.float64, device=self.x.device)
                traced = min(self.effort.traced, len(self.x))
                one = Judging(self.model, self.x, self.y, threat, kept=traced, radii=radii, seed=self.seed)
                one.quickly(clock, traced, reserve=-math.inf)
                one.search(clock, reserve=-math.inf)
                self.judging.append(one)
            clock.done("first look", f"{self.judging[0].judged} samples under each threat")
        with clock.phase("mechanism"):
            self._explain()
        with clock.phase("universal perturbation"):
            for threat in self.threats:
                self._fool(threat)
        self._sharpen(kept * (clock.budget or 0.0))
        with clock.phase("advice"):
            curves = {one.threat.norm: one.curve() for one in self.judging}
            eps = {one.threat.norm: one.threat.eps for one in self.judging}
            self.advice = advise(
                self.model,
                self.data.input_shape,
                self.points,
                self.profile,
                curves,
                eps,
                clean=self.clean,
                subject=self.source.name,
                data=self.data.name,
            )
            named = {advice.id: advice.layers for advice in self.advice}
            self.points = [
                point.model_copy(update={"advice": [key for key, layers in named.items() if point.layer in layers]})
                for point in self.points
            ]

    def attempt(self) -> None:
        """Follow the first advice that changes something."""
        advice = next((one for one in self.advice if one.predicted and one.action["kind"] in CHANGES), None)
        if advice is None or len(self.data.train) == 0:
            reason = "no advice predicts anything" if advice is None else "there are no training samples to tune on"
            self.clock.left_out("trial", reason)
            return
        count = min(one.searched for one in self.judging)  # the samples of the curve that the prediction was read off
        cost = 2 * self.pass_seconds * (SAMPLES + _PASSES * count * len(self.threats))
        if cost > self.clock.left:
            self.clock.left_out("trial", f"it would have taken {cost:.0f} s")
            self.warnings.append("the advice was not tried: the time was up")
            return
        with self.clock.phase("trial"):
            self.trial = follow_advice(self.model, self.data, advice, self.x[:count], self.y[:count], seed=self.seed)
            self.clock.done("trial", self.trial.title)

    def _bound(self, threat: Threat) -> None:
        """Certified numbers, where the model can be bounded."""
        config = AuditConfig(bound_seconds=self.clock.part(0.05, 30.0), jacobian_samples=4)
        try:
            found = bounded_by(self.model, self.x, self.y, _config(threat), config)
        except ModelError as error:
            self.warnings.append(not_done("bound", threat.norm, str(error)))
            self.clock.left_out(f"bounds {threat}", str(error))
            return
        self.bounded[threat.norm] = found
        self.clock.say(f"Lipschitz constant in {threat.norm} at most {found.bounds.lipschitz:.3g}")
        self.clock.done(f"bounds {threat}", found.bounds.lipschitz_method)

    def _explain(self) -> None:
        """Perturbations that raise the loss most, followed through the network; and the layers that pinch."""
        traced = min(self.effort.traced, len(self.x))
        x, y = self.x[:traced], self.y[:traced]
        followed: list[Gains] = []
        for threat in self.threats:
            start = time.perf_counter()
            losses, where = adversarial_loss(self.model, x, y, threat, steps=self.effort.steps, seed=self.seed)
            self.pass_seconds = (time.perf_counter() - start) / (traced * self.effort.steps)
            self.gaps[threat.norm] = float(losses.mean() - cross_entropy_loss(self.model, x, y).mean())
            self.moved[threat.norm] = where
            try:
                followed.append(follow(self.model, x, where, threat, seed=self.seed))
                self.mechanism.append(_mechanism(followed[-1]))
            except ModelError as error:
                self.warnings.append(not_done("mechanism", threat.norm, str(error)))
            if self.clock.part(0.1) < 3.0:
                self.warnings.append(not_done("pictures", threat.norm, "no time was left"))
                continue
            try:
                self.pictures.append(pictures(self.model, x, where, y, threat))
            except ModelError as error:
                self.warnings.append(not_done("pictures", threat.norm, str(error)))
        if followed:
            self.points = pinch_points(self.profile, followed)
            self.clock.say(words.pinched(self.points))
        self.clock.done("mechanism", f"{traced} samples followed through the network")

    def _pairs(self) -> list[PairBounds]:
        """How neighbouring layers are aligned, where the network could be bounded."""
        norms = [norm for norm in _BOUNDED if norm in self.bounded]
        if not norms or self.clock.part(0.05) < 1.0:
            return []
        return sheet(
            self.model, norms=norms, input_shape=self.data.input_shape, budget_s=self.clock.part(0.03, 5.0)
        ).pairs

    def _fool(self, threat: Threat) -> None:
        """One perturbation for all."""
        effort = self.effort
        if len(self.data.train) == 0:
            self.clock.left_out(f"universal {threat}", "there are no training samples to fit it on")
            return
        cost = self.pass_seconds * effort.fitted * effort.universal_steps
        if cost > 0.3 * self.clock.left:
            self.clock.left_out(f"universal {threat}", f"it would have taken {cost:.0f} s")
            return
        fit = tuple(tensor.to(self.x.device) for tensor in self.data.train.tensors(effort.fitted))
        left, delta = universal_accuracy(
            self.model, (fit[0], fit[1]), (self.x, self.y), threat, steps=effort.universal_steps, seed=self.seed
        )
        standing = round(left * len(self.x))
        self.universal[threat.norm] = counted([True] * standing + [False] * (len(self.x) - standing))
        self.clock.say(f"one perturbation for all leaves {left:.1%}")
        self.clock.done(f"universal {threat}", f"fitted on {len(fit[0])} training samples")
        if examples.drawable(self.x):
            self.examples.append(examples.universal(delta, threat.norm))

    def _sharpen(self, kept: float) -> None:
        """All samples, the curve, the checks, the standard ensemble; each as far as the time goes."""
        clock, count = self.clock, len(self.judging)
        shares = {"all samples": 0.4, "curve": 0.5, "checks": 0.3, "standard ensemble": 1.0}
        for name, share in shares.items():
            with clock.phase(name):
                for place, one in enumerate(self.judging):
                    free = max(0.0, clock.left - kept)
                    reserve = 0.0 if clock.budget is None else kept + free * (1 - share / (count - place))
                    try:
                        self._sharper(name, one, reserve)
                    except TimeUp:
                        clock.left_out(f"{name} {one.threat}", "the time was up")
                    else:
                        clock.done(f"{name} {one.threat}", one.name)
        for one in self.judging:
            if one.judged < len(self.x):
                self.warnings.append(
                    f"only {one.judged} of {len(self.x)} samples were judged under {one.threat}: the time was up"
                )
            self._show(one)

    def _sharper(self, name: str, one: Judging, reserve: float) -> None:
        if name == "all samples":
            one.quickly(self.clock, len(self.x), reserve)
        elif name == "curve":
            one.search(self.clock, reserve)
        elif name == "checks":
            with until(self.clock, reserve, self.model):
                self.masking[one.threat.norm] = masking_warnings(
                    self.model, self.x, self.y, one.threat, samples=self.effort.checked, seed=self.seed
                )
        elif self.effort.standard:
            one.sharply(self.clock, reserve)

    def _show(self, one: Judging) -> None:
        """Images of the first samples that were right and fell."""
        if not examples.drawable(self.x):
            return
        fell = [row for row in range(min(one.judged, len(one.attacked))) if one.fallen[row] and self.right[row]]
        self.examples += examples.shown(self.model, self.x, one.attacked, self.y, one.threat.norm, fell[:_SHOWN])

    def report(self, command: str, budget: float | None) -> AuditReport:
        """What it came to."""
        threats = [self._threat(one) for one in self.judging]
        source = self.source
        few = [one.threat for one in self.judging if one.robust().high - one.robust().low > 0.1]
        if few:
            shown = " and ".join(map(str, few))
            self.warnings.append(f"the intervals are wider than 10 points under {shown}: judge more samples")
        return AuditReport(
            title=f"{source.name} on {self.data.name}",
            command=command,
            seed=self.seed,
            budget=budget,
            subject=Subject(
                name=source.name,
                notes=list(source.notes),
                normalisation=source.normalisation or "none",
                parameters=sum(parameter.numel() for parameter in self.model.parameters()),
                classes=int(source.classes or 0),
                input_shape=list(self.data.input_shape),
            ),
            data=Samples(
                name=self.data.name,
                count=len(self.x),
                of=len(self.data.test),
                class_names=None if self.data.class_names is None else list(self.data.class_names),
            ),
            verdict=words.verdict(self.clean, threats, self.profile, self.points),
            clean=self.clean,
            threats=threats,
            pinch_points=self.points,
            advice=self.advice,
            trial=self.trial,
            profile=self.profile,
            bounds=[one.bounds for one in self.bounded.values()],
            mechanism=self.mechanism,
            pictures=self.pictures,
            examples=self.examples,
            phases=self.clock.phases,
            warnings=list(dict.fromkeys(self.warnings)),
            versions=versions(),
            machine=f"{machine()}, {self.x.device.type}",
            timing=self.clock.timing(),
        )

    def _threat(self, one: Judging) -> ThreatReport:
        norm = one.threat.norm
        bounded = self.bounded.get(norm)
        return ThreatReport(
            norm=norm,
            eps=one.threat.eps,
            attack=one.name,
            robust=one.robust(),
            universal=self.universal.get(norm),
            certified=one.certified(),
            median_radius=None if bounded is None else bounded.bounds.median_radius,
            gap=self.gaps.get(norm),
            gap_bound=None if bounded is None else bounded.gap_bound,
            settled=one.settled(),
            stage=one.stage,
            curve=one.curve(),
            warnings=self.masking.get(norm, []),
        )


def _config(threat: Threat) -> ThreatConfig:
    return ThreatConfig(norm=threat.norm, eps=threat.eps)


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


def _mechanism(followed: Gains) -> Mechanism:
    """Where perturbations point, and how large they become; the paper's amplification is that of the head's input."""
    return Mechanism(
        norm=followed.threat.norm,
        eps=followed.threat.eps,
        amplification=followed.layers[-1].source_amplification,
        layers=[
            LayerMechanism(
                name=one.name,
                k=one.k,
                alignment=one.alignment,
                baseline=one.baseline,
                amplification=one.amplification,
            )
            for one in followed.layers
            if one.alignment is not None
        ],
    )
