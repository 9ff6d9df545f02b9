"""Monte Carlo tree search whose simulations run on to the end of a solution (MCTS-DPO, arXiv 2405.00451).

Knows no engine, no text and no rule for pairs. Ground truth comes in with `tell` alone, unless the caller puts a
reference solution into the rules (`reference`) or into the question asked (`choice`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from treepref.search.base import Expansion, solution_tokens
from treepref.search.limits import Limits, check_at_least_1
from treepref.search.mcts import draw_best
from treepref.search.rules import (
    Reward,
    backup_values,
    length_prior,
    puct_first,
    reward_gain,
    reward_of_state,
    state_reward,
)
from treepref.search.self_evaluation import confidence, reference_step
from treepref.search.tree import grow, mark_pending
from treepref.types import Choice, Completion, Node, Tree

PUBLISHED_LIMITS = Limits(max_depth=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeMcts:
    """The constants of one search; the state is the tree alone.

    A simulation goes down from the root by PUCT; where it comes to a leaf, the leaf is expanded and the simulation goes
    on among its children, until it reaches a terminal node: a finished solution, one that was cut, or the depth limit.
    Then it is backed up, once. So after k simulations the root has k visits.

    One leaf of a tree is open at a time, for a simulation's next expansion depends on its last: search many trees at
    once instead. A simulation takes several expansions, and where it stands is read off the tree: the node that was
    expanded last and has no visits yet. No other state is kept, so a replay of the tells goes on where the search
    stopped.

    A terminal child is visited when a simulation ends in it, not when it is made, and once: what is wholly visited is
    passed over. An expansion that brings nothing closes its leaf, and the simulation goes on beside it; where nothing
    is open any more it ends, with V = 0 at the node where it stands.
    """

    simulations: int = 5
    children: int = 3
    """Samples at each expansion below the root (the paper's b2)."""
    root_children: int | None = 5
    """Samples at the root (b1); None takes `children`."""
    c: float = 1.0
    """Exploration constant of PUCT."""
    length_power: float = 1.0
    """λ of the prior π(a|s) / |a|^λ."""
    limits: Limits = PUBLISHED_LIMITS
    """With a `choice`, leave room for its suffix in `max_context`."""
    seed: int = 0
    """Of the draws between equal scores."""
    weight: float = 0.0
    """Factor on C in the reward R = O + weight · C."""
    choice: Choice | None = None
    """The self-evaluation question, asked after each step; option 0 means "right"."""
    reference: tuple[tuple[int, ...], ...] = ()
    """Steps of the problem's reference solution, EOS in the last: each is a child where the path is its beginning."""
    reward: Reward = reward_gain

    def __post_init__(self) -> None:
        check_at_least_1(self, "simulations", "children", "root_children")
        if self.weight < 0:
            raise ValueError(f"EpisodeMcts.weight is {self.weight}; it must be at least 0")

    @property
    def q_range(self) -> tuple[float, float]:
        """What Q can span: outcomes in [−1, 1], and C as often as the reward counts it."""
        if self.choice is None:
            return -1.0, 1.0
        if self.reward is reward_of_state:
            return -1.0, 1.0 + self.weight * self.limits.max_depth
        return -1.0 - self.weight, 1.0 + self.weight

    def ask(self, tree: Tree) -> list[Expansion]:
        """The leaf that the running simulation expands next; empty when done or while that leaf is in flight."""
        if self.done(tree) or tree.root.pending:
            return []
        leaf = self._select(tree)
        mark_pending(leaf, +1)
        width = self.root_children if leaf.parent is None and self.root_children is not None else self.children
        given = reference_step(self.reference, leaf.depth, solution_tokens(leaf))
        return [self.limits.step(tree, leaf, width, choice=self.choice, given=given)]

    def tell(
        self,
        tree: Tree,
        expansion: Expansion,
        completions: Sequence[Completion],
        rewards: Sequence[float | None],
        prefix_value: float | None = None,
    ) -> None:
        """Take the samples of an expansion and run on, through simulations that need none, to the next leaf.

        Raises ValueError, ModelError or TreeprefError (see `check_tell`) before the tree is touched.
        """
        leaf = expansion.node
        may_continue = partial(self.limits.may_continue, tree)
        grow(tree, expansion, completions, rewards, self._prior, may_continue, confidence)
        mark_pending(leaf, -1)
        tree.q_range = self.q_range
        self._run_on(tree)

    def done(self, tree: Tree) -> bool:
        """Every simulation is spent, nothing is open, or the prompt alone fills the context."""
        return tree.simulations >= self.simulations or not _open(tree.root) or self.limits.room(tree, tree.root) < 1

    def _run_on(self, tree: Tree) -> None:
        """End simulations until one comes to a leaf that must be expanded, or all are spent."""
        while tree.simulations < self.simulations:
            end = self._select(tree)
            ended = end.terminal or (end.expanded and not end.visits)
            if not ended:
                return
            backup_values(end, self.weight, self.reward)
            tree.simulations += 1

    def _select(self, tree: Tree) -> Node:
        """Where the running simulation comes to: a leaf, a terminal node, or a node with nothing open below it."""
        last = tree.nodes[-1].parent  # the node that was expanded last
        node = tree.root if last is None or last.visits else last
        while node.expanded:
            open_children = [child for child in node.children if _open(child)]
            if not open_children:
                break
            scores = [puct_first(node, child, self.c, self._first(child)) for child in open_children]
            node = draw_best(tree, node, open_children, scores, tree.simulations, self.seed)
        return node

    def _first(self, child: Node) -> float:
        """Q before the first visit: the reward of the step by C alone. Its outcome is what a visit finds out."""
        if child.parent is None or not self.weight:
            return 0.0
        gain = self.weight * (child.confidence or 0.0)
        return gain if self.reward is reward_of_state else gain - state_reward(child.parent, self.weight)

    def _prior(self, completion: Completion) -> float:
        return length_prior(completion, self.length_power)


def _open(node: Node) -> bool:
    """Whether a simulation can still end somewhere new at or below the node."""
    if node.terminal:
        return not node.visits
    if not node.exhausted:
        return True
    return any(_open(child) for child in node.children)
