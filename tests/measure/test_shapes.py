"""What one forward pass tells: input sizes, order of execution, and which batch norms can be folded."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from oracles.as_user import refused
from pinchpoint.errors import ModelError
from pinchpoint.measure import layers
from pinchpoint.measure.shapes import input_sizes
from pinchpoint.utils.torchvision import import_torchvision


class Net(nn.Module):
    """Modules by name, and a function of them and the input."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def used(norm):
    """A batch norm that has seen data and been trained."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def folds(model, shape):
    """Names of layers whose batch norm was folded, and of batch norms that stay."""
    plain = {layer.name: layer for layer in layers(model)}
    found = layers(model, input_shape=shape, fold_batchnorm=True)
    changed = [
        layer.name
        for layer in found
        if layer.diagonal is None and not torch.equal(layer.matrix, plain[layer.name].matrix)
    ]
    assert sum(layer.parameters for layer in found) == sum(layer.parameters for layer in plain.values())
    return changed, [layer.name for layer in found if layer.diagonal is not None]


def test_sizes_are_those_of_the_convolutions_inputs():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Conv2d(2, 2, 3)
    )
    assert input_sizes(model, (3, 9, 12)) == {"0": (9, 12), "2": (5, 6), "3": (10, 12)}
    found = layers(model, input_shape=(3, 9, 12))
    assert [(layer.name, layer.input_size) for layer in found] == [("0", (9, 12)), ("2", (5, 6)), ("3", (10, 12))]
    assert [layer.input_size for layer in layers(model)] == [None] * 3
    assert input_sizes(nn.Sequential(nn.Conv1d(2, 2, 3), nn.Flatten(), nn.Linear(10, 3)), (2, 7)) == {"0": (7,)}
    assert input_sizes(nn.Conv3d(1, 2, 2), (1, 4, 5, 6)) == {"": (4, 5, 6)}


def test_a_convolution_called_at_several_sizes_has_the_largest():
    model = Net(lambda self, x: self.conv(F.avg_pool2d(self.conv(x), (2, 1))), conv=nn.Conv2d(2, 2, 3, padding=1))
    assert input_sizes(model, (2, 8, 6)) == {"conv": (8, 6)}
    model = Net(lambda self, x: self.conv(self.conv(input=x[:, :, ::2])[..., :3]) + self.conv(x)[:, :, :1, :1],
                conv=nn.Conv2d(2, 2, 1))  # fmt: skip
    assert input_sizes(model, (2, 8, 6)) == {"conv": (8, 6)}


def test_a_padding_that_is_not_zero_leaves_several_sizes_open():
    model = Net(
        lambda self, x: self.round(self.once(x))[..., :3] + self.round(x[..., :3]),
        once=nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        round=nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
    )
    assert input_sizes(model, (2, 8, 6)) == {"once": (8, 6)}


def test_layers_come_in_the_order_of_execution():
    model = Net(
        lambda self, x: self.attention(self.second(self.first(x)), x, x)[0],
        unused=nn.Linear(2, 2),
        attention=nn.MultiheadAttention(4, 2),
        second=nn.Linear(4, 4),
        first=nn.Linear(4, 4),
    )
    executed = [layer.name for layer in layers(model, input_shape=(3, 4))]
    attention = [f"attention.{part}" for part in ("q", "k", "v", "out")]
    assert executed == ["first", "second", *attention, "unused"]
    assert [layer.name for layer in layers(model)] == ["unused", *attention, "second", "first"]


def test_models_of_tokens_run_too():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    assert [layer.name for layer in layers(model, input_shape=(4,))] == ["0", "2"]
    with pytest.raises(ModelError, match=r"shape \(5,\), but got RuntimeError at layer '2': mat1 and mat2"):
        layers(model, input_shape=(5,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_runs(dtype):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 2)).to(dtype)
    assert input_sizes(model, (1, 5, 5)) == {"0": (5, 5)}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    state = copy.deepcopy(model.state_dict())
    layers(model, input_shape=(1, 5, 5), fold_batchnorm=True)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("operator", "norm", "shape"),
    [
        (nn.Linear(5, 4), nn.BatchNorm1d(4), (5,)),
        (nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), (5,)),
        (nn.Conv1d(2, 4, 3, stride=2), nn.BatchNorm1d(4), (2, 9)),
        (nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4), (2, 5, 6)),
        (nn.Conv3d(2, 4, 2, bias=False), nn.BatchNorm3d(4), (2, 4, 4, 4)),
        (nn.ConvTranspose2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), (2, 3, 3)),
    ],
)
def test_a_folded_layer_computes_what_the_two_did(operator, norm, shape):
    model = nn.Sequential(operator, used(norm)).eval()
    (layer,) = layers(model, input_shape=shape, fold_batchnorm=True)
    assert layer.parameters == sum(parameter.numel() for parameter in model.parameters())
    x = torch.randn(6, *shape, dtype=torch.float64)
    expected = copy.deepcopy(model).double()(x)
    alone = copy.deepcopy(operator).double()
    with torch.no_grad():
        if isinstance(operator, nn.ConvTranspose2d):  # stored as in x out/groups x kernel
            alone.weight.copy_(layer.matrix.reshape(2, 2, 1, 3, 3).transpose(1, 2).reshape(2, 2, 3, 3))
        else:
            alone.weight.copy_(layer.matrix.reshape(operator.weight.shape))
        alone.bias = nn.Parameter(layer.bias)
    np.testing.assert_allclose(alone(x).detach(), expected.detach(), rtol=1e-10, atol=1e-12)


def test_folding_goes_by_the_tensors_and_not_by_names():
    model = Net(
        lambda self, x: self.bn1(self.conv2(F.relu(self.bn2(self.conv1(x))))),
        conv1=nn.Conv2d(1, 2, 3),
        bn1=used(nn.BatchNorm2d(2)),
        conv2=nn.Conv2d(2, 2, 3),
        bn2=used(nn.BatchNorm2d(2)),
    )
    assert folds(model, (1, 8, 8)) == (["conv1", "conv2"], [])
    found = layers(model, input_shape=(1, 8, 8), fold_batchnorm=True)
    root = (model.bn2.running_var.double() + model.bn2.eps).sqrt()
    expected = (model.bn2.weight.double() / root)[:, None] * model.conv1.weight.flatten(1).double()
    np.testing.assert_allclose(found[0].matrix, expected.detach(), rtol=1e-14)


def conv():
    return nn.Conv2d(2, 2, 3, padding=1)


def norm():
    return used(nn.BatchNorm2d(2))


NOT_ALONE = {
    "something between": Net(lambda self, x: self.bn(F.relu(self.conv(x))), conv=conv(), bn=norm()),
    "norm before": nn.Sequential(norm(), conv()),
    "read by a residual": Net(lambda self, x: self.bn(y := self.conv(x)) + y, conv=conv(), bn=norm()),
    "changed in place": Net(lambda self, x: self.bn(self.conv(x).mul_(2.0)), conv=conv(), bn=norm()),
    "a view": Net(lambda self, x: self.bn(self.conv(x)[:, :]), conv=conv(), bn=norm()),
    "two norms": Net(lambda self, x: self.a(y := self.conv(x)) + self.b(y), conv=conv(), a=norm(), b=norm()),
    "norm called twice": Net(lambda self, x: self.bn(self.conv(x)) + self.bn(x), conv=conv(), bn=norm()),
    "norm called twice on it": Net(lambda self, x: self.bn(y := self.conv(x)) + self.bn(y), conv=conv(), bn=norm()),
    "layer called twice": Net(lambda self, x: self.conv(self.bn(self.conv(x))), conv=conv(), bn=norm()),
    "returned": Net(lambda self, x: {"a": [y := self.conv(x)], "b": self.bn(y)}, conv=conv(), bn=norm()),
    "its own function": Net(lambda self, x: self.bn(F.conv2d(x, self.conv.weight)), conv=conv(), bn=norm()),
}


@pytest.mark.parametrize("why", NOT_ALONE)
def test_a_norm_that_is_not_the_only_one_to_read_a_layers_output_is_not_folded(why):
    changed, stay = folds(NOT_ALONE[why], (2, 6, 6))
    assert changed == []
    assert len(stay) == 1 + (why == "two norms")


def test_a_norm_over_another_dimension_than_the_rows_is_not_folded():
    model = Net(lambda self, x: self.bn(self.linear(x)), linear=nn.Linear(3, 4), bn=used(nn.BatchNorm1d(4)))
    assert folds(model, (4, 3)) == ([], ["bn"])  # (batch, 4, 4): channels are positions here
    assert folds(model, (3,)) == (["linear"], [])


def test_a_norm_with_batch_statistics_is_not_folded():
    model = nn.Sequential(conv(), nn.BatchNorm2d(2, track_running_stats=False))
    found = layers(model, input_shape=(2, 6, 6), fold_batchnorm=True)
    assert torch.equal(found[0].matrix, layers(model)[0].matrix)
    assert [skipped.name for skipped in found.skipped] == ["1"]


@pytest.mark.long
def test_a_resnet_computes_the_same_with_its_norms_folded():
    import_torchvision()
    model = pytest.importorskip("timm").create_model("resnet18", num_classes=10).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for each in norms:
        used(each)
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    expected = copy.deepcopy(model).double()(x).detach()
    found = layers(model, input_shape=(3, 40, 40), fold_batchnorm=True)
    assert all(layer.diagonal is None for layer in found)
    rebuilt = copy.deepcopy(model).double()
    for module in rebuilt.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.running_var.fill_(1.0 - module.eps)
    for layer in found:
        module = rebuilt.get_submodule(layer.name)
        module.weight = nn.Parameter(layer.matrix.reshape(module.weight.shape))
        module.bias = nn.Parameter(layer.bias)
    np.testing.assert_allclose(rebuilt(x).detach(), expected, rtol=1e-9)


def test_identities_between_do_not_hide_a_norm():
    assert folds(nn.Sequential(conv(), nn.Identity(), nn.Sequential(norm())), (2, 6, 6)) == (["0"], [])


def test_what_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(36, 2)))
    text = (
        "the model must run on an input of shape (3, 6, 5), but got RuntimeError at layer '1.1': mat1 and mat2 shapes "
        "cannot be multiplied (1x48 and 36x2); give the shape of one input, without the batch."
    )
    with refused(ModelError, text):
        layers(model, input_shape=(3, 6, 5))
    for bad in ((), (3, 0), (3, -1), (3, 2.0), 3):
        shown = repr(bad)
        text = f"an input shape must be made of positive integers, but got {shown}; write it without the batch: (3, 32, 32)."
        with refused(ModelError, text):
            input_sizes(model, bad)
    takes_two = Net(lambda self, x: self.conv(x, x), conv=conv())
    with pytest.raises(ModelError, match=r"shape \(2, 6, 6\), but got TypeError at layer 'conv'"):
        input_sizes(takes_two, (2, 6, 6))
    with pytest.raises(ModelError, match="got TypeError in the model: "):
        input_sizes(nn.Transformer(4, 2, 1, 1, 4), (3, 4))
