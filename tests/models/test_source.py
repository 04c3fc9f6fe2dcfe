"""A model from one word: what each form opens, what it says it assumed, and one sentence for what cannot be opened."""

from __future__ import annotations

import importlib.util
import logging
import pickle
import time
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from oracles.as_user import refused
from pinchpoint.errors import CheckpointError, ConfigError, ModelError
from pinchpoint.models import ModelConfig, build
from pinchpoint.models.checkpoint import CheckpointConfig, save
from pinchpoint.models.cifar_resnet import Architecture, cifar_resnet
from pinchpoint.models.normalisation import parse_normalisation
from pinchpoint.models.sources import source as opened
from pinchpoint.models.sources.open_model import fitting, open_model, parse_size, with_known_normalisation
from pinchpoint.models.weights import put, read_tensors

WAYS = (
    "a model is a checkpoint folder, a .safetensors or .pt2 file, timm:NAME, torchvision:NAME, open_clip:NAME or "
    "py:MODULE:FACTORY"
)
SMALL = Architecture(depth=8, width=4, channels=3, classes=5)


@pytest.fixture
def bare(tmp_path):
    """Writes the state dict of a small CIFAR ResNet."""

    def write(metadata=None, architecture=SMALL, name="net.safetensors", **changes):
        torch.manual_seed(0)
        network = cifar_resnet(architecture).eval()
        path = tmp_path / name
        state = {key: tensor for key, tensor in (network.state_dict() | changes).items() if tensor is not None}
        save_file(state, path, metadata)
        return path, network

    return write


@pytest.fixture
def checkpoint(tmp_path):
    config = CheckpointConfig(model=ModelConfig(hidden=(6,)), input_shape=(1, 4, 4), classes=3)
    save(tmp_path / "net", build(config.model, config.input_shape, config.classes, seed=2), config)
    return tmp_path / "net"


# --- checkpoints ----------------------------------------------------------------------------------------------------------


def test_checkpoint_folder_and_the_file_in_it(checkpoint):
    x = torch.rand(2, 1, 4, 4)
    expected = build(ModelConfig(hidden=(6,)), (1, 4, 4), 3, seed=2)(x)
    for spec in (checkpoint, checkpoint / "model.safetensors"):
        source = open_model(str(spec))
        assert (source.name, source.input_shape, source.classes, source.notes) == (str(spec), (1, 4, 4), 3, ())
        assert not source.model.training
        assert torch.equal(source.model(x), expected)


def test_an_input_size_that_does_not_fit(checkpoint):
    assert open_model(str(checkpoint), (4, 4)).input_shape == (1, 4, 4)
    with refused(
        ModelError,
        f"{checkpoint} must take inputs of 1x8x8, but got mat1 and mat2 shapes cannot be multiplied (1x64 and 16x6); choose "
        "another --input-size; its own size is 1x4x4.",
    ):
        open_model(str(checkpoint), (8, 8))


def test_a_whole_study_is_no_checkpoint(checkpoint, tmp_path):
    (tmp_path / "study" / "runs").mkdir(parents=True)
    run = checkpoint.rename(tmp_path / "study" / "runs" / "abc")
    with refused(
        CheckpointError,
        f"a checkpoint is one run of a study, but got all 1 in {tmp_path / 'study'}; choose one, for example {run}.",
    ):
        open_model(str(tmp_path / "study"))


def test_channels_are_not_broadcast_away(bare):
    path, _ = bare({"mean": "0.1 0.2 0.3", "std": "1 1 1"})
    with refused(ModelError, f"{path} takes images of 3 channels, but got 1x8x8; use 3x8x8."):
        open_model(str(path), (1, 8, 8))


# --- bare state dicts -----------------------------------------------------------------------------------------------------


def test_bare_state_dict_without_normalisation(bare):
    path, network = bare()
    source = open_model(str(path))
    assert (source.input_shape, source.classes) == ((3, 32, 32), 5)
    assert source.notes == (
        "the tensors are taken for a CIFAR ResNet-8 of width 4 with 5 classes and option A shortcuts",
        "the file gives no mean and std, so inputs are not normalised",
        "the input size is taken to be CIFAR's, 3x32x32; --input-size changes it",
    )
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(source.model(x), network(x))
    assert not source.model.training


