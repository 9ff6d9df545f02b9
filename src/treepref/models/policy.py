"""The policy: a causal LM, its tokenizer and its value head, loaded from a folder or the hub and saved to a folder.

A saved folder is an ordinary Hugging Face folder with `value_head.safetensors` beside. Knows no task, engine or loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash

from treepref.config import LoraConfig
from treepref.errors import ModelError
from treepref.models import lora as adapters
from treepref.models.folder import check_model_folder, folder_or_hub_id, landing, needs_own_code
from treepref.models.hidden import decoder_of, embedding_rows, lm_head
from treepref.models.quiet import quiet
from treepref.models.text import own_eos_id
from treepref.models.tiny import TINY_WORDS, build_tiny_model, build_tiny_tokenizer
from treepref.models.value_head import ValueHead, load_value_head, save_value_head
from treepref.types import BASE, PolicyId

BUILTIN = {"builtin:tiny-base": Path(__file__).parents[1] / "data" / "tiny_base"}
UNTRAINED = "builtin:tiny-untrained"
"""The tiny base before any training: what the recipe `tiny_base` starts from."""
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
UNBOUNDED = 1 << 30
"""`max_context` of a model whose config sets no limit."""


@dataclass
class Policy:
    """A model in evaluation mode with what is needed to sample from it and to value its steps."""

    model: PreTrainedModel
    """May carry LoRA adapters; its class is the plain model's in either case."""
    tokenizer: PreTrainedTokenizerBase
    value_head: ValueHead | None
    values_trained: bool = False
    """False: the value head is fresh, and its values mean nothing."""
    id: PolicyId = BASE
    name: str = ""
    commit: str | None = None
    """The hub's commit that the model is of; None for one of a folder."""
    end_of_turn: int | None = None
    """What ends an answer in the chat template that the policy is used with."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def hidden_size(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @cached_property
    def n_parameters(self) -> int:
        """Weights that multiply each token: all but embeddings (a look-up), the LM head counted also where it is tied.

        Adapters are left out: merged they cost nothing. Every expert of a mixture counts, also those not chosen.
        """
        head: Tensor = self._lm_head.weight
        embeddings = {id(p) for m in self.model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        rest = [p for n, p in self.model.named_parameters() if id(p) not in embeddings and "lora_" not in n]
        return sum(p.numel() for p in rest if p is not head) + head.numel()

    @property
    def flops_per_token(self) -> int:
        """Forward FLOPs a token, the attention scores left out: 2·N (Kaplan et al., arXiv 2001.08361, section 2.1)."""
        return 2 * self.n_parameters

    @property
    def max_context(self) -> int:
        """Longest prompt + continuation in tokens, as the config has it."""
        config = self.model.config.get_text_config()
        limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
        return next((limit for limit in limits if limit), UNBOUNDED)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a solution: the generation config's, the tokenizer's, the end of a turn.

        Raises ModelError where there is none.
        """
        generation = getattr(self.model, "generation_config", None)
        found = getattr(generation, "eos_token_id", None)
        ids = {found} if isinstance(found, int) else set(found or ())
        ids |= {id for id in (own_eos_id(self.tokenizer), self.end_of_turn) if id is not None}
        if not ids:
            raise ModelError(
                f"{self.name or 'the model'} has no EOS token: set eos_token in tokenizer_config.json or "
                "eos_token_id in generation_config.json"
            )
        return frozenset(ids)

    @property
    def eos_id(self) -> int:
        """What solutions are trained to end in: the chat template's end of turn, or the tokenizer's EOS."""
        own = own_eos_id(self.tokenizer) if self.end_of_turn is None else self.end_of_turn
        return min(self.eos_ids) if own is None else own

    def body(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Post-norm hidden states [B, T, H] of the transformer without its LM head.

        `inputs`: what the model's forward takes: attention_mask, position_ids, past_key_values (filled in place).
        """
        cached = inputs.get("past_key_values") is not None
        return self.model.get_decoder()(input_ids=input_ids, use_cache=cached, **inputs).last_hidden_state

    @property
    def _lm_head(self) -> Any:
        head = lm_head(self.model)
        assert head is not None, "a policy without an LM head is refused when it is loaded"
        return head

    @property
    def vocabulary(self) -> int:
        """Logits a token."""
        return self._lm_head.weight.shape[0]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of post-norm hidden states [..., H]."""
        return self._lm_head(hidden)

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], value_head: ValueHead | None = None) -> None:
        """Copy weights in, tensor by tensor, as `Weights.tensors` gives them; a value head that comes along is trained.

        Raises ModelError: names or shapes of another model, or a policy with adapters of its own.
        """
        if adapters.has_adapters(self.model):
            raise ModelError("weights cannot be loaded under LoRA adapters: load them into clone_policy(policy)")
        own, missing = self.model.state_dict(), set(self.model.state_dict())
        other = f"these weights are not those of {self.name or 'the model'}"
        with torch.no_grad():
            for name, tensor in tensors:
                if name not in own or own[name].shape != tensor.shape:
                    raise ModelError(f"{other}: it has no {name} of the shape {tuple(tensor.shape)}")
                own[name].copy_(tensor)
                missing.discard(name)
        if missing:
            raise ModelError(f"{other}: {min(missing)} is not among them")
        if value_head is not None and self.value_head is not None:
            try:
                self.value_head.load_state_dict(value_head.state_dict())
            except RuntimeError as error:
                raise ModelError(f"{other}: {error}") from error
            self.values_trained = True


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


