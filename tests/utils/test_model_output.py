"""The one place where a model is called: its input stays as it is; what comes back is logits, or one sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pinchpoint as pp
from oracles.odd_models import ModelOutput
from pinchpoint import attack, evaluate, mechanism
from pinchpoint.errors import ModelError
from pinchpoint.evaluate.named_attacks import Plan
from pinchpoint.mechanism.decisions import pictures, representation_pca
from pinchpoint.utils.model_output import answer, as_logits

THREAT = pp.Threat("linf", 0.05)


class Network(nn.Module):
    """A network with something before and after its body; ``body`` is the same for all."""

    def __init__(self, before=lambda x: x, after=lambda z: z, inner=None):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = before, after
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), inner or nn.ReLU(), nn.Linear(12, 4))

    def forward(self, x):
        return self.after(self.body(self.before(x)))


def _clamped_view(x):
    x[:, 0].clamp_(0.2, 0.8)
    return x


def _masked(x):
    x[..., 1:3] = 0.25
    return x


PAIRS = {
    "normalises": (lambda x: x.sub_(0.3).div_(0.4), lambda x: (x - 0.3) / 0.4),
    "clamps a view": (_clamped_view, lambda x: torch.cat([x[:, :1].clamp(0.2, 0.8), x[:, 1:]], 1)),
    "sets pixels": (_masked, lambda x: torch.cat([x[..., :1], x[..., 1:3] * 0 + 0.25, x[..., 3:]], -1)),
    "ReLU first": (lambda x: nn.functional.relu(x - 0.5, inplace=True), lambda x: (x - 0.5).relu()),
    "ReLU of its input": (lambda x: x.mul_(2).relu_(), lambda x: (x * 2).relu()),
}
CALLS = {
    "pgd": lambda m, x, y: attack.pgd(m, x, y, THREAT, steps=4),
    "apgd": lambda m, x, y: attack.apgd(m, x, y, THREAT, steps=8),
    "targeted_apgd": lambda m, x, y: attack.targeted_apgd(m, x, y, THREAT, steps=4, targets=2),
    "fab": lambda m, x, y: attack.fab(m, x, y, THREAT, steps=4),
    "square": lambda m, x, y: attack.square(m, x, y, THREAT, queries=20),
    "fgsm": lambda m, x, y: attack.fgsm(m, x, y, THREAT),
    "deepfool": lambda m, x, y: attack.deepfool(m, x, y, THREAT, steps=4),
    "minimum_norm": lambda m, x, y: attack.minimum_norm(m, x, y, THREAT, steps=4),
    "universal": lambda m, x, y: attack.universal(m, x, y, THREAT, steps=4),
    "universal_deepfool": lambda m, x, y: attack.universal_deepfool(m, x, y, THREAT, epochs=1),
    "accuracy": evaluate.accuracy,
    "adversarial_loss": lambda m, x, y: evaluate.adversarial_loss(m, x, y, THREAT, steps=4)[0],
    "robust_accuracy": lambda m, x, y: evaluate.robust_accuracy(m, x, y, THREAT).stage,
    "smallest_eps": lambda m, x, y: evaluate.smallest_eps(m, x, y, "linf", 0.2)[0],
    "masking_warnings": lambda m, x, y: evaluate.masking_warnings(m, x, y, THREAT, steps=4, queries=20),
    "attack_sheet": lambda m, x, y: (
        evaluate.attack_sheet(m, evaluate.Samples(x, y), [THREAT], Plan("square", steps=20)).threats[0].stage
    ),
    "transfer_matrix": lambda m, x, y: evaluate.transfer_matrix({"it": m}, x, y, THREAT).robust_accuracy,
    "gains": lambda m, x, y: mechanism.gains(m, x, x.flip(0)),
    "pictures": lambda m, x, y: pictures(m, x, x.flip(0), y, THREAT, planes=1, size=3),
    "audit": lambda m, x, y: pp.audit(m, (x, y), [THREAT], samples=8, standard=False).threats[0].robust,
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_network_that_changes_its_input_in_place_is_judged_as_the_same_network_that_does_not(name):
    in_place, plain = (Network(before).eval() for before in PAIRS[name])
    kept = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = plain(kept).argmax(1)
    for call in CALLS if name == "normalises" else ("pgd", "apgd", "square", "accuracy", "robust_accuracy"):
        x = kept.clone()
        found, expected = CALLS[call](in_place, x, y), CALLS[call](plain, kept, y)
        assert torch.equal(x, kept), call
        same = torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected
        assert same, call


def test_what_comes_after_a_layer_in_place_is_not_taken_for_its_output():
    x, moved = torch.rand(5, 16), torch.rand(5, 16)
    plain, in_place = Network().eval(), Network(inner=nn.ReLU(inplace=True)).eval()
    assert mechanism.gains(in_place, x, moved) == mechanism.gains(plain, x, moved)
    halved = Network(after=lambda z: z.div_(2)).eval()
    with pytest.raises(
        ModelError, match="representations need a fully connected layer at the end, but got Linear before more"
    ):
        representation_pca(halved, x, moved, torch.zeros(5).long())


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (
            lambda z: ModelOutput(logits=z),
            "but got a ModelOutput of logits; let its forward pass return the tensor of logits alone",
        ),
        (lambda z: {"a": z, "b": z, "c": z, "d": z}, "but got a dict of a, b, c, ...; let its forward"),
        (lambda z: (z, None), r"but got a tuple of a tensor of shape \(2, 4\), NoneType; let its forward"),
        (lambda z: (), "but got an empty tuple; let its forward"),
        (lambda z: None, "but got a NoneType; let its forward"),
        (lambda z: z.detach().numpy(), "but got a ndarray; let its forward"),
        (lambda z: z[1:], r"but got shape \(1, 4\) for 2 samples; check"),
        (lambda z: z[:, :0], r"but got shape \(2, 0\) for 2 samples; check"),
        (lambda z: z[..., None], r"but got shape \(2, 4, 1\) for 2 samples; check"),
        (lambda z: z.argmax(1), r"but got int64 numbers of shape \(2,\); let its forward pass return real numbers"),
        (lambda z: z > 0, r"but got bool numbers of shape \(2, 4\); let its forward pass return real numbers"),
        (lambda z: z.to(torch.complex64), r"but got complex64 numbers of shape \(2, 4\)"),
        (lambda z: z.to_sparse(), r"but got sparse_coo float32 numbers of shape \(2, 4\)"),
        (lambda z: z.to("meta"), "but got logits on the meta device"),
        (lambda z: z[:, 0], r"two classes or more, but got one number a sample, shape \(2,\) for 2; let a binary"),
        (lambda z: z[:, :1], r"two classes or more, but got one number a sample, shape \(2, 1\) for 2; let a binary"),
    ],
)
def test_what_is_no_matrix_of_logits_is_named(returned, text):
    x, model = torch.rand(2, 16), Network(after=returned)
    with pytest.raises(ModelError, match=text):
        answer(model, x)
    for call in (evaluate.robust_accuracy, evaluate.adversarial_loss, attack.apgd):
        with pytest.raises(ModelError, match=text):
            call(model, x, torch.zeros(2).long(), THREAT)
    with pytest.raises(ModelError, match=text.replace("2", "[12]")):
        pp.audit(model, (x, torch.zeros(2).long()), [THREAT], standard=False)


def test_one_logit_is_never_certain():
    """With labels that are all 0 a single logit is always right."""
    model = Network(after=lambda z: z[:, :1])
    for call in (
        lambda x, y: evaluate.accuracy(model, x, y),
        lambda x, y: pp.robust_accuracy(model, x, y, THREAT),
        lambda x, y: pp.audit(model, (x, y), [THREAT], standard=False),
    ):
        with pytest.raises(ModelError, match="a classifier must return a logit for each of two classes or more"):
            call(torch.rand(3, 16), torch.zeros(3).long())


def test_a_squeezed_answer_is_that_of_one_sample():
    squeezed, plain = Network(after=lambda z: z.squeeze()), Network()
    x = torch.rand(1, 16)
    assert torch.equal(answer(squeezed, x), answer(plain, x))
    y = plain(x).argmax(1)
    assert pp.robust_accuracy(squeezed, x, y, THREAT).stage == pp.robust_accuracy(plain, x, y, THREAT).stage


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_another_precision_are_judged_and_attacked(dtype):
    x = torch.rand(30, 16, generator=torch.Generator().manual_seed(2))
    middle = Network()(x).mean(0).detach()  # so that classes are near each other
    other, plain = Network(after=lambda z: (z - middle).to(dtype)), Network(after=lambda z: z - middle)
    y = answer(other, x).argmax(1)
    attacks = {**attack.standard_ensemble(plain, x, version="quick"), "fab": attack.fab, "deepfool": attack.deepfool}
    for name, one in attacks.items():
        left, expected = (
            pp.robust_accuracy(m, x, y, THREAT, attacks={name: one}).robust_accuracy for m in (other, plain)
        )
        assert abs(left - expected) <= (0.1 if dtype.itemsize < 4 else 0.0), name
        assert expected < 1.0, name


def test_half_precision_is_widened_and_nothing_else():
    for dtype, wide in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert as_logits(torch.ones(2, 3, dtype=dtype), 2).dtype == wide


class Two(nn.Module):
    def forward(self, x, mask):
        return x * mask


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            Two(),
            r"float32 of shape \(2, 16\): TypeError: Two.forward\(\) missing 1 required positional argument: 'mask'",
        ),
        (nn.Linear(8, 2), r"float32 of shape \(2, 16\): mat1 and mat2 shapes cannot be multiplied"),
        (nn.Linear(16, 2).double(), r"float32 of shape \(2, 16\): mat1 and mat2 must have the same dtype"),
        (nn.Module(), r"float32 of shape \(2, 16\): Module \[Module\] is missing the required"),
        (Network(before=lambda x: {}["mask"]), r"float32 of shape \(2, 16\): KeyError: 'mask'"),
    ],
)
def test_whatever_a_model_raises_is_one_sentence(model, text):
    with pytest.raises(ModelError, match=f"a model must take the inputs it is given, but got {text}.*; match device"):
        pp.robust_accuracy(model, torch.rand(2, 16), torch.zeros(2).long(), THREAT)


@pytest.mark.parametrize(
    ("model", "seen"), [(lambda x: x, "a function"), (nn.Linear, "the class Linear"), (None, "a NoneType")]
)
def test_what_is_no_module(model, seen):
    x, y = torch.rand(2, 16), torch.zeros(2).long()
    for call in (pp.robust_accuracy, pp.apgd, evaluate.adversarial_loss):
        with pytest.raises(ModelError, match=f"a model must be a torch.nn.Module, but got {seen}; give an instance"):
            call(model, x, y, THREAT)
    with pytest.raises(ModelError, match=f"a model must be a torch.nn.Module, but got {seen}"):
        pp.audit(model, (x, y), [THREAT])


def test_running_out_of_memory_is_no_fault_of_the_model():
    def full(x):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        answer(Network(before=full), torch.rand(2, 16))


class Buffered(Network):
    """It writes all its answers into one buffer."""

    def forward(self, x):
        if not hasattr(self, "buffer"):
            self.buffer = torch.zeros(64, 4)
        self.buffer[: len(x)] = super().forward(x).detach()
        return self.buffer[: len(x)]


def test_answers_in_one_buffer_do_not_overwrite_each_other():
    x = torch.rand(10, 16)
    assert torch.equal(evaluate.logits_of(Buffered(), x, 4), evaluate.logits_of(Network(), x, 4))


class Image(torch.Tensor):
    """Somebody's own kind of tensor."""


@pytest.mark.parametrize(
    "made",
    [
        lambda m, x: torch.jit.trace(m, x),
        lambda m, x: torch.fx.symbolic_trace(m),
        lambda m, x: nn.DataParallel(m),
        lambda m, x: torch.compile(m, backend="eager"),
        lambda m, x: torch.export.export(m, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=4096)},)).module(),
    ],
)
def test_modules_that_torch_makes_of_others_are_judged_alike(made):
    model, x = Network().body.eval(), torch.rand(9, 16)
    y = model(x).argmax(1)
    expected = pp.robust_accuracy(model, x, y, pp.Threat("linf", 0.3))
    assert pp.robust_accuracy(made(model, x), x.as_subclass(Image), y, pp.Threat("linf", 0.3)).stage == expected.stage
