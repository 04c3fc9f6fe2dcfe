"""Real removal: the smaller network computes what the masked one does, and what cannot go stays, with the reason."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional

from oracles.as_user import refused
from pinchpoint.compress.prune import flop_count, prune
from pinchpoint.compress.prune.graph import filters
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.models.cifar_resnet import Architecture, cifar_resnet
from pinchpoint.utils.torchvision import import_torchvision


def resnet20():
    return cifar_resnet(Architecture(depth=20, width=16, channels=3, classes=10)), (3, 16, 16)


def timm_model(name, shape=(3, 32, 32), **options):
    import_torchvision()
    import timm

    return timm.create_model(name, num_classes=10, **options), shape


def lively(make, seed=0):
    """A network whose biases and batch norms are not those of a fresh one, which would hide mistakes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, shape = make()
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 1:
                    nn.init.normal_(parameter, 0.5 if name == "weight" else 0.0, 0.3)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0.0, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval(), shape


class Gated(nn.Module):
    """Channels that are multiplied, split and concatenated."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.bn = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 1, bias=False)
        self.conv3 = nn.Conv2d(20, 6, 3)
        self.linear1 = nn.Linear(6 * 9, 10)
        self.prelu = nn.PReLU(10)
        self.linear2 = nn.Linear(10, 4)

    def forward(self, x):
        wide = torch.sigmoid(self.bn(self.depthwise(self.conv1(x))))
        joined = torch.cat([wide, self.conv2(wide)], dim=1)
        inner = functional.max_pool2d(functional.softplus(self.conv3(joined)), 2)
        return self.linear2(self.prelu(self.linear1(inner.flatten(1))))


NETWORKS = {
    "resnet20": (resnet20, ("filters",)),
    "timm resnet18": (lambda: timm_model("resnet18"), ("filters",)),
    "timm vit_tiny": (lambda: timm_model("vit_tiny_patch16_224", img_size=32, depth=4), ("filters", "heads")),
    "gated": (lambda: (Gated(), (3, 12, 12)), ("filters",)),
}


SLOW = {
    "whole timm vit_tiny": (lambda: timm_model("vit_tiny_patch16_224", img_size=32), ("filters", "heads")),
    "timm densenet121": (lambda: timm_model("densenet121"), ("filters",)),
    "timm mobilenetv3_small_100": (lambda: timm_model("mobilenetv3_small_100"), ("filters",)),
    "timm convnext_atto": (lambda: timm_model("convnext_atto", (3, 64, 64)), ("filters",)),
    "timm swin_tiny": (
        lambda: timm_model("swin_tiny_patch4_window7_224", (3, 56, 56), img_size=56),
        ("filters", "heads"),
    ),
}


@pytest.mark.parametrize(
    ("name", "unit"),
    [(name, unit) for name, (_, units) in NETWORKS.items() for unit in units]
    + [pytest.param(name, unit, marks=pytest.mark.slow) for name, (_, units) in SLOW.items() for unit in units],
)
def test_removal_equals_masking(name, unit):
    model, shape = lively((NETWORKS | SLOW)[name][0])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    asked = {"input_shape": shape, "unit": unit, "allocation": "residual"}
    smaller, masked = prune(model, 0.4, **asked), prune(model, 0.4, **asked, remove=False)
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        small, zeroed, plain = smaller.model(x), masked.model(x), model(x)
    torch.testing.assert_close(small, zeroed, rtol=0, atol=1e-5 * float(zeroed.abs().max()))
    assert (plain - small).abs().max() > 1e-2 * plain.abs().max()  # that something went is to be seen
    assert smaller.report.layers == masked.report.layers
    report = smaller.report
    assert sum(p.numel() for p in smaller.model.parameters()) == report.parameters_after < report.parameters_before
    assert sum(p.numel() for p in masked.model.parameters()) == report.parameters_before
    assert report.flops_after < report.flops_before == masked.report.flops_after
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())  # the original's


def test_every_filter_of_resnet20_can_go_and_streams_are_decided_together():
    model, shape = lively(resnet20)
    report = prune(model, 0.5, input_shape=shape).report
    assert [(left.name, left.reason) for left in report.left] == [("linear", "its rows are the network's outputs")]
    streams = [layer for layer in report.layers if len(layer.members) > 1]
    assert [(layer.name, layer.units, len(layer.members)) for layer in streams] == [
        ("conv1", 16, 4),
        ("layer2.0.conv2", 32, 3),
        ("layer3.0.conv2", 64, 3),
    ]
    assert sum(layer.units for layer in report.layers) == 16 * 4 + 32 * 4 + 64 * 4
    assert report.met == 0.5


def test_a_pruned_network_can_be_pruned_again():
    model, shape = lively(resnet20)
    once = prune(model, 0.3, input_shape=shape)
    twice = prune(once.model, 0.3, input_shape=shape)
    masked = prune(once.model, 0.3, input_shape=shape, remove=False)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(twice.model(x), masked.model(x), rtol=0, atol=1e-5 * masked.model(x).abs().max().item())
    assert twice.report.parameters_before == once.report.parameters_after


def test_a_transformers_stream_stays_and_says_why():
    model, shape = timm_model("vit_tiny_patch16_224", img_size=32, depth=2)
    found = filters(model, shape, keep=())
    assert [(group.name, group.units) for group in found.groups] == [(f"blocks.{i}.mlp.fc1", 768) for i in range(2)]
    reasons = {left.name: left.reason for left in found.left}
    assert reasons["blocks.0.attn.qkv"] == "attention is pruned by whole heads (unit='heads')"
    for name in ("patch_embed.proj", "blocks.0.attn.proj", "blocks.1.mlp.fc2"):
        assert "LayerNorm" in reasons[name]
        assert "normalises over its units" in reasons[name]
    assert reasons["head"] == "its rows are the network's outputs"


def test_heads_are_removed_whole():
    model, shape = lively(lambda: timm_model("vit_tiny_patch16_224", img_size=32, depth=2))
    found = prune(model, 0.5, input_shape=shape, unit="heads", allocation="uniform")
    assert sorted(layer.kept for layer in found.report.layers) == [1, 2]
    for layer in found.report.layers:
        attention = found.model.get_submodule(layer.name)
        assert attention.num_heads == layer.kept
        assert attention.qkv.weight.shape == (3 * 64 * layer.kept, 192)
        assert attention.proj.weight.shape == (192, 64 * layer.kept)


def test_the_heads_that_go_are_the_weakest():
    """Heads of nn.MultiheadAttention, by hand: rows of q, k and v with their biases, columns of the output."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, num_heads=4, batch_first=True)
    nn.init.normal_(attention.in_proj_bias)

    class Self(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = attention, nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    found = prune(Self(), 0.25, input_shape=(5, 8), unit="heads", remove=False)
    w, b, o = (
        t.detach().double() for t in (attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight)
    )
    sizes = []
    for head in range(4):
        rows = [slice(8 * part + 2 * head, 8 * part + 2 * head + 2) for part in range(3)]
        own = [float((w[r] ** 2).sum() + (b[r] ** 2).sum()) for r in rows] + [float((o[:, rows[0]] ** 2).sum())]
        sizes.append(sum(own) / 4)
    weakest = sizes.index(min(sizes))
    zero = found.model.attention.in_proj_weight.detach().abs().sum(1) == 0
    assert zero.nonzero().flatten().tolist() == [8 * part + 2 * weakest + i for part in range(3) for i in range(2)]
    assert (found.model.attention.out_proj.weight[:, rows[0].start - 6 + 2 * weakest] == 0).all()
    with pytest.raises(ModelError, match="must have a layer that can be pruned by heads, but got none"):
        prune(Self(), 0.25, input_shape=(5, 8), unit="heads")  # torch's own attention takes no fewer heads


class Grouped(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6, 2)
        )


