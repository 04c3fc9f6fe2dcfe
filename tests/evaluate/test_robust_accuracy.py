"""The verdict engine: work that need not be done is not done, and what is saved changes no verdict."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pytest
import torch
from jaxtyping import config
from torch import nn

from oracles.as_user import refused
from pinchpoint.attack import Threat, apgd, pgd
from pinchpoint.bound import margins, radii_from_margins
from pinchpoint.errors import ConfigError, DataError, ModelError, ThreatError
from pinchpoint.evaluate import Progress, default_attacks, robust_accuracy, smallest_eps, within


def pgd10(model, x, y, threat):
    return pgd(model, x, y, threat, steps=10, seed=3)


class Recorder:
    """An attack that does nothing but remember how many samples each call was given."""

    def __init__(self):
        self.sizes = []

    def __call__(self, model, x, y, threat):
        self.sizes.append(len(x))
        return x


# --- certified samples -----------------------------------------------------------------------------------------------


def test_certified_samples_are_not_attacked_and_count_as_standing(trained, digits):
    x, y, threat = digits.x_test[:60], digits.y_test[:60], Threat("linf", 0.05)
    radii = torch.full((60,), 0.049)
    radii[:40] = 0.05
    wrong = trained(x).argmax(1) != y
    seen = Recorder()
    verdict = robust_accuracy(trained, x, y, threat, attacks={"idle": seen}, certified_radii=radii)
    assert seen.sizes == [int((~wrong[40:]).sum())]
    assert wrong[:40].any()  # a radius at a misclassified sample certifies nothing
    expected = ["clean" if bad else ("certified" if row < 40 else "survived") for row, bad in enumerate(wrong.tolist())]
    assert list(verdict.stage) == expected
    assert verdict.robust_accuracy == pytest.approx(1 - float(wrong.double().mean()))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.004), ("l2", 0.06)])
def test_no_attack_contradicts_a_certificate(trained, digits, norm, eps):
    x, y, threat = digits.x_test, digits.y_test, Threat(norm, eps)
    radii = radii_from_margins(trained(x).detach().double(), y, margins(trained, norm=norm, steps=20).upper).to(x)
    certified = radii >= eps
    assert 20 < int(certified.sum()) < len(x)
    attacks = default_attacks(trained, x, steps=30)
    everyone = robust_accuracy(trained, x, y, threat, attacks=attacks)
    assert not everyone.fallen[certified].any()
    spared = robust_accuracy(trained, x, y, threat, attacks=attacks, certified_radii=radii)
    assert torch.equal(spared.fallen, everyone.fallen)
    assert spared.settled["certified"] == int(certified.sum())


def test_radii_that_are_not_those_of_the_inputs(trained, digits):
    x, y, threat = digits.x_test[:5], digits.y_test[:5], Threat("linf", 0.05)
    with refused(
        DataError,
        "there must be one certified radius for each of 5 inputs, in a tensor, and none NaN, but got shape (4,) with 0 NaN; "
        "give the radii of these inputs, in the threat's norm.",
    ):
        robust_accuracy(trained, x, y, threat, certified_radii=torch.zeros(4))
    with pytest.raises(DataError, match="with 1 NaN"):
        robust_accuracy(trained, x, y, threat, certified_radii=torch.tensor([0, 0, math.nan, 0, 0]))


# --- batches ---------------------------------------------------------------------------------------------------------


def test_survivors_of_several_batches_are_packed_together(trained, digits):
    x, y = digits.x_test[:128], digits.y_test[:128]
    first, second = Recorder(), Recorder()

    def weak(model, a, b, threat):
        first(model, a, b, threat)
        return pgd10(model, a, b, threat)

    verdict = robust_accuracy(
        trained, x, y, Threat("linf", 0.08), attacks={"weak": weak, "idle": second}, batch_size=32
    )
    standing = int((~verdict.fallen).sum())
    assert 10 < standing < 100
    assert all(size == 32 for size in first.sizes[:-1])
    assert second.sizes == [32] * (standing // 32) + [standing % 32] * (standing % 32 > 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_same_seed_gives_the_same_verdict_in_batches_of_any_size(trained, digits, norm):
    """The starts belong to the samples. What is left is how a matrix product rounds in another batch size."""
    x, y = digits.x_test[:150], digits.y_test[:150]
    threat = Threat(norm, 0.07 if norm == "linf" else 0.4)
    whole, small, tiny = (
        robust_accuracy(trained, x, y, threat, attacks=default_attacks(trained, x, steps=10), batch_size=size)
        for size in (1024, 50, 7)
    )
    for parts in (small, tiny):
        assert int((parts.fallen != whole.fallen).sum()) <= 1
        same = parts.adversarial.sub(whole.adversarial).abs().flatten(1).amax(1) < 1e-4
        assert int((~same).sum()) <= 3


def test_batches_do_not_share_their_random_starts(trained, digits):
    """With one seed for every batch, equal samples would differ and the first rows of all batches start alike."""
    x, y, threat = digits.x_test[:40], digits.y_test[:40], Threat("linf", 0.01)

    def start(model, a, b, t):
        return t.random_start(a, torch.Generator().manual_seed(0))

    moved = robust_accuracy(trained, x, y, threat, attacks={"start": start}, batch_size=20).adversarial - x
    inner = ((x > 0.02) & (x < 0.98)).flatten(1)  # where the box cuts nothing off
    both = inner[:20] & inner[20:]
    assert not torch.isclose(moved.flatten(1)[:20][both], moved.flatten(1)[20:][both], atol=1e-4).all()


def test_a_batch_size_of_zero_is_refused(trained, digits):
    with refused(DataError, "batch_size must be one or more, but got 0; leave it out for 1024."):
        robust_accuracy(trained, digits.x_test[:2], digits.y_test[:2], Threat("linf", 0.1), batch_size=0)


def test_a_model_for_batches_of_one_size_is_refused(trained, digits):
    class Eight(nn.Module):
        def forward(self, x):
            return trained(x.reshape(8, -1).reshape(8, *digits.input_shape))

    x, y = digits.x_test[:20], digits.y_test[:20]
    with pytest.raises(
        ModelError, match=r"inputs it is given, but got float32 of shape \(2, 1, 8, 8\): shape .*8.* is invalid"
    ):
        robust_accuracy(Eight(), x, y, Threat("linf", 0.1), batch_size=8)


def test_a_model_that_fails_under_attack_says_on_which_rows(trained, digits):
    """Clean evaluation passes; the attack's last batch does not."""

    class OnlyFullGradients(nn.Module):
        def forward(self, x):
            if x.requires_grad and len(x) < 8:
                raise RuntimeError("shape '[8, -1]' is invalid")
            return trained(x)

    right = trained(digits.x_test).argmax(1) == digits.y_test
    x, y = digits.x_test[right][:20], digits.y_test[right][:20]
    with refused(
        ModelError,
        "a model must take the inputs it is given, but got rows 16 ... 19 of 20: float32 of shape (4, 1, 8, 8): shape "
        "'[8, -1]' is invalid; match device, dtype, channels and size to the model, which is given one batch and nothing "
        "else.",
    ):
        robust_accuracy(
            OnlyFullGradients(),
            x,
            y,
            Threat("linf", 1e-6),
            attacks={"apgd": lambda m, a, b, t: apgd(m, a, b, t, steps=2)},
            batch_size=8,
        )


