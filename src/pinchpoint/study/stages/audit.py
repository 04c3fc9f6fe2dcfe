"""Stages that look at a model: each is a step of an audit, and its record what that step found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pinchpoint.auditing import AuditConfig, ThreatConfig, steps
from pinchpoint.data import AnyDataset
from pinchpoint.models.build import ZeroShotConfig
from pinchpoint.models.retrieval import load_captions, retrieval
from pinchpoint.models.zero_shot import with_tower
from pinchpoint.records import Record, Retrieved
from pinchpoint.study.graph.stages import Stage

_POINTS = "points.safetensors"
"""The worst points that the attack found, for the first samples, for those who look at them."""


@dataclass(frozen=True)
class Task:
    """A stage with what it needs.

    Attributes:
        models: the one judged, then a surrogate where there is one.
        data: judged on the first samples of its test part.
        attacked: the first inputs as the attack left them, for stages that look at those.
        folder: for the stage's files.
    """

    stage: Stage
    models: list[nn.Module]
    data: AnyDataset
    attacked: Tensor | None
    folder: Path

    @cached_property
    def samples(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels on the model's device."""
        device = next(self.model.parameters()).device
        x, y = self.data.test.tensors(self.config.samples)
        return x.to(device), y.to(device)

    @property
    def x(self) -> Tensor:
        """Inputs."""
        return self.samples[0]

    @property
    def y(self) -> Tensor:
        """Labels."""
        return self.samples[1]

    @property
    def model(self) -> nn.Module:
        """The one judged."""
        return self.models[0]

    @property
    def config(self) -> AuditConfig:
        """How it is judged."""
        return self.stage.cell.audit

    @property
    def threat(self) -> ThreatConfig:
        """The threat the stage is about."""
        return self.stage.threat

    @property
    def points(self) -> Tensor:
        """The attacked inputs."""
        assert self.attacked is not None
        return self.attacked


def look(stage: Stage, models: list[nn.Module], data: AnyDataset, points: Path | None, folder: Path) -> Record:
    """Do one step of the audit.

    Args:
        stage: which.
        models: the one judged, then a surrogate where there is one.
        data: judged on its test part.
        points: where the attack's stage lies, for steps that look at what it found.
        folder: for the stage's files.

    Raises:
        ModelError: where the step cannot be done for this model.
    """
    device = next(models[0].parameters()).device
    attacked = None if points is None else load_file(points / _POINTS)["x"].to(device)
    return _STEPS[stage.kind](Task(stage, models, data, attacked, folder))


def _bound(task: Task) -> Record:
    """Paced by operations, so that every run gives the same digits."""
    return steps.bound(task.model, task.x, task.y, task.threat, task.config, by_clock=False)


def _attack(task: Task) -> Record:
    result, worst = steps.attack(task.model, task.x, task.y, task.threat, task.config, task.stage.seed)
    save_file({"x": worst[: task.config.traced_samples].cpu().contiguous()}, task.folder / _POINTS)
    return result


def _universal(task: Task) -> Record:
    fit = (task.data.x_train.to(task.x.device), task.data.y_train.to(task.x.device))
    return steps.fool(task.model, fit, task.x, task.y, task.threat, task.config, task.stage.seed)


def _transferred(task: Task) -> Record:
    surrogate = task.models[1]
    return steps.carry(surrogate, task.model, task.x, task.y, task.threat, task.config, task.stage.seed)


def _mechanism(task: Task) -> Record:
    return steps.explain(task.model, task.x[: len(task.points)], task.points, task.threat, task.config)


def _pictures(task: Task) -> Record:
    count = len(task.points)
    return steps.draw(task.model, task.x[:count], task.points, task.y[:count], task.threat, task.config)


def _retrieval(task: Task) -> Retrieved:
    """With the text tower as it was before training, which is how it still is: the penalty and the loss move the other."""
    config, captions, stage = task.stage.cell.model, task.config.captions, task.stage
    assert isinstance(config, ZeroShotConfig)
    assert captions is not None
    captioned = load_captions(Path(captions.folder).expanduser(), captions.split)
    clip = with_tower(config.clip(task.data.input_shape, seed=stage.seed), task.model)
    found = retrieval(clip, captioned, workers=stage.cell.judged_data.workers)
    recalls = {"image_to_text": found.image_to_text, "text_to_image": found.text_to_image}
    shares = {f"{way}_{k}": share for way, by_k in recalls.items() for k, share in by_k.items()}
    return Retrieved(images=len(captioned.images), captions=len(captioned.captions), **shares)


_STEPS: dict[str, Callable[[Task], Record]] = {
    "profile": lambda task: steps.measure(task.model, task.x, task.y, task.config),
    "bound": _bound,
    "attack": _attack,
    "universal": _universal,
    "mechanism": _mechanism,
    "query": lambda task: steps.query(task.model, task.x, task.y, task.threat, task.config, task.stage.seed),
    "transferred": _transferred,
    "pictures": _pictures,
    "retrieval": _retrieval,
}
