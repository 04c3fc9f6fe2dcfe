"""Networks of timm, torchvision and open_clip as models to train."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from oracles.as_user import refused
from pinchpoint.errors import CheckpointError, ModelError
from pinchpoint.models import build
from pinchpoint.models.build import LibraryConfig, architecture
from pinchpoint.models.checkpoint import CheckpointConfig, load, save

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("timm", "torchvision", "open_clip")),
        reason="needs pinchpoint[vision]",
    ),
]

SHAPE = (3, 32, 32)


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:vit_tiny_patch16_224", "torchvision:squeezenet1_1"])
def test_logits_for_the_classes_and_the_size_of_the_data(name):
    model = build(LibraryConfig(name=name), SHAPE, 7)
    assert [child for child, _ in model.named_children()] == ["normalize", "network"]
    assert all(module.training for module in model.modules())
    x = torch.rand(2, *SHAPE)
    logits = model.eval()(x)
    assert logits.shape == (2, 7)
    imagenet = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    if name != "timm:vit_tiny_patch16_224":  # it has 0.5 throughout
        torch.testing.assert_close(logits, model.network((x - imagenet[0]) / imagenet[1]))
    other = build(LibraryConfig(name=name, mean=(0.25,), std=(0.5,)), SHAPE, 7).eval()
    torch.testing.assert_close(other(x), other.network((x - 0.25) / 0.5))


@pytest.mark.parametrize(
    ("name", "size", "parameters"),
    [  # with 1000 classes, as torchvision's documentation gives them
        ("torchvision:resnet18", 224, 11_689_512),
        ("torchvision:vgg16_bn", 224, 138_365_992),
        ("torchvision:wide_resnet101_2", 224, 126_886_696),
        ("torchvision:swin_t", 224, 28_288_354),
        ("timm:resnet18", 224, 11_689_512),
        ("timm:vgg16_bn", 224, 138_365_992),
        ("timm:wide_resnet101_2", 224, 126_886_696),
        ("timm:swin_tiny_patch4_window7_224", 224, 28_288_354),
    ],
)
def test_as_many_parameters_as_torchvision_says_and_no_memory_on_meta(name, size, parameters):
    with torch.device("meta"):
        model = build(LibraryConfig(name=name), (3, size, size), 1000)
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_open_clip_is_an_image_tower_and_a_linear_head():
    config = LibraryConfig(name="open_clip:RN50")
    with torch.device("meta"):
        model = build(config, (3, 64, 64), 7)
    assert isinstance(model.head, nn.Linear)
    assert (model.head.in_features, model.head.out_features) == (1024, 7)
    own = 38_316_896  # 38.32 million in open_clip's table, with 7 x 7 positions; here are 2 x 2
    assert sum(tensor.numel() for tensor in model.network.parameters()) == own - (7 * 7 - 2 * 2) * 2048
    assert not any(name.startswith("network.transformer") for name in model.state_dict())


def test_seeds():
    config, rng = LibraryConfig(name="timm:resnet10t"), torch.random.get_rng_state()
    first, again, other = (build(config, SHAPE, 4, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.fc.weight"], other["network.fc.weight"])


@pytest.fixture
def trained(tmp_path):
    """A file of a timm network with five classes, whose numbers are none that a seed draws."""
    import timm

    torch.manual_seed(9)
    network = timm.create_model("resnet10t", num_classes=5).eval()
    path = tmp_path / "trained.safetensors"
    save_file(network.state_dict(), path)
    return path, network


def test_weights_of_a_file(trained):
    path, network = trained
    model = build(LibraryConfig(name="timm:resnet10t", weights=str(path)), SHAPE, 5).eval()
    x = torch.rand(2, *SHAPE)
    assert torch.equal(model.network(x), network(x))


def test_a_head_for_other_classes_starts_anew(trained):
    path, network = trained
    config = LibraryConfig(name="timm:resnet10t", weights=str(path))
    model, bare = build(config, SHAPE, 3, seed=4), build(architecture(config), SHAPE, 3, seed=4)
    theirs = network.state_dict()
    for name, tensor in model.network.state_dict().items():
        source = bare.network.state_dict() if name.startswith("fc.") else theirs
        assert torch.equal(tensor, source[name]), name


def test_a_checkpoint_needs_the_file_no_more(trained, tmp_path):
    path, _ = trained
    config = LibraryConfig(name="timm:resnet10t", weights=str(path))
    model = build(config, SHAPE, 3, seed=4).eval()
    save(tmp_path / "net", model, CheckpointConfig(model=config, input_shape=SHAPE, classes=3))
    path.unlink()
    again, _ = load(tmp_path / "net")
    x = torch.rand(2, *SHAPE)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("config", "shape", "text"),
    [
        (
            {"name": "timm:resnet19"},
            SHAPE,
            "timm must have a model of that name, but got resnet19; perhaps resnet18 or",
        ),
        ({"name": "timm:resnet10t"}, (64,), "a convolutional network takes images (channels, height, width), but got"),
        (
            {"name": "timm:resnet10t"},
            (1, 32, 32),
            "timm:resnet10t takes images of 3 channels, but got 1x32x32; use other",
        ),
        ({"name": "torchvision:alexnet"}, SHAPE, "torchvision:alexnet must take images of 3x32x32, but got "),
        (
            {"name": "timm:resnet10t", "mean": (0.5,)},
            SHAPE,
            "mean and std come together, but got only one of them; give",
        ),
        (
            {"name": "timm:resnet10t", "mean": (0.5,), "std": (0.0,)},
            SHAPE,
            "mean and std need equal lengths and every std",
        ),
    ],
)
def test_networks_that_make_no_sense(config, shape, text):
    with pytest.raises(ModelError) as caught:
        build(LibraryConfig(**config), shape, 5)
    assert str(caught.value).startswith(text)


def test_weights_that_do_not_fit(trained, tmp_path):
    path, _ = trained
    with refused(CheckpointError, f"a file of weights must be there, but got {path}.gone; check the path."):
        build(LibraryConfig(name="timm:resnet10t", weights=f"{path}.gone"), SHAPE, 5)
    with pytest.raises(
        CheckpointError, match=r"must fit the network, which has .*; give the state dict of timm:resnet18"
    ):
        build(LibraryConfig(name="timm:resnet18", weights=str(path)), SHAPE, 5)
