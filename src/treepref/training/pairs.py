"""Trees → what is learned from them: preference pairs, paths for SFT, targets for the value head. Pure functions.

Knows no loss, no tokenizer and no model: everything names nodes of a tree by index. One text may be written in several
tokens, so siblings with other ids may be one step to a reader; where `text_of` is given (token ids → text), no pair is
made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from treepref.config import PairConfig
from treepref.errors import TreeprefError
from treepref.search.base import path_nodes, solution_tokens
from treepref.types import Node, Pair, Tree

TextOf = Callable[[tuple[int, ...]], str]
"""The text of token ids."""
Alike = Callable[[Node, Node], bool]
"""Whether two nodes of a tree say the same."""

_DIGITS = 9
"""Gaps of Q are compared to this many decimals: 0.6 − 0.4 is a gap of 0.2, and ties do not hang on rounding errors."""


def same_text(text_of: TextOf | None) -> Alike:
    """Whether two nodes of one tree end solutions of one text, both or neither with EOS.

    Texts begin where the solution does: a token may hold half a character, whose other half stands before it. None: no
    two nodes are alike, for the search has merged siblings with equal tokens.
    """
    if text_of is None:
        return lambda a, b: False
    texts: dict[int, str] = {}

    def text(node: Node) -> str:
        if node.index not in texts:
            texts[node.index] = text_of(solution_tokens(node))
        return texts[node.index]

    return lambda a, b: (a.finish == "eos") == (b.finish == "eos") and text(a) == text(b)


def sibling_pairs(tree: Tree, cfg: PairConfig, text_of: TextOf | None = None) -> list[Pair]:
    """Step pairs: children of one parent, the winner's Q above the loser's (SVPO, arXiv 2406.10858: step preferences).

    Filters, all ours: both have at least `min_visits` visits (a node without visits has no Q), the gap is at least
    `min_gap`, and with `winner_reaches_answer` a right solution lies at or below the winner. A step that was cut or
    stands unfinished at the depth limit never wins. The largest gaps are kept, at most `max_per_parent` and
    `max_per_tree`, ties by index; the pairs come in order of winner and loser index. No step is set over its own text
    (`text_of`).
    """
    alike = same_text(text_of)
    reaches = _reaches_answer(tree) if cfg.winner_reaches_answer else [True] * len(tree.nodes)
    kept: list[tuple[float, Node, Node]] = []
    for parent in tree.nodes:
        visited = [child for child in parent.children if child.visits >= cfg.min_visits and _short(child.tokens, cfg)]
        winners = [child for child in visited if reaches[child.index] and not _failed(child)]
        wide = [(gap, w, lo) for w in winners for lo in visited if (gap := _gap(w, lo)) > 0 and _wide(gap, cfg)]
        found = [(gap, w, lo) for gap, w, lo in wide if not alike(w, lo)]
        kept += sorted(found, key=_largest_gap_first)[: cfg.max_per_parent]
    best = sorted(kept, key=_largest_gap_first)[: cfg.max_per_tree]
    pairs = [_pair(tree, w, lo, (w.index,), (lo.index,)) for _, w, lo in best]
    return sorted(pairs, key=lambda pair: (pair.winner, pair.loser))


def trace_pairs(tree: Tree, cfg: PairConfig, text_of: TextOf | None = None) -> list[Pair]:
    """Step pairs along the selected trace (MCTS-DPO, arXiv 2405.00451, Iterative Preference Learning).

    The trace goes from the root to the most visited child (ties: the highest Q, then the older) and on. At each depth
    of it the sibling with the highest Q wins over the one with the lowest, where at least two have `min_visits` (so no
    loser is without a visit); with `text_of`, over the lowest that says something else. Filters, ours: `min_gap`,
    `max_tokens` a side, a winner that neither failed nor, with `winner_reaches_answer`, leads to wrong answers alone.
    The `max_per_tree` widest gaps are kept; pairs come from the root down.
    """
    alike = same_text(text_of)
    reaches = _reaches_answer(tree) if cfg.winner_reaches_answer else [True] * len(tree.nodes)
    found: list[tuple[float, Node, Node]] = []
    for siblings in _trace(tree):
        visited = [child for child in siblings if child.visits >= cfg.min_visits and _short(child.tokens, cfg)]
        if len(visited) < 2:
            continue
        winner = max(visited, key=lambda n: (n.total / n.visits, -n.index))
        others = sorted(visited, key=lambda n: (n.total / n.visits, n.index))
        loser = next((n for n in others if n is not winner and not alike(winner, n)), winner)
        gap = _gap(winner, loser)
        if gap > 0 and _wide(gap, cfg) and reaches[winner.index] and not _failed(winner):
            found.append((gap, winner, loser))
    best = sorted(found, key=_largest_gap_first)[: cfg.max_per_tree]
    pairs = [_pair(tree, w, lo, (w.index,), (lo.index,)) for _, w, lo in best]
    return sorted(pairs, key=lambda pair: (tree.nodes[pair.winner[0]].depth, pair.winner))


def _trace(tree: Tree) -> Iterator[list[Node]]:
    """The siblings at each depth of the selected trace, from below the root down."""
    node = tree.root
    while visited := [child for child in node.children if child.visits]:
        yield node.children
        node = max(visited, key=lambda n: (n.visits, n.total / n.visits, -n.index))


def solution_pairs(tree: Tree, cfg: PairConfig, text_of: TextOf | None = None) -> list[Pair]:
    """Solution pairs, as in solution-level DPO: right over wrong, each side the nodes below the last common one.

    For trees of whole solutions and for trees of steps alike. A solution that was cut counts as wrong. `min_visits` and
    `min_gap` apply to the two last nodes. At most `max_per_tree`, spread evenly: no solution comes a second time
    before every solution of its side came once (`max_per_parent` is for steps and has no say here). No solution is set
    over its own text (`text_of`).
    """
    alike = same_text(text_of)
    leaves = [n for n in tree.nodes if n.terminal and n.reward is not None and n.visits >= cfg.min_visits]
    right = [n for n in leaves if is_right(n)]
    wrong = [n for n in leaves if not is_right(n)]
    candidates = ((w, lo) for w, lo in _evenly(right, wrong) if _gap(w, lo) > 0 and _wide(_gap(w, lo), cfg))
    pairs = (_solution_pair(tree, w, lo) for w, lo in candidates if not alike(w, lo))
    return list(islice((pair for pair in pairs if _short_sides(tree, pair, cfg)), cfg.max_per_tree))


def correct_paths(tree: Tree, limit: int | None = None) -> list[tuple[int, ...]]:
    """Right solutions as node indices from below the root to the leaf: fewest steps first, then by index."""
    paths = (tuple(n.index for n in path_nodes(leaf)) for leaf in tree.nodes if is_right(leaf))
    distinct: dict[tuple[int, ...], tuple[int, ...]] = {}
    for path in sorted(paths, key=lambda path: (len(path), path)):
        distinct.setdefault(solution_tokens(tree.nodes[path[-1]]), path)
    return list(islice(distinct.values(), limit))


def value_targets(tree: Tree, min_visits: int = 1) -> dict[int, float]:
    """Node index → Q brought from the tree's `q_range` to the value head's [-1, 1]; the root included.

    Nodes with fewer than `min_visits` visits have no target. Raises TreeprefError where a Q lies outside `q_range`.
    """
    low, high = tree.q_range
    targets = {}
    for n in tree.nodes:
        if n.visits < max(1, min_visits):
            continue
        target = 2 * (n.total / n.visits - low) / (high - low) - 1
        if not abs(target) <= 1 + 1e-9:
            raise TreeprefError(
                f"tree {tree.key!r}, node {n.index}: Q = {n.q} is outside the tree's range [{low}, {high}], "
                "so it cannot be a target of the value head; set the tree's q_range to what its rewards can sum to"
            )
        targets[n.index] = min(1.0, max(-1.0, target))
    return targets


def best_outcomes(tree: Tree) -> dict[int, float]:
    """Node index → the best outcome found at or below it, 1 right to −1 wrong or cut; the root included.

    A target of the value head beside Q, ours: Q tells what the searching policy made of a step, mistakes further on
    included; this tells whether a right answer can still be reached from it. Nodes below which no solution ended, or
    none whose answer could be checked, have no target.
    """
    best: dict[int, float] = {}
    for node in reversed(tree.nodes):  # children stand behind their parents
        known = [best[child.index] for child in node.children if child.index in best]
        if node.terminal and node.reward is not None:
            known = [node.reward]
        if known:
            best[node.index] = max(known)
    return best


def visit_smoothing(n_w: int, n_l: int) -> float:
    """Label smoothing α = 1 / (N_w / N_l + 1), at most 0.5 (MCTS-DPO, arXiv 2405.00451, Iterative Preference Learning).

    The more often search came back to the winner than to the loser, the surer the label. Raises ValueError
    below one visit.
    """
    if n_w < 1 or n_l < 1:
        raise ValueError(f"visit counts of a pair must be at least 1, not {n_w} and {n_l}")
    return min(0.5, 1 / (n_w / n_l + 1))


def is_right(node: Node) -> bool:
    """Whether a right solution ends here."""
    return node.terminal and node.reward is not None and node.reward > 0


def mixed(tree: Tree) -> bool:
    """Whether the tree holds right and wrong solutions, so that there is something to prefer."""
    outcomes = {n.reward > 0 for n in tree.nodes if n.terminal and n.reward is not None}
    return len(outcomes) == 2


@dataclass(slots=True)
class PairStats:
    """What a round's trees yielded. Add tree by tree."""

    trees: int = 0
    solved: int = 0
    """Trees with a right solution."""
    mixed: int = 0
    """Trees with right and wrong solutions."""
    paired: int = 0
    """Trees with at least one pair."""
    pairs: int = 0
    gap_sum: float = 0.0

    def add(self, tree: Tree, pairs: Sequence[Pair]) -> None:
        self.trees += 1
        self.solved += any(map(is_right, tree.nodes))
        self.mixed += mixed(tree)
        self.paired += bool(pairs)
        self.pairs += len(pairs)
        self.gap_sum += sum(pair.q_winner - pair.q_loser for pair in pairs)


