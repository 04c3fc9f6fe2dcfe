"""Whatever model, inputs and labels are given to a public function: a result or one sentence, and soon.

A case that fails is shown by its seed: ``odd_models.draw(seed)`` makes it again.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pinchpoint as pp
from oracles.console import pinch
from oracles.odd_models import Case, draw
from pinchpoint import attack, evaluate, mechanism
from pinchpoint.evaluate.named_attacks import Plan
from pinchpoint.mechanism.decisions import decision_plane, dominant_direction, pictures, representation_pca

LONGEST = 60.0
"""Seconds that no call may take."""


def moved(x: Any) -> Any:
    """Something that an attack might have made of the inputs."""
    if isinstance(x, Tensor) and x.is_floating_point() and x.layout == torch.strided:
        return x + 0.05 * torch.rand(x.shape, device=x.device)
    return x


ATTACKS: dict[str, Callable[[Case], Any]] = {
    "pgd": lambda c: attack.pgd(c.model, c.x, c.y, c.threat, steps=3),
    "apgd": lambda c: attack.apgd(c.model, c.x, c.y, c.threat, steps=5),
    "targeted_apgd": lambda c: attack.targeted_apgd(
        c.model, c.x, c.y, c.threat, steps=3, targets=2, objective=attack.targeted_margin
    ),
    "fab": lambda c: attack.fab(c.model, c.x, c.y, c.threat, steps=3),
    "nearest_misclassified": lambda c: attack.nearest_misclassified(c.model, c.x, c.y, c.threat, steps=3),
    "square": lambda c: attack.square(c.model, c.x, c.y, c.threat, queries=10),
    "fgsm": lambda c: attack.fgsm(c.model, c.x, c.y, c.threat),
    "deepfool": lambda c: attack.deepfool(c.model, c.x, c.y, c.threat, steps=3),
    "minimum_norm": lambda c: attack.minimum_norm(c.model, c.x, c.y, c.threat, steps=3),
    "universal": lambda c: attack.universal(c.model, c.x, c.y, c.threat, steps=3),
    "universal_deepfool": lambda c: attack.universal_deepfool(c.model, c.x, c.y, c.threat, epochs=1, steps=3),
    "standard_ensemble": lambda c: attack.standard_ensemble(c.model, c.x),
}
JUDGES: dict[str, Callable[[Case], Any]] = {
    "accuracy": lambda c: evaluate.accuracy(c.model, c.x, c.y),
    "cross_entropy_loss": lambda c: evaluate.cross_entropy_loss(c.model, c.x, c.y),
    "logits_of": lambda c: evaluate.logits_of(c.model, c.x),
    "robust_accuracy": lambda c: pp.robust_accuracy(c.model, c.x, c.y, c.threat, attacks=few(c)),
    "robust_curve": lambda c: pp.robust_curve(c.model, c.x, c.y, [c.threat]),
    "smallest_eps": lambda c: evaluate.smallest_eps(c.model, c.x, c.y, "linf", 0.1, steps=3),
    "adversarial_loss": lambda c: evaluate.adversarial_loss(c.model, c.x, c.y, c.threat, steps=3),
    "universal_accuracy": lambda c: evaluate.universal_accuracy(c.model, (c.x, c.y), (c.x, c.y), c.threat, steps=3),
    "masking_warnings": lambda c: evaluate.masking_warnings(c.model, c.x, c.y, c.threat, steps=3, queries=10),
    "attack_sheet": lambda c: evaluate.attack_sheet(
        c.model, evaluate.Samples(c.x, c.y), [c.threat], Plan("pgd", steps=3, curve=2)
    ),
    "transfer_matrix": lambda c: evaluate.transfer_matrix({"it": c.model}, c.x, c.y, c.threat, attack=few(c)["pgd"]),
    "access": lambda c: evaluate.access(c.model, {}, c.x, c.y, c.threat, attacks=few(c), queries=10),
}
EXPLAINERS: dict[str, Callable[[Case], Any]] = {
    "gains": lambda c: mechanism.gains(c.model, c.x, moved(c.x)),
    "pictures": lambda c: pictures(c.model, c.x, moved(c.x), c.y, c.threat, planes=1, size=3),
    "representation_pca": lambda c: representation_pca(c.model, c.x, moved(c.x), c.y, components=1),
    "dominant_direction": lambda c: dominant_direction(c.model, first(c.x)),
    "decision_plane": lambda c: decision_plane(c.model, first(c.x), first(moved(c.x)), 0, size=3),
}


MEASURES: dict[str, Callable[[Case], Any]] = {
    "layers": lambda c: pp.layers(c.model, input_shape=shape_of(c.x)),
    "profile": lambda c: pp.profile(c.model, input_shape=shape_of(c.x)),
    "one at a time": lambda c: evaluate.logits_of(pp.OneAtATime(c.model), c.x),
}
BOUNDS: dict[str, Callable[[Case], Any]] = {
    "lipschitz": lambda c: pp.lipschitz(c.model, norm="l2", input_shape=shape_of(c.x), budget_s=0.1),
    "margins": lambda c: pp.margins(c.model, norm="linf", input_shape=shape_of(c.x), budget_s=0.1),
}
AUDITS: dict[str, Callable[[Case], Any]] = {
    "audit": lambda c: pp.audit(c.model, (c.x, c.y), [c.threat], samples=3, budget=2.0, standard=False),
}


def shape_of(x: Any) -> tuple[int, ...]:
    return tuple(x.shape[1:]) if isinstance(x, Tensor) and x.ndim > 1 else (6,)


def first(x: Any) -> Any:
    return x[0] if isinstance(x, Tensor) and x.ndim > 1 and len(x) else x


def few(case: Case) -> dict[str, Any]:
    return {"pgd": lambda m, a, b, t: attack.pgd(m, a, b, t, steps=2)}


def look(seed: int, calls: dict[str, Callable[[Case], Any]]) -> list[str]:
    """What ends otherwise than it should, of these calls on the case of this seed."""
    wrong = []
    for name, call in calls.items():
        case = draw(seed)
        comparable = isinstance(case.x, Tensor) and case.x.layout == torch.strided and case.x.device.type == "cpu"
        before = case.x.detach().clone() if comparable else None
        modes = [one.training for one in case.model.modules()] if isinstance(case.model, nn.Module) else []
        began = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(case)
        except pp.PinchpointError:
            pass
        except Exception as error:
            wrong.append(f"{name}({case}), seed {seed}: {type(error).__name__}: {str(error)[:200]}")
        if time.perf_counter() - began > LONGEST:
            wrong.append(f"{name}({case}), seed {seed}: took more than a minute")
        if before is not None and not torch.equal(before.nan_to_num(7.0), case.x.detach().nan_to_num(7.0)):
            wrong.append(f"{name}({case}), seed {seed}: changed the caller's inputs")
        if modes and modes != [one.training for one in case.model.modules()]:
            wrong.append(f"{name}({case}), seed {seed}: left the model in another mode")
    return wrong


def told(seed: int, folder: Path) -> list[str]:
    """What ends otherwise than it should, of the commands on the model of this seed, made by a user's own code."""
    size, data = ("--input-size", "1x8x8"), ("--data", "digits", "--samples", 5)
    commands: dict[str, tuple[object, ...]] = {
        "profile": size,
        "attack": (*data, "--attack", "pgd", "--steps", 2, "--curve", 2),
        "audit": (*data, "--budget", "2s", "--out", folder / f"audit-{seed}"),
    }
    wrong = []
    for name, options in commands.items():
        case = draw(seed, (1, 8, 8), 10)
        made = ModuleType("odd_code")
        made.make = lambda model=case.model: (model, {"normalize": "none"})  # type: ignore[attr-defined]
        began = time.perf_counter()
        try:
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                patch.setitem(sys.modules, "odd_code", made)
                said = pinch(name, "py:odd_code:make", *options)
            if said.status == 2 and "error: " not in said.err:
                wrong.append(f"{name} ({case}), seed {seed}: status 2 without a sentence: {said.err[-200:]}")
            if said.status not in (0, 1, 2):
                wrong.append(f"{name} ({case}), seed {seed}: status {said.status}")
        except Exception as error:
            wrong.append(f"{name} ({case}), seed {seed}: {type(error).__name__}: {str(error)[:200]}")
        if time.perf_counter() - began > LONGEST:
            wrong.append(f"{name} ({case}), seed {seed}: took more than a minute")
    return wrong


SEEDS = st.integers(0, 2**32)
CALLS = ATTACKS | JUDGES | EXPLAINERS | MEASURES | BOUNDS | AUDITS


@settings(max_examples=20)
@given(seed=SEEDS)
def test_some_odd_models_through_every_public_function(seed):
    assert look(seed, CALLS) == []


@settings(max_examples=4)
@given(seed=SEEDS)
def test_some_odd_models_through_the_commands(tmp_path_factory, seed):
    assert told(seed, tmp_path_factory.mktemp("odd")) == []


@pytest.mark.slow
@settings(max_examples=500)
@given(seed=SEEDS)
def test_many_odd_models_through_every_public_function(seed):
    assert look(seed, CALLS) == []


@pytest.mark.slow
@settings(max_examples=150)
@given(seed=SEEDS)
def test_many_odd_models_through_the_commands(tmp_path_factory, seed):
    assert told(seed, tmp_path_factory.mktemp("odd")) == []
