"""Low-rank adapters (LoRA, arXiv 2106.09685) inside a model, through peft: put in, merged out, switched off.

The model keeps its class: adapters live in its linear layers. Knows nothing of folders, tokenizers or training.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from treepref.config import LoraConfig
from treepref.errors import ModelError


def add_adapters(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> None:
    """Put adapters into `model`: they alone train, start as no change (B = 0), and A is drawn from `seed`.

    Adapter weights are float32 at least. Raises ModelError: peft is missing, `targets` names no linear
    layer, or a rank above the model's width.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError("model.lora needs the package `peft`: pip install 'treepref[lora]', or remove model.lora")
    import peft

    _check_rank(model, config)
    _check_targets(model, config)
    alpha: Any = config.alpha  # peft says that it is an integer, and takes any number
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=alpha, target_modules=config.targets, lora_dropout=0.0, bias="none"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(settings, model)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise ModelError(f"model.lora cannot be put into {type(model).__name__}: {error}") from error
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    model.eval()


def has_adapters(model: nn.Module) -> bool:
    return any(True for _ in _adapted(model))


def each_merged_weight(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The model's weights under its plain names, adapters merged, one at a time; `model` itself is left as it is.

    Tensors without an adapter share memory with the model's.
    """
    adapted = {f"{name}.weight": layer for name, layer in _adapted(model)}
    for name, weight in model.state_dict().items():
        if "lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        yield plain, _merged(adapted[plain]) if plain in adapted else weight.detach()


def merge_adapters(model: nn.Module) -> None:
    """Replace every adapted layer of `model` by its plain layer with the merged weight."""
    for name, layer in list(_adapted(model)):
        plain = layer.get_base_layer()
        plain.weight.data = _merged(layer)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)
    if "peft_config" in vars(model):
        del model.peft_config


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model without its adapters inside the block; what trains is the same before and after."""
    layers = [layer for _, layer in _adapted(model)]
    trains = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, requires_grad in trains:
            parameter.requires_grad_(requires_grad)


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of every layer with an adapter."""
    if "peft" not in sys.modules:  # nobody can have put an adapter in; and importing peft takes seconds
        return
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _merged(layer: Any) -> Tensor:
    """W + scaling·B·A, added in the adapter's dtype and stored in the weight's."""
    weight = layer.get_base_layer().weight.detach()
    deltas = [layer.get_delta_weight(adapter).detach() for adapter in layer.active_adapters]
    delta = reduce(torch.add, deltas)
    return (weight.to(delta.dtype) + delta).to(weight.dtype)


def _check_rank(model: PreTrainedModel, config: LoraConfig) -> None:
    """A rank above the widest layer's says nothing that the layer cannot say itself, and soon outgrows all memory."""
    ends = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    widest = max(max(p.shape) for p in model.parameters() if p.ndim == 2 and id(p) not in ends)
    if config.rank > widest:
        raise ModelError(
            f"model.lora.rank: {config.rank:,} is more than the model's widest layer has ({widest:,}): usual are 8 to "
            "64; to train all weights, remove model.lora"
        )


def _check_targets(model: PreTrainedModel, config: LoraConfig) -> None:
    if config.targets == "all-linear":
        return
    for target in config.targets:
        modules = [m for name, m in model.named_modules() if name == target or name.endswith(f".{target}")]
        linear = [m for m in modules if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
        if not linear:
            leaves = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
            raise ModelError(f"model.lora.targets: {target!r} names no linear layer; there are {', '.join(leaves)}")
        if model.get_output_embeddings() in linear and model.config.get_text_config().tie_word_embeddings:
            raise ModelError(
                f"model.lora.targets: {target!r} is tied to the input embeddings and cannot carry an adapter: drop it"
            )
