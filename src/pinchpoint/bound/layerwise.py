"""One layer's numbers: its norms as an operator, and Theorem 3.1 for its matrix."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pinchpoint.bound.methods.structure import structure_scale
from pinchpoint.bound.network.operations import Conv, Dense, Scale
from pinchpoint.bound.network.runs import Run
from pinchpoint.records import LayerBounds, Norm, OperatorBounds

_WRITTEN_OUT = 1024
"""Side up to which a run of several layers is written out for Theorem 3.1."""


def has_weights(run: Run) -> bool:
    """Whether it does more than reorder, select and average."""
    return any(isinstance(operation, Dense | Conv | Scale) for operation, _, _ in run.folded)


def layer_bounds(run: Run, norms: Sequence[Norm], k: int | None) -> LayerBounds:
    """One run of linear operations: norms as an operator, and Theorem 3.1 for its matrix."""
    kind, matrix, reason = _matrix(run)
    return LayerBounds(
        name=run.name,
        kind=kind,
        rows=run.rows,
        columns=run.columns,
        matrix_shape=None if matrix is None else (matrix.shape[0], matrix.shape[1]),
        reason=reason,
        norms=[_operator(run, matrix, norm, k) for norm in norms],
    )


def _matrix(run: Run) -> tuple[str, Tensor | None, str | None]:
    """What kind of layer it is, and its matrix: of a convolution the filter bank; or why there is none."""
    operations = [operation for operation, _, _ in run.folded]
    main = [operation for operation in operations if isinstance(operation, Dense | Conv)]
    if len(main) == 1 and isinstance(main[0], Dense):
        return "linear", main[0].weight, None
    if len(main) == 1 and isinstance(main[0], Conv):
        operator = main[0].operator
        dims = f"{len(operator.kernel)}d"
        if not operator.transposed:
            return f"conv{dims}", operator.weight.flatten(1), None
        into, out = operator.weight.shape[:2]
        bank = operator.weight.reshape(operator.groups, into // operator.groups, out, -1).transpose(1, 2)
        return f"conv_transpose{dims}", bank.reshape(operator.groups * out, -1), None
    if not main:
        return "scaling", None, "it has no weights of its own but a diagonal"
    if min(run.rows, run.columns) <= _WRITTEN_OUT and (written := run.matrix) is not None:
        return f"{len(main)} layers", written.entries, None
    return f"{len(main)} layers", None, f"as one matrix it is too large: {run.rows} x {run.columns}"


def _operator(run: Run, matrix: Tensor | None, norm: Norm, k: int | None) -> OperatorBounds:
    low, high = run.norm_bounds(norm)
    found = None
    if matrix is not None:
        terms = min(matrix.shape) if norm == "l2" else len(matrix)
        found = structure_scale(matrix, norm, None if k is None else min(k, terms))
    return OperatorBounds(
        norm=norm,
        lower=low,
        upper=high,
        matrix_norm=None if found is None else found.operator_norm,
        structure=None if found is None else found.structure,
        scale=None if found is None else found.scale,
        bound=None if found is None else found.bound,
        k=None if found is None else found.k,
        k_row=None if found is None else found.k_row,
    )
