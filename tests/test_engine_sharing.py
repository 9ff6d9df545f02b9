"""Siblings that share their prefix's keys and values: the numbers of plain forwards, and each prefix held once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from engine_cases import spread_policy_of
from treepref.engines import attention, torch_engine
from treepref.engines.base import generate
from treepref.engines.kv_cache import Block, cut_bands, cut_passes, sharing
from treepref.engines.torch_engine import TorchEngine
from treepref.models.policy import Policy, clone_policy
from treepref.types import Choice, Completion, Request, Result

CHOICE = Choice(suffix=(20, 21, 22, 23, 24), options=((30, 31), (32,)), after_eos=(3,))
SLIDING = {"num_key_value_heads": 2, "sliding_window": 6}
MIXED = {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]} | SLIDING


@pytest.fixture(scope="module")
def policy() -> Policy:
    return spread_policy_of(LlamaConfig, num_key_value_heads=2)


def asked(count: int, *, n: int = 5, longest: int = 40, **options) -> list[Request]:
    """Requests of mixed prefix lengths; some with given continuations, some with a choice after their samples."""
    rng = np.random.default_rng(3)
    found = []
    for i in range(count):
        prefix = tuple(int(t) for t in rng.integers(5, 40, rng.integers(1, longest)))
        more = {"given": ((9, 10, 11),) if i % 2 else (), "choice": CHOICE if i % 3 else None} | options
        how = {"max_tokens": 18, "want_value": bool(i % 4), "delimiter": "\n"} | more
        found.append(Request(f"p{i}", prefix, n, tuple(1000 * i + k for k in range(n)), **how))
    return found


@torch.no_grad()
def check_against_plain(policy: Policy, prefix: tuple[int, ...], completion: Completion) -> None:
    out = policy.model(torch.tensor([prefix + completion.tokens]), output_hidden_states=True)
    logp_TV = out.logits[0].float().log_softmax(-1)
    at = torch.arange(len(prefix) - 1, len(prefix) + len(completion.tokens) - 1)
    expected = logp_TV[at, torch.tensor(completion.tokens)]
    assert torch.tensor(completion.logprobs) == pytest.approx(expected, abs=1e-5, rel=1e-5)
    if completion.value is not None:
        assert completion.value == pytest.approx(policy.value_head(out.hidden_states[-1][0, -1]).item(), abs=1e-5)


def tokens(results: list[Result]) -> list[list[tuple[int, ...]]]:
    return [[c.tokens for c in result.completions] for result in results]


@pytest.mark.parametrize("rows, cache_mb", [(64, 64), (23, 64), (23, 0), (3, 64)])
def test_shared_attention_says_what_plain_forwards_say(policy: Policy, rows: int, cache_mb: int) -> None:
    engine = TorchEngine(clone_policy(policy), max_rows=rows, cache_mb=cache_mb)
    first = asked(14)
    results = generate(engine, first)
    assert engine._shares
    # Steps continued twice: from the cache, or, where nothing stays in it, computed anew.
    for _ in range(2):
        for request, result in zip(first, results, strict=True):
            for completion in result.completions:
                check_against_plain(policy, request.prefix, completion)
        assert {c.finish for r in results for c in r.completions} >= {"step", "length"}
        first = [
            dataclasses.replace(request, id=f"{request.id}+", prefix=request.prefix + c.tokens)
            for request, result in zip(first, results, strict=True)
            for c in result.completions[:2]
            if c.finish == "step"
        ]
        results = generate(engine, first)
    assert not engine._cache.slots and not engine._cache.lengths


def test_equal_seeds_give_equal_tokens_shared_or_not(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = generate(TorchEngine(clone_policy(policy), max_rows=23), asked(14))
    again = generate(TorchEngine(clone_policy(policy), max_rows=64), asked(14))
    monkeypatch.setattr(torch_engine, "can_share", lambda policy: False)
    apart = generate(TorchEngine(clone_policy(policy), max_rows=23), asked(14))
    assert tokens(shared) == tokens(again) == tokens(apart)
    for a, b in zip(shared, apart, strict=True):
        for x, y in zip(a.completions, b.completions, strict=True):
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-5)


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize(
    "config_class, options",
    [
        (Qwen2Config, {"num_key_value_heads": 2}),
        (Qwen2Config, MIXED),
        (Qwen3Config, {"num_key_value_heads": 1, "head_dim": 16}),
        (MistralConfig, SLIDING),
        (GPT2Config, {}),
    ],
)
def test_other_families_share_and_can_do_without(
    config_class: type, options: dict, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = spread_policy_of(config_class, **options)
    if not shares:
        monkeypatch.setattr(torch_engine, "can_share", lambda policy: False)
    engine = TorchEngine(clone_policy(policy), max_rows=23)
    requests = asked(6, n=3)
    for request, result in zip(requests, generate(engine, requests), strict=True):
        for completion in result.completions:
            check_against_plain(policy, request.prefix, completion)
    assert engine._shares == shares


def test_attention_that_is_more_than_plain_is_left_to_the_model(policy: Policy) -> None:
    capped = spread_policy_of(
        Gemma2Config, num_key_value_heads=2, head_dim=8, attn_logit_softcapping=2.0, final_logit_softcapping=None
    )
    eager = clone_policy(policy)
    eager.model.set_attn_implementation("eager")
    for other in (capped, eager):
        before = other.model.config._attn_implementation
        engine = TorchEngine(other, max_rows=23)
        requests = asked(6, n=3)
        for request, result in zip(requests, generate(engine, requests), strict=True):
            for completion in result.completions:
                check_against_plain(other, request.prefix, completion)
        assert not engine._shares and other.model.config._attn_implementation == before


@pytest.fixture
def registered() -> Iterator[None]:
    """Puts the attention that transformers knows back as it was."""
    yield
    attention.AttentionInterface.register(attention.SHARED, attention.shared_attention)


def test_a_model_whose_attention_does_something_else_does_not_share(policy: Policy, registered: None) -> None:
    assert attention.can_share(policy)
    right = attention.shared_attention
    for name, wrong in {
        "another scale": lambda *a, **named: right(*a, **named | {"scaling": 0.3}),
        "no word of what is shared": lambda *a, shared, **named: right(*a, **named),
    }.items():
        attention.AttentionInterface.register(attention.SHARED, wrong)
        assert not attention.can_share(policy), name


def test_batch_invariant_numbers_do_not_depend_on_what_the_cache_holds(policy: Policy) -> None:
    requests = asked(5, n=3)
    one = TorchEngine(clone_policy(policy), batch_invariant=True)
    cold = generate(one, requests)
    (step, prefix), *_ = (
        (c, r.prefix) for r, result in zip(requests, cold, strict=True) for c in result.completions[1:]
        if c.finish == "step"
    )  # fmt: skip
    child = dataclasses.replace(requests[0], id="child", prefix=prefix + step.tokens)
    warm = generate(one, [*requests, child])
    evicting = TorchEngine(clone_policy(policy), batch_invariant=True, cache_mb=0)
    anew = generate(evicting, [child, *reversed(requests)])
    assert not one._shares and evicting._prefixes.bytes == 0
    assert cold == warm[:-1] == list(reversed(anew[1:]))
    # The step's keys and values were made by its own row; here they are computed from its text.
    assert warm[-1] == anew[0]


def test_the_prefix_of_siblings_is_held_once(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy), max_rows=32)
    lengths = []
    forward = engine._forward

    def watched() -> None:
        lengths.append((list(engine._cache.lengths), list(engine._cache.slots)))
        forward()

    engine._forward = watched
    generate(engine, [Request("r", (7,) * 60, 32, tuple(range(32)), 8, delimiter=None)])
    assert lengths[0] == ([60], [0] * 32)
    for block, rows, length in ((engine._cache.prefixes, 1, 64), (engine._cache.own, 32, 16)):
        assert block.key_LRKTD.shape == block.value_LRKTD.shape == (2, rows, 2, length, 8)


@given(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 3000)), min_size=1, max_size=40), st.randoms())
@settings(max_examples=60, deadline=None)
def test_bands_hold_every_row_once_and_little_padding(kinds: list[tuple[int, int]], random) -> None:
    counts, lengths = zip(*kinds, strict=True)
    cuts = cut_bands(counts, lengths)
    assert [slot for cut in cuts for slot in range(cut.start, cut.stop)] == list(range(len(kinds)))
    for cut in cuts:
        needed = sum(c * n for c, n in kinds[cut])
        work = len(kinds[cut]) * max(counts[cut]) * max(lengths[cut])
        assert work <= max(2 * needed, needed + 4096)
    slots = [slot for slot, count in enumerate(counts) for _ in range(count)]
    random.shuffle(slots)
    shared = sharing(slots, list(lengths), Block(1, 1, 1, torch.float32, torch.device("cpu")))
    found, own = torch.full((len(slots), 1), -1), torch.arange(len(slots))[:, None]
    for band in shared.bands:
        assert torch.equal(band.rows_SN[band.slot_R, band.place_R], band.row_R)
        slot_SN1 = torch.arange(band.slots.start, band.slots.stop)[:, None, None].expand(*band.rows_SN.shape, 1)
        assert (found[band.row_R] == -1).all()
        band.put(found, slot_SN1)
        band.add(found, 100 * band.by_slot(own))
    assert found[:, 0].tolist() == [slot + 100 * row for row, slot in enumerate(slots)]


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(0, 600))
@settings(max_examples=60, deadline=None)
def test_passes_hold_every_text_once_and_another_only_where_padding_asks_for_it(counts: list[int], spare: int) -> None:
    counts = sorted(counts, reverse=True)
    cuts = cut_passes(counts, spare)
    assert [text for cut in cuts for text in range(cut.start, cut.stop)] == list(range(len(counts)))
    padding = [sum(counts[cut.start] - n for n in counts[cut]) for cut in cuts]
    assert max(padding, default=0) <= spare
    for cut, below, wasted in zip(cuts, cuts[1:], padding, strict=False):
        assert wasted + counts[cut.start] - counts[below.start] > spare


def test_prompts_of_mixed_lengths_are_prefilled_in_passes_of_similar_ones(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    plain_fill = torch_engine.fill

    def watched(policy, cache, slots, ids_RS, position_RS, *, copy):
        shapes.append(ids_RS.shape)
        return plain_fill(policy, cache, slots, ids_RS, position_RS, copy=copy)

    requests = asked(14, longest=60, given=(), choice=None)
    lengths = [len(request.prefix) for request in requests]
    monkeypatch.setattr(torch_engine, "fill", watched)
    monkeypatch.setattr(torch_engine, "SPARE_TOKENS", 14 * 60)
    whole = generate(TorchEngine(clone_policy(policy)), requests)
    assert shapes == [(14, max(lengths))]
    shapes.clear()
    monkeypatch.setattr(torch_engine, "SPARE_TOKENS", 40)
    engine = TorchEngine(clone_policy(policy))
    cut = generate(engine, requests)
    assert len(shapes) > 2 and sum(rows for rows, _ in shapes) == 14
    assert sum(rows * steps for rows, steps in shapes) <= sum(lengths) + 40 * len(shapes) < 14 * max(lengths)
    assert engine.cost.prefill_tokens == sum(lengths)
    assert tokens(cut) == tokens(whole)
    for request, result in zip(requests, cut, strict=True):
        for completion in result.completions:
            check_against_plain(policy, request.prefix, completion)


def test_slots_close_up_when_their_last_row_leaves(policy: Policy) -> None:
    cache = attention.slot_cache(policy)
    cache.prefixes.reserve(4, 8)
    cache.own.reserve(6, 4)
    for block, first in ((cache.prefixes, 0), (cache.own, 10)):
        rows = len(block.value_LRKTD[0])
        block.key_LRKTD[:] = block.value_LRKTD[:] = first + torch.arange(rows)[:, None, None, None]
    cache.add([3, 4, 5, 6], [1, 2, 1, 2])
    cache.keep([0, 5, 2, 4], own=[2, 2, 2, 2])  # rows 1 and 3 leave: slot 2 is free, slot 3 moves into it
    assert (cache.slots, cache.lengths) == ([0, 2, 1, 2], [3, 4, 6])
    ends = [cache.read(row, length - 1, length + 1)[0, 0, 0, :, 0] for row, length in enumerate((3, 6, 4, 6))]
    assert [end.tolist() for end in ends] == [[0, 10], [3, 15], [1, 12], [3, 14]]
    cache.keep([3], own=[2])
    assert (cache.slots, cache.lengths) == ([0], [6])
    assert cache.read(0, 0, 8)[1, 1, 1, :, 3].tolist() == [3] * 6 + [14] * 2
