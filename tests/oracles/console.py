"""The command line as a user sees it: status, standard output and standard error."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass

import pytest

from pinchpoint import cli


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one sentence on stderr; a progress bar may have ended above it."""
        assert self.status == 2
        assert self.out == ""
        *before, last = self.err.splitlines()
        assert len(before) <= 1
        assert last.startswith("error: ")
        return last.removeprefix("error: ")


def pinch(*arguments: object, width: int = 80) -> Said:
    """Run the entry point in this process, on a terminal of that width."""
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["pinchpoint", *map(str, arguments)])
        patch.setattr(cli.out, "width", width)
        patch.setattr(cli.err, "width", width)
        try:
            cli.main()
        except SystemExit as leaving:
            status = leaving.code
    return Said(int(status or 0), out.getvalue(), err.getvalue())
