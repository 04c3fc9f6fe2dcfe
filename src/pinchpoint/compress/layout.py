"""What makes a pruned or factorised network differ from the architecture it came from, as plain data.

A network is saved as its architecture, this layout and its tensors; ``apply`` cuts the architecture down to it. A layout
only ever makes a network smaller.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field, model_validator
from torch import Tensor, nn

from pinchpoint.compress.factorize import lowrank_like
from pinchpoint.compress.lowrank import LowRank
from pinchpoint.errors import ModelError
from pinchpoint.measure.attention import attention
from pinchpoint.measure.weights import computed_tensors
from pinchpoint.utils.config import StrictModel

_WIDTHS = ("attn_dim", "all_head_dim", "inner_dim", "dim_out")
"""Names under which attention modules remember heads times head size; ``dim_out`` only where it is that."""


class Selection(StrictModel):
    """Which of ``inputs`` channels each output channel copies; -1 for zeros. No channel is copied twice."""

    inputs: int = Field(ge=1)
    source: tuple[Annotated[int, Field(ge=-1)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> Selection:
        copied = [channel for channel in self.source if channel >= 0]
        if len(set(copied)) < len(copied) or any(channel >= self.inputs for channel in copied):
            raise ValueError(f"Input should copy channels 0 ... {self.inputs - 1}, each at most once")
        return self


class Layout(StrictModel):
    """Sizes that are not those of the architecture.

    ``shapes``: shape of each tensor that was cut, by its name in the architecture's state dict. ``selections``: of each
    module that selects channels. ``ranks``: of each layer that was then factorised.
    """

    ranks: dict[str, Annotated[int, Field(ge=1)]] = Field(default={})
    shapes: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = Field(default={})
    selections: dict[str, Selection] = Field(default={})


@runtime_checkable
class SelectsChannels(Protocol):
    """A module without weights whose output channel i is input channel ``source[i]``, at every ``stride``-th pixel."""

    inputs: int
    source: tuple[int, ...]
    stride: int

    def select(self, inputs: int, source: tuple[int, ...]) -> None:
        """Take other channels from now on."""
        ...


def layout_of(base: nn.Module, model: nn.Module) -> Layout:
    """How ``model`` differs from ``base``, its architecture.

    Raises:
        ModelError: where it differs by more than a layout can say.

    >>> base = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> layout_of(base, model).shapes
    {'0.weight': (2, 4), '0.bias': (2,), '2.weight': (2, 2)}
    >>> apply(base, layout_of(base, model)).state_dict().keys() == model.state_dict().keys()
    True
    """
    base, like = copy.deepcopy(base).to("meta"), copy.deepcopy(model, computed_tensors(model)).to("meta")
    own = {name for name, module in base.named_modules() if isinstance(module, LowRank)}
    ranks = {name: m.rank for name, m in like.named_modules() if isinstance(m, LowRank) and name not in own}
    before, after = _shapes(base), _shapes(like)
    for name in ranks:  # as it was before it was factorised
        after[f"{name}.weight"] = tuple(like.get_submodule(name).weight.shape)  # type: ignore[arg-type]
    shapes = {name: shape for name, shape in after.items() if name in before and shape != before[name]}
    originals = dict(base.named_modules())
    selections: dict[str, Selection] = {}
    for name, module in model.named_modules():
        original = originals.get(name)
        if not (isinstance(module, SelectsChannels) and isinstance(original, SelectsChannels)):
            continue
        if (module.inputs, module.source) != (original.inputs, original.source):
            selections[name] = Selection(inputs=module.inputs, source=module.source)
    layout = Layout(ranks=ranks, shapes=shapes, selections=selections)
    wanted, found = _shapes(apply(base, layout)), _shapes(like)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            seen = f"{name} {found.get(name, 'missing')}, where that has {wanted.get(name, 'nothing')}"
            raise ModelError("a network must be its architecture or a smaller part of it", seen, "give its own one")
    return layout


def apply(model: nn.Module, layout: Layout) -> nn.Module:
    """The model cut down to the layout: leading parts of its tensors and new low-rank layers, to be filled from a file. The
    given model is used up.

    Raises:
        ModelError: where the layout names what the model does not have, or a tensor larger than the model's.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    cut = {}
    for name, shape in layout.shapes.items():
        tensor = tensors.get(name)
        _check_part(name, shape, None if tensor is None else tuple(tensor.shape))
        assert tensor is not None
        cut[name] = tensor.detach()[tuple(slice(size) for size in shape)].clone()
    modules = dict(model.named_modules())
    for name, selection in layout.selections.items():
        module = modules.get(name)
        if not isinstance(module, SelectsChannels):
            seen = "no layer of that name" if module is None else type(module).__name__
            raise ModelError(f"a layout's {name} must select channels", seen, "use its own layout")
        if selection.inputs > module.inputs or len(selection.source) > len(module.source):
            seen = f"{module.inputs} to {len(module.source)} channels"
            raise ModelError(f"a layout's {name} must be part of the architecture's", seen, "use its own layout")
        module.select(selection.inputs, selection.source)
    refit(model, cut)
    return lowrank_like(model, layout.ranks) if layout.ranks else model


def _check_part(name: str, shape: tuple[int, ...], whole: tuple[int, ...] | None) -> None:
    if whole is None or len(shape) != len(whole) or any(new > old for new, old in zip(shape, whole, strict=True)):
        seen = "no tensor of that name" if whole is None else f"shape {whole}"
        raise ModelError(f"a layout's {name} {shape} must be part of the architecture's", seen, "use its own layout")


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def refit(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of other sizes in place of the model's own, and correct the sizes that its modules remember."""
    found = {name: attention(name, module) for name, module in model.named_modules()}
    sizes = {  # rows of one head, to be read before anything changes
        name: operators[0].weights[0][0].shape[0] // operators[0].weights[0][2] // operators[0].groups.count
        for name, operators in found.items()
        if operators and operators[0].groups
    }
    for name, tensor in tensors.items():
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, key)
        if isinstance(old, nn.Parameter):
            setattr(module, key, nn.Parameter(tensor, requires_grad=old.requires_grad))
        else:
            setattr(module, key, tensor)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
        _resize(model.get_submodule(path))
    for name, size in sizes.items():
        _resize_attention(name, model.get_submodule(name), size)


def _resize(module: nn.Module) -> None:
    """Sizes of a layer, from its tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups > 1:  # a filter a channel; no other grouped convolution is ever cut
            module.groups = module.out_channels = module.in_channels = module.weight.shape[0]
        elif module.transposed:
            module.in_channels, module.out_channels = module.weight.shape[:2]
        else:
            module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = weight if weight is not None else module.running_mean
        assert sized is not None
        module.num_features = len(sized)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _resize_attention(name: str, module: nn.Module, size: int) -> None:
    """The number of heads, from the columns of the output projection."""
    out = next(
        part for key in ("proj", "out_proj", "c_proj") if isinstance(part := getattr(module, key, None), nn.Linear)
    )
    before = int(module.num_heads)  # type: ignore[arg-type]
    heads = out.in_features // size
    if heads == before:
        return
    for key in _WIDTHS:
        if getattr(module, key, None) == before * size:
            setattr(module, key, heads * size)
    for key in ("num_heads", "num_kv_heads"):
        if getattr(module, key, None) == before:
            setattr(module, key, heads)
