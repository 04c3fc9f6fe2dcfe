"""Pictures of decisions (paper, section 4): planes through a sample in pixels and in representation space, and PCA.

A plane is spanned by the sample's perturbation and a dominant right singular direction: of the first layer in pixels, of
the head in representation space. A compressible layer stretches few directions much, so a boundary is soon met along them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack import Threat
from pinchpoint.attack.gradient import at_once, eval_mode, input_gradient
from pinchpoint.attack.samples import check_labels, check_points, check_threats
from pinchpoint.errors import ConfigError, DataError, ModelError
from pinchpoint.evaluate import logits_of
from pinchpoint.evaluate.logits import BATCH
from pinchpoint.measure.layers import float64_copy, linear_modules, matrix64
from pinchpoint.measure.weights import is_convolution
from pinchpoint.mechanism import right_singular_vectors
from pinchpoint.mechanism.pairs import check_pairs
from pinchpoint.records import DecisionPlane, Pictures, RepresentationPCA
from pinchpoint.records.decisions import Space
from pinchpoint.utils.model_output import answer, called, check_module

_STEPS, _CHECK, _CLOSE, _TINY = 400, 10, 1e-9, 1e-12  # of the Lanczos iteration
_NUMBERS = 2**23
"""Numbers in all its vectors: with large images they are fewer, 55 with ImageNet's."""
_PARALLEL = 1e-6
_ROUNDING = 1e-9


def pictures(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    x_adv: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    planes: int = 2,
    samples: int = 300,
    size: int = 41,
) -> Pictures:
    """Planes of the first samples that the model gets right and their perturbation wrong, and PCA of all.

    Where there are too few of them, samples follow that it gets right, then others; one that was not moved is not drawn.
    Of a single sample there are no principal axes: its ``pca`` is empty.

    Args:
        model: ends in a fully connected layer, the head.
        x, x_adv: inputs, and what an attack made of them.
        y: labels.
        threat: of that attack.
        planes: how many samples are drawn, in both spaces each.
        samples: how many take part in the PCA.
        size: points along each side of a plane.

    Raises:
        ModelError: where nothing was moved, there is one sample or feature alone, or the model does not end in a fully
            connected layer.

    >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> x = torch.rand(5, 4)
    >>> found = pictures(model, x, (x + 0.1).clamp(0, 1), torch.zeros(5).long(), Threat("linf", 0.1), planes=1, size=5)
    >>> [plane.space for plane in found.planes], len(found.pca.clean)
    (['input', 'representation'], 5)
    """
    check_threats([threat])
    x, x_adv = check_pairs(x, x_adv)
    y = check_labels(y, x)
    moved = (x_adv != x).flatten(1).any(1)
    if not bool(moved.any()):
        raise ModelError("at least one perturbed input must differ from the input", "none", "use a larger budget")
    right = logits_of(model, x).argmax(1) == y
    fooled = right & (logits_of(model, x_adv).argmax(1) != y)
    order = torch.argsort(right.int() + fooled.int(), descending=True, stable=True)
    chosen = order[moved[order]][:planes].tolist()
    direction = dominant_direction(model, x[0]) if chosen else None
    drawn = []
    for row in chosen:
        one = (model, x[row], x_adv[row], int(y[row]))
        drawn.append(
            decision_plane(*one, direction=direction, size=size, box=threat.box).model_copy(update={"sample": row})
        )
        try:
            within = decision_plane(*one, space="representation", size=size)
            drawn.append(within.model_copy(update={"sample": row}))
        except DataError:  # nothing moves there, or along the head's direction alone: there is no plane
            continue
    none = RepresentationPCA(clean=[], adversarial=[], labels=[], answers=[], explained=[], moved=[])
    try:
        pca = representation_pca(model, x[:samples], x_adv[:samples], y[:samples])
    except ConfigError:  # one sample, or one coordinate, has no two axes: its planes are drawn all the same
        pca = none
    return Pictures(norm=threat.norm, eps=threat.eps, planes=drawn, pca=pca)


