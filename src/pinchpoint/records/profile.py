"""What the weights alone tell: compressibility, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from pinchpoint.records.base import Record

if TYPE_CHECKING:
    import polars


ViewName = Literal["neuron", "spectral", "entrywise", "column"]
"""The four views of a layer's compressibility."""


class View(Record):
    """One view of one layer's compressibility, drawn from n magnitudes theta:

    neuron (l1 norms of rows), spectral (singular values), entrywise (all entries), column (l1 norms of columns), and for
    attention head (l1 norm of each head's block).

    ``residual`` and ``spread`` are taken at ``k``; ``k_for_target`` is the smallest k with residual <= ``target``.
    ``participation_ratio`` is (sum theta)^2 / sum theta^2, ``pq_index`` that of Diao et al. 2023 with p = 1/2, q = 1.
    ``values`` are the magnitudes in descending order, divided by their sum, and ``residuals`` the residuals at the same
    ranks: at most 256 of them, evenly spaced in rank, with their ranks in ``ranks``, counted from 1.
    """

    n: int
    k: int
    q: float
    residual: float
    spread: float
    target: float
    k_for_target: int
    participation_ratio: float
    pq_index: float
    ranks: list[int]
    values: list[float]
    residuals: list[float]


class LayerProfile(Record):
    """Compressibility of one layer's h x d matrix.

    ``matrix_linf`` and ``matrix_l2`` are norms of that matrix. ``linf`` and ``l2_lower <= true norm <= l2_upper`` are those
    of the linear operator, which a convolution's matrix is not: ``norm_method`` says how they were found, or
    ``norm_reason`` why they are None. ``numerical_rank`` counts singular values above ``rank_tolerance`` times the
    largest. ``row_residual_mean`` and ``row_residual_max`` are over the rows, each at ``row_k`` of its entries.
    """

    name: str
    kind: str
    rows: int
    columns: int
    parameters: int
    frobenius: float
    matrix_linf: float
    matrix_l2: float
    linf: float | None
    l2_lower: float | None
    l2_upper: float | None
    norm_method: str | None
    norm_reason: str | None
    effective_rank: float
    stable_rank: float
    numerical_rank: int
    rank_tolerance: float
    row_k: int
    row_residual_mean: float
    row_residual_max: float
    neuron: View
    spectral: View
    entrywise: View
    column: View
    head: View | None


class Skipped(Record):
    """A module or parameter that is not seen as a linear operator, why, and how many numbers it stores."""

    name: str
    kind: str
    reason: str
    parameters: int = 0


class Profile(Record):
    """Compressibility of a model: its layers in order, and what was skipped.

    ``neuron``, ``spectral``, ``entrywise`` and ``column`` are the network's compressibility: 1 - residual at the chosen
    share of k, averaged over the encoder's layers (all but the last one). ``weighted`` holds the same averages with each
    layer counted by the entries of its matrix.
    """

    layers: list[LayerProfile]
    skipped: list[Skipped]
    neuron: float
    spectral: float
    entrywise: float
    column: float
    weighted: dict[ViewName, float]

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a layer, ready for ``polars.DataFrame`` or ``pandas.DataFrame``; curves are left out."""
        views = (*get_args(ViewName), "head")
        keys = [key for key in View.model_fields if key not in ("ranks", "values", "residuals")]
        table = []
        for layer in self.layers:
            row: dict[str, Any] = layer.model_dump(exclude=set(views))
            for name in views:
                view: View | None = getattr(layer, name)
                row |= {f"{name}_{key}": getattr(view, key, None) for key in keys}
            table.append(row)
        return table

    def frame(self) -> polars.DataFrame:
        """``rows()`` as a polars data frame."""
        import polars

        return polars.DataFrame(self.rows(), infer_schema_length=None)
