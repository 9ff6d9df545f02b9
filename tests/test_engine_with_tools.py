"""Tools before an engine that stops and goes on: the samples of one that watches every token, whatever the stops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_cases import spread_policy
from server_like_engine import ServerLikeEngine
from test_engine_contract import SEARCHES, digests, grow
from test_engine_guided import CHOICE, Toy, ToyState, ask, prompts, toy
from test_values import directly, reading
from treepref.engines.base import EngineLimits, generate
from treepref.engines.scripted import DELIMITER, ScriptedEngine, World
from treepref.engines.torch_engine import TorchEngine
from treepref.engines.with_tools import WithTools
from treepref.errors import EngineError, RecipeError
from treepref.models.policy import Policy, clone_policy
from treepref.models.tiny import build_tiny_model, build_tiny_tokenizer
from treepref.models.value_head import Read
from treepref.tools.base import Forced
from treepref.types import Completion, Cost, PolicyId, Request, Result

WORLD = World(seed=3, words=6)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return spread_policy()


def same(found: Completion, wanted: Completion) -> None:
    """To the letter, but for floats that came by other passes of the model."""
    assert (found.tokens, found.finish, found.forced) == (wanted.tokens, wanted.finish, wanted.forced)
    for name in ("logprobs", "behaviour", "value", "choice_probs", "score"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        assert (ours is None) == (theirs is None), name
        assert ours is None or ours == pytest.approx(theirs, abs=1e-4), name


# ---------------------------------------------------------------------------------------------------- the torch engine


def watched_and_stopped(policy: Policy, tool: Toy, stops: tuple[str, ...], asked: list[Request]) -> list[Completion]:
    """The samples of a tool in the engine's loop, after they were found to be those of the same tool before it."""
    watching = TorchEngine(clone_policy(policy), max_rows=9, tools={"toy": tool})
    tool.stops = stops
    stopping = WithTools(TorchEngine(clone_policy(policy), max_rows=9), {"toy": tool})
    compared = []
    for wanted, found in zip(generate(watching, asked), generate(stopping, asked), strict=True):
        assert found.error is None and found.request_id == wanted.request_id
        assert (found.prefix_value is None) == (wanted.prefix_value is None)
        assert found.policy == wanted.policy and len(found.completions) == len(wanted.completions)
        for ours, theirs in zip(found.completions, wanted.completions, strict=True):
            same(ours, theirs)
        compared += wanted.completions
    assert all(state.closed for state in tool.states if state.written != ())
    assert stopping.poll() == []
    return compared


@pytest.mark.parametrize("stops", [(), ("1", "2", "8"), (" ", "-")], ids=["none", "digits", "others"])
@pytest.mark.parametrize("delimiter", ["\n", "8-", None])  # of "8-" the first half is a stop
def test_torch_samples_are_those_of_the_tool_in_the_loop(policy: Policy, stops, delimiter) -> None:
    options = {"tool": "toy", "prompt_tokens": 1, "delimiter": delimiter, "max_tokens": 16}
    asked = [
        ask(
            f"p{i}", p, n=4, given=((9, 10, 11),) if i % 2 else (), choice=CHOICE if i % 3 else None,
            temperature=0.8 if i % 2 else 1.0, top_p=0.9, want_value=bool(i % 4), **options,
        )
        for i, p in enumerate(prompts(9))
    ]  # fmt: skip
    eight = policy.tokenizer.convert_tokens_to_ids("8")  # forced, it begins no delimiter
    found = watched_and_stopped(policy, toy(policy, tail=(9, eight) if delimiter == "8-" else None), stops, asked)
    assert sum(c.forced is not None for c in found) > 8
    assert {c.finish for c in found} >= {"step", "length"}


@pytest.mark.parametrize("stops", [(), ("1", "2", "3")], ids=["none", "digits"])
def test_a_value_of_the_mean_goes_through_the_parts(stops: tuple[str, ...]) -> None:
    policy = reading(spread_policy(), Read(-1, "mean"))
    asked = [ask(f"p{i}", p, n=4, tool="toy", prompt_tokens=1, max_tokens=16) for i, p in enumerate(prompts(6))]
    found = watched_and_stopped(policy, toy(policy), stops, asked)
    asked_of = [request for request in asked for _ in range(request.n)]
    valued = [(r, c) for r, c in zip(asked_of, found, strict=True) if c.value is not None]
    assert sum(bool(c.forced) for _, c in valued) > 3
    for request, c in valued:  # also where a row waited, pass after pass, for a tool that was busy
        assert c.value == pytest.approx(directly(policy, request.prefix, c.tokens), abs=1e-4)