def _reaches_answer(tree: Tree) -> list[bool]:
    """For each node whether a right solution lies at or below it, shape (nodes,)."""
    reaches = [is_right(n) for n in tree.nodes]
    for n in reversed(tree.nodes):  # children come after their parent
        if n.parent is not None and reaches[n.index]:
            reaches[n.parent.index] = True
    return reaches


def _failed(node: Node) -> bool:
    """Cut by the length limit, or unfinished at the depth limit."""
    return node.terminal and node.finish != "eos"


def _gap(winner: Node, loser: Node) -> float:
    return round(winner.total / winner.visits - loser.total / loser.visits, _DIGITS)


def _wide(gap: float, cfg: PairConfig) -> bool:
    return gap >= round(cfg.min_gap, _DIGITS)


def _short(tokens: Sequence[int], cfg: PairConfig) -> bool:
    return cfg.max_tokens is None or len(tokens) <= cfg.max_tokens


def _short_sides(tree: Tree, pair: Pair, cfg: PairConfig) -> bool:
    return all(
        _short([token for n in side for token in tree.nodes[n].tokens], cfg) for side in (pair.winner, pair.loser)
    )


def _largest_gap_first(candidate: tuple[float, Node, Node]) -> tuple[float, int, int]:
    gap, winner, loser = candidate
    return -gap, winner.index, loser.index


def _solution_pair(tree: Tree, winner: Node, loser: Node) -> Pair:
    above, below = path_nodes(winner), path_nodes(loser)
    shared = 0
    while above[shared] is below[shared]:  # two leaves part somewhere: neither lies above the other
        shared += 1
    return _pair(tree, winner, loser, tuple(n.index for n in above[shared:]), tuple(n.index for n in below[shared:]))


def _pair(tree: Tree, winner: Node, loser: Node, winner_path: tuple[int, ...], loser_path: tuple[int, ...]) -> Pair:
    return Pair(
        tree=tree.key,
        winner=winner_path,
        loser=loser_path,
        q_winner=winner.total / winner.visits,
        q_loser=loser.total / loser.visits,
        visits_winner=winner.visits,
        visits_loser=loser.visits,
    )


def _evenly(right: Sequence[Node], wrong: Sequence[Node]) -> Iterator[tuple[Node, Node]]:
    """Every right × wrong once, along the diagonals of the table, so that a beginning uses all solutions alike."""
    few, many = sorted((len(right), len(wrong)))
    for shift in range(many):
        for i in range(few):
            j = (i + shift) % many
            yield (right[i], wrong[j]) if len(right) == few else (right[j], wrong[i])
