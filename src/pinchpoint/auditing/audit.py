"""``pinchpoint.audit``: any classifier, one call, everything a report shows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pinchpoint.attack import Threat
from pinchpoint.attack.gradient import eval_mode
from pinchpoint.attack.samples import check_samples, check_threats
from pinchpoint.auditing import sentences
from pinchpoint.auditing.clock import Clock, Told
from pinchpoint.auditing.effort import Effort
from pinchpoint.auditing.intervals import alike, paired
from pinchpoint.auditing.record import drawn_up
from pinchpoint.auditing.session import Work
from pinchpoint.data.config import DataConfig
from pinchpoint.data.load import AnyDataset, Dataset, load
from pinchpoint.errors import ConfigError, DataError
from pinchpoint.evaluate import doubts_of, one_answer
from pinchpoint.models.sources.open_model import Source, fitting, open_model, with_known_normalisation
from pinchpoint.records import AuditReport
from pinchpoint.utils.device import device_of
from pinchpoint.utils.model_output import answer, check_module


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
        model: what ``pinchpoint.models.sources.open_model.open_model`` takes, or a module that returns logits for inputs in
            [0, 1].
        data: a name (``cifar10``, ``npz:PATH``, ``imagefolder:PATH``, ...), a configuration, data, or inputs in [0, 1] and
            labels: then those behind the first ``samples`` are what universal perturbations and trials are fitted on.
        threats: ``norm:eps`` in pixels.
        against: another model, judged on the same samples: ``comparison`` says what changed from ``model`` to it. Under a
            budget one may be attacked for longer; they are compared where both faced the same attacks, which it names.
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

    >>> from pinchpoint.models import ModelConfig, build
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
    sources = [_opened(one, content) for one in (model, *([] if against is None else [against]))]
    x, y = (tensor.to(place) for tensor in content.test.tensors(samples))
    effort = Effort.of(content.input_shape, standard)
    reports: list[AuditReport] = []
    works: list[Work] = []
    spent = Clock(budget, told)
    for left, source in zip(range(len(sources), 0, -1), sources, strict=True):
        clock = Clock(None if budget is None else max(spent.left / left, 1.0), told)
        work = Work(source, content, x, y, tuple(asked), effort, clock, seed)
        with eval_mode(source.model.to(place)), one_answer(source.model, x, warn=False) as doubt:
            work.warnings += [] if doubt is None else [doubt]
            work.do(trial=try_advice and not reports)
        work.warnings += doubts_of(work.y.cpu(), work.right, source.classes or 2)
        reports.append(drawn_up(work, command or _command(sources, content, asked, samples, seed), budget))
        works.append(work)
    if len(reports) == 1:
        return reports[0]
    count = min(len(work.x) for work in works)
    right = [work.right[:count].tolist() for work in works]
    rows = [paired("clean_accuracy", right[0], right[1])]
    untested = []
    for number, threat in enumerate(asked):
        one, other = (work.judging[number] for work in works)
        *standing, faced = alike((one.trials, other.trials), (one.felled, other.felled))
        if faced:
            row = paired("robust_accuracy", standing[0], standing[1], norm=threat.norm, eps=threat.eps)
            rows.append(row.model_copy(update={"attacks": sentences.faced(faced)}))
        else:
            untested.append((threat, one.name, other.name))
    first, second = (report.subject.name for report in reports)
    comparison = sentences.comparison(first, second if second != first else f"the other {second}", rows, untested)
    return reports[0].model_copy(update={"comparison": comparison, "other": reports[1]})


def parsed(threats: Sequence[str | Threat]) -> list[Threat]:
    """Threats as they are written.

    Raises:
        ThreatError: for one that is none.
        ConfigError: for none at all, and two in one norm.
    """
    asked = [Threat.parse(one) if isinstance(one, str) else one for one in threats]
    check_threats(asked)
    if not asked or len({one.norm for one in asked}) < len(asked):
        seen = ", ".join(map(str, asked)) or "none"
        raise ConfigError("an audit takes one threat or more, each norm once", seen, "give for example linf:8/255")
    return asked


def _loaded(data: str | DataConfig | AnyDataset | tuple[Tensor, Tensor], samples: int) -> AnyDataset:
    if isinstance(data, str | DataConfig):
        return load(data if isinstance(data, DataConfig) else DataConfig(name=data))
    if not isinstance(data, tuple):
        return data
    if len(data) != 2:
        raise DataError("data are inputs and labels", f"{len(data)} parts", "give (x, y)")
    x, y = check_samples(*data)
    if int(y.min()) < 0:
        raise DataError("labels must be whole numbers from 0", int(y.min()), "leave out what has no class")
    rest, labels = x[samples:].float(), y[samples:]
    classes = int(y.max()) + 1
    return Dataset("tensors", classes, rest, labels, rest[:0], labels[:0], x[:samples].float(), y[:samples])


def _opened(model: str | Path | Source | nn.Module, data: AnyDataset) -> Source:
    if isinstance(model, nn.Module):
        with torch.no_grad(), eval_mode(model):
            x = data.test.tensors(2)[0].to(next((one.device for one in model.parameters()), torch.device("cpu")))
            classes = answer(model, x).shape[1]
        notes = ("a module is taken to expect pixels in [0, 1]",)
        source = Source(type(model).__name__, model, data.input_shape, classes, notes, normalisation="none")
    else:
        if not isinstance(model, str | Path | Source):
            check_module(model)
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
