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

Reward = Callable[[Node, float], float]
"""(node, weight of C) → r(s, a) of the step that made the node."""

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


def length_prior(completion: Completion, power: float) -> float:
    """p = π(a|s) / |a|^λ over the unforced tokens of the step (MCTS-DPO, arXiv 2405.00451, Select); `power` is λ.

    In log space, so that a long step gives a small number and no error. 1 where every token was forced.
    """
    forced = completion.forced or (False,) * len(completion.logprobs)
    chosen = [lp for lp, was_forced in zip(completion.logprobs, forced, strict=True) if not was_forced]
    return math.exp(math.fsum(chosen) - power * math.log(len(chosen))) if chosen else 1.0


def puct_first(parent: Node, child: Node, c: float, first: float) -> float:
    """Q + c · p · √N(parent) / (1 + N(child)), with Q = `first` before the first visit (MCTS-DPO, Select).

    A parent that the running simulation has just expanded counts as visited once: with N = 0 no prior would matter.
    """
    q = child.total / child.visits if child.visits else first
    return q + c * child.prior * math.sqrt(max(1, parent.visits)) / (1 + child.visits)


def state_reward(node: Node, weight: float) -> float:
    """R(s) = O(s) + weight · C(s): MCTS-DPO, eq. 2. O: the outcome at terminals, else 0; C: 0 where it was not asked.

    A solution that was cut or stands unfinished at the depth limit has O = −1, as `grow` says.
    """
    return (node.reward or 0.0) + weight * (node.confidence or 0.0)


def reward_gain(node: Node, weight: float) -> float:
    """r(s, a) = R(s') − R(s): what the step added (MCTS-DPO, Expand). Below the root Q then means R(end) − R(s)."""
    return state_reward(node, weight) - (0.0 if node.parent is None else state_reward(node.parent, weight))


def reward_of_state(node: Node, weight: float) -> float:
    """r(s, a) = R(s'): every step's C adds up along the path, so long solutions gather more of it."""
    return state_reward(node, weight)


def state_value(node: Node) -> float:
    """V(s) = Σ_a N(s, a) · Q(s, a) / Σ_a N(s, a) over the visited children; 0 without any (MCTS-DPO, Back up)."""
    visits = sum(child.visits for child in node.children)
    return math.fsum(child.total for child in node.children) / visits if visits else 0.0


def backup_values(end: Node, weight: float, reward: Reward) -> None:
    """Q(s, a) = r(s, a) + γ · V(s'), N += 1, from where a simulation ended up to the root; γ = 1 (MCTS-DPO, Back up).

    The root counts each simulation once, and its Q is V(root). `total` is kept as Q · N.
    """
    node: Node | None = end
    while node is not None:
        node.visits += 1
        r = 0.0 if node.parent is None else reward(node, weight)
        node.total = node.visits * (r + state_value(node))
        node = node.parent


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
