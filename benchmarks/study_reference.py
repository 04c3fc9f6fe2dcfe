"""One cell of a study as a research script does it: a process of its own, a PyTorch loop over a DataLoader, the nuclear norm
by SVD with autograd, compressibility of each layer by NumPy's SVD, robust accuracy by ART's AutoPGD.

    python -m benchmarks.study_reference --data FILE.npz --seed 0 --nuclear 0.001

It uses nothing of Pinchpoint, and nothing is left slow on purpose: images are decoded once into float32 tensors, the
penalty is the fused ``matrix_norm``, layers are measured once, weights take no gradients while ART attacks, and the second
loss is tried on what the first left standing. It prints one line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--train-samples", type=int, default=20_000)
    parser.add_argument("--test-samples", type=int, default=1_000)
    parser.add_argument("--hidden", type=int, nargs="+", default=[500, 500, 500])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-2)
    parser.add_argument("--nuclear", type=float, default=0.0)
    parser.add_argument("--lasso", type=float, default=0.0)
    parser.add_argument("--constant-frobenius", action="store_true")
    parser.add_argument("--linf", type=float, default=8 / 255)
    parser.add_argument("--l2", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--art-batch-size", type=int, default=1_000)
    parser.add_argument("--k-share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load(args: argparse.Namespace) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Images in [0, 1] and labels: to learn from, to choose the best epoch by (15 %), and to test."""
    with np.load(args.data) as file:
        x, y = file["x_train"][: args.train_samples], file["y_train"][: args.train_samples]
        x_test, y_test = file["x_test"][: args.test_samples], file["y_test"][: args.test_samples]

    def dataset(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> TensorDataset:
        return TensorDataset(torch.from_numpy(x).float() / 255.0, torch.from_numpy(y.astype(np.int64)))

    train, validation = random_split(dataset(x, y), [0.85, 0.15], generator=torch.Generator().manual_seed(0))
    return train, validation, dataset(x_test, y_test)


def network(args: argparse.Namespace, inputs: int, classes: int) -> nn.Sequential:
    steps: list[nn.Module] = [nn.Flatten()]
    for hidden in args.hidden:
        steps += [nn.Linear(inputs, hidden, bias=False), nn.ReLU()]
        inputs = hidden
    return nn.Sequential(*steps, nn.Linear(inputs, classes, bias=False))


def penalty(hidden: list[Tensor], args: argparse.Namespace) -> Tensor | float:
    total: Tensor | float = 0.0
    if args.nuclear:
        total = total + args.nuclear * sum(torch.linalg.matrix_norm(weight, "nuc") for weight in hidden)
    if args.lasso:
        total = total + args.lasso * sum(weight.norm(dim=1).sum() for weight in hidden)
    return total


def validation_loss(model: nn.Module, data: TensorDataset) -> float:
    model.eval()
    with torch.no_grad():
        parts = [
            nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in DataLoader(data, batch_size=1024)
        ]
    model.train()
    return float(torch.stack(parts).sum()) / len(data)


def train(model: nn.Sequential, data: TensorDataset, validation: TensorDataset, args: argparse.Namespace) -> None:
    """AdamW on cross-entropy and penalties, the rate half a cosine; hidden layers kept at their Frobenius norm if asked.

    It ends with the weights of the epoch of lowest validation loss.
    """
    hidden = [module.weight for module in model if isinstance(module, nn.Linear)][:-1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, args.epochs * math.ceil(len(data) / args.batch_size)
    )
    norms = [weight.detach().norm() for weight in hidden]
    batches = DataLoader(data, batch_size=args.batch_size, shuffle=True)
    best, kept = math.inf, copy.deepcopy(model.state_dict())
    for _ in range(args.epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y) + penalty(hidden, args)
            loss.backward()
            optimizer.step()
            schedule.step()
            if args.constant_frobenius:
                with torch.no_grad():
                    for weight, norm in zip(hidden, norms, strict=True):
                        weight.mul_(norm / weight.norm())
        reached = validation_loss(model, validation)
        if reached < best:
            best, kept = reached, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)


def compressibility(model: nn.Sequential, k_share: float) -> dict[str, float]:
    """1 - relative l1 tail of row l1 norms and of singular values, averaged over the hidden layers."""
    kept: dict[str, list[float]] = {"neuron": [], "spectral": []}
    for module in [module for module in model if isinstance(module, nn.Linear)][:-1]:
        weight = module.weight.detach().numpy().astype(np.float64)
        sizes = {"neuron": np.abs(weight).sum(axis=1), "spectral": np.linalg.svd(weight, compute_uv=False)}
        for view, values in sizes.items():
            ordered = np.sort(values)[::-1]
            kept[view].append(float(ordered[: math.ceil(k_share * len(ordered))].sum() / ordered.sum()))
    return {view: float(np.mean(values)) for view, values in kept.items()}


def robust_accuracies(model: nn.Module, test: TensorDataset, args: argparse.Namespace) -> dict[str, float]:
    """What AutoPGD leaves: cross-entropy from one random start, then DLR on what still stands."""
    from art.attacks.evasion import AutoProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    np.random.seed(args.seed)  # noqa: NPY002  ART draws its random starts from it
    x, y = (tensor.numpy() for tensor in test.tensors)
    model.eval().requires_grad_(False)
    classifier = PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=x.shape[1:],
        nb_classes=int(y.max()) + 1,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    right = classifier.predict(x).argmax(1) == y
    found = {"clean_accuracy": float(right.mean())}
    for norm, order, eps in (("linf", np.inf, args.linf), ("l2", 2, args.l2)):
        standing = right.copy()
        for loss in ("cross_entropy", "difference_logits_ratio"):
            if not standing.any():
                break
            attack = AutoProjectedGradientDescent(
                classifier,
                norm=order,
                eps=eps,
                eps_step=2 * eps,
                max_iter=args.steps,
                nb_random_init=1,
                batch_size=args.art_batch_size,
                loss_type=loss,
                verbose=False,
            )
            adversarial = attack.generate(x[standing], y[standing])
            standing[standing] = classifier.predict(adversarial).argmax(1) == y[standing]
        found[f"robust_accuracy_{norm}"] = float(standing.mean())
    return found


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    training, validation, test = load(args)
    x, y = test.tensors
    model = network(args, math.prod(x.shape[1:]), int(y.max()) + 1)
    loaded = time.perf_counter()
    train(model, training, validation, args)
    trained = time.perf_counter()
    profile = compressibility(model, args.k_share)
    profiled = time.perf_counter()
    accuracies = robust_accuracies(model, test, args)
    seconds = {
        "load": loaded - start,
        "train": trained - loaded,
        "profile": profiled - trained,
        "attack": time.perf_counter() - profiled,
    }
    print(json.dumps({"seed": args.seed, **profile, **accuracies, "seconds": seconds}))


if __name__ == "__main__":
    main()
