"""The fastest attention is measured where there are several; what fails is left out, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from training_cases import random_examples, tiny_llama, tiny_value_head
from treepref.errors import ModelError
from treepref.training import choosing
from treepref.training.choosing import settle_attention
from treepref.training.forward import PackedModel
from treepref.training.learner import Learner, LearnerSettings
from treepref.training.packing import Flat, flatten


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> PackedModel:
    """A model that takes all kinds, as on a GPU; those in `slow` take longer, those in `broken` fail.

    A forward takes 1 second, a slow one 2, by a clock that nothing else moves.
    """
    monkeypatch.setattr(choosing, "kinds_of", lambda model: ["mask", "blocks", "flex"])
    packed = PackedModel(tiny_llama(), tiny_value_head())
    packed.slow, packed.broken, packed.clock = set(), {"flex"}, 0.0  # FlexAttention has no backward on a CPU
    monkeypatch.setattr(choosing, "time", SimpleNamespace(perf_counter=lambda: packed.clock))
    forward = packed.forward

    def some_slow(passage):
        if packed.attention in packed.broken:
            raise RuntimeError("no kernel")
        packed.clock += 2.0 if packed.attention in packed.slow else 1.0
        return forward(passage)

    packed.forward = some_slow
    return packed


def flats() -> Sequence[Flat]:
    return [flatten(example, 10**6) for example in random_examples(1, 3)]


@pytest.mark.parametrize(("slow", "fast"), [("mask", "blocks"), ("blocks", "mask")])
def test_the_fastest_that_works_is_taken(packed: PackedModel, slow: str, fast: str) -> None:
    packed.slow = {slow}
    with pytest.warns(UserWarning, match="'flex' is left out: RuntimeError: no kernel"):
        seconds = settle_attention(packed, flats(), 2048, 1)
    assert packed.attention == fast
    assert seconds == {slow: 2.0, fast: 1.0}


def test_a_trial_leaves_weights_and_gradients_alone(packed: PackedModel) -> None:
    before = {name: p.detach().clone() for name, p in packed.named_parameters()}
    with pytest.warns(UserWarning):
        settle_attention(packed, flats(), 2048, 1)
    for name, parameter in packed.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, before[name])


def test_nothing_is_tried_for_a_kind_that_is_named(packed: PackedModel) -> None:
    packed.broken = {"mask", "blocks", "flex"}
    assert settle_attention(packed, flats(), 2048, 1, "mask") == {}
    assert packed.attention == "mask"


def test_no_kind_that_works(packed: PackedModel) -> None:
    packed.broken = {"mask", "blocks", "flex"}
    with pytest.warns(UserWarning), pytest.raises(ModelError, match="with none of: mask, blocks, flex"):
        settle_attention(packed, flats(), 2048, 1)


def test_a_kind_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(ModelError, match=r"train\.attention=flex: LlamaForCausalLM takes blocks or mask on this"):
        settle_attention(PackedModel(tiny_llama()), flats(), 2048, 1, "flex")


def test_the_first_step_tells_what_each_kind_took(packed: PackedModel) -> None:
    learner = Learner(packed.model, packed.value_head, LearnerSettings(recompute=True))
    packed.slow, packed.recompute, learner.packed = {"blocks"}, True, packed
    told: list[dict[str, float]] = []
    with pytest.warns(UserWarning, match="'flex' is left out"):
        learner.train(random_examples(1, 4), batch_trees=2, on_step=told.append)
    assert (told[0]["attention_blocks_seconds"], told[0]["attention_mask_seconds"]) == (2.0, 1.0)
    assert len(told) == 2 and not [key for key in told[1] if key.startswith("attention")]
    assert packed.attention == "mask"


def test_a_kind_is_chosen_at_the_first_step_that_has_a_whole_tree(packed: PackedModel) -> None:
    learner = Learner(packed.model, packed.value_head, LearnerSettings(row_tokens=2))  # every tree is split
    packed.slow, learner.packed = {"mask"}, packed
    run = learner.start(2, identity={})
    run.step(random_examples(1, 2))
    assert packed.attention == "mask"
    learner.settings = replace(learner.settings, row_tokens=2048)
    with pytest.warns(UserWarning, match="'flex' is left out"):
        assert "attention_blocks_seconds" in run.step(random_examples(2, 2))
    assert packed.attention == "blocks"


def test_a_kind_that_computes_something_else_is_left_out(packed: PackedModel) -> None:
    forward = packed.forward
    packed.forward = lambda passage: tuple(x + (packed.attention == "blocks") for x in forward(passage))
    packed.slow = {"mask"}
    with pytest.warns(UserWarning) as warned:
        assert set(settle_attention(packed, flats(), 2048, 1)) == {"mask"}
    assert "'blocks' is left out: its numbers are 1 from those of mask" in str(warned[0].message)
    assert packed.attention == "mask"


def test_numbers_that_are_not_finite_are_left_to_the_step(packed: PackedModel) -> None:
    forward = packed.forward
    packed.forward = lambda passage: tuple(x * float("nan") for x in forward(passage))
    with pytest.warns(UserWarning, match="'flex' is left out: RuntimeError"):
        assert set(settle_attention(packed, flats(), 2048, 1)) == {"mask", "blocks"}


def test_on_a_cpu_there_is_nothing_to_measure() -> None:
    packed = PackedModel(tiny_llama())
    assert settle_attention(packed, flats(), 2048, 1) == {}
    assert packed.attention == "blocks"
    settle_attention(packed, flats(), 2048, 1, "mask")
    assert packed.attention == "mask"
