"""What differs from an architecture, found and applied; and what no layout may ask for."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from oracles.as_user import refused
from pinchpoint.compress.factorize import factorize
from pinchpoint.compress.layout import Layout, Selection, apply, layout_of
from pinchpoint.compress.prune import prune
from pinchpoint.errors import ModelError
from pinchpoint.models.cifar_resnet import Architecture, Shortcut, cifar_resnet


def resnet8():
    return cifar_resnet(Architecture(depth=8, width=4, channels=3, classes=5)).eval()


@pytest.mark.parametrize("how", ["as it is", "pruned", "masked", "factorised", "pruned, then factorised"])
def test_architecture_and_layout_and_tensors_give_the_network_back(how):
    model = resnet8()
    if "pruned" in how or how == "masked":
        model = prune(model, 0.4, input_shape=(3, 8, 8), remove=how != "masked").model
    if "factorised" in how:
        model = factorize(model, rank=1)
    layout = layout_of(resnet8(), model)
    again = Layout.model_validate_json(layout.model_dump_json())
    assert again == layout
    assert (layout == Layout()) == (how == "as it is")
    built = apply(resnet8(), again)
    built.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(built.eval()(x), model(x))
    assert str(built) == str(model)  # sizes that modules remember, too


def test_the_original_is_left_as_it_was():
    base = resnet8()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = prune(base, 0.4, input_shape=(3, 8, 8)).model
    layout_of(base, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_a_shortcut_selects_channels():
    shortcut = Shortcut(4, 8, stride=2)
    x = torch.rand(2, 4, 6, 6)
    assert shortcut.source == (-1, -1, 0, 1, 2, 3, -1, -1)
    assert torch.equal(shortcut(x), nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
    shortcut.select(4, (2, -1, 0))
    out = shortcut(x)
    assert torch.equal(out[:, 0], x[:, 2, ::2, ::2])
    assert torch.equal(out[:, 2], x[:, 0, ::2, ::2])
    assert not out[:, 1].any()
    assert shortcut.state_dict() == {}


@pytest.mark.parametrize(
    ("inputs", "source"), [(3, (0, 0)), (3, (0, 3)), (3, (-2, 1)), (0, (-1,)), (3, ()), (10**30, (10**30,))]
)
def test_a_selection_that_is_none(inputs, source):
    with pytest.raises(ValidationError):
        Selection(inputs=inputs, source=source)


SELECTION = Selection(inputs=3, source=(0, 1))


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (
            Layout(shapes={"conv9.weight": (1,)}),
            "a layout's conv9.weight (1,) must be part of the architecture's, but got no tensor of that name; "
            "use its own layout.",
        ),
        (
            Layout(shapes={"conv1.weight": (4, 3, 3)}),
            "a layout's conv1.weight (4, 3, 3) must be part of the architecture's, but got shape (4, 3, 3, 3); "
            "use its own layout.",
        ),
        (
            Layout(shapes={"linear.bias": (10**15,)}),
            "a layout's linear.bias (1000000000000000,) must be part of the architecture's, but got shape (5,); "
            "use its own layout.",
        ),
        (
            Layout(selections={"layer1": SELECTION}),
            "a layout's layer1 must select channels, but got Sequential; use its own layout.",
        ),
        (
            Layout(selections={"shortcut": SELECTION}),
            "a layout's shortcut must select channels, but got no layer of that name; use its own layout.",
        ),
        (
            Layout(selections={"layer2.0.shortcut": Selection(inputs=5, source=(4,))}),
            "a layout's layer2.0.shortcut must be part of the architecture's, but got 4 to 8 channels; use its own layout.",
        ),
        (
            Layout(ranks={"relu": 2}),
            "ranks must name layers that can be factorised, but got 'relu': ReLU is neither nn.Linear nor nn.Conv2d; "
            "leave it out.",
        ),
    ],
)
def test_a_layout_of_another_network(layout, text):
    with refused(ModelError, text):
        apply(resnet8(), layout)


def test_a_network_that_is_no_part_of_the_architecture():
    with refused(
        ModelError,
        "a network must be its architecture or a smaller part of it, but got 2.bias missing, where that has (2,); "
        "give its own one.",
    ):
        layout_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), nn.Sequential(nn.Linear(4, 3)))
    with refused(
        ModelError,
        "a layout's 0.weight (3, 5) must be part of the architecture's, but got shape (3, 4); use its own layout.",
    ):
        layout_of(nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(5, 3)))