def decision_plane(
    model: nn.Module,
    x: Float[Tensor, "*shape"],
    x_adv: Float[Tensor, "*shape"],
    y: int,
    *,
    space: Space = "input",
    direction: Float[Tensor, "*any"] | None = None,
    size: int = 41,
    extent: float = 2.0,
    box: tuple[float, float] | None = (0.0, 1.0),
) -> DecisionPlane:
    """The model's answers on the plane through a sample, along its perturbation and across it.

    The first axis is that of the perturbation, the second what is orthogonal to it of the direction. Both are of length 1,
    so that distances are l2 distances. In representation space only the head answers.

    Args:
        model: any module; in representation space one that ends in a fully connected layer, the head.
        x, x_adv: one input and what an attack made of it, without a batch.
        y: its label.
        space: ``input`` or ``representation``.
        direction: in that space. Where None, the dominant right singular direction of the first layer as a function of
            pixels (``dominant_direction``), or of the head's matrix.
        size: points along each side; an odd number has the sample at one of them.
        extent: half a side, in lengths of the perturbation.
        box: what pixels may be, for ``excess``.

    Raises:
        ConfigError: for a size or extent that gives no plane.
        DataError: where nothing moves in that space, or the direction is zero, not finite, of another size or that of the
            perturbation.
        ModelError: where the model does not end in a fully connected layer.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.eye(2))
    >>> plane = decision_plane(
    ...     model, torch.tensor([0.5, 0.4]), torch.tensor([0.4, 0.5]), 0, direction=torch.ones(2), size=3
    ... )
    >>> plane.labels, plane.adversarial_label, round(plane.length, 3)
    ([[0, 0, 1], [0, 0, 1], [0, 0, 1]], 1, 0.141)
    """
    if size < 2 or not 0 < extent < math.inf:
        raise ConfigError(
            "a plane needs 2 points or more a side, and a positive extent", (size, extent), "use 41 and 2"
        )
    (x,), (x_adv,) = check_pairs(_one(x), _one(x_adv))
    start, end, direction, answers_of = _in_space(model, x, x_adv, space, direction)
    length, first, second, along = _axes(start, end, direction)
    steps = torch.linspace(-extent, extent, size, dtype=torch.float64, device=x.device) * length
    labels, confidence, excess = [], [], []
    for step in steps:
        points = start + steps[:, None] * first + step * second
        sure, answers = answers_of(points.to(x.dtype)).double().softmax(1).max(1)
        labels.append(answers.tolist())
        confidence.append(sure)
        if space == "input" and box is not None:
            beyond = torch.maximum(box[0] - points, points - box[1]).amax(1).clamp_min(0.0)
            excess.append(torch.where(beyond > _ROUNDING, beyond, 0.0))
    ends = answers_of(torch.stack([start, end]).to(x.dtype)).argmax(1).tolist()
    return DecisionPlane(
        space=space,
        sample=0,
        label=y,
        clean_label=ends[0],
        adversarial_label=ends[1],
        length=length,
        along=along,
        across=math.sqrt(max(0.0, 1.0 - along**2)),
        coordinates=_rounded(steps, 6),
        labels=labels,
        confidence=_rounded(torch.stack(confidence), 5),
        excess=_rounded(torch.stack(excess)) if excess else None,
    )


