"""The scripted engine keeps an engine's contract, and its world is a true policy."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treepref.engines.base import generate
from treepref.engines.scripted import DELIMITER, EOS, ScriptedEngine, World
from treepref.types import BASE, Completion, PolicyId, Request


def ask(name="r", prefix=(5, 2), n=3, max_tokens=20, first_seed=0, **more):
    return Request(name, tuple(prefix), n, tuple(range(first_seed, first_seed + n)), max_tokens, **more)


def test_same_seed_same_sample_in_any_company():
    (wide,) = generate(ScriptedEngine(), [ask(n=8)])
    for i in range(8):
        (alone,) = generate(ScriptedEngine(), [ask(n=1, first_seed=i)])
        assert alone.completions == (wide.completions[i],)
    assert len(set(wide.completions)) > 1
    (elsewhere,) = generate(ScriptedEngine(world=World(seed=1)), [ask(n=8)])
    assert elsewhere.completions != wide.completions


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from(["\n", None]),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.sampled_from([0.3, 0.9, 1.0]),
    st.integers(1, 12),
)
def test_samples_are_as_asked(seed, delimiter, temperature, top_p, max_tokens):
    world = World(seed=seed)
    request = ask(max_tokens=max_tokens, delimiter=delimiter, temperature=temperature, top_p=top_p, want_value=True)
    (result,) = generate(ScriptedEngine(world=world), [request])
    for c in result.completions:
        end, before = c.tokens[-1], c.tokens[:-1]
        assert EOS not in before and (delimiter is None or DELIMITER not in before)
        assert c.finish == ("eos" if end == EOS else "step" if end == DELIMITER and delimiter else "length")
        assert len(c.tokens) == max_tokens if c.finish == "length" else len(c.tokens) <= max_tokens
        assert len(c.logprobs) == len(c.tokens) and all(lp <= 0 for lp in c.logprobs)
        assert (c.behaviour is None) == (temperature == 1.0 and top_p == 1.0)
        assert c.value == world.value(request.prefix + c.tokens) and -1 <= c.value <= 1
    assert result.prefix_value == world.value(request.prefix)


def test_frequencies_match_the_recorded_probabilities():
    n = 4000
    (result,) = generate(ScriptedEngine(world=World(seed=5)), [ask(n=n, max_tokens=1)])
    probability = {c.tokens[0]: math.exp(c.logprobs[0]) for c in result.completions}
    assert math.fsum(probability.values()) == pytest.approx(1.0)
    counts = Counter(c.tokens[0] for c in result.completions)
    for token, p in probability.items():
        assert counts[token] / n == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))


def test_temperature_and_nucleus_shape_the_sampler_and_not_the_policy():
    world, n = World(seed=5), 3000
    (plain,) = generate(ScriptedEngine(world=world), [ask(n=n, max_tokens=1)])
    policy = {c.tokens[0]: math.exp(c.logprobs[0]) for c in plain.completions}
    (cold,) = generate(ScriptedEngine(world=world), [ask(n=n, max_tokens=1, temperature=0.5)])
    total = sum(p**2 for p in policy.values())
    for c in cold.completions:
        assert math.exp(c.logprobs[0]) == pytest.approx(policy[c.tokens[0]])
        assert math.exp(c.behaviour[0]) == pytest.approx(policy[c.tokens[0]] ** 2 / total)
    (nucleus,) = generate(ScriptedEngine(world=world), [ask(n=n, max_tokens=1, top_p=0.5)])
    kept, mass = set(), 0.0
    for token in sorted(policy, key=policy.get, reverse=True):
        if mass < 0.5:
            kept.add(token)
            mass += policy[token]
    assert {c.tokens[0] for c in nucleus.completions} == kept
    assert all(math.exp(c.behaviour[0]) == pytest.approx(policy[c.tokens[0]] / mass) for c in nucleus.completions)
    (greedy,) = generate(ScriptedEngine(world=world), [ask(n=3, max_tokens=1, temperature=0.0)])
    assert {c.tokens for c in greedy.completions} == {(max(policy, key=policy.get),)}
    assert {c.behaviour for c in greedy.completions} == {(0.0,)}


def test_values_tell_something_about_outcomes():
    world = World(seed=3, noise=0.0)
    (result,) = generate(ScriptedEngine(world=world), [ask(n=200, max_tokens=200, delimiter=None, want_value=True)])
    finished = [c for c in result.completions if c.finish == "eos"]
    rewards = [world.reward((5, 2, *c.tokens)) for c in finished]
    assert {-1.0, 1.0} == set(rewards)
    assert all((c.value > 0) == (r > 0) for c, r in zip(finished, rewards, strict=True))
    assert world.reward((5, 2)) == -1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.none() | st.integers(1, 4))
def test_order_and_batching_change_no_result(shuffle, batch):
    requests = [ask(f"r{i}", (5, i), n=2, first_seed=i) for i in range(9)]
    reference = generate(ScriptedEngine(), requests)
    engine = ScriptedEngine(shuffle=shuffle, batch=batch)
    assert generate(engine, requests) == reference
    assert engine.poll() == [] and engine.in_flight == 0


def test_shuffled_completion_really_is_out_of_order():
    engine = ScriptedEngine(shuffle=1, batch=2)
    engine.submit(ask(f"r{i}") for i in range(20))
    order = []
    while results := engine.poll():
        assert len(results) <= 2
        order += [r.request_id for r in results]
    assert sorted(order) == sorted(f"r{i}" for i in range(20)) and order != [f"r{i}" for i in range(20)]


def test_failures_are_results():
    engine = ScriptedEngine(fail=lambda request: "out of memory" if request.id == "b" else None)
    good, bad = generate(engine, [ask("a"), ask("b")])
    assert good.error is None and len(good.completions) == 3
    assert (bad.error, bad.completions) == ("out of memory", ())


def test_the_context_is_a_limit():
    engine = ScriptedEngine(max_context=4)
    fits, full = generate(engine, [ask("a", (5, 2)), ask("b", (5, 2, 3, 4))])
    assert all(len(c.tokens) <= 2 for c in fits.completions)
    assert full.completions == () and "context of 4" in full.error


def test_values_only_where_asked_and_there():
    (silent,) = generate(ScriptedEngine(), [ask()])
    assert silent.prefix_value is None and all(c.value is None for c in silent.completions)
    untrained = ScriptedEngine(has_values=False)
    (none,) = generate(untrained, [ask(want_value=True)])
    assert none.prefix_value is None and all(c.value is None for c in none.completions)
    assert untrained.limits.scores == {"choice", "given"} and ScriptedEngine().limits.scores >= {"value"}


def test_load_drains_then_publishes():
    engine, requests = ScriptedEngine(), [ask("a"), ask("b", (7,))]
    old = generate(ScriptedEngine(), requests)
    engine.submit(requests)
    engine.load(SimpleNamespace(id=PolicyId("p4"), world=World(seed=9)))
    assert engine.poll() == old  # in flight under the old policy
    (new,) = generate(engine, [ask("a")])
    assert old[0].policy == BASE and new.policy == engine.policy_id == "p4"
    assert [c.tokens for c in new.completions] != [c.tokens for c in old[0].completions]
    engine.load(SimpleNamespace(id=PolicyId("p5")))
    (same,) = generate(engine, [ask("a")])
    assert [c.tokens for c in same.completions] == [c.tokens for c in new.completions]


def test_a_script_of_ones_own():
    def script(prefix, seed, request):
        return Completion((len(prefix), seed), (-1.0, -2.0), "step", forced=(False, True), value=0.5)

    engine = ScriptedEngine(script, value=lambda prefix: -0.5)
    (result,) = generate(engine, [ask(prefix=(5, 5, 5), n=2, want_value=True)])
    assert [c.tokens for c in result.completions] == [(3, 0), (3, 1)]
    assert result.prefix_value == -0.5 and result.completions[0].value == 0.5
    assert (engine.cost.prefill_tokens, engine.cost.generated_tokens) == (3 + 2, 2)  # forced tokens are not generated
    valueless = ScriptedEngine(script)
    (result,) = generate(valueless, [ask(want_value=True)])
    assert result.prefix_value is None


def test_requests_that_cannot_be_answered_are_refused():
    engine = ScriptedEngine()
    engine.submit([ask("a")])
    with pytest.raises(ValueError, match="'a' is in flight"):
        engine.submit([ask("a")])
    with pytest.raises(ValueError, match="1 seeds for 2"):
        engine.submit([Request("b", (1,), 2, (0,), 5)])
    with pytest.raises(ValueError, match="batch is 0"):
        ScriptedEngine(batch=0)
    with pytest.raises(ValueError, match="words is 0"):
        World(words=0)
