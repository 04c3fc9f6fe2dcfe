"""The loop of a training: steps, epochs, what is checked after each, and what others bring into it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pinchpoint.data.part import Part
from pinchpoint.errors import DivergedError, ModelError
from pinchpoint.records import EpochRecord, Training
from pinchpoint.train.augment import augment
from pinchpoint.train.config import TrainConfig, learning_rate
from pinchpoint.train.noise import add_noise
from pinchpoint.train.parallel import Engine
from pinchpoint.train.state import Session
from pinchpoint.train.validation import Attack, validate

_CHECK_EVERY = 16  # steps between looks at the loss on an accelerator, where each look waits for it
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SUMS = torch.float64


@runtime_checkable
class Trainable(Protocol):
    """What of a data set the loop needs."""

    @property
    def train(self) -> Part:
        """What is learned from."""

    @property
    def validation(self) -> Part:
        """What decides when to stop."""


@dataclass(frozen=True)
class Hooks:
    """What others bring into the loop; each may be left out.

    Attributes:
        penalty: added to the loss of each step.
        after_step: called on the model after each optimiser step.
        attack: its examples take the place of ``adversarial_share`` of each batch, or make the second term of TRADES.
        check: called after each epoch; a sentence ends the training, which then keeps the weights of the epoch before.
        on_step: told epoch, step and steps of the epoch.
        on_epoch: told what each epoch came to.
    """

    penalty: Callable[[nn.Module], Tensor] | None = None
    after_step: Callable[[nn.Module], object] | None = None
    attack: Attack | None = None
    check: Callable[[nn.Module], str | None] | None = None
    on_step: Callable[[int, int, int], object] | None = None
    on_epoch: Callable[[EpochRecord], object] | None = None


class Loop:
    """Epochs and steps over a session.

    A last batch of one sample joins the one before it: batch normalisation may see one value a channel in it.
    """

    def __init__(
        self,
        session: Session,
        data: Trainable,
        config: TrainConfig,
        hooks: Hooks,
        engine: Engine,
        state: Path | None,
        save_seconds: float,
        recipe: str,
    ) -> None:
        self.session, self.data, self.config, self.hooks, self.engine = session, data, config, hooks, engine
        self.state, self.save_seconds, self.recipe = state, save_seconds, recipe
        self.steps_per_epoch = len(_batches(torch.arange(len(data.train)), config.batch_size))
        self.wrapped, _ = engine.setup(session.model, session.optimizer)
        self.parameters = [one for one in session.model.parameters() if one.requires_grad]
        self.losses: list[Tensor] = []
        self.began = self.saved = time.perf_counter()

    def run(self) -> None:
        """Epochs until the last one, patience or a check ends them."""
        progress = self.session.progress
        self.began -= progress.seconds
        while self._goes_on():
            self._epoch()
            self._judge()
            if self.state is not None and (self._due() or not self._goes_on()):
                self._save()

    def finish(self) -> Training:
        """Put the kept weights back and say what came of it."""
        session, progress = self.session, self.session.progress
        session.model.load_state_dict(session.kept)
        session.optimizer.zero_grad(set_to_none=True)
        session.model.eval()
        return Training(
            epochs=progress.epoch,
            best_epoch=progress.best_epoch,
            validation_loss=math.nan if progress.best_loss is None else progress.best_loss,
            validation_accuracy=progress.best_accuracy,
            seconds=progress.seconds,
            steps=progress.epoch * self.steps_per_epoch,
            stopped=progress.stopped,
            history=progress.history,
        )

    def _goes_on(self) -> bool:
        return self.session.progress.epoch < self.config.epochs and self.session.progress.stopped is None

    def _epoch(self) -> None:
        session, config, progress, engine = self.session, self.config, self.session.progress, self.engine
        session.model.train()
        beginning = session.order.get_state()
        order = torch.randperm(len(self.data.train), generator=session.order)
        batches = _batches(order, config.batch_size)[progress.step :]
        after = session.order.get_state()
        session.order.set_state(beginning)  # what is saved meanwhile draws this epoch's order again
        shares = [_share(rows, engine) for rows in batches]
        for (x, y), rows in zip(self.data.train.batches(shares, engine.device), batches, strict=True):
            self._step(x, y, len(rows))
            progress.step += 1
            if self.hooks.on_step is not None:
                self.hooks.on_step(progress.epoch + 1, progress.step, self.steps_per_epoch)
            if self.state is not None and self._due():
                self._look()
                self._save()
        self._look()
        session.order.set_state(after)

    def _step(self, x: Tensor, y: Tensor, of: int) -> None:
        """One optimiser step on this process's share of a batch of ``of`` samples."""
        session, config, progress = self.session, self.config, self.session.progress
        rate = learning_rate(config, progress.epoch * self.steps_per_epoch + progress.step, self.steps_per_epoch)
        for group in session.optimizer.param_groups:
            group["lr"] = rate
        x = augment(x, config.augment, session.augment)
        pieces = list(zip(x.chunk(config.accumulate), y.chunk(config.accumulate), strict=True))
        weight = self.engine.processes / of
        mine = _real(of, self.engine) / len(y)  # 0 where this process got a stand-in
        for number, (x_piece, y_piece) in enumerate(pieces, start=1):
            more = number < len(pieces)
            with self.engine.accumulating(self.wrapped, more):
                with torch.autocast(x.device.type, _DTYPES[config.precision], enabled=config.precision != "float32"):
                    loss = self._judged(x_piece, y_piece)
                data_loss = loss * (len(y_piece) * mine * weight)
                self.losses.append(data_loss.detach() * of)
                if x.device.type == "cpu" or len(self.losses) >= _CHECK_EVERY:
                    self._look()  # before gradients are overwritten: an error shows those of the step before
                if number == 1:
                    session.optimizer.zero_grad(set_to_none=True)
                total = data_loss
                if self.hooks.penalty is not None and not more:
                    total = total + self.hooks.penalty(session.model)
                self.engine.backward(session.scaler.scale(total))
        self._update()

    def _update(self) -> None:
        session, config = self.session, self.config
        if config.clip_norm is not None:
            session.scaler.unscale_(session.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        session.scaler.step(session.optimizer)
        session.scaler.update()
        if config.noise is not None:
            add_noise(self.parameters, config.noise.alpha, config.noise.scale)
        if self.hooks.after_step is not None:
            self.hooks.after_step(session.model)
        if isinstance(session.average, AveragedModel):
            session.average.update_parameters(session.model)

    def _judged(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss; batch normalisation of a single value is refused in our words."""
        try:
            return self._loss(x, y)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ModelError(
                "batch normalisation needs more than one value a channel in training",
                f"a batch of {len(x)} with one",
                "use a larger train.batch_size, a smaller train.accumulate or more training samples",
            ) from None

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        config, attack, model = self.config, self.hooks.attack, self.session.model
        smoothing = config.label_smoothing
        if attack is not None and config.trades_beta is not None:
            x_adv = attack(model, x, y)
            clean = _wide(self.wrapped(x))
            pulled = nn.functional.kl_div(
                _wide(self.wrapped(x_adv)).log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean"
            )
            return nn.functional.cross_entropy(clean, y, label_smoothing=smoothing) + config.trades_beta * pulled
        attacked = round(config.adversarial_share * len(x)) if attack is not None else 0
        if attack is not None and attacked:
            x = torch.cat([attack(model, x[:attacked], y[:attacked]), x[attacked:]])
        return nn.functional.cross_entropy(_wide(self.wrapped(x)), y, label_smoothing=smoothing)

    def _look(self) -> None:
        """Take the losses since the last look into the sum; stop where one is not finite."""
        progress = self.session.progress
        for value in torch.stack(self.losses).tolist() if self.losses else []:
            progress.loss += value
            if not math.isfinite(value):
                step = progress.epoch * self.steps_per_epoch + progress.step + 1
                at = f"at step {step}" if len(self.losses) == 1 else f"at or shortly before step {step}"
                raise self._broken(f"a training loss of {value} {at} (epoch {progress.epoch + 1})")
        self.losses.clear()

    def _judge(self) -> None:
        """The end of an epoch: validate, keep the weights or not, decide whether to go on."""
        session, config, progress = self.session, self.config, self.session.progress
        shown = session.average.module if isinstance(session.average, AveragedModel) else session.model
        loss, accuracy = validate(shown, self.data.validation, self.engine.device)
        attacked = None
        if config.monitor == "attacked":
            attacked, _ = validate(shown, self.data.validation, self.engine.device, self.hooks.attack)
        train_loss = float(self.engine.sum(torch.tensor(progress.loss, device=self.engine.device, dtype=_SUMS)))
        train_loss /= self.engine.processes * len(self.data.train)
        decisive = loss if attacked is None else attacked
        if not math.isfinite(decisive):
            raise self._broken(f"a validation loss of {decisive} after epoch {progress.epoch + 1}")
        progress.stopped = self.hooks.check(shown) if self.hooks.check is not None else None
        progress.epoch, progress.step, progress.loss = progress.epoch + 1, 0, 0.0
        progress.seconds = time.perf_counter() - self.began
        record = EpochRecord(
            number=progress.epoch,
            train_loss=train_loss,
            validation_loss=loss,
            validation_accuracy=accuracy,
            attacked_loss=attacked,
        )
        progress.history.append(record)
        if self.hooks.on_epoch is not None:
            self.hooks.on_epoch(record)
        before = None if not progress.best_epoch else _decisive(progress.history[progress.best_epoch - 1])
        better = before is None or decisive < before
        if progress.stopped is not None and progress.best_epoch:
            return
        if better or config.patience is None:
            progress.best_loss, progress.best_accuracy, progress.best_epoch = loss, accuracy, progress.epoch
            session.kept = {name: value.detach().clone() for name, value in shown.state_dict().items()}
        elif progress.epoch - progress.best_epoch >= config.patience:
            progress.stopped = f"no lower validation loss for {config.patience} epochs"

    def _broken(self, seen: str) -> DivergedError:
        """The error of a loss that is no longer finite, after the last good weights are back."""
        gradient, best = _gradients(self.session.model), self.session.progress.best_epoch
        kept = f"the weights of epoch {best}" if best else "the initial weights"
        self.session.model.load_state_dict(self.session.kept)
        self.session.model.eval()
        return DivergedError(
            "the loss must stay finite",
            f"{seen}; {gradient}",
            f"lower train.learning_rate or set train.clip_norm; {kept} are kept",
            best,
        )

    def _due(self) -> bool:
        due = time.perf_counter() - self.saved >= self.save_seconds
        if self.engine.processes > 1:  # the first process's clock decides
            due = bool(self.engine.gather(torch.tensor(int(due), device=self.engine.device))[0])
        return due

    def _save(self) -> None:
        assert self.state is not None
        self.session.progress.seconds = time.perf_counter() - self.began
        self.session.save(self.state, self.recipe, self.engine)
        self.saved = time.perf_counter()


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Row numbers in batches of that size, in order; a last batch of one joins the one before it.

    >>> [len(rows) for rows in _batches(torch.arange(9), 4)]
    [4, 5]
    """
    batches = list(order.split(size))
    if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _share(rows: Tensor, engine: Engine) -> Tensor:
    """This process's part of a batch; where the batch is too small for all, a stand-in that will count nothing."""
    mine = rows[engine.rank :: engine.processes]
    return mine if len(mine) else rows[:1]


def _real(of: int, engine: Engine) -> int:
    """How many of its rows count."""
    return len(range(engine.rank, of, engine.processes))


def _wide(logits: Tensor) -> Tensor:
    """In float32 at least, whatever the precision of the forward pass."""
    return logits.float() if logits.dtype.itemsize < 4 else logits


def _decisive(epoch: EpochRecord) -> float:
    return epoch.validation_loss if epoch.attacked_loss is None else epoch.attacked_loss


def _gradients(model: nn.Module) -> str:
    """The gradients that are there, in a few words: those of the last whole step."""
    norms = {name: float(gradient.norm()) for name, gradient in _taken(model)}
    if not norms:
        return "no gradient had been taken yet"
    odd = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if odd:
        return f"the gradient of the step before is not finite either, first in {odd[0]}"
    largest = max(norms, key=lambda name: norms[name])
    return f"the gradient of the step before had length {math.hypot(*norms.values()):.3g}, most in {largest}"


def _taken(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad
