"""A constant is a matter of the forward pass: what a trace, a gradient or one sample does not show is found, or refused."""

from __future__ import annotations

import random
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pinchpoint as pp
from oracles import forward_passes
from pinchpoint.bound import gate, trace
from pinchpoint.errors import ContradictionError, ModelError

NORMS = ("l2", "linf")


class Odd(nn.Module):
    def __init__(self, what, width=6):
        super().__init__()
        self.what, self.layer, self.calls, self.scale = what, nn.Linear(width, width), 0, torch.ones(1)
        self.register_buffer("variance", torch.full((width,), 100.0))
        self.constant = nn.Parameter(torch.randn(1, width))

    def forward(self, x):
        return self.what(self, x)


def counted(m, x):
    m.calls += 1
    return m.layer(x) * m.calls


def grown(m, x):
    m.scale = m.scale * 1.5
    return m.layer(x) * m.scale


def swallowed(m, x):
    try:
        if x.mean() > 0.7:
            return m.layer(x)
    except Exception:
        pass
    return 3 * m.layer(x)


REFUSED = {
    "Python's random numbers": (lambda m, x: m.layer(x) * (1 + random.random()), "the same at every call"),
    "random numbers a dead unit hides": (
        lambda m, x: (m.layer(x) * 1e-3 - 0.7).relu() * (1 + random.random()),
        "same at",
    ),
    "a counter": (counted, "the same at every call"),
    "a tensor that changes": (grown, "the same at every call"),
    "torch's random numbers": (lambda m, x: m.layer(x) + torch.rand(6), "rand, which is random"),
    "draws that happen to agree": (
        lambda m, x: m.layer(x) * torch.bernoulli(torch.ones(6)),
        "bernoulli, which is random",
    ),
    "torch.compiler": (
        lambda m, x: m.layer(x) * (1 if torch.compiler.is_exporting() else 3),
        "what the model computes",
    ),
    "the batch size": (lambda m, x: m.layer(x) * (1 if len(x) == 1 else 3), "whatever else is in its batch"),
    "the dtype": (lambda m, x: m.layer(x) * (1 if x.dtype == torch.float64 else 3), "in float32 that differ"),
    "a mean over the batch": (lambda m, x: m.layer(x) - m.layer(x).mean(0, True), "whatever else is in its batch"),
    "a softmax over the batch": (lambda m, x: m.layer(x).softmax(0), "whatever else is in its batch"),
    "a branch": (lambda m, x: m.layer(x) if x.mean() > 0.7 else 3 * m.layer(x), "decisions that depend on values"),
    "a branch in try": (swallowed, "a number read off a value"),
    "item": (lambda m, x: m.layer(x) * x.sum().item(), "a number read off a value"),
    "full_like of item": (lambda m, x: torch.full_like(x, x.sum().item()) + m.layer(x), "a number read off a value"),
    "NumPy": (lambda m, x: torch.from_numpy(x.detach().numpy() * 2) + m.layer(x), "no NumPy"),
    "NaN": (lambda m, x: m.layer(x) + torch.tensor(float("nan")), "finite answers"),
    "inf - inf": (lambda m, x: m.layer(x) + float("inf") - float("inf"), "finite answers"),
    "memory that nobody wrote": (lambda m, x: m.layer(x) + torch.empty(6), "finite answers"),
    "vmap": (lambda m, x: torch.vmap(m.layer)(x), "made of torch's operations"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_trace_does_not_show_is_refused_by_name(name):
    what, text = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=text):
        pp.lipschitz(Odd(what).eval(), norm="l2", input_shape=(6,), budget_s=0.2, steps=0)


class Twice(torch.autograd.Function):
    """Forward: twice. Backward: as if nothing had been done."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 0 * grad


def without_gradients(m, x):
    with torch.no_grad():
        return 2 * m.layer(x)


STOPPED = {
    "detach": lambda m, x: 2 * m.layer(x).detach(),
    "gradient scaling": lambda m, x: m.layer(x) * 0.02 + (2 * m.layer(x) - m.layer(x) * 0.02).detach(),
    "a detached part": lambda m, x: m.layer(x) + m.layer(x).detach(),
    "no_grad": without_gradients,
    "a backward pass of another function": lambda m, x: Twice.apply(m.layer(x)),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["product", "fast"])
@pytest.mark.parametrize("name", STOPPED)
def test_a_constant_is_that_of_the_forward_pass(name, method, norm):
    """All of these are twice a linear layer: a closed form."""
    torch.manual_seed(0)
    model = Odd(STOPPED[name]).eval()
    matrix = 2 * model.layer.weight.detach().double()
    exact = float(torch.linalg.matrix_norm(matrix, 2 if norm == "l2" else torch.inf))
    upper = pp.lipschitz(model, norm=norm, method=method, input_shape=(6,), steps=0).upper
    assert exact <= upper
    if name in ("detach", "no_grad", "a backward pass of another function"):
        assert upper == pytest.approx(exact, rel=1e-6)


CONDITIONAL = {
    "layer_norm gain": lambda m, s: F.layer_norm(m.constant, (6,), s, None, 1.0),
    "layer_norm shift": lambda m, s: F.layer_norm(m.constant, (6,), None, s, 100.0),
    "group_norm gain": lambda m, s: F.group_norm(m.constant, 1, s, None, 1.0),
    "batch_norm gain": lambda m, s: F.batch_norm(m.constant, torch.zeros_like(s), m.variance.to(s), s, None),
    "batch_norm shift": lambda m, s: F.batch_norm(m.constant, torch.zeros_like(s), m.variance.to(s), None, s),
    "batch_norm mean": lambda m, s: F.batch_norm(m.constant, s, m.variance.to(s)),
    "linear bias": lambda m, s: F.linear(m.constant, torch.eye(6, dtype=s.dtype), s),
    "linear weight": lambda m, s: F.linear(m.constant, torch.outer(s, s)),
    "prelu slope": lambda m, s: F.prelu(m.constant, s),
    "addmm shift": lambda m, s: torch.addmm(s, m.constant, torch.eye(6, dtype=s.dtype)),
    "lower limit": lambda m, s: m.constant.clamp(min=s[None]),
}


@pytest.mark.parametrize("name", CONDITIONAL)
def test_rules_ask_which_operand_depends_on_the_input(name):
    model = Odd(lambda m, x: CONDITIONAL[name](m, m.layer(x)[0])).double().eval()
    with pytest.raises(ModelError, match=r"depends on the input|no constant is known"):
        pp.lipschitz(model, norm="l2", input_shape=(6,), budget_s=0.2, steps=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["product", "fast", "first-order", "tightest"])
def test_an_infinite_constant_beside_the_features_is_no_zero(method, norm):
    """[a(x), -inf, b(x)] under a ReLU is [a(x), 0, b(x)]: the same network without the constant."""

    def slots(m, x):
        empty = torch.full((len(x), 2), -float("inf"), dtype=x.dtype)
        return torch.cat([m.layer(x), empty, -m.layer(x)], 1).relu()

    torch.manual_seed(0)
    model = Odd(slots).double().eval()
    plain = nn.Sequential(nn.Linear(6, 12), nn.ReLU()).double()
    with torch.no_grad():
        plain[0].weight.copy_(torch.cat([model.layer.weight, -model.layer.weight]))
    found = [
        pp.lipschitz(one, norm=norm, input_shape=(6,), method=method, budget_s=0.5, steps=2) for one in (model, plain)
    ]
    assert found[0].upper >= found[1].lower > 0


def hardsigmoid_identity(layers):
    """Hardsigmoid(6 x - 3) is x on [0, 1]: the network is (x - 1/2, 1/2 - x) there, whatever its depth."""
    steps = []
    for _ in range(layers):
        linear = nn.Linear(1, 1).double()
        linear.weight.data.fill_(6.0)
        linear.bias.data.fill_(-3.0)
        steps += [linear, nn.Hardsigmoid()]
    head = nn.Linear(1, 2).double()
    head.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    return nn.Sequential(*steps, head).eval()


@pytest.mark.parametrize("layers", [100, 300])
def test_deep_chains_of_small_slopes_do_not_vanish(layers):
    model = hardsigmoid_identity(layers)
    for norm, exact in (("l2", 2**0.5), ("linf", 1.0)):
        assert pp.lipschitz(model, norm=norm, input_shape=(1,), budget_s=0.5, steps=0).upper >= exact
        assert float(pp.margins(model, norm=norm, input_shape=(1,), budget_s=0.5, steps=0).upper[0, 1]) >= 2.0


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_deep_chains_of_averages_stay_in_range(scale):
    """Layers that average eight numbers, scaled up and down in turn: the identity on the ray of ones."""
    steps = []
    for place in range(300):
        linear = nn.Linear(8, 8, bias=False).double()
        linear.weight.data.fill_(1 / 8 * (scale if place % 2 == 0 else 1 / scale))
        steps += [linear, nn.ReLU()]
    model = nn.Sequential(*steps).eval()
    for norm in NORMS:
        upper = pp.lipschitz(model, norm=norm, input_shape=(8,), budget_s=0.5, steps=0).upper
        assert 1.0 - 1e-9 <= upper < 1.1


def test_a_log_softmax_at_the_end_changes_no_margin():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    for norm in NORMS:
        plain, ended = (pp.margins(net, norm=norm, input_shape=(6,), budget_s=0.2, steps=0).upper
                        for net in (body, nn.Sequential(body, nn.LogSoftmax(1))))  # fmt: skip
        assert torch.equal(plain, ended)
    assert pp.lipschitz(nn.LogSoftmax(1), norm="linf", input_shape=(4,), steps=0).upper == pytest.approx(2.0)


def test_a_product_with_a_weight_is_a_layer_however_it_is_written():
    torch.manual_seed(0)
    exact = float(torch.linalg.matrix_norm((weight := torch.rand(6, 3, dtype=torch.float64)), 2))
    for equation, operands in (
        ("bi,ij->bj", lambda x: (x, weight)),
        ("ij,bi->bj", lambda x: (weight, x)),
        ("bi,ji->bj", lambda x: (x, weight.T.contiguous())),
    ):
        model = Odd(lambda m, x, e=equation, o=operands: torch.einsum(e, *o(x))).double()
        assert pp.lipschitz(model, norm="l2", input_shape=(6,), steps=0).upper == pytest.approx(exact, rel=1e-12)
    with pytest.raises(ModelError, match="no fully connected layer"):
        trace(Odd(lambda m, x: torch.einsum("bi,ij->bij", x, weight)).double(), (6,)).require_bounded()


class Vouches(nn.Linear):
    def lipschitz_constant(self, norm):
        return 1e-3


class Outer(nn.Module):
    """Vouches for itself, and holds a module that does, too."""

    def __init__(self):
        super().__init__()
        self.inner = Vouches(3, 3)

    def forward(self, x):
        return 5 * self.inner(x)

    def lipschitz_constant(self, norm):
        return 40.0


class Numbered(nn.Linear):
    lipschitz_constant = 1e-3


def test_the_outermost_module_that_vouches_is_asked():
    model = Outer().eval()
    assert pp.lipschitz(nn.Sequential(model), norm="l2", input_shape=(3,), method="product").upper == pytest.approx(
        40.0
    )
    layer = Numbered(3, 3)
    exact = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    assert pp.lipschitz(nn.Sequential(layer), norm="l2", steps=0).upper == pytest.approx(exact)


def test_a_bound_that_two_inputs_refute_is_never_given(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    monkeypatch.setattr(
        sys.modules["pinchpoint.bound.lipschitz"], "uppers_by_method", lambda *_, **__: {"product": 1e-3}
    )
    with pytest.raises(ContradictionError, match=rf"pinchpoint {pp.__version__}: please report"):
        pp.lipschitz(model, norm="l2", budget_s=0.2, steps=0)
    network = trace(model)
    wrong = torch.full((2, 2), 1e-3, dtype=torch.float64).fill_diagonal_(0.0)
    with pytest.raises(ContradictionError, match="of logits"):
        gate.check_pairs(network, wrong, "linf")
    for value in (float("nan"), float("inf")):
        with pytest.raises(ModelError, match="a number that float64 can hold"):
            gate.certified(value, "the l2 constant")


def test_a_linear_layer_whose_values_overflow_is_refused_and_is_no_fault_of_ours():
    class Overflows(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((2, 3), 1e200, dtype=torch.float64))

        def forward(self, x):
            return (x + 1e120) @ (self.weight * self.weight).T

    with pytest.raises(ModelError):
        pp.lipschitz(Overflows().double(), norm="l2", input_shape=(3,))


def test_of_the_fuzz_values_that_are_infinite_at_every_size():
    outcome = forward_passes.judge(6813)
    assert (outcome.faults, bool(outcome.refused)) == ([], True)
