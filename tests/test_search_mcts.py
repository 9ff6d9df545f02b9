"""MCTS: a tree worked out by hand, a recorded run, and what must hold of every search in random worlds."""

import hashlib
import json
import math
import random
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tree_columns import columns, stored_and_read
from treepref.engines.scripted import ScriptedEngine, World
from treepref.errors import ModelError, TreeprefError
from treepref.runs.codec import digest_tree
from treepref.runs.codec_1 import tree_from_columns
from treepref.search import Mcts
from treepref.search.base import solution_tokens
from treepref.search.limits import Limits
from treepref.search.rules import leaf_value, puct_alphamath
from treepref.search.tree import ancestors
from treepref.types import Completion, Node, Request, new_tree

GOLDEN = Path(__file__).parent / "golden"
PROMPT = (5, 3, 4)


def seeds_of(state, n, salt=""):
    """Seeds of a state's samples, the same however the search came there."""
    return tuple(
        int.from_bytes(hashlib.blake2b(f"{salt}{state}:{i}".encode(), digest_size=6).digest(), "little")
        for i in range(n)
    )


def answer(engine, tree, expansion, judge):
    """What a driver tells a search: completions, rewards and the prefix's value."""
    state = tree.prompt + solution_tokens(expansion.node)
    request = Request(
        id="r",
        prefix=state,
        n=expansion.n,
        seeds=seeds_of(state, expansion.n),
        max_tokens=expansion.max_tokens,
        temperature=expansion.temperature,
        top_p=expansion.top_p,
        delimiter=expansion.delimiter,
        want_value=expansion.want_value,
    )
    engine.submit([request])
    (result,) = engine.poll()
    rewards = [judge(state + c.tokens) if judge and c.finish == "eos" else None for c in result.completions]
    return result.completions, rewards, result.prefix_value


def play(search, tree, engine, judge=None, after_tell=lambda tree: tree):
    """Run a search to its end, asking after every tell and telling in ask order. `judge` None: outcomes are unknown."""
    in_flight = deque(search.ask(tree))
    while in_flight:
        expansion = in_flight.popleft()
        search.tell(tree, expansion, *answer(engine, tree, expansion, judge))
        tree = after_tell(tree)
        in_flight.extend(search.ask(tree))
    assert search.done(tree)
    return tree


def played(search, world=None, judge=True, key="t", **engine):
    world = world or World()
    tree = new_tree(key, key, PROMPT)
    return play(search, tree, ScriptedEngine(world=world, **engine), world.reward if judge else None)


def random_world(seed):
    draw = random.Random(f"world {seed}")
    return World(seed=seed, words=draw.randint(1, 4), eos_bias=draw.uniform(-3, 1), sharpness=draw.uniform(0.5, 2))


def random_search(seed):
    draw = random.Random(f"search {seed}")
    return Mcts(
        simulations=draw.randint(1, 30),
        children=draw.randint(1, 5),
        root_children=draw.choice([None, None, 1, 6]),
        c=draw.choice([0.0, 1.5, 5.0]),
        leaves_in_flight=draw.randint(1, 4),
        seed=seed,
        limits=Limits(
            temperature=draw.choice([0.6, 1.0, 1.0]),
            max_depth=draw.randint(2, 6),
            max_step_tokens=draw.randint(2, 12),
            max_tokens=draw.choice([None, None, 8, 20]),
        ),
    )


# Drawn by our own random numbers: hypothesis would mostly try trees too small to go wrong.
worlds = st.integers(0, 10**6).map(random_world)
searches = st.integers(0, 10**6).map(random_search)


# ------------------------------------------------------------------------------------------------------- golden


