"""The questions that benchmarks search on: GSM8K where its files are, else drawn from reasoning-gym's `gsm_symbolic`.

The folder is $TREEPREF_DATA/gsm8k (or ../shared/data/gsm8k) with `train.jsonl`, columns as in the hub's data set.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from treepref.config import SplitConfig, TaskConfig
from treepref.models.chat import encode_prompt
from treepref.tasks.loading import load_splits


def source() -> str:
    return "gsm8k" if _file() else "reasoning-gym gsm_symbolic (no $TREEPREF_DATA/gsm8k here)"


def questions(count: int) -> list[str]:
    """The first `count` questions, always the same ones."""
    if path := _file():
        with path.open() as file:
            return [json.loads(line)["question"] for _, line in zip(range(count), file, strict=False)]
    config = TaskConfig(
        kind="reasoning_gym", name="gsm_symbolic", splits=SplitConfig(labelled=0, train=max(count, 1), eval=1)
    )
    return [problem.text for problem in load_splits(config, seed=0).train[:count]]


def prompts_of(tokenizer: Any, count: int) -> list[tuple[int, ...]]:
    """The questions as token ids of a bare prompt. (The tiny model knows few of their words: no matter for time.)"""
    return [encode_prompt(tokenizer, f"Question: {q}\nAnswer:", chat=False) for q in questions(count)]


def _file() -> Path | None:
    folder = Path(os.environ.get("TREEPREF_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    found = folder / "gsm8k" / "train.jsonl"
    return found if found.is_file() else None