def dominant_direction(model: nn.Module, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The unit vector of pixels that the first linear layer called stretches most; what stands before it counts.

    Normalising and flattening are affine, so this is the first right singular vector of the first layer's Jacobian, the
    same at every x. Found by the Lanczos iteration with all its vectors kept, in float64; for images above 83 x 83 it ends
    after fewer vectors than it may need, with a direction that is stretched almost as much. Its largest entry is positive.

    Args:
        model: any module.
        x: one input, without a batch.

    Raises:
        ModelError: where no linear layer is called, or the first one is zero.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[0.0, -5.0, 0.0], [1.0, 0.0, 0.0]]))
    >>> dominant_direction(model, torch.zeros(1, 1, 3)).flatten().round(decimals=6).abs().tolist()
    [0.0, 1.0, 0.0]
    """
    (x,) = check_points(_one(x))
    check_module(model)
    if any(weight.is_meta for weight in model.parameters()):
        raise ModelError("a model must have weights", "weights on the meta device", "load its checkpoint first")
    copied = float64_copy(model).to(x.device).eval()
    point = x.detach().double()[None]
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, x.numel(), generator=generator, dtype=torch.float64).to(x.device)
    rows, pulled = row[:0], row[:0]  # an orthonormal basis, and J'J of each of it
    with _stopping(copied):
        base = _first_output(copied, point).detach()
        for step in range(1, min(_STEPS, x.numel(), max(_CHECK, _NUMBERS // x.numel())) + 1):
            size = float(row.norm())
            for _ in range(2):  # twice is enough (Parlett 1980, section 6.9)
                row = row - (row @ rows.T) @ rows
            if float(row.norm()) <= _TINY * size:
                break  # the basis spans all that J'J makes of the start
            rows = torch.cat([rows, row / row.norm()])
            moved = (point + rows[-1].reshape(point.shape)).requires_grad_(True)
            image = _first_output(copied, moved)
            row = input_gradient(model, moved, (image * (image.detach() - base)).flatten(1).sum(1)).reshape(1, -1)
            pulled = torch.cat([pulled, row])
            if step % _CHECK == 0 and _settled(rows, pulled):
                break
    values, mixed = torch.linalg.eigh(pulled @ rows.T)
    if not float(values[-1]) > 0:
        raise ModelError("a dominant direction needs a first layer that is not zero", "zeros", "train the model")
    dominant: Tensor = _signed((mixed[:, -1] @ rows)[None]).reshape(x.shape)
    return dominant.to(x.dtype)


def representation_pca(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    x_adv: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    *,
    components: int = 2,
) -> RepresentationPCA:
    """What the head is given, clean and under attack, along the principal axes of the clean ones (in float64).

    Args:
        model: ends in a fully connected layer, the head.
        x, x_adv: inputs, and what an attack made of them.
        y: labels.
        components: number of axes.

    Raises:
        ConfigError: for more axes than samples or coordinates.
        ModelError: where the model does not end in a fully connected layer.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    >>> x = torch.tensor([[0.0, 0.5], [1.0, 0.5], [0.5, 0.5]])
    >>> found = representation_pca(model, x, x + torch.tensor([0.0, 0.25]), torch.tensor([0, 1, 1]), components=2)
    >>> found.clean, found.explained, found.moved
    ([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.0]], [1.0, 0.0], [0.0, 1.0])
    """
    x, x_adv = check_pairs(x, x_adv)
    y = check_labels(y, x)
    _, clean, _ = _represented(model, x)
    _, moved, logits = _represented(model, x_adv)
    clean, moved = clean.double(), moved.double()
    most = min(clean.shape)
    if not 1 <= components <= most:
        raise ConfigError(f"components must lie in 1 ... {most}", components, "use fewer, or more samples")
    centre = clean.mean(0)
    decomposed = torch.linalg.svd(clean - centre, full_matrices=False)
    axes = _signed(decomposed.Vh[:components])
    along = (moved - clean) @ axes.T
    return RepresentationPCA(
        clean=_rounded((clean - centre) @ axes.T, 5),
        adversarial=_rounded((moved - centre) @ axes.T, 5),
        labels=y.tolist(),
        answers=logits.argmax(1).tolist(),
        explained=_shares(decomposed.S.square()[:components], decomposed.S.square().sum()),
        moved=_shares(along.square().sum(0), (moved - clean).square().sum()),
    )


def _settled(rows: Float[Tensor, "k d"], pulled: Float[Tensor, "k d"]) -> bool:
    """Whether the largest eigenvector in the span of the rows is one of the matrix that maps rows to pulled."""
    values, mixed = torch.linalg.eigh(pulled @ rows.T)
    residual = mixed[:, -1] @ pulled - values[-1] * (mixed[:, -1] @ rows)
    return float(residual.norm()) <= _CLOSE * float(values[-1])


def _in_space(
    model: nn.Module, x: Tensor, x_adv: Tensor, space: Space, direction: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Both points and the direction as vectors in float64, and what the model answers to such points."""
    if space == "input":
        wanted = dominant_direction(model, x) if direction is None else direction

        def from_input(points: Tensor) -> Tensor:
            return logits_of(model, points.reshape(-1, *x.shape))

        return x.double().flatten(), x_adv.double().flatten(), wanted.to(x.device).double().flatten(), from_input
    head, ends, _ = _represented(model, torch.stack([x, x_adv]))
    if direction is None:
        matrix = matrix64(head)
        assert matrix is not None  # a head is a linear layer
        direction = right_singular_vectors(matrix, 1)[0]

    def from_head(points: Tensor) -> Tensor:
        return logits_of(head, points)

    return ends[0].double(), ends[1].double(), _signed(direction.to(x.device).double().flatten()[None])[0], from_head


