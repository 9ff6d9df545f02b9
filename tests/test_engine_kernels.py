"""Packed matrix products: the same numbers as the plain layer, made anew when a weight changes, never in training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from treepref.driver import Job, drive
from treepref.engines import kernels, torch_engine
from treepref.engines.base import generate
from treepref.engines.kernels import SMALLEST, PackedLinear, pack
from treepref.engines.torch_engine import TorchEngine
from treepref.errors import ModelError
from treepref.models.policy import clone_policy, load_policy
from treepref.models.weights import PolicyWeights
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.training.examples import attach_reference, example_from_tree
from treepref.training.forward import model_scorer
from treepref.types import BASE, Pair, PolicyId, Request, new_tree

WIDE = 512


def layers(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDE, WIDE, bias=bias), nn.SiLU(), nn.Linear(WIDE, 300, bias=False))


@pytest.fixture
def packed() -> nn.Sequential:
    model = layers()
    if not pack(model):
        pytest.skip("torch was built without MKL")
    return model


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 31, 32, 33, 64, 65, 200, 1000])
def test_float32_is_the_plain_layer_at_any_number_of_rows(packed, rows):
    x = torch.randn(rows, WIDE)
    with torch.inference_mode():
        assert relative(packed(x), layers()(x)) < 1e-5


def test_leading_dimensions_and_slices_are_kept(packed):
    x = torch.randn(3, 10, WIDE)
    with torch.inference_mode():
        found = packed(x)
        assert found.shape == (3, 10, 300)
        assert relative(found, layers()(x)) < 1e-5
        assert relative(packed(x[:, -1]), layers()(x)[:, -1]) < 1e-5  # rows that do not lie side by side
        assert packed(x[:0]).shape == (0, 10, 300)


@pytest.mark.parametrize(("precision", "allowed"), [("bfloat16", 0.02), ("int8", 0.04)])
def test_reduced_precision_is_near_and_not_equal(precision, allowed):
    model, x = layers(), torch.randn(16, WIDE)
    try:
        assert pack(model, precision) == 2
    except ModelError as error:
        pytest.skip(str(error))
    with torch.inference_mode():
        found, wanted = model(x), layers()(x)
    assert found.dtype == torch.float32
    assert 0 < relative(found, wanted) < allowed


def test_int8_rows_do_not_share_a_scale():
    """A row of large activations beside it leaves a row as exact as it was."""
    model, x = layers(bias=False)[:1], torch.randn(4, WIDE)
    try:
        pack(model, "int8")
    except ModelError as error:
        pytest.skip(str(error))
    loud = torch.cat([x, 1000 * torch.randn(1, WIDE)])
    with torch.inference_mode():
        wanted = layers(bias=False)[:1](x)
        assert relative(model(loud)[:4], wanted) < 0.03


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_outputs_go_where_they_are_wanted(precision, monkeypatch):
    monkeypatch.setattr(kernels, "HANDED_BACK", 4 * 3 * 4 * WIDE)  # three rows at a time below float32
    model, x = layers(), torch.randn(7, WIDE)
    try:
        pack(model, precision)
    except ModelError as error:
        pytest.skip(str(error))
    for layer in (model[0], model[2]):  # with a bias and without
        room = torch.full((9, layer.out_features), torch.nan)
        with torch.inference_mode():
            found = layer.into(x, room[:7])
            assert found.data_ptr() == room.data_ptr() and room[7:].isnan().all()
            # In int8 the activations' range is that of the rows that run together.
            assert relative(found, layer(x)) < (0.04 if precision == "int8" else 1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_changed_weight_is_packed_anew(precision):
    model, x = layers(), torch.randn(8, WIDE)
    if not pack(model, precision):
        pytest.skip("torch was built without MKL")
    with torch.inference_mode():
        before = model(x)
    other = {name: 2 * w for name, w in layers().state_dict().items()}
    model.load_state_dict(other)
    plain = layers()
    plain.load_state_dict(other)
    with torch.inference_mode():
        after = model(x)
        assert relative(after, plain(x)) < 0.02
    assert relative(before, after) > 0.1


def test_training_runs_on_the_plain_weights(packed):
    plain, x = layers(), torch.randn(8, WIDE)
    with torch.inference_mode():
        packed(x)
    for model in (packed, plain):
        model(x).square().mean().backward()
    for ours, theirs in zip(packed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_copies_and_saved_models_are_independent(packed):
    x = torch.randn(8, WIDE)
    with torch.inference_mode():
        before = packed(x)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        with torch.no_grad():
            other[0].weight.zero_()
            other[0].bias.zero_()
        with torch.inference_mode():
            assert not other(x).any()
            assert torch.equal(packed(x), before)
    assert set(packed.state_dict()) == set(layers().state_dict())


def test_small_layers_and_other_types_are_left_alone():
    small = nn.Sequential(nn.Linear(8, 8), nn.Linear(WIDE, WIDE))
    pack(small)
    assert type(small[0]) is nn.Linear and small[0].weight.numel() < SMALLEST
    double = layers().double()
    assert pack(double) == 0
    assert not any(isinstance(m, PackedLinear) for m in double.modules())
    with pytest.raises(ModelError, match=r"engine\.weights=int8 needs a model in float32"):
        pack(double, "int8")


def test_packing_again_changes_the_precision(packed):
    x = torch.randn(8, WIDE)
    with torch.inference_mode():
        exact = packed(x)
        pack(packed, "bfloat16")
        assert 1e-5 < relative(packed(x), exact) < 0.02


@pytest.fixture(scope="module")
def wide_policy():
    """Random weights, layers wide enough to be packed, and the tiny model's tokenizer."""
    policy = load_policy("builtin:tiny-untrained", device="cpu", value_head=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=policy.model.config.vocab_size, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    policy.model = LlamaForCausalLM(config).eval()
    return policy


def test_large_logits_reuse_their_memory_and_are_the_same(wide_policy, monkeypatch):
    monkeypatch.setattr(kernels, "SMALLEST", 1)
    prompt = tuple(wide_policy.tokenizer("1 + 2 =")["input_ids"])
    requests = [Request(f"r{i}", prompt, i, tuple(range(i)), 3 * i, delimiter=None) for i in (1, 3, 2)]
    plain = generate(TorchEngine(clone_policy(wide_policy)), requests)
    monkeypatch.setattr(torch_engine, "HANDED_BACK", 1)
    engine = TorchEngine(clone_policy(wide_policy))
    if not isinstance(engine.policy.model.get_output_embeddings(), PackedLinear):
        pytest.skip("torch was built without MKL")
    found = generate(engine, requests)
    assert len(engine._logits_BV) == 6
    for a, b in zip(plain, found, strict=True):
        assert [c.tokens for c in a.completions] == [c.tokens for c in b.completions]
        for x, y in zip(a.completions, b.completions, strict=True):
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-5)


