"""Attention as four linear operators, q, k, v and out, whose heads are groups of rows (of columns for out).

Modules are recognised by what they hold, not by their class: timm, open_clip and torchvision need not be installed. A
module that does not fit every condition is not taken for attention; its parts are then the plain linear layers they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pinchpoint.measure.operators import Groups, Operator, linear
from pinchpoint.measure.weights import acting64, stored

_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("q", "k", "v"), ("wq", "wk", "wv"))
_OUT = ("proj", "out_proj", "c_proj")
_OTHER_LAYOUT = ("head_first", "key_dim", "val_dim")
"""What attention holds whose packed rows are ordered by head first (timm's MaxViT, LeViT, EfficientFormer, TinyViT)."""

_OTHER_COLUMNS = ("timm.models.nest.Attention",)
"""Looks like the others, but its output takes the heads' columns interleaved."""


@dataclass(frozen=True)
class _Slice:
    """One of several equal parts of a module's weight or bias."""

    module: nn.Module
    name: str
    part: int = 0
    parts: int = 1
    called: bool = True

    def read(self) -> Tensor | None:
        tensor = acting64(self.module, self.name, called=self.called)
        return None if tensor is None else tensor.chunk(self.parts)[self.part]

    def stored(self) -> tuple[tuple[nn.Parameter, int, int], ...]:
        return tuple((parameter, self.part, self.parts) for parameter in stored(self.module, self.name))

    def rows(self) -> int:
        if isinstance(self.module, nn.Linear):
            return self.module.out_features // self.parts
        return stored(self.module, self.name)[0].shape[0] // self.parts


_Projection = tuple[_Slice, _Slice]
"""Weight and bias."""


def attention(name: str, module: nn.Module) -> list[Operator]:
    """The module's q, k, v and out, or nothing where it is not attention as we know it.

    Seen are ``nn.MultiheadAttention`` and open_clip's attention (parameters ``in_proj_weight`` or ``q_proj_weight`` ...),
    fully connected ``qkv``, ``q`` and ``kv``, or separate q, k and v, with ``num_heads`` (and ``num_kv_heads``) beside
    them and a fully connected output. Packed rows are in the order (q, k, v), then heads.

    >>> found = attention("attn", nn.MultiheadAttention(8, num_heads=2))
    >>> [(operator.name, operator.groups.axis) for operator in found]
    [('attn.q', 'rows'), ('attn.k', 'rows'), ('attn.v', 'rows'), ('attn.out', 'columns')]
    """
    heads = getattr(module, "num_heads", None)
    out = next((part for key in _OUT if isinstance(part := getattr(module, key, None), nn.Linear)), None)
    if not isinstance(heads, int) or out is None or _has_other_layout(module):
        return []
    kv_heads = getattr(module, "num_kv_heads", None) or heads
    head_dim = getattr(module, "head_dim", out.in_features // heads)
    width, kv_width = head_dim * heads, head_dim * kv_heads
    projections = _packed_parameters(module) or _parts(module)
    rows = [weight.rows() for weight, _ in projections]
    if out.in_features != width or rows != [width, kv_width, kv_width]:
        return []
    prefix = f"{name}." if name else ""
    found = [
        _operator(f"{prefix}{letter}", f"attention_{letter}", name, projection, count)
        for letter, projection, count in zip("qkv", projections, (heads, kv_heads, kv_heads), strict=True)
    ]
    # torch's own attention reads the weights of its output projection without calling it
    called = not isinstance(module, nn.MultiheadAttention)
    return [*found, linear(f"{prefix}out", "attention_out", out, name, Groups(heads, "columns"), called)]


def _has_other_layout(module: nn.Module) -> bool:
    path = f"{type(module).__module__}.{type(module).__qualname__}"
    return path in _OTHER_COLUMNS or any(getattr(module, key, None) for key in _OTHER_LAYOUT)


def _packed_parameters(module: nn.Module) -> list[_Projection]:
    """q, k and v of a module that owns their weights."""
    if stored(module, "in_proj_weight"):
        weights = [_Slice(module, "in_proj_weight", part, 3) for part in range(3)]
    elif all(stored(module, f"{letter}_proj_weight") for letter in "qkv"):
        weights = [_Slice(module, f"{letter}_proj_weight") for letter in "qkv"]
    else:
        return []
    return [(weight, _Slice(module, "in_proj_bias", part, 3)) for part, weight in enumerate(weights)]


def _parts(module: nn.Module) -> list[_Projection]:
    """q, k and v of a module with fully connected layers for them."""
    packed, shared = getattr(module, "qkv", None), getattr(module, "kv", None)
    if isinstance(packed, nn.Linear):
        if getattr(module, "q_bias", None) is None:
            return [(_Slice(packed, "weight", part, 3), _Slice(packed, "bias", part, 3)) for part in range(3)]
        # BEiT, EVA and Swin V2 own the biases, and read the weights without calling the layer unless told otherwise
        called = bool(getattr(module, "qkv_bias_separate", False))
        return [
            (_Slice(packed, "weight", part, 3, called), _Slice(module, f"{letter}_bias"))
            for part, letter in enumerate("qkv")
        ]
    if isinstance(shared, nn.Linear):
        query = getattr(module, "q", None)
        if not isinstance(query, nn.Linear):
            return []
        halves = [(_Slice(shared, "weight", part, 2), _Slice(shared, "bias", part, 2)) for part in range(2)]
        return [(_Slice(query, "weight"), _Slice(query, "bias")), *halves]
    for keys in _SEPARATE:
        layers = [getattr(module, key, None) for key in keys]
        if all(isinstance(layer, nn.Linear) for layer in layers):
            return [(_Slice(layer, "weight"), _Slice(layer, "bias")) for layer in layers if layer is not None]
    return []


def _operator(name: str, kind: str, caller: str, projection: _Projection, heads: int) -> Operator:
    weight, bias = projection

    def read() -> Tensor:
        matrix = weight.read()
        assert matrix is not None
        return matrix

    return Operator(
        name,
        kind,
        weight.module,
        caller,
        read,
        bias.read,
        weight.stored(),
        bias.stored(),
        Groups(heads, "rows"),
    )
