"""Search whose simulations run to the end: numbers worked out by hand, a recorded run, and what must always hold."""

from __future__ import annotations

import json
import math
import random
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_search_mcts import PROMPT, random_world, same_tree, seeds_of, step
from tree_columns import columns, stored_and_read
from treepref.engines.scripted import ScriptedEngine, World
from treepref.errors import ModelError
from treepref.runs.codec import digest_tree
from treepref.search.base import path_nodes, solution_tokens
from treepref.search.episodes import EpisodeMcts
from treepref.search.limits import Limits
from treepref.search.rules import (
    backup_values,
    length_prior,
    puct_first,
    reward_gain,
    reward_of_state,
    state_reward,
    state_value,
)
from treepref.search.self_evaluation import confidence, reference_step
from treepref.types import Choice, Completion, Node, Request, new_tree

GOLDEN = Path(__file__).parent / "golden"
CHOICE = Choice(suffix=(7,), options=((8,), (9,)))


def says_right(state):
    """A policy's confidence that depends on nothing but the state."""
    return random.Random(f"C {state}").random()


def play(search, tree, engine, judge, after_tell=lambda tree: tree, tells=None):
    in_flight = deque(search.ask(tree))
    while in_flight:
        expansion = in_flight.popleft()
        state = tree.prompt + solution_tokens(expansion.node)
        seeds = seeds_of(state, expansion.n)
        request = Request("r", state, expansion.n, seeds, expansion.max_tokens, expansion.temperature)
        engine.submit([request])
        (result,) = engine.poll()
        completions = [
            replace(c, choice_probs=(says_right(state + c.tokens), 0.1))
            if expansion.choice and c.finish != "length"
            else c
            for c in result.completions
        ]
        rewards = [judge(state + c.tokens) if c.finish == "eos" else None for c in completions]
        if tells is not None:
            tells.append((expansion.node.index, completions, rewards))
        search.tell(tree, expansion, completions, rewards, None)
        tree = after_tell(tree)
        in_flight.extend(search.ask(tree))
    assert search.done(tree)
    return tree


def played(search, world, key="t"):
    return play(search, new_tree(key, key, PROMPT), ScriptedEngine(world=world), world.reward)


def random_episodes(seed):
    draw = random.Random(f"episodes {seed}")
    asked = draw.random() < 0.6
    return EpisodeMcts(
        simulations=draw.randint(1, 25),
        children=draw.randint(1, 4),
        root_children=draw.choice([None, 1, 6]),
        c=draw.choice([0.0, 1.0, 5.0]),
        length_power=draw.choice([0.0, 0.5, 1.0, 1.25]),
        seed=seed,
        weight=draw.choice([0.0, 0.5, 1.0]) if asked else 0.0,
        choice=CHOICE if asked else None,
        reward=draw.choice([reward_gain, reward_of_state]),
        limits=Limits(
            temperature=draw.choice([0.6, 1.0]),
            max_depth=draw.randint(1, 6),
            max_step_tokens=draw.randint(2, 12),
            max_tokens=draw.choice([None, 8, 20]),
        ),
    )


worlds = st.integers(0, 10**6).map(random_world)
searches = st.integers(0, 10**6).map(random_episodes)


# -------------------------------------------------------------------------------------------------- by hand


def test_length_prior_by_hand():
    two = Completion((4, 1), (math.log(0.5), math.log(0.25)), "step")
    assert length_prior(two, 0.0) == pytest.approx(0.125)
    assert length_prior(two, 1.0) == pytest.approx(0.125 / 2)
    assert length_prior(two, 1.5) == pytest.approx(0.125 / 2**1.5)
    forced = replace(two, forced=(False, True))
    assert length_prior(forced, 1.0) == pytest.approx(0.5), "a forced token is not the policy's"
    assert length_prior(replace(two, forced=(True, True)), 1.0) == 1.0
    long = Completion((4,) * 5000, (-2.0,) * 5000, "step")
    assert 0.0 <= length_prior(long, 3.0) < 1e-300, "no overflow, no error"


