"""The packing probe: which models pass, and which are refused with what reason."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from treepref.errors import ModelError
from treepref.training.probe import probe_packing


@pytest.mark.parametrize(
    "config",
    [
        hf.LlamaConfig(),
        hf.Qwen2Config(),
        hf.Qwen3Config(),
        hf.GPTNeoXConfig(),
        hf.GPT2Config(),
        hf.MistralConfig(sliding_window=None),
        hf.GraniteConfig(logits_scaling=1.0),
    ],
    ids=lambda c: c.model_type,
)
def test_models_that_pack_exactly(config: hf.PretrainedConfig) -> None:
    report = probe_packing(config)
    assert report.value_error <= 1e-12
    assert report.gradient_error <= 1e-12


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (hf.MambaConfig(num_hidden_layers=2, hidden_size=32, vocab_size=64), "state-space"),
        (hf.MistralConfig(sliding_window=4096), "window of 4096 tokens"),
        (hf.LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "'dynamic'"),
        (hf.BloomConfig(hidden_size=32, n_head=2, n_layer=2), "does not run"),
        (hf.GraniteConfig(logits_scaling=8.0), r"logits are not head\(hidden\)"),
        (hf.CohereConfig(), r"logits are not head\(hidden\)"),
    ],
    ids=["mamba", "window", "dynamic-rope", "alibi", "scaled", "cohere"],
)
def test_models_that_do_not_are_refused_with_the_reason(config: hf.PretrainedConfig, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        probe_packing(config)


def test_a_window_that_no_path_reaches_is_accepted() -> None:
    config = hf.MistralConfig(sliding_window=512)
    assert probe_packing(config, longest_path=512).gradient_error <= 1e-12
    with pytest.raises(ModelError, match="up to 513 tokens"):
        probe_packing(config, longest_path=513)


def test_what_the_probe_measures_is_what_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    # a window whose name the probe knows nothing of: only the comparison can find it out
    monkeypatch.setattr("treepref.training.probe.attention_window", lambda config: None)
    with pytest.raises(ModelError, match="mix tokens"):
        probe_packing(hf.MistralConfig(sliding_window=4))


def test_a_model_is_probed_by_its_class_and_random_state_is_left_alone() -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=3, vocab_size=9))
    before = torch.get_rng_state()
    assert probe_packing(model).value_error <= 1e-12
    assert torch.equal(before, torch.get_rng_state())
    assert model.config.num_hidden_layers == 3