@pytest.mark.parametrize(("mean", "std"), [("0.1 0.2 0.3", "0.5 1 2"), ("[0.1, 0.2, 0.3]", "(0.5,1,2)")])
def test_normalisation_of_the_file(bare, mean, std):
    path, network = bare({"mean": mean, "std": std})
    source = open_model(str(path), (16, 16))
    assert source.input_shape == (3, 16, 16)
    assert source.notes[1:] == (
        "inputs are pixels in [0, 1], normalised as net.safetensors's metadata says: mean 0.1, 0.2, 0.3, std 0.5, 1, 2",
    )
    x = torch.rand(2, 3, 16, 16)
    shifted = (x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    torch.testing.assert_close(source.model(x), network(shifted))


@pytest.mark.parametrize(
    ("metadata", "kind", "text"),
    [
        (
            {"mean": "0.5 x"},
            CheckpointError,
            "mean in the metadata of {} must be numbers, one a channel, but got 0.5 x; ",
        ),
        (
            {"std": "nan"},
            CheckpointError,
            "std in the metadata of {} must be numbers, one a channel, but got nan; save it",
        ),
        ({"mean": "0.5"}, ModelError, "mean and std come together, but got only one of them; give both or none."),
        ({"mean": "1 2", "std": "1 2"}, ModelError, "mean needs one value or one a channel, but got 2; give 3."),
        (
            {"mean": "1 2 3", "std": "1 0 1"},
            ModelError,
            "mean and std need equal lengths and every std must be positive",
        ),
    ],
)
def test_normalisation_that_makes_no_sense(bare, metadata, kind, text):
    path, _ = bare(metadata)
    with pytest.raises(kind) as caught:
        open_model(str(path))
    assert str(caught.value).startswith(text.format(path))


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_of_torch_save(bare, tmp_path, wrap, prefix):
    _, network = bare()
    torch.save(wrap({prefix + name: tensor for name, tensor in network.state_dict().items()}), tmp_path / "net.pth")
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(open_model(str(tmp_path / "net.pth"), (8, 8)).model(x), network(x))


def test_counters_may_be_missing(bare):
    _, network = bare()
    names = [name for name in network.state_dict() if name.endswith("num_batches_tracked")]
    path, _ = bare(**dict.fromkeys(names))
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(open_model(str(path)).model(x), network(x))


def test_tensors_of_something_else(bare):
    path, _ = bare(**{"linear.bias": None})
    with refused(
        CheckpointError,
        f"the tensors in {path} must be those of a CIFAR ResNet (conv1, bn1, layer1..3.i, linear), but got 43 tensors, the "
        f"first bn1.bias (4,); say whose they are, for example timm:resnet18@{path}.",
    ):
        open_model(str(path))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_files(bare, share):
    path, network = bare()
    torch.save(network.state_dict(), path.with_suffix(".pth"))
    for file, rule in (
        (path, "must be a whole safetensors file, but got "),
        (
            path.with_suffix(".pth"),
            "must be a whole file of tensors, as torch.save(model.state_dict()) writes it, but got ",
        ),
    ):
        whole = file.read_bytes()
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError) as caught:
            open_model(str(file))
        assert str(caught.value).startswith(f"{file} {rule}")
        assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(tmp_path, trap, trapped):
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        path = tmp_path / "net.pth"
        write({"conv1.weight": trapped}, path)
        with pytest.raises(CheckpointError, match="must be a whole file of tensors"):
            open_model(str(path))
    assert not trap()


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ({}, "a dict without any"),
        ([torch.zeros(2)], "a list without any"),
        ({"a": torch.zeros(2), "epoch": 3}, "epoch, a int"),
        (torch.zeros(3), "a Tensor without any"),
    ],
)
def test_files_that_hold_no_named_tensors(tmp_path, content, seen):
    path = tmp_path / "net.pt"
    torch.save(content, path)
    with refused(
        CheckpointError,
        f"{path} must hold named tensors and nothing else, but got {seen}; save model.state_dict() alone.",
    ):
        read_tensors(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"weight": None}, "which has weight (2, 3), but got weight missing"),
        ({"weight": torch.zeros(3, 2)}, "which has weight (2, 3), but got weight (3, 2)"),
        ({"weight": torch.zeros(2, 3, dtype=torch.int8)}, "which has weight (2, 3), but got weight (2, 3) int8"),
        ({"weight": torch.zeros(2, 3) + 0j}, "which has weight (2, 3), but got weight (2, 3) complex64"),
        ({"extra": torch.zeros(1)}, "which has extra nowhere, but got extra (1,)"),
    ],
)
def test_tensors_that_do_not_fit(change, text):
    network = nn.Linear(3, 2)
    tensors = {name: tensor for name, tensor in (network.state_dict() | change).items() if tensor is not None}
    with refused(CheckpointError, f"the tensors in FILE must fit the network, {text}; do something."):
        put(tensors, network, "FILE", "do something")


