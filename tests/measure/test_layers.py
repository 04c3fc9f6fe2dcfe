"""Which modules become which matrices, and what is said about the others."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from oracles.as_user import refused
from pinchpoint.compress import LowRankLinear
from pinchpoint.errors import ModelError
from pinchpoint.measure import layers
from pinchpoint.measure.layers import float64_copy, linear_modules, matrix64, weight_matrix
from pinchpoint.utils.torchvision import import_torchvision


class Doubled(nn.Module):
    """A parametrisation: acts with twice the weight."""

    def forward(self, weight):
        return 2.0 * weight


def names(model):
    return [layer.name for layer in layers(model)]


def test_linear_and_convolution_as_matrices():
    linear, conv = nn.Linear(6, 4), nn.Conv2d(4, 6, (3, 2), groups=2, bias=False)
    found = layers(nn.Sequential(conv, nn.Flatten(), linear))
    assert [(layer.name, layer.kind, layer.parameters) for layer in found] == [("0", "conv2d", 72), ("2", "linear", 28)]
    filters = np.stack([kernel.detach().double().numpy().ravel() for kernel in conv.weight])
    assert found[0].matrix.shape == (6, 12)
    assert (found[0].matrix.numpy() == filters).all()
    assert found[0].bias is None
    assert torch.equal(found[1].matrix, linear.weight.detach().double())
    assert torch.equal(found[1].bias, linear.bias.detach().double())
    assert not found[1].matrix.requires_grad
    assert found[1].module is linear


def test_encoder_head_and_sequence():
    found = layers(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    assert len(found) == 3
    assert [layer.name for layer in found.encoder] == ["0", "2"]
    assert found.head is found[-1] is found[2]
    assert found[:2] == found.encoder


def test_nested_and_low_rank_layers_have_their_paths():
    inner = nn.Sequential(LowRankLinear(5, 4, rank=2), nn.Sequential(nn.Linear(4, 3)))
    found = layers(nn.ModuleDict({"body": inner, "head": nn.Linear(3, 2)}))
    assert [(layer.name, layer.kind) for layer in found] == [
        ("body.0", "LowRankLinear"),
        ("body.1.0", "linear"),
        ("head", "linear"),
    ]
    assert found[0].parameters == 4 * 2 + 2 * 5 + 4


def test_low_rank_products_are_taken_in_float64():
    torch.manual_seed(0)
    layer = LowRankLinear(40, 30, rank=7)
    expected = layer.a.detach().double().numpy() @ layer.b.detach().double().numpy()
    np.testing.assert_allclose(layers(layer)[0].matrix.numpy(), expected, rtol=1e-12, atol=1e-14)
    half = LowRankLinear(4, 3, rank=2).half()
    expected = half.a.detach().double().numpy() @ half.b.detach().double().numpy()
    np.testing.assert_allclose(layers(half)[0].matrix.numpy(), expected, rtol=1e-12, atol=1e-14)


def test_a_module_that_offers_a_matrix_is_not_looked_into():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)

        def weight_matrix(self):
            return self.second.weight @ self.first.weight

    product = Product()
    found = layers(nn.Sequential(product, nn.Linear(3, 2)))
    assert [(layer.name, layer.kind, layer.parameters) for layer in found] == [("0", "Product", 14), ("1", "linear", 8)]
    assert names(product) == [""]


def test_modules_used_twice_are_listed_once():
    shared = nn.Linear(3, 3)
    assert names(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(3, 2))) == ["0", "4"]


def test_tied_weights_are_named_and_counted_once():
    model = nn.ModuleDict({"embed": nn.Embedding(7, 3), "body": nn.Linear(3, 3), "head": nn.Linear(3, 7)})
    model["head"].weight = model["embed"].weight
    found = layers(model)
    assert [(layer.name, layer.tied_to, layer.parameters) for layer in found] == [
        ("embed", None, 21),
        ("body", None, 12),
        ("head", "embed", 7),  # its bias is its own
    ]
    assert torch.equal(found[0].matrix, found[2].matrix)


def test_tied_parametrised_and_attention_weights():
    first, second = parametrizations.weight_norm(nn.Linear(3, 4)), parametrizations.weight_norm(nn.Linear(3, 4))
    second.parametrizations.weight.original0 = first.parametrizations.weight.original0
    assert [layer.tied_to for layer in layers(nn.Sequential(first, second))] == [None, None]  # same length, no more
    second.parametrizations.weight.original1 = first.parametrizations.weight.original1
    assert [(layer.tied_to, layer.parameters) for layer in layers(nn.Sequential(first, second))] == [
        (None, 4 + 12 + 4),
        ("0", 4),
    ]
    one, two = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2)
    two.in_proj_weight = one.in_proj_weight
    assert [layer.tied_to for layer in layers(nn.Sequential(one, two))] == [
        *[None] * 4,
        *["0.q", "0.k", "0.v"],
        None,
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_is_read_exactly(dtype):
    model = nn.Linear(3, 2).to(dtype)
    assert torch.equal(layers(model)[0].matrix, model.weight.detach().double())
    assert layers(model)[0].bias.dtype == torch.float64


def test_frozen_weights_are_measured():
    model = nn.Sequential(nn.Linear(3, 2)).requires_grad_(False)
    assert names(model) == ["0"]


def test_parametrised_weights_are_seen_as_they_act():
    linear = nn.Linear(4, 3)
    plain = linear.weight.detach().double().clone()
    parametrize.register_parametrization(linear, "weight", Doubled())
    found = layers(nn.Sequential(linear, nn.Linear(3, 2)))
    assert [layer.name for layer in found] == ["0", "1"]
    assert torch.equal(found[0].matrix, 2.0 * plain)
    orthogonal = layers(nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4))))[0].matrix
    np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(4), atol=1e-6)


def test_parametrised_weights_are_computed_in_float64():
    linear = parametrizations.weight_norm(nn.Linear(6, 5))
    length, direction = (each.detach().double().numpy() for each in linear.parametrizations.weight.parameters())
    expected = length * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    np.testing.assert_allclose(layers(linear)[0].matrix.numpy(), expected, rtol=1e-14)


def test_masks_are_seen_as_they_act_at_the_next_forward_pass():
    linear = nn.Linear(4, 3)
    prune.l1_unstructured(linear, "weight", amount=0.5)
    with torch.no_grad():  # as an optimiser step or load_state_dict does: module.weight is stale now
        linear.weight_orig.mul_(10.0)
    seen = layers(nn.Sequential(linear))[0].matrix
    assert torch.equal(seen, (linear.weight_orig * linear.weight_mask).detach().double())
    linear(torch.zeros(1, 4))
    assert torch.equal(seen, linear.weight.detach().double())
    weight_matrix(linear).sum().backward()
    assert torch.equal(linear.weight_orig.grad, linear.weight_mask)


def test_masks_inside_a_low_rank_layer():
    layer = LowRankLinear(6, 5, rank=3)
    prune.random_unstructured(layer, "a", amount=0.5)
    with torch.no_grad():
        layer.a_orig.mul_(10.0)
    expected = (layer.a_orig * layer.a_mask).double() @ layer.b.double()
    np.testing.assert_allclose(matrix64(layer).numpy(), expected.detach().numpy(), rtol=1e-13, atol=1e-14)


def test_float64_copy_leaves_the_module_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    weight = model[0].weight
    copied = float64_copy(model)
    assert not copied.training
    assert copied(torch.zeros(1, 4, dtype=torch.float64)).dtype == torch.float64
    assert model.training
    assert model[0].weight is weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


CONVOLUTIONS = [
    (nn.Conv1d, nn.functional.conv1d, (3,)),
    (nn.Conv2d, nn.functional.conv2d, (3, 2)),
    (nn.Conv3d, nn.functional.conv3d, (2, 3, 1)),
]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("kind", "_", "kernel"), CONVOLUTIONS)
def test_rows_of_a_convolution_are_its_filters(kind, _, kernel, groups):
    conv = kind(4, 6, kernel, groups=groups, stride=2, dilation=1).double()
    layer = layers(conv)[0]
    assert layer.kind == kind.__name__.lower()
    assert layer.shape == (6, 4 // groups * math.prod(kernel)) == tuple(layer.matrix.shape)
    patch = torch.randn(1, 4, *kernel, dtype=torch.float64)  # as large as the kernel: one output position
    seen = patch.numpy().reshape(groups, -1)
    rows = layer.matrix.numpy().reshape(groups, 6 // groups, -1)
    expected = np.einsum("gof,gf->go", rows, seen).ravel() + layer.bias.numpy()
    np.testing.assert_allclose(conv(patch).detach().numpy().ravel(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kind", "kernel"),
    [(nn.ConvTranspose1d, (3,)), (nn.ConvTranspose2d, (3, 2)), (nn.ConvTranspose3d, (2, 3, 1))],
)
def test_rows_of_a_transposed_convolution_are_its_output_filters(kind, kernel, groups):
    conv = kind(4, 6, kernel, groups=groups).double()
    layer = layers(conv)[0]
    assert layer.kind == f"conv_transpose{len(kernel)}d"
    pixel = torch.randn(1, 4, *[1] * len(kernel), dtype=torch.float64)  # one pixel: each output is one stamped filter
    stamps = layer.matrix.numpy().reshape(groups, 6 // groups, 4 // groups, -1)
    expected = np.einsum("goik,gi->gok", stamps, pixel.numpy().reshape(groups, -1)).reshape(6, -1)
    expected += layer.bias.numpy()[:, None]
    np.testing.assert_allclose(conv(pixel).detach().numpy().reshape(6, -1), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_rows_of_an_embedding_are_tokens_as_looked_up(kind, max_norm):
    table = kind(9, 4, max_norm=max_norm)
    layer = layers(table)[0]
    assert (layer.kind, layer.parameters, layer.bias) == ("embedding", 36, None)
    seen = layer.matrix.numpy()
    tokens = torch.arange(9) if kind is nn.Embedding else torch.arange(9)[:, None]
    expected = copy.deepcopy(table)(tokens).detach().numpy()
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert (np.linalg.norm(seen, axis=1) > 1.0).any() == (max_norm is None)


def used_batchnorm(kind=nn.BatchNorm2d, channels=4, **options):
    """A batch norm that has seen data and been trained."""
    norm = kind(channels, **options)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [(nn.BatchNorm1d, (5, 4)), (nn.BatchNorm2d, (5, 4, 2, 3)), (nn.BatchNorm3d, (5, 4, 2, 3, 2))],
)
def test_a_batch_norm_is_a_diagonal(kind, shape, affine):
    norm = used_batchnorm(kind, affine=affine)
    linear = nn.Linear(4, 4)
    found = layers(nn.Sequential(linear, norm))
    assert (found[1].name, found[1].kind, found[1].parameters) == ("1", "batchnorm", 8 * affine)
    assert found[1].shape == (4, 4)
    assert found.head.module is linear
    assert found.encoder == ()
    x = torch.randn(shape, dtype=torch.float64)
    expected = copy.deepcopy(norm).double().eval()(x).detach().movedim(1, -1)
    np.testing.assert_allclose(x.movedim(1, -1) * found[1].diagonal + found[1].bias, expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(found[1].matrix, torch.diag(found[1].diagonal))


def test_a_large_diagonal_is_no_matrix():
    found = layers(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(5000)))
    text = "a diagonal becomes a matrix up to length 4096, but got 5000; use .diagonal."
    with refused(ModelError, text):
        _ = found[1].matrix


ACTING = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "doubled": lambda module: parametrize.register_parametrization(module, "weight", Doubled()) or module,
    "older weight_norm": weight_norm,
    "older spectral_norm": spectral_norm,
    "pruned": lambda module: prune.l1_unstructured(module, "weight", amount=0.5),
    "pruned twice": lambda module: prune.l1_unstructured(
        prune.ln_structured(module, "weight", amount=0.25, n=2, dim=0), "weight", amount=0.3
    ),
    "pruned bias": lambda module: prune.random_unstructured(module, "bias", amount=0.5),
}


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("how", ACTING)
@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv_transpose2d"])
def test_weights_are_seen_as_they_act_after_an_optimiser_step(kind, how):
    torch.manual_seed(0)
    plain = {
        "linear": nn.Linear(4, 4),
        "conv2d": nn.Conv2d(4, 4, 1),
        "conv_transpose2d": nn.ConvTranspose2d(4, 4, 1),
    }[kind]
    module = ACTING[how](plain)
    with torch.no_grad():  # as an optimiser does: whatever was computed before is stale now
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    layer = layers(nn.Sequential(module))[0]
    assert layer.kind == kind
    assert layer.parameters == sum(parameter.numel() for parameter in module.parameters())
    x = torch.randn(7, 4, dtype=torch.float64)
    copied = float64_copy(module)
    expected = copied(x if kind == "linear" else x[:, :, None, None]).detach().flatten(1)
    np.testing.assert_allclose(x @ layer.matrix.T + layer.bias, expected, rtol=1e-10, atol=1e-12)
    in_float32 = module.eval()(x.float() if kind == "linear" else x.float()[:, :, None, None]).detach().flatten(1)
    np.testing.assert_allclose(in_float32, expected, rtol=1e-4, atol=1e-5)  # float64_copy itself is no oracle


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("how", ["older weight_norm", "older spectral_norm", "pruned"])
def test_autograd_follows_weights_that_hooks_compute(how):
    module = ACTING[how](nn.Linear(4, 4))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3.0)
    matrix = weight_matrix(module)
    module.eval()(torch.zeros(1, 4))
    assert torch.equal(matrix, module.weight)
    matrix.square().sum().backward()
    stored = [parameter for key, parameter in module.named_parameters() if key != "bias"]
    assert all(parameter.grad is not None for parameter in stored)


class Standardised(nn.Conv2d):
    """Acts with another weight than the one it stores, as timm's ScaledStdConv2d does."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight=weight, bias=None if self.bias is None else 2.0 * self.bias)


