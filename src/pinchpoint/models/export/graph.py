"""From the JSON of an exported program to a ``torch.fx`` network.

Names from the file are used for modules only, and only where they are plain words with dots; everything else is named
anew, since fx turns its graph into source text.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from pinchpoint.errors import ModelError
from pinchpoint.models.export.archive import DTYPES, Archive, dtype_name
from pinchpoint.models.export.layers import Layer, layer_of
from pinchpoint.models.export.operations import IGNORED, operation

_MOST_NODES = 100_000
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_PLAIN = ("as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools", "as_strings")
_REMEDY = "export model.eval(), without run_decompositions"
_ONE_INPUT = "export a network of one input, a batch"


@dataclass(frozen=True)
class Graph:
    """A network and the inputs it was exported for.

    Attributes:
        network: its modules named as its weights.
        batch: the number of samples it takes, None: any.
        shape: of one sample, None for a size that is free.
        dtype: of its input; a floating point one.
    """

    network: fx.GraphModule
    batch: int | None
    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass
class _Builder:
    """The graph so far: what each name in the file stands for."""

    tensors: Mapping[str, Tensor]
    graph: fx.Graph = field(default_factory=fx.Graph)
    root: nn.Module = field(default_factory=nn.Module)
    values: dict[str, fx.Node] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    device: fx.Node | None = None


def read_graph(archive: Archive) -> Graph:
    """The network of an archive.

    Raises:
        ModelError: where it is not a network for inference of one input and one output, or asks for what is not allowed.
        Exception: anything, where the file is damaged.
    """
    graph, signature = archive.program["graph"], archive.program["signature"]
    if len(graph["nodes"]) > _MOST_NODES:
        raise ModelError(f"a graph may have {_MOST_NODES} nodes", len(graph["nodes"]), "export a smaller model")
    builder = _Builder(archive.tensors)
    batch, shape, dtype = _inputs(builder, graph, signature["input_specs"])
    for described in graph["nodes"]:
        if described["target"] not in IGNORED:
            _add(builder, described, graph["tensor_values"])
    _check_outputs(graph["outputs"], signature["output_specs"])
    builder.graph.output(builder.values[graph["outputs"][0]["as_tensor"]["name"]])
    for node in list(builder.graph.nodes):
        if not node.users and (node.op == "get_attr" or node is builder.device):
            builder.graph.erase_node(node)
    _furnish(builder)
    return Graph(fx.GraphModule(builder.root, builder.graph).eval(), batch, shape, dtype)


def _check_outputs(outputs: list[Mapping[str, Any]], specs: list[Mapping[str, Any]]) -> None:
    """One tensor, and nothing written on the way."""
    kinds = [next(iter(spec)) for spec in specs]
    if changed := [kind for kind in kinds if kind != "user_output"]:
        raise ModelError("it must return one tensor and change nothing", ", ".join(changed), _REMEDY)
    if len(outputs) != 1 or "as_tensor" not in outputs[0]:
        returned = f"{len(outputs)} outputs" if len(outputs) != 1 else "an output that is no tensor"
        raise ModelError("it must return one tensor", returned, "export a network that returns its logits alone")


def _inputs(
    builder: _Builder, graph: Mapping[str, Any], specs: list[Mapping[str, Any]]
) -> tuple[int | None, tuple[int | None, ...], torch.dtype]:
    """Parameters, buffers and constants are attributes; the one input of the user gives batch, shape and dtype."""
    asked: list[str] = []
    for spec in specs:
        ((kind, content),) = spec.items()
        if kind in ("parameter", "buffer", "tensor_constant"):
            name = content[f"{kind}_name"]
            if not re.fullmatch(r"\w+(\.\w+)*", name, re.ASCII) or name not in builder.tensors:
                raise ValueError(f"a tensor called {name}")
            builder.values[content["arg"]["name"]] = builder.graph.get_attr(name)
        elif kind == "user_input" and "as_tensor" in content["arg"]:
            asked.append(content["arg"]["as_tensor"]["name"])
        else:
            raise ModelError("it must take one tensor", f"an input of the kind {kind}", _ONE_INPUT)
    if len(asked) != 1:
        raise ModelError("it must take one tensor", f"{len(asked)} inputs", _ONE_INPUT)
    meta = graph["tensor_values"][asked[0]]
    if not meta["sizes"]:
        raise ModelError("it must take a batch of inputs", "an input without dimensions", _ONE_INPUT)
    builder.values[asked[0]] = x = builder.graph.placeholder("x")
    builder.device = builder.graph.call_function(getattr, (x, "device"))
    batch, *shape = [_size(size) for size in meta["sizes"]]
    return batch, tuple(shape), _real(meta["dtype"])


def _real(number: int) -> torch.dtype:
    """The dtype of an input, where pixels in [0, 1] can be given to it as they are.

    Raises:
        ModelError: for any other; whole numbers would leave nothing of pixels, and no gradient.
    """
    dtype = DTYPES.get(number)
    if dtype is None or not dtype.is_floating_point:
        raise ModelError(
            "its input must be of float16, bfloat16, float32 or float64",
            f"one of {dtype_name(number)}",
            "export the network for float32 images in [0, 1], its conversion from other numbers left out",
        )
    return dtype


def _size(size: Mapping[str, Any]) -> int | None:
    number = size.get("as_int")
    if number is not None and (type(number) is not int or not 0 < number < 2**31):
        raise ValueError(f"a size of {number}")
    return number


def _add(builder: _Builder, node: Mapping[str, Any], metas: Mapping[str, Any]) -> None:
    target = node["target"]
    try:
        function = operation(target)
    except LookupError:
        rule = "a graph from a file may use the common operations of inference only"
        raise ModelError(rule, target, f"{_REMEDY}, or give your code as py:MODULE:FACTORY") from None
    inputs = {item["name"]: _value(builder, item["arg"]) for item in node["inputs"]}
    if any(inputs.get(name) is True for name in ("train", "training", "use_input_stats")):
        raise ModelError("it must be a network for inference", f"{target} in training", _REMEDY)
    sizes = next((metas[name]["sizes"] for name in _names(node["inputs"][:1]) if name in metas), ())
    layer = layer_of(target, inputs, builder.tensors, len(sizes))
    if layer is not None and builder.layers.setdefault(layer.path, layer).key == layer.key:
        result = builder.graph.call_module(layer.path, (layer.x,))
    else:
        args, kwargs = _arguments(function, inputs)
        result = builder.graph.call_function(function, args, kwargs)
    _name_results(builder, node["outputs"], result)


def _names(inputs: list[Mapping[str, Any]]) -> list[str]:
    return [item["arg"]["as_tensor"]["name"] for item in inputs if "as_tensor" in item["arg"]]


def _arguments(function: Callable[..., Any], inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """By the operation's own schema; plain functions take all by place."""
    if not isinstance(function, OpOverload):
        return tuple(inputs.values()), {}
    known = {argument.name: argument.kwarg_only for argument in function._schema.arguments}
    if inputs.keys() - known.keys():
        raise ValueError(f"an argument {min(inputs.keys() - known.keys())} of {function}")
    args: list[Any] = []
    for name, kwarg_only in known.items():
        if kwarg_only or name not in inputs:
            break
        args.append(inputs.pop(name))
    return tuple(args), inputs


