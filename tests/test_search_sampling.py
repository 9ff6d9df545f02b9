"""Whole solutions as trees of depth one."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_search_mcts import PROMPT, played, worlds
from treepref.errors import ModelError
from treepref.search import Sampling
from treepref.search.limits import Limits
from treepref.types import Completion, new_tree


def solution(token, finish="eos", value=None):
    return Completion((token, 0), (math.log(0.5),) * 2, finish, value=value)


def test_one_ask_for_whole_solutions():
    tree = new_tree("k", "p", PROMPT)
    search = Sampling(n=6, limits=Limits(temperature=0.8, top_p=0.9, max_tokens=50, max_context=20))
    (expansion,) = search.ask(tree)
    assert (expansion.node, expansion.n, expansion.delimiter) == (tree.root, 6, None)
    assert (expansion.temperature, expansion.top_p, expansion.max_tokens) == (0.8, 0.9, 17)
    assert search.ask(tree) == [] and not search.done(tree)
    completions = [solution(2), solution(3, value=0.4), solution(2), solution(4, "length"), solution(2)]
    search.tell(tree, expansion, completions, [1.0, -1.0, 1.0, None, 1.0], 0.3)
    right, wrong, cut = tree.root.children
    assert [(n.samples, n.visits, n.total, n.q) for n in (right, wrong, cut)] == [
        (3, 3, 3.0, 1.0),
        (1, 1, -1.0, -1.0),
        (1, 1, -1.0, -1.0),
    ]
    assert (tree.root.visits, tree.root.q) == (5, 0.2)  # mean outcome of the samples that came
    assert tree.root.value == 0.3 and tree.failed == 2 and tree.root.pending == 0
    assert search.done(tree) and search.ask(tree) == [] and tree.root.exhausted
    assert search.answer(tree) is wrong  # V alone decides


def test_unknown_outcomes_count_by_value():
    tree = new_tree("k", "p", PROMPT)
    search = Sampling(n=2)
    search.tell(tree, search.ask(tree)[0], [solution(2, value=0.5), solution(3)], [None, None], None)
    assert [n.q for n in tree.root.children] == [0.5, 0.0]


def test_nothing_came():
    tree = new_tree("k", "p", PROMPT)
    search = Sampling(n=3)
    search.tell(tree, search.ask(tree)[0], [], [], None)
    assert search.done(tree) and tree.failed == 3 and search.answer(tree) is None and tree.root.q is None


def test_refusals():
    with pytest.raises(ValueError, match="at least 1"):
        Sampling(n=0)
    tree = new_tree("k", "p", PROMPT)
    search = Sampling(n=1, limits=Limits(max_context=len(PROMPT), max_tokens=512))
    assert search.done(tree) and search.ask(tree) == []
    search = Sampling(n=1)
    (expansion,) = search.ask(tree)
    with pytest.raises(ModelError, match="outside"):
        search.tell(tree, expansion, [solution(2, value=2.0)], [1.0], None)


@settings(max_examples=30, deadline=None)
@given(worlds, st.integers(1, 20))
def test_visits_are_samples_and_q_their_mean(world, n):
    tree = played(Sampling(n=n, limits=Limits(max_tokens=20)), world)
    assert tree.root.visits == n == sum(ch.visits for ch in tree.root.children)
    assert all(ch.visits == ch.samples and ch.q in (-1.0, 1.0) for ch in tree.root.children)
    right = sum(ch.samples for ch in tree.root.children if ch.reward == 1.0)
    assert tree.root.q == (2 * right - n) / n
