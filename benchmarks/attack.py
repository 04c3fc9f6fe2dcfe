"""How fast attacks are, beside the raw limit and other libraries: ``python -m benchmarks.attack --json FILE [--quick]``.

The raw limit is as many forward and input-only backward passes as there are steps. Ours, the raw limit and every peer that
is installed take turns in one process with the same samples, budget, steps and threads; parameters are frozen, so nobody
computes gradients of weights. Whatever a contestant returns is judged by ``robust_accuracy``'s own check of ball, box and
label, outside its time; the time of ours includes the check. With one thread the clock is the process's CPU time, which a
busy machine disturbs least, with more it is the wall's.

ART's universal perturbations take one pass over the images instead of up to 20 (its default), which shortens their time, not
ours. ``--quick`` takes fewer samples and one round, and of those two the one from DeepFool only. Steps, restarts, targets
and queries of all other attacks are those of the full version.

The full version takes hours on one core: what has ended is kept beside FILE, and the same command goes on from there.
``--seed`` is that of all that attacks draw, ours and the peers'.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import attack_nets, peers
from benchmarks.common import Seconds, interleaved, machine, median, ratio, table, versions, write
from pinchpoint.attack import (
    Threat,
    apgd,
    apply_universal,
    cross_entropy,
    pgd,
    standard_ensemble,
    universal,
)
from pinchpoint.attack.gradient import value_and_gradient
from pinchpoint.evaluate import default_attacks, robust_accuracy, robust_curve
from pinchpoint.evaluate.logits import accuracy

STEPS = 100
PGD_STEPS = 40
BUDGETS = 20
MNIST = Threat("linf", 0.1)
CIFAR10 = (Threat("linf", 8 / 255), Threat("linf", 2 / 255), Threat("l2", 0.5))
UNIVERSAL = Threat("linf", 0.15)
OURS, RAW = "pinchpoint", "raw limit"
FALLEN = 0.8  # share of fallen samples from which a net counts as standard
TARGETS = {
    "apgd_over_raw_fcn": "<= 0.5",
    "apgd_speedup_over_fastest_peer_fcn": ">= 2",
    "apgd_speedup_over_fastest_peer_resnet20": ">= 2",
    "apgd_over_fastest_peer_robust_net": "<= 1.05",
    "ensemble_speedup_standard": ">= 3",
    "ensemble_speedup_robust_net": ">= 1.3",
    "curve20_over_apgd": "<= 3",
    "loop_over_raw": "<= 1.05",
    "universal_speedup_over_art": ">= 20",
}
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Size:
    """How much is run: samples a network, rounds, epochs of training; the universal ones' images and attackers."""

    fcn: int = 500
    resnet20: int = 200
    robust: int = 500
    ensemble: int = 100
    rounds: int = 3
    epochs: int = 4
    fitted: int = 500
    attackers: tuple[str, ...] = ("deepfool", "pgd")
    at_least: bool = True

    def turns(self, least: int) -> int:
        """Rounds of a short contest, which needs more of them."""
        return max(self.rounds, least) if self.at_least else self.rounds


QUICK = Size(fcn=100, resnet20=10, robust=100, ensemble=24, rounds=1, epochs=2, fitted=20, attackers=("deepfool",))


@dataclass(frozen=True)
class Contest:
    """Seconds of each contestant in each round, and what its examples leave of the accuracy."""

    seconds: Seconds
    robust: dict[str, float]

    @property
    def fastest(self) -> str:
        """Of the peers."""
        return min((name for name in self.seconds if name not in (OURS, RAW)), key=lambda n: median(self.seconds, n))

    @property
    def speedup(self) -> float:
        return ratio(self.seconds, self.fastest, OURS)

    @property
    def never_higher(self) -> bool:
        return all(self.robust[OURS] <= accuracy for accuracy in self.robust.values())

    @property
    def details(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "robust_accuracy": self.robust}


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def contest(calls: Mapping[str, Call], judge: Callable[[Tensor], float], rounds: int, seed: int = 0) -> Contest:
    """Rounds that take turns; each call gives examples, or a tensor without rows where it gives none. All draw from the
    same seed."""
    given: dict[str, Tensor] = {}

    def keep(name: str, call: Call) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            given[name] = call()

    seconds = interleaved(
        {name: lambda name=name, call=call: keep(name, call) for name, call in calls.items()},  # type: ignore[misc]
        rounds,
        warm_up=False,
        clock=clock,
    )
    return Contest(seconds, {name: judge(found) for name, found in given.items() if len(found)})