class Repeated(nn.Module):
    """Channels are shuffled in a way the graph does not see, so removal would not do what masking does."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.other, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.other(self.second(self.first(x).softmax(1))))


def test_what_cannot_go_stays_with_the_reason():
    found = prune(Grouped(), 0.5, input_shape=(4, 5, 5))
    assert [layer.name for layer in found.report.layers] == ["2"]
    assert {left.name: left.reason for left in found.report.left} == {
        "0": "1 is a grouped convolution",
        "1": "1 is a grouped convolution",
        "4": "its rows are the network's outputs",
    }
    found = prune(Repeated(), 0.5, input_shape=(4,))
    assert [layer.name for layer in found.report.layers] == ["second", "other"]
    assert found.report.left[0].name == "head"
    assert found.report.left[1].reason == "its channels are reordered or mixed before second reads them"


def test_keep_leaves_layers_alone_and_those_coupled_to_them():
    model, shape = resnet20()
    report = prune(model, 0.5, input_shape=shape, keep=("layer1.1.conv2", "layer3.*")).report
    reasons = {left.name: left.reason for left in report.left}
    assert (
        reasons["layer1.1.conv2"]
        == reasons["conv1"]
        == "its rows are coupled to those of layer1.1.conv2, named in keep"
    )
    assert reasons["layer3.0.conv1"] == "named in keep"
    assert not any(layer.name.startswith("layer3") for layer in report.layers)


def test_latency_is_measured_before_and_after():
    wide = nn.Sequential(
        nn.Flatten(), nn.Linear(1024, 1500), nn.ReLU(), nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 9)
    )
    report = prune(wide, 0.9, input_shape=(1024,), batch=64).report
    assert report.batch == 64
    assert report.seconds_after < 0.7 * report.seconds_before  # a twelfth of the work
    assert report.flops_before == 2 * (1024 * 1500 + 1500 * 1500 + 1500 * 9)
    kept = [layer.kept for layer in report.layers]
    assert report.flops_after == 2 * (1024 * kept[0] + kept[0] * kept[1] + kept[1] * 9)
    assert prune(wide, 0.5, input_shape=(1024,)).report.seconds_after is None


@pytest.mark.slow  # torch's counter imports its compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_flops_are_those_of_torchs_counter(name):
    from torch.utils.flop_counter import FlopCounterMode

    model, shape = lively(NETWORKS[name][0])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape))
    assert flop_count(model, shape) == counter.get_total_flops()


def test_flops_count_multiplications_and_additions():
    assert flop_count(nn.Conv2d(3, 5, 3, padding=1), (3, 8, 8)) == 2 * 64 * 27 * 5


def test_without_torch_pruning(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch_pruning" else find(name, *a)
    )
    seen = "an installation without it; pip install 'pinchpoint[prune]'"
    text = f"pruning coupled filters needs torch-pruning, but got {seen}."
    with refused(ConfigError, text):
        prune(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), 0.5, input_shape=(4,))
    assert prune(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), 0.5, input_shape=(4,), unit="rows").report.met > 0


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        with torch.no_grad():
            return self.second(self.first(x))


def test_a_model_that_cannot_be_traced():
    text = (
        "a model must be one that torch-pruning can trace, but got outputs from which autograd leads back to no layer; "
        "check input_shape, or prune by unit='rows', which needs no graph."
    )
    with refused(ModelError, text):
        prune(Untraceable(), 0.5, input_shape=(4,))
