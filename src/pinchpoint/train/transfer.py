"""From one task to another: a frozen encoder under a new linear head, or a new head for full fine-tuning.

A frozen encoder's features are the same at every epoch, so they are computed once and the head alone is trained on them,
as in the paper's CIFAR-100 to CIFAR-10 experiment. Full fine-tuning is ``replace_head``, then ``pinchpoint.train.train``.
Every function returns a new model; the one given stays as it is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.compress import LowRankLinear
from pinchpoint.data.load import AnyDataset, Dataset
from pinchpoint.data.part import Part
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.measure.weights import computed_tensors, linear_modules
from pinchpoint.records import Training
from pinchpoint.train.augment import AugmentConfig
from pinchpoint.train.config import TrainConfig
from pinchpoint.train.train import train


@dataclass(frozen=True)
class Transferred:
    """A model for the new task, and how its head was trained."""

    model: nn.Module
    training: Training


def transfer(
    model: nn.Module,
    data: AnyDataset,
    config: TrainConfig,
    *,
    seed: int,
    head: str | None = None,
    batch_size: int = 256,
) -> Transferred:
    """Keep the encoder as it is and train a new linear head for the data on its features.

    Args:
        model: of any task, on its device; its last layer is fully connected.
        data: of the new task.
        config: of the head's training.
        seed: of the head's first weights, and of its training.
        head: the path of the last layer, where it is not the one ``head_of`` finds.
        batch_size: how many images pass the encoder together.

    Raises:
        ConfigError: where ``config`` augments images, which are seen once.
        ModelError: where the model has no such head, or does not take the data.

    >>> from pinchpoint.data import DataConfig, load

    >>> from pinchpoint.models import ModelConfig, build
    >>> data = load(DataConfig(name="digits"))
    >>> encoder = build(ModelConfig(hidden=(64,)), data.input_shape, classes=100)
    >>> done = transfer(encoder, data, TrainConfig(epochs=2), seed=0)
    >>> done.model(data.x_test).shape, torch.equal(done.model[1].weight, encoder[1].weight)
    (torch.Size([450, 10]), True)
    """
    if config.augment != AugmentConfig():
        raise ConfigError(
            "a frozen encoder sees each image once, as it is",
            "train.augment",
            "leave it out, or fine-tune the whole model",
        )
    path = head_of(model) if head is None else head
    found = feature_data(model, data, head=path, batch_size=batch_size)
    old = _linear(model, path)
    new = _new_head(old, data.classes, seed).float()
    training = train(new, found, config, seed=seed)
    return Transferred(_swapped(model, old, new.to(old.weight.dtype)).eval(), training)


def replace_head(model: nn.Module, classes: int, *, head: str | None = None, seed: int = 0) -> nn.Module:
    """A copy with a new last layer for that many classes; all else keeps its weights. It is what fine-tuning starts from.

    Args:
        model: any whose last layer is fully connected: our own, and most of timm's and torchvision's.
        classes: two or more.
        head: the path of the last layer, where it is not the one ``head_of`` finds.
        seed: of the new weights.

    Raises:
        ModelError: where the model has no such head, or for fewer than two classes.

    >>> replace_head(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 7)), classes=2)[2]
    Linear(in_features=3, out_features=2, bias=True)
    """
    if classes < 2:
        raise ModelError("a model needs two classes or more", classes, "check the data")
    old = _linear(model, head_of(model) if head is None else head)
    return _swapped(model, old, _new_head(old, classes, seed))


def head_of(model: nn.Module) -> str:
    """The path of the layer that gives the logits: what timm's ``get_classifier`` says, else the last linear layer.

    Raises:
        ModelError: where there is none, or it is not fully connected.

    >>> head_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 7)))
    '2'
    """
    asked = [getattr(part, "get_classifier", None) for part in model.modules()]
    said: list[object] = [get() for get in asked if callable(get)]
    last = said[0] if said else next((module for _, module in reversed(linear_modules(model))), None)
    path: str | None = next((path for path, module in model.named_modules() if module is last), None)
    if path is None:
        found = "several" if isinstance(last, tuple | list) else "none"
        raise ModelError("a model's head must be one fully connected layer", found, "name it by its path")
    _linear(model, path)
    return path


def features(
    model: nn.Module, part: Part, *, head: str | None = None, batch_size: int = 256
) -> Float[Tensor, "samples d"]:
    """What the head of the model gets to see, for every sample: float32, in memory on the CPU.

    The model runs in eval mode, on its device.

    Raises:
        ModelError: where the logits are not what the head returns, or the model does not take the data.

    >>> from pinchpoint.data import DataConfig, load
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10))
    >>> features(net, load(DataConfig(name="digits")).test).shape
    torch.Size([450, 5])
    """
    path = head_of(model) if head is None else head
    copied = copy.deepcopy(model, computed_tensors(model)).eval()
    calls: list[tuple[Tensor, Tensor]] = []
    last = _linear(copied, path)
    last.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    device, found = next(copied.parameters()).device, []
    for x, _ in part.batches(torch.arange(len(part)).split(batch_size), device):
        logits = _run(copied, x)
        if len(calls) != 1 or calls[0][0].ndim != 2 or not torch.equal(calls[0][1], logits):
            raise ModelError(
                "the logits must be what the head returns", f"other ones from '{path}'", "name another layer as head"
            )
        found.append(calls.pop()[0].float().cpu())
    return torch.cat(found) if found else torch.zeros(0, last.weight.shape[1])


def feature_data(model: nn.Module, data: AnyDataset, *, head: str | None = None, batch_size: int = 256) -> Dataset:
    """The data set with features in the place of images."""
    x = [features(model, part, head=head, batch_size=batch_size) for part in (data.train, data.validation, data.test)]
    return Dataset(
        name=f"features of {data.name}",
        classes=data.classes,
        x_train=x[0],
        y_train=data.train.labels,
        x_validation=x[1],
        y_validation=data.validation.labels,
        x_test=x[2],
        y_test=data.test.labels,
    )


def _linear(model: nn.Module, path: str) -> nn.Linear | LowRankLinear:
    found = dict(model.named_modules()).get(path)
    if isinstance(found, nn.Linear | LowRankLinear):
        return found
    seen = "nothing" if found is None else f"a {type(found).__name__}"
    raise ModelError("a model's head must be one fully connected layer", f"{seen} at '{path}'", "give another path")


def _new_head(old: nn.Linear | LowRankLinear, classes: int, seed: int) -> nn.Linear:
    """On the old one's device; the draws are those of the CPU everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    return new.to(old.weight.device, old.weight.dtype).train(old.training)


def _swapped(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    return copy.deepcopy(model, {**computed_tensors(model), id(old): new})  # what stands in the memo counts as copied


def _run(model: nn.Module, x: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            logits: Tensor = model(x)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"the model must take inputs of {tuple(x.shape[1:])}", said, "choose other data") from None
    return logits