def _name_results(builder: _Builder, outputs: list[Mapping[str, Any]], result: fx.Node) -> None:
    """One result is itself; several, or a list of them, are taken out by number."""
    kind: str
    content: Any
    ((kind, content),) = outputs[0].items() if len(outputs) == 1 else (("several", outputs),)
    if kind == "as_tensor":
        builder.values[content["name"]] = result
    elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        builder.values[content["as_name"]] = result
    elif kind in ("as_tensors", "several"):
        for number, item in enumerate(content):
            name = item["name"] if kind == "as_tensors" else item.get("as_tensor", {}).get("name")
            if name is not None:
                builder.values[name] = builder.graph.call_function(operator.getitem, (result, number))
    elif kind != "as_none":
        raise ValueError(f"a result of the kind {kind}")


def _value(builder: _Builder, argument: Mapping[str, Any]) -> Any:
    ((kind, content),) = argument.items()
    if kind == "as_tensor":
        return builder.values[content["name"]]
    if kind == "as_none":
        return None
    if kind in _PLAIN:
        return _plain(kind, content)
    if kind in ("as_tensors", "as_nested_tensors"):
        return [builder.values[item["name"]] for item in content]
    if kind == "as_optional_tensors":
        return [_value(builder, item) for item in content]
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return _symbol(builder, content)
    if kind in ("as_sym_ints", "as_sym_bools", "as_sym_floats"):
        return [_symbol(builder, item) for item in content]
    if kind == "as_scalar_type":
        return DTYPES[content]
    if kind == "as_memory_format":
        return _MEMORY_FORMATS[content]
    if kind == "as_layout":
        return torch.strided
    if kind == "as_device":
        return builder.device  # where the input is, wherever the export was made
    raise ModelError("a graph from a file may have numbers, words and tensors as arguments", kind, _REMEDY)


def _symbol(builder: _Builder, content: Mapping[str, Any]) -> Any:
    ((kind, value),) = content.items()
    return builder.values[value] if kind == "as_name" else _plain(kind, value)


def _plain(kind: str, content: Any) -> Any:
    """A number, a word, or a list of them, of the kind it is said to be."""
    wanted = {"int": int, "float": float, "bool": bool, "string": str}[kind.removeprefix("as_").removesuffix("s")]
    if kind.endswith("s"):
        return [_plain(kind.removesuffix("s"), item) for item in content]
    if wanted is float and isinstance(content, int | float | str):
        return float(content)  # infinities are written as words
    if type(content) is not wanted:
        raise ValueError(f"{content!r} as {kind}")
    return content


def _furnish(builder: _Builder) -> None:
    """The modules and tensors the graph asks for, those further up first."""
    for path, layer in sorted(builder.layers.items(), key=lambda item: item[0].count(".")):
        parent, _, name = path.rpartition(".")
        _inside(builder.root, parent).add_module(name, layer.module)
    for node in builder.graph.nodes:
        if node.op == "get_attr":
            parent, _, name = node.target.rpartition(".")
            _hang(_inside(builder.root, parent), name, builder.tensors[node.target])


def _hang(module: nn.Module, name: str, tensor: Tensor) -> None:
    if getattr(module, name, None) is tensor:
        return
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def _inside(root: nn.Module, path: str) -> nn.Module:
    """The module of that path, made where it is not there."""
    for part in path.split(".") if path else ():
        inner = root._modules.get(part)
        if inner is None:
            inner = nn.Module()
            root.add_module(part, inner)
        root = inner
    return root