def load_policy(
    path: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    lora: LoraConfig | None = None,
    value_head: bool = True,
    seed: int = 0,
    revision: str | None = None,
) -> Policy:
    """Load a causal LM from a Hugging Face hub id, a folder, `builtin:tiny-base` or `builtin:tiny-untrained`.

    Every dropout is set to 0, so that packed and separate passes agree. The value head comes from the folder, or is
    fresh with `values_trained` False. `lora` adds adapters, drawn from `seed`. `revision`: the commit of a hub model.
    Code that comes with a model is never run. Raises ModelError, naming the folder and the file, for what is missing or
    cannot be used: no config, weights or tokenizer; not a causal LM; a model that needs its own code; quantised
    weights; logits that are more than the LM head of the hidden states.
    """
    name = str(path)
    if dtype not in DTYPES:
        raise ModelError(f"model.dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if name == UNTRAINED:
        policy = _untrained(DTYPES[dtype], _device(device), seed)
        if lora is not None:
            adapters.add_adapters(policy.model, lora, seed=seed)
        if not value_head:
            policy.value_head = None
        return policy
    source, folder = _resolve(path)
    config = _config(name, source, revision)
    commit = None if folder else _commit(name, revision)
    _no_dropout(config)
    with quiet():
        tokenizer = load_tokenizer(source, revision=commit)
        model, info = _reading(
            name,
            "weights",
            lambda: AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=DTYPES[dtype], output_loading_info=True, trust_remote_code=False,
                **_at(commit),
            ),
        )  # fmt: skip
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"the weights of {name} lack {len(missing)} tensors, first {missing[0]}: the files are incomplete"
        )
    model = model.eval().to(_device(device))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if lora is not None:
        adapters.add_adapters(model, lora, seed=seed)
    policy = Policy(model, tokenizer, None, name=name, commit=commit)
    _check_vocabulary(policy)
    _check_forward(policy)
    _ = policy.eos_ids
    if value_head:
        head, policy.values_trained = load_value_head(folder, policy.hidden_size) if folder else (None, False)
        policy.value_head = (head or ValueHead(policy.hidden_size)).to(policy.device)
    return policy


