"""Which sampled solutions self-training learns from: near-duplicates go, the least similar pairs stay (DPO-ST, §3).

Pure functions of token ids: a solution is compared with others as the set of its tokens. Tokens that a tool forced
count like all others, for they are part of the text. Knows no model, no problem and no file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice

from treepref.training.pairs import TextOf, is_right, same_text
from treepref.types import Node, Pair, Tree

Tokens = tuple[int, ...]


def jaccard(a: AbstractSet[int], b: AbstractSet[int]) -> float:
    """|a ∩ b| / |a ∪ b|, in [0, 1]; two empty sets are equal."""
    return len(a & b) / len(a | b) if a or b else 1.0


def distinct(solutions: Sequence[Tokens], at_most: float) -> list[int]:
    """Indices of the solutions to keep: one is kept if its similarity to every kept one before it is `at_most`.

    The order decides which of two near-duplicates stays: the earlier (DPO-ST, arXiv 2407.18248, §3: deduplication by
    Jaccard similarity, at most 0.7). At 1.0 only solutions with other tokens as a sequence are told apart.
    """
    kept: dict[int, AbstractSet[int]] = {}
    seen: set[Tokens] = set()
    for index, solution in enumerate(solutions):
        tokens = frozenset(solution)
        if solution not in seen and all(jaccard(tokens, other) <= at_most for other in kept.values()):
            kept[index] = tokens
            seen.add(solution)
    return list(kept)


def least_similar(right: Sequence[Tokens], wrong: Sequence[Tokens], limit: int) -> list[tuple[int, int]]:
    """The `limit` least similar of all right × wrong, as indices (right, wrong): similarity ascending, ties by index.

    DPO-ST (arXiv 2407.18248, §3): of all pairs of a question those with the lowest Jaccard similarity.
    """
    ours, theirs = [frozenset(s) for s in right], [frozenset(s) for s in wrong]
    found = ((jaccard(a, b), i, j) for i, a in enumerate(ours) for j, b in enumerate(theirs))
    return [(i, j) for _, i, j in sorted(found)[:limit]]


def least_similar_pairs(
    tree: Tree, *, at_most: float, limit: int, first: Collection[Tokens] = (), text_of: TextOf | None = None
) -> list[Pair]:
    """Right over wrong solutions of a tree of depth one, at most `limit`, the least similar first.

    On each side near-duplicates are dropped (`distinct`); solutions in `first` (a gold rationale) come first there, the
    others follow by index. A solution that was cut is wrong; one whose outcome is not known is on neither side. With
    `text_of` (token ids → text) no solution is set over its own text in other tokens.
    """
    alike = same_text(text_of)
    known = [n for n in tree.root.children if n.terminal and n.reward is not None and n.visits]
    ordered = sorted(known, key=lambda n: (n.tokens not in first, n.index))
    right = _without_near_duplicates([n for n in ordered if is_right(n)], at_most)
    wrong = _without_near_duplicates([n for n in ordered if not is_right(n)], at_most)
    ordered_pairs = least_similar([n.tokens for n in right], [n.tokens for n in wrong], len(right) * len(wrong))
    chosen = ((right[i], wrong[j]) for i, j in ordered_pairs if not alike(right[i], wrong[j]))
    return [_pair(tree, w, lo) for w, lo in islice(chosen, limit)]


def solutions_cap(counts: Iterable[int], percentile: float) -> int:
    """How many solutions a problem may keep: the percentile (nearest rank) of the numbers that problems have.

    Problems without a solution say nothing of the others and are left out; at least 1 (DPO-ST, arXiv 2407.18248, §3:
    the 90th percentile, so that easy questions do not crowd out the rest).
    """
    ordered = sorted(count for count in counts if count)
    if not ordered:
        return 1
    rank = math.ceil(round(percentile / 100 * len(ordered), 9))  # 0.9 · 10 is 9, whatever a float makes of it
    return ordered[max(rank, 1) - 1]


def _without_near_duplicates(nodes: Sequence[Node], at_most: float) -> list[Node]:
    return [nodes[i] for i in distinct([n.tokens for n in nodes], at_most)]


def _pair(tree: Tree, winner: Node, loser: Node) -> Pair:
    return Pair(
        tree=tree.key,
        winner=(winner.index,),
        loser=(loser.index,),
        q_winner=winner.total / winner.visits,
        q_loser=loser.total / loser.visits,
        visits_winner=winner.visits,
        visits_loser=loser.visits,
    )
