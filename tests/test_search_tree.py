"""Growing, exhausting, snapshots and digests of trees."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treepref.search
from test_search_mcts import PROMPT, played, searches, worlds
from tree_columns import columns, stored_and_read
from treepref.errors import ModelError
from treepref.runs.codec import digest_tree, pack_tree
from treepref.runs.codec_1 import tree_from_columns
from treepref.search.base import Expansion, solution_tokens
from treepref.search.limits import Limits
from treepref.search.rules import mean_logprob_prior
from treepref.search.tree import (
    add_children,
    best_solution,
    grow,
    mark_exhausted,
    mark_pending,
    path_mean_logprob,
)
from treepref.types import Completion, Node, PolicyId, Tree, new_tree

NODE_FIELDS = [f for f in Node.__dataclass_fields__ if f not in ("parent", "children", "pending")]
TREE_FIELDS = [f for f in Tree.__dataclass_fields__ if f != "nodes"]


def sample(*tokens, p=0.5, finish="step", **more):
    return Completion(tokens, (math.log(p),) * len(tokens), finish, **more)


def assert_equal_trees(a, b):
    assert [getattr(a, f) for f in TREE_FIELDS] == [getattr(b, f) for f in TREE_FIELDS]
    for one, other in zip(a.nodes, b.nodes, strict=True):
        assert [getattr(one, f) for f in NODE_FIELDS] == [getattr(other, f) for f in NODE_FIELDS]
        assert [ch.index for ch in one.children] == [ch.index for ch in other.children]
        assert (one.parent and one.parent.index) == (other.parent and other.parent.index)


def test_equal_siblings_are_one_child():
    tree = new_tree("k", "p", PROMPT)
    first = sample(2, 1, p=0.5, value=0.1)
    made = add_children(tree, tree.root, [first, sample(3, 1), sample(2, 1, p=0.4, value=0.9)], mean_logprob_prior)
    assert [n.index for n in made] == [1, 2, 1]
    assert [n.samples for n in tree.root.children] == [2, 1]
    assert (made[0].value, made[0].logprobs) == (0.1, first.logprobs)  # the first sample's stay
    add_children(tree, tree.root, [sample(3, 1)], mean_logprob_prior)
    assert [n.samples for n in tree.root.children] == [2, 2] and len(tree.nodes) == 3
    add_children(tree, made[0], [sample(2, 1)], mean_logprob_prior)  # equal tokens elsewhere are another node
    assert len(tree.nodes) == 4 and tree.nodes[3].depth == 2


def test_grow_sorts_finished_cut_and_open_children():
    tree = new_tree("k", "p", PROMPT)
    completions = [sample(2, 0, finish="eos"), sample(3, 3, finish="length"), sample(4, 1), sample(5, 1)]
    expansion = Expansion(tree.root, n=6, temperature=1.0, max_tokens=2)
    grow(tree, expansion, completions, [1.0, None, None, None], mean_logprob_prior, lambda n: n.tokens[0] != 5)
    seen = [(n.terminal, n.reward, n.exhausted) for n in tree.root.children]
    assert seen == [(True, 1.0, True), (True, -1.0, True), (False, None, False), (True, -1.0, True)]
    assert tree.failed == 4  # one cut, one refused, two that never came
    assert tree.root.expanded and not tree.root.exhausted


def test_given_continuations_are_children_without_samples_and_confidence_comes_from_the_completion():
    tree = new_tree("k", "p", PROMPT)
    expansion = Expansion(tree.root, n=2, temperature=1.0, max_tokens=9, given=((2, 1), (4, 0)))
    completions = [
        sample(2, 1, choice_probs=(0.6, 0.2)),
        sample(3, 1),
        sample(2, 1, choice_probs=(0.9, 0.1)),  # given, and sampled too: one child, its sample counts
        sample(4, 0, finish="eos", choice_probs=(0.1, 0.3)),
    ]

    def confidence(completion: Completion) -> float | None:
        return completion.choice_probs and completion.choice_probs[0]

    rewards = [None, None, None, 1.0]
    made = grow(tree, expansion, completions, rewards, mean_logprob_prior, lambda n: True, confidence)
    assert [n.index for n in made] == [1, 2, 1, 3]
    assert [(n.samples, n.confidence) for n in tree.root.children] == [(1, 0.6), (1, None), (0, 0.1)]
    assert tree.failed == 0 and tree.nodes[3].reward == 1.0
    other = new_tree("k", "p", PROMPT)
    expansion = Expansion(other.root, n=2, temperature=1.0, max_tokens=9, given=((2, 1),))
    with pytest.raises(ValueError, match="4 completions for 3"):
        grow(other, expansion, completions, rewards, mean_logprob_prior, lambda n: True)
    with pytest.raises(ModelError, match="no probabilities"):
        bad = [sample(2, 1, choice_probs=(math.nan, 0.1))]
        grow(other, expansion, bad, [None], mean_logprob_prior, lambda n: True)
    grow(other, expansion, completions[1:3], [None, None], mean_logprob_prior, lambda n: True)
    assert other.failed == 1


def test_a_merged_solution_keeps_its_reward_when_it_was_judged_once():
    tree = new_tree("k", "p", PROMPT)
    done = sample(2, 0, finish="eos")
    grow(tree, Expansion(tree.root, 2, 1.0, 9), [done, done], [1.0, None], mean_logprob_prior, lambda n: True)
    assert (tree.nodes[1].reward, tree.nodes[1].samples) == (1.0, 2)


def test_exhaustion_climbs_only_over_finished_siblings():
    tree = new_tree("k", "p", PROMPT)
    a, b = add_children(tree, tree.root, [sample(2, 1), sample(3, 1)], mean_logprob_prior)
    tree.root.expanded = True
    (leaf,) = add_children(tree, a, [sample(4, 0)], mean_logprob_prior)
    a.expanded = leaf.terminal = True
    mark_exhausted(leaf)
    assert (leaf.exhausted, a.exhausted, tree.root.exhausted) == (True, True, False)
    b.expanded = True  # no child came: nothing is left below it
    mark_exhausted(b)
    assert b.exhausted and tree.root.exhausted


def test_a_tell_that_nobody_asked_for_leaves_pending_alone():
    tree = new_tree("k", "p", PROMPT)
    a, b = add_children(tree, tree.root, [sample(2, 1), sample(3, 1)], mean_logprob_prior)
    mark_pending(a, +1)
    mark_pending(b, -1)
    assert [n.pending for n in (tree.root, a, b)] == [1, 1, 0]
    mark_pending(a, -1)
    assert [n.pending for n in (tree.root, a, b)] == [0, 0, 0]


def test_room_is_what_both_limits_leave():
    tree = new_tree("k", "p", PROMPT)  # three prompt tokens
    (a,) = add_children(tree, tree.root, [sample(2, 1)], mean_logprob_prior)
    (b,) = add_children(tree, a, [sample(3, 3, 1)], mean_logprob_prior)
    assert Limits(max_tokens=10).room(tree, b) == 5
    assert Limits(max_context=10).room(tree, b) == 2
    assert Limits(max_tokens=10, max_context=10).room(tree, b) == 2
    assert Limits(max_tokens=4, max_context=100).room(tree, b) == -1
    assert Limits().room(tree, b) > 10**9


def test_best_solution_by_value_then_likelihood_then_age():
    tree = new_tree("k", "p", PROMPT)
    assert best_solution(tree) is None
    step, low, cut = add_children(
        tree,
        tree.root,
        [sample(2, 1, p=0.1), sample(3, 0, p=0.9, finish="eos", value=0.2), sample(9, 9, finish="length", value=1.0)],
        mean_logprob_prior,
    )
    low.terminal = cut.terminal = True
    assert best_solution(tree) is low
    likely, unlikely, twin = add_children(
        tree,
        step,
        [sample(t, 0, p=p, finish="eos", value=0.6) for t, p in ((6, 0.3), (4, 0.2), (5, 0.3))],
        mean_logprob_prior,
    )
    for n in (likely, unlikely, twin):
        n.terminal = True
    low.reward = 1.0  # ground truth has no say
    assert best_solution(tree) is likely
    assert path_mean_logprob(likely) == pytest.approx((math.log(0.1) + math.log(0.3)) / 2)
    unlikely.value = 0.7
    assert best_solution(tree) is unlikely
    for n in tree.nodes:
        n.value = None
    assert best_solution(tree) is low  # without values: the likeliest whole solution


@settings(max_examples=40, deadline=None)
@given(worlds, searches, st.booleans())
def test_snapshots_are_exact(world, search, judge):
    tree = played(search, world, judge)
    assert_equal_trees(stored_and_read(tree), tree)
    assert_equal_trees(tree_from_columns(json.loads(json.dumps(columns(tree)))), tree)


def test_snapshot_keeps_optional_columns_node_by_node():
    tree = new_tree("ключ", "p", PROMPT, policy=PolicyId("p3"))
    tree.q_range, tree.simulations, tree.failed = (-1.0, 2.0), 7, 2
    completions = [
        sample(2, 1, forced=(False, True)),
        sample(3, 1, behaviour=(-0.1, -0.2), value=0.1),
        sample(4, 4, 0, finish="eos"),
    ]
    add_children(tree, tree.root, completions, mean_logprob_prior)
    tree.nodes[3].confidence = 0.25
    restored = stored_and_read(tree)
    assert_equal_trees(restored, tree)
    assert [n.confidence for n in restored.nodes] == [None, None, None, 0.25]
    tree.nodes[3].confidence = None
    assert all(node.confidence is None for node in stored_and_read(tree).nodes)
    assert restored.nodes[1].forced == (False, True) and restored.nodes[2].behaviour == (-0.1, -0.2)


def test_floats_are_stored_short_only_where_nothing_is_lost():
    tree = new_tree("k", "p", PROMPT)
    short = struct.unpack("f", struct.pack("f", -0.1))[0]
    add_children(tree, tree.root, [Completion((2,), (short,), "step")], mean_logprob_prior)
    with_short = len(pack_tree(tree))
    add_children(tree, tree.root, [Completion((3,), (-0.1,), "step")], mean_logprob_prior)
    added = len(pack_tree(tree)) - with_short
    tree.nodes[2].logprobs = (short,)
    assert added - (len(pack_tree(tree)) - with_short) == 4
    tree.nodes[2].logprobs = (-0.1,)
    assert stored_and_read(tree).nodes[2].logprobs == (-0.1,) and stored_and_read(tree).nodes[1].logprobs == (short,)


def small_tree():
    tree = new_tree("k", "p", PROMPT)
    add_children(tree, tree.root, [sample(2, 1, value=0.5), sample(3, 0, finish="eos")], mean_logprob_prior)
    tree.nodes[2].reward, tree.nodes[2].visits, tree.nodes[2].total = 1.0, 1, 1.0
    return tree


def test_digest_is_the_same_on_every_machine():
    assert digest_tree(small_tree()).hex() == "97964d1e96b6d864dfbb0ff0a30b936332d4dc7e808598a50035fb5e40ee4ccf"


def test_digest_sees_tokens_outcomes_and_counts_but_no_float():
    reference = digest_tree(small_tree())

    def changed(change):
        tree = small_tree()
        change(tree)
        return digest_tree(tree) != reference

    def put(index, **fields):
        def change(tree):
            for name, value in fields.items():
                setattr(tree.nodes[index], name, value)

        return change

    assert not changed(put(1, value=0.6, prior=0.1, logprobs=(-7.0, -7.0)))
    assert not changed(put(2, total=0.9))
    assert not changed(put(2, reward=0.9))
    assert changed(put(2, reward=-1.0))
    assert changed(put(2, reward=None))
    assert changed(put(2, visits=2))
    assert changed(put(2, samples=2))
    assert changed(put(1, tokens=(2, 2)))
    assert changed(lambda tree: setattr(tree, "prompt", (5, 3)))
    assert changed(lambda tree: setattr(tree, "key", "other"))
    assert solution_tokens(small_tree().nodes[1]) == (2, 1)


@pytest.mark.parametrize(
    "wrong",
    [{"max_depth": 0}, {"max_step_tokens": 0}, {"max_tokens": 0}, {"delimiter": ""}],
    ids=lambda w: next(iter(w)),
)
def test_impossible_limits_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


def test_the_search_room_is_pure():
    """No arrays, no files, no model: what it needs of the world comes in with ask and tell."""
    code = "import sys, treepref.search, treepref.search.episodes; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "sqlite3", "msgspec", "pydantic", "transformers"} & set(loaded)
    assert {name for name in loaded if name.startswith("treepref.")} <= {
        "treepref.errors", "treepref.types", "treepref.search",
        *(f"treepref.search.{path.stem}" for path in Path(treepref.search.__file__).parent.glob("*.py")),
    }  # fmt: skip