def test_tree_worked_out_by_hand():
    golden = json.loads((GOLDEN / "mcts_by_hand.json").read_text())
    search = Mcts(**golden["constants"], limits=Limits(**golden["limits"]))
    tree = new_tree("by-hand", "p", golden["prompt"])
    for step in golden["simulations"]:
        scores = [puct_alphamath(tree.root, child, search.c) for child in tree.root.children]
        if step["scores"]:
            assert scores == pytest.approx(step["scores"], rel=1e-12)
        (expansion,) = search.ask(tree)
        assert list(solution_tokens(expansion.node)) == step["leaf"], step["why"]
        completions = [
            Completion(tuple(tokens), (math.log(p),) * len(tokens), finish, value=value)
            for tokens, p, finish, value, _ in step["samples"]
        ]
        search.tell(tree, expansion, completions, [s[4] for s in step["samples"]], step["prefix_value"])
        for node, (parent, tokens, visits, total, samples, exhausted) in zip(tree.nodes, step["nodes"], strict=True):
            assert (-1 if node.parent is None else node.parent.index) == parent
            assert list(node.tokens) == tokens
            assert (node.visits, node.samples, node.exhausted) == (visits, samples, exhausted), step["why"]
            assert node.total == pytest.approx(total, abs=1e-12), step["why"]
    assert search.done(tree) and search.ask(tree) == []
    assert tree.simulations == 4
    assert tree.failed == golden["failed"]
    answer = search.answer(tree)
    assert answer is not None and answer.tokens == (4, 0)


