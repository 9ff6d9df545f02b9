"""Loading, checking, saving and copying policies, on tiny random models of real architectures."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
)

from treepref.errors import ModelError, StoreError
from treepref.models import policy as policy_module
from treepref.models.folder import landing
from treepref.models.policy import (
    UNBOUNDED,
    Policy,
    clone_policy,
    load_policy,
    load_tokenizer,
    save_policy,
)
from treepref.models.tiny import build_tiny_model, build_tiny_tokenizer
from treepref.models.value_head import ValueHead, load_value_head, save_value_head
from treepref.models.weights import PolicyWeights
from treepref.runs.landing import MARK, fresh_folder

TOKENIZER = build_tiny_tokenizer(-9, 9, ["sum"])
VOCAB = len(TOKENIZER)
IDS = torch.tensor([[3, 10, 20, 30, 7], [5, 6, 7, 8, 9]])
SIZE = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
HEADS = {"num_key_value_heads": 2, "intermediate_size": 24, "head_dim": 8, "max_position_embeddings": 64}
ENDS = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}


def tiny_policy(seed: int = 1) -> Policy:
    model = build_tiny_model(VOCAB, hidden=16, layers=2, heads=2, intermediate=24, context=64, seed=seed)
    return Policy(model, TOKENIZER, ValueHead(16, std=0.5), values_trained=True, name="tiny")


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=48, eos_token_id=1, bos_token_id=None)
    )


def write(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_policy(tiny_policy(), tmp_path / "model")


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


# -- value head


def test_value_head_is_tanh_of_a_dot_product() -> None:
    head = ValueHead(3)
    assert torch.equal(head(torch.randn(4, 3)), torch.zeros(4))
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    value = head(torch.tensor([[0.3, 0.1, 0.4], [0.0, 1.0, 0.0]]))
    torch.testing.assert_close(value, torch.tanh(torch.tensor([0.3, -2.0])))
    assert [n for n, _ in head.named_parameters()] == ["weight"]
    assert head(torch.zeros(2, 5, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert head(torch.zeros(2, 5, 3, dtype=torch.float64)).dtype == torch.float64
    assert head(torch.zeros(2, 5, 3)).shape == (2, 5)


def test_a_zero_value_head_learns_from_its_first_gradient() -> None:
    head = ValueHead(3)
    head(torch.ones(3)).backward()
    assert torch.equal(head.weight.grad, torch.ones(1, 3))


def test_value_head_file(tmp_path: Path) -> None:
    head = ValueHead(3, std=1.0)
    save_value_head(head, tmp_path, trained=True)
    with safe_open(tmp_path / "value_head.safetensors", framework="pt") as file:
        assert "weight" in file.keys() and file.metadata() == {"trained": "true"}  # noqa: SIM118 (no mapping)
    again, trained = load_value_head(tmp_path, 3)
    assert trained and torch.equal(again.weight, head.weight) and again.at_last_token and again.join is None
    with pytest.raises(ModelError, match="another model"):
        load_value_head(tmp_path, 4)
    (tmp_path / "value_head.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ModelError, match="cannot be read"):
        load_value_head(tmp_path, 3)
    (tmp_path / "value_head.safetensors").unlink()
    fresh, trained = load_value_head(tmp_path, 3)
    assert not trained and not fresh.weight.any()


# -- what a policy says of itself


def test_numbers_of_the_tiny_llama() -> None:
    policy = tiny_policy()
    layer = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    assert policy.n_parameters == 2 * layer + 16 + VOCAB * 16
    assert policy.flops_per_token == 2 * policy.n_parameters
    assert (policy.hidden_size, policy.max_context, policy.dtype) == (16, 64, torch.float32)
    assert policy.device.type == "cpu"
    assert policy.eos_ids == {1} and policy.eos_id == 1


def test_numbers_of_gpt2(tmp_path: Path) -> None:
    policy = load_policy(write(gpt2(), tmp_path))
    block = (16 * 48 + 48) + (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16) + 2 * 32
    assert policy.n_parameters == 2 * block + 32 + VOCAB * 16
    assert policy.max_context == 48


def test_eos_is_the_union_and_missing_eos_is_an_error() -> None:
    policy = tiny_policy()
    policy.model.generation_config.eos_token_id = [4, 5]
    assert policy.eos_ids == {1, 4, 5}
    bare = build_tiny_tokenizer(0, 1, [])
    bare.eos_token = None
    lacking = Policy(tiny_policy().model, bare, None, name="lacking")
    lacking.model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match=r"lacking has no EOS.*eos_token"):
        _ = lacking.eos_ids


def test_no_limit_in_the_config() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=1, n_head=2))
    assert Policy(model, TOKENIZER, None).max_context == UNBOUNDED


@pytest.mark.parametrize("make", [gpt2, lambda: tiny_policy().model], ids=["gpt2", "llama"])
def test_head_of_body_is_the_model(make, tmp_path: Path) -> None:
    policy = load_policy(write(make(), tmp_path))
    with torch.no_grad():
        hidden = policy.body(IDS)
        assert hidden.shape == (2, 5, 16)
        torch.testing.assert_close(policy.head(hidden), policy.model(IDS).logits)
        torch.testing.assert_close(hidden, policy.model(IDS, output_hidden_states=True).hidden_states[-1])


# -- loading


def test_saved_folder_loads_in_plain_transformers_and_here(folder: Path) -> None:
    original = tiny_policy()
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)), logits(original.model)
    )
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab() == TOKENIZER.get_vocab()
    policy = load_policy(str(folder))
    assert policy.values_trained and not policy.model.training and policy.name == str(folder)
    assert load_policy(folder, value_head=False).value_head is None
    assert load_policy(folder, dtype="bfloat16").dtype == torch.bfloat16
    (folder / "value_head.safetensors").unlink()
    fresh = load_policy(folder)
    assert not fresh.values_trained and fresh.value_head is not None


def test_every_dropout_is_zero(tmp_path: Path) -> None:
    policy = load_policy(write(gpt2(), tmp_path))
    assert gpt2().config.resid_pdrop == 0.1
    assert policy.model.config.resid_pdrop == policy.model.config.attn_pdrop == policy.model.config.embd_pdrop == 0
    policy.model.train()
    assert torch.equal(policy.body(IDS), policy.body(IDS))


@pytest.mark.parametrize(
    ("remove", "says"),
    [
        (["config.json"], "no config.json"),
        (["model.safetensors"], "no weights"),
        (["tokenizer.json"], "no tokenizer"),
    ],
)
def test_an_incomplete_folder_is_named_with_what_it_lacks(folder: Path, remove: list[str], says: str) -> None:
    for name in remove:
        (folder / name).unlink()
    with pytest.raises(ModelError, match=says) as caught:
        load_policy(folder)
    assert str(folder) in str(caught.value)


def test_missing_tensors_are_not_filled_with_noise(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors, first model\.layers\.1\.mlp\.up_proj"):
        load_policy(folder)


def test_damaged_files_are_told_for_people(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="weights of"):
        load_policy(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config of"):
        load_policy(folder)


def test_paths_that_are_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    for path, says in (
        (tmp_path / "none", "there is no model folder"),
        ("./none/such", "there is no model folder"),
        ("none/such-model", "there is no folder none/such-model"),
        (gguf, "import-gguf"),
        ("builtin:huge", "built-in models are"),
    ):
        with pytest.raises(ModelError, match=says):
            load_policy(path)
    monkeypatch.setitem(policy_module.BUILTIN, "builtin:tiny-base", tmp_path / "tiny_base")
    with pytest.raises(ModelError, match="make tiny-base"):
        load_policy("builtin:tiny-base")
    save_policy(tiny_policy(), tmp_path / "tiny_base")
    assert load_policy("builtin:tiny-base").values_trained


def test_the_untrained_tiny_model_follows_the_seed() -> None:
    a, b, c = (load_policy("builtin:tiny-untrained", seed=s) for s in (1, 1, 2))
    assert torch.equal(logits(a.model), logits(b.model)) and not torch.equal(logits(a.model), logits(c.model))
    assert not a.values_trained and a.eos_ids == {1}
    assert load_policy("builtin:tiny-untrained", value_head=False, dtype="float64").value_head is None
    assert load_tokenizer("builtin:tiny-untrained").get_vocab() == a.tokenizer.get_vocab()


def test_bad_dtype_and_device(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"dtype 'int8'"):
        load_policy(folder, dtype="int8")
    with pytest.raises(ModelError, match="device"):
        load_policy(folder, device="abacus")


def test_tokenizer_of_another_model(folder: Path) -> None:
    build_tiny_tokenizer(-99, 99, []).save_pretrained(folder)
    with pytest.raises(ModelError, match="tokenizer belongs to another model"):
        load_policy(folder)


def test_encoder_decoder_is_refused(folder: Path) -> None:
    T5Config(vocab_size=VOCAB).save_pretrained(folder)
    with pytest.raises(ModelError, match="encoder-decoder"):
        load_policy(folder)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = BertLMHeadModel(BertConfig(**SIZE, intermediate_size=24, max_position_embeddings=64, **ENDS))
    with pytest.raises(ModelError, match=r"post-processes|sees later tokens|no LM head"):
        load_policy(write(bert, tmp_path))


def test_looking_ahead_is_what_the_check_measures() -> None:
    policy = tiny_policy()
    policy_module._check_forward(policy)
    for layer in policy.model.model.layers:
        layer.self_attn.is_causal = False
    policy.model.config._attn_implementation = "sdpa"
    if torch.equal(logits(policy.model), logits(tiny_policy().model)):
        pytest.skip("this transformers version ignores is_causal on the module")
    with pytest.raises(ModelError, match="sees later tokens"):
        policy_module._check_forward(policy)


@pytest.mark.parametrize(
    "model",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZE, **HEADS, **ENDS)),
        lambda: CohereForCausalLM(CohereConfig(**SIZE, **HEADS, **ENDS, logit_scale=0.0625)),
    ],
    ids=["soft-capping", "scaling"],
)
def test_post_processed_logits_are_refused(model, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="post-processes its logits"):
        load_policy(write(model(), tmp_path))


def test_quantised_weights_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantised"):
        load_policy(folder)


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        save_policy(policy, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
    policy.model.save_pretrained(tmp_path / "m")
    policy.tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="not finite"):
        load_policy(tmp_path / "m")


# -- saving


def test_saving_replaces_a_folder_whole_and_clears_what_a_kill_left(folder: Path) -> None:
    (fresh_folder(folder.parent, "model.tmp") / "half").write_text("x")
    save_policy(tiny_policy(seed=2), folder)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]
    assert torch.equal(logits(load_policy(folder).model), logits(tiny_policy(seed=2).model))


def test_a_kill_between_the_renames_loses_nothing(folder: Path) -> None:
    (folder / MARK).write_text("model.old")
    folder.rename(folder.with_name("model.old"))
    assert torch.equal(logits(load_policy(folder).model), logits(tiny_policy().model))
    assert not folder.with_name("model.old").exists()


def test_a_failed_save_leaves_the_old_folder(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), landing(folder) as partial:
        (partial / "config.json").write_text("{}")
        raise RuntimeError("boom")
    assert load_policy(folder).values_trained
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


def test_a_full_disk_is_told_and_leaves_the_old_folder(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StoreError, match="could not write the model folder"):
            save_policy(tiny_policy(seed=2), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(logits(load_policy(folder).model), logits(tiny_policy().model))
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


# -- copies and weights


def test_a_clone_is_independent_and_does_not_train() -> None:
    policy = tiny_policy()
    before = logits(policy.model)
    clone = clone_policy(policy)
    assert torch.equal(logits(clone.model), before) and clone.tokenizer is policy.tokenizer
    assert not any(p.requires_grad for p in [*clone.model.parameters(), *clone.value_head.parameters()])
    assert all(p.requires_grad for p in policy.model.parameters())
    with torch.no_grad():
        for parameter in [*policy.model.parameters(), *policy.value_head.parameters()]:
            parameter.add_(1)
    assert torch.equal(logits(clone.model), before)
    assert not torch.equal(clone.value_head.weight, policy.value_head.weight)


def test_weights_travel_to_a_clone_in_memory() -> None:
    learner, engine = tiny_policy(seed=2), clone_policy(tiny_policy(seed=1))
    engine.values_trained = False
    weights = PolicyWeights(learner)
    engine.load_weights(weights.tensors(), weights.value_head)
    assert torch.equal(logits(engine.model), logits(learner.model))
    assert engine.values_trained and torch.equal(engine.value_head.weight, learner.value_head.weight)
    learner.values_trained = False
    assert weights.value_head is None and not any(n.startswith("value_head") for n, _ in weights.tensors())
    with pytest.raises(ModelError, match="not those of tiny"):
        engine.load_weights([("model.nonsense", torch.zeros(1))])
    with pytest.raises(ModelError, match="is not among them"):
        engine.load_weights([])
