"""Frozen encoders under new heads, and models prepared for full fine-tuning."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from oracles.as_user import refused
from pinchpoint.compress import GroupLasso, factorize
from pinchpoint.data import DataConfig, Dataset, load
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.models import ModelConfig, build
from pinchpoint.models.build import CifarResNetConfig
from pinchpoint.models.sources.open_model import open_model
from pinchpoint.train import TrainConfig, train
from pinchpoint.train.augment import AugmentConfig
from pinchpoint.train.transfer import feature_data, features, head_of, replace_head, transfer
from pinchpoint.train.validation import loss_and_accuracy
from pinchpoint.utils.torchvision import import_torchvision


def halves(digits):
    """The digits as two tasks: which digit below five, and which from five on."""
    tasks = []
    for low, high in ((0, 5), (5, 10)):
        parts = {}
        for name in ("train", "validation", "test"):
            x, y = getattr(digits, f"x_{name}"), getattr(digits, f"y_{name}")
            kept = (y >= low) & (y < high)
            parts |= {f"x_{name}": x[kept], f"y_{name}": y[kept] - low}
        tasks.append(Dataset(name=f"digits from {low}", classes=5, **parts))
    return tasks


@pytest.fixture(scope="module")
def encoder(digits):
    """Trained on the digits below five, with batch norms, whose statistics must not move."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(144, 32), nn.ReLU()
    )
    model = nn.Sequential(model, nn.Linear(32, 5))
    train(model, halves(digits)[0], TrainConfig(epochs=8, learning_rate=3e-3), seed=0)
    return model


def images(size, classes, samples=8):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(samples, 3, size, size, generator=generator), torch.arange(samples) % classes
    return Dataset("noise", classes, x, y, x, y, x, y)


# --- a frozen encoder ---------------------------------------------------------------------------------------------------


def test_a_new_head_learns_the_other_digits_and_the_encoder_stays_as_it_was(digits, encoder):
    before = copy.deepcopy(encoder.state_dict())
    task = halves(digits)[1]
    long = TrainConfig(
        epochs=100, learning_rate=0.1, batch_size=64, schedule="cosine", weight_decay=0.0, patience=None
    )  # to the end of a convex problem
    done = transfer(encoder, task, long, seed=0)
    after = done.model.state_dict()
    for name, value in before.items():
        assert torch.equal(encoder.state_dict()[name], value)
        assert name.startswith("1.") or torch.equal(after[name], value)  # batch norms' statistics too
    assert all(parameter.requires_grad for parameter in done.model.parameters())
    assert not done.model.training
    right = (done.model(task.x_test).argmax(1) == task.y_test).float().mean().item()
    # scikit-learn's logistic regression on the same features is as good
    found = feature_data(encoder, task)
    peer = LogisticRegression(C=1000.0, max_iter=5000).fit(found.x_train.numpy(), found.y_train.numpy())
    assert right > 0.85
    assert right == pytest.approx(peer.score(found.x_test.numpy(), found.y_test.numpy()), abs=0.04)
    validated = (done.model(task.x_validation).argmax(1) == task.y_validation).float().mean().item()
    assert done.training.validation_accuracy == pytest.approx(validated)


@pytest.mark.slow
def test_an_encoder_of_cifar_10_under_a_head_for_cifar_100(real_data):
    """51 training images a class: its features are worth far more than those of random weights."""
    source = open_model(str(real_data / "cifar10_resnet20.safetensors"))
    data = load(DataConfig(name="cifar100", limit_train=6000, limit_test=1000))
    config = TrainConfig(epochs=40, learning_rate=1e-2)
    untrained = build(
        CifarResNetConfig(depth=20, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), (3, 32, 32), 10
    )
    right = []
    for model in (source.model, untrained):
        done = transfer(model, data, config, seed=0).model
        right.append(loss_and_accuracy(done, data.x_test, data.y_test, 256)[1])
    assert right[0] > 0.2
    assert right[0] > 3 * right[1]


