"""Operations on a tree that every search shares: grow, exhaust, measure.

Knows what a node holds, not which node is chosen next nor how returns are backed up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from treepref.errors import ModelError, TreeprefError
from treepref.search.base import Expansion, node_path, path_nodes
from treepref.search.rules import FAILED, Prior, leaf_value, mean_logprob
from treepref.types import Completion, Join, Node, Tree

SURE = 1 - 1e-6
"""A value nearer to ±1 than this counts as this where its log-odds are asked for."""


# ---------------------------------------------------------------------------------------------------- walking


def ancestors(node: Node) -> Iterator[Node]:
    """`node`, its parent, and so on up to the root."""
    current: Node | None = node
    while current is not None:
        yield current
        current = current.parent


def is_finished(node: Node) -> bool:
    """Whether the solution ends here by the policy's own decision (EOS), not by a limit."""
    return node.terminal and node.finish == "eos"


def path_mean_logprob(node: Node) -> float:
    """Mean log-prob of all unforced tokens from the root through `node`."""
    chosen: list[float] = []
    for n in path_nodes(node):
        chosen.extend(
            n.logprobs if n.forced is None else (lp for lp, f in zip(n.logprobs, n.forced, strict=True) if not f)
        )
    return mean_logprob(chosen)


def joined_value(value: float, logprob: float, join: Join) -> float:
    """V and the mean log-prob of a solution so far as one value in [-1, 1], which is ours."""
    odds = 2 * math.atanh(max(-SURE, min(SURE, value)))
    return math.tanh((join.value * odds + join.logprob * logprob + join.bias) / 2)


def joined(node: Node, join: Join) -> float:
    """The same of a node's state; no V counts as 0."""
    return joined_value(leaf_value(node), path_mean_logprob(node), join)


def best_first(nodes: Sequence[Node], likelihood: float = 0.0, join: Join | None = None) -> list[Node]:
    """Nodes by V, highest first (none counts as 0); ties: the likelier solution so far, then the older node.

    With `likelihood` above 0 they are ranked by V + likelihood · mean log-prob of the solution so far, with `join` by
    both as `joined` has them; both are ours.
    """
    if join is not None:
        return sorted(nodes, key=lambda n: (-joined(n, join), n.index))
    if likelihood:
        return sorted(nodes, key=lambda n: (-leaf_value(n) - likelihood * path_mean_logprob(n), n.index))
    equals = Counter(map(leaf_value, nodes))  # log-probs are summed for ties alone: this runs at every step of a beam

    def key(node: Node) -> tuple[float, float, int]:
        value = leaf_value(node)
        return -value, -path_mean_logprob(node) if equals[value] > 1 else 0.0, node.index

    return sorted(nodes, key=key)


def best_solution(tree: Tree, join: Join | None = None) -> Node | None:
    """The answer at inference: the finished solution with the highest V; rewards are not looked at. None without one.

    With `join` the highest of V and log-prob joined.

    Ties go to the higher mean log-prob of the whole solution, then to the older node.
    """
    return next(iter(best_first([n for n in tree.nodes if is_finished(n)], join=join)), None)


# ---------------------------------------------------------------------------------------------------- growing


def mark_pending(node: Node, change: int) -> None:
    """Count an expansion that went out (+1) or came back (−1) on the way from `node` to the root.

    A tell that nobody asked for (a journal replayed straight into `tell`) finds nothing pending and changes nothing.
    """
    if change < 0 and not node.pending:
        return
    for n in ancestors(node):
        n.pending += change


def mark_exhausted(node: Node) -> None:
    """Pass exhaustion upward: a node is exhausted when it is terminal, or expanded with every child exhausted."""
    for n in ancestors(node):
        if not (n.terminal or (n.expanded and all(child.exhausted for child in n.children))):
            return
        n.exhausted = True


