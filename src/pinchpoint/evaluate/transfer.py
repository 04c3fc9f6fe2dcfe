"""Attacks without access: made on one model and tried on another, or made of queries alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack import Threat, apply_universal, square, universal
from pinchpoint.attack.samples import check_logits, check_samples
from pinchpoint.errors import ModelError, PinchpointError
from pinchpoint.evaluate.default_attacks import Attack, Suite
from pinchpoint.evaluate.logits import BATCH, in_batch, logits_of, misclassified
from pinchpoint.evaluate.losses import adversarial_loss
from pinchpoint.evaluate.model_checks import one_answer
from pinchpoint.evaluate.robust_accuracy import robust_accuracy
from pinchpoint.evaluate.verdict import within
from pinchpoint.records import Access, TransferMatrix

UniversalAttack = Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]
"""(model, x, y, threat) -> one perturbation, shaped like one input."""


def transfer_matrix(
    models: Mapping[str, nn.Module],
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    attack: Attack | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
) -> TransferMatrix:
    """Examples made once on each model, and what every model answers to them.

    Args:
        models: by name; put into eval mode and back.
        x: inputs in the threat's box.
        y: labels.
        threat: ball and box.
        attack: makes the examples. Where None, AutoPGD raises each sample's cross-entropy to the end, those already
            misclassified included: a point just beyond one model's boundary is seldom beyond another's.
        batch_size: samples at a time.
        seed: of the default attack.

    Raises:
        ModelError: where there is no model, or one fails, saying which.
        DataError: for inputs no attack can take.

    >>> one, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    >>> _ = one.weight.data.copy_(torch.eye(2)), other.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    >>> x, y = torch.tensor([[0.6, 0.5], [0.9, 0.1]]), torch.tensor([0, 0])
    >>> transfer_matrix({"one": one, "other": other}, x, y, Threat("linf", 0.2)).robust_accuracy
    [[0.5, 1.0], [0.5, 1.0]]
    """
    x, y = check_samples(x, y, threat)
    with ExitStack() as asked:
        right = _right_at_once(models, x, y, batch_size, asked)
        examples = {}
        for name, model in models.items():
            with _of(name):
                examples[name] = _made_on(model, x, y, threat, attack, batch_size, seed)
        return _judge("examples", models, examples, right, x, y, threat, None, batch_size)


def universal_transfer(
    models: Mapping[str, nn.Module],
    fit: tuple[Float[Tensor, "fit *shape"], Int[Tensor, "fit"]],
    held_out: tuple[Float[Tensor, "held_out *shape"], Int[Tensor, "held_out"]],
    threat: Threat,
    *,
    attack: UniversalAttack | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
) -> TransferMatrix:
    """One perturbation fitted on each model, and the accuracy of every model under it on data none was fitted on.

    Args:
        models, threat, batch_size: as in ``transfer_matrix``.
        fit: inputs and labels the perturbations are fitted on.
        held_out: inputs and labels they are judged on.
        attack: fits a perturbation; ``pinchpoint.attack.universal`` where None.
        seed: of the default attack.

    Raises:
        ModelError, DataError: as in ``transfer_matrix``.
    """
    fit_one = partial(universal, seed=seed) if attack is None else attack
    x, y = check_samples(*held_out, threat)
    with ExitStack() as asked:
        right = _right_at_once(models, x, y, batch_size, asked)
        moved = {}
        for name, model in models.items():
            with _of(name):
                moved[name] = apply_universal(x, fit_one(model, *fit, threat)[None], threat)
        return _judge("universal", models, moved, right, x, y, threat, len(fit[0]), batch_size)


def access(
    model: nn.Module,
    surrogates: Mapping[str, nn.Module],
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    attacks: dict[str, Attack] | Suite | None = None,
    attack: Attack | None = None,
    queries: int = 1000,
    batch_size: int = BATCH,
    seed: int = 0,
) -> Access:
    """Does the weakness need white-box access? The same samples under gradients, under transfer and under queries.

    Args:
        model: the one attacked.
        surrogates: models by name on which examples are made for it; may be empty.
        x, y, threat, batch_size: as in ``transfer_matrix``.
        attacks: the white-box ones, as in ``robust_accuracy``.
        attack: makes examples on the surrogates, as in ``transfer_matrix``.
        queries: answers asked of the model for a sample, at most, by the Square attack.
        seed: of the transfer attack and of Square.

    Raises:
        ModelError: where a model fails, saying which.
        DataError: for inputs no attack can take.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x, y = torch.tensor([[0.6, 0.5], [0.9, 0.1]]), torch.tensor([0, 0])
    >>> found = access(model, {"itself": model}, x, y, Threat("linf", 0.2), queries=50)
    >>> found.white_box, found.transfer, found.queries, found.only_white_box
    (0.5, {'itself': 0.5}, 0.5, 0)
    """
    x, y = check_samples(x, y, threat)
    against = partial(robust_accuracy, model, x, y, threat, batch_size=batch_size)
    with one_answer(model, x):
        white = against(attacks=attacks)
        transferred = {}
        for name, surrogate in surrogates.items():
            with _of(name), one_answer(surrogate, x):
                examples = _made_on(surrogate, x, y, threat, attack, batch_size, seed)
            transferred[name] = against(attacks={}, known=examples)
        queried = against(attacks={"square": partial(square, queries=queries, seed=seed)})
    without_gradients = queried.fallen
    for verdict in transferred.values():
        without_gradients = without_gradients | verdict.fallen
    return Access(
        norm=threat.norm,
        eps=threat.eps,
        samples=len(x),
        clean_accuracy=1.0 - white.stage.count("clean") / len(x),
        white_box=white.robust_accuracy,
        transfer={name: verdict.robust_accuracy for name, verdict in transferred.items()},
        queries=queried.robust_accuracy,
        query_budget=queries,
        black_box=_share(~without_gradients),
        only_white_box=int((white.fallen & ~without_gradients).sum()),
        only_black_box=int((without_gradients & ~white.fallen).sum()),
    )


def _made_on(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, attack: Attack | None, batch_size: int, seed: int
) -> Tensor:
    if attack is None:
        return adversarial_loss(model, x, y, threat, seed=seed)[1]
    parts = []
    for rows in torch.arange(len(x), device=x.device).split(batch_size):
        with in_batch(rows, len(x)):
            parts.append(attack(model, x[rows], y[rows], threat))
    return torch.cat(parts)


def _right_at_once(
    models: Mapping[str, nn.Module], x: Tensor, y: Tensor, batch_size: int, asked: ExitStack
) -> dict[str, Tensor]:
    """For each model, the samples it gets right without attack. Models are checked; none is asked again (``one_answer``)
    before ``asked`` is closed."""
    if not models:
        raise ModelError("attacks are transferred between one model or more", "none", "give models by name")
    right = {}
    for name, model in models.items():
        with _of(name):
            asked.enter_context(one_answer(model, x))
            logits = logits_of(model, x, batch_size)
            check_logits(logits, y, len(x))
            right[name] = ~misclassified(logits, y)
    return right


def _judge(
    made: Literal["examples", "universal"],
    models: Mapping[str, nn.Module],
    candidates: dict[str, Tensor],
    right: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    threat: Threat,
    fitted_on: int | None,
    batch_size: int,
) -> TransferMatrix:
    """What every model answers to every source's candidates; those outside ball or box do not count."""
    fell: dict[str, dict[str, Tensor]] = {}
    for source, found in candidates.items():
        stored = found.detach().float().to(x.dtype)
        allowed = within(stored, x, threat)
        fell[source] = {}
        for target, model in models.items():
            with _of(target):
                fell[source][target] = misclassified(logits_of(model, stored, batch_size), y) & allowed
    if made == "universal":
        stands = {a: {b: ~fell[a][b] for b in models} for a in models}
    else:  # whoever attacks a sample alone leaves it as it is where it is misclassified
        stands = {a: {b: ~fell[a][b] & right[b] for b in models} for a in models}
    finds = {a: {b: fell[a][a] & right[a] & right[b] for b in models} for a in models}
    return TransferMatrix(
        made=made,
        norm=threat.norm,
        eps=threat.eps,
        samples=len(x),
        fitted_on=fitted_on,
        models=list(models),
        clean_accuracy=[_share(right[name]) for name in models],
        robust_accuracy=[[_share(stands[a][b]) for b in models] for a in models],
        finds=[[int(finds[a][b].sum()) for b in models] for a in models],
        carried=[[int((finds[a][b] & fell[a][b]).sum()) for b in models] for a in models],
    )


def _share(samples: Tensor) -> float:
    return 1.0 - float((~samples).double().mean())


@contextmanager
def _of(name: str) -> Iterator[None]:
    """Where one of several models fails, the error says which."""
    try:
        yield
    except PinchpointError as error:
        raise type(error)(error.rule, f"{name}: {error.value}", error.remedy) from error
