"""The CIFAR ResNets: the paper's sizes, a forward pass written down again, names and shapes that are recognised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import nn
from torch.nn import functional

from oracles.as_user import refused
from pinchpoint.errors import ModelError
from pinchpoint.models import build
from pinchpoint.models.build import AnyModelConfig, CifarResNetConfig, ModelConfig
from pinchpoint.models.checkpoint import CheckpointConfig, load, save
from pinchpoint.models.cifar_resnet import Architecture, Shortcut, cifar_resnet, recognise

SMALL = Architecture(depth=14, width=4, channels=2, classes=3)


def trained_looking(architecture=SMALL, seed=0):
    """A network in float64 whose batch normalisations do something."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = cifar_resnet(architecture).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            module.running_var = torch.rand(module.running_var.shape, generator=generator, dtype=torch.float64) + 0.1
    return network


def by_hand(state, x):
    """The forward pass from the tensors alone, after section 4.2 of the paper."""

    def conv_bn(x, conv, bn, stride):
        x = functional.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, var, weight, bias = (
            state[f"{bn}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    x = conv_bn(x, "conv1", "bn1", 1).clamp(min=0)
    for group in (1, 2, 3):
        for index in range(len({name for name in state if name.startswith(f"layer{group}.")}) // 12):
            block, stride = f"layer{group}.{index}", 2 if group > 1 and index == 0 else 1
            inner = conv_bn(x, f"{block}.conv1", f"{block}.bn1", stride).clamp(min=0)
            inner = conv_bn(inner, f"{block}.conv2", f"{block}.bn2", 1)
            if stride == 2:
                kept = torch.zeros_like(inner)
                quarter = inner.shape[1] // 4
                kept[:, quarter : quarter + x.shape[1]] = x[:, :, ::2, ::2]
                x = kept
            x = (inner + x).clamp(min=0)
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_as_many_parameters_as_table_6_of_the_paper_says(depth, millions):
    with torch.device("meta"):
        network = cifar_resnet(Architecture(depth, 16, 3, 10))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 1 if depth == 110 else 2) == millions
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 1)])
def test_forward_pass_against_one_by_hand(size):
    network = trained_looking()
    x = torch.randn(3, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = by_hand(network.state_dict(), x)
    np.testing.assert_allclose(network(x).detach(), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 4), (3, 6), (1, 2), (3, 3)])
def test_shortcut_keeps_every_second_pixel_between_zeros(inputs, outputs):
    x = torch.arange(2.0 * inputs * 5 * 4).reshape(2, inputs, 5, 4) + 1
    found = Shortcut(inputs, outputs, 2)(x)
    before = (outputs - inputs) // 2
    for sample, channel, row, column in np.ndindex(found.shape):
        inside = before <= channel < before + inputs
        expected = x[sample, channel - before, 2 * row, 2 * column] if inside else 0
        assert found[sample, channel, row, column] == expected
    assert found.shape == (2, outputs, 3, 2)
    assert Shortcut(inputs, outputs, 2).lipschitz_constant("l2") == 1.0


def test_it_can_be_exported():
    network = build(CifarResNetConfig(depth=8, width=4, mean=(0.5,), std=(0.2,)), (1, 8, 8), 3).eval()
    x = torch.rand(2, 1, 8, 8)
    exported = torch.export.export(network, (x,)).module()
    np.testing.assert_allclose(exported(x).detach(), network(x).detach(), atol=1e-6)


# --- recognised -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [SMALL, Architecture(8, 1, 1, 2), Architecture(20, 16, 3, 100)])
def test_a_state_dict_tells_its_architecture(architecture):
    state = cifar_resnet(architecture).state_dict()
    assert recognise(state) == architecture
    uncounted = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert recognise(uncounted) == architecture


