"""How likely a sample is to be right: by V, by its log-prob, by both joined. For best-of-n and weighted votes.

Knows a solution's two numbers, and neither answers nor votes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from treepref.search.tree import joined_value
from treepref.types import Join


class Weighable(Protocol):
    """What a solution is weighed by (`evaluation.Solution`)."""

    @property
    def value(self) -> float | None: ...

    @property
    def logprob(self) -> float | None: ...


Weigh = Callable[[Weighable], float | None]
"""How likely a solution is to be right, in (0, 1); None where that is not known."""


def by_value(row: Weighable) -> float | None:
    """(V + 1) / 2 is the predicted chance of being right. Summing V itself would let one doubtful answer beat
    two that agree: negative V would count against agreement."""
    return None if row.value is None else (row.value + 1) / 2


def by_logprob(row: Weighable) -> float | None:
    """exp of the mean log-prob: what the policy itself prefers."""
    return None if row.logprob is None else math.exp(row.logprob)


def by_both(join: Join) -> Weigh:
    """V and the mean log-prob joined as a fit learned it."""

    def weigh(row: Weighable) -> float | None:
        if row.value is None or row.logprob is None:
            return None
        return (joined_value(row.value, row.logprob, join) + 1) / 2

    return weigh
