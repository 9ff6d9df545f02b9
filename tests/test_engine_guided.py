"""Choices, given continuations and tools in the engines: against plain forwards, in any company, and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from engine_cases import spread_policy
from treepref.engines.base import Engine, generate
from treepref.engines.sampling import sample, uniforms
from treepref.engines.scripted import DELIMITER, EOS, ScriptedEngine, World
from treepref.engines.torch_engine import TorchEngine
from treepref.engines.with_tools import WithTools
from treepref.models.policy import Policy, clone_policy
from treepref.models.tiny import build_tiny_model, build_tiny_tokenizer
from treepref.models.weights import PolicyWeights
from treepref.tools.base import Forced
from treepref.types import Choice, Completion, Cost, PolicyId, Request

CHOICE = Choice(suffix=(20, 21, 22, 23, 24), options=((30, 31), (32,)), after_eos=(3,))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return spread_policy()


def prompts(count: int, seed: int = 3) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(int(t) for t in rng.integers(5, 40, rng.integers(2, 12))) for _ in range(count)]


def ask(name: str, prefix: tuple[int, ...], n: int = 1, **options) -> Request:
    options = {"max_tokens": 12, "want_value": True, "delimiter": "\n", "prompt_tokens": len(prefix)} | options
    number = sum(map(ord, name))
    return Request(name, prefix, n, tuple(1000 * number + i for i in range(n)), **options)


@torch.no_grad()
def plain(policy: Policy, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs [T, V] and values [T] from one ordinary forward of transformers."""
    out = policy.model(torch.tensor([list(ids)]), output_hidden_states=True)
    return out.logits[0].float().log_softmax(-1), policy.value_head(out.hidden_states[-1][0])


def plain_choice(policy: Policy, prefix: Sequence[int], choice: Choice) -> list[float]:
    prefix = list(prefix)
    if prefix[-1] in policy.eos_ids:
        prefix = prefix[:-1] + list(choice.after_eos)
    last_V = plain(policy, prefix + list(choice.suffix))[0][-1].exp()
    return [sum(last_V[i].item() for i in option) for option in choice.options]


def weighed(engine: Engine, prefixes: Sequence[tuple[int, ...]], choice: Choice) -> list[tuple[float, ...] | None]:
    """What the engine answers when a choice is put after each prefix, whose last token is given to it."""
    asked = [
        Request(f"w{i}", p[:-1], 0, (), 1, delimiter=None, choice=choice, given=(p[-1:],))
        for i, p in enumerate(prefixes)
    ]
    return [result.completions[0].choice_probs for result in generate(engine, asked)]


def spent(engine: Engine, before: Cost) -> Cost:
    return engine.cost - before


# ---------------------------------------------------------------------------------------------------------- choices


def test_choice_probs_are_the_summed_softmax_of_a_plain_forward(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy), max_rows=5)
    (eos,) = policy.eos_ids
    prefixes = [*prompts(12), (*prompts(1)[0], eos), (7, 8)]
    for prefix, probs in zip(prefixes, weighed(engine, prefixes, CHOICE), strict=True):
        assert probs == pytest.approx(plain_choice(policy, prefix, CHOICE), abs=1e-5)
    bare = dataclasses.replace(CHOICE, suffix=())
    assert weighed(engine, [(7, 8)], bare)[0] == pytest.approx(plain_choice(policy, (7, 8), bare), abs=1e-5)
    everything = Choice((9,), (tuple(range(len(policy.tokenizer))),))
    assert weighed(engine, [(7, 8)], everything)[0] == pytest.approx((1.0,), abs=1e-5)
    assert engine.cost.generated_tokens == 0


def test_choices_after_samples_equal_a_plain_forward_whatever_way_the_sample_ended(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy), max_rows=9)
    asked = [
        ask(f"p{i}", p, n=6, choice=CHOICE, max_tokens=25, want_value=bool(i % 2)) for i, p in enumerate(prompts(16))
    ]
    finishes = set()
    for request, result in zip(asked, generate(engine, asked), strict=True):
        for completion in result.completions:
            finishes.add(completion.finish)
            if completion.finish == "length":
                assert completion.choice_probs is None
            else:
                expected = plain_choice(policy, request.prefix + completion.tokens, CHOICE)
                assert completion.choice_probs == pytest.approx(expected, abs=1e-5)
            assert (completion.value is None) == (not request.want_value or completion.finish == "length")
    assert finishes == {"step", "eos", "length"}


