"""What a decoder layer put out in the last forward, beside what the model returns.

A value head may read any layer; the model hands out the last one alone unless it keeps all of them.
Knows no head and no engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from treepref.errors import ModelError


def decoder_of(model: Any) -> Any:
    """The transformer without its LM head. A causal LM's parts have no common type: each family has its own classes."""
    return model.get_decoder()


def embedding_rows(model: Any) -> int:
    """How many token ids the model has an embedding for."""
    return model.get_input_embeddings().weight.shape[0]


def hidden_width(model: Any) -> int:
    """H, of the hidden states that the LM head reads."""
    return model.get_input_embeddings().weight.shape[1]


def lm_head(model: Any) -> nn.Module | None:
    """What makes logits of hidden states; None where that is no module of its own."""
    return model.get_output_embeddings()


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder's stack of layers. Raises ModelError where it has none of the length that its config gives."""
    decoder = decoder_of(model)
    wanted = decoder.config.get_text_config().num_hidden_layers
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    name = type(model).__name__
    raise ModelError(
        f"{name} has no list of {wanted} layers, so a value head can read its last one alone: value.layers=[1]"
    )


@contextmanager
def captured(model: nn.Module, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Inside, each forward of `model` puts the hidden states [B, T, H] behind `layers` layers into the dict."""
    stack, found = decoder_layers(model), {}
    hooks = [stack[layer - 1].register_forward_hook(_keep(found, layer)) for layer in set(layers)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _keep(found: dict[int, Tensor], layer: int) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        found[layer] = output[0] if isinstance(output, tuple) else output

    return hook
