"""Independent solutions: whole as a tree of depth one, or step by step as a tree of their common beginnings.

Whole ones serve greedy decoding, self-consistency, best-of-n and rejection sampling; those in steps tell what came of
each step, without any search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from treepref.search.base import Expansion, node_path
from treepref.search.limits import DEFAULT_LIMITS, Limits, check_at_least_1
from treepref.search.rules import backup_mean, mean_logprob_prior, outcome
from treepref.search.tree import best_solution, check_value, grow, mark_pending
from treepref.types import Completion, Node, Tree

WHOLE_SOLUTIONS = Limits(max_tokens=512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """One ask for `n` whole solutions, and for the scores of those that are given. Greedy is n = 1, temperature 0.

    Every sample backs up its outcome, so a child's visits are its samples, and Q of the root is the mean outcome.
    """

    n: int
    limits: Limits = WHOLE_SOLUTIONS
    """Steps mean nothing here."""
    want_value: bool = True
    given: tuple[tuple[int, ...], ...] = ()
    """Whole solutions that are children beside the samples: scored by the policy, not sampled."""

    def __post_init__(self) -> None:
        check_at_least_1(self, "n")

    def ask(self, tree: Tree) -> list[Expansion]:
        if self.done(tree) or tree.root.pending:
            return []
        mark_pending(tree.root, +1)
        room, asked = self.limits.room(tree, tree.root), {"want_value": self.want_value, "given": self.given}
        return [self.limits.solution(tree, tree.root, self.n, room, **asked)]

    def tell(
        self,
        tree: Tree,
        expansion: Expansion,
        completions: Sequence[Completion],
        rewards: Sequence[float | None],
        prefix_value: float | None = None,
    ) -> None:
        """Take the solutions; a solution that did not reach EOS failed. Raises as `check_tell` says."""
        root = expansion.node
        check_value(prefix_value, f"tree {tree.key!r}, root")
        made = grow(tree, expansion, completions, rewards, mean_logprob_prior, lambda child: False)
        mark_pending(root, -1)
        tree.simulations += 1
        root.value = prefix_value
        for child in made:
            backup_mean(child, outcome(child))

    def done(self, tree: Tree) -> bool:
        """The solutions are there, or the prompt alone fills the context."""
        return tree.root.expanded or self.limits.room(tree, tree.root) < 1

    def answer(self, tree: Tree) -> Node | None:
        """Best of n by value: the finished solution with the highest V, or None."""
        return best_solution(tree)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSampling:
    """`n` independent solutions sampled step by step; those that begin alike share nodes.

    A node's visits are the solutions through it, and its Q is their mean outcome: an unbiased estimate of V^π, for
    no sample depends on what became of another.
    """

    n: int
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        check_at_least_1(self, "n")

    def ask(self, tree: Tree) -> list[Expansion]:
        """Every open node neither expanded nor in flight, by as many samples as it stands for."""
        expansions = []
        for node in tree.nodes:
            if node.terminal or node.expanded or node.pending or self.limits.room(tree, node) < 1:
                continue
            n = self.n if node.parent is None else node.samples
            expansions.append(self.limits.step(tree, node, n, want_value=True))
            mark_pending(node, +1)
        return expansions

    def tell(
        self,
        tree: Tree,
        expansion: Expansion,
        completions: Sequence[Completion],
        rewards: Sequence[float | None],
        prefix_value: float | None = None,
    ) -> None:
        """Take one more step of the solutions that share a node. Raises as `check_tell` says."""
        check_value(prefix_value, f"tree {tree.key!r}, node {node_path(expansion.node) or 'root'}")
        made = grow(tree, expansion, completions, rewards, mean_logprob_prior, partial(self.limits.may_continue, tree))
        mark_pending(expansion.node, -1)
        tree.simulations += 1
        if expansion.node.value is None:
            expansion.node.value = prefix_value
        for child in made:
            if child.terminal:
                backup_mean(child, outcome(child))

    def done(self, tree: Tree) -> bool:
        """Every solution has come to its end, or the prompt alone fills the context."""
        return tree.root.exhausted or self.limits.room(tree, tree.root) < 1