def test_a_longer_step_of_equal_probability_has_the_smaller_prior():
    short = Completion((4,), (-1.0,), "step")
    long = Completion((4, 5), (-0.5, -0.5), "step")
    assert length_prior(long, 1.0) == pytest.approx(length_prior(short, 1.0) / 2)


def test_puct_by_hand():
    parent = Node(0, None, visits=9)
    assert puct_first(parent, Node(1, parent, visits=2, total=1.0, prior=0.3), 2.0, 7.0) == pytest.approx(0.5 + 0.6)
    assert puct_first(parent, Node(1, parent, prior=0.3), 2.0, 0.25) == pytest.approx(0.25 + 1.8)
    fresh = Node(0, None)
    assert puct_first(fresh, Node(1, fresh, prior=0.3), 2.0, 0.0) == pytest.approx(0.6), "the running visit counts"


def test_tree_worked_out_by_hand():
    """Two children, three steps at most, C on with weight ½, r = R(s') − R(s).

    Priors are π / |a| of two-token steps: p² / 2.
    """
    search = EpisodeMcts(
        simulations=4,
        children=2,
        root_children=2,
        c=1.0,
        weight=0.5,
        choice=CHOICE,
        limits=Limits(max_depth=3, max_step_tokens=3),
    )
    tree = new_tree("by-hand", "p", (9,))

    def tell(at, *samples):
        (expansion,) = search.ask(tree)
        assert list(solution_tokens(expansion.node)) == at
        completions = [
            Completion(t, (math.log(p),) * 2, f, choice_probs=None if c is None else (c, 0.0))
            for t, p, f, c, _ in samples
        ]
        search.tell(tree, expansion, completions, [s[4] for s in samples], None)

    def numbers():
        return [(n.visits, round(n.total, 9)) for n in tree.nodes]

    # Simulation 1. Root: A (p = .6, C = .8) scores ½·.8 + .18 = .58, B (p = .8, C = .2) ½·.2 + .32 = .42: on to A.
    tell([], ((2, 1), 0.6, "step", 0.8, None), ((3, 1), 0.8, "step", 0.2, None))
    assert tree.simulations == 0 and numbers() == [(0, 0.0)] * 3
    # A: A1 is right, C = .6, gain ½(.6 − .8) = −.1, prior .18; A2 goes on, C = 1, gain .1, prior .08. −.1 + .18 = .08
    # against .1 + .08 = .18: on to A2.
    tell([2, 1], ((4, 0), 0.6, "eos", 0.6, 1.0), ((5, 1), 0.4, "step", 1.0, None))
    assert tree.simulations == 0
    # A2: its first child is wrong, C = .5: gain ½(.5 − 1) = −.25, prior .08, score −.17; the other was cut, no C:
    # gain −.5, prior .02. The simulation ends in the first: R = −1 + .25.
    tell([2, 1, 5, 1], ((6, 0), 0.4, "eos", 0.5, -1.0), ((7, 8), 0.2, "length", None, None))
    # Q = R(end) − R(s): A21 −.75 − .5 = −1.25; A2 ½(1 − .8) − 1.25 = −1.15; A .4 − 1.15 = −.75; the root the same.
    assert tree.nodes[5].q == pytest.approx(-1.25)
    assert numbers()[:5] == [(1, -0.75), (1, -0.75), (0, 0.0), (0, 0.0), (1, -1.15)]
    # Simulation 2. Root: A −.75 + .18/2 = −.66, B .1 + .32 = .42: on to B, which must be expanded.
    assert tree.simulations == 1
    tell([3, 1], ((4, 0), 0.5, "eos", 0.2, 1.0), ((5, 0), 0.5, "eos", 1.0, -1.0))
    # B1 (right, C = .2): gain 0; B2 (wrong, C = 1): gain .4: what is believed leads to B2. R = −1 + .5; Q(B2) = −.6,
    # Q(B) = .1 − .6 = −.5. Root V = (−.75 − .5)/2.
    # Simulation 3. Root: A −.75 + .18·√2/2 = −.62; B −.5 + .32·√2/2 = −.27: B, where B1 alone is open. Its
    # Q = 1 + .1 − .1 = 1, V(B) = (−.6 + 1)/2 = .2, Q(B) = .3, N = 2. Root V = (−.75 + 2·.3)/3 = −.05.
    # B is spent: simulation 4 goes to A (½ of its children unvisited): A1 .08 + … against A2 −1.15 + …: A1, right.
    # Q(A1) = 1.3 − .4 = .9; V(A) = (−1.15 + .9)/2 = −.125; Q(A) = .4 − .125 = .275; root (2·.275 + 2·.3)/4 = .2875.
    assert tree.simulations == 4 and search.done(tree) and search.ask(tree) == []
    assert [n.visits for n in tree.nodes] == [4, 2, 2, 1, 1, 1, 0, 1, 1]
    q = [n.q for n in tree.nodes]
    assert q[0] == pytest.approx(0.2875)
    assert q[1:4] == pytest.approx([0.275, 0.3, 0.9])
    assert q[6] is None, "the cut step was never visited, so it has no Q"
    assert q[7:] == pytest.approx([1.0, -0.6])
    assert tree.q_range == (-1.5, 1.5) and tree.failed == 1
    assert [n.confidence for n in tree.nodes] == [None, 0.8, 0.2, 0.6, 1.0, 0.5, None, 0.2, 1.0]


