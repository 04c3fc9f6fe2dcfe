"""A model as the graph of operations it really computes, read off by torch.export.

What counts is what runs: forward methods, hooks, pruning masks and parametrisations are traced, in float64 and eval mode,
for one input of a known shape. Constants are folded. Each operation is one of a few kinds whose Lipschitz constants are
known (``pinchpoint.bound.network.operations``); any other is named in the error, with the module it stands in.
"""

from __future__ import annotations

import copy
import io
import logging
import operator
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.nn import functional

from pinchpoint.bound.network.agreement import check_agreement
from pinchpoint.bound.network.operations import (
    VARYING,
    Call,
    HasLipschitz,
    Known,
    Operation,
    Positive,
    Unbounded,
    understand,
)
from pinchpoint.errors import ModelError
from pinchpoint.measure.forward import own_dtype
from pinchpoint.measure.weights import computed_tensors, float64_copy

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True, eq=False)
class Node:
    """One operation on the values of earlier nodes.

    Attributes:
        name, kind: path and class of the module it stands in.
        operation: what is known about it; None for the input.
        inputs: indices of the nodes it reads.
        shape: of its value, with the leading batch dimension of 1.
        run: computes it, with all constants bound.
        device: where its value is.
    """

    name: str
    kind: str
    operation: Operation | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    run: Callable[..., Tensor]
    device: torch.device

    @property
    def size(self) -> int:
        """Number of entries of its value."""
        return int(torch.Size(self.shape).numel())

    @property
    def keeps_values(self) -> bool:
        """Whether it leaves all entries as they are, in their order."""
        return self.operation == Positive("nothing")


@dataclass(frozen=True, eq=False, repr=False)  # torch.func.vmap asks for the repr at each call
class Network:
    """Nodes in an order in which they can run; node 0 is the input, the last one the output."""

    nodes: tuple[Node, ...]
    device: torch.device

    def __call__(self, x: Tensor) -> Tensor:
        """The output for one input of shape [1, ...], in float64."""
        ((_, value),) = deque(self.each(x), maxlen=1)
        return value

    def each(self, x: Tensor) -> Iterator[tuple[Node, Tensor]]:
        """Each node with its value for one input of shape [1, ...]. Values that nobody reads any more are let go of."""
        values = {0: x}
        yield self.nodes[0], x
        for index, node in enumerate(self.nodes[1:], start=1):
            values[index] = node.run(*(values[source] for source in node.inputs))
            for done in self._done[index]:
                del values[done]
            yield node, values[index]

    @cached_property
    def _done(self) -> list[list[int]]:
        """For each node, the values that it is the last to read."""
        done: list[list[int]] = [[] for _ in self.nodes]
        for index, readers in enumerate(self.consumers()[:-1]):
            done[max(readers, default=len(self.nodes) - 1)].append(index)
        return done

    def values(self, x: Tensor) -> list[Tensor]:
        """The value of each node for one input of shape [1, ...]."""
        return [value for _, value in self.each(x)]

    def consumers(self) -> list[list[int]]:
        """For each node, who reads it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source in set(node.inputs):
                readers[source].append(index)
        return readers

    def unbounded(self) -> list[Node]:
        """Nodes that have no known Lipschitz constant."""
        return [node for node in self.nodes if isinstance(node.operation, Unbounded)]

    def require_bounded(self) -> None:
        """Refuse a network with operations that cannot be bounded, by name."""
        if not (bad := self.unbounded()):
            return
        operation = bad[0].operation
        assert isinstance(operation, Unbounded)
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ModelError(
            "a Lipschitz bound needs operations with a known constant",
            f"{operation.what} in {bad[0].kind} at '{bad[0].name or 'the top level'}'{more} ({operation.why})",
            "bound a network without it, or give the module a lipschitz_constant(norm) method",
        )


def trace(model: nn.Module, input_shape: Sequence[int] | None = None) -> Network:
    """The network a model computes on one input.

    Args:
        model: any module with one tensor in and one tensor out; its own state is left as it is.
        input_shape: of one input, without batch; not needed where the first layer is fully connected.

    Raises:
        ModelError: where the input shape is needed, the model cannot take it, or what it computes depends on values.

    >>> network = trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    >>> [type(node.operation).__name__ for node in network.nodes[1:]], network.nodes[-1].shape
    (['Dense', 'Slope'], (1, 2))
    """
    if not isinstance(model, nn.Module):
        raise ModelError("a model must be a torch.nn.Module", type(model).__name__, "load the checkpoint first")
    shape = tuple(input_shape) if input_shape is not None else _shape_of_input(model)
    _check_weights(model)
    copied = float64_copy(model)
    device = next((tensor.device for tensor in copied.state_dict().values()), torch.device("cpu"))
    example = torch.zeros(1, *shape, dtype=torch.float64, device=device)
    network = Network(_Reader(copied, _export(model, copied, example)).read(), device)
    if not network.unbounded():
        check_agreement(network, model, copied, example)
    return network


def _check_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            raise ModelError(
                "weights must be there", f"'{name}' on the meta device, without values", "load the checkpoint first"
            )
        if parameter.numel() == 0:
            raise ModelError(
                "layers must have units", f"'{name}' of shape {tuple(parameter.shape)}", "leave the empty layer out"
            )
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                "weights must be finite",
                f"NaN or infinite values in '{name}'",
                "check that training did not diverge before measuring",
            )


def _shape_of_input(model: nn.Module) -> tuple[int, ...]:
    """The shape that the first layer asks for."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            return (module.in_features,)
        columns = getattr(module, "in_features", None)
        if isinstance(columns, int):
            return (columns,)
        if next(module.parameters(recurse=False), None) is not None:
            break
    raise ModelError(
        "a bound needs the shape of one input",
        f"{type(model).__name__} without a fully connected layer in front",
        "give input_shape, for example (3, 32, 32)",
    )