def searched(policy, precision):
    engine = TorchEngine(clone_policy(policy), max_rows=16, weights=precision)
    trees: list = []
    search = Mcts(simulations=3, children=4, limits=Limits(max_depth=6, max_step_tokens=8))
    job = Job(new_tree("t", "t", policy.tokenizer("1 + 2 =")["input_ids"]), search, lambda *_: 1.0)
    drive([job], engine, run_seed=0, trees_in_flight=1, journal=None, on_done=lambda job: trees.append(job.tree))
    return trees[0], engine


@pytest.mark.parametrize(("precision", "serve"), [("float32", True), ("bfloat16", False), ("int8", False)])
def test_log_probs_recorded_below_float32_do_not_serve_as_reference(wide_policy, precision, serve):
    try:
        tree, engine = searched(wide_policy, precision)
    except ModelError as error:
        pytest.skip(str(error))
    assert serve or any(isinstance(m, PackedLinear) for m in engine.policy.model.modules())
    children = tree.root.children
    pair = Pair("t", (children[0].index,), (children[1].index,), 1.0, 0.0, 1, 1)
    example = example_from_tree(tree, [pair])
    _, report = attach_reference([example], model_scorer(wide_policy.model), reference=BASE)
    assert (report.recorded, report.recomputed) == ((1, 0) if serve else (0, 1))
    assert (report.worst < 1e-3) == serve


def test_an_update_reaches_the_packed_weights(wide_policy):
    other = clone_policy(wide_policy)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.5)
    request = Request("r", tuple(wide_policy.tokenizer("1 + 2 =")["input_ids"]), 3, (1, 2, 3), 12, delimiter=None)
    engine = TorchEngine(clone_policy(wide_policy))
    (before,) = generate(engine, [request])
    engine.load(PolicyWeights(other, PolicyId("p1")))
    (after,) = generate(engine, [request])
    (fresh,) = generate(TorchEngine(other), [request])
    assert [c.tokens for c in after.completions] == [c.tokens for c in fresh.completions]
    assert before.completions[0].logprobs != after.completions[0].logprobs