class Loud(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, 3.0 * self.weight, self.bias)


def test_a_subclass_is_seen_as_its_own_forward_pass_acts():
    conv, linear = Standardised(2, 3, (2, 3)), prune.random_unstructured(Loud(4, 3), "weight", amount=0.5)
    found = layers(nn.ModuleList([conv, linear]))
    patch, x = torch.randn(1, 2, 2, 3), torch.randn(1, 4)
    rows = found[0].matrix @ patch.double().flatten() + found[0].bias
    np.testing.assert_allclose(conv(patch).detach().flatten(), rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(linear(x).detach(), x.double() @ found[1].matrix.T + found[1].bias, rtol=1e-5, atol=1e-6)


def test_a_subclass_that_cannot_be_run_is_seen_as_it_is_stored():
    class Stubborn(nn.Linear):
        def forward(self, x, y):
            return super().forward(x) + super().forward(y)

    stubborn = Stubborn(3, 2)
    assert torch.equal(layers(stubborn)[0].matrix, stubborn.weight.detach().double())


def test_measuring_changes_nothing():
    module = parametrizations.spectral_norm(nn.Linear(4, 3))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    _ = layers(nn.Sequential(module))[0].matrix
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_matrices_are_read_when_asked_for():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    found = layers(model)
    assert not [v for layer in found for v in vars(layer).values() if isinstance(v, torch.Tensor) and v.ndim > 1]
    nn.init.constant_(model[0].weight, 5.0)
    assert float(found[0].matrix.min()) == 5.0


def test_every_parameter_is_in_a_layer_or_skipped():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Parameter(torch.randn(4, 3))
            self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.logit_scale = nn.Parameter(torch.ones([]))
            self.mystery = nn.Parameter(torch.zeros(2, 2))
            self.parts = nn.ModuleList([nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)])
            self.norm = nn.BatchNorm2d(4, track_running_stats=False)
            self.recurrent = nn.GRU(4, 4)
            self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
            self.low = LowRankLinear(4, 4, 2)
            self.lost = nn.BatchNorm2d(4, affine=False, track_running_stats=False)

    model = Odd()
    found = layers(model)
    assert [(layer.name, layer.kind) for layer in found[:2]] == [("proj", "projection"), ("attention.q", "attention_q")]
    assert torch.equal(found[0].matrix, model.proj.detach().double().T)  # x @ proj
    assert [(skipped.name, skipped.kind, skipped.parameters) for skipped in found.skipped] == [
        ("pos_embed", "parameter", 20),
        ("cls_token", "parameter", 4),
        ("logit_scale", "parameter", 1),
        ("mystery", "parameter", 4),
        ("parts.0", "LayerNorm", 8),
        ("parts.1", "GroupNorm", 8),
        ("parts.2", "InstanceNorm2d", 8),
        ("norm", "BatchNorm2d", 8),
        ("recurrent.weight_ih_l0", "parameter", 48),
        ("recurrent.weight_hh_l0", "parameter", 48),
        ("recurrent.bias_ih_l0", "parameter", 12),
        ("recurrent.bias_hh_l0", "parameter", 12),
        ("attention.bias_k", "parameter", 4),
        ("attention.bias_v", "parameter", 4),
        ("lost", "BatchNorm2d", 0),
    ]
    reasons = {skipped.name: skipped.reason for skipped in found.skipped}
    assert reasons["pos_embed"] == "a positional embedding or bias is added, not multiplied with"
    assert reasons["cls_token"] == "a token stands beside the inputs and multiplies nothing"
    assert reasons["mystery"] == "a parameter of Odd of shape (2, 2), not known to be a linear operator"
    assert reasons["norm"] == "it normalises by each batch's own statistics, also in eval mode: not a linear operator"
    assert reasons["parts.0"] == "it normalises by its input's own statistics: not a linear operator"
    assert accounted(found) == sum(parameter.numel() for parameter in model.parameters())