# --- normalisation --------------------------------------------------------------------------------------------------------


def test_what_is_known_about_the_normalisation(bare, checkpoint, tmp_path):
    config = CheckpointConfig(
        model=ModelConfig(hidden=(6,), mean=(0.5,), std=(0.25,)), input_shape=(1, 4, 4), classes=3
    )
    save(tmp_path / "other", build(config.model, config.input_shape, config.classes), config)
    assert open_model(str(checkpoint)).normalisation == "none"
    assert open_model(str(tmp_path / "other")).normalisation == "mean 0.5, std 0.25"
    assert open_model(str(bare({"mean": "0.5", "std": "2"})[0])).normalisation == "mean 0.5, std 2"
    source = open_model(str(bare()[0]))
    assert source.normalisation is None
    with refused(
        ConfigError,
        f"it must be known how the inputs of {source.name} are normalised, but got nothing that says so; give --normalize "
        "none, imagenet or mean=0.5,0.5,0.5,std=0.25,0.25,0.25.",
    ):
        with_known_normalisation(source)
    known = open_model(source.name, normalize="none")
    assert (known.normalisation, with_known_normalisation(known)) == ("none", known)


@pytest.mark.parametrize(
    ("word", "mean", "std"),
    [
        ("none", (0, 0, 0), (1, 1, 1)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("mean=.1,0.2,3e-1,std=1,2,4", (0.1, 0.2, 0.3), (1, 2, 4)),
        ("mean=0.5; std=0.25", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    ],
)
def test_normalisation_as_asked(bare, word, mean, std):
    path, network = bare({"mean": "0.9", "std": "9"})
    source = open_model(str(path), (8, 8), normalize=word)
    x = torch.rand(2, 3, 8, 8)
    expected = network((x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    torch.testing.assert_close(source.model(x), expected)
    assert f"inputs are normalised as asked: {source.normalisation}" in source.notes


@pytest.mark.parametrize(
    "word", ["", "cifar", "mean=0.5", "mean=0.5,std=", "mean=a,std=1", "mean=0.5,std=0.5,x", "mean=1e9999,std=1"]
)
def test_normalisations_that_are_none(bare, word):
    path, _ = bare()
    with refused(
        ConfigError,
        "a normalisation is none, imagenet or mean=0.5,0.5,0.5,std=0.25,0.25,0.25, but got "
        f"{word or 'an empty word'}; write one of those.",
    ):
        open_model(str(path), normalize=word)


@pytest.mark.parametrize(
    "word",
    ["mean=0.5,std=0", "mean=0.5,std=-1", "mean=0.5,std=1e-300", "mean=1e300,std=1", "mean=1,2,std=1", "std=1,mean=1"],
)
def test_numbers_that_normalise_nothing(bare, word):
    path, _ = bare()
    with pytest.raises(ConfigError, match=r"^(mean and std need equal lengths and every std|a normalisation is)"):
        open_model(str(path), normalize=word)


@pytest.mark.parametrize(
    "word", ["mean=" + "1" * 10**6, "mean=" + "1," * 10**5 + "std=", "mean=" + " " * 10**6 + "std=1"]
)
def test_long_normalisations_are_read_in_no_time(word):
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        parse_normalisation(word)
    assert time.monotonic() - started < 2
    assert len(str(caught.value)) < 500


def test_normalisations_that_do_not_fit(bare, checkpoint):
    path, _ = bare()
    with refused(ModelError, "mean needs one value or one a channel, but got 2; give 3."):
        open_model(str(path), normalize="mean=1,2,std=1,2")
    with refused(
        ModelError, "a checkpoint has its normalisation in it, but got mean 0.5, std 0.5; leave --normalize out."
    ):
        open_model(str(checkpoint), normalize="mean=0.5,std=0.5")


# --- the two trained ResNets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "samples", "accuracy", "within"),
    [
        pytest.param(20, 200, 0.924, 0.03, marks=pytest.mark.long),
        pytest.param(32, 200, 0.922, 0.03, marks=pytest.mark.long),
        pytest.param(20, 2000, 0.924, 0.001, marks=pytest.mark.slow),
        pytest.param(32, 2000, 0.922, 0.001, marks=pytest.mark.slow),
    ],
)
def test_trained_resnets_reach_their_accuracy(real_data, depth, samples, accuracy, within):
    source = open_model(str(real_data / f"cifar10_resnet{depth}.safetensors"))
    with np.load(real_data / "cifar10.npz") as file:
        x, y = torch.tensor(file["x_test"][:samples]).float() / 255, torch.tensor(file["y_test"][:samples]).long()
    with torch.inference_mode():
        right = torch.cat([source.model(batch).argmax(1) for batch in x.split(100)]) == y
    assert float(right.double().mean()) == pytest.approx(accuracy, abs=within)
    assert source.notes[0].startswith(f"the tensors are taken for a CIFAR ResNet-{depth} of width 16 with 10 classes")


# --- libraries ------------------------------------------------------------------------------------------------------------

needs_vision = [
    pytest.mark.long,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("timm", "torchvision", "open_clip")),
        reason="needs pinchpoint[vision]",
    ),
]


class TestLibraries:
    pytestmark = needs_vision

    def test_timm_with_random_weights(self):
        rng = torch.random.get_rng_state()
        source, again = open_model("timm:resnet18"), open_model("timm:resnet18")
        assert torch.equal(torch.random.get_rng_state(), rng)
        assert (source.name, source.input_shape, source.classes) == ("timm:resnet18", (3, 224, 224), 1000)
        assert source.notes == (
            "weights are random (seed 0); for trained ones write timm:resnet18@FILE",
            "inputs are pixels in [0, 1], normalised as timm says: mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225",
            "the input size is timm's, 3x224x224; --input-size changes it",
        )
        assert not any(module.training for module in source.model.modules())
        x = torch.rand(1, 3, 64, 64)
        assert torch.equal(source.model(x), again.model(x))
        shifted = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]
        torch.testing.assert_close(source.model(x), source.model.network(shifted))

    @pytest.mark.parametrize(("word", "own"), [("none", (0, 1)), ("mean=0.5,std=0.25", (0.5, 0.25))])
    def test_another_normalisation_is_kept_in_the_config(self, word, own):
        source = open_model("timm:resnet10t", (64, 64), normalize=word)
        x = torch.rand(1, 3, 64, 64)
        expected = open_model("timm:resnet10t", (64, 64)).model.network((x - own[0]) / own[1])
        torch.testing.assert_close(source.model(x), expected)
        again = build(source.config, source.input_shape, 1000).eval()
        again.load_state_dict(source.model.state_dict() if word != "none" else again.state_dict(), strict=True)
        assert again[0].mean.flatten().tolist() == [own[0]]
        assert again[0].std.flatten().tolist() == [own[1]]
        assert source.normalisation == ("none" if word == "none" else "mean 0.5, std 0.25")

    def test_transformers_are_built_for_the_input_size(self):
        source = open_model("timm:vit_tiny_patch16_224", (32, 48))
        assert (source.input_shape, source.classes, len(source.notes)) == ((3, 32, 48), 1000, 2)
        assert source.model.network.pos_embed.shape == (1, 1 + 2 * 3, 192)
        source = open_model("torchvision:vit_b_32", (3, 64, 64))
        assert source.model.network.encoder.pos_embedding.shape == (1, 1 + 2 * 2, 768)

    def test_weights_of_a_file_and_its_number_of_classes(self, tmp_path):
        import timm

        torch.manual_seed(4)
        network = timm.create_model("resnet10t", num_classes=7).eval()
        save_file(network.state_dict(), tmp_path / "w.safetensors")
        source = open_model(f"timm:resnet10t@{tmp_path / 'w.safetensors'}", (64, 64))
        assert (source.classes, source.notes[0]) == (7, f"weights are those of {tmp_path / 'w.safetensors'}")
        x = torch.rand(2, 3, 64, 64)
        assert torch.equal(source.model.network(x), network(x))

    def test_weights_of_another_network(self, bare):
        path, _ = bare()
        with refused(
            CheckpointError,
            f"the tensors in {path} must fit the network, which has conv1.weight (64, 3, 7, 7), but got conv1.weight "
            "(4, 3, 3, 3); give the state dict of timm's resnet18.",
        ):
            open_model(f"timm:resnet18@{path}")
        with refused(CheckpointError, f"a file of weights must be there, but got {path}.not; check the path."):
            open_model(f"timm:resnet18@{path}.not")

    def test_torchvision(self):
        source = open_model("torchvision:squeezenet1_1", (64, 64))
        assert (source.input_shape, source.classes) == ((3, 64, 64), 1000)
        assert "normalised as torchvision says: mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225" in source.notes[1]
        assert open_model("torchvision:squeezenet1_1").input_shape == (3, 224, 224)

    def test_the_image_tower_of_open_clip(self, tmp_path):
        import open_clip

        source = open_model("open_clip:RN50", (64, 64))
        assert (source.input_shape, source.classes) == ((3, 64, 64), None)
        assert source.notes[-1] == "its outputs are features, not logits"
        assert "mean 0.481455, 0.457827, 0.408211, std 0.26863, 0.261303, 0.275777" in source.notes[1]
        torch.manual_seed(4)
        clip = open_clip.create_model("RN50", force_image_size=64).eval()
        torch.save(clip.state_dict(), tmp_path / "clip.pt")
        source = open_model(f"open_clip:RN50@{tmp_path / 'clip.pt'}", (64, 64))
        x = torch.rand(1, 3, 64, 64)
        assert torch.equal(source.model.network(x), clip.encode_image(x))

    def test_networks_without_a_head_give_features(self):
        source = open_model("timm:vit_small_patch16_dinov3", (32, 32))
        assert source.classes is None
        assert source.notes[-1] == "its outputs are features, not logits"

    def test_loading_is_quiet_and_leaves_logging_and_warnings_as_they_were(self, capfd, recwarn):
        before = logging.root.manager.disable, list(warnings.filters)
        open_model("open_clip:RN50", (64, 64))
        open_model("torchvision:googlenet", (64, 64))
        assert capfd.readouterr() == ("", "")
        assert (logging.root.manager.disable, list(warnings.filters)) == before
        assert not recwarn.list

    @pytest.mark.parametrize(
        ("spec", "text"),
        [
            ("timm:resnet19", "timm must have a model of that name, but got resnet19; perhaps resnet18 or "),
            ("timm:", "timm must have a model of that name, but got ; it has "),
            ("timm:hf-hub:timm/resnet18", "timm must have a model of that name, but got hf-hub:timm/resnet18; "),
            (
                "timm:resnet18.nope",
                "timm:resnet18.nope must be a network that can be built here, but got Invalid pretrained tag",
            ),
            ("torchvision:resnet", "torchvision must have a model of that name, but got resnet; perhaps resnet"),
            ("torchvision:fcn_resnet50", "torchvision must have a model of that name, but got fcn_resnet50; "),
            ("open_clip:ViT-B32", "open_clip must have a model of that name, but got ViT-B32; perhaps ViT-B-32 or "),
        ],
    )
    def test_unknown_names(self, spec, text):
        with pytest.raises(ModelError) as caught:
            open_model(spec)
        assert str(caught.value).startswith(text)

    def test_sizes_that_a_network_cannot_take(self):
        with refused(ModelError, "timm:resnet18 takes images of 3 channels, but got 1x28x28; use 3x28x28."):
            open_model("timm:resnet18", (1, 28, 28))
        with pytest.raises(
            ModelError, match=r"timm:vgg11 must take inputs of 3x8x8, but got .+; choose another --input-size"
        ):
            open_model("timm:vgg11", (8, 8))
        with pytest.raises(ModelError, match=r"timm:vit_tiny_patch16_224 must .+, but got .+; choose another"):
            open_model("timm:vit_tiny_patch16_224", (8, 8))