def raw(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """As many passes as an attack of this many steps cannot do without."""
    for _ in range(steps):
        value_and_gradient(model, x, y, cross_entropy)
    return x[:0]


def judged(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, found: Tensor) -> float:
    """Robust accuracy under these examples alone, as far as they lie in ball and box."""
    return robust_accuracy(model, x, y, threat, known=found.detach(), attacks={}).robust_accuracy


def ours_autopgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """The default evaluation's AutoPGD-CE, verdict engine included; seeded as the peers are."""
    first = default_attacks(model, x, steps=STEPS, seed=torch.initial_seed())["apgd-ce"]
    return robust_accuracy(model, x, y, threat, attacks={"apgd-ce": first}).adversarial


def autopgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rounds: int, seed: int = 0) -> Contest:
    """AutoPGD-100 with cross-entropy, one random start; ours is the default evaluation's, which in its time starts again
    from a second point where a fifth or less stands."""
    calls: dict[str, Call] = {OURS: lambda: ours_autopgd(model, x, y, threat), RAW: lambda: raw(model, x, y, STEPS)}
    for name, peer in peers.AUTOPGD.items():
        if name in peers.installed():
            calls[name] = lambda peer=peer: peer(model, x, y, threat, STEPS)  # type: ignore[misc]
    return contest(calls, lambda found: judged(model, x, y, threat, found), rounds, seed)


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rounds: int, seed: int = 0) -> Contest:
    """PGD-40 with cross-entropy, one random start: ours with its default step of 4 eps / steps, the peers with 2.5."""
    calls: dict[str, Call] = {
        OURS: lambda: pgd(model, x, y, threat, steps=PGD_STEPS, seed=torch.initial_seed()),
        RAW: lambda: raw(model, x, y, PGD_STEPS),
    }
    for name, peer in peers.PGD.items():
        if name in peers.installed():
            calls[name] = lambda peer=peer: peer(model, x, y, threat, PGD_STEPS)  # type: ignore[misc]
    return contest(calls, lambda found: judged(model, x, y, threat, found), rounds, seed)


def ensemble(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rounds: int, seed: int = 0) -> Contest:
    """The standard ensemble, whole."""

    def ours() -> Tensor:
        attacks = standard_ensemble(model, x, seed=torch.initial_seed())
        return robust_accuracy(model, x, y, threat, attacks=attacks).adversarial

    calls: dict[str, Call] = {OURS: ours}
    if "pyautoattack" in peers.installed():
        calls["pyautoattack"] = lambda: peers.standard_pyautoattack(model, x, y, threat)
    return contest(calls, lambda found: judged(model, x, y, threat, found), rounds, seed)


def loop(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rounds: int) -> Seconds:
    """Our loops when nothing is dropped, beside the raw limit."""
    calls: dict[str, Call] = {
        "AutoPGD, nothing dropped": lambda: apgd(model, x, y, threat, steps=STEPS, drop_fallen=False),
        "PGD, nothing dropped": lambda: pgd(model, x, y, threat, steps=STEPS, drop_fallen=False),
        RAW: lambda: raw(model, x, y, STEPS),
    }
    return contest(calls, lambda found: judged(model, x, y, threat, found), rounds).seconds


def curve(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rounds: int) -> tuple[Seconds, list[float]]:
    """Robust accuracy at 20 budgets up to twice the threat's, beside AutoPGD-100 at the threat's."""
    budgets = [Threat(threat.norm, 2.0 * threat.eps * part / BUDGETS) for part in range(1, BUDGETS + 1)]
    drawn: list[float] = []

    def ours() -> Tensor:
        drawn[:] = [verdict.robust_accuracy for verdict in robust_curve(model, x, y, budgets)]
        return x[:0]

    calls: dict[str, Call] = {"curve": ours, "AutoPGD": lambda: ours_autopgd(model, x, y, threat)}
    return contest(calls, lambda found: judged(model, x, y, threat, found), rounds).seconds, drawn


