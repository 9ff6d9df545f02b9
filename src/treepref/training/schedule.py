"""Which examples an optimizer step takes, and at which learning rate: functions of the data, the seed and the step.

Knows no model and no loss; nothing here is drawn while training, so a resumed run needs no random state.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from treepref.training.examples import Example


@dataclass(frozen=True, slots=True)
class PlannedStep:
    epoch: int
    members: tuple[int, ...]
    """Indices into the examples, sorted by id."""


def plan_steps(
    ordered: Sequence[Example], epochs: int, seed: int, *, batch_trees: int | None, batch_tokens: int | None
) -> list[PlannedStep]:
    """Which examples each optimizer step takes: a seeded shuffle an epoch, cut into steps of like size.

    No step has more than `batch_trees` examples, or about `batch_tokens` trained tokens (one of the two is given).
    """
    if (batch_trees is None) == (batch_tokens is None):
        raise ValueError("give either batch_trees or batch_tokens")
    sizes = [1 if batch_tokens is None else max(1, e.trained_tokens) for e in ordered]
    all_sizes = sum(sizes)
    per_epoch = math.ceil(all_sizes / (batch_trees or batch_tokens or 1))
    plan = []
    for epoch in range(epochs):
        order = list(range(len(ordered)))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        steps: list[list[int]] = [[] for _ in range(per_epoch)]
        before = 0
        for index in order:
            steps[before * per_epoch // all_sizes].append(index)
            before += sizes[index]
        plan.extend(PlannedStep(epoch, tuple(members)) for members in steps if members)
    return plan


def lr_factor(
    step: int, total_steps: int, warmup_ratio: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """Learning rate of a step as a share of its peak: linear warm-up, then the schedule down to (almost) 0."""
    warmup = math.ceil(warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[schedule]
