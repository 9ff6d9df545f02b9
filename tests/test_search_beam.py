"""Step-level beam search against a plain implementation and against whole enumerated worlds."""

import itertools
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_search_mcts import PROMPT, answer, play, played, seeds_of, worlds
from tree_columns import stored_and_read
from treepref.engines.scripted import EOS, ScriptedEngine
from treepref.runs.codec import digest_tree
from treepref.search import Sampling, StepBeam
from treepref.search.base import solution_tokens
from treepref.search.limits import Limits
from treepref.types import Completion, Request, new_tree


def plain_beam(world, b1, b2, max_depth, max_step_tokens, likelihood=0.0):
    """SBS(B1, B2) as its description reads, over bare token sequences."""
    beams, finished = [(PROMPT, ())], []
    for depth in range(1, max_depth + 1):
        candidates = []
        for state, logprobs in beams:
            n = b1 * b2 if depth == 1 else b2
            seeds = seeds_of(state, n)
            request = Request("r", state, n, seeds, max_step_tokens)
            steps = dict.fromkeys(world.complete(state, seed, request) for seed in seeds)
            candidates += [
                (
                    c.value + likelihood * statistics.fmean(logprobs + c.logprobs),
                    state + c.tokens,
                    logprobs + c.logprobs,
                    c.finish,
                )
                for c in steps
                if c.finish == "eos" or (c.finish == "step" and depth < max_depth)
            ]
        kept = sorted(candidates, reverse=True)[: b1 - len(finished)]
        finished += [(score, state) for score, state, _, finish in kept if finish == "eos"]
        beams = [(state, logprobs) for _, state, logprobs, finish in kept if finish != "eos"]
        if not beams:
            break
    return max(finished)[1][len(PROMPT) :] if finished else None


@settings(max_examples=60, deadline=None)
@given(worlds, st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.sampled_from([0.0, 0.3, 10.0]))
def test_agrees_with_the_plain_implementation(world, b1, b2, max_depth, likelihood):
    search = StepBeam(b1=b1, b2=b2, likelihood=likelihood, limits=Limits(max_depth=max_depth, max_step_tokens=9))
    tree = played(search, world, judge=False)
    leaf = search.answer(tree)
    expected = plain_beam(world, b1, b2, max_depth, 9, likelihood)
    assert (leaf and solution_tokens(leaf)) == expected
    assert all(n.pending == 0 for n in tree.nodes)


def enumerated(prefix, seed, request):
    """Three steps, three choices each: sample i takes choice i, so that enough samples see every solution."""
    depth = len(prefix) - len(PROMPT)
    tokens = (2 + seed % 3, EOS) if depth == 4 else (2 + seed % 3, 1)
    finish = "eos" if depth == 4 else "step"
    return Completion(tokens, (-1.0, -1.0), finish, value=step_value(prefix + tokens))


def step_value(state):
    return math.sin(sum(state[i] * (i + 1) ** 2 for i in range(len(state))))


def enumerated_answer(b1, b2):
    search = StepBeam(b1=b1, b2=b2)
    tree = new_tree("k", "p", PROMPT)
    engine = ScriptedEngine(lambda prefix, seed, request: enumerated(prefix, seed, request), value=step_value)
    queue = search.ask(tree)
    while queue:
        for expansion in queue:
            state = tree.prompt + solution_tokens(expansion.node)
            seeds = tuple(range(expansion.n))
            engine.submit([Request("r", state, expansion.n, seeds, 9, want_value=True)])
            (result,) = engine.poll()
            search.tell(tree, expansion, result.completions, [None] * expansion.n, result.prefix_value)
        queue = search.ask(tree)
    return solution_tokens(search.answer(tree))


def test_a_wide_beam_finds_the_best_of_all_solutions():
    choices = itertools.product((2, 3, 4), repeat=3)
    solutions = [(a, 1, b, 1, c, EOS) for a, b, c in choices]
    assert enumerated_answer(27, 3) == max(solutions, key=lambda s: step_value(PROMPT + s))


def test_a_beam_of_one_follows_the_best_step():
    state = PROMPT
    for end in (1, 1, EOS):
        state = max(((*state, word, end) for word in (2, 3, 4)), key=step_value)
    assert enumerated_answer(1, 3) == state[len(PROMPT) :]


@settings(max_examples=30, deadline=None)
@given(worlds)
def test_one_beam_at_temperature_zero_is_greedy(world):
    greedy = Sampling(n=1, limits=Limits(temperature=0.0, max_tokens=60))
    beam = StepBeam(b1=1, b2=1, limits=Limits(temperature=0.0, max_depth=60, max_step_tokens=60, max_tokens=60))
    one, other = played(greedy, world), played(beam, world)
    a, b = greedy.answer(one), beam.answer(other)
    assert (a is None) == (b is None)
    assert a is None or solution_tokens(a) == solution_tokens(b)