@contextmanager
def _quietly() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # torch.export prints graphs that it cannot trace
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _check_runs(model: nn.Module, copied: nn.Module, example: Tensor) -> None:
    """Refuse a model that does not run on the example, with the reason."""
    try:
        with torch.no_grad():
            answered = copied(example.clone())
    except Exception as error:  # whatever a foreign module raises
        seen = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    else:
        if isinstance(answered, list | tuple | dict) and len(answered) == 1:  # torch.export would take what is inside
            raise ModelError(
                "a model must return one tensor that depends on its input",
                f"a {type(answered).__name__} of one",
                "wrap it in a module that returns the logits",
            )
        return
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(model, computed_tensors(model)).eval()(example.to(own_dtype(model), copy=True))
    except Exception:
        raise ModelError(
            f"a model must run on one input of shape {tuple(example.shape[1:])}",
            seen,
            "wrap it in a module that takes one input"
            if seen.startswith("TypeError")
            else "give the shape of its inputs as input_shape",
        ) from None
    raise ModelError(
        "a certified bound needs a model that runs in float64",
        seen,
        "bound it before it is quantised, and take casts to other dtypes out of forward",
    )


def _export(model: nn.Module, copied: nn.Module, example: Tensor) -> ExportedProgram:
    _check_runs(model, copied, example)
    try:
        with _quietly(), torch.no_grad():
            program = torch.export.export(copied, (example,), strict=False)
            if any(_changes_its_input(item) for item in program.graph.nodes):
                # an empty table keeps operations whole, and still turns in-place operations into pure ones
                program = program.run_decompositions({})
            return program
    except Exception as error:
        raise ModelError(
            "a certified bound needs a model that torch.export can trace: the same operations for every input",
            f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
            "take decisions that depend on values out of forward"
            if "data-dependent" in str(error)
            else "compute with torch's operations from the input to the output: no NumPy, no .data",
        ) from None


