"""Scoring an answer with a reasoning-gym task's own scorer. Imported in a worker process alone."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from treepref.tasks.gym import create, decode_plain
from treepref.tasks.numbers import parse_number
from treepref.types import Problem


def agrees(found: str, problem: Problem) -> bool:
    """Full score, and where the gold answer is a number, that number: some scorers let a wrong sign or a part pass."""
    gold = parse_number(problem.answer)
    if gold is not None and parse_number(found) != gold:
        return False
    meta = decode_plain(problem.meta["metadata"])
    entry = {"question": problem.text, "answer": problem.answer or None, "metadata": meta}
    scorer = _dataset(problem.meta["task"], json.dumps(problem.meta["params"], sort_keys=True))
    return bool(scorer.score_answer(found, entry=entry) == 1.0)


@lru_cache(maxsize=16)
def _dataset(name: str, params: str) -> Any:
    return create(name, json.loads(params), seed=0, size=1)
