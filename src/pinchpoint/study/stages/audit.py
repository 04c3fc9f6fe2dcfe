"""Stages that look at a model: each is a step of an audit, and its record what that step found."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pinchpoint.auditing import steps
from pinchpoint.data import AnyDataset
from pinchpoint.models.build import ZeroShotConfig
from pinchpoint.models.retrieval import load_captions, retrieval
from pinchpoint.models.zero_shot import with_tower
from pinchpoint.records import Record, Retrieved
from pinchpoint.study.graph.stages import Stage

_POINTS = "points.safetensors"
"""The worst points that the attack found, for the first samples, for those who look at them."""


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
    config, model = stage.cell.audit, models[0]
    device = next(model.parameters()).device
    if stage.kind == "retrieval":
        return _retrieve(stage, model, data)
    x, y = (tensor.to(device) for tensor in data.test.tensors(config.samples))
    if stage.kind == "profile":
        return steps.measure(model, x, y, config)
    threat, seed = stage.threat, stage.seed
    if stage.kind == "bound":
        return steps.bound(model, x, y, threat, config, by_clock=False)  # the same digits in every run
    if stage.kind == "attack":
        found, where = steps.attack(model, x, y, threat, config, seed)
        save_file({"x": where[: config.traced_samples].cpu().contiguous()}, folder / _POINTS)
        return found
    if stage.kind == "universal":
        fit = (data.x_train.to(device), data.y_train.to(device))
        return steps.fool(model, fit, x, y, threat, config, seed)
    if stage.kind == "query":
        return steps.query(model, x, y, threat, config, seed)
    if stage.kind == "transferred":
        return steps.carry(models[1], model, x, y, threat, config, seed)
    assert points is not None
    where = _points(points, device)
    if stage.kind == "mechanism":
        return steps.explain(model, x[: len(where)], where, threat, config)
    return steps.draw(model, x[: len(where)], where, y[: len(where)], threat, config)


def _retrieve(stage: Stage, model: nn.Module, data: AnyDataset) -> Retrieved:
    """With the text tower as it was before training, which is how it still is: the penalty and the loss move the other."""
    config, captions = stage.cell.model, stage.cell.audit.captions
    assert isinstance(config, ZeroShotConfig)
    assert captions is not None
    captioned = load_captions(Path(captions.folder).expanduser(), captions.split)
    clip = with_tower(config.clip(data.input_shape, seed=stage.seed), model)
    found = retrieval(clip, captioned, workers=stage.cell.judged_data.workers)
    recalls = {"image_to_text": found.image_to_text, "text_to_image": found.text_to_image}
    shares = {f"{way}_{k}": share for way, by_k in recalls.items() for k, share in by_k.items()}
    return Retrieved(images=len(captioned.images), captions=len(captioned.captions), **shares)


def _points(folder: Path, device: torch.device) -> Tensor:
    return load_file(folder / _POINTS)["x"].to(device)
