"""What every benchmark shares: timing side by side, peak memory, the machine, and how results are written."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Seconds = dict[str, list[float]]


def arguments(description: str, own: Sequence[str] = ()) -> argparse.Namespace:
    """``--json FILE``, and the flags a benchmark passes to itself in a process of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write ratios, growth, machine and versions here")
    for flag in own:
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    repeats: int = 3,
    *,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Seconds of each call, after one round that is not counted. Rounds take turns, so that a busy minute hits all."""
    seconds: Seconds = {name: [] for name in contestants}
    for round_ in range(repeats + warm_up):
        for name, call in contestants.items():
            start = clock()
            call()
            if round_ >= warm_up:
                seconds[name].append(clock() - start)
    return seconds


def median(seconds: Seconds, name: str) -> float:
    return statistics.median(seconds[name])


def ratio(seconds: Seconds, slow: str, fast: str) -> float:
    """Median over rounds of how many times ``slow`` takes as long as ``fast`` did in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def peak_megabytes() -> float:
    """The most memory this process has held so far."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def in_own_process(module: str, flag: str) -> Any:
    """What ``python -m module flag`` prints last, read as JSON."""
    done = subprocess.run([sys.executable, "-m", module, flag], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"python -m {module} {flag} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write(path: Path | None, results: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
