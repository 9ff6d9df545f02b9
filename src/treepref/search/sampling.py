"""Independent whole solutions as a tree of depth one: greedy, self-consistency, best-of-n, rejection sampling.

Knows no step: a child is a solution from the end of the prompt to EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from treepref.search.base import Expansion, check_limits
from treepref.search.rules import backup_mean, mean_logprob_prior, outcome
from treepref.search.tree import best_solution, check_value, grow, mark_pending, tokens_left
from treepref.types import Completion, Node, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """One ask for `n` whole solutions, and for the scores of those that are given. Greedy is n = 1, temperature 0.

    Every sample backs up its outcome, so a child's visits are its samples, and Q of the root is the mean outcome.
    """

    n: int
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    """Longest solution in tokens; a longer one failed."""
    max_context: int | None = None
    """Longest prompt + solution in tokens; None: no limit."""
    want_value: bool = True
    given: tuple[tuple[int, ...], ...] = ()
    """Whole solutions that are children beside the samples: scored by the policy, not sampled."""

    def __post_init__(self) -> None:
        check_limits(self, "n", "max_tokens")

    def ask(self, tree: Tree) -> list[Expansion]:
        if self.done(tree) or tree.root.pending:
            return []
        mark_pending(tree.root, +1)
        room = tokens_left(tree, tree.root, self.max_tokens, self.max_context)
        return [
            Expansion(tree.root, self.n, self.temperature, room, self.top_p, None, self.want_value, given=self.given)
        ]

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
        return tree.root.expanded or tokens_left(tree, tree.root, self.max_tokens, self.max_context) < 1

    def answer(self, tree: Tree) -> Node | None:
        """Best of n by value: the finished solution with the highest V, or None."""
        return best_solution(tree)
