"""Planes point by point, dominant directions against NumPy's SVD, PCA against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from oracles.as_user import refused
from pinchpoint.attack import Threat
from pinchpoint.errors import ConfigError, DataError, ModelError
from pinchpoint.evaluate import adversarial_loss
from pinchpoint.mechanism.decisions import decision_plane, dominant_direction, pictures, representation_pca
from pinchpoint.models.build import CifarResNetConfig, ModelConfig, Normalize, WideResNetConfig, build
from pinchpoint.records import Pictures

CONFIGS = [
    (ModelConfig(hidden=(20, 12), mean=(0.3,), std=(0.2,)), (3, 8, 8)),
    (ModelConfig(hidden=(20, 12), rank=3, bias=True), (1, 6, 6)),
    (CifarResNetConfig(depth=8, width=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)), (3, 8, 8)),
    (WideResNetConfig(depth=10, widen=1), (3, 8, 8)),
]


def turned(vector):
    vector = vector / np.linalg.norm(vector)
    return vector * np.sign(vector[np.abs(vector).argmax()])


# --- the dominant direction ------------------------------------------------------------------------------------------


def test_dominant_direction_of_a_fully_connected_network_is_in_pixels():
    torch.manual_seed(3)
    model = nn.Sequential(
        Normalize((0.1, 0.5, 0.2), (0.2, 1.0, 0.4)), nn.Flatten(), nn.Linear(48, 30), nn.ReLU(), nn.Linear(30, 4)
    )
    scale = np.repeat([0.2, 1.0, 0.4], 16)
    jacobian = model[2].weight.detach().double().numpy() / scale
    found = dominant_direction(model, torch.rand(3, 4, 4)).double().numpy().ravel()
    np.testing.assert_allclose(found, turned(np.linalg.svd(jacobian)[2][0]), atol=1e-6)


def test_dominant_direction_of_a_convolution_is_an_image():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 2))
    x = torch.rand(2, 5, 6)
    columns = []
    for pixel in range(60):
        unit = torch.zeros(60)
        unit[pixel] = 1.0
        columns.append(nn.functional.conv2d(unit.reshape(1, 2, 5, 6), model[0].weight, None, 2, 1).detach().flatten())
    jacobian = torch.stack(columns, 1).double().numpy()
    found = dominant_direction(model, x)
    assert found.shape == x.shape
    np.testing.assert_allclose(found.double().numpy().ravel(), turned(np.linalg.svd(jacobian)[2][0]), atol=1e-6)


def test_a_first_layer_that_is_zero_or_not_there():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    nn.init.zeros_(model[0].weight)
    with refused(
        ModelError, "a dominant direction needs a first layer that is not zero, but got zeros; train the model."
    ):
        dominant_direction(model, torch.zeros(3))
    with refused(
        ModelError, "a dominant direction needs a first layer, but got no linear layer called; give a network."
    ):
        dominant_direction(nn.Sequential(nn.ReLU()), torch.zeros(3))


# --- planes ----------------------------------------------------------------------------------------------------------


def naive_plane(start, end, direction, size, extent):
    """Points and coordinates of a plane, in NumPy."""
    first = (end - start) / np.linalg.norm(end - start)
    second = direction - (direction @ first) * first
    second /= np.linalg.norm(second)
    steps = np.linspace(-extent, extent, size) * np.linalg.norm(end - start)
    return steps, np.array([[start + across * first + up * second for across in steps] for up in steps])


@pytest.mark.parametrize("size", [6, 9])
def test_a_plane_of_pixels_point_by_point(trained, digits, size):
    x, y = digits.x_test[:30], digits.y_test[:30]
    where = adversarial_loss(trained, x, y, Threat("linf", 0.15), steps=20)[1]
    v = np.linalg.svd(trained[1].weight.detach().double().numpy())[2][0]
    plane = decision_plane(trained, x[4], where[4], int(y[4]), size=size, extent=1.5)
    start, end = (image.double().numpy().ravel() for image in (x[4], where[4]))
    steps, points = naive_plane(start, end, turned(v), size, 1.5)
    np.testing.assert_allclose(plane.coordinates, steps, atol=5.1e-6 * steps[-1])  # they are rounded
    logits = trained(torch.tensor(points.reshape(-1, 1, 8, 8), dtype=torch.float32)).detach().double()
    assert plane.labels == logits.argmax(1).reshape(size, size).tolist()
    np.testing.assert_allclose(plane.confidence, logits.softmax(1).amax(1).reshape(size, size), atol=1e-4)
    beyond = np.maximum(0, np.maximum(-points, points - 1).max(2))
    np.testing.assert_allclose(plane.excess, beyond, atol=1e-3 * beyond.max())
    cosine = turned(v) @ (end - start) / np.linalg.norm(end - start)
    assert plane.along == pytest.approx(cosine, abs=1e-5)
    assert plane.along**2 + plane.across**2 == pytest.approx(1)
    assert plane.length == pytest.approx(np.linalg.norm(end - start))
    answers = trained(torch.stack([x[4], where[4]])).argmax(1).tolist()
    assert [plane.clean_label, plane.adversarial_label] == answers
    assert (plane.space, plane.label) == ("input", int(y[4]))
    if size % 2:
        assert plane.labels[size // 2][size // 2] == answers[0]
        assert plane.excess[size // 2][size // 2] == 0.0
        third = size // 2 + round(
            size // 2 / 1.5
        )  # near the perturbed sample: on the way to it every pixel is in the box
        assert not any(plane.excess[size // 2][size // 2 : third])


def test_a_plane_of_representations_point_by_point(trained, digits):
    x, y = digits.x_test[:10], digits.y_test[:10]
    where = adversarial_loss(trained, x, y, Threat("linf", 0.15), steps=20)[1]
    plane = decision_plane(trained, x[2], where[2], int(y[2]), space="representation", size=7, extent=3.0)
    encoder, head = trained[:-1], trained[-1]
    start, end = encoder(torch.stack([x[2], where[2]])).detach().double().numpy()
    v = np.linalg.svd(head.weight.detach().double().numpy())[2][0]
    steps, points = naive_plane(start, end, turned(v), 7, 3.0)
    np.testing.assert_allclose(plane.coordinates, steps, atol=5.1e-6 * steps[-1])  # they are rounded
    logits = head(torch.tensor(points.reshape(49, -1), dtype=torch.float32)).detach().double()
    assert plane.labels == logits.argmax(1).reshape(7, 7).tolist()
    np.testing.assert_allclose(plane.confidence, logits.softmax(1).amax(1).reshape(7, 7), atol=1e-4)
    assert [plane.clean_label, plane.adversarial_label] == trained(torch.stack([x[2], where[2]])).argmax(1).tolist()
    assert plane.excess is None


def test_a_boundary_in_closed_form():
    """Class 1 where the second pixel exceeds the first: on the plane of both pixels, a line through the middle."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data.copy_(torch.eye(2))
    plane = decision_plane(
        model, torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.5]), 0, direction=torch.tensor([3.0, 4.0]), size=8
    )
    assert (plane.along, plane.across, plane.excess[0][0]) == pytest.approx((0.6, 0.8, 0.1), abs=1e-4)
    up, across = np.meshgrid(plane.coordinates, plane.coordinates, indexing="ij")
    assert (np.array(plane.labels) == (up > across))[up != across].all()