@pytest.mark.parametrize("want_value", [True, False])
def test_after_a_sample_the_suffix_alone_is_run(policy: Policy, want_value: bool) -> None:
    prompt, n = prompts(1)[0], 40
    plainly, asking = TorchEngine(clone_policy(policy)), TorchEngine(clone_policy(policy))
    request = ask("root", prompt, n=n, max_tokens=25, want_value=want_value)
    request = dataclasses.replace(request, seeds=request.seeds[: n // 2] * 2)  # so that samples are equal
    (without,) = generate(plainly, [request])
    (answered,) = generate(asking, [dataclasses.replace(request, choice=CHOICE)])
    stripped = tuple(dataclasses.replace(c, choice_probs=None) for c in answered.completions)
    assert [c.tokens for c in stripped] == [c.tokens for c in without.completions]
    finished = {c.tokens: c.finish for c in answered.completions if c.finish != "length"}
    drawn = sum(c.finish != "length" for c in answered.completions)
    assert len(finished) < drawn
    suffixes = sum(len(CHOICE.suffix) + (len(CHOICE.after_eos) if f == "eos" else 0) for f in finished.values())
    states = sum(len(prompt) + len(t) - (f == "eos") for t, f in finished.items())
    closing = 0 if want_value else sum(c.finish == "step" for c in answered.completions)
    more = asking.cost - plainly.cost
    assert more.scored_tokens == suffixes + closing
    assert more.cached_tokens == states
    assert more.prefill_tokens == more.generated_tokens == 0
    # Those who continue a step find all of it, and nothing of the suffix is kept.
    before = dataclasses.replace(asking.cost)
    steps = [t for t, f in finished.items() if f == "step"]
    generate(asking, [ask(f"c{i}", prompt + t) for i, t in enumerate(steps)])
    assert spent(asking, before).prefill_tokens == 0
    for tokens, finish in finished.items():
        state = prompt + tokens[: len(tokens) - (finish == "eos")]
        glue = CHOICE.after_eos if finish == "eos" else ()
        assert asking._prefixes.match(state + glue + CHOICE.suffix).length == len(state)


def test_a_choice_without_room_is_not_asked_and_impossible_ones_are_refused(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy))
    (result,) = generate(engine, [ask("r", (7,) * 80, n=4, given=((8,) * 12,), choice=CHOICE)])
    assert result.completions[-1].finish == "step" and result.completions[-1].choice_probs is None
    wrong = Choice((1,), ((10_000,),))
    (refused,) = generate(engine, [ask("w", (7,), choice=wrong)])
    assert "token 10000" in refused.error


def test_choices_come_back_while_samples_are_in_flight(policy: Policy) -> None:
    asked = [ask(f"p{i}", p, n=5, choice=CHOICE) for i, p in enumerate(prompts(12))]
    engine, alone = TorchEngine(clone_policy(policy), max_rows=8), TorchEngine(clone_policy(policy), max_rows=8)
    undisturbed = generate(alone, asked)
    engine.submit(asked)
    found = []
    while results := engine.poll():
        found += results
    tokens = {r.request_id: [c.tokens for c in r.completions] for r in found}
    assert tokens == {r.request_id: [c.tokens for c in r.completions] for r in undisturbed}


# ------------------------------------------------------------------------------------------------------------ given


def test_given_continuations_are_scored_as_a_plain_forward_scores_them(policy: Policy) -> None:
    (eos,) = policy.eos_ids
    newline = policy.tokenizer.convert_tokens_to_ids("\n")
    continuations = ((9, newline, 12, 14), (9, 10, eos), (8,))
    engine = TorchEngine(clone_policy(policy), max_rows=6)
    asked = [
        ask(f"p{i}", p, n=i % 3, given=continuations, choice=CHOICE, temperature=0.7, max_tokens=2)
        for i, p in enumerate(prompts(9))
    ]
    for request, result in zip(asked, generate(engine, asked), strict=True):
        assert len(result.completions) == request.n + 3
        scored = result.completions[request.n :]
        assert [c.tokens for c in scored] == list(continuations)
        assert [c.finish for c in scored] == ["step", "eos", "step"]  # a delimiter inside and max_tokens do not cut it
        assert result.prefix_value == pytest.approx(plain(policy, request.prefix)[1][-1].item(), abs=1e-4)
        for completion in scored:
            logp_TV, value_T = plain(policy, request.prefix + completion.tokens)
            at = torch.arange(len(request.prefix) - 1, len(request.prefix) + len(completion.tokens) - 1)
            expected = logp_TV[at, torch.tensor(completion.tokens)].tolist()
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)
            assert completion.value == pytest.approx(value_T[-1].item(), abs=1e-4)
            assert completion.behaviour is None and completion.forced is None
            expected = plain_choice(policy, request.prefix + completion.tokens, CHOICE)
            assert completion.choice_probs == pytest.approx(expected, abs=1e-5)


