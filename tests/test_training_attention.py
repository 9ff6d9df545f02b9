"""Attention in blocks: who meets whom, and that it computes what the mask over the whole row does."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training_cases import random_examples, tiny_llama, tiny_value_head
from treepref.models.policy import attention_by
from treepref.training.attention import NAME, block_attention, blocks_of, kinds_of, tiles
from treepref.training.forward import PackedModel, evaluating
from treepref.training.packing import Passage, attention_mask, collate, flatten


def passage_of(seed: int, count: int) -> Passage:
    """Some random trees in one row."""
    flats = [flatten(example, 10**6) for example in random_examples(seed, count)]
    return collate([flat.pieces[0] for flat in flats], [list(range(count))])


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_blocks_let_see_what_the_mask_lets_see(seed: int, count: int) -> None:
    ends_L = passage_of(seed, count).ends_RL[0]
    blocks = blocks_of(ends_L.numpy(), torch.float64)
    seen = np.zeros((len(ends_L), len(ends_L)), dtype=bool)
    queries = torch.split(blocks.order_L, blocks.query_sizes)
    keys = torch.split(blocks.order_L[blocks.keys_K], blocks.key_sizes)
    for query, key, mask in zip(queries, keys, blocks.masks, strict=True):
        seen[np.ix_(query, key)] = (mask == 0).numpy()
    assert np.array_equal(seen, (attention_mask(ends_L[None], torch.float64)[0, 0] == 0).numpy())
    assert sorted(blocks.order_L.tolist()) == list(range(len(ends_L))), "each place asks once"
    assert torch.equal(blocks.order_L[blocks.restore_L], torch.arange(len(ends_L)))


def test_steps_below_one_parent_share_a_block() -> None:
    """A prompt of 2, two steps of 1 and 2 tokens, below the second two steps of 1; beside it a tree of one prompt."""
    blocks = blocks_of(np.array([7, 7, 3, 7, 7, 6, 7, 8]), torch.float32)
    assert blocks.query_sizes == [2, 3, 2, 1]
    assert blocks.order_L.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert blocks.keys_K.tolist() == [0, 1, *[0, 1, 2, 3, 4], *[0, 1, 3, 4, 5, 6], 7]
    assert (blocks.masks[1] == 0).tolist() == [
        [True, True, True, False, False],
        [True, True, False, True, False],
        [True, True, False, True, True],
    ]


def test_blocks_cost_what_is_seen() -> None:
    ends_L = passage_of(3, 4).ends_RL[0]
    blocks = blocks_of(ends_L.numpy(), torch.float32)
    assert sum(mask.numel() for mask in blocks.masks) < len(ends_L) ** 2 / 3


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_attention_and_its_gradients_are_those_of_the_mask(heads: tuple[int, int]) -> None:
    passage = passage_of(1, 3)
    ends_L = passage.ends_RL[0]
    torch.manual_seed(0)
    shapes = [(1, n, len(ends_L), 8) for n in (heads[0], heads[1], heads[1])]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    class Layer:
        num_key_value_groups, is_causal = heads[0] // heads[1], True

    results = []
    mask, blocks = attention_mask(ends_L[None], torch.float64), blocks_of(ends_L.numpy(), torch.float64)
    for given_mask, given_blocks in ((mask, None), (None, blocks)):
        ordered = inputs if given_blocks is None else [x[:, :, blocks.order_L] for x in inputs]
        out, _ = block_attention(Layer(), *ordered, given_mask, scaling=0.3, blocks=given_blocks)
        out = out if given_blocks is None else out[:, blocks.restore_L]
        results.append([out, *torch.autograd.grad((out**3).sum(), inputs)])
    for masked, blocked in zip(*results, strict=True):
        torch.testing.assert_close(blocked, masked, rtol=1e-12, atol=1e-12)


def test_a_packed_model_gives_the_same_in_blocks_and_with_the_mask() -> None:
    model, passage = tiny_llama(), passage_of(5, 3)
    packed = PackedModel(model, tiny_value_head())
    assert packed.attention == "blocks"
    with packed.running():
        assert model.config._attn_implementation == NAME
        logp_T, value_S = packed(passage)
    assert model.config._attn_implementation == "sdpa"
    with evaluating(packed):
        masked_T, masked_S = packed(passage)
    torch.testing.assert_close(logp_T, masked_T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value_S, masked_S, rtol=1e-5, atol=1e-5)


def test_a_model_is_left_as_it_was_where_a_step_fails() -> None:
    model = tiny_llama()
    with pytest.raises(ZeroDivisionError), attention_by(model, NAME):
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"


def test_models_that_choose_their_attention_themselves_keep_the_mask() -> None:
    model = tiny_llama()
    model.config._attn_implementation = "eager"
    assert kinds_of(model) == ["mask"] and PackedModel(model).attention == "mask"
    model.config._attn_implementation = "sdpa"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(model.get_decoder()), "_supports_attention_backend", False)
        assert kinds_of(model) == ["mask"]


@given(seed=st.integers(0, 10**6), count=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_tiles_let_see_what_the_mask_lets_see(seed: int, count: int) -> None:
    ends_RL = passage_of(seed, count).ends_RL
    block = tiles(ends_RL)
    length = ends_RL.shape[1]
    place_L = torch.arange(length)
    seen = block.mask_mod(torch.tensor(0), torch.tensor(0), place_L[:, None], place_L[None, :])
    assert torch.equal(seen, attention_mask(ends_RL, torch.float64)[0, 0] == 0)


def test_a_packed_model_scores_the_same_with_flex_attention() -> None:
    """FlexAttention has no backward on a CPU; its forward runs there, uncompiled."""
    model, passage = tiny_llama(), passage_of(5, 3)
    packed = PackedModel(model, tiny_value_head())
    results = {}
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that uncompiled it is slow
        for packed.attention in ("mask", "flex"):
            with packed.running():
                results[packed.attention] = packed(passage)
    for masked, flexed in zip(results["mask"], results["flex"], strict=True):
        torch.testing.assert_close(flexed, masked, rtol=1e-5, atol=1e-5)
