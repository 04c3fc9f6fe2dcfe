"""ResNet-18, VGG-16 and wide ResNets for small images: sizes from the literature, outputs from torchvision and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn import functional

from oracles.as_user import refused
from pinchpoint.errors import ModelError
from pinchpoint.models import build
from pinchpoint.models.build import (
    MODEL_NAMES,
    AnyModelConfig,
    CifarResNet18Config,
    CifarVgg16Config,
    WideResNetConfig,
)
from pinchpoint.models.checkpoint import CheckpointConfig, load, save

TINY = [
    CifarResNet18Config(width=2),
    CifarVgg16Config(width=2),
    WideResNetConfig(depth=10, widen=1, dropout=0.25),
    WideResNetConfig(depth=16, widen=2, mean=(0.5,), std=(0.2,)),
]


def meta(config, classes=10):
    with torch.device("meta"):
        return build(config, (3, 32, 32), classes)


def parameters(network):
    return sum(tensor.numel() for tensor in network.parameters())


def stirred(network):
    """In float64, with batch normalisations that do something."""
    generator = torch.Generator().manual_seed(0)
    for module in network.double().eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data = 0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
            module.running_var = torch.rand(module.running_var.shape, generator=generator, dtype=torch.float64) + 0.5
    return network


def inputs(side=32):
    return torch.rand(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("config", "millions"),
    [  # Zagoruyko & Komodakis 2016, tables 4 and 5; kuangliu/pytorch-cifar's ResNet-18 and VGG-16
        (WideResNetConfig(depth=40, widen=1), 0.6),
        (WideResNetConfig(depth=40, widen=2), 2.2),
        (WideResNetConfig(depth=40, widen=4), 8.9),
        (WideResNetConfig(depth=16, widen=8), 11.0),
        (WideResNetConfig(depth=22, widen=8), 17.2),
        (WideResNetConfig(depth=28, widen=10), 36.5),
        (CifarResNet18Config(), 11.2),
        (CifarVgg16Config(), 14.7),
    ],
)
def test_as_many_parameters_as_the_literature_says(config, millions):
    assert round(parameters(meta(config)) / 1e6, 1) == millions


def test_depth_counts_layers_on_the_main_path():
    def convolutions(config):
        modules = meta(config).named_modules()
        return sum(isinstance(module, nn.Conv2d) and "hortcut" not in name for name, module in modules)

    assert convolutions(WideResNetConfig(depth=28)) + 3 == 28  # the paper counts the three widening shortcuts, no head
    assert convolutions(CifarResNet18Config()) + 1 == 18
    assert convolutions(CifarVgg16Config()) == 13


@pytest.mark.long
class TestAgainstTorchvision:
    @pytest.fixture(scope="class")
    def models(self):
        from pinchpoint.utils.torchvision import import_torchvision

        return import_torchvision().models

    def test_resnet18(self, models):
        """Their ImageNet network with another first layer and no pooling after it, holding our weights."""
        ours = stirred(build(CifarResNet18Config(), (3, 32, 32), 10))
        theirs = models.resnet18(num_classes=10).double().eval()
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False).double(), nn.Identity()
        renamed = {
            name.replace("shortcut", "downsample").replace("linear", "fc"): tensor
            for name, tensor in ours.state_dict().items()
        }
        theirs.load_state_dict(renamed)
        expected = theirs(inputs())
        torch.testing.assert_close(ours(inputs()), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))

    def test_vgg16(self, models):
        ours, theirs = stirred(build(CifarVgg16Config(), (3, 32, 32), 10)), models.vgg16_bn().features.double().eval()
        theirs.load_state_dict(ours.features.state_dict())
        expected = ours.classifier(theirs(inputs()).flatten(1))
        torch.testing.assert_close(ours(inputs()), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def wide_by_hand(state, x, depth):
    """From the tensors alone, after figure 1(b) of the paper and section 2 of He et al.'s Identity Mappings."""

    def bn_relu(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / torch.sqrt(var + 1e-5) * weight + bias).clamp(min=0)

    x = functional.conv2d(x, state["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        for index in range((depth - 4) // 6):
            block, stride = f"block{group}.layer.{index}", 2 if group > 1 and index == 0 else 1
            active = bn_relu(x, f"{block}.bn1")
            inner = functional.conv2d(active, state[f"{block}.conv1.weight"], stride=stride, padding=1)
            inner = functional.conv2d(bn_relu(inner, f"{block}.bn2"), state[f"{block}.conv2.weight"], padding=1)
            widening = state.get(f"{block}.convShortcut.weight")
            x = inner + (x if widening is None else functional.conv2d(active, widening, stride=stride))
    return bn_relu(x, "bn1").mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(("depth", "widen"), [(10, 1), (16, 2), (22, 1)])
def test_wide_resnet_by_hand(depth, widen):
    network = stirred(build(WideResNetConfig(depth=depth, widen=widen), (3, 9, 9), 4))
    x = inputs(9)
    expected = wide_by_hand(network.state_dict(), x, depth)
    np.testing.assert_allclose(network(x).detach(), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_dropout_acts_in_training_only():
    network = build(WideResNetConfig(depth=10, widen=1, dropout=0.5), (3, 8, 8), 4)
    x = inputs(8).float()
    network.eval()
    assert torch.equal(network(x), network(x))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    assert not torch.equal(network(x), network(x))


@pytest.mark.parametrize("config", TINY, ids=lambda config: config.name)
class TestEach:
    def test_seeds(self, config):
        rng = torch.random.get_rng_state()
        first, again, other = (build(config, (3, 32, 32), 5, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(torch.random.get_rng_state(), rng)
        for (name, tensor), same, another in zip(
            first.named_parameters(), again.parameters(), other.parameters(), strict=True
        ):
            assert torch.equal(tensor, same)
            if tensor.ndim > 1:
                assert not torch.equal(tensor, another), name

    def test_weights_are_he_normal(self, config):
        for module in build(config, (3, 32, 32), 5).modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
                fan_in = module.weight[0].numel()
                assert float(module.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)

    def test_checkpoint(self, config, tmp_path):
        network = build(config, (1, 32, 32), 5, seed=1).eval()
        save(tmp_path, network, CheckpointConfig(model=config, input_shape=(1, 32, 32), classes=5))
        again, found = load(tmp_path)
        assert found.model == config
        x = inputs()[:, :1].float()
        assert torch.equal(again(x), network(x))

    def test_it_can_be_exported(self, config):
        """As the bounds ask for it."""
        network = build(config, (3, 32, 32), 5).eval()
        exported = torch.export.export(network, (inputs()[:1].float(),)).module()
        torch.testing.assert_close(exported(inputs()[:1].float()), network(inputs()[:1].float()))

    def test_images_are_needed(self, config):
        plain = config.model_copy(update={"mean": None, "std": None})
        text = "a convolutional network takes images (channels, height, width), but got (64,); use model.name fcn."
        with refused(ModelError, text):
            build(plain, (64,), 3)


def test_images_that_five_poolings_leave_nothing_of():
    assert build(CifarVgg16Config(width=1), (3, 48, 33), 3)(torch.zeros(2, 3, 48, 33)).shape == (2, 3)
    with refused(ModelError, "this network takes images of 32 x 32 and more, but got (3, 32, 31); use another one."):
        build(CifarVgg16Config(width=1), (3, 32, 31), 3)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"name": "wide_resnet", "depth": 20}, "Input should be 6n + 4, for example 16, 28, 34 or 40"),
        ({"name": "wide_resnet", "depth": 4}, "Input should be greater than or equal to 10"),
        ({"name": "wide_resnet", "dropout": 1}, "Input should be less than 1"),
        ({"name": "wide_resnet", "widen": 0}, "Input should be greater than or equal to 1"),
        ({"name": "cifar_vgg16", "depth": 19}, "Extra inputs are not permitted"),
        ({"name": "cifar_resnet18", "width": 0}, "Input should be greater than or equal to 1"),
        ({"name": "resnet18"}, f"Input should be {', '.join(MODEL_NAMES[:-1])} or {MODEL_NAMES[-1]}"),
        ({"name": 3}, "Input should be fcn, cifar_resnet, "),
        ({"name": "timm:"}, "String should match pattern"),
    ],
)
def test_configurations_are_validated(content, text):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(AnyModelConfig).validate_python(content)
    (problem,) = caught.value.errors()
    assert text in problem["msg"]
