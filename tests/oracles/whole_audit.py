"""All steps of a study's audit in turn, on one model: what its stages do one by one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from pinchpoint.auditing import steps
from pinchpoint.auditing.config import AuditConfig
from pinchpoint.data.load import AnyDataset
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.records import Audit
from pinchpoint.study.analysis.assemble import NormResults, assemble

_Result = TypeVar("_Result")


def audit(
    model: nn.Module,
    data: AnyDataset,
    config: AuditConfig | None = None,
    *,
    seed: int = 0,
    on_stage: Callable[[str], None] | None = None,
) -> Audit:
    """Measure, bound, attack and explain one model.

    Args:
        model: returns logits for inputs in [0, 1].
        data: its test part is attacked; universal perturbations are fitted on its training part.
        config: threats and effort.
        seed: of the attacks.
        on_stage: told what is being done.

    Returns:
        An ``Audit``. What cannot be bounded is named in ``warnings``, and its numbers are None or left out.

    Raises:
        ConfigError: for stages that need more than one model.
    """
    config = config or AuditConfig()
    for more in ("transferred", "retrieval"):
        if more in config.stages:
            raise ConfigError("an audit looks at one model", list(config.stages), f"leave {more} to a study")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    x, y = (tensor.to(device) for tensor in data.test.tensors(config.samples))
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[..., _Result], *args: object) -> _Result:
        if on_stage is not None:
            on_stage(name)
        start = time.perf_counter()
        try:
            return work(*args)
        finally:
            seconds[name] = time.perf_counter() - start

    measured = timed("profile", steps.measure, model, x, y, config)
    results, kept = [], config.traced_samples
    for threat in config.threats:
        found, norm, where = NormResults(threat.norm), threat.norm, None
        if "bound" in config.stages:
            try:
                found.results.append(timed(f"bound {norm}", steps.bound, model, x, y, threat, config))
            except ModelError as error:
                found.reasons["bound"] = str(error)
        if "attack" in config.stages:
            judged, where = timed(f"attack {norm}", steps.attack, model, x, y, threat, config, seed)
            found.results.append(judged)
        if "universal" in config.stages:
            fit = (data.x_train.to(device), data.y_train.to(device))
            found.results.append(timed(f"universal {norm}", steps.fool, model, fit, x, y, threat, config, seed))
        if "query" in config.stages:
            found.results.append(timed(f"query {norm}", steps.query, model, x, y, threat, config, seed))
        if "mechanism" in config.stages and where is not None:
            try:
                found.results.append(
                    timed(f"mechanism {norm}", steps.explain, model, x[:kept], where[:kept], threat, config)
                )
            except ModelError as error:
                found.reasons["mechanism"] = str(error)
        if "pictures" in config.stages and where is not None:
            try:
                found.results.append(
                    timed(f"pictures {norm}", steps.draw, model, x[:kept], where[:kept], y[:kept], threat, config)
                )
            except ModelError as error:
                found.reasons["pictures"] = str(error)
        results.append(found)
    return assemble(measured, results, seconds)