@settings(max_examples=30, deadline=None)
@given(worlds, st.integers(1, 4), st.integers(1, 3))
def test_goes_on_from_any_snapshot(world, b1, b2):
    search = StepBeam(b1=b1, b2=b2, limits=Limits(max_depth=4, max_step_tokens=9))
    reference = played(search, world, judge=False)
    engine, tree = ScriptedEngine(world=world), new_tree("t", "t", PROMPT)
    while expansions := search.ask(tree):
        search.tell(tree, expansions[0], *answer(engine, tree, expansions[0], None))
        tree = stored_and_read(tree)  # the others of the level are asked again
    assert digest_tree(tree) == digest_tree(reference)


def test_all_live_beams_are_asked_at_once_and_what_finishes_leaves():
    tree = new_tree("k", "p", PROMPT)
    search = StepBeam(b1=3, b2=2, limits=Limits(temperature=0.6, top_p=0.9, max_step_tokens=7))
    (root,) = search.ask(tree)
    assert (root.n, root.temperature, root.top_p, root.max_tokens, root.want_value) == (6, 0.6, 0.9, 7, True)
    assert search.ask(tree) == []

    def step(token, value, finish="step"):
        return Completion((token, 1), (-1.0, -1.0), finish, value=value)

    completions = [
        step(2, 0.1),
        step(3, 0.9),
        step(4, 0.5, "eos"),
        step(5, 0.95, "length"),
        step(6, 0.3),
        step(7, -0.9, "eos"),
    ]
    search.tell(tree, root, completions, [None] * 6, 0.0)
    second, fifth = search.ask(tree)  # 0.9 and 0.3 live, 0.5 finished, the cut one never kept
    assert [e.node.tokens[0] for e in (second, fifth)] == [3, 6]
    assert [e.n for e in (second, fifth)] == [2, 2]
    search.tell(tree, second, [step(2, 0.2, "eos"), step(3, 0.4)], [None] * 2, 0.0)
    assert search.ask(tree) == [] and not search.done(tree)  # the level waits for the other beam
    search.tell(tree, fifth, [step(2, 0.6), step(3, -0.5)], [None] * 2, 0.0)
    live = search.ask(tree)
    # Two places are left: 0.6 and 0.4; the solution with 0.2 finished outside the beam.
    assert [solution_tokens(e.node) for e in live] == [(6, 1, 2, 1), (3, 1, 3, 1)]
    for expansion in live:
        search.tell(tree, expansion, [], [], None)
    assert search.done(tree) and tree.failed == 1 + 4
    leaf = search.answer(tree)
    assert leaf is not None and solution_tokens(leaf) == (4, 1)


def test_without_values_the_likelier_partial_solution_is_kept():
    tree = new_tree("k", "p", PROMPT)
    search = StepBeam(b1=1, b2=2)
    (root,) = search.ask(tree)
    steps = [Completion((t, 1), (lp, lp), "step") for t, lp in ((2, -1.0), (3, -0.2))]
    search.tell(tree, root, steps, [None, None], None)
    assert [e.node.tokens for e in search.ask(tree)] == [(3, 1)]


def test_rewards_have_no_say():
    tree = new_tree("k", "p", PROMPT)
    search = StepBeam(b1=1, b2=2)
    (root,) = search.ask(tree)
    done = [Completion((t, 0), (-1.0, -1.0), "eos", value=v) for t, v in ((2, 0.1), (3, 0.2))]
    search.tell(tree, root, done, [1.0, -1.0], None)
    leaf = search.answer(tree)
    assert search.done(tree) and leaf is not None and leaf.tokens == (3, 0)


def test_an_unfinished_search_has_no_answer():
    def endless(prefix, seed, request):
        return Completion((2 + seed % 2, 1), (-1.0, -1.0), "step", value=0.5)

    search = StepBeam(b1=2, b2=2, limits=Limits(max_depth=3))
    tree = play(search, new_tree("k", "p", PROMPT), ScriptedEngine(endless))
    assert search.answer(tree) is None
    assert max(n.depth for n in tree.nodes) == 3


@pytest.mark.parametrize("wrong", [{"b1": 0}, {"b2": 0}, {"likelihood": -0.1}])
def test_impossible_constants_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StepBeam(**{"b1": 1, "b2": 1, **wrong})


def test_a_prompt_that_fills_the_context_is_done_at_once():
    search = StepBeam(b1=1, b2=1, limits=Limits(max_context=len(PROMPT)))
    tree = new_tree("k", "p", PROMPT)
    assert search.done(tree) and search.ask(tree) == []