def test_a_tool_that_has_no_result_and_one_whose_result_does_not_fit(policy: Policy) -> None:
    asked = [ask("r", prompts(1)[0], n=30, tool="toy", max_tokens=12)]
    quiet, wide = toy(policy), toy(policy, tail=tuple(range(9, 20)))
    quiet.answers = False
    watched_and_stopped(policy, quiet, (), asked)
    found = watched_and_stopped(policy, wide, (), asked)
    assert any(c.finish == "length" and len(c.tokens) < 12 for c in found)


@pytest.mark.parametrize("stops", [(), ("1", "2", "8")], ids=["none", "digits"])
def test_the_token_that_closes_a_call_may_end_the_step(policy: Policy, stops: tuple[str, ...]) -> None:
    newline, tool = policy.tokenizer.convert_tokens_to_ids("\n"), toy(policy)
    tool.brackets.add(newline)
    asked = [ask(f"p{i}", p, n=9, tool="toy", max_tokens=16, choice=CHOICE) for i, p in enumerate(prompts(6))]
    found = watched_and_stopped(policy, tool, stops, asked)
    closed = [c for c in found if c.finish == "step" and c.tokens[-1] == newline and not (c.forced or (False,))[-1]]
    assert closed and all(c.value is not None and c.choice_probs is not None for c in closed)


@pytest.mark.parametrize("read", [Read(-1, "last"), Read(-1, "mean")], ids=["last", "mean"])
@pytest.mark.parametrize("stops", [(), tuple("0123456789")], ids=["none", "digits"])
def test_a_tool_that_ends_a_step_and_forces_nothing(read: Read, stops: tuple[str, ...]) -> None:
    class Ending(ToyState):
        def force(self, token: int, ends: bool = False) -> Forced:
            return Forced((), ends_step=True)

    policy = spread_policy() if read.pool == "last" else reading(spread_policy(), read)
    tool = toy(policy)
    tool.begin = lambda written: tool.states.append(Ending(tool, written)) or tool.states[-1]
    asked = [ask(f"p{i}", p, n=9, tool="toy", choice=CHOICE, want_value=bool(i % 2)) for i, p in enumerate(prompts(6))]
    found = watched_and_stopped(policy, tool, stops, asked)
    for acts in (tool.quick, tool.slow):
        assert any(c.finish == "step" and c.value is not None and c.choice_probs for c in found if c.tokens[-1] in acts)


def test_no_delimiter_reaches_across_a_call_from_the_step_before_the_sample(policy: Policy) -> None:
    eight, minus = policy.tokenizer.convert_tokens_to_ids(["8", "-"])
    tool = Toy([], [], brackets=range(5, 40))
    asked = [
        ask(f"p{i}", (*p, eight), n=40, tool="toy", delimiter="8-", step_tokens=1) for i, p in enumerate(prompts(6))
    ]
    found = watched_and_stopped(policy, tool, (), asked)
    assert any(minus in c.tokens[2:] for c in found)
    ended = [c.tokens for c in found if c.finish == "step"]
    assert ended and all(len(t) == 1 or "8-" in policy.tokenizer.decode(t[-2:]) for t in ended)


def test_the_calculator_gives_the_same_before_the_engine() -> None:
    torch.manual_seed(0)
    tokenizer = build_tiny_tokenizer(0, 60, ["<<", ">>"])
    model = build_tiny_model(len(tokenizer), hidden=32, layers=2, heads=4, intermediate=64, context=64, seed=1).eval()
    written = tuple(tokenizer.encode("<<48/2", add_special_tokens=False))
    request = ask("r", (7, 8, *written), n=300, tool="calculator", prompt_tokens=2, max_tokens=6)
    (wanted,) = generate(TorchEngine(Policy(model, tokenizer, None), max_rows=50), [request])
    (found,) = generate(WithTools(TorchEngine(Policy(model, tokenizer, None), max_rows=50)), [request])
    assert any(c.forced for c in wanted.completions)
    for ours, theirs in zip(found.completions, wanted.completions, strict=True):
        same(ours, theirs)


# ------------------------------------------------------------------------------------------------- the scripted engine


def token_by_token(prefix: tuple[int, ...], seed: int, request: Request) -> Completion:
    """The world's samples in parts of one token, so that the tool is asked after every one."""
    found = WORLD.complete(prefix, seed, replace(request, max_tokens=1))
    return replace(found, finish="stop") if found.finish == "length" and request.max_tokens > 1 else found


def near(**more) -> ScriptedEngine:
    return ScriptedEngine(world=WORLD, **more)