def test_the_same_seed_gives_the_same_head(digits, encoder):
    before, config = torch.get_rng_state(), TrainConfig(epochs=1)
    heads = [transfer(encoder, halves(digits)[1], config, seed=seed).model[1].weight for seed in (3, 3, 4)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_features_are_what_the_head_sees_in_eval_mode(digits, encoder):
    task = halves(digits)[1]
    encoder.train()
    try:
        found = features(encoder, task.test, batch_size=37)
        assert encoder.training
    finally:
        encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(found, encoder[0](task.x_test), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(encoder[1](found), encoder(task.x_test), rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32
    assert not any(module._forward_hooks for module in encoder.modules())


def test_our_own_networks():
    data = images(16, 4)
    for model in (
        build(ModelConfig(hidden=(20, 12), rank=3), (3, 16, 16), 7),
        build(CifarResNetConfig(depth=8, width=4, mean=(0.5,) * 3, std=(0.2,) * 3), (3, 16, 16), 7),
        factorize(build(ModelConfig(hidden=(20, 12)), (3, 16, 16), 7), rank=2, include_head=True),
    ):
        done = transfer(model.eval(), data, TrainConfig(epochs=1), seed=0).model
        assert done(data.x_test).shape == (8, 4)
        assert model(data.x_test).shape == (8, 7)


def test_a_model_in_half_precision_keeps_it():
    data = images(4, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3)).to(torch.bfloat16)
    data = Dataset(data.name, 2, *(part.bfloat16() if part.is_floating_point() else part for part in _tensors(data)))
    done = transfer(model, data, TrainConfig(epochs=1), seed=0).model
    assert {parameter.dtype for parameter in done.parameters()} == {torch.bfloat16}


def _tensors(data):
    return data.x_train, data.y_train, data.x_validation, data.y_validation, data.x_test, data.y_test


# --- full fine-tuning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "window_size": 2, "embed_dim": 32, "depths": (1, 1), "num_heads": (2, 2)},
        ),
    ],
)
def test_one_epoch_of_full_fine_tuning_with_a_penalty(name, options):
    import_torchvision()
    torch.manual_seed(0)
    model = pytest.importorskip("timm").create_model(name, **options)
    tuned = replace_head(model, 3)
    before = {key: value.clone() for key, value in tuned.named_parameters()}
    assert all(torch.equal(value, before[key]) for key, value in model.named_parameters() if head_of(model) not in key)
    data = images(32, 3)
    training = train(tuned, data, TrainConfig(epochs=1, batch_size=4), seed=0, penalty=GroupLasso(1e-3))
    assert np.isfinite(training.validation_loss)
    moved = [key for key, value in tuned.named_parameters() if not torch.equal(value, before[key])]
    assert len(moved) > 0.9 * len(before)
    assert tuned(data.x_test).shape == (8, 3)


@pytest.mark.parametrize(
    ("library", "name", "path", "columns"),
    [
        ("timm", "wide_resnet101_2", "fc", 2048),
        ("timm", "vgg16", "head.fc", 4096),
        ("timm", "swin_base_patch4_window7_224", "head.fc", 1024),
        ("timm", "vit_base_patch16_224", "head", 768),
        ("torchvision", "resnet18", "fc", 512),
        ("torchvision", "vgg16", "classifier.6", 4096),
        ("torchvision", "vit_b_16", "heads.head", 768),
    ],
)
def test_the_heads_of_the_networks_of_the_paper(library, name, path, columns):
    models = import_torchvision().models
    with torch.device("meta"):
        model = pytest.importorskip("timm").create_model(name) if library == "timm" else models.get_model(name)
    assert head_of(model) == path
    head = replace_head(model, 10).get_submodule(path)
    assert (head.in_features, head.out_features, head.weight.device.type) == (columns, 10, "meta")
    assert model.get_submodule(path).out_features == 1000


def test_a_head_that_is_a_convolution():
    with torch.device("meta"):
        model = import_torchvision().models.squeezenet1_1()
    text = "a model's head must be one fully connected layer, but got a Conv2d at 'classifier.1'; give another path."
    with refused(ModelError, text):
        replace_head(model, 3)


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_models_without_a_head():
    rule = "a model's head must be one fully connected layer, but got "
    with refused(ModelError, rule + "none; name it by its path."):
        head_of(nn.Sequential(nn.Flatten(), nn.ReLU()))
    with refused(ModelError, rule + "a Conv2d at '1'; give another path."):
        head_of(nn.Sequential(nn.Linear(3, 3), nn.Conv2d(1, 2, 3)))
    with refused(ModelError, rule + "nothing at 'fc'; give another path."):
        replace_head(nn.Sequential(nn.Linear(3, 3)), 4, head="fc")

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(3, 2), nn.Linear(3, 2)

        def get_classifier(self):
            return self.one, self.other

    with refused(ModelError, rule + "several; name it by its path."):
        head_of(TwoHeads())


def test_a_layer_that_does_not_give_the_logits():
    data = images(4, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(1))
    rule = "the logits must be what the head returns, but got other ones from '{}'; name another layer as head."
    for path in ("1", "3"):
        with refused(ModelError, rule.format(path)):
            features(model, data.test, head=path)


def test_other_mistakes():
    data = images(4, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3))
    with refused(ModelError, "a model needs two classes or more, but got 1; check the data."):
        replace_head(model, 1)
    text = (
        "a frozen encoder sees each image once, as it is, but got train.augment; leave it out, or fine-tune the whole "
    )
    with refused(ConfigError, text + "model."):
        transfer(model, data, TrainConfig(augment=AugmentConfig(flip=True)), seed=0)
    with pytest.raises(
        ModelError, match=r"the model must take inputs of \(3, 5, 5\), but got mat1 and mat2 .+; choose"
    ):
        features(model, images(5, 2).test)