# --- what is told while it runs ---------------------------------------------------------------------------------------


def test_the_watcher_is_told_who_still_stands(trained, digits):
    x, y = digits.x_test[:50], digits.y_test[:50]
    told: list[Progress] = []
    verdict = robust_accuracy(
        trained, x, y, Threat("linf", 0.08), attacks={"pgd": pgd10}, batch_size=20, watcher=told.append
    )
    right = int((trained(x).argmax(1) == y).sum())
    assert told[0] == Progress("clean", 50, 50, right, 50)
    assert [(p.stage, p.done, p.total) for p in told[1:]] == [
        ("pgd", 20, right),
        ("pgd", 40, right),
        ("pgd", right, right),
    ]
    standing = [p.standing for p in told]
    assert standing == sorted(standing, reverse=True)
    assert standing[-1] == int((~verdict.fallen).sum()) < right


# --- low precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_low_precision_search_is_confirmed_in_float32(trained, digits, norm):
    x, y = digits.x_test[:150], digits.y_test[:150]
    threat = Threat(norm, 0.07 if norm == "linf" else 0.4)
    attacks = default_attacks(trained, x, steps=20)
    full = robust_accuracy(trained, x, y, threat, attacks=attacks)
    quick = robust_accuracy(trained, x, y, threat, attacks=attacks, low_precision=True)
    wrong = (trained(quick.adversarial).argmax(1) != y).numpy()
    np.testing.assert_array_equal(wrong, quick.fallen.numpy())
    assert within(quick.adversarial, x, threat).all()
    assert abs(quick.robust_accuracy - full.robust_accuracy) <= 0.02


def test_the_search_runs_in_bfloat16_and_the_judge_in_float32():
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            out = self.linear(x)
            seen.append(out.dtype)
            return out

    def attack(m, x, y, threat):
        seen.append("search")
        assert m(x).dtype == torch.float32
        seen.append("found")
        return x

    model, x = Watched(), torch.full((1, 2), 0.5)
    y = model(x).argmax(1)
    seen.clear()
    robust_accuracy(model, x, y, Threat("linf", 0.1), attacks={"a": attack}, low_precision=True)
    inside = seen[seen.index("search") + 1 : seen.index("found")]
    assert inside == [torch.bfloat16]
    assert torch.float32 in seen[seen.index("found") :]