class _Reader:
    """Turns an exported program into nodes. What does not depend on the input is folded into constants."""

    def __init__(self, model: nn.Module, program: ExportedProgram) -> None:
        self.program = program
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.constants: dict[fx.Node, Any] = {}
        self.index: dict[fx.Node, int] = {}
        self.nodes: list[Node] = []

    def read(self) -> tuple[Node, ...]:
        known = self._inside_known_modules()
        for item in self.program.graph.nodes:
            if item.op == "placeholder":
                self._placeholder(item)
            elif item.op == "get_attr":
                self.constants[item] = getattr(self.program.graph_module, str(item.target))
            elif item.op == "call_function" and item not in known:
                self._call(item)
            elif item.op == "call_function" and known[item][-1] is item:
                self._known(known[item])
            elif item.op == "output":
                self._finish(item)
        return tuple(self.nodes)

    def _placeholder(self, item: fx.Node) -> None:
        signature, stored = self.program.graph_signature, {**self.program.state_dict, **self.program.constants}
        targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        if item.name in targets:
            self.constants[item] = stored[targets[item.name]].detach()
        else:
            self._add(item, None, [], lambda x: x)

    def _call(self, item: fx.Node) -> None:
        sources = self._sources([item])
        value = item.meta.get("val")
        self._refuse_what_no_rule_can_hold(item, sources)
        if not sources or (_operator_name(item) in _OF_SHAPE_ONLY and sources == list(item.args[:1])):
            self.constants[item] = self._constant(item)
        elif isinstance(value, Tensor):
            if not all(isinstance(size, int) for size in value.shape):
                raise ModelError(
                    "a certified bound needs a model that torch.export can trace: the same operations for every input",
                    f"{_operator_name(item)} with a shape that depends on values",
                    "index by places instead of masks",
                )
            through = [*(parent for parent in item.all_input_nodes if self._is_several(parent)), item]
            sources = self._sources(through)
            run = partial(self._evaluate_all, through, sources)
            reads: list[fx.Node] = []
            fx.map_arg((through[0].args, through[0].kwargs), reads.append)
            call = Call(
                name=_operator_name(through[0]),
                operands=_operands(through[0]),
                args=fx.map_arg(through[0].args, self._constant_or_varying),
                kwargs=fx.map_arg(through[0].kwargs, self._constant_or_varying),
                part=item.args[1] if len(through) > 1 else None,
                reads=sum(source not in self.constants for source in reads),
                shapes=tuple(self.nodes[self.index[source]].shape for source in sources),
                shape=tuple(value.shape),
                dtype=value.dtype,
                run=run,
            )
            self._add(item, understand(call), sources, run)

    def _refuse_what_no_rule_can_hold(self, item: fx.Node, sources: list[fx.Node]) -> None:
        """Random numbers, numbers read off values, and what is no operation of torch's."""
        path, kind = _module(item)
        where = f"in {kind} at '{path or 'the top level'}'"
        random = torch.Tag.nondeterministic_seeded in getattr(item.target, "tags", ())
        # dropout and the like are pure in eval mode: where they have a rule, it looks whether they train
        if random and _operator_name(item) not in _RANDOM_IN_TRAINING:
            raise ModelError(
                "a certified bound needs a model that computes the same at every call",
                f"{_operator_name(item)}, which is random, {where}",
                "take the noise out of forward",
            )
        if sources and isinstance(item.meta.get("val"), int | float | torch.SymInt | torch.SymFloat | torch.SymBool):
            raise ModelError(
                "a certified bound needs a model that computes with tensors from its input to its output",
                f"{_operator_name(item)}, a number read off a value that depends on the input, {where}",
                "take item(), tolist() and decisions that depend on values out of forward",
            )
        known = isinstance(item.target, torch._ops.OpOverload | torch._ops.HigherOrderOperator)
        if not known and item.target is not operator.getitem and not (sources or item.meta.get("val") is not None):
            raise ModelError(
                "a certified bound needs a model made of torch's operations",
                f"{getattr(item.target, '__name__', item.target)} {where}",
                "take function transforms such as torch.vmap out of forward",
            )

    def _constant_or_varying(self, item: fx.Node) -> Any:
        return self.constants.get(item, VARYING)

    def _constant(self, item: fx.Node) -> Any:
        nodes = {source: self.nodes[self.index[source]] for source in self._sources([item])}
        zeros = {source: torch.zeros(n.shape, dtype=torch.float64, device=n.device) for source, n in nodes.items()}
        with torch.no_grad():
            value = self._evaluate(item, zeros)
        if isinstance(value, Tensor) and value.is_floating_point() and _operator_name(item) in _UNINITIALISED:
            return torch.full_like(value, torch.nan)  # whatever memory held: shows wherever it is not overwritten
        return value

    def _known(self, members: list[fx.Node]) -> None:
        """A module that knows its own constant becomes one node."""
        path, kind = self._vouching(members[-1])
        sources = self._sources(members)
        left = [item for item in members[:-1] if any(user not in members for user in item.users)]
        if len(sources) != 1 or left:
            raise ModelError(
                "a module with a lipschitz_constant(norm) has one input and one output",
                f"{kind} at '{path}'",
                "split it, or leave lipschitz_constant out",
            )
        module = self.modules[path]
        assert isinstance(module, HasLipschitz)
        self._add(members[-1], Known.of(module), sources, partial(self._evaluate_all, members, sources))

    def _finish(self, item: fx.Node) -> None:
        results = item.args[0]
        assert isinstance(results, tuple)  # so torch.export has it
        specs = list(zip(results, self.program.graph_signature.output_specs, strict=True))
        harmless = (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION)
        if changed := [spec.target for _, spec in specs if spec.kind not in harmless]:
            raise ModelError(
                "a certified bound needs a model that computes the same at every call",
                f"a forward pass that changes '{changed[0]}'",
                "keep state out of forward",
            )
        found = [result for result, spec in specs if spec.kind is OutputKind.USER_OUTPUT]
        if len(found) != 1 or not isinstance(found[0], fx.Node) or found[0] not in self.index:
            raise ModelError(
                "a model must return one tensor that depends on its input",
                "one that does not" if len(found) == 1 else f"{len(found)} outputs",
                "wrap it in a module that returns the logits",
            )
        last = self.index[found[0]]
        if self.nodes[last].shape[:1] != (1,):
            raise ModelError(
                "a model must give one output for each input of a batch",
                f"shape {self.nodes[last].shape} for one input",
                "check input_shape, and keep the first dimension in forward",
            )
        if self.nodes[last].size == 0:
            raise ModelError(
                "a model must return one number or more for each input", "none", "check the size of its last layer"
            )
        needed = {last}
        for index in range(last, -1, -1):
            if index in needed:
                needed.update(self.nodes[index].inputs)
        kept = sorted({0} | needed)
        place = {old: new for new, old in enumerate(kept)}
        self.nodes = [
            replace(self.nodes[old], inputs=tuple(place[source] for source in self.nodes[old].inputs)) for old in kept
        ]

    def _add(
        self, item: fx.Node, operation: Operation | None, sources: list[fx.Node], run: Callable[..., Tensor]
    ) -> None:
        self.index[item] = len(self.nodes)
        inputs = tuple(self.index[source] for source in sources)
        path, kind = _module(item)
        value = item.meta["val"]
        self.nodes.append(Node(path, kind, operation, inputs, tuple(value.shape), run, value.device))

    def _sources(self, items: list[fx.Node]) -> list[fx.Node]:
        """What these read that depends on the input, each once."""
        found = [source for item in items for source in item.all_input_nodes]
        return list(dict.fromkeys(n for n in found if n not in self.constants and n not in items))

    def _is_several(self, item: fx.Node) -> bool:
        return item not in self.constants and item not in self.index

    def _evaluate(self, item: fx.Node, values: dict[fx.Node, Any]) -> Any:
        def look_up(source: fx.Node) -> Any:
            return values[source] if source in values else self.constants[source]

        target = _INSTEAD.get(_operator_name(item), cast(Callable[..., Any], item.target))
        return target(*fx.map_arg(item.args, look_up), **fx.map_arg(item.kwargs, look_up))

    def _evaluate_all(self, items: list[fx.Node], sources: list[fx.Node], *inputs: Tensor) -> Tensor:
        values: dict[fx.Node, Any] = dict(zip(sources, inputs, strict=True))
        for item in items:
            values[item] = self._evaluate(item, values)
        result: Tensor = values[items[-1]]
        return result

    def _vouching(self, item: fx.Node) -> tuple[str, str]:
        """Path and class of the outermost module around an operation that knows its own constant."""
        stack = [(_plain(path), kind) for path, kind in item.meta["nn_module_stack"].values()]
        path, kind = next((path, kind) for path, kind in stack if _vouches(self.modules.get(path)))
        return path, str(kind).rsplit(".", 1)[-1]

    def _inside_known_modules(self) -> dict[fx.Node, list[fx.Node]]:
        """Operations inside modules that know their own constant, each with all those of the same call."""
        calls: dict[str, list[fx.Node]] = {}
        for item in self.program.graph.nodes:
            for key, (path, _) in item.meta.get("nn_module_stack", {}).items():
                if item.op == "call_function" and _vouches(self.modules.get(_plain(path))):
                    calls.setdefault(str(key), []).append(item)
                    break
        return {item: members for members in calls.values() for item in members}


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    shaped = weight.reshape(-1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else weight
    return x.clamp(min=0.0) + shaped * x.clamp(max=0.0)


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, momentum: float, eps: float
) -> tuple[Tensor]:
    return (functional.batch_norm(x, mean, variance, weight, bias, momentum=momentum, eps=eps),)


