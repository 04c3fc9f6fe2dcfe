"""How fast a ResNet-18 is measured, beside WeightWatcher and plain SVDs: ``python -m benchmarks.measure --json FILE``.

Random weights, seed 0, inputs of 32 x 32. WeightWatcher's ``analyze`` measures spectra of the layers and fits power laws to
them; ``profile`` measures four views, ranks and certified norms. All calls share one process and all cores and take turns.
"""

from __future__ import annotations

import json
import logging
import warnings

import torch
from torch import Tensor, nn

from benchmarks.common import (
    arguments,
    in_own_process,
    interleaved,
    machine,
    median,
    peak_megabytes,
    ratio,
    table,
    versions,
    write,
)
from pinchpoint.measure import layers, profile, singular_values, spectra
from pinchpoint.utils.torchvision import import_torchvision

INPUT = (3, 32, 32)
WIDTHS = (128, 256, 512, 1024, 2048)
LABELS = {
    "profile": "profile: four views, ranks, norms",
    "profile without norms": "profile without convolution norms",
    "spectra": "singular values of all layers",
    "svdvals": "torch.linalg.svdvals, float64",
    "weightwatcher": "WeightWatcher analyze",
}


def resnet18() -> nn.Module:
    import_torchvision()  # timm imports it
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model("resnet18", num_classes=1000).eval()
    return model


def weightwatcher(model: nn.Module) -> object:
    """Its default analysis, without plots and log."""
    from weightwatcher import WeightWatcher

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WeightWatcher(model=model, log_level=logging.ERROR).analyze(plot=False)


def plain_svds(model: nn.Module) -> list[Tensor]:
    return [torch.linalg.svdvals(layer.matrix) for layer in layers(model) if layer.diagonal is None]


def growth(width: int) -> dict[str, float]:
    """Seconds for one layer of width x width."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(width, width)
    layer.weight.data = torch.randn(width, width, generator=generator) / width**0.5
    matrix = layer.weight.detach().double()
    seconds = interleaved(
        {
            "singular_values": lambda: singular_values(matrix),
            "profile": lambda: profile(layer),
            "svdvals": lambda: torch.linalg.svdvals(matrix),
        },
        repeats=3 if width < 1024 else 1,
    )
    return {"width": width} | {name: median(seconds, name) for name in seconds}


def main() -> None:
    args = arguments("Time profiles and spectra against WeightWatcher and plain SVDs.", ["--peak"])
    model = resnet18()
    if args.peak:
        before = peak_megabytes()
        profile(model, input_shape=INPUT)
        print(json.dumps({"before": before, "peak": peak_megabytes()}))
        return
    peak = in_own_process("benchmarks.measure", "--peak")
    seconds = interleaved(
        {
            "profile": lambda: profile(model, input_shape=INPUT),
            "profile without norms": lambda: profile(model, norms=False),
            "spectra": lambda: spectra(model),
            "svdvals": lambda: plain_svds(model),
            "weightwatcher": lambda: weightwatcher(model),
        }
    )
    ratios = {
        "profile_speedup_over_weightwatcher": ratio(seconds, "weightwatcher", "profile"),
        "spectra_speedup_over_weightwatcher": ratio(seconds, "weightwatcher", "spectra"),
        "spectra_speedup_over_svdvals": ratio(seconds, "svdvals", "spectra"),
        "profile_seconds": median(seconds, "profile"),
        "spectra_seconds": median(seconds, "spectra"),
        "profile_peak_megabytes": peak["peak"],
        "megabytes_before_profile": peak["before"],
    }
    grown = [growth(width) for width in WIDTHS]
    write(
        args.json,
        {
            "ratios": ratios,
            "seconds": seconds,
            "growth": grown,
            "machine": machine(),
            "versions": versions("torch", "timm", "weightwatcher"),
        },
    )
    print("ResNet-18, random weights, 32 x 32: medians of rounds that take turns\n")
    print(table([["", "seconds"], *([label, f"{median(seconds, name):.2f}"] for name, label in LABELS.items())]), "\n")
    print(table([["", "value"], *([name, f"{value:.2f}"] for name, value in ratios.items())]), "\n")
    head = ["width", "singular_values", "profile", "svdvals"]
    print(table([head, *([str(row["width"]), *(f"{row[key]:.3f}" for key in head[1:])] for row in grown)]))


if __name__ == "__main__":
    main()
