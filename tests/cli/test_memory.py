"""Memory of whole audits: below 4 GB for networks of less than 100 million parameters on 1000 images of ImageNet's size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from pinchpoint.utils.memory import give_back

LARGEST = 4e9
"""Bytes."""
MEASURED = """
import resource, sys
from pinchpoint.cli import main
try:
    main()
except SystemExit as stop:
    status = stop.code or 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "status", status, file=sys.stderr)
"""


def peak(folder: Path, *arguments: object) -> int:
    """Bytes that the command held at most, in a process of its own; Linux counts in kilobytes."""
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    last = found.stderr.splitlines()[-1].split()
    assert last[0] == "peak", found.stderr
    assert last[3] == "0", found.stderr
    return 1024 * int(last[1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much was held at most, in kilobytes")
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "convnext_base",
        "densenet201",
        "efficientnet_b7",
        "resnext101_32x8d",
        "swin_base_patch4_window7_224",
        "vit_base_patch16_224",
    ],
)
def test_an_audit_of_a_large_network(tmp_path, name, capsys):
    """About three minutes each on two cores."""
    x = np.random.default_rng(0).integers(0, 256, (1000, 3, 224, 224), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_test=x, y_test=np.arange(1000), x_train=x[:2], y_train=np.arange(2))
    (tmp_path / "large.py").write_text(
        "from pinchpoint.utils.torchvision import import_torchvision\nimport_torchvision()\nimport timm, torch\n"
        f"def made():\n    torch.manual_seed(0)\n    return timm.create_model({name!r})\n"
    )
    held = peak(
        tmp_path,
        "audit",
        "py:large:made",
        *("--data", "npz:data.npz", "--normalize", "none", "--budget", "90s", "--quick", "--out", "out"),
    )
    report = json.loads((tmp_path / "out" / "audit.json").read_text())
    with capsys.disabled():
        print(f"\n{name}: {report['timing']['seconds']:.0f} s, {held / 1e9:.2f} GB")
    assert report["subject"]["parameters"] < 1e8
    assert report["pinch_points"]
    assert held < LARGEST, f"{held / 1e9:.2f} GB"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says how much is held now")
def test_what_is_free_goes_back():
    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = held()
    blocks = [bytes([row % 256]) * 50_000 for row in range(4000)]  # too small to be given back one by one
    kept = blocks[::400]
    full = held()
    del blocks
    give_back(nn.Linear(1, 1))
    assert full - before > 150e6
    assert held() - before < 50e6
    assert len(kept) == 10