CHANGES = {
    "nothing": lambda state: state.clear(),
    "a block too many": lambda state: state.update({"layer2.2.conv1.weight": state["layer2.1.conv1.weight"]}),
    "no head": lambda state: state.pop("linear.weight"),
    "no first layer": lambda state: state.pop("conv1.weight"),
    "a wider layer": lambda state: state.update({"layer3.0.conv2.weight": torch.zeros(17, 16, 3, 3)}),
    "a larger kernel": lambda state: state.update({"conv1.weight": torch.zeros(4, 2, 7, 7)}),
    "a flat first layer": lambda state: state.update({"conv1.weight": torch.zeros(4, 2)}),
    "option B": lambda state: state.update({"layer2.0.shortcut.0.weight": torch.zeros(8, 4, 1, 1)}),
    "no classes": lambda state: state.update({"linear.weight": torch.zeros(0, 16), "linear.bias": torch.zeros(0)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_cifar_resnet(change):
    state = cifar_resnet(SMALL).state_dict()
    CHANGES[change](state)
    assert recognise(state) is None


# --- configured -----------------------------------------------------------------------------------------------------------


class Holder(BaseModel):
    model: AnyModelConfig = ModelConfig()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, ModelConfig()),
        ({"hidden": [5], "rank": 2}, ModelConfig(hidden=(5,), rank=2)),
        ({"name": "cifar_resnet"}, CifarResNetConfig(depth=20, width=16)),
        (
            {"name": "cifar_resnet", "depth": 32, "mean": [0.5], "std": [1]},
            CifarResNetConfig(depth=32, mean=(0.5,), std=(1,)),
        ),
    ],
)
def test_the_name_says_which_network_and_fcn_is_meant_without_one(content, expected):
    assert Holder.model_validate({"model": content}).model == expected
    again = Holder.model_validate_json(Holder(model=expected).model_dump_json())
    assert again.model == expected


@pytest.mark.parametrize(
    ("content", "place", "text"),
    [
        (
            {"name": "resnet"},
            ("model",),
            "Input should be fcn, cifar_resnet, cifar_resnet18, cifar_vgg16, wide_resnet, timm:NAME, "
            "torchvision:NAME, open_clip:NAME or clip:NAME",
        ),
        (
            {"name": "cifar_resnet", "hidden": [3]},
            ("model", "cifar_resnet", "hidden"),
            "Extra inputs are not permitted",
        ),
        ({"depth": 20}, ("model", "fcn", "depth"), "Extra inputs are not permitted"),
        (
            {"name": "cifar_resnet", "depth": 2},
            ("model", "cifar_resnet", "depth"),
            "Input should be greater than or equal to 8",
        ),
        (
            {"name": "cifar_resnet", "depth": 18},
            ("model", "cifar_resnet", "depth"),
            "Value error, Input should be 6n + 2, for example 20",
        ),
        (
            {"name": "cifar_resnet", "width": 0},
            ("model", "cifar_resnet", "width"),
            "Input should be greater than or equal to 1",
        ),
    ],
)
def test_configurations_are_validated(content, place, text):
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"model": content})
    (problem,) = caught.value.errors()
    assert problem["loc"] == place
    assert problem["msg"].startswith(text)


def test_normalisation_stands_in_front():
    plain, normalised = (
        build(CifarResNetConfig(depth=8, width=4, **options), (3, 8, 8), 5, seed=3).eval()
        for options in ({}, {"mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 2.0)})
    )
    x = torch.rand(2, 3, 8, 8)
    shifted = (x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    torch.testing.assert_close(normalised(x), plain(shifted))
    assert {f"normalize.{name}" for name in ("mean", "std")} | set(plain.state_dict()) == set(normalised.state_dict())


def test_seeds():
    config, rng = CifarResNetConfig(depth=8, width=2), torch.random.get_rng_state()
    first, again, other = (build(config, (1, 8, 8), 3, seed=seed)[0].weight for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_are_needed_and_two_classes():
    with refused(
        ModelError,
        "a convolutional network takes images (channels, height, width), but got (64,); use model.name fcn.",
    ):
        build(CifarResNetConfig(depth=8), (64,), 3)
    with refused(ModelError, "a model needs two classes or more, but got 1; check the data."):
        build(CifarResNetConfig(depth=8), (1, 8, 8), 1)


def test_checkpoint(tmp_path):
    config = CheckpointConfig(
        model=CifarResNetConfig(depth=8, width=2, mean=(0.5,), std=(0.5,)), input_shape=(1, 8, 8), classes=3
    )
    model = build(config.model, config.input_shape, config.classes, seed=1).eval()
    save(tmp_path, model, config)
    again, found = load(tmp_path)
    assert found == config
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again(x), model(x))
