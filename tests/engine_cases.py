"""What the tests of the torch engine share: small random policies."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from treepref.models.policy import Policy
from treepref.models.tiny import build_tiny_model, build_tiny_tokenizer
from treepref.models.value_head import ValueHead


def spread_policy() -> Policy:
    """A random model whose logits are spread widely enough that a wrong cache entry changes what it says."""
    tokenizer = build_tiny_tokenizer(-20, 20, ["sum"])
    model = build_tiny_model(len(tokenizer), hidden=32, layers=2, heads=4, intermediate=64, context=96, seed=1)
    return _spread(model)


def spread_policy_of(config_class: type[PretrainedConfig], **options: Any) -> Policy:
    """The same of another family: small sizes, and what `options` say."""
    tokenizer = build_tiny_tokenizer(-20, 20, ["sum"])
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 96}
    more = {"intermediate_size": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = config_class(vocab_size=len(tokenizer), **sizes | more | options)
    return _spread(AutoModelForCausalLM.from_config(config, trust_remote_code=False))


def _spread(model: PreTrainedModel) -> Policy:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    head = ValueHead(32, std=0.3)
    tokenizer = build_tiny_tokenizer(-20, 20, ["sum"])
    return Policy(model=model.eval(), tokenizer=tokenizer, value_head=head, values_trained=True, name="tiny")
