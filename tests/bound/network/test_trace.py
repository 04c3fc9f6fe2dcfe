"""Tracing sees what really runs: hooks, parametrisations, repeated modules, in-place changes. The rest it names."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from oracles.as_user import refused
from pinchpoint.bound import trace
from pinchpoint.bound.methods.product import items_of, propagate
from pinchpoint.bound.network.operations import Known
from pinchpoint.errors import ModelError


def f(function):
    class Computes(nn.Module):
        def forward(self, x):
            return function(x)

    return Computes()


class Doubles(nn.Module):
    """Knows its constant."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner or nn.Identity()

    def forward(self, x):
        return 2 * self.inner(x)

    def lipschitz_constant(self, norm):
        return 2.0


class Unit(nn.Module):
    """A residual block with a projection where it halves the image."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.down = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        out = self.two(self.relu(self.norm(self.one(x))))
        out += self.down(x)
        return self.relu(out)


class Dense(nn.Module):
    """Values side by side, as in DenseNet, and a U-Net's way down and up."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(5, 1, 1)
        self.up = nn.ConvTranspose2d(2, 2, 2, stride=2)

    def forward(self, x):
        one = torch.cat([x, self.a(x).relu()], 1)
        low = self.up(F.max_pool2d(self.b(one), 2).relu())
        return self.c(torch.cat([one, low], 1)).flatten(1)


class TwoSteps(nn.Module):
    """A skip over two layers, and one layer used three times."""

    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.shared(x).relu()
        return self.head(x + self.shared(self.shared(h).tanh()))


def hooked():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    model[0].register_forward_hook(lambda module, inputs, output: 10.0 * output)
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] - 3.0,))
    return model


def reparametrised():
    pruned, orthogonal = nn.Linear(6, 4), parametrizations.orthogonal(nn.Linear(4, 4))
    prune.l1_unstructured(pruned, "weight", amount=0.5)
    return nn.Sequential(pruned, nn.GELU(), orthogonal, parametrizations.weight_norm(nn.Linear(4, 3)))


MODELS = {
    "hooks": (hooked, (6,)),
    "parametrised": (reparametrised, (6,)),
    "residual": (lambda: nn.Sequential(Unit(1, 2, 1), Unit(2, 4, 2), nn.AvgPool2d(2), nn.Flatten()), (1, 4, 4)),
    "side by side": (Dense, (1, 4, 4)),
    "shared": (TwoSteps, (6,)),
    "in place": (
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3), nn.PReLU(), nn.Hardtanh(inplace=True)),
        (6,),
    ),
    "knows": (lambda: nn.Sequential(Doubles(nn.Linear(6, 6)), nn.ReLU(), Doubles(Doubles())), (6,)),
    "constants": (lambda: f(lambda x: x + torch.zeros_like(x) + x.new_ones(6) - torch.arange(6)), (6,)),
    "nothing": (nn.Identity, (6,)),
    "normalised": (lambda: nn.Sequential(nn.GroupNorm(1, 2), nn.Flatten(), nn.LayerNorm(6), nn.Softmax(1)), (2, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_network_computes_what_the_model_computes(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    network = trace(model, shape)
    wide = model.double().eval()
    points = torch.randn(7, 1, *shape, dtype=torch.float64)
    for point in points:
        expected = wide(point.clone())
        torch.testing.assert_close(network(point), expected, rtol=1e-13, atol=1e-13)
        assert [tuple(value.shape) for value in network.values(point)] == [node.shape for node in network.nodes]
        assert tuple(expected.shape) == network.nodes[-1].shape
    batched = torch.func.vmap(network)(points)
    torch.testing.assert_close(batched.flatten(0, 1), wide(points.flatten(0, 1)), rtol=1e-12, atol=1e-12)
    with_gradient = torch.func.vmap(torch.func.jacrev(network))(points)
    exact = torch.stack([torch.autograd.functional.jacobian(lambda x: wide(1.0 * x), point) for point in points])
    torch.testing.assert_close(with_gradient, exact, rtol=1e-10, atol=1e-12)


def test_the_model_stays_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(inplace=True)).train()
    before = copy.deepcopy(model.state_dict())
    trace(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_modules_that_know_their_constant_are_one_operation_each_time():
    shared = Doubles()
    network = trace(nn.Sequential(shared, nn.ReLU(), shared, nn.Sequential(Doubles(Doubles(nn.Linear(3, 3))))), (3,))
    kinds = [type(node.operation).__name__ for node in network.nodes[1:]]
    assert kinds == ["Known", "Slope", "Known", "Known"]
    assert [node.name for node in network.nodes[1:]] == ["0", "1", "2", "3.0"]
    assert propagate(items_of(network), "l2") == pytest.approx(8.0, rel=1e-13)
    assert isinstance(trace(Doubles(), (3,)).nodes[-1].operation, Known)


def test_a_hook_on_a_module_that_knows_its_constant_is_not_overlooked():
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        module = Doubles()
        change = (lambda m, i, o: 10 * o) if register == "register_forward_hook" else (lambda m, i: (10 * i[0],))
        getattr(module, register)(change)
        assert propagate(items_of(trace(nn.Sequential(module), (3,))), "l2") == pytest.approx(20.0, rel=1e-13)


def test_a_module_that_knows_its_constant_has_one_input_and_one_output():
    class Leaks(Doubles):
        def forward(self, x):
            self.kept = 3 * x
            return x + self.kept

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Leaks()

        def forward(self, x):
            return self.inner(x) + self.inner.kept

    text = "a module with a lipschitz_constant(norm) has one input and one output, but got Leaks at 'inner'; "
    with refused(ModelError, text + "split it, or leave lipschitz_constant out."):
        trace(Outer(), (3,))


def test_constants_are_folded():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3)), nn.ReLU())
    network = trace(model)
    assert [type(node.operation).__name__ for node in network.nodes[1:]] == ["Dense", "Slope"]
    weight = network.nodes[1].operation.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_where_the_input_shape_comes_from():
    class First(nn.Module):
        in_features = 4

        def forward(self, x):
            return x.relu()

    assert trace(nn.Sequential(nn.Flatten(), nn.Linear(5, 2))).nodes[0].shape == (1, 5)
    assert trace(First()).nodes[0].shape == (1, 4)
    rule = "a bound needs the shape of one input"
    remedy = "give input_shape, for example (3, 32, 32)."
    for model in (nn.Conv2d(1, 1, 1), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)), nn.ReLU()):
        with refused(
            ModelError, f"{rule}, but got {type(model).__name__} without a fully connected layer in front; {remedy}"
        ):
            trace(model)


