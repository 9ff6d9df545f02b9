"""LoRA: seeded, no change at first, merged without touching the training copy, switched off for the reference."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from test_models_policy import IDS, gpt2, logits, tiny_policy, write
from treepref.config import LoraConfig
from treepref.errors import ModelError
from treepref.models.policy import Policy, adapter_off, clone_policy, load_policy, save_policy
from treepref.models.weights import PolicyWeights

pytest.importorskip("peft")
RANK_4 = LoraConfig(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tiny_policy(), tmp_path_factory.mktemp("lora") / "model")


def trained(folder: Path, **options) -> Policy:
    """A LoRA policy whose adapters have moved."""
    policy = load_policy(folder, lora=RANK_4, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return policy


def test_fresh_adapters_change_nothing_and_train_alone(folder: Path) -> None:
    policy = load_policy(folder, lora=RANK_4)
    assert torch.equal(logits(policy.model), logits(tiny_policy().model))
    trainable = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 7 * 2 and all("lora_" in n for n in trainable)
    assert policy.n_parameters == tiny_policy().n_parameters
    with torch.no_grad():
        torch.testing.assert_close(policy.head(policy.body(IDS)), policy.model(IDS).logits)


def test_adapters_follow_the_seed_and_leave_the_global_one_alone(folder: Path) -> None:
    def drawn(seed: int) -> torch.Tensor:
        policy = load_policy(folder, lora=RANK_4, seed=seed)
        return torch.cat([p.flatten() for n, p in policy.model.named_parameters() if "lora_A" in n])

    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merging_gives_the_same_model_and_leaves_the_training_copy(kind: str, folder: Path, tmp_path: Path) -> None:
    source = folder if kind == "llama" else write(gpt2(), tmp_path / "gpt2")
    policy, base = trained(source), logits(load_policy(source).model)
    before = {n: w.clone() for n, w in policy.model.state_dict().items()}
    ours = logits(policy.model)
    assert (ours - base).abs().max() > 1e-2
    plain = load_policy(source)
    plain.load_weights(PolicyWeights(policy).tensors())
    torch.testing.assert_close(logits(plain.model), ours)
    clone = clone_policy(policy)
    torch.testing.assert_close(logits(clone.model), ours)
    assert clone.model.state_dict().keys() == plain.model.state_dict().keys()
    clone.load_weights(PolicyWeights(policy).tensors())
    saved = save_policy(policy, tmp_path / "saved")
    assert load_file(saved / "model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    assert "peft" not in json.dumps(json.loads((saved / "config.json").read_text()))
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=False)), ours)
    after = policy.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    assert torch.equal(logits(policy.model), ours)


def test_adapter_off_is_the_base_model_even_after_an_error(folder: Path) -> None:
    policy = trained(folder)
    next(p for p in policy.model.parameters() if p.requires_grad).requires_grad_(False)
    ours, trains = logits(policy.model), [p.requires_grad for p in policy.model.parameters()]
    with pytest.raises(KeyError), adapter_off(policy):
        assert torch.equal(logits(policy.model), logits(tiny_policy().model))
        raise KeyError
    assert torch.equal(logits(policy.model), ours)
    assert [p.requires_grad for p in policy.model.parameters()] == trains
    full = tiny_policy()
    with adapter_off(full):
        assert torch.equal(logits(full.model), logits(tiny_policy().model))


def test_adapters_of_a_half_precision_model_are_float32(folder: Path) -> None:
    policy = trained(folder, dtype="bfloat16")
    assert {p.dtype for n, p in policy.model.named_parameters() if "lora_" in n} == {torch.float32}
    weights = dict(PolicyWeights(policy).tensors())
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert PolicyWeights(policy).value_head.weight.dtype == torch.float32
    assert weights["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16


def test_named_targets_and_wrong_ones(folder: Path) -> None:
    policy = load_policy(folder, lora=LoraConfig(rank=2, targets=["q_proj", "v_proj"]))
    assert {n.split(".")[4] for n, p in policy.model.named_parameters() if p.requires_grad} == {"q_proj", "v_proj"}
    with pytest.raises(ModelError, match=r"'c_attn' names no linear layer; there are .*q_proj"):
        load_policy(folder, lora=LoraConfig(targets=["c_attn"]))
    with pytest.raises(ModelError, match="tied to the input embeddings"):
        load_policy(folder, lora=LoraConfig(targets=["lm_head"]))


def test_weights_do_not_load_under_adapters(folder: Path) -> None:
    with pytest.raises(ModelError, match="clone_policy"):
        load_policy(folder, lora=RANK_4).load_weights(PolicyWeights(tiny_policy()).tensors())


def test_without_peft_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else find(name, *a))
    with pytest.raises(ModelError, match=r"treepref\[lora\]"):
        load_policy(folder, lora=RANK_4)