def test_exactly_the_unconfirmed_are_attacked_again(trained, digits, monkeypatch):
    """A search model that is fooled by everything confirms nothing: float32 must find the same as without it."""
    x, y, threat = digits.x_test[:60], digits.y_test[:60], Threat("linf", 0.07)
    sizes = []

    def attack(m, a, b, t):
        sizes.append((m is trained, len(a)))
        return pgd10(m, a, b, t) if m is trained else a.clone()

    class AlwaysWrong(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, a):
            return -self.model(a)

    monkeypatch.setattr(sys.modules["pinchpoint.evaluate.robust_accuracy"], "LowPrecision", AlwaysWrong)
    found = robust_accuracy(trained, x, y, threat, attacks={"a": attack}, low_precision=True)
    assert [full for full, _ in sizes] == [False, True]
    assert sizes[0][1] == sizes[1][1]
    assert torch.equal(found.fallen, robust_accuracy(trained, x, y, threat, attacks={"a": pgd10}).fallen)


# --- l1 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delta", "expected"),
    [([0.1, -0.2, 0.2], True), ([0.1, -0.2, 0.2001], False), ([0.5, 0.0, 0.0], True), ([0.2, 0.2, 0.2], False)],
)
def test_the_check_knows_the_l1_ball(delta, expected):
    x = torch.full((1, 3), 0.5)
    assert within(x + torch.tensor([delta]), x, Threat("l1", 0.5)).item() is expected


def test_l1_verdicts_hold_in_numpy(trained, digits):
    x, y, threat = digits.x_test[:80], digits.y_test[:80], Threat("l1", 3.0)
    verdict = robust_accuracy(trained, x, y, threat, attacks={"pgd": pgd10})
    size = np.abs(verdict.adversarial.double().numpy() - x.double().numpy()).reshape(80, -1).sum(1)
    assert size.max() <= 3.0 * (1 + 1e-6)
    assert verdict.rejected == 0
    assert verdict.settled["pgd"] > 10
    assert re.fullmatch(r"l1:3", str(verdict.threat))


def test_what_is_handed_over_beside_the_samples_is_looked_at(trained, digits, monkeypatch):
    x, y, threat = digits.x_test[:4], digits.y_test[:4], Threat("linf", 0.1)
    shape = "(4, 1, 8, 8)"
    for options, kind, text in (
        ({"known": x[:3]}, DataError, f"a tensor of the inputs' shape {shape}, but got (3, 1, 8, 8)"),
        ({"known": x.numpy()}, DataError, f"a tensor of the inputs' shape {shape}, but got ndarray"),
        (
            {"certified_radii": [0.1] * 4},
            DataError,
            "one certified radius for each of 4 inputs, in a tensor, and none NaN, but got list",
        ),
        ({"certified_radii": torch.full((4,), torch.nan)}, DataError, "but got shape (4,) with 4 NaN"),
        ({"attacks": ["apgd"]}, ConfigError, "attacks are functions by name, in a dict, but got list"),
        ({"attacks": {"shorter": lambda m, a, b, t: a[1:]}}, ModelError, "examples of its inputs' shape"),
        ({"attacks": {"none": lambda m, a, b, t: None}}, ModelError, "but got NoneType; mend it"),
        (
            {"attacks": {"odd": lambda m, a: a}},
            ModelError,
            "an attack must take every batch it is given, but got rows 0 ... ",
        ),
    ):
        monkeypatch.setattr(config, "jaxtyping_disable", True)  # as a user, without the checks that tests install
        with pytest.raises(kind, match=re.escape(text)):
            robust_accuracy(trained, x, y, threat, **options)
    with refused(DataError, "batch_size must be one or more, but got 0; leave it out for 1024."):
        smallest_eps(trained, x, y, "linf", 0.1, batch_size=0)


def test_attacks_that_go_by_a_name(trained, digits):
    x, y, threat = digits.x_test[:20], digits.y_test[:20], Threat("linf", 0.07)
    names = {
        None: ("apgd-ce", "apgd-dlr"),
        "apgd": ("apgd-ce", "apgd-dlr"),
        "quick": ("apgd-ce", "apgd-t", "square"),
        "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    }
    verdicts = {name: robust_accuracy(trained, x, y, threat, attacks=name) for name in names}
    for name, verdict in verdicts.items():
        assert verdict.attacks == names[name]
        assert set(verdict.stage) <= {"clean", "survived", *names[name]}
    assert verdicts["standard"].robust_accuracy <= verdicts[None].robust_accuracy
    own = robust_accuracy(trained, x, y, threat, attacks={"idle": lambda m, a, b, t: a}, known=x)
    assert own.attacks == ("known", "idle")
    with refused(
        ThreatError, "attacks that go by a name are apgd, quick, standard, but got autoattack; write one of these."
    ):
        robust_accuracy(trained, x, y, threat, attacks="autoattack")
    with refused(ThreatError, "attacks that go by a name are apgd, quick, standard, but got ; write one of these."):
        robust_accuracy(trained, x, y, threat, attacks="")