@pytest.mark.parametrize("missing", ["timm", "torchvision"])
def test_missing_packages(monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else find(name))
    with refused(
        ConfigError,
        f"timm:resnet18 needs {missing}, but got an installation without it; pip install 'pinchpoint[vision]'.",
    ):
        open_model("timm:resnet18")


# --- what is no model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("tim:resnet18", f"{WAYS}, but got tim:resnet18; perhaps timm:resnet18 is meant."),
        ("open-clip:RN50", f"{WAYS}, but got open-clip:RN50; perhaps open_clip:RN50 is meant."),
        ("ftp:x", f"{WAYS}, but got ftp:x; use one of those."),
        (
            "resnet18",
            f"{WAYS}, but got resnet18, where there is nothing; check the path, or write timm:resnet18 for the network of "
            "that name.",
        ),
        ("runs/none", f"{WAYS}, but got runs/none, where there is nothing; check the path."),
        ("", f"{WAYS}, but got an empty name; write one of those."),
    ],
)
def test_what_is_no_model(monkeypatch, tmp_path, spec, text):
    monkeypatch.chdir(tmp_path)
    with refused(ConfigError, text):
        open_model(spec)


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with refused(
        ConfigError,
        f"a file of weights ends in .safetensors, .pt, .pth, .th, .bin, but got {path}; give "
        f"{WAYS.removeprefix('a model is ')}.",
    ):
        open_model(str(path))