def test_given_continuations_change_no_sample_and_count_as_scored(policy: Policy) -> None:
    prompt = prompts(1)[0]
    without, with_given = TorchEngine(clone_policy(policy)), TorchEngine(clone_policy(policy))
    request = ask("r", prompt, n=6, want_value=False)
    (sampled,) = generate(without, [request])
    (both,) = generate(with_given, [dataclasses.replace(request, given=((9, 10, 11), (12, 13)))])
    assert [c.tokens for c in both.completions[:6]] == [c.tokens for c in sampled.completions]
    more = with_given.cost - without.cost
    assert (more.generated_tokens, more.prefill_tokens, more.scored_tokens) == (0, 0, 5)


def test_given_continuations_that_do_not_fit_are_cut_and_empty_ones_refused(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy))
    cut, empty = generate(
        engine, [ask("cut", (7,) * 90, n=0, given=((8,) * 10,)), ask("empty", (7,), n=1, given=((),))]
    )
    assert (cut.completions[0].tokens, cut.completions[0].finish) == ((8,) * 6, "length")
    assert "empty" in empty.error


# ------------------------------------------------------------------------------------------------------------ tools


class ToyState:
    """Forces tokens after some tokens; after others it is busy for a while; a third kind opens and closes a call."""

    def __init__(self, tool: Toy, written: Sequence[int]) -> None:
        self.tool, self.written = tool, tuple(written)
        self.open = self.busy = self.closed = False
        self.skip = self.polls = 0

    @property
    def stops(self) -> tuple[str, ...]:
        return self.tool.stops

    def feed(self, token: int) -> Forced | None:
        assert not self.closed and not self.busy
        if self.skip:
            self.skip -= 1
            return None
        if token in self.tool.brackets:
            self.open = not self.open
        if token in self.tool.slow:
            self.busy, self.polls = True, 3
            return None
        return self.force(token) if token in self.tool.quick else None

    def result(self) -> Forced | None:
        assert self.busy and not self.closed
        self.polls -= 1
        if self.polls:
            return None
        self.busy = False
        return self.force(self.tool.answer + len(self.written) % 3, ends=True) if self.tool.answers else None

    def force(self, token: int, ends: bool = False) -> Forced:
        forced = Forced((token, *self.tool.tail), ends)
        self.skip = len(forced.tokens)
        return forced

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Toy:
    def __init__(
        self, quick: Sequence[int], slow: Sequence[int] = (), brackets: Sequence[int] = (), tail: tuple[int, ...] = (9,)
    ) -> None:
        self.quick, self.slow, self.brackets, self.tail = set(quick), set(slow), set(brackets), tail
        self.answers, self.answer = True, 40
        self.stops: tuple[str, ...] = ()
        self.states: list[ToyState] = []

    def begin(self, written: Sequence[int]) -> ToyState:
        self.states.append(ToyState(self, written))
        return self.states[-1]

    def close(self) -> None:
        self.closed = True


def toy(policy: Policy, tail: tuple[int, ...] | None = None) -> Toy:
    newline = policy.tokenizer.convert_tokens_to_ids("\n")
    kinds = range(5, len(policy.tokenizer))
    quick = [i for i in kinds if i % 7 == 1]
    return Toy(quick, [i for i in kinds if i % 9 == 2], [i for i in kinds if i % 6 == 3], tail or (9, newline))


