"""Comparing LaTeX answers with math-verify. Imported in a worker process alone, as it may hang. Knows no limit."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from treepref.types import Problem

logging.disable(logging.WARNING)  # the library warns that its time limits are off: the worker can be killed instead


def agrees(found: str, problem: Problem) -> bool:
    """Whether the content of a box means the same as the gold answer, sign included."""
    return bool(verify(_parsed(problem.answer), _parsed(found), timeout_seconds=None))


@lru_cache(maxsize=4096)
def _parsed(latex: str) -> list[Any]:
    return parse(rf"\boxed{{{latex}}}", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)