def test_what_cannot_be_traced_says_so():
    with refused(ModelError, "a model must be a torch.nn.Module, but got OrderedDict; load the checkpoint first."):
        trace(nn.Linear(2, 2).state_dict())
    text = (
        "a model must run on one input of shape (3, 4, 4), but got RuntimeError: Given groups=1, weight of size "
        "[2, 1, 3, 3], expected input[1, 3, 4, 4] to have 1 channels, but got 3 channels instead; "
        "give the shape of its inputs as input_shape."
    )
    with refused(ModelError, text):
        trace(nn.Conv2d(1, 2, 3), (3, 4, 4))
    one, wrap = (
        "a model must return one tensor that depends on its input",
        "wrap it in a module that returns the logits.",
    )
    for model, seen in (
        (f(lambda x: (x, 2 * x)), "2 outputs"),
        (f(lambda x: {"logits": x, "features": x, "loss": x.sum()}), "3 outputs"),
        (f(lambda x: torch.ones(1, 3)), "one that does not"),
        (f(lambda x: 3.0), "one that does not"),
        (f(lambda x: [x]), "a list of one"),
        (f(lambda x: torch.zeros_like(x)), "one that does not"),
    ):
        with refused(ModelError, f"{one}, but got {seen}; {wrap}"):
            trace(model, (3,))
    with refused(
        ModelError,
        "a model must return one number or more for each input, but got none; check the size of its last layer.",
    ):
        trace(f(lambda x: x[:, 3:]), (3,))
    text = "a model must give one output for each input of a batch, but got shape (3,) for one input; "
    with refused(ModelError, text + "check input_shape, and keep the first dimension in forward."):
        trace(f(lambda x: x.squeeze()), (3,))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x if x.sum() > 0 else 2 * x,
        lambda x: x * float(x.max()),
        lambda x: x[x > 0],
        lambda x: torch.nonzero(x).double(),
    ],
)
def test_decisions_that_depend_on_values_are_refused_in_one_sentence(function, capfd):
    with pytest.raises(ModelError) as caught:
        trace(f(function), (3,))
    assert str(caught.value).startswith(
        "a certified bound needs a model that torch.export can trace: the same operations"
    )
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_noise_and_state_are_refused():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    rule = "a certified bound needs a model that computes the same at every call"
    with refused(ModelError, f"{rule}, but got a forward pass that changes 'calls'; keep state out of forward."):
        trace(Counts(), (3,))
    text = f"{rule}, but got rand, which is random, in Computes at 'the top level'; take the noise out of forward."
    with refused(ModelError, text):
        trace(f(lambda x: x * torch.rand(3, dtype=torch.float64)), (3,))
    calm = trace(f(lambda x: x + F.dropout(torch.ones(3, dtype=torch.float64), training=False)), (3,))
    assert len(calm.unbounded()) == 0


def test_weights_that_are_no_numbers_are_named():
    for value in (float("nan"), float("inf")):
        for name in ("weight", "bias"):
            model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
            getattr(model[1], name).data[0] = value
            text = f"weights must be finite, but got NaN or infinite values in '1.{name}'; "
            with refused(ModelError, text + "check that training did not diverge before measuring."):
                trace(model)


def test_parts_that_do_not_reach_the_output_do_not_matter():
    def unused(x):
        _ = torch.softmax(x @ x.T, 1)
        return 2 * x

    network = trace(f(unused), (3,))
    assert [type(node.operation).__name__ for node in network.nodes[1:]] == ["Scale"]