def by_hand(policy: Policy, request: Request, index: int, tool: Toy) -> Completion:
    """One sample token by token through plain forwards, with what a tool forces: the rules, written down anew."""
    state = tool.begin(request.prefix[request.prompt_tokens :])
    tokens: list[int] = []
    forced: list[bool] = []
    logps: list[float] = []
    queue: list[int] = []
    ends, checked, finish = False, 0, None
    while finish is None:
        logp_V = plain(policy, request.prefix + tuple(tokens))[0][-1]
        uniform = torch.from_numpy(
            uniforms(np.array([request.seeds[index]], np.uint64), np.array([len(tokens)], np.uint64))
        )
        drawn, _, _ = sample(logp_V[None], torch.tensor([request.temperature]), torch.tensor([request.top_p]), uniform)
        forced.append(bool(queue))
        tokens.append(queue.pop(0) if queue else int(drawn[0]))
        logps.append(logp_V[tokens[-1]].item())
        if tokens[-1] in policy.eos_ids:
            finish = "eos"
            break
        told = state.feed(tokens[-1])
        while state.busy:
            told = state.result()
        if told is not None:
            if len(tokens) + len(told.tokens) > request.max_tokens:
                finish = "length"
                break
            queue, ends = list(told.tokens), told.ends_step
        if state.open or queue or forced[-1]:
            checked = len(tokens)
        if (not queue and ends) or "\n" in policy.tokenizer.decode(tokens[checked:]):
            finish = "step"
        elif len(tokens) == request.max_tokens:
            finish = "length"
    state.close()
    return Completion(tuple(tokens), tuple(logps), finish, forced=tuple(forced) if any(forced) else None)


def test_forced_tokens_take_the_place_of_sampled_ones_as_the_rules_say(policy: Policy) -> None:
    watching = toy(policy)
    engine = TorchEngine(clone_policy(policy), max_rows=7, tools={"toy": watching})
    asked = [ask(f"p{i}", p, n=5, tool="toy", max_tokens=14, prompt_tokens=1) for i, p in enumerate(prompts(8))]
    found = generate(engine, asked)
    seen = {"forced": 0, "step": 0, "eos": 0, "length": 0, "newline kept": 0}
    for request, result in zip(asked, found, strict=True):
        for index, completion in enumerate(result.completions):
            expected = by_hand(policy, request, index, toy(policy))
            assert (completion.tokens, completion.finish) == (expected.tokens, expected.finish)
            assert completion.forced == expected.forced
            assert completion.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
            if completion.finish != "length":
                value_T = plain(policy, request.prefix + completion.tokens)[1]
                assert completion.value == pytest.approx(value_T[-1].item(), abs=1e-4)
            seen[completion.finish] += 1
            seen["forced"] += sum(completion.forced or ())
            seen["newline kept"] += "\n" in policy.tokenizer.decode(completion.tokens[:-1])
    assert all(seen.values()), f"a rule was not exercised: {seen}"
    assert {state.written for state in watching.states} == {r.prefix[1:] for r in asked}
    assert all(state.closed for state in watching.states) and len(watching.states) == 40
    forced = sum(sum(c.forced or ()) for r in found for c in r.completions)
    assert engine.cost.generated_tokens == sum(len(c.tokens) for r in found for c in r.completions) - forced
    free = TorchEngine(clone_policy(policy), max_rows=7)
    generate(free, [dataclasses.replace(r, tool=None) for r in asked])
    assert engine.cost.prefill_tokens == free.cost.prefill_tokens + forced
    engine.close()
    assert watching.closed


def test_no_result_after_all_and_a_result_that_does_not_fit(policy: Policy) -> None:
    quiet = toy(policy)
    quiet.answers, quiet.quick = False, set()
    request = ask("r", prompts(1)[0], n=12, max_tokens=14)
    (free,) = generate(TorchEngine(clone_policy(policy)), [request])
    quiet.brackets = set()
    (silent,) = generate(
        TorchEngine(clone_policy(policy), tools={"toy": quiet}), [dataclasses.replace(request, tool="toy")]
    )
    assert [(c.tokens, c.forced) for c in silent.completions] == [(c.tokens, None) for c in free.completions]
    wide = Toy(range(2, len(policy.tokenizer)), tail=(9,) * 30)
    (cut,) = generate(
        TorchEngine(clone_policy(policy), tools={"toy": wide}), [dataclasses.replace(request, tool="toy")]
    )
    assert all(c.finish == "eos" or (c.finish == "length" and len(c.tokens) == 1) for c in cut.completions)