def test_directions_and_samples_that_span_no_plane(trained, digits):
    x = digits.x_test[0]
    moved = (x + 0.1).clamp(0, 1)
    with refused(
        DataError, "a plane needs a sample that its perturbation moves, but got no movement; choose another sample."
    ):
        decision_plane(trained, x, x, 0)
    text = "a direction must be 64 numbers, not all zero, but got {}; give one of that space."
    with refused(DataError, text.format("3 numbers of length nan")):
        decision_plane(trained, x, moved, 0, direction=torch.ones(3))
    with refused(DataError, text.format("64 numbers of length 0")):
        decision_plane(trained, x, moved, 0, direction=torch.zeros(64))
    with refused(
        DataError,
        "a direction must not be that of the perturbation, but got cosine -1.0000000; choose another one.",
    ):
        decision_plane(trained, x, moved, 0, direction=x - moved)
    for size, extent in ((1, 2.0), (5, 0.0), (5, torch.inf)):
        text = f"a plane needs 2 points or more a side, and a positive extent, but got {(size, extent)}; use 41 and 2."
        with refused(ConfigError, text):
            decision_plane(trained, x, moved, 0, size=size, extent=extent)


# --- representations -------------------------------------------------------------------------------------------------


def test_pca_against_scikit_learn(trained, digits):
    x, y = digits.x_test[:60], digits.y_test[:60]
    where = adversarial_loss(trained, x, y, Threat("l2", 0.6), steps=20)[1]
    found = representation_pca(trained, x, where, y, components=3)
    clean, moved = (trained[:-1](batch).detach().double().numpy() for batch in (x, where))
    theirs = PCA(3, svd_solver="full").fit(clean)
    signs = np.sign([row[np.abs(row).argmax()] for row in theirs.components_])
    np.testing.assert_allclose(found.clean, theirs.transform(clean) * signs, atol=1e-3)
    np.testing.assert_allclose(found.adversarial, theirs.transform(moved) * signs, atol=1e-3)
    np.testing.assert_allclose(found.explained, theirs.explained_variance_ratio_, atol=1e-4)
    along = (moved - clean) @ theirs.components_.T
    np.testing.assert_allclose(found.moved, (along**2).sum(0) / ((moved - clean) ** 2).sum(), atol=1e-4)
    assert found.labels == y.tolist()
    assert found.answers == trained(where).argmax(1).tolist()
    with refused(ConfigError, "components must lie in 1 ... 2, but got 3; use fewer, or more samples."):
        representation_pca(trained, x[:2], where[:2], y[:2], components=3)


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("model", "seen"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten()), "no fully connected layer"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU()), "Linear before more"),
        (Doubled(nn.Flatten(), nn.Linear(64, 3)), "Linear before more"),
    ],
)
def test_a_model_that_does_not_end_in_a_head(model, seen, digits):
    rule = "representations need a fully connected layer at the end"
    model[-2].bias.data.fill_(-5.0) if isinstance(model[-1], nn.ReLU) else None
    with refused(ModelError, f"{rule}, but got {seen}; give a model whose last layer gives the logits."):
        representation_pca(model, digits.x_test[:4], digits.x_test[:4], digits.y_test[:4])


