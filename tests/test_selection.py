"""Which solutions self-training keeps: similarity, near-duplicates, pairs and the cap, on hand-made numbers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treepref.search.tree import add_children
from treepref.training.selection import distinct, jaccard, least_similar, least_similar_pairs, solutions_cap
from treepref.types import Completion, Tree, new_tree

SOLUTIONS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple), max_size=8)


def test_jaccard_counts_each_token_once() -> None:
    assert jaccard({1, 2, 3}, {2, 3, 4, 5}) == pytest.approx(2 / 5)
    assert jaccard(frozenset((1, 1, 2)), frozenset((2, 1))) == 1.0
    assert jaccard({1}, {2}) == 0.0
    assert jaccard(set(), set()) == 1.0 and jaccard(set(), {1}) == 0.0


@given(st.frozensets(st.integers(0, 20)), st.frozensets(st.integers(0, 20)))
def test_jaccard_is_symmetric_and_within_bounds(a: frozenset[int], b: frozenset[int]) -> None:
    assert jaccard(a, b) == jaccard(b, a)
    assert 0.0 <= jaccard(a, b) <= 1.0
    assert (jaccard(a, b) == 1.0) == (a == b)


def test_the_first_of_two_near_duplicates_stays() -> None:
    a, b, c = (1, 2, 3, 4), (1, 2, 3, 5), (6, 7)  # a and b share 3 of 5 tokens: 0.6
    assert distinct([a, b, c], 0.7) == [0, 1, 2]
    assert distinct([a, b, c], 0.6) == [0, 1, 2], "the limit itself is allowed"
    assert distinct([a, b, c], 0.59) == [0, 2]
    assert distinct([b, a, c], 0.59) == [0, 2]


def test_what_was_dropped_drops_nothing_itself() -> None:
    # 2 is near 1 and 3, 1 and 3 are far apart: 2 goes for the sake of 1, and 3 is then compared with 1 alone.
    chain = [(1, 2, 3, 4), (3, 4, 1, 5), (5, 3, 7, 8)]
    assert distinct(chain, 0.3) == [0, 2]


def test_at_a_similarity_of_one_the_order_of_tokens_tells_solutions_apart() -> None:
    assert distinct([(1, 2), (2, 1), (1, 2)], 1.0) == [0, 1]
    assert distinct([(1, 2), (2, 1)], 0.99) == [0]


@given(SOLUTIONS, st.floats(0, 0.99))
def test_all_kept_are_apart_and_every_dropped_one_is_near_a_kept_one_before_it(
    solutions: list[tuple[int, ...]], at_most: float
) -> None:
    kept = distinct(solutions, at_most)
    near = {(i, j): jaccard(frozenset(solutions[i]), frozenset(solutions[j])) > at_most for i in kept for j in kept}
    assert not any(near[i, j] for i, j in itertools.combinations(kept, 2))
    for j in set(range(len(solutions))) - set(kept):
        assert any(i < j and jaccard(frozenset(solutions[i]), frozenset(solutions[j])) > at_most for i in kept)


def test_the_least_similar_pairs_come_first() -> None:
    right = [(1, 2, 3), (1, 2, 9)]
    wrong = [(1, 2, 4), (7, 8), (3, 5)]
    # Similarities: (0,0) 2/4, (0,1) 0, (0,2) 1/4; (1,0) 2/4, (1,1) 0, (1,2) 0.
    assert least_similar(right, wrong, 3) == [(0, 1), (1, 1), (1, 2)], "ties by index"
    assert least_similar(right, wrong, 5) == [(0, 1), (1, 1), (1, 2), (0, 2), (0, 0)]
    assert least_similar(right, [], 3) == least_similar([], wrong, 3) == []


@given(SOLUTIONS, SOLUTIONS, st.integers(1, 10))
def test_no_pair_left_out_is_less_similar_than_one_kept(
    right: list[tuple[int, ...]], wrong: list[tuple[int, ...]], limit: int
) -> None:
    def similarity(pair: tuple[int, int]) -> float:
        return jaccard(frozenset(right[pair[0]]), frozenset(wrong[pair[1]]))

    kept = least_similar(right, wrong, limit)
    every = set(itertools.product(range(len(right)), range(len(wrong))))
    assert len(kept) == len(set(kept)) == min(limit, len(every))
    assert [similarity(p) for p in kept] == sorted(similarity(p) for p in kept)
    assert not kept or all(similarity(p) >= similarity(kept[-1]) for p in every - set(kept))


def tree_of(*solutions: tuple[tuple[int, ...], float | None]) -> Tree:
    """A tree of depth one; equal solutions are one child with as many visits."""
    tree = new_tree("p", "p", (0,))
    completions = [Completion(tokens, (-1.0,) * len(tokens), "eos") for tokens, _ in solutions]
    children = add_children(tree, tree.root, completions, lambda completion: 1.0)
    for node, (_, reward) in zip(children, solutions, strict=True):
        node.terminal, node.reward = True, reward
        node.visits += 1
        node.total += reward or 0.0
    return tree


def test_pairs_of_a_tree_name_its_nodes() -> None:
    tree = tree_of(((1, 2, 3), 1.0), ((1, 2, 4), -1.0), ((1, 2, 4), -1.0), ((7, 8), -1.0))
    pairs = least_similar_pairs(tree, at_most=0.7, limit=1)
    assert [(p.winner, p.loser, p.q_winner, p.q_loser) for p in pairs] == [((1,), (3,), 1.0, -1.0)]
    assert [p.visits_loser for p in least_similar_pairs(tree, at_most=0.7, limit=9)] == [1, 2]
    assert pairs[0].id == "p:1>3"


def test_near_duplicates_are_dropped_on_each_side_alone() -> None:
    tree = tree_of(((1, 2, 3, 4), 1.0), ((1, 2, 3, 5), -1.0), ((1, 2, 3, 6), -1.0))
    assert [p.id for p in least_similar_pairs(tree, at_most=0.5, limit=9)] == ["p:1>2"], "the side of the wrong ones"


def test_the_gold_rationale_stays_where_a_sample_says_nearly_the_same() -> None:
    gold = (1, 2, 3, 5)
    tree = tree_of(((1, 2, 3, 4), 1.0), ((9, 8), -1.0), (gold, 1.0))
    assert [p.id for p in least_similar_pairs(tree, at_most=0.5, limit=9)] == ["p:1>2"]
    assert [p.id for p in least_similar_pairs(tree, at_most=0.5, limit=9, first=[gold])] == ["p:3>2"]


def test_a_cut_solution_is_wrong_and_one_of_unknown_outcome_is_nothing() -> None:
    tree = tree_of(((1, 2), 1.0), ((3, 4), -1.0), ((5, 6), None))
    tree.nodes[2].finish = "length"
    assert [p.id for p in least_similar_pairs(tree, at_most=0.7, limit=9)] == ["p:1>2"]


def test_the_cap_is_a_number_that_some_problem_has() -> None:
    assert solutions_cap([1] * 9 + [7], 90) == 1
    assert solutions_cap([1] * 8 + [5, 7], 90) == 5
    assert solutions_cap([3, 1, 2], 50) == 2
    assert solutions_cap([3, 1, 2], 100) == 3
    assert solutions_cap([0, 0, 0, 4], 50) == 4, "problems without a solution do not lower it"
    assert solutions_cap([], 90) == solutions_cap([0], 90) == 1


@given(st.lists(st.integers(0, 9), min_size=1), st.floats(0.1, 100))
def test_so_many_problems_are_untouched_by_the_cap(counts: list[int], percentile: float) -> None:
    solved = [count for count in counts if count]
    cap = solutions_cap(counts, percentile)
    if solved:
        assert sum(count <= cap for count in solved) >= percentile / 100 * len(solved) - 1e-6
        assert sum(count < cap for count in solved) < percentile / 100 * len(solved) + 1e-6


def test_no_solution_is_set_over_its_own_text_in_other_tokens() -> None:
    texts = {1: "4", 2: "2", 3: "42", 5: "7"}
    tree = tree_of(((3,), 1.0), ((1, 2), -1.0), ((3, 5), -1.0))
    pairs = least_similar_pairs(tree, at_most=1.0, limit=1)
    assert [(p.winner, p.loser) for p in pairs] == [((1,), (2,))]
    pairs = least_similar_pairs(tree, at_most=1.0, limit=1, text_of=lambda ids: "".join(texts[i] for i in ids))
    assert [(p.winner, p.loser) for p in pairs] == [((1,), (3,))], "the next least similar takes its place"