def test_the_calculator_answers_in_the_engine_and_marks_what_it_would_have_written() -> None:
    torch.manual_seed(0)
    tokenizer = build_tiny_tokenizer(0, 60, ["<<", ">>"])
    model = build_tiny_model(len(tokenizer), hidden=32, layers=2, heads=4, intermediate=64, context=64, seed=1)
    model.eval()
    engine = TorchEngine(Policy(model, tokenizer, None), max_rows=50)
    prompt, written = (7, 8), tuple(tokenizer.encode("<<48/2", add_special_tokens=False))
    equals, *result = tokenizer.encode("=24>>", add_special_tokens=False)
    request = ask("r", prompt + written, n=300, tool="calculator", prompt_tokens=len(prompt), max_tokens=4)
    ignorant = dataclasses.replace(request, id="all is prompt", prompt_tokens=len(request.prefix))
    scored = ask(
        "g", prompt, n=0, tool="calculator", given=((*written, equals, *result), (*written, equals, result[1]))
    )
    found, unseen, given = generate(engine, [request, ignorant, scored])
    called = [c for c in found.completions if c.tokens[0] == equals]
    assert called, "no sample wrote the = that calls the calculator"
    for completion in called:
        assert completion.tokens[1:3] == tuple(result) and completion.forced[:3] == (False, True, True)
        assert not any(completion.forced[3:])
    assert not any(c.forced for c in found.completions if "=" not in tokenizer.decode(c.tokens))
    assert not any(c.forced for c in unseen.completions if "<<" not in tokenizer.decode(c.tokens))
    assert [c.forced for c in given.completions] == [(False,) * (len(written) + 1) + (True, True), None]


def everything(policy: Policy) -> list[Request]:
    return [
        ask(
            f"p{i}", p, n=4, tool="toy" if i % 3 else None, given=((9, 10, 11),) if i % 2 else (),
            choice=CHOICE if i % 4 else None, temperature=0.8, top_p=0.9,
        )
        for i, p in enumerate(prompts(8))
    ]  # fmt: skip


@pytest.mark.parametrize("rows, cache_mb", [(1, 64), (3, 0), (64, 64)])
def test_choices_given_and_tools_do_not_depend_on_what_shares_the_batch(
    policy: Policy, rows: int, cache_mb: int
) -> None:
    engine = TorchEngine(clone_policy(policy), max_rows=rows, cache_mb=cache_mb, tools={"toy": toy(policy)})
    single = TorchEngine(clone_policy(policy), tools={"toy": toy(policy)})
    for request, result in zip(everything(policy), generate(engine, everything(policy)), strict=True):
        (alone,) = generate(single, [request])
        for a, b in zip(result.completions, alone.completions, strict=True):
            assert (a.tokens, a.finish, a.forced) == (b.tokens, b.finish, b.forced)
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
            assert (a.choice_probs is None) == (b.choice_probs is None)
            assert a.choice_probs is None or a.choice_probs == pytest.approx(b.choice_probs, abs=1e-5)


def test_batch_invariant_engines_agree_to_the_last_bit(policy: Policy) -> None:
    asked = everything(policy)[:4]
    one = TorchEngine(clone_policy(policy), batch_invariant=True, tools={"toy": toy(policy)})
    two = TorchEngine(clone_policy(policy), batch_invariant=True, cache_mb=0, tools={"toy": toy(policy)})
    assert generate(one, asked) == list(reversed(generate(two, list(reversed(asked)))))
    prefixes = prompts(4)
    assert weighed(one, prefixes, CHOICE) == [weighed(two, [p], CHOICE)[0] for p in prefixes]


def test_update_finishes_questions_under_the_old_weights(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy), tools={"toy": toy(policy)})
    asked = everything(policy)
    before = {r.request_id: r for r in generate(TorchEngine(clone_policy(policy), tools={"toy": toy(policy)}), asked)}
    engine.submit(asked)
    other = clone_policy(policy)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.3)
    engine.load(PolicyWeights(other, PolicyId("p1")))
    drained = engine.poll()
    assert len(drained) == len(asked)
    for result in drained:
        for a, b in zip(result.completions, before[result.request_id].completions, strict=True):
            assert a.tokens == b.tokens and a.choice_probs == pytest.approx(b.choice_probs, abs=1e-5)


# --------------------------------------------------------------------------------------------------------- scripted


