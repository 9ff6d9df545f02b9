"""The rules of a search against numbers worked out by hand."""

import math

import pytest

from treepref.search.rules import (
    backup_mean,
    leaf_value,
    mean_logprob,
    mean_logprob_prior,
    outcome,
    puct_alphamath,
)
from treepref.types import Completion, Node


def node(parent=None, **fields):
    return Node(index=0, parent=parent, **fields)


def test_puct_of_a_visited_child():
    parent, child = node(visits=16), node(visits=3, total=1.5, prior=0.4)
    # 1.5/3 + 1.5 * 0.4 * 4 / 4
    assert puct_alphamath(parent, child, 1.5) == pytest.approx(0.5 + 0.6)


def test_puct_of_an_unvisited_child_has_no_q():
    # 0 + 1.25 * 0.8 * 3 / 1
    assert puct_alphamath(node(visits=9), node(prior=0.8), 1.25) == pytest.approx(3.0)


def test_pending_counts_as_visits_in_the_exploration_term_alone():
    parent, child = node(visits=7, pending=2), node(visits=1, total=0.5, prior=0.5, pending=1)
    # Q stays 0.5 / 1; exploration 2 * 0.5 * sqrt(9) / (1 + 1 + 1)
    assert puct_alphamath(parent, child, 2.0) == pytest.approx(0.5 + 1.0)


def test_prior_is_the_geometric_mean_probability():
    completion = Completion((1, 2), (math.log(0.9), math.log(0.4)), "step")
    assert mean_logprob_prior(completion) == pytest.approx(0.6)


def test_prior_leaves_forced_tokens_out():
    forced = Completion((1, 2, 3), (math.log(0.5), -9.0, -9.0), "step", forced=(False, True, True))
    assert mean_logprob_prior(forced) == pytest.approx(0.5)
    all_forced = Completion((1,), (-9.0,), "step", forced=(True,))
    assert mean_logprob_prior(all_forced) == 1.0
    assert mean_logprob(()) == 0.0


def test_backup_adds_to_every_node_up_to_the_root():
    root = node(visits=3, total=1.0)
    child = node(parent=root, visits=1, total=-1.0)
    leaf = node(parent=child)
    backup_mean(leaf, 0.5)
    assert [(n.visits, n.total) for n in (root, child, leaf)] == [(4, 1.5), (2, -0.5), (1, 0.5)]
    assert root.q == 0.375


def test_outcome_prefers_the_reward_to_the_value():
    assert outcome(node(reward=-1.0, value=0.9)) == -1.0
    assert outcome(node(value=0.9)) == 0.9
    assert outcome(node()) == 0.0
    assert leaf_value(node()) == 0.0
    assert leaf_value(node(value=-0.3)) == -0.3