RECORDED = {
    "mcts_recorded": (
        World(seed=11),
        Mcts(simulations=16, children=3, limits=Limits(temperature=0.9, max_depth=5, max_step_tokens=9)),
    ),
    "mcts_recorded_parallel": (
        World(seed=13),
        Mcts(simulations=20, children=3, leaves_in_flight=4, evaluate="rollout", seed=5, limits=Limits(max_depth=4)),
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_run_has_not_changed(name):
    world, search = RECORDED[name]
    recorded = json.loads((GOLDEN / f"{name}.json").read_text())
    tree = played(search, world)
    assert digest_tree(tree).hex() == recorded.pop("digest")
    now = columns(tree)
    assert now.keys() == recorded.keys()
    for column, values in recorded.items():
        if column in ("total", "prior", "logprobs", "behaviour", "value", "reward"):
            np.testing.assert_allclose(np.array(now[column], float), np.array(values, float), atol=1e-12)
        else:
            assert now[column] == values, column
    assert digest_tree(tree_from_columns(recorded)) == digest_tree(tree)


# --------------------------------------------------------------------------------------------------- invariants


@settings(max_examples=60, deadline=None)
@given(worlds, searches, st.booleans())
def test_sums_hold_in_every_tree(world, search, judge):
    tree = played(search, world, judge)
    terminal = [n for n in tree.nodes if n.terminal]
    # One backup a simulation and one for each distinct terminal child.
    assert tree.root.visits == tree.simulations + len(terminal)
    for n in tree.nodes:
        below = sum(ch.visits for ch in n.children)
        if n.terminal:
            assert (n.visits, n.expanded, n.children) == (1, False, [])
        else:
            own = leaf_value(n) if n.expanded else 0.0
            assert n.visits == below + n.expanded
            assert n.total == pytest.approx(math.fsum(ch.total for ch in n.children) + own, abs=1e-9)
        assert n.pending == 0
        assert n.q is None or -1 <= n.q <= 1
        assert n.depth <= search.limits.max_depth
        assert n.exhausted == (n.terminal or (n.expanded and all(ch.exhausted for ch in n.children)))
        assert len({ch.tokens for ch in n.children}) == len(n.children)
    sampled = sum(n.samples for n in tree.nodes[1:])
    asked = search.children * (tree.simulations - 1) + (search.root_children or search.children)
    assert sampled == asked


@settings(max_examples=60, deadline=None)
@given(worlds, searches)
def test_a_tree_ends_only_when_its_budget_or_its_leaves_are_spent(world, search):
    tree = played(search, world)
    open_leaves = [n for n in tree.nodes if not n.terminal and not n.expanded]
    assert tree.simulations <= search.simulations
    if tree.simulations < search.simulations:
        assert open_leaves == [] and tree.root.exhausted


@settings(max_examples=30, deadline=None)
@given(worlds, searches)
def test_snapshot_and_restore_after_each_tell_changes_nothing(world, search):
    search = Mcts(**{**fields_of(search), "leaves_in_flight": 1})
    reference = played(search, world)
    engine = ScriptedEngine(world=world)
    tree = new_tree("t", "t", PROMPT)
    restored = play(search, tree, engine, world.reward, stored_and_read)
    assert same_tree(restored, reference)


@settings(max_examples=30, deadline=None)
@given(worlds, searches)
def test_replaying_the_tells_rebuilds_the_tree_with_leaves_in_flight(world, search):
    reference = played(search, world)
    assert same_tree(played(search, world), reference)


def fields_of(search):
    return {name: getattr(search, name) for name in search.__dataclass_fields__}


def same_tree(a, b):
    return repr(columns(a)) == repr(columns(b))


# -------------------------------------------------------------------------------------------------- single rules


def step(token, p=0.5, value=None, finish="step"):
    return Completion((token, 0 if finish == "eos" else 1), (math.log(p),) * 2, finish, value=value)


def test_ties_are_drawn_by_seed_key_and_simulation_and_are_repeatable():
    def first_leaf(seed, key="k", simulations=0):
        tree = new_tree(key, "p", PROMPT)
        tree.simulations = simulations
        search = Mcts(children=4, seed=seed)
        search.tell(tree, search.ask(tree)[0], [step(t) for t in (2, 3, 4, 5)], [None] * 4, 0.0)
        return search.ask(tree)[0].node.index

    assert first_leaf(1) == first_leaf(1)
    assert {first_leaf(seed) for seed in range(40)} == {1, 2, 3, 4}
    assert {first_leaf(0, simulations=i) for i in range(38)} == {1, 2, 3, 4}
    assert {first_leaf(0, f"key-{i}") for i in range(40)} == {1, 2, 3, 4}


def test_leaves_in_flight_are_distinct_and_spread_out():
    tree = new_tree("k", "p", PROMPT)
    search = Mcts(simulations=10, children=3, leaves_in_flight=4)
    (root,) = search.ask(tree)
    assert search.ask(tree) == []  # everything open is in flight
    search.tell(tree, root, [step(2, 0.9), step(3, 0.5), step(4, 0.4)], [None] * 3, 0.0)
    leaves = search.ask(tree)
    assert sorted(e.node.index for e in leaves) == [1, 2, 3]
    assert tree.root.pending == 3
    for expansion in leaves:
        search.tell(tree, expansion, [], [], None)
    assert tree.root.pending == 0 and tree.root.exhausted


def test_asks_never_exceed_the_budget():
    tree = new_tree("k", "p", PROMPT)
    search = Mcts(simulations=3, children=5, leaves_in_flight=8)
    search.tell(tree, search.ask(tree)[0], [step(t) for t in range(2, 7)], [None] * 5, 0.0)
    assert len(search.ask(tree)) == 2


def test_an_engine_error_costs_one_leaf():
    tree = new_tree("k", "p", PROMPT)
    search = Mcts(simulations=4, children=2)
    search.tell(tree, search.ask(tree)[0], [step(2, 0.9, 0.5), step(3, 0.1)], [None, None], 0.1)
    (expansion,) = search.ask(tree)
    search.tell(tree, expansion, [], [], None)
    assert expansion.node.exhausted and expansion.node.expanded and tree.failed == 2
    assert expansion.node.q == 0.5
    assert [e.node.index for e in search.ask(tree)] == [2]


def test_an_error_at_the_root_ends_the_tree():
    tree = new_tree("k", "p", PROMPT)
    search = Mcts()
    search.tell(tree, search.ask(tree)[0], [], [], None)
    assert search.done(tree) and search.ask(tree) == [] and tree.failed == 5 and search.answer(tree) is None


def test_fewer_completions_than_asked_cost_those_children_alone():
    tree = new_tree("k", "p", PROMPT)
    search = Mcts(children=3)
    search.tell(tree, search.ask(tree)[0], [step(2)], [None], 0.0)
    assert len(tree.root.children) == 1 and tree.failed == 2 and not search.done(tree)


def test_unknown_outcomes_are_scored_by_their_own_value():
    tree = new_tree("k", "p", PROMPT)
    search = Mcts(children=3)
    completions = [step(2, finish="eos", value=0.7), step(3, finish="eos"), step(4, finish="length", value=0.9)]
    search.tell(tree, search.ask(tree)[0], completions, [None] * 3, 0.0)
    assert [ch.total for ch in tree.root.children] == [0.7, 0.0, -1.0]
    assert [ch.reward for ch in tree.root.children] == [None, None, -1.0]
    assert search.answer(tree) is tree.root.children[0]


def test_the_roots_value_comes_with_the_prompt():
    tree = new_tree("k", "p", PROMPT)
    search = Mcts(children=1)
    search.tell(tree, search.ask(tree)[0], [step(2)], [None], -0.25)
    assert (tree.root.value, tree.root.q) == (-0.25, -0.25)


def test_room_in_the_context_limits_steps_and_fails_what_cannot_go_on():
    tree = new_tree("k", "p", PROMPT)
    search = Mcts(children=2, limits=Limits(max_step_tokens=8, max_context=len(PROMPT) + 2))
    (expansion,) = search.ask(tree)
    assert expansion.max_tokens == 2
    short = Completion((1,), (-0.1,), "step")
    search.tell(tree, expansion, [step(2), short], [None, None], 0.0)
    full, open_ = tree.root.children
    assert (full.terminal, full.reward) == (True, -1.0)
    assert not open_.terminal
    assert search.ask(tree)[0].max_tokens == 1


def test_a_prompt_that_fills_the_context_is_done_at_once():
    tree = new_tree("k", "p", PROMPT)
    search = Mcts(limits=Limits(max_context=len(PROMPT)))
    assert search.done(tree) and search.ask(tree) == []


@pytest.mark.parametrize("value", [math.nan, 1.01, -2.0, math.inf])
def test_impossible_values_are_refused_before_the_tree_is_touched(value):
    tree = new_tree("tree-7", "p", PROMPT)
    search = Mcts(children=2)
    (expansion,) = search.ask(tree)
    before = digest_tree(tree)
    with pytest.raises(ModelError, match=r"tree-7.*sample 1.*outside \[-1, 1\]"):
        search.tell(tree, expansion, [step(2), step(3, value=value)], [None, None], 0.0)
    with pytest.raises(ModelError, match="outside"):
        search.tell(tree, expansion, [step(2)], [None], value)
    assert digest_tree(tree) == before
    search.tell(tree, expansion, [step(2), step(3)], [None, None], 0.0)
    assert tree.root.pending == 0


def test_impossible_rewards_logprobs_and_counts_are_refused():
    tree = new_tree("k", "p", PROMPT)
    search = Mcts(children=2)
    (expansion,) = search.ask(tree)
    for reward in (math.nan, 1.5):
        with pytest.raises(TreeprefError, match="reward"):
            search.tell(tree, expansion, [step(2, finish="eos")], [reward], 0.0)
    with pytest.raises(ModelError, match="NaN"):
        search.tell(tree, expansion, [Completion((2, 1), (-1.0, math.nan), "step")], [None], 0.0)
    with pytest.raises(ModelError, match="2 tokens"):
        search.tell(tree, expansion, [Completion((2, 1), (-1.0,), "step")], [None], 0.0)
    with pytest.raises(ValueError, match="3 completions for 2"):
        search.tell(tree, expansion, [step(2)] * 3, [None] * 3, 0.0)
    with pytest.raises(ValueError, match="rewards"):
        search.tell(tree, expansion, [step(2)], [], 0.0)
    search.tell(tree, expansion, [step(2)], [None], 0.0)
    with pytest.raises(ValueError, match="already expanded"):
        search.tell(tree, expansion, [step(2)], [None], 0.0)


@pytest.mark.parametrize(
    "wrong",
    [{"simulations": 0}, {"leaves_in_flight": 0}, {"evaluate": "guess"}, {"root_children": 0}],
)
def test_impossible_constants_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Mcts(**wrong)


# ----------------------------------------------------------------------------------------------------- roll-outs


def test_rollout_scores_the_leaf_and_adds_no_child():
    tree = new_tree("k", "p", PROMPT)
    search = Mcts(simulations=5, children=2, evaluate="rollout", limits=Limits(max_depth=4, max_step_tokens=10))
    (rollout,) = search.ask(tree)
    assert (rollout.n, rollout.delimiter, rollout.max_tokens) == (1, None, 40)
    search.tell(tree, rollout, [step(2, finish="eos", value=-0.5)], [1.0], 0.3)
    assert (len(tree.nodes), tree.root.value, tree.root.visits, tree.simulations) == (1, 1.0, 0, 0)
    (expansion,) = search.ask(tree)
    assert (expansion.node, expansion.n, expansion.delimiter) == (tree.root, 2, "\n")
    search.tell(tree, expansion, [step(2, 0.9, value=0.8), step(3, 0.1, finish="eos", value=0.2)], [None, -1.0], 0.3)
    assert (tree.root.visits, tree.root.total, tree.simulations) == (2, 0.0, 1)
    assert tree.root.children[0].value is None  # its own roll-out will tell
    (rollout,) = search.ask(tree)
    assert rollout.node is tree.root.children[0] and rollout.max_tokens == 30


@pytest.mark.parametrize(
    ("completions", "reward", "value", "failed"),
    [
        ([step(2, finish="eos")], -1.0, -1.0, 0),
        ([step(2, finish="eos", value=0.4)], None, 0.4, 0),
        ([step(2, finish="eos")], None, 0.0, 0),
        ([step(2, finish="length", value=0.4)], None, -1.0, 1),
        ([], None, 0.0, 1),
    ],
)
def test_what_a_rollout_is_worth(completions, reward, value, failed):
    tree = new_tree("k", "p", PROMPT)
    search = Mcts(evaluate="rollout")
    search.tell(tree, search.ask(tree)[0], completions, [reward] * len(completions), None)
    assert (tree.root.value, tree.failed, tree.root.pending) == (value, failed, 0)
    assert search.ask(tree)[0].delimiter == "\n"


@settings(max_examples=20, deadline=None)
@given(worlds, searches)
def test_rollouts_keep_the_sums(world, search):
    tree = played(Mcts(**{**fields_of(search), "evaluate": "rollout"}), world)
    assert tree.root.visits == tree.simulations + sum(n.terminal for n in tree.nodes)
    assert all(n.value in (-1.0, 1.0) for n in tree.nodes if n.expanded)
    assert all(n.pending == 0 for n in tree.nodes)


# --------------------------------------------------------------------------------------------------------- speed


def test_a_simulation_in_a_large_tree_looks_at_one_path_alone():
    calls = 0

    def counted(parent, child, c):
        nonlocal calls
        calls += 1
        return puct_alphamath(parent, child, c)

    tree = new_tree("k", "p", PROMPT)
    level = [tree.root]
    for depth in range(1, 6):  # ten children each: 111,111 nodes
        below = []
        for parent in level:
            parent.expanded, parent.visits = True, 10 ** (6 - depth)
            for token in range(10):
                child = Node(len(tree.nodes), parent, (token,), (-0.5,), depth=depth, prior=0.6)
                parent.children.append(child)
                tree.nodes.append(child)
            below += parent.children
        level = below
    search = Mcts(simulations=1000, children=2, score=counted, limits=Limits(max_depth=50))
    for _ in range(200):
        (expansion,) = search.ask(tree)
        search.tell(tree, expansion, [step(2), step(3)], [None, None], None)
    assert calls <= 200 * 10 * 12
    assert sum(1 for _ in ancestors(expansion.node)) <= 60


if __name__ == "__main__":  # records the golden runs anew: only when a rule was changed on purpose
    for name, (world, search) in RECORDED.items():
        tree = played(search, world)
        record = {"digest": digest_tree(tree).hex(), **columns(tree)}
        (GOLDEN / f"{name}.json").write_text(json.dumps(record) + "\n")
