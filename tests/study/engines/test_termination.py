"""SIGTERM in a worker: it ends, silently, and what it was writing is gone, wherever it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

WORKER = """
import ctypes, os, signal, sys, time
from pathlib import Path
from pinchpoint.study.engines.local import Job, attempt
from pinchpoint.study.store.store import half_written

def stage():
    with half_written(Path(sys.argv[1])) as directory:
        Path(directory, "weights").write_text("half of them")
        terminate = lambda: os.kill(os.getpid(), signal.SIGTERM)
        if sys.argv[2] == "in a call-back of C":
            ctypes.CFUNCTYPE(None)(terminate)()
        else:
            terminate()
        time.sleep(1)
    print("went on")

attempt(Job(("trained", "x"), stage, ()))
"""


@pytest.mark.parametrize("where", ["in a call-back of C", "between two lines"])
def test_a_terminated_worker_clears_away_and_ends(tmp_path, where):
    ended = subprocess.run([sys.executable, "-c", WORKER, str(tmp_path), where], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "")
    assert list(tmp_path.iterdir()) == []
