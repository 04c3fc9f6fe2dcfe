"""Other libraries' attacks behind one signature: ``(model, x, y, threat, steps) -> x_adv``.

Each is set up as its own documentation says, on the whole batch at once, with one random start, which follows torch's seed
or, where a library takes or draws from another one, is made to. Nothing here judges.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pinchpoint.attack import Threat
from pinchpoint.utils.torchvision import import_torchvision

Peer = Callable[[nn.Module, Tensor, Tensor, Threat, int], Tensor]

MODULES = {
    "pyautoattack": "pyautoattack",
    "torchattacks": "torchattacks",
    "adv-lib": "adv_lib",
    "foolbox": "foolbox",
    "ART": "art",
}
PACKAGES = {
    "pyautoattack": "pyautoattack",
    "torchattacks": "torchattacks",
    "adv-lib": "adv-lib",
    "foolbox": "foolbox",
    "ART": "adversarial-robustness-toolbox",
}
_ORDER = {"linf": float("inf"), "l2": 2, "l1": 1}


def installed() -> list[str]:
    return [name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None]


def missing() -> list[str]:
    return [name for name in MODULES if name not in installed()]


def autopgd_pyautoattack(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int) -> Tensor:
    from pyautoattack.autopgd_base import APGDAttack

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    found: Tensor = APGDAttack(
        model, n_iter=steps, norm=norm, eps=threat.eps, seed=torch.initial_seed(), device=x.device
    ).perturb(x, y)
    return found


def autopgd_torchattacks(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int) -> Tensor:
    import_torchvision()
    import torchattacks

    attack = torchattacks.APGD(model, norm={"linf": "Linf", "l2": "L2"}[threat.norm], eps=threat.eps, steps=steps)
    found: Tensor = attack(x, y)
    return found


def autopgd_adv_lib(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int) -> Tensor:
    _for_adv_lib()
    from adv_lib.attacks import apgd

    order = _ORDER[threat.norm]
    found: Tensor = apgd(model, x, y, eps=threat.eps, norm=order, n_iter=steps, loss_function="ce")
    return found


def autopgd_art(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int) -> Tensor:
    from art.attacks.evasion import AutoProjectedGradientDescent

    attack = AutoProjectedGradientDescent(
        classifier(model, x),
        norm=_ORDER[threat.norm],
        eps=threat.eps,
        eps_step=2 * threat.eps,
        max_iter=steps,
        nb_random_init=1,
        batch_size=len(x),
        loss_type="cross_entropy",
        verbose=False,
    )
    np.random.seed(torch.initial_seed())  # noqa: NPY002  ART draws from it
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def pgd_torchattacks(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int) -> Tensor:
    import_torchvision()
    import torchattacks

    size = 2.5 * threat.eps / steps
    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[threat.norm]
    found: Tensor = kind(model, eps=threat.eps, alpha=size, steps=steps, random_start=True)(x, y)
    return found


def pgd_adv_lib(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int) -> Tensor:
    _for_adv_lib()
    from adv_lib.attacks import pgd_linf

    size = 2.5 / steps
    found: Tensor = pgd_linf(model, x, y, threat.eps, steps=steps, random_init=True, relative_step_size=size)
    return found


def pgd_foolbox(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int) -> Tensor:
    import foolbox

    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[threat.norm]
    low, high = threat.box or (-np.inf, np.inf)
    attack = kind(rel_stepsize=2.5 / steps, steps=steps)
    _, found, _ = attack(foolbox.PyTorchModel(model, bounds=(low, high), device=x.device), x, y, epsilons=threat.eps)
    clipped: Tensor = found
    return clipped


def pgd_art(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    attack = ProjectedGradientDescentPyTorch(
        classifier(model, x),
        norm=_ORDER[threat.norm],
        eps=threat.eps,
        eps_step=2.5 * threat.eps / steps,
        max_iter=steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    np.random.seed(torch.initial_seed())  # noqa: NPY002  ART draws from it
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


AUTOPGD: Mapping[str, Peer] = {
    "pyautoattack": autopgd_pyautoattack,
    "torchattacks": autopgd_torchattacks,
    "adv-lib": autopgd_adv_lib,
    "ART": autopgd_art,
}
PGD: Mapping[str, Peer] = {
    "torchattacks": pgd_torchattacks,
    "adv-lib": pgd_adv_lib,
    "foolbox": pgd_foolbox,
    "ART": pgd_art,
}


def standard_pyautoattack(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Its standard version, whole."""
    from pyautoattack.autoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    attack = AutoAttack(model, norm=norm, eps=threat.eps, seed=torch.initial_seed(), device=x.device)
    found: Tensor = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
    return found


def universal_art(attacker: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, **options: Any) -> Tensor:
    """ART's universal perturbation, shaped like one input; ``options`` as ART's own, the rest at its defaults."""
    from art.attacks.evasion import UniversalPerturbation

    inner: dict[str, Any] = {"verbose": False}
    if attacker == "pgd":
        inner |= {"eps": threat.eps, "eps_step": threat.eps / 4.0, "max_iter": 10, "batch_size": 1}
    attack = UniversalPerturbation(
        classifier(model, x),
        attacker=attacker,
        attacker_params=inner,
        eps=threat.eps,
        norm=_ORDER[threat.norm],
        batch_size=len(x),
        verbose=False,
        **options,
    )
    np.random.seed(torch.initial_seed())  # noqa: NPY002  ART draws from it
    attack.generate(x.numpy(), y.numpy())
    return torch.from_numpy(np.asarray(attack.noise, dtype=np.float32))[0]


def classifier(model: nn.Module, x: Tensor) -> Any:
    """ART's wrapper of a model that takes inputs shaped like x in [0, 1]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.estimators.classification import PyTorchClassifier

    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    return PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def _for_adv_lib() -> None:
    """It imports torchvision, and visdom for a logger that its attacks do not use: an empty module will do there."""
    import_torchvision()
    if "visdom" not in sys.modules and importlib.util.find_spec("visdom") is None:
        sys.modules["visdom"] = ModuleType("visdom")
