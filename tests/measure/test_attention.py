"""q, k, v and out of attention: with them and the heads, attention computed by hand is what the module computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn
from torch.nn.utils import parametrizations, prune

from pinchpoint.measure import layers
from pinchpoint.utils.torchvision import import_torchvision

PARTS = ("q", "k", "v", "out")


def by_hand(found, query, key, value):
    """Attention from its four matrices, head by head, in NumPy. Inputs are (positions, features)."""
    parts = {layer.kind.removeprefix("attention_"): layer for layer in found if layer.kind.startswith("attention_")}

    def heads(name, x):
        layer = parts[name]
        y = x @ layer.matrix.numpy().T + (0.0 if layer.bias is None else layer.bias.numpy())
        assert layer.groups.axis == "rows"
        ends = np.cumsum([len(block) for block in layer.groups.split(layer.matrix)])
        return np.split(y, ends[:-1], axis=1)

    q, k, v = heads("q", query), heads("k", key), heads("v", value)
    out = parts["out"]
    assert out.groups.axis == "columns"
    result = 0.0 if out.bias is None else out.bias.numpy()
    for head, columns in enumerate(out.groups.split(out.matrix)):
        shared = head * len(k) // len(q)  # several heads of q share one of k and v
        scores = q[head] @ k[shared].T / np.sqrt(q[head].shape[1])
        result = result + softmax(scores, axis=1) @ v[shared] @ columns.numpy().T
    return result


def trained(module):
    """In float64, with biases and the like that are not zero; tables of relative positions are zero."""
    for name, parameter in module.double().eval().named_parameters():
        nn.init.normal_(parameter, std=0.0 if "table" in name else 0.3)
    return module


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"kdim": 6, "vdim": 10},
        {"kdim": 6, "vdim": 10, "bias": False},
        {"batch_first": True},
    ],
)
def test_multihead_attention(options):
    attention = trained(nn.MultiheadAttention(12, 3, **{"batch_first": True, **options}))
    query = torch.randn(5, 12, dtype=torch.float64)
    key = torch.randn(7, attention.kdim, dtype=torch.float64)
    value = torch.randn(7, attention.vdim, dtype=torch.float64)
    found = layers(nn.ModuleDict({"attn": attention}))
    assert [layer.name for layer in found] == [f"attn.{part}" for part in PARTS]
    assert [layer.kind for layer in found] == [f"attention_{part}" for part in PARTS]
    assert sum(layer.parameters for layer in found) == sum(parameter.numel() for parameter in attention.parameters())
    expected = attention(query[None], key[None], value[None])[0][0].detach()
    np.testing.assert_allclose(
        by_hand(found, query.numpy(), key.numpy(), value.numpy()), expected, rtol=1e-10, atol=1e-12
    )


def test_attention_at_the_top_and_inside_torchs_transformer():
    assert [layer.name for layer in layers(nn.MultiheadAttention(4, 2))] == list(PARTS)
    names = [layer.name for layer in layers(nn.TransformerDecoderLayer(4, 2, 8))]
    assert names == [f"{part}.{x}" for part in ("self_attn", "multihead_attn") for x in PARTS] + ["linear1", "linear2"]


def test_parametrised_and_masked_projections_are_seen_as_they_act():
    attention = nn.MultiheadAttention(12, 3, batch_first=True)
    prune.random_unstructured(attention, "in_proj_weight", amount=0.5)
    parametrizations.weight_norm(attention.out_proj)
    trained(attention)
    x = torch.randn(5, 12, dtype=torch.float64)
    found = layers(attention)
    assert sum(layer.parameters for layer in found) == sum(parameter.numel() for parameter in attention.parameters())
    expected = attention(x[None], x[None], x[None])[0][0].detach()
    np.testing.assert_allclose(by_hand(found, x.numpy(), x.numpy(), x.numpy()), expected, rtol=1e-10, atol=1e-12)
    # torch's attention never calls its output projection, so that a mask's hook does not run there
    attention = nn.MultiheadAttention(12, 3, batch_first=True)
    prune.random_unstructured(attention.out_proj, "weight", amount=0.5)
    with torch.no_grad():
        attention.out_proj.weight_orig.mul_(10.0)
    x = torch.randn(5, 12)
    expected = attention.eval()(x[None], x[None], x[None])[0][0].detach()
    np.testing.assert_allclose(
        by_hand(layers(attention), x.numpy(), x.numpy(), x.numpy()), expected, rtol=1e-4, atol=1e-6
    )


TIMM = {
    "fused": ("timm.layers.attention", "Attention", {"num_heads": 3, "qkv_bias": True}),
    "no bias": ("timm.layers.attention", "Attention", {"num_heads": 3, "proj_bias": False}),
    "wide heads": ("timm.layers.attention", "Attention", {"num_heads": 3, "attn_head_dim": 6}),
    "rope": ("timm.layers.attention", "AttentionRope", {"num_heads": 3}),
    "rope, separate": ("timm.layers.attention", "AttentionRope", {"num_heads": 3, "qkv_fused": False}),
    "grouped queries": (
        "timm.layers.attention",
        "AttentionRope",
        {"num_heads": 6, "num_kv_heads": 2, "qkv_fused": False},
    ),
    "EVA": ("timm.models.eva", "EvaAttention", {"num_heads": 3, "scale_norm": False}),
    "EVA, biases apart": (
        "timm.models.eva",
        "EvaAttention",
        {"num_heads": 3, "scale_norm": False, "qkv_bias_separate": True},
    ),
    "EVA, separate": ("timm.models.eva", "EvaAttention", {"num_heads": 3, "scale_norm": False, "qkv_fused": False}),
    "BEiT": ("timm.models.beit", "Attention", {"num_heads": 3, "qkv_bias": True}),
    "PVT": ("timm.models.pvt_v2", "Attention", {"num_heads": 3, "linear_attn": False}),
    "Swin": ("timm.models.swin_transformer", "WindowAttention", {"num_heads": 3, "window_size": 2}),
    "open_clip": ("open_clip.transformer", "Attention", {"num_heads": 3}),
}


@pytest.mark.long
@pytest.mark.parametrize("which", TIMM)
def test_attention_of_timm_and_open_clip(which):
    import_torchvision()
    package, name, options = TIMM[which]
    library = pytest.importorskip(package)
    attention = trained(getattr(library, name)(12, **options))
    x = torch.randn(1, 4, 12, dtype=torch.float64)
    expected = (attention(x, (2, 2)) if which == "PVT" else attention(x))[0].detach()
    found = layers(nn.ModuleDict({"attn": attention}))
    assert [layer.name for layer in found] == [f"attn.{part}" for part in PARTS]
    np.testing.assert_allclose(by_hand(found, *[x[0].numpy()] * 3), expected, rtol=1e-10, atol=1e-12)
    numbers = sum(layer.parameters for layer in found) + sum(
        skipped.parameters for skipped in layers(attention).skipped
    )
    assert numbers == sum(parameter.numel() for parameter in attention.parameters())


@pytest.mark.long
def test_a_mask_on_a_layer_that_is_read_and_not_called():
    import_torchvision()
    attention = pytest.importorskip("timm.models.beit").Attention(12, num_heads=3, qkv_bias=True)
    prune.random_unstructured(attention.qkv, "weight", amount=0.5)
    with torch.no_grad():
        attention.qkv.weight_orig.mul_(10.0)
    x = torch.randn(1, 4, 12)
    expected = attention.eval()(x)[0].detach()
    np.testing.assert_allclose(by_hand(layers(attention), *[x[0].numpy()] * 3), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_attention_pooling_of_clips_resnet():
    import_torchvision()
    library = pytest.importorskip("open_clip.modified_resnet")
    pool = trained(library.AttentionPool2d(2, 12, 3, 6))
    image = torch.randn(1, 12, 2, 2, dtype=torch.float64)
    tokens = image.flatten(2)[0].T
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding.detach()
    found = layers(pool)
    assert [layer.name for layer in found] == list(PARTS)
    expected = pool(image).detach()
    np.testing.assert_allclose(by_hand(found, tokens[:1].numpy(), tokens.numpy(), tokens.numpy()), expected, rtol=1e-10)


class Packed(nn.Module):
    """Holds what attention holds."""

    def __init__(self, rows=36, columns=12, **attributes):
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, rows), nn.Linear(columns, 12)
        for name, value in attributes.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    "module",
    [
        Packed(),  # no number of heads
        Packed(num_heads=5),
        Packed(num_heads=3.0),
        Packed(rows=24, num_heads=3),  # q comes from elsewhere
        Packed(num_heads=3, head_first=True),
        Packed(num_heads=3, key_dim=4),
        Packed(num_heads=3, head_dim=2),  # differential attention has twice the heads it says
        Packed(num_heads=3, proj=nn.Identity()),
    ],
)
def test_what_is_not_certainly_attention_stays_linear_layers(module):
    found = layers(nn.Sequential(module))
    assert {layer.kind for layer in found} == {"linear"}
    assert {layer.name for layer in found} <= {"0.qkv", "0.proj"}
    assert all(layer.groups is None for layer in found)
    assert [layer.name for layer in layers(nn.Sequential(Packed(num_heads=3)))] == [f"0.{part}" for part in PARTS]


@pytest.mark.long
def test_heads_whose_columns_are_interleaved_are_not_taken_for_groups():
    import_torchvision()
    nest = pytest.importorskip("timm.models.nest").Attention(12, num_heads=3)
    assert [layer.kind for layer in layers(nest)] == ["linear", "linear"]
