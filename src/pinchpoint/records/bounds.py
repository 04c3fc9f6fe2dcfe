"""What holds for every input: norms, Lipschitz constants, alignment."""

from __future__ import annotations

from pinchpoint.records.base import Norm, Record
from pinchpoint.records.profile import Skipped


class LayerBound(Record):
    """Theorem 3.1 for one layer: ``operator_norm <= structure * scale``, with the k that makes it tightest."""

    name: str
    operator_norm: float
    structure: float
    scale: float
    bound: float
    k: int
    k_row: int | None


class Bounds(Record):
    """Certified numbers for one norm: they hold for every input, under ``assumptions``.

    ``lipschitz_lower <= true encoder constant <= lipschitz <= lipschitz_product <= lipschitz_structure``;
    ``lipschitz_method`` names the bound that ``lipschitz`` is; ``lipschitz_structure`` is None where a layer is too large
    to be written out. ``median_radius`` is over the correctly classified samples.
    """

    norm: Norm
    lipschitz: float
    lipschitz_method: str = "product"
    lipschitz_product: float | None = None
    lipschitz_structure: float | None
    lipschitz_lower: float
    head_factor: float
    layers: list[LayerBound]
    median_radius: float | None
    assumptions: list[str]


class UpperBound(Record):
    """A certified upper bound by one method; None with the reason where it does not apply or would not fit the budget."""

    method: str
    value: float | None
    reason: str | None


class NetworkBounds(Record):
    """The Lipschitz constant of a network from l_p to l_p: ``lower <= true constant <= upper``, both certified.

    ``uppers`` holds the upper bounds by method and ``method`` names the smallest. ``sampled`` and ``lower`` are difference
    quotients less their rounding errors, found by sampling and after ascent. ``empirical`` is the largest quotient seen:
    reached in float64, but no bound. ``encoder`` bounds the part before the head; ``margin_largest`` and ``margin_median``
    are over the constants of all differences of two logits. A number that is None has its reason in ``reasons``.
    """

    norm: Norm
    lower: float | None
    sampled: float | None
    upper: float | None
    method: str | None
    uppers: list[UpperBound]
    empirical: float
    encoder: float | None
    margin_largest: float | None
    margin_median: float | None
    reasons: dict[str, str]
    seconds: float


class OperatorBounds(Record):
    """One layer under one norm: ``lower <= ||operator|| <= upper``, and Theorem 3.1 for its matrix.

    ``matrix_norm <= structure * scale = bound`` with the k that makes it tightest; None where the layer has no matrix. The
    matrix of a convolution is its filter bank, one filter a row, and its norm is not that of the operator.
    """

    norm: Norm
    lower: float
    upper: float
    matrix_norm: float | None
    structure: float | None
    scale: float | None
    bound: float | None
    k: int | None
    k_row: int | None


class LayerBounds(Record):
    """A straight run of linear operations as it acts, batch norm folded in: ``columns`` numbers in, ``rows`` out.

    ``matrix_shape`` is that of the matrix of Theorem 3.1; ``reason`` says why there is none.
    """

    name: str
    kind: str
    rows: int
    columns: int
    matrix_shape: tuple[int, int] | None
    reason: str | None
    norms: list[OperatorBounds]


class PairBounds(Record):
    """Two layers with one activation between them: their norms' product may count ``factor`` = min(1, upper) times.

    ``lower <= A_p <= upper``, their alignment (paper, section 3), equal up to rounding where ``exact``; or a reason for
    None.
    """

    norm: Norm
    first: str
    second: str
    lower: float | None
    upper: float | None
    exact: bool | None
    factor: float
    reason: str | None


class BoundSheet(Record):
    """All that is known to hold for a network, layer by layer and as a whole, under ``assumptions``.

    ``unbounded`` names what has no Lipschitz constant here; then ``networks`` hold empirical estimates only.
    """

    input_shape: list[int]
    networks: list[NetworkBounds]
    layers: list[LayerBounds]
    pairs: list[PairBounds]
    unbounded: list[Skipped]
    assumptions: list[str]
    seconds: float
