"""How large a model is and how fast a machine: what an estimate of costs is computed from.

Reads a model's config and no weights; probes the machine for well under a second. Knows no recipe and no task.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from treepref.errors import ModelError, TreeprefError
from treepref.models.folder import folder_or_hub_id, needs_own_code

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Size of a model, from its config alone."""

    params: int
    """Weights, tied ones counted once."""
    kv_bytes_per_token: int
    hidden: int
    vocab: int
    layers: int = 1
    bytes_per_param: int = 4
    multiplied: int | None = None
    """Weights that multiply each token: all but embeddings that are a mere look-up. None: `params`."""

    @property
    def active(self) -> int:
        return self.params if self.multiplied is None else self.multiplied


@dataclass(frozen=True, slots=True)
class Rates:
    """Speed of a machine."""

    flops: float
    """FLOP/s of a large matrix multiplication in the model's dtype."""
    bytes_per_second: float
    """Memory bandwidth: every decoding pass reads all weights once."""
    op_seconds: float
    """Time to start one small tensor operation."""


def _empty_model(path: str) -> Any:
    """The model without memory for its weights (meta device); the tiny built-in ones come whole."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if path.startswith("builtin:"):
        from treepref.models.policy import load_policy

        return load_policy(path, value_head=False).model
    folder = folder_or_hub_id(path)
    if folder is not None and not folder.is_dir():
        raise ModelError(f"model.path {path}: there is no such folder")
    if folder is not None and not (folder / "config.json").is_file():  # some versions of transformers invent a model
        raise ModelError(f"model.path {path}: its config cannot be read (it has no config.json); give a model folder")
    try:
        config = AutoConfig.from_pretrained(folder or path, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # readers of damaged files fail in every way there is
        if "trust_remote_code" in str(error):
            raise ModelError(needs_own_code(path)) from None
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"model.path {path}: its config cannot be read ({reason}); give a Hugging Face hub id or a model folder"
        ) from None


def model_info(path: str, dtype: str = "float32") -> ModelInfo:
    """Size of a model from its config: no weights are loaded. Raises ModelError where there is no readable config."""
    from torch import nn

    model = _empty_model(path)
    looked_up = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    looked_up.discard(id(model.get_output_embeddings().weight))
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return ModelInfo(
        params=sum(sizes.values()),
        kv_bytes_per_token=2 * text.num_hidden_layers * kv_heads * head_size * DTYPE_BYTES[dtype],
        hidden=text.hidden_size,
        vocab=text.vocab_size,
        layers=text.num_hidden_layers,
        bytes_per_param=DTYPE_BYTES[dtype],
        multiplied=sum(size for key, size in sizes.items() if key not in looked_up),
    )


def measure_rates(device: str = "auto", dtype: str = "float32", seconds: float = 0.2) -> Rates:
    """Probe the machine for well under a second: a large matrix product, a large copy, many small operations."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    kind = getattr(torch, dtype)

    def per_call(work: Callable[[], Any]) -> float:
        work()
        synchronize()
        count, start = 0, time.perf_counter()
        while True:
            work()
            count += 1
            if count % 8 == 0 or not device.startswith("cuda"):
                synchronize()
                if time.perf_counter() - start >= seconds:
                    return (time.perf_counter() - start) / count

    try:
        size = 512 if device == "cpu" else 4096
        square = torch.ones(size, size, device=device, dtype=kind)
        block = torch.ones(8 * 2**20, device=device, dtype=kind)
        target = torch.empty_like(block)
        small = torch.ones(8, 8, device=device, dtype=kind)
        return Rates(
            flops=2 * size**3 / per_call(lambda: square @ square),
            bytes_per_second=2 * block.numel() * block.element_size() / per_call(lambda: target.copy_(block)),
            op_seconds=per_call(lambda: small @ small),
        )
    except RuntimeError as error:
        raise TreeprefError(f"model.device {device}: cannot be used: {str(error).splitlines()[0]}") from None
