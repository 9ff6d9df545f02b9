"""What a run leaves for people and programs beside its database: `run.log`, and `metrics.jsonl` with a line a step.

Both are appended to, and nothing reads them back: losing them loses no work, so a full disk is no error here.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOG, METRICS = "run.log", "metrics.jsonl"


class RunLog:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def line(self, text: str) -> None:
        """A line with the time before it."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._append(LOG, "".join(f"{now} {part}\n" for part in text.splitlines()))

    def step(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """An optimizer step. One that is done again after a kill stands there twice: the later line counts."""
        self._append(METRICS, json.dumps({"time": round(time.time(), 3), "stage": stage, **metrics}) + "\n")

    def _append(self, name: str, text: str) -> None:
        with contextlib.suppress(OSError), (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(text)
