"""Monte Carlo tree search over reasoning steps (AlphaMath, arXiv 2405.03553; the search of SVPO, arXiv 2406.10858).

Knows no engine, no text and no ground truth: what an answer is worth comes in with `tell`. The rules are arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from treepref.search.base import Expansion, node_path
from treepref.search.limits import DEFAULT_LIMITS, Limits, check_at_least_1
from treepref.search.rules import (
    FAILED,
    Backup,
    Prior,
    Score,
    backup_mean,
    leaf_value,
    mean_logprob_prior,
    outcome,
    puct_alphamath,
)
from treepref.search.tree import (
    best_solution,
    check_tell,
    check_value,
    grow,
    joined,
    mark_pending,
)
from treepref.types import Completion, Join, Node, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Mcts:
    """The constants and rules of one MCTS; the state is the tree alone. The defaults generate data as AlphaMath does.

    A simulation selects a leaf from the root by the largest score among children that are not exhausted, expands it
    with `children` samples, backs up every new terminal child as it is created, and then the leaf's own V. Siblings
    with equal tokens are one child, which backs up once, however many samples it stands for. So after k simulations
    the root's visits are k + the distinct terminal nodes.

    `evaluate="value"`: a leaf's V came with the step that made it (the root's with the prompt); none counts as 0.
    `evaluate="rollout"`: a leaf without a value is asked for twice. First with n = 1 and `delimiter=None`: the sampled
    rest of the solution sets the leaf's `value` to its outcome and is not kept as a child. Then, as the same
    simulation, for its children. A journal must tell the two expansions of a node apart by their delimiter.

    With several leaves in flight, ask after every tell: then the order of asks, and so the tree, is the same on replay.
    """

    simulations: int = 40
    children: int = 5
    """Samples at each expansion."""
    root_children: int | None = None
    """Samples at the root; None takes `children`."""
    c: float = 1.5
    """Exploration: 1.5 to generate data, 1.25 at inference."""
    limits: Limits = DEFAULT_LIMITS
    leaves_in_flight: int = 1
    """Leaves of one tree expanded at once; above 1 pending expansions count as visits in the exploration term."""
    evaluate: Literal["value", "rollout"] = "value"
    join: Join | None = None
    """How V and log-prob are joined where a leaf or, at inference, a solution is valued; None: V alone."""
    seed: int = 0
    """Of the draws between equal scores."""
    score: Score = puct_alphamath
    prior: Prior = mean_logprob_prior
    backup: Backup = backup_mean

    def __post_init__(self) -> None:
        check_at_least_1(self, "simulations", "children", "root_children", "leaves_in_flight")
        if self.evaluate not in ("value", "rollout"):
            raise ValueError(f"Mcts.evaluate is {self.evaluate!r}; it must be 'value' or 'rollout'")

    def ask(self, tree: Tree) -> list[Expansion]:
        """The next leaves, marked pending in the tree; empty when done or when every open leaf is in flight."""
        expansions: list[Expansion] = []
        if self.done(tree):
            return expansions
        while tree.root.pending < min(self.leaves_in_flight, self.simulations - tree.simulations):
            leaf = self._select(tree)
            if leaf is None:
                break
            mark_pending(leaf, +1)
            expansions.append(self._expansion(tree, leaf))
        return expansions

    def tell(
        self,
        tree: Tree,
        expansion: Expansion,
        completions: Sequence[Completion],
        rewards: Sequence[float | None],
        prefix_value: float | None = None,
    ) -> None:
        """Take the samples of an expansion. No completion at all closes the leaf: it is expanded and has no child.

        Raises ValueError, ModelError or TreeprefError (see `check_tell`) before the tree is touched.
        """
        leaf = expansion.node
        check_value(prefix_value, f"tree {tree.key!r}, node {node_path(leaf) or 'root'}")
        if expansion.delimiter is None:
            self._tell_rollout(tree, expansion, completions, rewards)
            return
        first_new = len(tree.nodes)
        grow(tree, expansion, completions, rewards, self.prior, partial(self.limits.may_continue, tree))
        mark_pending(leaf, -1)
        tree.simulations += 1
        for child in tree.nodes[first_new:]:
            if child.terminal:
                self.backup(child, self._worth(child) if child.reward is None else outcome(child))
            elif self.evaluate == "rollout":
                child.value = None  # comes with the child's own rollout
        if leaf.value is None:
            leaf.value = prefix_value
        self.backup(leaf, self._worth(leaf))

    def done(self, tree: Tree) -> bool:
        """Every simulation is spent, no leaf is open, or the prompt alone fills the context."""
        return tree.simulations >= self.simulations or tree.root.exhausted or self.limits.room(tree, tree.root) < 1

    def answer(self, tree: Tree) -> Node | None:
        """The finished solution with the highest V, or None."""
        return best_solution(tree, self.join)

    def _worth(self, node: Node) -> float:
        """V of a state whose outcome is not known. A rollout's outcome and a bare prompt's value stand alone."""
        if self.join is None or self.evaluate == "rollout" or node.value is None or node.parent is None:
            return leaf_value(node)
        return joined(node, self.join)

    def _select(self, tree: Tree) -> Node | None:
        """The leaf that the next simulation expands, or None while all that is open is in flight."""
        simulation = tree.simulations + tree.root.pending
        full: set[int] = set()  # nodes below which every open leaf is in flight
        node = tree.root
        while node.expanded:
            open_children = [ch for ch in node.children if not (ch.exhausted or ch.index in full or _in_flight(ch))]
            if open_children:
                node = self._best_child(tree, node, open_children, simulation)
            elif node.parent is None:
                return None
            else:
                full.add(node.index)
                node = node.parent
        return None if _in_flight(node) else node

    def _best_child(self, tree: Tree, parent: Node, children: Sequence[Node], simulation: int) -> Node:
        scores = [self.score(parent, child, self.c) for child in children]
        return draw_best(tree, parent, children, scores, simulation, self.seed)

    def _expansion(self, tree: Tree, leaf: Node) -> Expansion:
        limits = self.limits
        if self.evaluate == "rollout" and leaf.value is None:
            longest = (limits.max_depth - leaf.depth) * limits.max_step_tokens
            return limits.solution(tree, leaf, 1, longest, want_value=True)
        width = self.children if leaf.parent is not None or self.root_children is None else self.root_children
        return limits.step(tree, leaf, width, want_value=True)

    def _tell_rollout(
        self, tree: Tree, expansion: Expansion, completions: Sequence[Completion], rewards: Sequence[float | None]
    ) -> None:
        """Score a leaf by where one sampled continuation ended; it is backed up when the leaf is expanded."""
        check_tell(tree, expansion, completions, rewards)
        leaf = expansion.node
        if not completions:
            leaf.value = 0.0  # unknown counts as 0, as a missing V does
        elif completions[0].finish != "eos":
            leaf.value = FAILED
        else:
            known = completions[0].value if rewards[0] is None else rewards[0]
            leaf.value = 0.0 if known is None else known
        if not completions or completions[0].finish == "length":
            tree.failed += 1
        mark_pending(leaf, -1)


def draw_best(
    tree: Tree, parent: Node, children: Sequence[Node], scores: Sequence[float], simulation: int, seed: int
) -> Node:
    """The child with the highest score; between equals a draw."""
    best = max(scores)
    tied = [child for child, score in zip(children, scores, strict=True) if score == best]
    if len(tied) == 1:
        return tied[0]
    # A draw without state: the same tree at the same simulation draws the same child, so a replay is exact.
    draw = hashlib.blake2b(f"{seed}\0{simulation}\0{parent.index}\0{tree.key}".encode(), digest_size=8)
    return tied[int.from_bytes(draw.digest(), "little") % len(tied)]


def _in_flight(node: Node) -> bool:
    return node.pending > 0 and not node.expanded