TOKENS = st.sets(st.integers(2, 7), max_size=2)


@settings(max_examples=150, deadline=None)
@given(
    quick=TOKENS, slow=TOKENS, brackets=TOKENS, tail=st.lists(st.integers(1, 7), max_size=3).map(tuple),
    stops=st.sets(st.integers(1, 7)), most=st.integers(1, 14), delimiter=st.sampled_from(["\n", None]),
    temperature=st.sampled_from([1.0, 0.7]),
)  # fmt: skip
def test_stops_change_no_sample(quick, slow, brackets, tail, stops, most, delimiter, temperature) -> None:
    def sampled(engine: ScriptedEngine, stops: tuple[str, ...]) -> Result:
        tool = Toy(sorted(quick), sorted(slow - quick), sorted(brackets - quick - slow), tail)
        tool.answer, tool.stops = 3, stops
        request = Request(
            "r", (5, 2, 3), 8, tuple(range(8)), most, temperature, delimiter=delimiter, want_value=True, tool="toy",
            prompt_tokens=2, given=((2, 3, DELIMITER),),
        )  # fmt: skip
        (result,) = generate(WithTools(engine, {"toy": tool}), [request])
        assert result.error is None
        samples = [state for state in tool.states if state.written == (3,)]
        assert len(samples) == 8 and all(state.closed for state in samples)
        return result

    wanted = sampled(ScriptedEngine(token_by_token, value=WORLD.value, score=WORLD.logprobs), stops=())
    for found in (sampled(near(), stops=()), sampled(near(shuffle=1), stops=tuple(map(str, sorted(stops))))):
        assert found.completions == wanted.completions and found.prefix_value == wanted.prefix_value


def quick_toy() -> Toy:
    tool = Toy(quick=[2], slow=[3], tail=(4, DELIMITER))
    tool.answer, tool.stops = 4, ("2", "3")
    return tool


def request(name: str = "r", n: int = 20, **more) -> Request:
    return ask(name, (5, 2), n=n, tool="toy", max_tokens=20, prompt_tokens=2, **more)


def test_what_a_chain_costs_is_what_its_parts_cost() -> None:
    engine, without = near(), replace(request("p"), tool=None)
    result, plain = generate(WithTools(engine, {"toy": quick_toy()}), [request(), without])
    assert result.cost + plain.cost == engine.cost and plain == generate(near(), [without])[0]
    forced = sum(sum(c.forced or ()) for c in result.completions)
    assert result.cost.scored_tokens == forced > 0, "with stops that fit, nothing is sampled for nothing"
    assert result.cost.generated_tokens == sum(len(c.tokens) for c in result.completions) - forced


def test_without_scores_of_given_tokens_the_forced_ones_count_nothing() -> None:
    class Plain(ScriptedEngine):
        limits = EngineLimits(4096, deterministic=True, scores=frozenset({"value"}))

    (wanted,) = generate(WithTools(near(), {"toy": quick_toy()}), [request()])
    (found,) = generate(WithTools(Plain(world=WORLD), {"toy": quick_toy()}), [request()])
    for ours, theirs in zip(found.completions, wanted.completions, strict=True):
        assert (ours.tokens, ours.finish, ours.forced) == (theirs.tokens, theirs.finish, theirs.forced)
        forced = ours.forced or (False,) * len(ours.tokens)
        assert ours.logprobs == tuple(0.0 if f else p for p, f in zip(theirs.logprobs, forced, strict=True))
        assert ours.value == (None if forced[-1] else theirs.value)


def test_a_part_that_fails_is_the_requests_error_and_no_tool_stays_open() -> None:
    tool = quick_toy()
    engine = WithTools(near(fail=lambda r: "out of memory" if r.begun > 2 else None), {"toy": tool})
    lost, whole = generate(engine, [request("lost"), replace(request("whole"), tool=None)])
    assert (lost.error, lost.completions) == ("out of memory", ()) and lost.cost.generated_tokens > 0
    assert whole.error is None and all(state.closed for state in tool.states) and engine.poll() == []


def test_what_a_tool_raises_is_passed_on_and_ends_its_own_request_alone() -> None:
    def fail(token: int) -> None:
        raise EngineError("the sandbox cannot start")

    for breaks in ("feed", "result"):
        good, bad = quick_toy(), quick_toy()
        begin = bad.begin

        def broken(written: Sequence[int], begin=begin, breaks=breaks) -> ToyState:
            state = begin(written)
            setattr(state, breaks, fail if breaks == "feed" else lambda: fail(0))
            return state

        bad.begin = broken
        engine, left = WithTools(near(), {"toy": good, "bad": bad}), {}
        engine.submit([replace(request("a"), tool="bad"), request("b"), replace(request("c"), tool=None)])
        with pytest.raises(EngineError, match="cannot start"):
            while results := engine.poll():
                left |= {r.request_id: r.error for r in results}
        while results := engine.poll():
            left |= {r.request_id: r.error for r in results}
        assert left == {"a": "the sandbox cannot start", "b": None, "c": None}
        assert all(state.closed for state in (*good.states, *bad.states))