def test_rewards_by_hand():
    root = Node(0, None)
    a = Node(1, root, confidence=0.6)
    end = Node(2, a, confidence=0.9, reward=-1.0, terminal=True)
    cut = Node(3, a, reward=-1.0, terminal=True)
    assert [state_reward(n, 0.5) for n in (root, a, end, cut)] == pytest.approx([0.0, 0.3, -0.55, -1.0])
    assert [reward_gain(n, 0.5) for n in (a, end, cut)] == pytest.approx([0.3, -0.85, -1.3])
    assert [reward_of_state(n, 0.5) for n in (a, end, cut)] == pytest.approx([0.3, -0.55, -1.0])
    assert reward_gain(end, 0.0) == -1.0


def test_backup_by_hand():
    """Two ends below A, one below B, weights of visits 2 : 1."""
    root = Node(0, None)
    a, b = Node(1, root), Node(2, root)
    root.children = [a, b]
    a1, a2, b1 = Node(3, a, reward=1.0, terminal=True), Node(4, a, reward=-1.0, terminal=True), Node(5, b, reward=1.0)
    a.children, b.children = [a1, a2], [b1]
    for end in (a1, a2, b1):
        backup_values(end, 0.0, reward_gain)
    assert [n.visits for n in (root, a, b)] == [3, 2, 1]
    assert [n.q for n in (root, a, b)] == pytest.approx([1 / 3, 0.0, 1.0])
    assert state_value(root) == pytest.approx(1 / 3) and state_value(a1) == 0.0


def test_confidence_is_the_mass_of_right_alone_and_impossible_ones_are_refused():
    done = Completion((4, 1), (-0.1, -0.1), "step")
    assert confidence(replace(done, choice_probs=(0.3, 0.1))) == 0.3, "not 0.75: what answers neither is no confidence"
    assert confidence(done) is None
    assert confidence(replace(done, choice_probs=(1.00001, 0.0))) == 1.0
    for wrong in (math.nan, 1.1, -0.1):
        with pytest.raises(ModelError, match="tree 7"):
            confidence(replace(done, choice_probs=(wrong, 0.0)), "tree 7")


def test_a_broken_confidence_leaves_the_tree_untouched():
    tree, search = new_tree("k", "p", PROMPT), EpisodeMcts(choice=CHOICE)
    (expansion,) = search.ask(tree)
    before = digest_tree(tree)
    with pytest.raises(ModelError, match="sample 1"):
        search.tell(tree, expansion, [step(2), replace(step(3), choice_probs=(math.nan, 0.0))], [None] * 2)
    assert digest_tree(tree) == before and not tree.root.expanded


