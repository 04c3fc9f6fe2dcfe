"""The reader of inputs and labels: what is taken as it is meant, and what is refused, with the true cause."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from oracles.as_user import refused
from pinchpoint.attack import Threat, apgd, deepfool, fab, fgsm, minimum_norm, pgd, square, universal
from pinchpoint.attack.samples import check_labels, check_logits, check_points, check_samples
from pinchpoint.errors import DataError, ModelError, ThreatError

THREAT = Threat("linf", 0.1)
X = torch.full((3, 1, 2, 2), 0.5)
Y = torch.tensor([0, 1, 2])


@pytest.fixture(autouse=True)
def _as_user(monkeypatch):
    """Without the shape checks that tests install, which would answer before our own errors."""
    from jaxtyping import config

    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("x", "seen"),
    [
        (torch.zeros(3, 4, dtype=torch.uint8), r"torch.uint8 of shape \(3, 4\)"),
        (torch.zeros(3), r"torch.float32 of shape \(3,\)"),
        (torch.zeros(0, 4), r"torch.float32 of shape \(0, 4\)"),
        (torch.zeros(3, 0), r"torch.float32 of shape \(3, 0\)"),
        (torch.zeros(3, 4, dtype=torch.complex64), r"torch.complex64 of shape \(3, 4\)"),
    ],
)
def test_inputs_that_are_no_batch(x, seen):
    rule = "inputs must be a non-empty batch of floating point tensors"
    with pytest.raises(DataError, match=f"{rule}, but got {seen}; convert images to float"):
        check_points(x, THREAT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_balls_are_not_attacked_in_half_precision(dtype):
    with pytest.raises(
        DataError, match=r"must be float32 or float64, but got .*float16 of shape .*; give x.float\(\), and"
    ):
        check_points(X.to(dtype), THREAT)


@pytest.mark.parametrize(
    ("x", "rule"),
    [
        (
            np.zeros((3, 4), np.float32),
            "inputs must be torch tensors, but got ndarray; convert them with torch.as_tensor",
        ),
        ([[0.5]], "inputs must be torch tensors, but got list"),
        (torch.zeros(3, 4).to_sparse(), "a dense tensor that holds numbers, but got .*torch.sparse_coo"),
        (torch.zeros(3, 4, device="meta"), "a dense tensor that holds numbers, but got .*on the meta device"),
    ],
)
def test_inputs_that_hold_no_numbers(x, rule):
    with pytest.raises(DataError, match=rule):
        check_points(x, THREAT)


@pytest.mark.parametrize(
    ("bad", "seen"),
    [
        (
            1.2,
            r"1.20000005 at \[0, 0, 1\] of input 1, 0.2 above it \(1 of 12 values are outside, finite ones from 0.5 to 1.2",
        ),
        (1.0000002, r"1.00000024 at \[0, 0, 1\] of input 1, 2.4e-07 above it \(1 of 12"),
        (-0.01, r"-0.00999999978 at \[0, 0, 1\] of input 1, 0.01 below it \(1 of 12"),
        (float("nan"), r"nan at \[0, 0, 1\] of input 1 \(1 of 12 values are outside, finite ones from 0.5 to 0.5\)"),
        (float("inf"), r"inf at \[0, 0, 1\] of input 1 \(1 of 12"),
    ],
)
def test_the_value_outside_the_box_is_shown_where_it_is(bad, seen):
    x = X.clone()
    x[1, 0, 0, 1] = bad
    with pytest.raises(
        DataError, match=rf"lie in the box \[0, 1\], but got {seen}.*; cut what rounding has moved outside"
    ):
        check_points(x, THREAT)


def test_an_input_at_the_box_edge_as_float32_stores_it_is_inside():
    low, high = -0.42421296, 0.7  # neither is a float32
    x = torch.tensor([[low, high]], dtype=torch.float32)
    assert float(x.max()) < high
    check_points(x, Threat("linf", 0.1, box=(low, high)))
    check_points(-x.flip(1), Threat("linf", 0.1, box=(-high, -low)))


def test_without_a_box_any_finite_input_will_do():
    check_points(X * 100, Threat("l2", 1.0, box=None))
    with pytest.raises(DataError, match=r"the box \[-inf, inf\], but got inf"):
        check_points(X * torch.inf, Threat("l2", 1.0, box=None))


def test_a_threat_is_no_text():
    with refused(
        ThreatError,
        """a threat must be a pinchpoint.Threat, but got 'linf:0.1'; write for example Threat("linf", 8 / 255).""",
    ):
        check_points(X, "linf:0.1")


@pytest.mark.parametrize(
    "y",
    [
        *(Y.to(dtype) for dtype in (torch.int32, torch.int16, torch.uint8, torch.float32, torch.float64)),
        Y.numpy(),
        Y.numpy().astype(np.uint16),
        [0, 1, 2],
        (0, 1, 2),
        torch.stack([Y, Y], 1)[:, 0],  # not contiguous
    ],
)
def test_whole_numbers_are_labels_whatever_holds_them(y):
    read = check_labels(y, X)
    assert read.dtype == torch.long
    assert torch.equal(read, Y)


def test_truths_are_the_classes_0_and_1():
    assert check_labels(torch.tensor([True, False, True]), X).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("y", "text"),
    [
        (
            nn.functional.one_hot(Y),
            r"but got a matrix, torch.int64 of shape \(3, 3\); take the classes .* y.argmax\(1\)",
        ),
        (Y[:, None], r"but got torch.int64 of shape \(3, 1\); flatten them"),
        (torch.tensor(1), r"but got torch.int64 of shape \(\); flatten them"),
        (Y[:2], "one label for each input, but got 3 inputs and 2 labels"),
        (torch.tensor([0.0, 0.5, 1.0]), "labels must be whole numbers, but got 0.5"),
        (torch.tensor([0.0, torch.nan, 1.0]), "labels must be whole numbers, but got nan"),
        (torch.zeros(3, dtype=torch.complex64), "labels must be whole numbers, but got torch.complex64"),
        (["cat", "dog", "cat"], "labels must be whole numbers, but got list"),
        (None, "labels must be whole numbers, but got NoneType"),
    ],
)
def test_labels_that_are_none(y, text):
    with pytest.raises(DataError, match=text):
        check_labels(y, X)


@pytest.mark.parametrize("y", [Y + 2, Y - 1])
def test_labels_the_model_has_no_logit_for(y):
    with pytest.raises(
        DataError, match=rf"labels must lie in 0 \.\.\. 3, one for each .*, but got {int(y.min())} \.\.\. "
    ):
        check_logits(torch.zeros(3, 4), y, 3)


@pytest.mark.parametrize(
    ("logits", "seen"),
    [
        (torch.zeros(3, 4, 1), r"shape \(3, 4, 1\) for 3 samples; check the model"),
        (torch.zeros(2, 4), r"shape \(2, 4\) for 3 samples; check the model"),
        (torch.full((3, 4), torch.nan), "NaN or inf for 3 of 3 samples; check the model"),
        (torch.tensor([[1.0, torch.inf], [0, 0], [0, 0]]), "NaN or inf for 1 of 3 samples; check the model"),
        ((torch.zeros(3, 4),), r"a tuple of a tensor of shape \(3, 4\); let its forward pass return"),
    ],
)
def test_models_that_return_no_logits(logits, seen):
    with pytest.raises(ModelError, match=rf"finite logits of shape \(batch, classes\), but got {seen}"):
        check_logits(logits, Y, 3)


@pytest.mark.parametrize(
    "kind", ["history", "transposed", "expanded", "channels last", "inference", "a parameter", "a view of a batch"]
)
def test_inputs_of_any_history_and_layout_are_attacked_alike(small_net, kind):
    net, plain = small_net(12), torch.rand(1, 3, 2, 2).expand(4, 3, 2, 2).contiguous()
    y = net(plain).argmax(1)
    with torch.inference_mode():
        inferred = plain.clone()
    x = {
        "history": plain.clone().requires_grad_() * 1.0,
        "transposed": plain.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": plain[:1].expand(4, 3, 2, 2),
        "channels last": plain.contiguous(memory_format=torch.channels_last),
        "inference": inferred,
        "a parameter": nn.Parameter(plain.clone()),
        "a view of a batch": torch.stack([plain, plain], 1)[:, 1],
    }[kind]
    before = x.detach().clone()
    for attack in (pgd, apgd, fab, square, fgsm, deepfool, minimum_norm, universal):
        options = {"queries": 10} if attack is square else {} if attack is fgsm else {"steps": 3}
        expected = attack(net, plain, y, THREAT, **options)
        assert torch.equal(attack(net, x, y, THREAT, **options), expected), attack.__name__
        assert not expected.requires_grad
    assert torch.equal(x, before)


def test_a_single_sample_and_samples_of_one_class(small_net):
    net = small_net(4)
    for x, y in ((X[:1], Y[:1]), (torch.rand(3, 4), torch.zeros(3).long())):
        assert check_samples(x, y, THREAT)[0].shape == x.shape
        assert apgd(net, x, y, THREAT, steps=2).shape == x.shape
