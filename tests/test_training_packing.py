"""Packing: exact in value and gradient, split or not, and cheap where it can be."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training_cases import random_example, random_examples, separate, tiny_llama, tiny_value_head
from treepref.errors import DataError, ModelError
from treepref.training.examples import Example, ExampleNode
from treepref.training.forward import PackedModel, loss_batch, place, scatter_index, score
from treepref.training.packing import attention_mask, check_context, collate, flatten, pack, passes
from treepref.training.probe import wholly_float64

MODEL, VALUE_HEAD = tiny_llama(), tiny_value_head()


def relative(one: torch.Tensor, two: torch.Tensor) -> float:
    return ((one - two).norm() / two.norm().clamp(min=1e-30)).item()


def test_layout_by_hand() -> None:
    # prompt a b; node 0: c d; node 1: e (below the prompt); node 2: f g (below node 0)
    nodes = (ExampleNode((12, 13), sft=1.0), ExampleNode((14,), sft=1.0), ExampleNode((15, 16), 0, sft=1.0))
    flat = flatten(Example("x", (10, 11), nodes), 100)
    (piece,) = flat.pieces
    # depth first: a b | c d | f g | e
    assert piece.ids.tolist() == [10, 11, 12, 13, 15, 16, 14]
    assert piece.positions.tolist() == [0, 1, 2, 3, 4, 5, 2]
    assert piece.ends.tolist() == [7, 7, 6, 6, 6, 6, 7]
    # c from b, d from c, f from d, g from f, e from b
    assert piece.predictors.tolist() == [1, 2, 3, 4, 1]
    assert piece.labels.tolist() == [12, 13, 15, 16, 14]
    assert piece.slots.tolist() == [0, 1, 3, 4, 2]
    assert flat.node_T.tolist() == [1, 1, 2, 3, 3]
    assert (piece.segments.tolist(), piece.last.tolist()) == ([0, 1, 3, 2], [1, 3, 5, 6])


def test_a_token_sees_its_own_path_alone() -> None:
    rng = random.Random(3)
    examples = [random_example(rng, "a"), random_example(rng, "b", nodes=4)]
    flats = [flatten(e, 1000) for e in examples]
    passage = collate([f.pieces[0] for f in flats], [[0, 1]])
    sees = attention_mask(passage.ends_RL, torch.float64)[0, 0] == 0
    at = 0
    for example, flat in zip(examples, flats, strict=True):
        piece = flat.pieces[0]
        owner = np.repeat(piece.segments, np.diff(np.concatenate([[-1], piece.last])))
        for q in range(len(piece)):
            line, node = {0}, owner[q]
            while node:
                line.add(node)
                node = example.nodes[node - 1].parent + 1
            expected = {at + k for k in range(q + 1) if owner[k] in line}
            assert set(sees[at + q].nonzero().flatten().tolist()) == expected
        at += len(piece)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(20, 80))
def test_rows_hold_everything_once_and_fit(lengths: list[int], row_tokens: int) -> None:
    rows = pack(lengths, row_tokens)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= row_tokens or len(row) == 1 for row in rows)
    assert rows == pack(lengths, row_tokens)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3))
def test_packed_equals_separate_in_value_and_gradient(seed: int, trees: int, rows: int) -> None:
    examples = random_examples(seed, trees)
    flats = [flatten(e, 10**6) for e in examples]
    layout = [list(range(trees))[r::rows] for r in range(rows)]
    members = [i for row in layout for i in row]
    ordered = [flats[i] for i in members]
    numbers = iter(range(trees))
    layout = [[next(numbers) for _ in row] for row in layout if row]
    index = scatter_index(ordered)
    packed = PackedModel(MODEL, VALUE_HEAD).eval()
    with wholly_float64():
        logp_T, value_S = packed(collate([f.pieces[0] for f in ordered], layout))
        logp_T, value_N = place(logp_T, index.token_T), place(value_S, index.node_S)
        alone = [separate(MODEL, VALUE_HEAD, f.example) for f in ordered]
        plain_N = torch.stack([v for _, values in alone for v in values])
        plain_T = torch.cat([_trained(f.example, logps) for f, (logps, _) in zip(ordered, alone, strict=True)])
        assert relative(logp_T, plain_T) <= 1e-9
        assert relative(value_N, plain_N) <= 1e-9
        generator = torch.Generator().manual_seed(seed)
        a, b = (torch.randn(len(x), generator=generator, dtype=torch.float64) for x in (logp_T, value_N))
        parameters = list(packed.parameters())
        together = torch.autograd.grad((logp_T @ a) + (value_N @ b), parameters)
        apart = torch.autograd.grad((plain_T @ a) + (plain_N @ b), parameters)
    assert relative(*(torch.cat([g.flatten() for g in gs]) for gs in (together, apart))) <= 1e-9


def _trained(example: Example, logps: list[torch.Tensor]) -> torch.Tensor:
    """Log-probs of tokens that are trained and not forced, nodes in order."""
    parts = [torch.zeros(0, dtype=torch.float64)]
    for node, trained, logp in zip(example.nodes, example.trained, logps, strict=True):
        free = [i for i in range(len(node.tokens)) if not (node.forced and node.forced[i])]
        parts.append(logp[free] if trained else logp[:0])
    return torch.cat(parts)


@pytest.mark.parametrize("row_tokens", [10**6, 25, 12])
def test_scores_do_not_depend_on_how_trees_are_cut(row_tokens: int) -> None:
    examples = random_examples(5, 4, nodes=9)
    assert row_tokens > 1000 or any(flatten(e, row_tokens).split for e in examples)
    scores = score(MODEL, examples, value_head=VALUE_HEAD, row_tokens=row_tokens, rows_per_pass=2)
    with torch.no_grad():
        for example, logprobs, values in zip(examples, scores.logprobs, scores.values, strict=True):
            logps, plain = separate(MODEL, VALUE_HEAD, example)
            assert values == pytest.approx([v.item() for v in plain], abs=1e-6)
            for node, trained, found, logp in zip(example.nodes, example.trained, logprobs, logps, strict=True):
                if not trained:
                    assert found is None
                    continue
                for token, (x, y) in enumerate(zip(found, logp.tolist(), strict=True)):
                    forced = node.forced is not None and node.forced[token]
                    assert x == (0.0 if forced else pytest.approx(y, abs=1e-6))


def test_every_token_is_owned_by_one_piece() -> None:
    for seed in range(20):
        example = random_examples(seed, 1, nodes=12)[0]
        flat = flatten(example, 16)
        assert sorted(np.concatenate([p.slots for p in flat.pieces]).tolist()) == list(range(len(flat.node_T)))
        assert sorted(np.concatenate([p.segments for p in flat.pieces]).tolist()) == list(range(13))
        assert all(len(p) <= max(16, example.longest_path) for p in flat.pieces)


def test_chunks_of_the_head_change_nothing() -> None:
    flats = [flatten(e, 1000) for e in random_examples(2, 2)]
    passage = collate([f.pieces[0] for f in flats], [[0, 1]])
    whole = PackedModel(MODEL, chunk_tokens=10**6).eval()(passage)[0]
    chunked = PackedModel(MODEL, chunk_tokens=7).eval()(passage)[0]
    assert len(whole) > 7
    assert torch.allclose(whole, chunked, rtol=0, atol=1e-12)
    one, two = (torch.autograd.grad(x.sum(), list(MODEL.parameters())) for x in (whole, chunked))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(one, two, strict=True))


def test_the_prompt_is_in_a_row_once() -> None:
    example = random_examples(1, 1, nodes=8)[0]
    flat = flatten(example, 1000)
    assert flat.tokens == example.size == len(example.prompt) + sum(len(n.tokens) for n in example.nodes)


def test_loss_batch_offsets_nodes_of_later_trees() -> None:
    examples = random_examples(11, 2)
    flats = [flatten(e, 1000) for e in examples]
    tokens = sum(len(f.node_T) for f in flats)
    batch = loss_batch(flats, torch.zeros(tokens, dtype=torch.float64), None)
    first = len(examples[0].nodes) + 1
    assert batch.n_nodes == first + len(examples[1].nodes) + 1
    assert batch.n_pairs == sum(len(e.pairs) for e in examples)
    later = [first + 1 + n for pair in examples[1].pairs for n in pair.winner]
    assert batch.winner_nodes_W.tolist()[-len(later) :] == later
    assert batch.has_target_N.sum().item() == sum(e.counts.values for e in examples)


def test_a_path_beyond_the_context_is_refused_by_name() -> None:
    example = Example("long one", (1,) * 10, (ExampleNode((2,) * 20), ExampleNode((3,) * 20, 0)))
    check_context([example], 50)
    with pytest.raises(DataError, match=r"'long one'.*50 tokens.*context is 49"):
        check_context([example], 49)


def test_attention_that_ignores_the_mask_is_refused() -> None:
    model = tiny_llama()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="flash_attention_2"):
        PackedModel(model)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(20, 100), st.integers(1, 4))
def test_passes_hold_everything_once_in_rows_no_longer_than_the_longest_needs(
    lengths: list[int], row_tokens: int, rows: int
) -> None:
    found = passes(lengths, row_tokens, rows)
    assert sorted(i for some in found for row in some for i in row) == list(range(len(lengths)))
    for some in found:
        widths = [sum(lengths[i] for i in row) for row in some]
        assert max(widths) <= max(lengths)
        assert len(some) == 1 or len(some) * max(widths) <= row_tokens * rows, "the memory of a forward is bounded"


def test_passes_by_hand() -> None:
    # 60 tokens need a row of their own; of four items of 20, three share a row of 60: 2 forwards of 120 places each
    assert passes([60, 20, 20, 20, 20], 120, 1) == [[[0], [1, 2, 3]], [[4]]]
    assert passes([], 120, 1) == []