def load_tokenizer(path: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, without its weights. Raises ModelError as `load_policy` does."""
    if str(path) == UNTRAINED:
        return build_tiny_tokenizer(-99, 199, TINY_WORDS)
    source, _ = _resolve(path, tokenizer_only=True)
    with quiet():
        return _reading(
            str(path),
            "tokenizer",
            lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False, **_at(revision)),
        )


def local_folder(path: str) -> Path | None:
    """The folder that a `model.path` is loaded from; None for a hub id, and for a model that is made in memory.

    Raises ModelError for a name that can be neither.
    """
    if path == UNTRAINED:
        return None
    folder = BUILTIN.get(path) or folder_or_hub_id(path)
    return folder if folder is not None and folder.is_dir() else None


def _untrained(dtype: torch.dtype, device: torch.device, seed: int) -> Policy:
    tokenizer = build_tiny_tokenizer(-99, 199, TINY_WORDS)
    model: Any = build_tiny_model(len(tokenizer), seed=seed)
    model.to(device=device, dtype=dtype)
    return Policy(model, tokenizer, ValueHead(model.config.hidden_size).to(device), name=UNTRAINED)


def _resolve(path: str | Path, *, tokenizer_only: bool = False) -> tuple[str, Path | None]:
    """What transformers loads from, and the local folder if it is one."""
    name = str(path)
    if name.startswith("builtin:"):
        if name not in BUILTIN:
            raise ModelError(f"model.path {name!r}: built-in models are builtin:tiny-base and {UNTRAINED}")
        if not (BUILTIN[name] / "config.json").is_file():
            raise ModelError(f"{name} is not there ({BUILTIN[name]}): `make tiny-base` makes it")
        folder = BUILTIN[name]
    else:
        found = folder_or_hub_id(path)
        if found is None:
            return name, None
        folder = found
        if folder.is_file():
            hint = f": run `treepref import-gguf {name} OUT` and give OUT" if folder.suffix == ".gguf" else ""
            raise ModelError(f"model.path {name} is a file, not a model folder{hint}")
    check_model_folder(folder, tokenizer_only=tokenizer_only)
    return str(folder), folder


def _commit(name: str, revision: str | None) -> str | None:
    """The commit of the hub model that was just read, as its place in the cache has it."""
    return extract_commit_hash(cached_file(name, "config.json", **_at(revision)), None)


def _at(commit: str | None) -> dict[str, str]:
    """The argument that pins a hub model's commit."""
    return {} if commit is None else {"revision": commit}


def _reading(name: str, what: str, read: Callable[[], Any]) -> Any:
    """`read()`, its failures told for people."""
    try:
        return read()
    except Exception as error:  # readers of damaged files fail in every way there is
        if "trust_remote_code" in str(error):
            raise ModelError(needs_own_code(name)) from error
        first = str(error).strip().split("\n")[0]
        hub = "" if Path(name).exists() else f"there is no folder {name}, and as a hub id "
        raise ModelError(
            f"{hub}the {what} of {name} cannot be loaded: {first}. Give a complete Hugging Face folder, or a hub id "
            "that can be reached from here"
        ) from error


def _config(name: str, source: str, revision: str | None) -> Any:
    config = _reading(
        name, "config", lambda: AutoConfig.from_pretrained(source, trust_remote_code=False, **_at(revision))
    )
    if config.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder-decoder model ({config.model_type}); only causal LMs can be used")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(f"{name} is a {config.model_type} model, which transformers has no causal LM for")
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{name} holds quantised weights (quantization_config in its config.json), which cannot be trained: take "
            "the full-precision model, or a GGUF file through `treepref import-gguf`"
        )
    return config


def _no_dropout(config: Any) -> None:
    """Set every dropout rate of a config to 0 before the model reads it."""
    for part in (config, config.get_text_config()):
        for key, value in vars(part).items():
            if ("drop" in key) and isinstance(value, float):
                setattr(part, key, 0.0)


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"model.device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _check_vocabulary(policy: Policy) -> None:
    """Ids that the model has no embedding for would fail deep inside a run."""
    rows = embedding_rows(policy.model)
    largest = max(policy.tokenizer.get_vocab().values())
    if largest >= rows:
        raise ModelError(
            f"the tokenizer of {policy.name} makes ids up to {largest}, but the model has {rows} embeddings: the "
            "tokenizer belongs to another model"
        )