def test_reference_steps_are_given_on_their_own_path_alone():
    reference = ((2, 1), (3, 1), (4, 0))
    assert reference_step(reference, 0, ()) == ((2, 1),)
    assert reference_step(reference, 1, (2, 1)) == ((3, 1),)
    assert reference_step(reference, 1, (3, 1)) == ()
    assert reference_step(reference, 3, (2, 1, 3, 1, 4, 0)) == ()
    search = EpisodeMcts(children=1, root_children=1, reference=reference)
    tree = new_tree("k", "p", PROMPT)
    (expansion,) = search.ask(tree)
    assert (expansion.n, expansion.given) == (1, ((2, 1),))
    search.tell(tree, expansion, [step(5, 0.1), step(2, 0.9)], [None, None])
    (expansion,) = search.ask(tree)
    assert solution_tokens(expansion.node) == (2, 1) and expansion.given == ((3, 1),)


def test_an_expansion_that_brings_nothing_costs_its_leaf_and_not_the_simulation():
    search = EpisodeMcts(simulations=2, children=2, root_children=2)
    tree = new_tree("k", "p", PROMPT)
    search.tell(tree, search.ask(tree)[0], [step(2, 0.9), step(3, 0.5)], [None] * 2)
    first, second = tree.root.children
    (expansion,) = search.ask(tree)
    assert expansion.node is first
    search.tell(tree, expansion, [], [])
    assert tree.simulations == 0 and search.ask(tree)[0].node is second


def test_a_simulation_with_nothing_open_left_ends_where_it_stands():
    search = EpisodeMcts(simulations=3, children=1, root_children=2)
    tree = new_tree("k", "p", PROMPT)
    search.tell(tree, search.ask(tree)[0], [step(2, 0.9), step(3, 0.1)], [None] * 2)
    search.tell(tree, search.ask(tree)[0], [step(4)], [None])
    dead = tree.nodes[3]
    (expansion,) = search.ask(tree)
    assert expansion.node is dead
    search.tell(tree, expansion, [], [])
    assert (tree.simulations, tree.root.visits, dead.visits) == (1, 1, 0)
    assert tree.root.q == 0.0 and tree.root.children[0].q == 0.0
    assert search.ask(tree)[0].node is tree.root.children[1]


def test_an_error_at_the_root_ends_the_tree():
    tree, search = new_tree("k", "p", PROMPT), EpisodeMcts()
    search.tell(tree, search.ask(tree)[0], [], [])
    assert search.done(tree) and search.ask(tree) == []


def test_an_unvisited_outcome_does_not_steer_the_search():
    """The judge has seen both, but Q before a visit knows C alone: the likelier one is visited first."""
    search = EpisodeMcts(simulations=1, children=2, root_children=2)
    tree = new_tree("k", "p", PROMPT)
    search.tell(tree, search.ask(tree)[0], [step(2, 0.2, finish="eos"), step(3, 0.9, finish="eos")], [1.0, -1.0])
    assert [ch.visits for ch in tree.root.children] == [0, 1] and tree.root.q == -1.0


@pytest.mark.parametrize("wrong", [{"simulations": 0}, {"root_children": 0}, {"weight": -1.0}])
def test_impossible_constants_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EpisodeMcts(**wrong)


# ------------------------------------------------------------------------------------------------------ golden