def _one(x: Tensor) -> Tensor:
    """A batch of this input alone."""
    return x[None] if isinstance(x, Tensor) else x


def _axes(start: Tensor, end: Tensor, direction: Tensor) -> tuple[float, Tensor, Tensor, float]:
    """Length of the movement, the two axes, and how much of the direction lies along the first."""
    length = float((end - start).norm())
    if length == 0:
        raise DataError("a plane needs a sample that its perturbation moves", "no movement", "choose another sample")
    size = float(direction.norm()) if direction.shape == start.shape else math.nan
    if not 0 < size < math.inf:
        seen = f"{direction.numel()} numbers of length {size:g}"
        raise DataError(f"a direction must be {start.numel()} numbers, not all zero", seen, "give one of that space")
    first, unit = (end - start) / length, direction / size
    along = float(unit @ first)
    rest = unit - along * first
    if float(rest.norm()) < _PARALLEL:
        raise DataError("a direction must not be that of the perturbation", f"cosine {along:.7f}", "choose another one")
    return length, first, rest / rest.norm(), along


class _Reached(BaseException):
    """The first layer's output, thrown out of a forward pass that need not go on. No error: no model may catch it."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


@contextmanager
def _stopping(model: nn.Module) -> Iterator[None]:
    """Forward passes end at the first linear layer called."""

    def stop(module: nn.Module, inputs: object, output: Tensor) -> None:
        raise _Reached(output)

    handles = [module.register_forward_hook(stop) for _, module in linear_modules(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_output(model: nn.Module, x: Tensor) -> Tensor:
    """What the first linear layer called gives, where forward passes end there; autograd can follow it."""
    try:
        with torch.enable_grad():
            called(model, x)
    except _Reached as reached:
        return reached.output
    raise ModelError("a dominant direction needs a first layer", "no linear layer called", "give a network")


def _represented(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """The head, what it is given and what it gives, which is what the model gives."""
    check_module(model)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def remember(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[:] = [(module, inputs[0].clone(), output.clone())]  # what comes after may change them in place

    parts: list[tuple[Tensor, Tensor]] = []
    handles = [part.register_forward_hook(remember) for _, part in linear_modules(model) if not is_convolution(part)]
    try:
        with eval_mode(model), torch.no_grad():
            for batch in x.split(at_once(x, BATCH)):
                calls.clear()
                logits = answer(model, batch)
                if not calls or calls[-1][1].ndim != 2 or not torch.equal(calls[-1][2].to(logits), logits):
                    seen = type(calls[-1][0]).__name__ + " before more" if calls else "no fully connected layer"
                    remedy = "give a model whose last layer gives the logits"
                    raise ModelError("representations need a fully connected layer at the end", seen, remedy)
                parts.append((calls[-1][1], logits))
    finally:
        for handle in handles:
            handle.remove()
    given, gives = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return calls[-1][0], given, gives


def _signed(vectors: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """Rows whose sign is free, turned so that their largest entry is positive."""
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)


def _shares(parts: Tensor, whole: Tensor) -> list[float]:
    shares: list[float] = _rounded(parts / whole if float(whole) > 0 else torch.zeros_like(parts))
    return shares


def _rounded(values: Tensor, digits: int = 4) -> Any:
    """As lists, short to write down: so many digits of the largest number, and no negative zero."""
    largest = float(values.abs().max())
    places = digits - 1 - (math.floor(math.log10(largest)) if largest > 0 else 0)
    return (values.round(decimals=places) + 0.0).tolist()
