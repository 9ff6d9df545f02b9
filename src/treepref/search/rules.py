"""The rules of a search as plain functions, passed to it as arguments: selection, prior, evaluation, backup.

A rule sees nodes and completions alone. It knows no budget, no order of simulations and no other rule.
A further rule is a further function here with the same signature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from treepref.types import Completion, Node

Score = Callable[[Node, Node, float], float]
"""(parent, child, c) → how much the child deserves the next simulation; the largest is taken."""

Prior = Callable[[Completion], float]
"""Prior P of a child from the completion that made it."""

Backup = Callable[[Node, float], None]
"""Carries a return from a node up to the root."""

FAILED = -1.0
"""Reward of a solution that was cut or stands unfinished at the depth limit: as bad as a wrong answer."""


def puct_alphamath(parent: Node, child: Node, c: float) -> float:
    """Q + c · P · √N(parent) / (1 + N(child)), with Q = 0 before the first visit.

    Expansions in flight count as visits in the exploration term alone, so that leaves asked at once spread out. With
    one leaf in flight nothing is pending here and the rule is the published one.
    """
    q = child.total / child.visits if child.visits else 0.0
    # AlphaMath (arXiv 2405.03553), MCTS, Selection. N + pending: WU-UCT (arXiv 1810.11755), its modified UCT.
    return q + c * child.prior * math.sqrt(parent.visits + parent.pending) / (1 + child.visits + child.pending)


def mean_logprob(logprobs: Sequence[float], forced: Sequence[bool] | None = None) -> float:
    """Mean log-prob of the tokens that the policy chose; 0 where it chose none (every token forced, or no token)."""
    chosen = (
        logprobs if forced is None else [lp for lp, was_forced in zip(logprobs, forced, strict=True) if not was_forced]
    )
    return math.fsum(chosen) / len(chosen) if chosen else 0.0


def mean_logprob_prior(completion: Completion) -> float:
    """P = exp(mean token log-prob) over the unforced tokens of the step (AlphaMath, MCTS, Selection)."""
    return math.exp(mean_logprob(completion.logprobs, completion.forced))


def leaf_value(node: Node) -> float:
    """What an unfinished leaf is worth: V, or 0 while there is no value head (AlphaMath, MCTS, Evaluation)."""
    return 0.0 if node.value is None else node.value


def outcome(node: Node) -> float:
    """What a terminal node is worth: its reward; V where that is not to be known (inference); 0 without either."""
    return leaf_value(node) if node.reward is None else node.reward


def backup_mean(node: Node, value: float) -> None:
    """Undiscounted running mean from `node` to the root: N += 1, total += value (AlphaMath, MCTS, Backup)."""
    current: Node | None = node
    while current is not None:
        current.visits += 1
        current.total += value
        current = current.parent