def test_stops_of_the_callers_own_are_refused_beside_a_tool() -> None:
    engine = WithTools(near(), {"toy": quick_toy()})
    refused, whole = generate(engine, [replace(request("a"), stops=("7",)), request("b")])
    assert "takes no stops of its own (got ['7'])" in refused.error and whole.error is None
    (found,) = generate(engine, [replace(request("c"), stops=("7",), tool=None)])
    assert {c.finish for c in found.completions} >= {"stop"}


def test_a_tool_that_must_read_text_is_refused_where_ids_have_none() -> None:
    with pytest.raises(RecipeError, match=r"no tokenizer.*calculator"):
        WithTools(near()).submit([replace(request(), tool="calculator")])
    with pytest.raises(RecipeError, match="there is no tool 'abacus'"):
        WithTools(near()).submit([replace(request(), tool="abacus")])


def test_an_engine_that_forgets_gives_an_error() -> None:
    inner = near(batch=1)
    engine = WithTools(inner, {"toy": quick_toy()})
    engine.submit([request()])
    inner.close()
    (lost,) = engine.poll()
    assert lost.error == "the engine lost the request" and engine.poll() == []


def test_load_waits_for_whole_chains() -> None:
    engine = WithTools(near(batch=2), {"toy": quick_toy()})
    wanted = generate(WithTools(near(), {"toy": quick_toy()}), [request("a"), request("b")])
    engine.submit([request("a"), request("b")])
    engine.load(SimpleNamespace(id=PolicyId("p1"), world=World(seed=9, words=6)))
    found = {r.request_id: r for r in engine.poll()}
    assert [found[name].completions for name in "ab"] == [r.completions for r in wanted]
    assert engine.policy_id == "p1" and {r.policy for r in found.values()} == {"base"}
    assert generate(engine, [request("a")])[0].policy == "p1"


def test_weights_that_change_under_a_chain_are_told() -> None:
    inner = near(batch=1)
    engine = WithTools(inner, {"toy": quick_toy()})
    engine.submit([request()])
    real, answers = inner.poll, iter(range(100))

    def poll(timeout: float | None = None) -> list[Result]:
        name = PolicyId(f"p{min(1, next(answers))}")
        return [replace(result, policy=name) for result in real(timeout)]

    inner.poll = poll
    (result,) = engine.poll()
    assert result.error == "policies p0 and p1 answered parts of one request"


def test_little_time_and_a_tool_that_takes_its_own() -> None:
    engine, results = WithTools(near(batch=1), {"toy": quick_toy()}), []
    assert engine.poll(timeout=0) == []
    engine.submit([request()])
    while not results:
        results = engine.poll(timeout=0)
    (wanted,) = generate(WithTools(near(), {"toy": quick_toy()}), [request()])
    assert results[0].completions == wanted.completions


# ----------------------------------------------------------------------------------------------- an engine far away


@pytest.fixture
def far() -> Iterator[ServerLikeEngine]:
    engine = ServerLikeEngine(seed=3, words=6)
    yield engine
    engine.close()


def test_tools_before_an_engine_that_is_far_and_killed(far: ServerLikeEngine) -> None:
    real, polls = far.poll, iter(range(10**6))

    def poll(timeout: float | None = None) -> list[Result]:
        if next(polls) in (4, 30):
            far.process.kill()
        return real(timeout)

    wanted, near_report = grow(WithTools(near(), {"toy": quick_toy()}), SEARCHES["values"], tool="toy")
    assert any(any(n.forced or ()) for t in wanted for n in t.nodes)
    found, report = grow(WithTools(far, {"toy": quick_toy()}), SEARCHES["values"], tool="toy")
    assert digests(found) == digests(wanted)
    assert replace(report.cost, seconds=0) == replace(near_report.cost, seconds=0) != Cost()
    far.poll = poll
    again, report = grow(WithTools(far, {"toy": quick_toy()}), SEARCHES["values"], tool="toy", retries=5)
    assert digests(again) == digests(wanted) and far.starts == 3 and report.retried > 0 == report.set_aside