def accounted(found):
    return sum(layer.parameters for layer in found) + sum(skipped.parameters for skipped in found.skipped)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"]
)
def test_every_parameter_of_timm_models_is_accounted_for(name):
    import_torchvision()
    model = pytest.importorskip("timm").create_model(name)
    found = layers(model)
    assert accounted(found) == sum(parameter.numel() for parameter in model.parameters())
    assert len({layer.name for layer in found}) == len(found)
    loose = {skipped.kind for skipped in found.skipped}
    assert loose <= {"LayerNorm", "parameter"}
    if "resnet" not in name:
        assert sum(layer.kind == "attention_q" for layer in found) == 12


@pytest.mark.long
def test_every_parameter_of_an_open_clip_model_is_accounted_for():
    import_torchvision()
    clip = pytest.importorskip("open_clip").model
    vision = clip.CLIPVisionCfg(layers=2, width=64, head_width=16, patch_size=16, image_size=64)
    text = clip.CLIPTextCfg(context_length=8, vocab_size=50, width=32, heads=4, layers=1)
    model = clip.CLIP(16, vision, text)
    found = layers(model)
    assert accounted(found) == sum(parameter.numel() for parameter in model.parameters())
    kinds = {layer.name: layer.kind for layer in found}
    assert kinds["visual.proj"] == kinds["text_projection"] == "projection"
    assert kinds["token_embedding"] == "embedding"
    assert kinds["visual.transformer.resblocks.1.attn.q"] == "attention_q"
    assert {skipped.name for skipped in found.skipped if skipped.kind == "parameter"} == {
        "positional_embedding",
        "logit_scale",
        "visual.class_embedding",
        "visual.positional_embedding",
    }
    # the projection is the last thing the visual tower does
    pooled, image = [], torch.randn(3, 3, 64, 64)
    model.visual.ln_post.register_forward_hook(lambda module, inputs, output: pooled.append(output))
    model.eval().visual(image)
    matrix = next(layer.matrix for layer in found if layer.name == "visual.proj")
    expected = pooled[0][:, 0].detach().double() @ matrix.T
    np.testing.assert_allclose(model.visual(image).detach(), expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_of_a_transformer_is_accounted_for():
    model = nn.Transformer(8, 2, 1, 1, 16)
    assert accounted(layers(model)) == sum(parameter.numel() for parameter in model.parameters())


def test_linear_modules_lists_what_has_a_matrix():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten(), LowRankLinear(8, 4, 2), nn.Linear(4, 2))
    assert [name for name, _ in linear_modules(model)] == ["0", "3", "4"]
    assert linear_modules(nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2))) == []
    assert weight_matrix(nn.ReLU()) is None
    assert matrix64(nn.ReLU()) is None


