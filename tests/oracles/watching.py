"""What a study tells while it runs, written down."""

from __future__ import annotations

import threading

from pinchpoint.study import Stage


class Notes:
    """A watcher that writes down what it is told."""

    def __init__(self) -> None:
        self.began: list[Stage] = []
        self.done: list[tuple[Stage, str | None]] = []
        self.threads: set[threading.Thread] = set()

    def started(self, stage: Stage) -> None:
        self.began.append(stage)

    def ended(self, stage: Stage, reason: str | None) -> None:
        self.done.append((stage, reason))
        self.threads.add(threading.current_thread())
