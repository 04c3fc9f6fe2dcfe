"""CLIP models judged zero-shot, against a naive reading of CLIP's paper."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from oracles.as_user import refused
from pinchpoint.attack import Threat, pgd
from pinchpoint.compress import GroupLasso
from pinchpoint.data import Dataset
from pinchpoint.errors import CheckpointError, ConfigError, ModelError
from pinchpoint.models.clip import TEMPLATES, class_features, load_clip, text_features, zero_shot
from pinchpoint.train import TrainConfig, train
from pinchpoint.utils.torchvision import import_torchvision

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CLASSES = ("cat", "dog", "garbage truck")


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    """A CLIP model of 1.6 million weights, most of them the embedding of the vocabulary."""
    import_torchvision()
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    biased = TINY | {"init_logit_bias": -10.0, "init_logit_scale": 1.0}
    (folder / "tiny-biased.json").write_text(json.dumps(biased))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def clip(tiny):
    return load_clip("tiny-clip")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-biased"])
def test_logits_are_scaled_cosines_with_the_mean_of_the_prompts(name):
    clip = load_clip(name)
    templates = ("a photo of a {}.", "the {}, drawn by a child")
    model = zero_shot(clip, CLASSES, templates)
    x = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        logits = model(x).numpy()
        shifted = (x - torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]) / torch.tensor(
            [0.26862954, 0.26130258, 0.27577711]
        )[:, None, None]
        image = unit(clip.network.encode_image(shifted).double().numpy())
        text = []
        for label in CLASSES:
            tokens = clip.tokenizer([templates[0].format(label), templates[1].format(label)])
            text.append(unit(unit(clip.network.encode_text(tokens).double().numpy()).mean(0)))
    scale, shift = (1.0 / 0.07, 0.0) if name == "tiny-clip" else (np.exp(1.0), -10.0)
    np.testing.assert_allclose(logits, scale * image @ np.array(text).T + shift, atol=2e-5 * scale)
    assert np.ptp(logits, axis=1).min() > 1e-3  # the prompts differ


def test_one_template_is_what_open_clip_itself_computes(clip):
    model = zero_shot(clip, CLASSES, ["{}"])
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        expected, _ = clip.network.get_logits(clip.normalize(x), clip.tokenizer(list(CLASSES)))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_features_do_not_depend_on_the_batches(clip):
    texts = [f"{number} cats" for number in range(7)]
    torch.testing.assert_close(text_features(clip, texts, batch_size=3), text_features(clip, texts))
    assert class_features(clip, CLASSES).shape == (3, 16)
    torch.testing.assert_close(class_features(clip, CLASSES).norm(dim=1), torch.ones(3))


def test_weights_of_a_file(clip, tmp_path):
    torch.manual_seed(3)
    other = copy.deepcopy(clip.network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    loaded = load_clip(f"open_clip:tiny-clip@{tmp_path / 'w.safetensors'}")
    assert loaded.notes == (f"weights are those of {tmp_path / 'w.safetensors'}",)
    assert all(torch.equal(value, loaded.network.state_dict()[name]) for name, value in other.state_dict().items())
    save_file(clip.network.visual.state_dict(), tmp_path / "tower.safetensors")
    with pytest.raises(
        CheckpointError, match=r"must fit the network.+give the state dict of open_clip's tiny-clip, both"
    ):
        load_clip(f"tiny-clip@{tmp_path / 'tower.safetensors'}")


def test_it_is_a_model_of_logits_like_any_other(clip):
    model = zero_shot(load_clip("open_clip:tiny-clip"), CLASSES)
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    attacked = pgd(model, x, y, Threat("linf", 16 / 255), steps=10)
    assert (attacked - x).abs().max() <= 16 / 255 + 1e-6
    assert ((model(attacked).argmax(1) == y).float().mean()) < 1.0


def test_fine_tuning_with_a_penalty_changes_the_image_tower_alone():
    clip = load_clip("tiny-clip")
    before = {name: value.clone() for name, value in clip.network.state_dict().items()}
    model = zero_shot(clip, CLASSES)
    head = model.head.weight.clone()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(12, 3, 32, 32, generator=generator), torch.arange(12) % 3
    penalty = GroupLasso(1e-3)
    assert "head" not in penalty.describe(model)
    config = TrainConfig(epochs=12, batch_size=6, learning_rate=3e-3, patience=None)
    training = train(model, Dataset("noise", 3, x, y, x, y, x, y), config, seed=0, penalty=penalty)
    assert training.validation_accuracy > 0.9
    assert torch.equal(model.head.weight, head)
    after = clip.network.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"visual"}


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "templates", "text"),
    [
        (("cat",), TEMPLATES, "classes need two names or more, all different, but got ['cat']; name each class once."),
        (
            ("cat", "cat"),
            TEMPLATES,
            "classes need two names or more, all different, but got ['cat', 'cat']; name each class once.",
        ),
        (
            ("cat", " "),
            TEMPLATES,
            "classes need two names or more, all different, but got ['cat', ' ']; name each class once.",
        ),
        (
            CLASSES,
            ("a photo",),
            "a template holds {} once, where the name of the class goes, but got 'a photo'; write, for example, a photo of "
            "a {}.",
        ),
        (
            CLASSES,
            (),
            "a template holds {} once, where the name of the class goes, but got no template; write, for example, a photo "
            "of a {}.",
        ),
    ],
)
def test_prompts_that_make_no_sense(clip, classes, templates, text):
    with refused(ConfigError, text):
        zero_shot(clip, classes, templates)


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("ViT-B-16-SigLIP", "timm/ViT-B-16-SigLIP"),
        ("roberta-ViT-B-32", "roberta-base"),
        ("MobileCLIP2-S0", None),
    ],
)
def test_tokenizers_that_would_be_downloaded(name, tokenizer):
    from open_clip import get_tokenizer

    if tokenizer is None:
        assert get_tokenizer(name)(["a cat"]).shape == (1, 77)
        return
    text = f"a CLIP model must use the tokenizer that open_clip carries, but got {name}, whose tokenizer ({tokenizer}) "
    with refused(ModelError, text + "would have to be downloaded; choose one such as ViT-B-32."):
        load_clip(name)


def test_names_that_open_clip_does_not_know():
    with pytest.raises(
        ModelError, match="open_clip must have a model of that name, but got tiny-clap; perhaps tiny-clip"
    ):
        load_clip("tiny-clap")


def test_models_that_are_no_clip(clip):
    class Tower(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :16], x

    network = copy.deepcopy(clip.network)
    network.visual = Tower()
    text = "zero-shot classification needs one vector an image, but got other outputs from tiny-clip; use ViT-B-32."
    with refused(ModelError, text):
        zero_shot(replace(clip, network=network), CLASSES)
    network = copy.deepcopy(clip.network)
    del network.logit_scale
    text = "zero-shot classification needs a CLIP model, but got tiny-clip without a logit_scale; use ViT-B-32."
    with refused(ModelError, text):
        zero_shot(replace(clip, network=network), CLASSES)


@pytest.mark.slow
def test_the_tokenizer_of_the_usual_model_needs_no_network():
    clip = load_clip("ViT-B-32", (32, 32))
    model = zero_shot(clip, CLASSES, ["a photo of a {}."])
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 3)