def test_the_world_answers_choices_by_the_prefix_alone_and_knows_something() -> None:
    world = World(seed=3, noise=0.0)
    engine = ScriptedEngine(world=world)
    question = Choice((2, 3), ((2,), (3,)))
    (result,) = generate(engine, [ask("r", (5, 2), n=200, max_tokens=200, delimiter=None, choice=question)])
    finished = [c for c in result.completions if c.finish == "eos"]
    assert len(finished) > 100
    for completion in finished:
        right, wrong = completion.choice_probs
        assert 0 <= right <= 1 and 0 <= wrong <= 1 and right + wrong <= 1
        assert (right > wrong) == (world.reward((5, 2, *completion.tokens)) > 0)
        assert weighed(engine, [(5, 2, *completion.tokens)], question) == [completion.choice_probs]
    (cut,) = generate(engine, [ask("c", (5, 2), n=20, max_tokens=1, delimiter=None, choice=question)])
    assert all((c.choice_probs is None) == (c.finish == "length") for c in cut.completions)


def test_the_world_scores_given_continuations_as_it_would_have_sampled_them() -> None:
    engine = ScriptedEngine()
    (sampled,) = generate(engine, [ask("s", (5, 2), n=20, temperature=0.5)])
    tokens = tuple(c.tokens for c in sampled.completions if c.finish != "length")
    (scored,) = generate(engine, [ask("g", (5, 2), n=0, given=tokens)])
    by_tokens = {c.tokens: c for c in sampled.completions}
    for completion in scored.completions:
        twin = by_tokens[completion.tokens]
        assert (completion.logprobs, completion.finish, completion.value) == (twin.logprobs, twin.finish, twin.value)
        assert completion.behaviour is None and completion.forced is None
    (strange,) = generate(engine, [ask("x", (5, 2), n=1, given=((99, 1),))])
    assert "token 99" in strange.error


def test_the_world_takes_a_tools_tokens() -> None:
    tool = Toy(quick=[2], slow=[3], tail=(4, DELIMITER, 4))
    tool.answer = 4
    engine = WithTools(ScriptedEngine(world=World(words=6)), {"toy": tool})
    request = ask("r", (5, 2), n=60, tool="toy", max_tokens=30, prompt_tokens=1)
    (result,) = generate(engine, [request])
    assert sum(bool(c.forced) for c in result.completions) > 10
    for completion in result.completions:
        forced = completion.forced or (False,) * len(completion.tokens)
        ended = [t in (EOS, DELIMITER) and not f for t, f in zip(completion.tokens, forced, strict=True)]
        assert not any(ended[:-1]) and len(completion.tokens) <= 30
        for at, token in enumerate(completion.tokens):
            if token == 2 and not forced[at] and completion.finish != "length":
                assert completion.tokens[at + 1 : at + 5] == (2, 4, DELIMITER, 4) and all(forced[at + 1 : at + 5])
    assert all(state.closed and state.written == (2,) for state in tool.states)
    (missing,) = generate(ScriptedEngine(), [request])
    assert "no tool 'toy'" in missing.error


def test_a_script_says_its_own_choices_and_scores() -> None:
    question = Choice((2,), ((2,), (3,)))
    own = ScriptedEngine(
        lambda prefix, seed, request: Completion((4, 1), (-1.0, -1.0), "step", choice_probs=(0.25, 0.5))
    )
    (result,) = generate(own, [ask("r", (5,), choice=question)])
    assert result.completions[0].choice_probs == (0.25, 0.5)
    (unasked,) = generate(own, [ask("r", (5,))])
    assert unasked.completions[0].choice_probs is None
    (unscored,) = generate(own, [ask("r", (5,), given=((4,),))])
    assert "score=" in unscored.error
    told = ScriptedEngine(
        lambda prefix, seed, request: Completion((4, 1), (-1.0, -1.0), "step"),
        choice=lambda prefix, choice: (len(prefix) / 10, 0.1),
        score=lambda prefix, given: [-0.5] * len(given),
    )
    (result,) = generate(told, [ask("r", (5,), choice=question, given=((4, 4, EOS),))])
    assert [c.choice_probs for c in result.completions] == [(0.3, 0.1), (0.4, 0.1)]
    assert result.completions[1].logprobs == (-0.5,) * 3 and result.completions[1].finish == "eos"
