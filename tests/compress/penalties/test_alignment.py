"""The alignment surrogate against loops in NumPy, the inequalities it is made for, and what it does not see: scale."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from oracles.alignment import all_masks, masked_norm
from oracles.as_user import refused
from oracles.matrices import make
from pinchpoint.compress import AlignmentPenalty
from pinchpoint.errors import ConfigError

SHAPES = st.tuples(*[st.integers(1, 6)] * 3)
KINDS = st.sampled_from(["random", "rank one", "zero rows", "sparse", "heavy", "zero"])


def pair(first, second):
    model = nn.Sequential(*(nn.Linear(m.shape[1], m.shape[0], bias=False).double() for m in (first, second)))
    for layer, matrix in zip(model, (first, second), strict=True):
        layer.weight.data = torch.from_numpy(matrix)
    return model


def naive(first, second, norm):
    if norm == "l2":
        c, r = np.linalg.norm(second, axis=0), np.linalg.norm(first, axis=1)
        below = np.linalg.norm(c) * np.linalg.norm(r)
        return float(c @ r / below) if below else 0.0
    nu = [sum(abs(x) for x in row) for row in first]
    heard = [sum(abs(second[i, j]) * nu[j] for j in range(len(nu))) for i in range(len(second))]
    read = [sum(abs(x) for x in row) for row in second]
    q = lambda values: float(sum(v**8 for v in values)) ** (1 / 8)  # noqa: E731
    return q(heard) / (q(read) * q(nu)) if q(read) * q(nu) else 0.0


@given(SHAPES, KINDS, KINDS, st.integers(0, 2**31 - 1), st.sampled_from(["linf", "l2"]), st.floats(1e-3, 1e3))
def test_values_are_numpys_lie_in_their_range_and_do_not_see_scale(shape, kind, other, seed, norm, scale):
    d, h, m = shape
    first, second = make(kind, h, d, seed), make(other, m, h, seed + 1)
    penalty = AlignmentPenalty(1.0, include_head=True, norm=norm)
    model = pair(first, second)
    value = penalty(model).item()
    assert value == pytest.approx(naive(first, second, norm), rel=1e-10, abs=1e-300)
    assert 0 <= value <= 1 + 1e-12
    model[0].weight.data *= scale
    assert penalty(model).item() == pytest.approx(value, rel=1e-9)
    model[1].weight.data /= scale
    assert penalty(model).item() == pytest.approx(value, rel=1e-9)


@given(SHAPES, st.integers(0, 2**31 - 1))
def test_it_bounds_what_a_mask_can_do(shape, seed):
    d, h, m = shape
    first, second = make("random", h, d, seed), make("heavy", m, h, seed + 1)
    exact = masked_norm(first, second, "linf") / (np.linalg.norm(first, np.inf) * np.linalg.norm(second, np.inf))
    value = AlignmentPenalty(1.0, include_head=True)(pair(first, second)).item()
    assert exact <= (m * h) ** (1 / 8) * value * (1 + 1e-12)
    bound = (np.abs(second) @ np.abs(first).sum(1)).max() / (
        np.linalg.norm(first, np.inf) * np.linalg.norm(second, np.inf)
    )
    assert value <= m ** (1 / 8) * bound * (1 + 1e-12)
    frobenius = max(np.linalg.norm(second @ (mask[:, None] * first)) for mask in all_masks(h))
    cosine = AlignmentPenalty(1.0, include_head=True, norm="l2")(pair(first, second)).item()
    assert frobenius <= cosine * np.linalg.norm(first) * np.linalg.norm(second) * (1 + 1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_gradients_are_central_differences(norm):
    first, second = make("random", 3, 4, 0), make("random", 2, 3, 1)
    model = pair(first, second)
    AlignmentPenalty(1.0, include_head=True, norm=norm)(model).backward()
    step = 1e-6
    for which, layer in enumerate(model):
        for entry in np.ndindex(*layer.weight.shape):
            ends = []
            for sign in (1, -1):
                moved = [first.copy(), second.copy()]
                moved[which][entry] += sign * step
                ends.append(naive(*moved, norm))
            assert layer.weight.grad[entry].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("second", [nn.Conv2d(4, 3, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Linear(4 * 9, 3)], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_kernels_and_flattened_positions_count_with_their_channel(second, norm):
    first, second = nn.Conv2d(2, 4, 3).double(), second.double()
    model = nn.Sequential(first, nn.ReLU(), second, nn.Linear(1, 1))
    filters = first.weight.detach().numpy().reshape(4, -1)
    weight = second.weight.detach().numpy()
    by_channel = np.zeros((len(weight), 4, 9))
    for i, j in itertools.product(range(len(weight)), range(4)):
        if isinstance(second, nn.Linear):
            by_channel[i, j] = weight[i].reshape(4, 9)[j]
        elif second.groups == 1:
            by_channel[i, j] = weight[i, j].ravel()
        elif i // 3 == j // 2:
            by_channel[i, j] = weight[i, j % 2].ravel()
    if norm == "linf":
        expected = naive(filters, np.abs(by_channel).sum(-1), "linf")
    else:
        expected = naive(filters, np.sqrt((by_channel**2).sum(-1)), "l2")
    penalty = AlignmentPenalty(1.0, layers=["0", "2"], norm=norm)
    assert penalty(model).item() == pytest.approx(expected, rel=1e-12)


def test_it_bounds_convolutions_with_any_units_off():
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 3, 3, bias=False).double(), nn.Conv2d(3, 2, 2, bias=False).double()
    value = AlignmentPenalty(1.0, layers=["*"])(nn.Sequential(first, second)).item()
    norms = [float(conv.weight.detach().abs().sum((1, 2, 3)).max()) for conv in (first, second)]
    x = torch.rand(400, 2, 6, 6, dtype=torch.float64) * 2 - 1
    masks = (torch.rand(400, 3, 4, 4) < 0.7).double()
    seen = second(masks * first(x.sign())).detach().abs().max().item()
    assert 0 < seen <= (2 * 3) ** (1 / 8) * value * norms[0] * norms[1]


def test_pairs_of_a_residual_network():
    from pinchpoint.models.cifar_resnet import Architecture, cifar_resnet

    model = cifar_resnet(Architecture(depth=8, width=4, channels=3, classes=10))
    described = AlignmentPenalty(0.5).describe(model).removeprefix("AlignmentPenalty(0.5) on ").split(", ")
    assert described == [
        "layer1.0.conv1 -> layer1.0.conv2",
        "layer1.0.conv2 -> layer2.0.conv1",
        "layer2.0.conv1 -> layer2.0.conv2",
        "layer2.0.conv2 -> layer3.0.conv1",
        "layer3.0.conv1 -> layer3.0.conv2",
    ]
    assert "layer3.0.conv2 -> linear" in AlignmentPenalty(0.5, include_head=True).describe(model)


def test_what_is_refused():
    with refused(ConfigError, "norm must be one of linf, l2, but got l1; write linf or l2."):
        AlignmentPenalty(1.0, norm="l1")
    rule = "AlignmentPenalty needs two adjacent layers, the second reading what the first makes"
    with refused(ConfigError, f"{rule}, but got 0; use include_head=True or a deeper model."):
        AlignmentPenalty(1.0)(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