def universals(
    model: nn.Module, fit: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], size: Size, seed: int = 0
) -> Contest:
    """One perturbation for all, fitted on training images; accuracy of held-out images under it."""
    calls: dict[str, Call] = {OURS: lambda: universal(model, *fit, UNIVERSAL, seed=torch.initial_seed())}
    if "ART" in peers.installed():
        for attacker in size.attackers:
            calls[f"ART, {attacker}"] = lambda attacker=attacker: peers.universal_art(  # type: ignore[misc]
                attacker, model, *fit, UNIVERSAL, max_iter=1
            )
    x, y = held_out
    return contest(calls, lambda delta: accuracy(model, apply_universal(x, delta, UNIVERSAL), y), 1, seed)


def ratios(found: Mapping[str, Contest], loops: Seconds, curves: Seconds) -> dict[str, float | None]:
    """The issue's figures; the worst where several threats count. None where no peer was there to compare with."""
    resnet = [one for name, one in found.items() if name.startswith("AutoPGD, ResNet-20")]
    both = {name: one for name, one in found.items() if name.startswith("ensemble") and len(one.seconds) > 1}
    standard = [one for name, one in both.items() if "robust" not in name and one.robust[OURS] <= 1.0 - FALLEN]
    robust = [one for name, one in both.items() if "robust" in name]
    with_peers = any(name in peers.installed() for name in peers.AUTOPGD)
    fcn, hard, fitted = found["AutoPGD, FCN"], found["AutoPGD, robust net"], found["universal, FCN"]
    return {
        "apgd_over_raw_fcn": ratio(fcn.seconds, OURS, RAW),
        "apgd_speedup_over_fastest_peer_fcn": fcn.speedup if with_peers else None,
        "apgd_speedup_over_fastest_peer_resnet20": min(one.speedup for one in resnet) if with_peers else None,
        "apgd_over_fastest_peer_robust_net": ratio(hard.seconds, OURS, hard.fastest) if with_peers else None,
        "ensemble_speedup_standard": min((one.speedup for one in standard), default=None),
        "ensemble_speedup_robust_net": min((one.speedup for one in robust), default=None),
        "curve20_over_apgd": ratio(curves, "curve", "AutoPGD"),
        "loop_over_raw": max(ratio(loops, name, RAW) for name in loops if name != RAW),
        "universal_speedup_over_art": fitted.speedup if len(fitted.seconds) > 1 else None,
    }


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time attacks against the raw limit and other libraries.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write ratios, checks, machine and versions here")
    parser.add_argument("--quick", action="store_true", help="fewer samples, one round: under five minutes")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch; its own choice where left out")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything that attacks draw; 0")
    parser.add_argument("--rounds", type=int, metavar="N", help="of every contest; more of them only steady the times")
    cache = Path(tempfile.gettempdir()) / "pinchpoint-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, metavar="FOLDER", help=f"trained networks; {cache}")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    args = arguments(words)
    data = attack_nets.folder()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    size, before = QUICK if args.quick else Size(), machine()
    if args.rounds is not None:
        size = replace(size, rounds=args.rounds, at_least=False)
    digits = attack_nets.mnist(args.quick)
    fcn = attack_nets.fcn(digits, args.cache, size.epochs)
    robust = attack_nets.robust_cnn(digits, args.cache, size.epochs)
    resnet = attack_nets.resnet20(data)
    x, y = digits.x_test, digits.y_test
    a, b = attack_nets.cifar10(size.resnet20)
    kept = Kept(args.json, {**asdict(size), "seed": args.seed})
    found = run(fcn, robust, resnet, (x, y), (a, b), digits, size, args.seed, kept)
    loops = loop(fcn, x[: size.fcn], y[: size.fcn], MNIST, size.turns(2))
    curves, drawn = curve(fcn, x[: size.fcn], y[: size.fcn], MNIST, size.rounds)
    figures = ratios(found, loops, curves)
    checks = {"robust_accuracy_never_higher": all(one.never_higher for one in found.values())}
    write(
        args.json,
        {
            "ratios": figures,
            "checks": checks,
            "contests": {name: one.details for name, one in found.items()},
            "loop_seconds": loops,
            "curve": {"seconds": curves, "robust_accuracy": drawn},
            "size": vars(size),
            "seed": args.seed,
            "missing": peers.missing(),
            "machine": before,
            "versions": versions("torch", *(peers.PACKAGES[name] for name in peers.installed())),
        },
    )
    kept.forget()
    show(found, loops, curves, figures, checks, before)