@pytest.mark.parametrize(
    ("text", "size"), [("32", (32, 32)), ("224x160", (224, 160)), ("3x32x32", (3, 32, 32)), ("1x1x1", (1, 1, 1))]
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-3", "3x", "x32", "3x3x3x3", "3.5", "32 x 32", "03", "100000", "3X32", "³"])
def test_sizes_that_are_none(text):
    with refused(
        ConfigError,
        f"an input size is SIDE, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH, but got {text}; write 32 or 3x32x32.",
    ):
        parse_size(text)


@pytest.mark.parametrize(
    ("returned", "seen"),
    [
        (
            lambda z: (z, z),
            r"but got a tuple of a tensor of shape \(1, 10\), a tensor of shape \(1, 10\); let its forward",
        ),
        (lambda z: {"logits": z}, "but got a dict of logits; let its forward"),
        (lambda z: z[:, 0], "two classes or more, but got one number a sample"),
    ],
)
def test_a_classifier_that_returns_no_matrix_is_refused_for_that(digits, returned, seen):
    source = opened.checked(opened.Source("it", Returning(returned), (1, 8, 8), None), (1, 8, 8))
    assert source.classes is None  # its weights can be measured
    with pytest.raises(ModelError, match=seen):
        fitting(source, digits)


def test_a_classifier_that_squeezes_has_as_many_classes_as_logits(digits):
    source = opened.checked(opened.Source("it", Returning(lambda z: z.squeeze()), (1, 8, 8), None), (1, 8, 8))
    assert fitting(source, digits).classes == 10


class Returning(nn.Module):
    """A classifier that makes something of its logits."""

    def __init__(self, what):
        super().__init__()
        self.layer, self.what = nn.Linear(64, 10), what

    def forward(self, x):
        return self.what(self.layer(x.flatten(1)))
