"""The torch engine against plain forwards: same tokens, same log-probs, same values, each token computed once."""

from __future__ import annotations

import dataclasses
import gc
import weakref
import zlib
from functools import partial

import numpy as np
import pytest
import torch

from engine_cases import spread_policy
from treepref.engines.base import generate
from treepref.engines.kv_cache import Block, PrefixTree
from treepref.engines.sampling import sample, uniforms
from treepref.engines.torch_engine import TorchEngine
from treepref.models.policy import Policy, clone_policy
from treepref.models.weights import PolicyWeights
from treepref.types import BASE, Completion, PolicyId, Request


@pytest.fixture(scope="module")
def policy() -> Policy:
    return spread_policy()


def prompts(policy: Policy, count: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(3)
    return [tuple(int(t) for t in rng.integers(5, 40, rng.integers(2, 12))) for _ in range(count)]


def request(name: str, prefix: tuple[int, ...], n: int = 1, **options) -> Request:
    options = {"max_tokens": 12, "want_value": True, "delimiter": None} | options
    return Request(name, prefix, n, tuple(zlib.crc32(f"{name} {i}".encode()) for i in range(n)), **options)


@torch.no_grad()
def plain(policy: Policy, ids: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs [T, V] and values [T] from one ordinary forward of transformers."""
    out = policy.model(torch.tensor([ids]), output_hidden_states=True)
    return out.logits[0].float().log_softmax(-1), policy.value_head(out.hidden_states[-1][0])


def test_batched_greedy_equals_single_greedy_of_transformers(policy: Policy) -> None:
    todo = prompts(policy, 20)
    engine = TorchEngine(clone_policy(policy), max_rows=7)
    found = generate(engine, [request(f"p{i}", p, temperature=0.0, max_tokens=20) for i, p in enumerate(todo)])
    for prompt, result in zip(todo, found, strict=True):
        alone = policy.model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=20, pad_token_id=0,
            eos_token_id=sorted(policy.eos_ids),
        )  # fmt: skip
        assert list(result.completions[0].tokens) == alone[0, len(prompt) :].tolist()


def check_against_plain(policy: Policy, prefix: tuple[int, ...], completion: Completion) -> None:
    logp_TV, value_T = plain(policy, prefix + completion.tokens)
    at = torch.arange(len(prefix) - 1, len(prefix) + len(completion.tokens) - 1)
    expected = logp_TV[at, torch.tensor(completion.tokens)]
    assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)
    if completion.finish != "length":
        assert completion.value == pytest.approx(value_T[-1].item(), abs=1e-4)


def test_recorded_log_probs_and_values_equal_recomputed_ones(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy), max_rows=16)
    asked = [request(f"p{i}", p, n=4, delimiter="\n") for i, p in enumerate(prompts(policy, 12))]
    finishes = set()
    for req, result in zip(asked, generate(engine, asked), strict=True):
        assert result.prefix_value == pytest.approx(plain(policy, req.prefix)[1][-1].item(), abs=1e-4)
        for completion in result.completions:
            finishes.add(completion.finish)
            check_against_plain(policy, req.prefix, completion)
    assert finishes >= {"step", "length"}


def test_a_continued_step_computes_none_of_its_prefix_again(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy))
    prompt = prompts(policy, 1)[0]
    (first,) = generate(engine, [request("root", prompt, n=8, delimiter="\n", max_tokens=30)])
    steps = [c for c in first.completions if c.finish == "step"]
    assert steps
    before = dataclasses.replace(engine.cost)
    children = [request(f"c{i}", prompt + c.tokens, n=3) for i, c in enumerate(steps)]
    for req, result in zip(children, generate(engine, children), strict=True):
        for completion in result.completions:
            check_against_plain(policy, req.prefix, completion)
    spent = engine.cost - before
    assert spent.prefill_tokens == 0
    assert spent.cached_tokens == sum(3 * len(r.prefix) for r in children)


def test_without_values_the_last_token_of_a_step_alone_is_prefilled(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy))
    prompt = prompts(policy, 1)[0]
    ask = request("root", prompt, n=8, delimiter="\n", max_tokens=30, want_value=False)
    steps = [c for c in generate(engine, [ask])[0].completions if c.finish == "step"]
    before = dataclasses.replace(engine.cost)
    children = [request(f"c{i}", prompt + c.tokens) for i, c in enumerate(steps)]
    for req, result in zip(children, generate(engine, children), strict=True):
        check_against_plain(policy, req.prefix, result.completions[0])
    assert (engine.cost - before).prefill_tokens == len({r.prefix for r in children})


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_sample_does_not_depend_on_what_shares_its_batch(policy: Policy, rows: int) -> None:
    asked = [request(f"p{i}", p, n=5, temperature=0.8, top_p=0.9) for i, p in enumerate(prompts(policy, 9))]
    together = generate(TorchEngine(clone_policy(policy), max_rows=rows), asked)
    for req, result in zip(asked, together, strict=True):
        (alone,) = generate(TorchEngine(clone_policy(policy), max_rows=64), [req])
        assert [c.tokens for c in alone.completions] == [c.tokens for c in result.completions]
        assert all(c.behaviour is not None for c in result.completions)


def test_batch_invariant_engines_agree_to_the_last_bit(policy: Policy) -> None:
    asked = [request(f"p{i}", p, n=3, delimiter="\n") for i, p in enumerate(prompts(policy, 5))]
    one = TorchEngine(clone_policy(policy), batch_invariant=True)
    two = TorchEngine(clone_policy(policy), batch_invariant=True, cache_mb=0)
    assert one.deterministic
    assert generate(one, asked) == list(reversed(generate(two, list(reversed(asked)))))


def test_eviction_costs_time_and_changes_nothing(policy: Policy) -> None:
    asked = [request(f"p{i}", p, n=2, delimiter="\n") for i, p in enumerate(prompts(policy, 30))]
    small = TorchEngine(clone_policy(policy), cache_mb=0)
    large = TorchEngine(clone_policy(policy))
    for a, b in zip(generate(small, asked), generate(large, asked), strict=True):
        assert [c.tokens for c in a.completions] == [c.tokens for c in b.completions]
    assert small._prefixes.bytes == 0


def test_values_of_whole_sequences(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy))
    todo = prompts(policy, 6)
    asked = [Request(f"v{i}", p, 0, (), 1, want_value=True) for i, p in enumerate(todo)]
    found = [result.prefix_value for result in generate(engine, asked)]
    assert found == pytest.approx([plain(policy, p)[1][-1].item() for p in todo], abs=1e-4)
    assert engine.cost.scored_tokens > 0 and engine.cost.generated_tokens == 0


def test_load_publishes_weights_in_memory_and_drops_the_cache(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy))
    prompt = prompts(policy, 1)[0]
    generate(engine, [request("before", prompt)])
    engine.submit([request("in flight", prompt)])
    other = clone_policy(policy)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.3)
    engine.load(PolicyWeights(other, PolicyId("p1")))
    (drained,) = engine.poll()
    assert drained.request_id == "in flight" and drained.policy == BASE
    check_against_plain(policy, prompt, drained.completions[0])
    (after,) = generate(engine, [request("after", prompt)])
    assert after.policy == engine.policy_id == "p1"
    check_against_plain(other, prompt, after.completions[0])


def test_impossible_requests_are_answered_with_the_reason(policy: Policy) -> None:
    engine = TorchEngine(clone_policy(policy))
    long, empty, fine = generate(
        engine, [request("long", (7,) * 96), request("empty", ()), request("fine", (7,) * 90, max_tokens=50)]
    )
    assert "context" in long.error and not long.completions
    assert "empty" in empty.error
    assert len(fine.completions[0].tokens) <= 6


def test_uniform_numbers_are_uniform_and_depend_on_seed_and_counter_alone() -> None:
    seeds = np.arange(20_000, dtype=np.uint64)
    u = uniforms(seeds, np.full(20_000, 3, dtype=np.uint64))
    assert u.min() >= 0 and u.max() < 1
    assert np.histogram(u, bins=10, range=(0, 1))[0] == pytest.approx([2000] * 10, rel=0.12)
    assert abs(np.corrcoef(u, uniforms(seeds, np.full(20_000, 4, dtype=np.uint64)))[0, 1]) < 0.03
    assert uniforms(seeds[5:6], np.array([3], dtype=np.uint64))[0] == u[5]


def test_sampled_frequencies_follow_the_tempered_nucleus() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
    rows = 40_000
    u = torch.from_numpy(uniforms(np.arange(rows, dtype=np.uint64), np.zeros(rows, dtype=np.uint64)))
    token, logp, behaviour = sample(logits.expand(rows, 5), torch.full((rows,), 0.5), torch.full((rows,), 0.95), u)
    # Tempered by 0.5: softmax(4, 2, 0, −2, −4) = .865, .117, .016, …; the nucleus of 0.95 is the first two.
    kept = torch.tensor([4.0, 2.0]).softmax(0)
    assert set(token.tolist()) == {0, 1}
    assert (token == 0).float().mean().item() == pytest.approx(kept[0].item(), abs=0.01)
    assert behaviour[token == 1][0].exp().item() == pytest.approx(kept[1].item(), abs=1e-5)
    assert logp[token == 1][0].exp().item() == pytest.approx(logits.softmax(0)[1].item(), abs=1e-5)


@pytest.mark.parametrize("columns", [False, True])
def test_room_for_keys_and_values_follows_what_is_in_use(columns: bool) -> None:
    block = Block(1, 1, 2, torch.float32, torch.device("cpu"), columns=columns)

    def shapes() -> set[tuple[int, ...]]:
        return {tuple(of_all.shape[1:4]) for of_all in (block.key_LRKTD, block.value_LRKTD)}

    block.reserve(256, 150)
    block.write(0, 0, torch.tensor([7.0, 8.0])[None, :, None, None, None].expand(1, 2, 1, 3, 2))
    block.reserve(1, 2000)  # a long row, alone: not 256 of them
    assert shapes() == {(1, 1, 2000)}
    block.reserve(200, 100)  # many short ones again: not as long as that one
    assert shapes() == {(200, 1, 112)}
    assert (block.read(0, 0, 3)[:, 0] == 7.0).all() and (block.read(0, 0, 3)[:, 1] == 8.0).all()
    assert (block.key_LRKTD.sum(), block.value_LRKTD.sum()) == (7.0 * 6, 8.0 * 6)
    block.reserve(210, 90)
    assert shapes() == {(300, 1, 112)}  # by half, and a length that is still of use stays


@pytest.mark.parametrize("columns", [False, True])
def test_a_row_reads_what_was_written_and_moves_whole(columns: bool) -> None:
    block = Block(2, 3, 4, torch.float32, torch.device("cpu"), columns=columns)
    block.reserve(2, 8)
    assert block.key_LRKTD.stride(-1) == (16 if columns else 1)
    written_LCKTD = torch.randn(2, 2, 3, 5, 4)
    block.write(1, 2, written_LCKTD)
    assert torch.equal(block.read(1, 2, 7), written_LCKTD)
    block.move(1, 0, 7)
    assert torch.equal(block.read(0, 3, 6), written_LCKTD[:, :, :, 1:4])
    assert torch.equal(block.value_LRKTD[:, 0, :, 2:7], written_LCKTD[:, 1])


def test_a_cleared_prefix_tree_frees_its_memory_at_once() -> None:
    row = Block(1, 1, 2, torch.float32, torch.device("cpu"))
    row.reserve(1, 8)
    tree = PrefixTree(1 << 20)
    tree.insert((1, 2, 3), partial(row.read, 0), None)
    tree.insert((1, 2, 3, 4, 5), partial(row.read, 0), None)
    held = [weakref.ref(segment.kv_LCKTD) for segment, _ in tree.match((1, 2, 3, 4, 5)).segments]
    gc.disable()
    try:
        tree.clear()
        assert len(held) == 2 and not any(kept() is not None for kept in held)
    finally:
        gc.enable()
    assert tree.bytes == 0 and tree.match((1, 2)).length == 0


def test_prefix_tree_splits_and_finds_partial_matches() -> None:
    row = Block(1, 1, 2, torch.float32, torch.device("cpu"))
    row.reserve(2, 8)
    row.write(0, 0, torch.arange(32).view(1, 2, 1, 8, 2).float())
    tree = PrefixTree(1 << 20)
    tree.insert((1, 2, 3, 4), partial(row.read, 0), torch.ones(3))
    tree.insert((1, 2, 9), partial(row.read, 0), torch.zeros(3))
    whole = tree.match((1, 2, 3, 4))
    assert whole.length == 4 and whole.hidden_H.tolist() == [1, 1, 1]
    assert torch.equal(torch.cat([s.kv_LCKTD for s, _ in whole.segments], dim=3), row.read(0, 0, 4))
    part = tree.match((1, 2, 3, 5))
    assert (part.length, part.hidden_H) == (3, None)
    assert tree.match((1, 2)).hidden_H is None and tree.match((8,)).length == 0