def _same(x: Tensor) -> Tensor:
    return x


_INSTEAD: dict[str, Callable[..., Any]] = {
    "prelu": _prelu,
    "_native_batch_norm_legit_no_training": _batch_norm,
    **dict.fromkeys(("detach", "alias", "lift_fresh_copy"), _same),
}
"""Where torch's vmap fails (gradients of prelu), or is slow and says so; and where its derivative is not that of the values:
a constant is a matter of the forward pass alone."""

_RANDOM_IN_TRAINING = {
    *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"),
    *("scaled_dot_product_attention", "rrelu"),
}
_UNINITIALISED = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
_OF_SHAPE_ONLY = {
    "zeros_like",
    "ones_like",
    "full_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "empty_like",
    "new_empty",
}
"""Operations that look at their input's shape, not at its values."""


def _vouches(module: nn.Module | None) -> bool:
    """Whether a module knows its constant, and no hook changes what it does."""
    if not isinstance(module, HasLipschitz) or not callable(module.lipschitz_constant):
        return False
    return not (module._forward_hooks or module._forward_pre_hooks)


def _changes_its_input(item: fx.Node) -> bool:
    return bool(getattr(getattr(item.target, "_schema", None), "is_mutable", False))


def _operator_name(item: fx.Node) -> str:
    schema = getattr(item.target, "_schema", None)
    return str(item.target) if schema is None else str(schema.name).removeprefix("aten::")


def _operands(item: fx.Node) -> tuple[str, ...]:
    """The names that an operation's arguments have."""
    schema = getattr(item.target, "_schema", None)
    return (
        tuple(f"argument {place + 1}" for place in range(len(item.args)))
        if schema is None
        else tuple(argument.name for argument in schema.arguments)
    )


def _module(item: fx.Node) -> tuple[str, str]:
    """Path and class name of the innermost module an operation stands in."""
    stack = list(item.meta.get("nn_module_stack", {}).values())
    if not stack:
        return "", "the model"
    path, kind = stack[-1]
    return _plain(path), str(kind).rsplit(".", 1)[-1]


def _plain(path: str) -> str:
    """A module's path without the mark of a repeated call."""
    return path.split("@")[0]
