"""What the tests of the torch engine share: a small random policy."""

from __future__ import annotations

import torch

from treepref.models.policy import Policy
from treepref.models.tiny import build_tiny_model, build_tiny_tokenizer
from treepref.models.value_head import ValueHead


def spread_policy() -> Policy:
    """A random model whose logits are spread widely enough that a wrong cache entry changes what it says."""
    torch.manual_seed(0)
    tokenizer = build_tiny_tokenizer(-20, 20, ["sum"])
    model = build_tiny_model(len(tokenizer), hidden=32, layers=2, heads=4, intermediate=64, context=96, seed=1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    head = ValueHead(32, std=0.3)
    return Policy(model=model.eval(), tokenizer=tokenizer, value_head=head, values_trained=True, version=0, name="tiny")
