"""Step-level beam search SBS(B1, B2) guided by the value head (AlphaMath, arXiv 2405.03553, step-level beam search).

Knows no roll-out, no reward and no visit count: candidates are compared by V, and by their log-probs where asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from treepref.search.base import Expansion, node_path
from treepref.search.limits import DEFAULT_LIMITS, Limits, check_at_least_1
from treepref.search.rules import mean_logprob_prior
from treepref.search.tree import best_first, check_value, grow, is_finished, mark_pending
from treepref.types import Completion, Join, Node, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBeam:
    """Keep the `b1` best partial solutions, extend each by `b2` sampled steps. B1 = B2 = 1, temperature 0 is greedy.

    From the root b1·b2 steps are sampled, afterwards b2 for each live beam, all of them at once. Of all new steps of a
    level the best b1 − (finished so far) by V are kept; a finished one leaves the beam. It ends when no beam is live.
    Without values V counts as 0 and the higher mean log-prob of the partial solution decides. A step that was cut, or
    unfinished at the depth limit, is never kept.

    The beam is not stored: the same selection, level by level from the root, finds it again from the tree's children,
    values and `expanded` marks, until it meets a beam that is not expanded yet. So any snapshot goes on where it was.
    """

    b1: int
    b2: int
    likelihood: float = 0.0
    """Weight of a partial solution's mean log-prob beside its V; 0, as AlphaMath has it: V alone."""
    join: Join | None = None
    """How both are joined instead, as a fit learned it."""
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        check_at_least_1(self, "b1", "b2")
        if not (math.isfinite(self.likelihood) and self.likelihood >= 0):
            raise ValueError(f"StepBeam.likelihood is {self.likelihood!r}; it must be finite, and 0 or more")

    def ask(self, tree: Tree) -> list[Expansion]:
        """Every live beam neither expanded nor in flight; empty while the level waits for a tell, and when done."""
        live, _ = self._beam(tree)
        expansions = []
        for node in live:
            if node.expanded or node.pending:
                continue
            n = self.b1 * self.b2 if node.parent is None else self.b2
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
        """Take the candidates of one beam; rewards are recorded and not used. Raises as `check_tell` says."""
        node = expansion.node
        check_value(prefix_value, f"tree {tree.key!r}, node {node_path(node) or 'root'}")
        grow(tree, expansion, completions, rewards, mean_logprob_prior, partial(self.limits.may_continue, tree))
        mark_pending(node, -1)
        tree.simulations += 1
        if node.value is None:
            node.value = prefix_value

    def done(self, tree: Tree) -> bool:
        live, _ = self._beam(tree)
        return not live

    def answer(self, tree: Tree) -> Node | None:
        """Of the solutions that finished within the beam the best; None where none did."""
        _, finished = self._beam(tree)
        return next(iter(best_first(finished, self.likelihood, self.join)), None)

    def _beam(self, tree: Tree) -> tuple[list[Node], list[Node]]:
        """The live beams of the deepest level reached and all solutions that finished within the beam."""
        live = [tree.root] if self.limits.room(tree, tree.root) > 0 else []
        finished: list[Node] = []
        while live and all(node.expanded for node in live):
            candidates = [child for node in live for child in node.children if not child.terminal or is_finished(child)]
            # AlphaMath, step-level beam search: keep the best B1 − finished; what finishes leaves the beam.
            kept = best_first(candidates, self.likelihood, self.join)[: self.b1 - len(finished)]
            finished += filter(is_finished, kept)
            live = [node for node in kept if not node.terminal]
        return live, finished
