"""All that can be said about one network within a budget: layers, pairs of layers, and the whole from both sides.

What would take longer than what is left of the budget is left out, and says so. Times are predicted from the number of
floating point operations, generously, before anything is written out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.bound.certificates import dual_differences
from pinchpoint.bound.gate import certified, check_pairs
from pinchpoint.bound.layerwise import has_weights, layer_bounds
from pinchpoint.bound.lipschitz import (
    ASSUMPTIONS,
    by_ellipsoid,
    encoder,
    equivalence_factor,
    margins,
    scaled_up,
    uppers_by_method,
)
from pinchpoint.bound.methods.alignment import Alignment, alignment
from pinchpoint.bound.methods.cost import LARGEST_STATE, STEP, alignment_seconds, ellipsoid_seconds, structure_seconds
from pinchpoint.bound.methods.lower import ascended, empirical, quotient, sampled, starting_points
from pinchpoint.bound.methods.product import Item, find_norms, items_of, pairs, parts_of, propagate
from pinchpoint.bound.methods.state_space import stretches
from pinchpoint.bound.network.operations import Unbounded
from pinchpoint.bound.network.runs import LARGEST_MATRIX, Run
from pinchpoint.bound.network.trace import Network, trace
from pinchpoint.errors import ModelError
from pinchpoint.measure.forward import check_forward, own_dtype
from pinchpoint.measure.spectrum import check_norm, times_up
from pinchpoint.records import (
    BoundSheet,
    NetworkBounds,
    Norm,
    PairBounds,
    Skipped,
    UpperBound,
)
from pinchpoint.utils.threads import one_thread

_THREADED = 1024
"""Size of a value from which a second thread pays, see ``pinchpoint.utils.threads``."""

Progress = Callable[[str], None]


def sheet(
    model: nn.Module,
    *,
    norms: Sequence[Norm] = ("l2", "linf"),
    input_shape: Sequence[int] | None = None,
    inputs: Float[Tensor, "batch *shape"] | None = None,
    budget_s: float = 20.0,
    k: int | None = None,
    progress: Progress | None = None,
) -> BoundSheet:
    """Bound a network and its layers.

    Args:
        model: any module with one tensor in and one tensor out.
        norms: ``l2``, ``linf`` or both.
        input_shape: of one input; taken from ``inputs``, or from a fully connected first layer, where None.
        inputs: points at which lower bounds start; random ones in [0, 1] where None.
        budget_s: seconds for everything that can be left out or cut short. Tracing the network, the norms of its layers
            and Theorem 3.1 come on top: they are always computed.
        k: of Theorem 3.1 in every layer, at most the number of its terms; None takes the tightest.
        progress: is told what begins.

    Raises:
        ModelError: for a norm, budget or k out of range, and whatever ``trace`` refuses.

    >>> found = sheet(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), norms=["l2"], budget_s=1.0)
    >>> [layer.name for layer in found.layers], found.networks[0].lower <= found.networks[0].upper
    (['0', '2'], True)
    """
    if not norms:
        raise ModelError("bounds need at least one norm", "none", "write l2 or linf")
    for norm in norms:
        check_norm(norm)
    if not 0 <= budget_s < math.inf:
        raise ModelError("budget_s must be zero or more seconds", budget_s, "try 20")
    if k is not None and k < 1:
        raise ModelError("k must be at least 1", k, "leave it out for the tightest choice")
    start = time.perf_counter()
    say = progress or (lambda stage: None)
    say("tracing the network")
    network = trace(model, inputs.shape[1:] if input_shape is None and inputs is not None else input_shape)
    points = starting_points(network, inputs)
    wanted = sorted(set(norms))  # l2 first: linf can follow from it
    parts = parts_of(network)
    for norm in wanted:
        say(f"{norm}: norms of {len(_runs(parts))} linear operators")
        find_norms(parts, norm)
    say("Theorem 3.1 of every layer")
    layers = [layer_bounds(run, wanted, k) for run in _runs(parts) if has_weights(run)]
    if network.unbounded():  # what is certified was compared with the model when it was traced
        check_forward(model, points.reshape(-1, *points.shape[2:]).to(own_dtype(model)))
    unbounded = [_named(node.name, node.kind, node.operation) for node in network.unbounded()]
    end = time.perf_counter() + budget_s
    networks: list[NetworkBounds] = []
    aligned: list[PairBounds] = []
    with one_thread(max(item.size for item in parts) < _THREADED):
        for place, norm in enumerate(wanted):
            now = time.perf_counter()
            share = _Share(now, now + max(0.0, end - now) / (len(wanted) - place), norm, say)
            if unbounded:
                networks.append(_estimate(network, points, share))
                continue
            found = _Whole(network, share, {before.norm: before for before in networks})
            networks.append(found.bounds(points))
            aligned += found.aligned
    return BoundSheet(
        input_shape=list(network.nodes[0].shape[1:]),
        networks=networks,
        layers=layers,
        pairs=aligned,
        unbounded=unbounded,
        assumptions=list(ASSUMPTIONS),
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True)
class _Share:
    """One norm's share of the budget."""

    start: float
    end: float
    norm: Norm
    say: Progress

    def left(self, part: float = 1.0) -> float:
        """Seconds that are left of this part of it."""
        return max(0.0, self.start + part * (self.end - self.start) - time.perf_counter())

    def refuses(self, seconds: float, part: float = 1.0) -> str | None:
        """Why something that takes so long is not begun."""
        left = self.left(part)
        return None if seconds <= left else f"would take about {seconds:.2g} s, and {left:.2g} s of the budget are left"