# --- together --------------------------------------------------------------------------------------------------------


def test_fooled_samples_are_drawn_first(trained, digits):
    x, y = digits.x_test[:80], digits.y_test[:80]
    threat = Threat("linf", 0.08)
    where = adversarial_loss(trained, x, y, threat, steps=20)[1]
    right = trained(x).argmax(1) == y
    fooled = (right & (trained(where).argmax(1) != y)).nonzero().flatten().tolist()
    assert 3 < len(fooled) < 70
    assert fooled[:3] != [0, 1, 2]
    found = pictures(trained, x, where, y, threat, planes=3, samples=50, size=5)
    assert [plane.sample for plane in found.planes] == [row for row in fooled[:3] for _ in range(2)]
    assert [plane.space for plane in found.planes] == ["input", "representation"] * 3
    assert all(plane.clean_label == plane.label != plane.adversarial_label for plane in found.planes)
    assert (found.norm, found.eps, len(found.pca.clean)) == ("linf", 0.08, 50)
    assert Pictures.model_validate_json(found.model_dump_json()) == found
    standing = right & (trained(where).argmax(1) == y)
    rest = pictures(trained, x[standing], where[standing], y[standing], threat, planes=1, size=5)
    assert rest.planes[0].sample == 0
    with refused(
        ModelError, "at least one perturbed input must differ from the input, but got none; use a larger budget."
    ):
        pictures(trained, x, x, y, threat)


def test_pictures_are_small(trained, digits):
    x, y = digits.x_test[:400], digits.y_test[:400]
    found = pictures(trained, x, (x + 0.05).clamp(0, 1), y, Threat("linf", 0.05))
    assert len(found.model_dump_json()) < 150_000


@pytest.mark.parametrize(("config", "shape"), CONFIGS, ids=lambda value: getattr(value, "name", ""))
def test_any_network_of_ours(config, shape):
    model = build(config, shape, 5, seed=0).train()
    x = torch.rand(6, *shape)
    where = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    state = torch.random.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, again = (
        pictures(model, x, where, torch.arange(6) % 5, Threat("linf", 1.0), planes=1, size=5) for _ in range(2)
    )
    assert found == again
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    plane = found.planes[0]
    model.eval()
    row = plane.sample
    direction = dominant_direction(model, x[row])
    assert plane.along == pytest.approx(float((direction * (where - x)[row]).sum() / (where - x)[row].norm()), abs=1e-4)
    assert plane.labels[2][2] == plane.clean_label == int(model(x[row : row + 1]).argmax())
    assert found.planes[1].labels[2][2] == plane.clean_label


@pytest.mark.parametrize(("samples", "features"), [(1, 4), (5, 1)])
def test_one_sample_or_feature_has_planes_and_no_principal_axes(samples, features):
    model, x = nn.Sequential(nn.Linear(6, features), nn.Linear(features, 3)), torch.rand(samples, 6)
    found = pictures(model, x, (x + 0.1).clamp(0, 1), torch.zeros(samples).long(), Threat("linf", 0.1), size=3)
    assert found.pca.clean == found.pca.labels == []