class Kept:
    """Contests that have ended, beside the file that all of them will be in: a run that is killed goes on from there."""

    def __init__(self, file: Path | None, settings: Mapping[str, Any]) -> None:
        self.path = None if file is None else file.with_suffix(".part.json")
        self.settings = json.loads(json.dumps(settings))
        self.contests: dict[str, Any] = {}
        if self.path is not None and self.path.is_file():
            before = json.loads(self.path.read_text())
            self.contests = before["contests"] if before["settings"] == self.settings else {}

    def of(self, name: str, call: Callable[[], Contest]) -> Contest:
        """What it came to before, or what it comes to now."""
        if name in self.contests:
            before = self.contests[name]
            return Contest(before["seconds"], before["robust_accuracy"])
        ended = call()
        self.contests[name] = ended.details
        if self.path is not None:
            self.path.write_text(json.dumps({"settings": self.settings, "contests": self.contests}, indent=1))
        return ended

    def forget(self) -> None:
        """All is written where it belongs."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def run(
    fcn: nn.Module,
    robust: nn.Module,
    resnet: nn.Module,
    mnist: tuple[Tensor, Tensor],
    cifar10: tuple[Tensor, Tensor],
    digits: Any,
    size: Size,
    seed: int,
    kept: Kept,
) -> dict[str, Contest]:
    """Every contest, told as it ends."""
    x, y = mnist
    hard = attack_nets.HARD
    planned: dict[str, Callable[[], Contest]] = {
        "AutoPGD, FCN": lambda: autopgd(fcn, x[: size.fcn], y[: size.fcn], MNIST, size.turns(2), seed),
        "PGD, FCN": lambda: plain_pgd(fcn, x[: size.fcn], y[: size.fcn], MNIST, size.rounds, seed),
        "AutoPGD, robust net": lambda: autopgd(robust, x[: size.robust], y[: size.robust], hard, size.turns(5), seed),
    }
    for threat in CIFAR10:
        planned[f"AutoPGD, ResNet-20, {threat}"] = lambda t=threat: autopgd(resnet, *cifar10, t, size.rounds, seed)  # type: ignore[misc]
        planned[f"ensemble, ResNet-20, {threat}"] = lambda t=threat: ensemble(resnet, *cifar10, t, size.rounds, seed)  # type: ignore[misc]
    planned["ensemble, robust net"] = lambda: ensemble(
        robust, x[: size.ensemble], y[: size.ensemble], hard, size.rounds, seed
    )
    fit = digits.x_train[: size.fitted], digits.y_train[: size.fitted]
    planned["universal, FCN"] = lambda: universals(fcn, fit, (x, y), size, seed)
    found = {}
    for name, call in planned.items():
        found[name] = kept.of(name, call)
        print(_rows(name, found[name]), "\n", flush=True)
    return found


def _rows(name: str, one: Contest) -> str:
    rows = [[name, "seconds", "over ours", "accuracy left"]]
    for who in sorted(one.seconds, key=lambda n: median(one.seconds, n)):
        left = f"{one.robust[who]:.3f}" if who in one.robust else ""
        rows.append([who, f"{median(one.seconds, who):.2f}", f"{ratio(one.seconds, who, OURS):.2f}", left])
    return table(rows)


def show(
    found: Mapping[str, Contest],
    loops: Seconds,
    curves: Seconds,
    figures: Mapping[str, float | None],
    checks: Mapping[str, bool],
    before: Mapping[str, Any],
) -> None:
    """What has not been told yet: loops, curve, ratios, checks, who was missing, and the machine."""
    print(table([["FCN", "seconds"], *([name, f"{median(loops, name):.2f}"] for name in loops)]), "\n")
    print(table([["FCN, 20 budgets", "seconds"], *([name, f"{median(curves, name):.2f}"] for name in curves)]), "\n")
    rows = [[name, "-" if v is None else f"{v:.3g}", TARGETS[name]] for name, v in figures.items()]
    print(table([["", "ratio", "target"], *rows]), "\n")
    for name, holds in checks.items():
        higher = [contest for contest, one in found.items() if not one.never_higher]
        print(f"{name}: {'yes' if holds else 'no: ' + '; '.join(higher)}")
    if peers.missing():
        print(f"not installed: {', '.join(peers.missing())}")
    print(f"{before['cpu']}, {before['threads']} threads, load {before['load']} before, {machine()['load']} after")


if __name__ == "__main__":
    main()