def _runs(items: Sequence[Item]) -> list[Run]:
    return [item.part for item in items if isinstance(item.part, Run)]


def _named(name: str, kind: str, operation: object) -> Skipped:
    assert isinstance(operation, Unbounded)
    return Skipped(name=name, kind=kind, reason=f"{operation.what}: {operation.why}")


def _estimate(network: Network, points: Tensor, share: _Share) -> NetworkBounds:
    """Of a network that cannot be bounded: what was seen, and nothing more."""
    share.say(f"{share.norm}: empirical estimate")
    seen = empirical(network, points, share.norm, seconds=share.left())
    return NetworkBounds(
        norm=share.norm,
        lower=None,
        sampled=None,
        upper=None,
        method=None,
        uppers=[],
        empirical=seen.quotient,
        encoder=None,
        margin_largest=None,
        margin_median=None,
        reasons={},
        seconds=time.perf_counter() - share.start,
    )


@dataclass
class _Whole:
    """The constants of a whole network under one norm; ``others`` are those of norms done before."""

    network: Network
    share: _Share
    others: dict[Norm, NetworkBounds]
    aligned: list[PairBounds] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    def bounds(self, points: Tensor) -> NetworkBounds:
        norm, items = self.share.norm, items_of(self.network)
        self.share.say(f"{norm}: certified upper bounds")
        uppers = list(self._uppers(items))
        known = {bound.method: bound.value for bound in uppers if bound.value is not None}
        method = min(known, key=lambda name: known[name], default=None)
        encoded = self._encoder()
        largest, middle = self._margins()
        self.share.say(f"{norm}: lower bounds")
        seen = empirical(self.network, points, norm, seconds=self.share.left() / 4)
        low, best = self._lower(points, seen.a, seen.b)
        if method is not None:
            certified(known[method], f"the {norm} constant", at_least=best)
        return NetworkBounds(
            norm=norm,
            lower=best,
            sampled=low,
            upper=None if method is None else known[method],
            method=method,
            uppers=uppers,
            empirical=max(seen.quotient, best or 0.0),
            encoder=encoded,
            margin_largest=largest,
            margin_median=middle,
            reasons=self.reasons,
            seconds=time.perf_counter() - self.share.start,
        )

    def _uppers(self, items: Sequence[Item]) -> Iterator[UpperBound]:
        norm = self.share.norm
        yield _upper("structure", *self._structure(items))
        yield _upper("product", product := propagate(items, norm))
        factors = dict(self._aligned(items))
        if any(factor < 1.0 for factor in factors.values()):
            shrunk = propagate(items, norm, pair_factor=lambda first, second: factors.get((first, second), 1.0))
            yield _upper("alignment", shrunk)
        else:
            reasons = [pair.reason for pair in self.aligned if pair.reason is not None]
            none = "no two layers stand alone with an activation between them"
            yield _upper(
                "alignment", None, (reasons or [none])[0] if len(reasons) == len(self.aligned) else None, product
            )
        once = ellipsoid_seconds(items)
        reason = _FITS_NOT if once is None else self.share.refuses(once, 0.5)
        if once is None or reason is not None:
            yield _upper("fast", None, reason)
            yield _upper("first-order", None, reason)
        else:
            seconds = self.share.left(0.5)
            late = self.share.refuses(10 * STEP * once, 0.5)
            fast, sharpened = by_ellipsoid(items, stretches(items), norm, seconds, 0 if late else 150)
            yield _upper("fast", fast)
            yield _upper("first-order", None, late) if late else _upper("first-order", sharpened)
        if norm == "linf":
            yield self._equivalence(items, "upper")

    def _equivalence(self, items: Sequence[Item], which: str) -> UpperBound:
        """||f||_inf <= ||f||_2 <= L_2 ||x||_2 <= L_2 sqrt(d) ||x||_inf."""
        other = self.others.get("l2")
        l2 = None if other is None else getattr(other, which)
        if l2 is None:
            l2 = propagate(items, "l2")
        return _upper("equivalence", times_up(equivalence_factor(self.network), l2))

    def _structure(self, items: Sequence[Item]) -> tuple[float | None, str | None]:
        runs = _runs(items)
        large = [run for run in runs if run.rows * run.columns > LARGEST_MATRIX]
        if large:
            sizes = f"{large[0].rows} x {large[0].columns}"
            return None, f"Theorem 3.1 speaks of matrices, and '{large[0].name}' is too large for one: {sizes}"
        reason = self.share.refuses(structure_seconds(runs), 0.25)
        if reason is not None:
            return None, reason
        return uppers_by_method(self.network, self.share.norm, "structure", 0.0, 0)["structure"], None

    def _aligned(self, items: Sequence[Item]) -> Iterator[tuple[tuple[Run, Run], float]]:
        for first, second in pairs(items):
            found, reason = self._alignment(first, second)
            self.aligned.append(
                PairBounds(
                    norm=self.share.norm,
                    first=first.name,
                    second=second.name,
                    lower=None if found is None else found.lower,
                    upper=None if found is None else found.upper,
                    exact=None if found is None else found.exact,
                    factor=1.0 if found is None else found.factor,
                    reason=reason,
                )
            )
            yield (first, second), self.aligned[-1].factor

    def _alignment(self, first: Run, second: Run) -> tuple[Alignment | None, str | None]:
        for run in (first, second):
            if run.rows * run.columns > LARGEST_MATRIX:
                return None, f"'{run.name}' is too large to be written out: {run.rows} x {run.columns}"
        reason = self.share.refuses(alignment_seconds(first, second, self.share.norm), 0.25)
        if reason is not None:
            return None, reason
        matrices = first.matrix, second.matrix
        assert matrices[0] is not None
        assert matrices[1] is not None
        if matrices[0].error > 0.0 or matrices[1].error > 0.0:
            return None, "its matrix is a product of several, rounded"
        return alignment(matrices[0].entries, matrices[1].entries, self.share.norm), None

    def _encoder(self) -> float | None:
        try:
            features, _ = encoder(self.network)
        except ModelError as error:
            self.reasons |= dict.fromkeys(("encoder", "margin_largest", "margin_median"), str(error))
            return None
        norm, items = self.share.norm, items_of(features)
        best = propagate(items, norm)
        once = ellipsoid_seconds(items)
        if once is not None and self.share.refuses(once, 0.6) is None:
            best = min(best, *by_ellipsoid(items, stretches(items), norm, self.share.left(0.6), 150))
        if norm == "linf":
            best = min(best, self._equivalence(items, "encoder").value or math.inf)
        return best if best < math.inf else None

    def _margins(self) -> tuple[float | None, float | None]:
        """The largest and the median constant of a difference of two logits."""
        if "encoder" in self.reasons:
            return None, None
        norm = self.share.norm
        features, head = encoder(self.network)
        once = ellipsoid_seconds(items_of(self.network))
        if once is not None and self.share.refuses(4 * once, 0.75) is None:
            try:
                upper = margins(self.network, norm=norm, budget_s=self.share.left(0.75)).upper
            except ModelError:  # it has all bounds that margins need, so some are infinite
                upper = torch.full((len(head), len(head)), torch.inf, dtype=torch.float64)
        else:
            upper = scaled_up(dual_differences(head, norm), propagate(items_of(features), norm))
            if norm == "linf":
                other = times_up(equivalence_factor(self.network), propagate(items_of(features), "l2"))
                upper = torch.minimum(upper, scaled_up(dual_differences(head, "l2"), other))
        check_pairs(self.network, upper, norm)
        off = upper[~torch.eye(len(upper), dtype=torch.bool)].tolist()
        if off and not max(off) < math.inf:
            self.reasons |= dict.fromkeys(("margin_largest", "margin_median"), _TOO_LARGE)
            return None, None
        if not off:
            self.reasons |= dict.fromkeys(("margin_largest", "margin_median"), "there is one logit only")
            return None, None
        return max(off), median(off)

    def _lower(self, points: Tensor, a: Tensor, b: Tensor) -> tuple[float, float]:
        """Sampled, and after ascent; both are 0 where rounding errors are as large as what could be found."""
        norm = self.share.norm
        certified = max(quotient(self.network, a, a + size * (b - a), norm) for size in (1.0, 1e2, 1e4))
        if certified == 0.0:
            self.reasons["lower"] = "what rounding may do to a network of this depth is larger than any change seen"
            return 0.0, 0.0
        began = time.perf_counter()
        low = max(certified, sampled(self.network, points[:1], norm)[1])
        each = time.perf_counter() - began
        many = min(len(points), int(self.share.left() / (_ASCENT * each)))
        if many == 0:
            self.reasons["lower"] = f"no ascent: it would take about {_ASCENT * each:.2g} s"
            return low, low
        low = max(low, sampled(self.network, points[:many], norm)[1])
        return low, max(low, ascended(self.network, points[:many], norm, seconds=self.share.left() / 2))


_FITS_NOT = f"no stretch with an activation fits: states of {LARGEST_STATE} entries, layers that fit as matrices"
_TOO_LARGE = "larger than float64 can say"
_ASCENT = 8.0
"""Ascent from a point takes at least so many times what sampling there takes."""


def _upper(method: str, value: float | None, reason: str | None = None, otherwise: float | None = None) -> UpperBound:
    """A bound; infinity, which JSON cannot say, becomes a reason."""
    if value is None and reason is None:
        value = otherwise
    if value is not None and math.isinf(value):
        value, reason = None, _TOO_LARGE
    return UpperBound(method=method, value=value, reason=reason)
