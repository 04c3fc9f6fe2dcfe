"""Factorising and merging networks, against NumPy's SVD."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from oracles.as_user import refused
from pinchpoint.compress import LowRankConv2d, LowRankLinear, factorize, lowrank_like, merge, plan
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.measure import profile
from pinchpoint.models.build import CifarResNetConfig, build
from pinchpoint.utils.torchvision import import_torchvision


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 5)
    )


def matrix_of(layer):
    return layer.weight.detach().double().flatten(1).numpy()


def of_rank(matrix, rank):
    u, sigma, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank]


def rank_for(sigma, *, energy=None, residual=None):
    """The smallest rank that meets the target, by its definition."""
    for rank in range(1, len(sigma) + 1):
        if energy is not None and (sigma[:rank] ** 2).sum() >= energy * (sigma**2).sum():
            return rank
        if residual is not None and sigma[rank:].sum() <= residual * sigma.sum():
            return rank
    raise AssertionError


# --- what comes out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_factorise_then_merge_is_the_truncated_svd(dtype):
    model = small().to(dtype).eval()
    ranks = {"0": 5, "3": 7, "5": 2}
    low = factorize(model, ranks=ranks)
    merged = merge(low)
    assert str(merged) == str(model)
    for name, rank in ranks.items():
        layer, back = model.get_submodule(name), merged.get_submodule(name)
        expected = of_rank(matrix_of(layer), rank)
        top = np.linalg.norm(expected, 2)
        np.testing.assert_allclose(matrix_of(back), expected, atol=4 * torch.finfo(dtype).eps * top)
        assert low.get_submodule(name).rank == rank
        assert torch.equal(back.bias, layer.bias)
    x = torch.rand(4, 3, 4, 4, dtype=dtype)
    torch.testing.assert_close(low(x), merged(x))


def test_at_full_rank_nothing_changes():
    model = small().double().eval()
    x = torch.rand(4, 3, 4, 4, dtype=torch.float64)
    same = factorize(model, ranks={"0": 16, "3": 32, "5": 5})
    torch.testing.assert_close(same(x), model(x), rtol=0, atol=1e-13)


def test_the_model_given_stays_as_it_is():
    model = small()
    before = copy.deepcopy(model.state_dict())
    low = factorize(model, rank=3)
    with torch.no_grad():
        for parameter in low.parameters():
            parameter.zero_()
    merged = merge(low)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.fill_(1.0)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert isinstance(model[0], nn.Conv2d)
    assert isinstance(low[0], LowRankConv2d)


def test_a_residual_network_keeps_its_shape():
    model = build(CifarResNetConfig(depth=8, width=8), (3, 16, 16), 10).eval()
    low = factorize(model, residual=0.3)
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(low(x), merge(low)(x), rtol=1e-4, atol=1e-4)
    assert isinstance(low.layer3[0].conv1, LowRankConv2d)
    assert isinstance(low.linear, nn.Linear)
    assert str(merge(low)) == str(model)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("resnet10t", {}, marks=pytest.mark.slow),
        ("mobilenetv3_small_050", {}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}),
        ("swinv2_cr_tiny_224", {"img_size": 64, "window_size": 2, "depths": (1, 1), "num_heads": (2, 2)}),
        ("swinv2_tiny_window8_256", {"img_size": 64, "window_size": 2, "depths": (1, 1), "num_heads": (2, 2)}),
    ],
)
def test_timm_networks(name, options):
    import_torchvision()
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **options).eval()
    side = options.get("img_size", 32)
    x = torch.rand(2, 3, side, side)
    chosen = plan(model, rank=8)
    low = factorize(model, rank=8)
    assert len(chosen.ranks) > 5
    assert chosen.before == sum(parameter.numel() for parameter in model.parameters())
    assert chosen.after == sum(parameter.numel() for parameter in low.parameters()) < chosen.before
    torch.testing.assert_close(low(x), merge(low)(x), rtol=1e-3, atol=1e-3)


def test_torch_attention_reads_weights_of_low_rank():
    model = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, batch_first=True).eval()
    chosen = plan(model, rank=4, include_head=True)
    assert set(chosen.ranks) == {"linear1", "linear2"}
    text = "NonDynamicallyQuantizableLinear may do more than nn.Linear or nn.Conv2d"
    assert chosen.left == {"self_attn.out_proj": text}
    x = torch.rand(2, 3, 32, requires_grad=True)
    low = factorize(model, rank=4, include_head=True)
    torch.testing.assert_close(low(x), merge(low)(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(low(x.detach()), merge(low)(x.detach()), rtol=1e-4, atol=1e-5)  # torch's fast path


# --- which rank ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [{"energy": 0.3}, {"energy": 0.9}, {"residual": 0.5}, {"residual": 0.7}])
def test_ranks_meet_their_target(target):
    model = small().double()
    with torch.no_grad():
        model[3].weight.mul_(torch.linspace(1.0, 0.01, 32)[:, None])  # a spectrum that falls
    chosen = plan(model, **target)
    found = factorize(model, **target)
    for name in ("0", "3"):
        sigma = np.linalg.svd(matrix_of(model.get_submodule(name)), compute_uv=False)
        rank, (h, d) = rank_for(sigma, **target), matrix_of(model.get_submodule(name)).shape
        if rank * (h + d) < h * d:
            assert chosen.ranks[name] == found.get_submodule(name).rank == rank
        else:
            assert chosen.left[name] == f"rank {rank} saves nothing in a {h} x {d} layer"


def test_a_residual_asks_for_the_k_that_the_profile_gives():
    model = small()
    chosen = plan(model, residual=0.45)
    found = {layer.name: layer.spectral.k_for_target for layer in profile(model, target=0.45, norms=False).layers}
    assert chosen.ranks
    assert all(found[name] == rank for name, rank in chosen.ranks.items())


def test_a_layer_of_exact_rank_is_kept_whole():
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(30, 4).double() @ torch.randn(4, 40).double())
    for target in ({"residual": 0.0}, {"energy": 1.0}):
        assert plan(model, **target).ranks == {"0": 4}
    x = torch.rand(5, 40, dtype=torch.float64)
    torch.testing.assert_close(factorize(model, residual=0.0)(x), model(x))


def test_layers_that_a_rank_would_not_make_smaller_are_left():
    model = nn.Sequential(
        nn.Linear(20, 20), nn.Linear(20, 60), nn.Conv2d(60, 60, 3, groups=60), nn.Conv1d(4, 4, 1), nn.Linear(4, 2)
    )
    chosen = plan(model, rank=10)  # 10 (20 + 20) is no less than 20 x 20
    assert chosen.ranks == {"1": 10}
    assert chosen.left == {
        "0": "rank 10 saves nothing in a 20 x 20 layer",
        "2": "rank 10 saves nothing in a 60 x 9 layer of 60 groups",
        "3": "Conv1d is neither nn.Linear nor nn.Conv2d",
        "4": "it is the head",
    }
    # one spatial filter for all 60 channels would save numbers, and no multiplication
    assert "2" in plan(model, rank=1).left
    low = factorize(model, rank=1)
    assert [type(layer).__name__ for layer in low] == ["LowRankLinear", "LowRankLinear", "Conv2d", "Conv1d", "Linear"]
    assert chosen.before - chosen.after == 60 * 20 - 10 * 80


def test_layers_by_name():
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30)), "top": nn.Linear(30, 30)})
    assert plan(model, rank=2).ranks == {"body.0": 2, "body.1": 2}
    assert plan(model, rank=2, include_head=True).ranks == {"body.0": 2, "body.1": 2, "top": 2}
    assert plan(model, rank=2, layers="*.1").ranks == {"body.1": 2}
    assert plan(model, rank=2, layers=["*.1", "top"], include_head=True).ranks == {"body.1": 2, "top": 2}


# --- what is kept -------------------------------------------------------------------------------------------------------


def test_frozen_layers_dtype_mode_and_hooks_of_the_whole():
    model = small().to(torch.bfloat16).eval()
    model[0].requires_grad_(False)
    model[3].weight.requires_grad_(False)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    low = factorize(model, rank=3)
    assert {name: parameter.requires_grad for name, parameter in low.named_parameters()} == {
        "0.a": False,
        "0.b": False,
        "0.bias": False,
        "3.a": False,
        "3.b": False,
        "3.bias": True,
        "5.weight": True,
        "5.bias": True,
    }
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in low.modules())
    low(torch.rand(1, 3, 4, 4, dtype=torch.bfloat16))
    assert calls == [1]


def test_a_layer_used_twice_stays_one_layer():
    shared = nn.Linear(30, 30)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(30, 3))
    low = factorize(model, rank=4)
    assert low[0] is low[2]
    back = merge(low)
    assert back[0] is back[2]
    assert plan(model, rank=4).after == sum(parameter.numel() for parameter in low.parameters())


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(30, 30, bias=False), nn.Linear(30, 30, bias=False), nn.Linear(30, 30))
    model[1].weight = model[0].weight
    chosen = plan(model, rank=2, include_head=True)
    assert chosen.ranks == {"2": 2}
    assert chosen.left == dict.fromkeys("01", "it shares its weight with another layer")


def test_no_random_numbers_are_drawn():
    model, before = small(), torch.get_rng_state()
    first, second = (factorize(model, energy=0.5).state_dict() for _ in range(2))
    lowrank_like(model, {"0": 2})
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_single_layer_is_a_model_too():
    low = factorize(nn.Linear(30, 20), rank=2, include_head=True)
    assert isinstance(low, LowRankLinear)
    assert isinstance(merge(low), nn.Linear)


def test_what_has_low_rank_already():
    model = nn.Sequential(LowRankLinear(30, 30, 4), nn.Linear(30, 30), nn.Linear(30, 3))
    chosen = plan(model, rank=2)
    assert (chosen.ranks, chosen.left["0"]) == ({"1": 2}, "it has low rank already")


# --- architectures ------------------------------------------------------------------------------------------------------


def test_an_architecture_without_values_takes_the_values_of_a_factorised_model():
    model = build(CifarResNetConfig(depth=8, width=8), (3, 16, 16), 10).eval()
    chosen = plan(model, rank=4)
    low = factorize(model, ranks=chosen.ranks)
    with torch.device("meta"):
        empty = lowrank_like(build(CifarResNetConfig(depth=8, width=8), (3, 16, 16), 10), chosen.ranks)
    assert all(parameter.is_meta for parameter in empty.parameters())
    again = empty.to_empty(device="cpu").eval()
    again.load_state_dict(low.state_dict())
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(x), low(x))


def test_weights_to_train_from_scratch_come_from_the_seed():
    model = small()
    one, same, other = (lowrank_like(model, {"3": 8}, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one[3].a, same[3].a)
    assert not torch.equal(one[3].a, other[3].a)
    assert torch.equal(one[0].weight, model[0].weight)
    assert one[3].weight.var().item() == pytest.approx(1 / (3 * 256), rel=0.2)


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_a_model_without_linear_layers():
    text = "every pattern of layers must match one, but got '*', which matches none; give a model with linear layers."
    with refused(ConfigError, text):
        plan(nn.Sequential(nn.ReLU()), rank=2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "factorising needs one of rank, energy and residual, but got none; give exactly one."),
        (
            {"rank": 2, "energy": 0.9},
            "factorising needs one of rank, energy and residual, but got rank and energy; give exactly one.",
        ),
        ({"rank": 0}, "a rank must be one or more, but got 0; choose a higher one."),
        ({"energy": 0.0}, "an energy to keep lies in (0, 1], but got 0.0; try 0.9."),
        ({"energy": math.nan}, "an energy to keep lies in (0, 1], but got nan; try 0.9."),
        ({"residual": 1.0}, "a target residual lies in [0, 1), but got 1.0; try 0.1."),
        (
            {"rank": 2, "layers": ["3", "fc*"]},
            "every pattern of layers must match one, but got 'fc*', which matches none; use names such as '0'.",
        ),
        (
            {"ranks": {"3": 2}, "rank": 2},
            "ranks by name stand alone, but got another target beside them; leave one out.",
        ),
    ],
)
def test_targets_that_make_no_sense(options, text):
    with refused(ConfigError, text):
        factorize(small(), **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"rank": 400},
            "factorising must change at least one layer, but got none ('0': rank 400 saves nothing in a 16 x 27 layer); "
            "choose a lower rank.",
        ),
        (
            {"rank": 2, "layers": "5"},
            "factorising must change at least one layer, but got none ('5': it is the head); choose a lower rank.",
        ),
        (
            {"ranks": {"3": 33}},
            "layer '3': the rank of a 32 x 256 layer lies in 1 ... 32, but got 33; choose one in that range.",
        ),
        ({"ranks": {"7": 3}}, "ranks must name layers of the model, but got '7', which is none; check the names."),
        (
            {"ranks": {"1": 3}},
            "ranks must name layers that can be factorised, but got '1': ReLU is neither nn.Linear nor nn.Conv2d; leave "
            "it out.",
        ),
    ],
)
def test_ranks_that_do_not_fit(options, text):
    with refused(ModelError, text):
        factorize(small(), **options)


def test_layers_with_hooks_or_parametrisations():
    text = "factorising needs plain layers, but got {} on '3'; remove it first, or leave the layer out by its name."
    for spoil, found in (
        (lambda layer: parametrizations.weight_norm(layer), "a parametrisation"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "hooks (pruning masks are such)"),
        (lambda layer: layer.register_forward_hook(lambda *_: None), "hooks (pruning masks are such)"),
    ):
        model = small()
        spoil(model[3])
        for options in ({"rank": 2}, {"ranks": {"3": 2}}):
            with refused(ModelError, text.format(found)):
                factorize(model, **options)
        assert isinstance(factorize(model, rank=2, layers="0")[0], LowRankConv2d)


def test_weights_that_are_no_numbers():
    model = small()
    nn.init.constant_(model[3].weight, math.nan)
    text = (
        "layer '3': weights must be finite, but got NaN or infinite values; check that training did not diverge before "
    )
    for options in ({"rank": 2}, {"residual": 0.5}):
        with refused(ModelError, text + "measuring."):
            factorize(model, **options)