@torch.no_grad()
def _check_forward(policy: Policy) -> None:
    """Compare the whole model with head(body) on a few tokens, and change the last token to see that none looks ahead.

    Soft-capped logits are refused by the config's word: on small logits the cap is too weak to be measured.
    """
    if lm_head(policy.model) is None:
        raise ModelError(f"{policy.name} ({type(policy.model).__name__}) has no LM head that can be applied on its own")
    rows = embedding_rows(policy.model)
    ids = torch.arange(1, 9, device=policy.device)[None] % rows
    other = ids.clone()
    other[0, -1] = 0
    hidden = policy.body(ids)
    whole, ours = policy.model(ids, use_cache=False).logits.double(), policy.head(hidden).double()
    if not torch.isfinite(whole).all():
        raise ModelError(
            f"{policy.name} gives logits that are not finite in {policy.dtype}: take model.dtype bfloat16 or float32"
        )
    scale = whole.abs().max().clamp(min=1e-12)
    capped = getattr(policy.model.config.get_text_config(), "final_logit_softcapping", None)
    if capped or whole.shape != ours.shape or (whole - ours).abs().max() > 1e-3 * scale:
        raise ModelError(
            f"{policy.name} ({type(policy.model).__name__}) post-processes its logits (scaling or soft-capping): its "
            "log-probs are not those of its LM head, and it cannot be used"
        )
    ahead = (policy.body(other)[0, :-1] - hidden[0, :-1]).double().abs().max()
    if ahead > 1e-2 * hidden.double().abs().max():
        raise ModelError(f"{policy.name} ({type(policy.model).__name__}) sees later tokens: it is not a causal LM")


# ---------------------------------------------------------------------------------------------------------------------
# Saving, copying, adapters
# ---------------------------------------------------------------------------------------------------------------------


def save_policy(policy: Policy, folder: str | Path) -> Path:
    """Write an ordinary Hugging Face folder (safetensors, tokenizer) and `value_head.safetensors`; return its path.

    LoRA adapters are merged into what is written, not into the policy. The folder lands whole or not at all, and
    replaces one that treepref saved there. Raises StoreError where it cannot be written or something else is there, and
    ModelError where weights are not finite.
    """
    folder = Path(folder).expanduser().absolute()
    model = policy.model
    _check_finite(policy)
    plain = merged_model(policy) if adapters.has_adapters(model) else model
    with landing(folder) as partial, quiet():
        plain.save_pretrained(partial)
        policy.tokenizer.save_pretrained(partial)
        if policy.value_head is not None:
            save_value_head(policy.value_head, partial, trained=policy.values_trained)
    return folder


def _check_finite(policy: Policy) -> None:
    head = {} if policy.value_head is None else _head_state(policy.value_head)
    for name, weight in (policy.model.state_dict() | head).items():
        if not torch.isfinite(weight).all():
            raise ModelError(
                f"the weights of {policy.name or 'the model'} are not finite ({name}), so they were not saved: a lower "
                "learning rate or a wider model.dtype keeps them so"
            )


def _head_state(head: ValueHead) -> dict[str, Tensor]:
    return {f"value_head.{name}": tensor for name, tensor in head.state_dict().items()}


def merged_model(policy: Policy) -> PreTrainedModel:
    """A copy of the model without adapters, their change merged into its weights."""
    model = copy.deepcopy(policy.model)
    adapters.merge_adapters(model)
    return model


def clone_policy(policy: Policy) -> Policy:
    """A copy for an engine or as the reference: adapters merged, nothing trains; the tokenizer alone is shared."""
    head = copy.deepcopy(policy.value_head)
    for module in (model := merged_model(policy), head):
        if module is not None:
            module.eval().requires_grad_(False)
    return Policy(model, policy.tokenizer, head, policy.values_trained, policy.id, policy.name)


@contextmanager
def adapter_off(policy: Policy) -> Iterator[None]:
    """The model without its LoRA adapters inside the block: the reference of a LoRA run. Nothing where it has none."""
    with adapters.adapters_off(policy.model):
        yield


@contextmanager
def attention_by(model: nn.Module, name: str) -> Iterator[None]:
    """Inside, attention is the function that transformers knows by `name`; outside, what it was."""
    config = decoder_of(model).config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
