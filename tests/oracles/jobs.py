"""Jobs that end in every way; a worker process finds them by name."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from pinchpoint.errors import ModelError


def refuse() -> None:
    raise ModelError("a", "b", "c")


def break_down() -> None:
    raise RuntimeError("no mistake of the user")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nap(seconds: float, path: Path) -> str:
    path.write_text(str(os.getpid()))
    time.sleep(seconds)
    return "slept"


def imported(name: str) -> bool:
    return name in sys.modules
