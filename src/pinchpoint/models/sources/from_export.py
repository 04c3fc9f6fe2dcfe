"""A ``.pt2`` of torch.export as a network with layers: linear, convolutional and normalising nodes become the modules they
were, under the names of their weights, so that they can be measured and changed as any other network's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pinchpoint.errors import CheckpointError, ModelError
from pinchpoint.models.export.archive import read_archive
from pinchpoint.models.export.graph import Graph, read_graph
from pinchpoint.models.normalisation import Normalisation
from pinchpoint.models.sources.source import Source, by, checked

_MOST_BYTES = 4e9


class Chunked(nn.Module):
    """A network that takes only batches of ``size``: others are cut, the last one filled up with its last sample."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch outputs"]:
        missing = -len(x) % self.size
        full = x if missing == 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
        return torch.cat([self.network(chunk) for chunk in full.split(self.size)])[: len(x)]


class Converted(nn.Module):
    """A network that takes inputs of the dtype it was exported for; they are converted to it, and with it.

    >>> Converted(nn.Linear(2, 1).bfloat16(), torch.bfloat16)(torch.zeros(1, 2)).dtype
    torch.bfloat16
    >>> Converted(nn.Linear(2, 1).bfloat16(), torch.bfloat16).double()(torch.zeros(1, 2)).dtype
    torch.float64
    """

    dtype: Tensor

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("dtype", torch.empty(0, dtype=dtype), persistent=False)  # goes where the weights go

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch outputs"]:
        logits: Tensor = self.network(x.to(self.dtype.dtype))
        return logits


def from_exported(path: Path, input_size: tuple[int, ...] | None, asked: Normalisation | None) -> Source:
    """The program in the archive, rebuilt without running anything that is in it.

    A program for batches of one size is tried with others; where it gives something else for them, it gets chunks.

    Raises:
        CheckpointError: where the archive is damaged, or holds what would have to be run or is no network for inference.
        ModelError: where inputs of that size do not fit it.
    """
    archive = read_archive(path)
    try:
        graph = read_graph(archive)
    except ModelError as error:
        raise CheckpointError(f"{path}: {error.rule}", error.value, error.remedy) from None
    except Exception as error:  # a hostile file can break any rule
        said = f"{type(error).__name__}: {(str(error) or 'no word about it').splitlines()[0]}"
        rule, remedy = f"{path} must hold a graph that fits its tensors", "export the model again"
        raise CheckpointError(rule, said, remedy) from None
    shape = _shape(path, graph, input_size)
    _check_memory(path, graph, shape)
    notes = [f"the layers are those that torch.export wrote to {path.name}; nothing else in it was read"]
    network: nn.Module = graph.network
    if graph.batch is not None:
        chunked = Chunked(network, graph.batch)
        if not _takes_others(network, chunked, shape, graph.dtype):
            network = chunked
            notes.append(f"it was exported for batches of {graph.batch}, so others run in chunks of {graph.batch}")
    if graph.dtype != torch.float32:
        network = Converted(network, graph.dtype)
        notes.append(
            f"it was exported for inputs of {str(graph.dtype).removeprefix('torch.')}, so pixels are converted to that"
        )
    if asked is None:
        notes.append("the file does not say how inputs are normalised, so it is given pixels in [0, 1]")
    else:
        notes.append(f"inputs are pixels in [0, 1], normalised as asked: {asked}")
    model = (asked or Normalisation()).before(network, shape).eval()
    source = Source(str(path), model, shape, None, tuple(notes), normalisation=None if asked is None else str(asked))
    return checked(source, shape)


def _shape(path: Path, graph: Graph, input_size: tuple[int, ...] | None) -> tuple[int, ...]:
    """The exported shape, with other sizes only where it was exported for any."""
    own = graph.shape
    wanted = own if input_size is None else input_size
    if len(wanted) == 2 and len(own) == 3:
        wanted = (own[0], *wanted)
    fits = len(wanted) == len(own) and all(
        None in pair or len(set(pair)) == 1 for pair in zip(own, wanted, strict=True)
    )
    if not fits or None in wanted:
        rule = f"{path} takes inputs of {_any(own)}, as it was exported"
        raise ModelError(rule, _any(wanted), "choose another --input-size")
    return tuple(size for size in wanted if size is not None)


def _any(shape: Sequence[int | None]) -> str:
    return "x".join("any" if size is None else str(size) for size in shape)


class _Bytes(TorchDispatchMode):
    """Counts what the results of all operations would take, on the meta device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        results = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.total += sum(result.nbytes for result in tree_leaves(results) if isinstance(result, Tensor))
        if self.total > _MOST_BYTES:
            raise MemoryError
        return results


def _check_memory(path: Path, graph: Graph, shape: tuple[int, ...]) -> None:
    """Before anything is computed, what it would take is known."""
    batch = graph.batch or 1
    state = {
        name: tensor.to("meta") for name, tensor in (*graph.network.named_parameters(), *graph.network.named_buffers())
    }
    try:
        with torch.no_grad(), _Bytes():
            functional_call(graph.network, state, torch.empty(batch, *shape, dtype=graph.dtype, device="meta"))
    except MemoryError:
        rule = f"{path} must run in {_MOST_BYTES / 1e9:g} GB for one batch of {batch}"
        raise CheckpointError(rule, "more", "export a smaller model, or one for batches of any size") from None
    except Exception as error:  # its own graph can say anything
        said = (str(error) or type(error).__name__).splitlines()[0]
        rule = f"the graph in {path} must run on inputs of {by((batch, *shape))}"
        raise CheckpointError(rule, said, "export the model again") from None


def _takes_others(network: nn.Module, chunked: Chunked, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether another size of the batch gives the same logits."""
    x = torch.rand(3 if chunked.size != 3 else 2, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        try:
            expected, found = chunked(x.clone()), network(x.clone())
        except Exception:  # it was built for that one alone
            return False
    return expected.shape == found.shape and torch.allclose(expected, found, rtol=1e-4, atol=1e-5)
