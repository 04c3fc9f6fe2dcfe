"""The verdict engine: who still stands, attack after attack, with every example checked in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack import Threat, gradient_doubt
from pinchpoint.attack.gradient import at_once, attacking
from pinchpoint.attack.samples import check_logits, check_samples
from pinchpoint.errors import ConfigError, DataError, ModelError, PinchpointWarning
from pinchpoint.evaluate.default_attacks import Attack, LowPrecision, Suite, suite
from pinchpoint.evaluate.logits import BATCH, in_batch, logits_of, misclassified
from pinchpoint.evaluate.model_checks import one_answer
from pinchpoint.evaluate.resume import fingerprint, load_state, save_state
from pinchpoint.evaluate.verdict import Verdict, within


@dataclass(frozen=True)
class Progress:
    """Where an evaluation is: ``done`` of the ``total`` samples this stage sees, and how many of all still stand."""

    stage: str
    done: int
    total: int
    standing: int
    samples: int


Watcher = Callable[[Progress], None]


def robust_accuracy(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    attacks: dict[str, Attack] | Suite | None = None,
    known: Float[Tensor, "batch *shape"] | None = None,
    certified_radii: Float[Tensor, "batch"] | None = None,
    batch_size: int = BATCH,
    low_precision: bool = False,
    watcher: Watcher | None = None,
    resume: Path | None = None,
) -> Verdict:
    """Attack what is still standing, one attack after the other, and check every example that comes back.

    What it says is the share that these attacks left: a ceiling, never a certificate. By default they are two AutoPGDs
    (``default_attacks``), which are quick and on robust networks leave about one sample in fifty more standing than the
    standard ensemble (AutoAttack); ``attacks="standard"`` is that ensemble, and the figure to report. ``Verdict.attacks``
    names what was run.

    Misclassified samples and samples whose certified radius covers eps need no attack. The survivors of all batches of
    one attack are packed into full batches for the next.

    Args:
        model: returns logits; put into eval mode and back.
        x: inputs in the threat's box.
        y: labels.
        threat: ball and box.
        attacks: ``apgd`` (``default_attacks``, also where None), ``quick`` or ``standard`` (``standard_ensemble``); or
            attacks of one's own by name, cheap ones first. Where the gradient is not the function's, those that go by a
            name are joined by attacks that need none, and a warning says so, here and in ``Verdict.warnings``.
        known: candidate examples from elsewhere (a smaller budget, another model), tried before any attack.
        certified_radii: in the threat's norm, as ``pinchpoint.bound`` certifies them.
        batch_size: samples at a time.
        low_precision: search under bfloat16 autocast. An example counts if it holds in float32; samples whose example
            does not are attacked again in float32. Those the search fooled in neither are taken as they are.
        watcher: told after each batch how many still stand.
        resume: a file to write the state to after each batch. Where it exists the evaluation goes on from there, to the
            same verdict bit for bit; where it belongs to another model, data, threat or configuration it is refused.
            Of attacks it knows names and parameters, not their code.

    Raises:
        DataError, ModelError: for inputs no attack can take; a model that fails on a batch: with its rows.
        ThreatError: for a name that no attacks go by.
        CheckpointError: for a state that belongs to another evaluation, or is no state.

    Warns:
        PinchpointWarning: where the model's answers depend on the batch, on chance or on earlier calls (``one_answer``).

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.1, 0.9]])
    >>> verdict = robust_accuracy(model, x, torch.tensor([0, 0, 0]), Threat("linf", 0.2))
    >>> verdict.fallen.tolist(), verdict.stage, verdict.attacks
    ([True, False, True], ('apgd-ce', 'survived', 'clean'), ('apgd-ce', 'apgd-margin'))
    """
    x, y = check_samples(x, y, threat)
    if attacks is not None and not isinstance(attacks, Mapping | str):
        remedy = "leave them out, or give standard_ensemble(model, x)"
        raise ConfigError("attacks are functions by name, in a dict", type(attacks).__name__, remedy)
    _check(x, known, certified_radii, batch_size)
    with attacking(model, 0, x.device), one_answer(model, x):
        chosen, doubts = _chosen(attacks, model, x, batch_size)
        stages: list[tuple[str, Attack | Tensor]] = [] if known is None else [("known", known)]
        stages += chosen.items() if threat.eps > 0 else ()
        tally = _Tally(model, x, y, threat, certified_radii, batch_size)
        if resume is not None:
            settings = {"batch_size": batch_size, "low_precision": low_precision}
            owner = fingerprint(model, (x, y, known, certified_radii), threat, chosen, settings)
            if resume.exists():
                tally.restore(*load_state(resume, owner))
        if watcher is not None:
            watcher(Progress("clean", len(x), len(x), tally.standing, len(x)))
        search = LowPrecision(model) if low_precision else model
        while tally.stage < len(stages):
            name, source = stages[tally.stage]
            for rows in tally.batches():
                torch.manual_seed(tally.done)  # what a randomised model draws is the same after a resume
                with in_batch(rows, len(x)):
                    if isinstance(source, Tensor):
                        tally.judge(rows, source[rows])
                    else:
                        tally.run(source, rows, search)
                tally.done += len(rows)
                if watcher is not None:
                    watcher(Progress(name, tally.done, len(tally.queue), tally.standing, len(x)))
                if resume is not None:
                    save_state(resume, *tally.state(), owner)
            tally.next_stage()
    return tally.verdict([name for name, _ in stages], doubts)


def _chosen(
    attacks: dict[str, Attack] | Suite | None, model: nn.Module, x: Tensor, batch_size: int
) -> tuple[dict[str, Attack], tuple[str, ...]]:
    """The attacks; and why some were added that need no gradient, which is also said to whoever called."""
    if isinstance(attacks, Mapping):
        return dict(attacks), ()
    chosen = suite("apgd" if attacks is None else attacks, model, x, batch_size=batch_size)
    doubt = gradient_doubt(model, x) if "pgd-differences" in chosen else None
    if doubt is None:
        return chosen, ()
    warnings.warn(f"{doubt.sentence}; attacks that need none were added", PinchpointWarning, stacklevel=4)
    return chosen, (doubt.sentence,)


def _check(x: Tensor, known: Tensor | None, radii: Tensor | None, batch_size: int) -> None:
    at_once(x, batch_size)
    if known is not None and _shape(known) != tuple(x.shape):
        raise DataError(
            f"known examples must be a tensor of the inputs' shape {tuple(x.shape)}",
            _shape(known),
            "give one candidate for each input",
        )
    if radii is not None and (_shape(radii) != (len(x),) or bool(radii.isnan().any())):
        raise DataError(
            f"there must be one certified radius for each of {len(x)} inputs, in a tensor, and none NaN",
            f"shape {_shape(radii)} with {int(radii.isnan().sum())} NaN"
            if isinstance(radii, Tensor)
            else _shape(radii),
            "give the radii of these inputs, in the threat's norm",
        )


def _shape(tensor: object) -> object:
    """The shape of a tensor; of anything else, what it is."""
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__


_SURVIVED, _CERTIFIED, _CLEAN = 0, 1, 2  # what settled a sample; the attack of stage s is _CLEAN + 1 + s


class _Tally:
    """Who still stands, and what settled the others."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, radii: Tensor | None, batch_size: int
    ) -> None:
        self.model, self.x, self.y, self.threat, self.batch_size = model, x, y, threat, batch_size
        logits = logits_of(model, x, batch_size)
        check_logits(logits, y, len(x))
        self.settled = torch.where(misclassified(logits, y), _CLEAN, _SURVIVED)
        if radii is not None:
            self.settled[(radii.to(x.device) >= threat.eps) & (self.settled == _SURVIVED)] = _CERTIFIED
        self.adversarial = x.clone()
        self.rejected = self.stage = self.done = 0
        self.queue = self._up()

    def _up(self) -> Tensor:
        return torch.nonzero(self.settled == _SURVIVED).squeeze(1)

    @property
    def standing(self) -> int:
        """Samples no example has fooled, certified ones included."""
        return int((self.settled < _CLEAN).sum())

    def batches(self) -> Sequence[Tensor]:
        """What this stage has still to see: rows that stood when it began, in batches."""
        left = self.queue[self.done :]
        return left.split(self.batch_size) if len(left) else ()

    def next_stage(self) -> None:
        self.stage, self.done, self.queue = self.stage + 1, 0, self._up()

    def run(self, attack: Attack, rows: Tensor, search: nn.Module) -> None:
        """One batch of the stage. Where the search model was fooled and the model is not, the attack sees the model."""
        found = attack(search, self.x[rows], self.y[rows], self.threat)
        fell = self.judge(rows, found)
        if search is not self.model:
            mistaken = misclassified(logits_of(search, found), self.y[rows]) & ~fell
            if bool(mistaken.any()):
                again = rows[mistaken]
                self.judge(again, attack(self.model, self.x[again], self.y[again], self.threat))

    def judge(self, rows: Tensor, candidates: Tensor) -> Tensor:
        """Check the candidates for these standing rows; which of them fell."""
        if _shape(candidates) != (wanted := tuple(self.x[rows].shape)):
            raise ModelError(
                f"an attack must return examples of its inputs' shape {wanted}", _shape(candidates), "mend it"
            )
        stored = candidates.detach().float().to(self.x)
        wrong = misclassified(logits_of(self.model, stored), self.y[rows])
        allowed = within(stored, self.x[rows], self.threat)
        self.adversarial[rows[allowed]] = stored[allowed]
        self.settled[rows[wrong & allowed]] = _CLEAN + 1 + self.stage
        self.rejected += int((wrong & ~allowed).sum())
        return wrong & allowed

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """All that ``restore`` needs."""
        tensors = {"settled": self.settled, "adversarial": self.adversarial, "queue": self.queue}
        return tensors, {"stage": self.stage, "done": self.done, "rejected": self.rejected}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
        """Go on where the evaluation that gave this ``state`` stopped."""
        for name, tensor in tensors.items():
            setattr(self, name, tensor.to(self.x.device))
        for name, number in numbers.items():
            setattr(self, name, number)

    def verdict(self, stages: Sequence[str], doubts: tuple[str, ...]) -> Verdict:
        names = ("survived", "certified", "clean", *stages)
        stage = tuple(names[number] for number in self.settled.tolist())
        fallen = self.settled >= _CLEAN
        return Verdict(self.threat, fallen, self.adversarial, stage, self.rejected, tuple(stages), doubts)
