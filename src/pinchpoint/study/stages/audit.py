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
class Inputs:
    """What a stage looks at.

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
    return _STEPS[stage.kind](Inputs(stage, models, data, attacked, folder))


def _bound(inputs: Inputs) -> Record:
    """Paced by operations, so that every run gives the same digits."""
    return steps.bound(inputs.model, inputs.x, inputs.y, inputs.threat, inputs.config, by_clock=False)


def _attack(inputs: Inputs) -> Record:
    result, worst = steps.attack(inputs.model, inputs.x, inputs.y, inputs.threat, inputs.config, inputs.stage.seed)
    save_file({"x": worst[: inputs.config.traced_samples].cpu().contiguous()}, inputs.folder / _POINTS)
    return result


def _universal(inputs: Inputs) -> Record:
    fit = (inputs.data.x_train.to(inputs.x.device), inputs.data.y_train.to(inputs.x.device))
    return steps.fool(inputs.model, fit, inputs.x, inputs.y, inputs.threat, inputs.config, inputs.stage.seed)


def _transferred(inputs: Inputs) -> Record:
    surrogate = inputs.models[1]
    return steps.carry(surrogate, inputs.model, inputs.x, inputs.y, inputs.threat, inputs.config, inputs.stage.seed)


def _mechanism(inputs: Inputs) -> Record:
    return steps.explain(inputs.model, inputs.x[: len(inputs.points)], inputs.points, inputs.threat, inputs.config)


def _pictures(inputs: Inputs) -> Record:
    count = len(inputs.points)
    return steps.draw(inputs.model, inputs.x[:count], inputs.points, inputs.y[:count], inputs.threat, inputs.config)


def _retrieval(inputs: Inputs) -> Retrieved:
    """With the text tower as it was before training, which is how it still is: the penalty and the loss move the other."""
    config, captions, stage = inputs.stage.cell.model, inputs.config.captions, inputs.stage
    assert isinstance(config, ZeroShotConfig)
    assert captions is not None
    captioned = load_captions(Path(captions.folder).expanduser(), captions.split)
    clip = with_tower(config.clip(inputs.data.input_shape, seed=stage.seed), inputs.model)
    found = retrieval(clip, captioned, workers=stage.cell.judged_data.workers)
    recalls = {"image_to_text": found.image_to_text, "text_to_image": found.text_to_image}
    shares = {f"{way}_{k}": share for way, by_k in recalls.items() for k, share in by_k.items()}
    return Retrieved(images=len(captioned.images), captions=len(captioned.captions), **shares)


_STEPS: dict[str, Callable[[Inputs], Record]] = {
    "profile": lambda inputs: steps.measure(inputs.model, inputs.x, inputs.y, inputs.config),
    "bound": _bound,
    "attack": _attack,
    "universal": _universal,
    "mechanism": _mechanism,
    "query": lambda inputs: steps.query(
        inputs.model, inputs.x, inputs.y, inputs.threat, inputs.config, inputs.stage.seed
    ),
    "transferred": _transferred,
    "pictures": _pictures,
    "retrieval": _retrieval,
}