def test_what_is_refused():
    rule = "a model must have at least one linear or convolutional layer"
    with refused(ModelError, f"{rule}, but got Sequential; give a network."):
        layers(nn.Sequential(nn.ReLU()))
    for bad in (math.nan, math.inf):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        nn.init.constant_(model[1].weight, bad)
        text = "layer '1': weights must be finite, but got NaN or infinite values; "
        with refused(ModelError, text + "check that training did not diverge before measuring."):
            layers(model)
    text = "layer '0': weights must be real floating point numbers, but got torch.complex64; "
    with refused(ModelError, text + "convert the model, e.g. model.float()."):
        layers(nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)))
    text = "layer '0': a layer's matrix must be two-dimensional and not empty, but got shape (2, 0); "
    with refused(ModelError, text + "look the layer up with pinchpoint.measure.layers.layers(model)."):
        layers(nn.Sequential(nn.Linear(0, 2)))
    text = "layer '0': weights must exist, but got a lazy module without weights; run a batch through the model first."
    with refused(ModelError, text):
        layers(nn.Sequential(nn.LazyLinear(3)))
    with refused(ModelError, f"{rule}, but got BatchNorm1d; give a network."):
        layers(nn.BatchNorm1d(3))
    text = "layer '0': weights must hold values, but got a tensor on the meta device; "
    with refused(ModelError, text + "load the checkpoint into the model first."):
        layers(nn.Sequential(nn.Linear(2, 2, device="meta")))
    with refused(ModelError, text + "load the checkpoint into the model first."):
        layers(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)).to("meta")))
    text = "layer '0': weights must be real floating point numbers, but got torch.int8; "
    integers = nn.Linear(2, 2, bias=False)
    integers.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with refused(ModelError, text + "convert the model, e.g. model.float()."):
        layers(nn.Sequential(integers))
    model = nn.Sequential(nn.Linear(2, 2))
    nn.init.constant_(model[0].bias, math.nan)
    text = "layer '0': weights must be finite, but got NaN or infinite values; "
    with refused(ModelError, text + "check that training did not diverge before measuring."):
        layers(model)
    model = nn.Sequential(nn.Linear(2, 2), used_batchnorm(nn.BatchNorm1d, 2))
    model[1].running_var.fill_(-1.0)
    text = "layer '1': weights must be finite, but got NaN or infinite values; "
    with refused(ModelError, text + "check that training did not diverge before measuring."):
        layers(model)
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
    nn.init.constant_(model["attention"].in_proj_weight[4:8], math.inf)
    text = "layer 'attention.k': weights must be finite, but got NaN or infinite values; "
    with refused(ModelError, text + "check that training did not diverge before measuring."):
        layers(model)
    with refused(ModelError, "a model must be a torch.nn.Module, but got dict; load the checkpoint first."):
        layers({})
    text = "folding batch norms needs an input shape, but got none; give input_shape, e.g. (3, 224, 224)."
    with refused(ModelError, text):
        layers(nn.Sequential(nn.Linear(2, 2)), fold_batchnorm=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_layers_are_refused():
    quantised = torch.ao.nn.quantized.dynamic.Linear(2, 2)
    text = "layer '1': weights must be real floating point numbers, but got a quantised Linear; "
    with refused(ModelError, text + "measure the model before it is quantised."):
        layers(nn.Sequential(nn.Linear(2, 2), quantised))
