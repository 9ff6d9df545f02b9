"""Pairs, paths and value targets on trees small enough to read, and rules that hold on every searched tree."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_search_mcts import PROMPT, played, searches, worlds
from treepref.config import PairConfig
from treepref.errors import TreeprefError
from treepref.search import Sampling
from treepref.search.base import path_nodes, solution_tokens
from treepref.search.limits import Limits
from treepref.training.pairs import (
    PairStats,
    best_outcomes,
    correct_paths,
    mixed,
    sibling_pairs,
    solution_pairs,
    trace_pairs,
    value_targets,
    visit_smoothing,
)
from treepref.types import Node, new_tree

LOOSE = PairConfig(min_gap=0.0, max_per_parent=100, max_per_tree=1000, winner_reaches_answer=False)


def tree_of(*rows):
    """Nodes below the root as (parent, visits, q, finish, reward); a reward makes the node terminal."""
    tree = new_tree("t", "p", PROMPT)
    for parent, visits, q, finish, reward in rows:
        above = tree.nodes[parent]
        index = len(tree.nodes)
        node = Node(index, above, (index + 10,), (-0.5,), finish=finish, depth=above.depth + 1)
        node.visits, node.total, node.reward, node.terminal = visits, visits * q, reward, reward is not None
        above.children.append(node)
        above.expanded = True
        tree.nodes.append(node)
    return tree


def example():
    """Under the root 1 (Q 0.6; right 5, wrong 6), 2 (Q 0.1; 7 was cut), 3 (no visit), 4 (Q −0.4; right 8, wrong 9)."""
    return tree_of(
        (0, 5, 0.6, "step", None),
        (0, 3, 0.1, "step", None),
        (0, 0, 0.0, "step", None),
        (0, 5, -0.4, "step", None),
        (1, 1, 1.0, "eos", 1.0),
        (1, 1, -1.0, "eos", -1.0),
        (2, 1, -1.0, "length", -1.0),
        (4, 1, 1.0, "eos", 1.0),
        (4, 1, -1.0, "eos", -1.0),
    )


def names(pairs):
    return [(p.winner, p.loser) for p in pairs]


def test_step_pairs_by_hand():
    pairs = sibling_pairs(example(), PairConfig(min_gap=0.2, max_per_parent=2, max_per_tree=8))
    # Root: 1 over 4 (gap 1.0), 1 over 2 (0.5); 2 leads to no answer and 3 has no Q.
    assert names(pairs) == [((1,), (2,)), ((1,), (4,)), ((5,), (6,)), ((8,), (9,))]
    pair = pairs[1]
    assert (pair.q_winner, pair.q_loser, pair.visits_winner, pair.visits_loser) == (0.6, -0.4, 5, 5)
    assert pair.id == "t:1>4"


def test_the_largest_gaps_are_kept():
    assert names(sibling_pairs(example(), PairConfig(max_per_parent=1))) == [((1,), (4,)), ((5,), (6,)), ((8,), (9,))]
    assert names(sibling_pairs(example(), PairConfig(max_per_parent=9, max_per_tree=2))) == [((5,), (6,)), ((8,), (9,))]


def test_filters():
    everything = names(sibling_pairs(example(), LOOSE))
    assert ((2,), (4,)) in everything  # 2 reaches no answer
    assert not any((3,) in pair for pair in everything)  # a node without visits has no Q
    reaching = names(sibling_pairs(example(), LOOSE.model_copy(update={"winner_reaches_answer": True})))
    assert ((2,), (4,)) not in reaching
    visited = names(sibling_pairs(example(), LOOSE.model_copy(update={"min_visits": 4})))
    assert visited == [((1,), (4,))]
    wide = names(sibling_pairs(example(), LOOSE.model_copy(update={"min_gap": 1.5})))
    assert wide == [((5,), (6,)), ((8,), (9,))]


def test_a_gap_is_not_lost_to_rounding():
    tree = tree_of((0, 1, 0.6, "step", None), (0, 1, 0.4, "step", None))
    assert 0.6 - 0.4 < 0.2
    assert len(sibling_pairs(tree, LOOSE.model_copy(update={"min_gap": 0.2}))) == 1


def test_equal_q_makes_no_pair_and_ties_go_by_index():
    tree = tree_of(*[(0, 1, q, "eos", q) for q in (-1.0, 1.0, 1.0, -1.0)])
    assert len(sibling_pairs(tree, LOOSE)) == 4
    assert names(sibling_pairs(tree, PairConfig(max_per_parent=3))) == [((2,), (1,)), ((2,), (4,)), ((3,), (1,))]


def test_what_was_cut_may_lose_but_never_win():
    tree = tree_of((0, 1, -0.5, "length", -0.5), (0, 1, -1.0, "eos", -1.0), (0, 1, 1.0, "eos", 1.0))
    assert names(sibling_pairs(tree, LOOSE)) == [((3,), (1,)), ((3,), (2,))]
    tree = tree_of((0, 1, -0.5, "step", -0.5), (0, 1, -1.0, "eos", -1.0))  # unfinished at the depth limit
    assert sibling_pairs(tree, LOOSE) == []


def test_solution_pairs_part_at_the_last_common_node():
    pairs = solution_pairs(example(), PairConfig(max_per_tree=100))
    assert set(names(pairs)) == {
        ((5,), (6,)),
        ((1, 5), (2, 7)),
        ((1, 5), (4, 9)),
        ((4, 8), (1, 6)),
        ((4, 8), (2, 7)),
        ((8,), (9,)),
    }
    assert len(pairs) == 6
    assert all((p.q_winner, p.q_loser) == (1.0, -1.0) for p in pairs)


def test_solution_pairs_spread_over_the_solutions():
    tree = tree_of(*[(0, 1, q, "eos", q) for q in (1.0, 1.0, 1.0, -1.0, -1.0)])
    assert names(solution_pairs(tree, PairConfig(max_per_tree=2))) == [((1,), (4,)), ((2,), (5,))]
    assert len(set(names(solution_pairs(tree, PairConfig(max_per_tree=100))))) == 6
    assert solution_pairs(tree_of((0, 1, 1.0, "eos", 1.0)), PairConfig()) == []


def test_solution_pairs_of_sampled_solutions_count_samples():
    tree = tree_of((0, 6, 1.0, "eos", 1.0), (0, 2, -1.0, "eos", -1.0))
    (pair,) = solution_pairs(tree, PairConfig(min_visits=2))
    assert (pair.visits_winner, pair.visits_loser) == (6, 2)
    assert solution_pairs(tree, PairConfig(min_visits=3)) == []


def test_correct_paths_shortest_first():
    tree = tree_of(
        (0, 1, 1.0, "step", None),
        (1, 1, 1.0, "eos", 1.0),
        (0, 1, 1.0, "eos", 1.0),
        (0, 1, -1.0, "eos", -1.0),
        (1, 1, 1.0, "eos", 1.0),
    )
    assert correct_paths(tree) == [(3,), (1, 2), (1, 5)]
    assert correct_paths(tree, 2) == [(3,), (1, 2)]


def test_best_outcomes_tell_whether_a_right_answer_can_still_be_reached():
    assert best_outcomes(example()) == {0: 1.0, 1: 1.0, 2: -1.0, 4: 1.0, 5: 1.0, 6: -1.0, 7: -1.0, 8: 1.0, 9: -1.0}
    unknown = tree_of((0, 1, 0.3, "step", None), (1, 1, 0.0, "eos", None), (0, 1, -1.0, "eos", -1.0))
    assert best_outcomes(unknown) == {0: -1.0, 3: -1.0}, "an answer that could not be checked says nothing"


def test_value_targets_are_q_in_the_value_heads_range():
    tree = example()
    tree.root.visits, tree.root.total = 14, 3.5
    targets = value_targets(tree)
    assert targets[0] == 0.25 and targets[1] == pytest.approx(0.6) and 3 not in targets
    assert set(value_targets(tree, min_visits=5)) == {0, 1, 4}
    tree.q_range = (-1.0, 3.0)
    assert value_targets(tree)[0] == pytest.approx(2 * (0.25 + 1) / 4 - 1)
    assert value_targets(tree)[6] == -1.0
    tree.q_range = (0.0, 1.0)
    with pytest.raises(TreeprefError, match=r"node 4.*outside"):
        value_targets(tree)


@pytest.mark.parametrize(("n_w", "n_l", "alpha"), [(1, 1, 0.5), (3, 1, 0.25), (9, 1, 0.1), (1, 3, 0.5), (4, 2, 1 / 3)])
def test_visit_smoothing(n_w, n_l, alpha):
    assert visit_smoothing(n_w, n_l) == pytest.approx(alpha)


def test_visit_smoothing_wants_visits():
    for n_w, n_l in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            visit_smoothing(n_w, n_l)


def test_mixed_and_stats():
    right, wrong = tree_of((0, 1, 1.0, "eos", 1.0)), tree_of((0, 1, -1.0, "length", -1.0))
    unknown = tree_of((0, 1, 0.3, "eos", None))
    assert [mixed(t) for t in (example(), right, wrong, unknown)] == [True, False, False, False]
    pairs = sibling_pairs(example(), PairConfig())
    stats = PairStats()
    for tree, found in ((example(), pairs), (right, []), (wrong, [])):
        stats.add(tree, found)
    assert (stats.trees, stats.solved, stats.mixed, stats.paired, stats.pairs) == (3, 2, 1, 1, 3)
    assert stats.gap_sum == pytest.approx(1.0 + 2.0 + 2.0)


# ---------------------------------------------------------------------------------------------------- every tree

configs = st.builds(
    PairConfig,
    min_gap=st.sampled_from([0.0, 0.2, 1.0]),
    min_visits=st.integers(1, 3),
    max_per_parent=st.integers(1, 3),
    max_per_tree=st.integers(1, 10),
    winner_reaches_answer=st.booleans(),
)


def reaches_answer(node):
    return (node.terminal and (node.reward or 0) > 0) or any(map(reaches_answer, node.children))


@settings(max_examples=60, deadline=None)
@given(worlds, searches, configs)
def test_every_step_pair_keeps_every_filter(world, search, cfg):
    tree = played(search, world)
    pairs = sibling_pairs(tree, cfg)
    assert len(pairs) <= cfg.max_per_tree and len({p.id for p in pairs}) == len(pairs)
    parents = []
    for pair in pairs:
        (w,), (lo,) = pair.winner, pair.loser
        winner, loser = tree.nodes[w], tree.nodes[lo]
        assert winner.parent is loser.parent
        assert winner.q - loser.q >= cfg.min_gap - 1e-8 and winner.q > loser.q
        assert min(winner.visits, loser.visits) >= cfg.min_visits
        assert winner.finish == "eos" or not winner.terminal
        assert reaches_answer(winner) or not cfg.winner_reaches_answer
        parents.append(winner.parent.index)
    assert all(parents.count(p) <= cfg.max_per_parent for p in parents)
    if not pairs:  # nothing that every filter lets through was missed
        for parent in tree.nodes:
            for winner in parent.children:
                for loser in parent.children:
                    allowed = (
                        min(winner.visits, loser.visits) >= cfg.min_visits
                        and winner.q - loser.q > cfg.min_gap + 1e-8
                        and (reaches_answer(winner) or not cfg.winner_reaches_answer)
                        and not (winner.terminal and winner.finish != "eos")
                    )
                    assert not allowed


@settings(max_examples=60, deadline=None)
@given(worlds, searches, configs)
def test_every_solution_pair_is_right_over_wrong_below_one_parent(world, search, cfg):
    tree = played(search, world)
    pairs = solution_pairs(tree, cfg)
    assert len({p.id for p in pairs}) == len(pairs) <= cfg.max_per_tree
    for pair in pairs:
        first_w, first_l = tree.nodes[pair.winner[0]], tree.nodes[pair.loser[0]]
        assert first_w.parent is first_l.parent and first_w is not first_l
        for side, sign in ((pair.winner, 1.0), (pair.loser, -1.0)):
            leaf = tree.nodes[side[-1]]
            assert leaf.reward == sign
            assert tuple(n.index for n in path_nodes(leaf))[-len(side) :] == side


@settings(max_examples=30, deadline=None)
@given(worlds, searches)
def test_paths_and_targets_of_every_tree(world, search):
    tree = played(search, world)
    paths = correct_paths(tree)
    assert len(paths) == sum(n.reward == 1.0 for n in tree.nodes)
    assert len({solution_tokens(tree.nodes[p[-1]]) for p in paths}) == len(paths)
    assert all(world.reward(PROMPT + solution_tokens(tree.nodes[p[-1]])) == 1.0 for p in paths)
    targets = value_targets(tree)
    assert set(targets) == {n.index for n in tree.nodes if n.visits}
    assert all(math.isclose(v, tree.nodes[i].q, abs_tol=1e-12) for i, v in targets.items())


@settings(max_examples=20, deadline=None)
@given(worlds)
def test_whole_solutions_pair_at_the_root(world):
    tree = played(Sampling(n=12, limits=Limits(max_tokens=30)), world)
    pairs = solution_pairs(tree, PairConfig(max_per_tree=1000))
    right = sum(ch.reward == 1.0 for ch in tree.root.children)
    assert len(pairs) == right * (len(tree.root.children) - right)
    assert {p.id for p in pairs} == {p.id for p in sibling_pairs(tree, LOOSE)}


# ------------------------------------------------------------------------------------------------ the selected trace


TRACE = PairConfig(min_gap=0.0, max_per_tree=100, winner_reaches_answer=False, rule="trace")


def traced():
    """Root: 1 (N 4, Q .2), 2 (N 4, Q .5: the trace, for its Q), 3 (N 2, Q .9), 4 (N 0).

    Below 2: 5 (N 3, Q 1/3) and 6 (right). Below 5: 7 (N 2, right), 8 (wrong), 9 (cut). Below 1: 10, 11, off the trace.
    """
    return tree_of(
        (0, 4, 0.2, "step", None),
        (0, 4, 0.5, "step", None),
        (0, 2, 0.9, "step", None),
        (0, 0, 0.0, "step", None),
        (2, 3, 1 / 3, "step", None),
        (2, 1, 1.0, "eos", 1.0),
        (5, 2, 1.0, "eos", 1.0),
        (5, 1, -1.0, "eos", -1.0),
        (5, 1, -1.0, "length", -1.0),
        (1, 1, 1.0, "eos", 1.0),
        (1, 1, -1.0, "eos", -1.0),
    )


def test_trace_pairs_by_hand():
    assert names(trace_pairs(traced(), TRACE)) == [((3,), (1,)), ((6,), (5,)), ((7,), (8,))]
    (first, *_) = trace_pairs(traced(), TRACE)
    assert (first.q_winner, first.q_loser, first.visits_winner, first.visits_loser) == (0.9, 0.2, 2, 4)


def test_trace_pairs_keep_to_their_filters():
    def found(**changes):
        return names(trace_pairs(traced(), TRACE.model_copy(update=changes)))

    assert found(min_visits=2) == [((3,), (1,))], "below 2 and 5 one sibling alone has two visits"
    assert found(min_gap=1.0) == [((7,), (8,))]
    assert found(max_per_tree=2) == [((3,), (1,)), ((7,), (8,))], "the widest gaps"
    assert found(winner_reaches_answer=True) == [((6,), (5,)), ((7,), (8,))], "nothing right was found below 3"
    assert found(max_tokens=0) == []


def test_a_failed_step_wins_no_trace_pair_and_equal_q_makes_none():
    cut_wins = tree_of((0, 1, -0.5, "length", -1.0), (0, 2, -1.0, "step", None))
    assert trace_pairs(cut_wins, TRACE) == []
    assert trace_pairs(tree_of((0, 1, 1.0, "eos", 1.0), (0, 1, 1.0, "eos", 1.0)), TRACE) == []
    assert trace_pairs(tree_of((0, 1, 1.0, "eos", 1.0), (0, 0, 0.0, "step", None)), TRACE) == [], "no visit, no loser"


@settings(max_examples=60, deadline=None)
@given(worlds, searches)
def test_trace_pairs_of_searched_trees(world, search):
    tree = played(search, world)
    pairs = trace_pairs(tree, TRACE)
    depths = [tree.nodes[p.winner[0]].depth for p in pairs]
    assert depths == sorted(set(depths)), "one pair a depth"
    for p in pairs:
        w, lo = tree.nodes[p.winner[0]], tree.nodes[p.loser[0]]
        q = [n.q for n in w.parent.children if n.visits]
        assert w.parent is lo.parent and w.q == max(q) and lo.q == min(q) and lo.visits >= 1
        assert w.parent.parent is None or w.parent.visits == max(n.visits for n in w.parent.parent.children)


def test_longer_sides_than_max_tokens_make_no_pair():
    tree, loose = example(), LOOSE.model_copy(update={"max_tokens": 1})
    assert names(sibling_pairs(tree, loose)) == names(sibling_pairs(tree, LOOSE))
    assert sibling_pairs(tree, LOOSE.model_copy(update={"max_tokens": 0})) == []
    wide = names(solution_pairs(tree, LOOSE))
    short = names(solution_pairs(tree, loose))
    assert short == [sides for sides in wide if all(len(side) == 1 for side in sides)] and 0 < len(short) < len(wide)


# --- one text in other tokens

TEXTS = {1: "4", 2: "2", 3: "42", 4: "\n", 5: "7"}
"""Token id → text: "42" is one token or two."""


def text_of(tokens):
    return "".join(TEXTS[token] for token in tokens)


def spelled(*rows):
    """Nodes below the root as (parent, tokens, visits, q, finish, reward)."""
    tree = tree_of(*((parent, visits, q, finish, reward) for parent, _, visits, q, finish, reward in rows))
    for node, (_, tokens, *_) in zip(tree.nodes[1:], rows, strict=True):
        node.tokens, node.logprobs = tokens, (-0.5,) * len(tokens)
    return tree


def two_spellings():
    """Under the root "42\\n" in two ways (Q 0.9 and −0.9) and "7\\n" (Q −0.5); below the first a right solution."""
    return spelled(
        (0, (3, 4), 5, 0.9, "step", None),
        (0, (1, 2, 4), 5, -0.9, "step", None),
        (0, (5, 4), 5, -0.5, "step", None),
        (1, (5,), 3, 1.0, "eos", 1.0),
    )


def test_no_step_is_set_over_its_own_text():
    tree = two_spellings()
    assert names(sibling_pairs(tree, LOOSE)) == [((1,), (2,)), ((1,), (3,)), ((3,), (2,))]
    assert names(sibling_pairs(tree, LOOSE, text_of)) == [((1,), (3,)), ((3,), (2,))]
    one = PairConfig(max_per_parent=1)
    assert names(sibling_pairs(tree, one)) == [((1,), (2,))]
    assert names(sibling_pairs(tree, one, text_of)) == [((1,), (3,))], "another pair takes its place"


def test_the_trace_sets_a_step_over_the_worst_that_says_something_else():
    tree = two_spellings()
    assert names(trace_pairs(tree, LOOSE)) == [((1,), (2,))]
    assert names(trace_pairs(tree, LOOSE, text_of)) == [((1,), (3,))]
    alone = spelled((0, (3, 4), 5, 0.9, "step", None), (0, (1, 2, 4), 4, -0.9, "step", None))
    assert trace_pairs(alone, LOOSE, text_of) == []


def test_no_solution_is_set_over_its_own_text():
    tree = spelled(
        (0, (3, 4), 3, 0.0, "step", None),
        (0, (1, 2, 4), 3, 0.0, "step", None),
        (1, (5,), 1, 1.0, "eos", 1.0),
        (2, (5,), 1, -1.0, "eos", -1.0),  # "42\n7" again
        (2, (1,), 1, -1.0, "eos", -1.0),
    )
    assert names(solution_pairs(tree, LOOSE)) == [((1, 3), (2, 4)), ((1, 3), (2, 5))]
    assert names(solution_pairs(tree, LOOSE, text_of)) == [((1, 3), (2, 5))]


def test_where_a_solution_ends_is_something_to_prefer():
    tree = spelled((0, (3,), 3, 1.0, "eos", 1.0), (0, (1, 2), 3, -1.0, "length", -1.0))
    assert names(sibling_pairs(tree, LOOSE, text_of)) == [((1,), (2,))]


def test_texts_are_compared_from_where_the_solution_begins():
    """A step that begins within a character has no text of its own."""
    asked = []

    def text_of(tokens):
        asked.append(tuple(tokens))
        return str(tokens)

    tree = spelled((0, (3,), 3, 0.0, "step", None), (1, (5,), 2, 1.0, "eos", 1.0), (1, (4,), 1, -1.0, "eos", -1.0))
    assert len(sibling_pairs(tree, LOOSE, text_of)) == 1
    assert sorted(asked) == [(3, 4), (3, 5)]