RECORDED = {
    "episodes_recorded": (
        World(seed=11),
        EpisodeMcts(simulations=9, children=3, root_children=4, limits=Limits(max_depth=5)),
    ),
    "episodes_recorded_confidence": (
        World(seed=13),
        EpisodeMcts(simulations=12, children=2, c=2.0, weight=1.0, choice=CHOICE, seed=5, limits=Limits(max_depth=5)),
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
        if column in ("total", "prior", "logprobs", "behaviour", "value", "reward", "confidence", "q_range"):
            np.testing.assert_allclose(np.array(now[column], float), np.array(values, float), atol=1e-12)
        else:
            assert now[column] == values, column


# -------------------------------------------------------------------------------------------------- invariants


@settings(max_examples=80, deadline=None)
@given(worlds, searches)
def test_q_is_the_visit_weighted_mean_in_every_tree(world, search):
    tree = played(search, world)
    low, high = tree.q_range
    assert tree.q_range == search.q_range
    for n in tree.nodes:
        below = sum(ch.visits for ch in n.children)
        if not n.visits:
            assert n.q is None and n.total == 0.0 and below == 0
            continue
        reward = 0.0 if n.parent is None else search.reward(n, search.weight)
        mean = math.fsum(ch.visits * ch.q for ch in n.children if ch.visits) / below if below else 0.0
        assert n.q == pytest.approx(reward + mean, abs=1e-9)
        assert n.parent is None or low - 1e-9 <= n.q <= high + 1e-9
        assert n.visits == (1 if n.terminal else below), "each visit of a step passes on to one child"
        assert n.pending == 0


@settings(max_examples=80, deadline=None)
@given(worlds, searches)
def test_q_is_the_mean_return_of_the_simulations_through_a_node(world, search):
    """The recursion against the definition: the mean over simulations of the rewards from the node to the end."""
    tree = played(search, world)
    returns: dict[int, list[float]] = {}
    for end in (n for n in tree.nodes if n.terminal and n.visits):
        path = path_nodes(end)
        rewards = [search.reward(n, search.weight) for n in path]
        for i, n in enumerate(path):
            returns.setdefault(n.index, []).append(math.fsum(rewards[i:]))
        returns.setdefault(0, []).append(math.fsum(rewards))
    for index, found in returns.items():
        assert tree.nodes[index].visits == len(found)
        assert tree.nodes[index].q == pytest.approx(math.fsum(found) / len(found), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(worlds, searches)
def test_root_visits_count_each_simulation_once(world, search):
    tree = played(search, world)
    assert tree.root.visits == tree.simulations == sum(n.visits for n in tree.nodes if n.terminal)
    if tree.simulations < search.simulations:  # ended early: every solution of the tree was visited
        assert all(n.visits for n in tree.nodes if n.terminal) and tree.root.exhausted
    for n in tree.nodes:
        assert n.depth <= search.limits.max_depth
        assert n.terminal or n.expanded == bool(n.visits), "no simulation is left half way"
        assert len({ch.tokens for ch in n.children}) == len(n.children)
    expansions = [n for n in tree.nodes if n.expanded]
    width = search.root_children or search.children
    assert sum(n.samples for n in tree.nodes[1:]) == width + search.children * (len(expansions) - 1)


@settings(max_examples=40, deadline=None)
@given(worlds, searches)
def test_snapshot_and_restore_after_each_tell_changes_nothing(world, search):
    """A simulation takes several tells: where it stands must survive a restart between any two of them."""
    engine, tree = ScriptedEngine(world=world), new_tree("t", "t", PROMPT)
    restored = play(search, tree, engine, world.reward, stored_and_read)
    assert same_tree(restored, played(search, world))


@settings(max_examples=20, deadline=None)
@given(worlds, searches)
def test_replaying_the_tells_rebuilds_the_tree(world, search):
    tells: list = []
    tree = play(search, new_tree("t", "t", PROMPT), ScriptedEngine(world=world), world.reward, tells=tells)
    again = new_tree("t", "t", PROMPT)
    for index, completions, rewards in tells:
        (expansion,) = search.ask(again)
        assert expansion.node.index == index
        search.tell(again, expansion, completions, rewards)
    assert same_tree(tree, again)


if __name__ == "__main__":  # records the golden runs anew: only when a rule was changed on purpose
    for name, (world, search) in RECORDED.items():
        tree = played(search, world)
        record = {"digest": digest_tree(tree).hex(), **columns(tree)}
        (GOLDEN / f"{name}.json").write_text(json.dumps(record) + "\n")