def add_children(tree: Tree, parent: Node, completions: Sequence[Completion], prior: Prior) -> list[Node]:
    """One child for each distinct completion; returns the child of each completion, in order, repeated where merged.

    Siblings with equal tokens are one child: `samples` counts them, and the first one's log-probs and value stay.
    """
    siblings = {child.tokens: child for child in parent.children}
    made = []
    for completion in completions:
        child = siblings.get(completion.tokens)
        if child is None:
            child = Node(
                index=len(tree.nodes),
                parent=parent,
                tokens=completion.tokens,
                logprobs=completion.logprobs,
                behaviour=completion.behaviour,
                forced=completion.forced,
                finish=completion.finish,
                depth=parent.depth + 1,
                prior=prior(completion),
                value=completion.value,
                score=completion.score,
            )
            siblings[child.tokens] = child
            parent.children.append(child)
            tree.nodes.append(child)
        else:
            child.samples += 1
        made.append(child)
    return made


def grow(
    tree: Tree,
    expansion: Expansion,
    completions: Sequence[Completion],
    rewards: Sequence[float | None],
    prior: Prior,
    may_continue: Callable[[Node], bool],
    confidence: Callable[[Completion], float | None] | None = None,
) -> list[Node]:
    """Expand a leaf with what an engine sent back; returns the child of each completion, in order.

    A child that ended with EOS is terminal with its reward. One that was cut, or that `may_continue` refuses (depth or
    room spent), is terminal with reward −1. Such samples, and those that never came, count in `tree.failed`. Visits and
    totals are left to the caller. `confidence` gives a child its C. A child that a given continuation made, and no
    sample, has 0 samples. A completion or reward that cannot be right is refused before the tree is touched.
    """
    check_tell(tree, expansion, completions, rewards)
    parent = expansion.node
    made = add_children(tree, parent, completions, prior)
    for child in made[expansion.n :]:  # given, not sampled
        child.samples -= 1
    if confidence is not None:
        for child, completion in zip(made, completions, strict=True):
            child.confidence = confidence(completion) if child.confidence is None else child.confidence
    for child, reward in zip(made, rewards, strict=True):
        if child.finish == "eos":
            child.terminal = True
            child.reward = reward if child.reward is None else child.reward
        elif child.finish == "length" or not may_continue(child):
            child.terminal, child.reward = True, FAILED
            tree.failed += 1
        child.exhausted = child.terminal
    tree.failed += expansion.n + len(expansion.given) - len(completions)
    parent.expanded = True
    mark_exhausted(parent)
    return made


def check_tell(
    tree: Tree, expansion: Expansion, completions: Sequence[Completion], rewards: Sequence[float | None]
) -> None:
    """Refuse answers that do not fit the question or would poison every mean above them.

    Raises ValueError for a caller's mistake, ModelError for impossible numbers of an engine, TreeprefError for a reward
    outside the tree's Q range.
    """
    where = f"tree {tree.key!r}, node {node_path(expansion.node) or 'root'}"
    if expansion.node.expanded:
        raise ValueError(f"{where}: already expanded; the same answer was told twice")
    asked = expansion.n + len(expansion.given)
    if len(completions) > asked:
        raise ValueError(f"{where}: {len(completions)} completions for {asked} samples asked")
    if len(rewards) != len(completions):
        raise ValueError(f"{where}: {len(rewards)} rewards for {len(completions)} completions")
    for i, (completion, reward) in enumerate(zip(completions, rewards, strict=True)):
        check_value(completion.value, f"{where}, sample {i}")
        sizes = {len(x) for x in (completion.logprobs, completion.behaviour, completion.forced) if x is not None}
        if sizes != {len(completion.tokens)}:
            raise ModelError(f"{where}, sample {i}: {len(completion.tokens)} tokens, but log-probs or masks of {sizes}")
        if any(math.isnan(lp) for lp in completion.logprobs):
            raise ModelError(f"{where}, sample {i}: a log-prob is NaN; the model is broken or its precision too low")
        if not all(0.0 <= p <= 1.0 for p in completion.choice_probs or ()):
            raise ModelError(f"{where}, sample {i}: choice_probs {completion.choice_probs} are no probabilities")
        low, high = tree.q_range
        if reward is not None and not low <= reward <= high:
            raise TreeprefError(f"{where}, sample {i}: reward {reward} is outside the tree's range [{low}, {high}]")


def check_value(value: float | None, where: str) -> None:
    """Refuse a V that is NaN or outside [-1, 1] with a ModelError."""
    if value is not None and not -1.0 <= value <= 1.0:
        raise ModelError(f"{where}: value {value} is outside [-1, 1]; is the value head read through tanh?")
