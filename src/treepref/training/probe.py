"""Is packing exact for this model? A small copy of its config decides, before anything is trained on it.

Two trees are packed in a row and compared, in float64, with every path run on its own: log-probs, values and gradients.
Knows configs and the packed forward; no weights of the real model, no data.
"""

from __future__ import annotations

import copy
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from treepref.errors import ModelError
from treepref.models.hidden import decoder_of, embedding_rows
from treepref.training.examples import Example, ExampleNode
from treepref.training.forward import PackedModel, evaluating, loss_batch, place, scatter_index
from treepref.training.objectives import known
from treepref.training.packing import collate, flatten

TOLERANCE = 1e-9
_WINDOWS = ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size")
_SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16, "vocab_size": 97}


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Relative L2 distances, packed against separate sequences."""

    value_error: float
    """Of log-probs and values."""
    gradient_error: float


def probe_packing(model: nn.Module | PretrainedConfig, *, longest_path: int | None = None) -> ProbeReport:
    """Check that packed trees give a model's exact log-probs, values and gradients.

    The probe has the model's config with two layers (one of each kind, where it names kinds) and, where that works, a
    narrow width; random weights; float64 on the CPU. Torch's random state is left as it was.

    Args:
        model: a causal LM (also a peft model), or a config alone.
        longest_path: the longest prompt + path in tokens that will be trained on. An attention window at least that
            long never cuts anything and is accepted; None means "may be longer than any window".

    Raises:
        ModelError: packing is not exact for it; says why.
    """
    config, build = _source(model)
    reason = _known_reason(config, longest_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            probe = _build(config, build, longest_path)
            with wholly_float64():
                report = _compare(probe)
        except ModelError:
            raise
        except Exception as error:  # whatever a model does not bear (a mask, position ids …) is a refusal
            cause = reason or f"it does not run on packed rows ({type(error).__name__}: {error})"
            raise ModelError(f"{_name(config)} cannot be trained on packed trees: {cause}") from error
    worst = max(report.value_error, report.gradient_error)
    if reason is not None or not worst <= TOLERANCE:
        cause = reason or "its layers mix tokens that the mask keeps apart, or its logits are not head(hidden)"
        raise ModelError(
            f"{_name(config)} cannot be trained on packed trees: {cause} (packed against separate sequences: relative "
            f"error {report.value_error:.1e} in values, {report.gradient_error:.1e} in gradients)"
        )
    return report


class wholly_float64(TorchFunctionMode):
    """Inside, casts to float32 make float64.

    Many models run norms, softmax and rotary angles in float32 to *gain* precision. In a float64 model that would lose
    it: gradients would agree to 1e-7 only, and an inexact model could not be told from a rounded one.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)


def _source(model: nn.Module | PretrainedConfig) -> tuple[PretrainedConfig, Any]:
    if isinstance(model, PretrainedConfig):
        return model, AutoModelForCausalLM.from_config
    base: Any = getattr(model, "get_base_model", lambda: model)()
    return base.config, type(base)


def _name(config: PretrainedConfig) -> str:
    return f"model type {config.model_type!r}"


def _known_reason(config: PretrainedConfig, longest_path: int | None) -> str | None:
    """What is known to break exactness; some of it the probe's short paths cannot show."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {str(r.get("rope_type", r.get("type"))) for r in (rope, *rope.values()) if isinstance(r, dict)}
    switched = kinds & {"dynamic", "longrope"}
    if switched:
        return (
            f"its rotary embedding is of type {sorted(switched)[0]!r}, which changes with the longest position in the "
            "row, so a path's result would depend on its neighbours"
        )
    if any(hasattr(config, name) for name in ("state_size", "ssm_cfg", "mamba_d_state", "conv_kernel", "rwkv_version")):
        return "it has state-space (recurrent) layers, whose state runs through the row whatever the mask says"
    window = attention_window(config)
    if window is not None and (longest_path is None or longest_path > window):
        longest = "of unknown length" if longest_path is None else f"of up to {longest_path} tokens"
        return f"it attends within a window of {window} tokens, and paths {longest} may exceed it"
    return None


def attention_window(config: PretrainedConfig) -> int | None:
    """The narrowest window that any layer attends within, in tokens; None where all layers see everything."""
    windows = [getattr(config, name, None) for name in _WINDOWS]
    if getattr(config, "use_sliding_window", True) is False:
        windows = [w for name, w in zip(_WINDOWS, windows, strict=True) if name != "sliding_window"]
    return min((w for w in windows if isinstance(w, int) and w > 0), default=None)


def _build(config: PretrainedConfig, build: Any, longest_path: int | None) -> nn.Module:
    """The narrow two-layer copy; at full width where the config's numbers depend on each other."""
    try:
        model = build(_shrunk(config, longest_path, narrow=True))
        model.double().eval()(input_ids=torch.arange(12)[None])
    except Exception:
        model = build(_shrunk(config, longest_path, narrow=False))
    return model.double().eval()


def _shrunk(config: PretrainedConfig, longest_path: int | None, *, narrow: bool) -> PretrainedConfig:
    small = copy.deepcopy(config)
    kinds = getattr(config, "layer_types", None)
    layers = max(2, len(set(kinds))) if kinds else 2
    if kinds:
        first = sorted(set(kinds), key=kinds.index)
        small.layer_types = (first * 2)[:layers]
    small.num_hidden_layers = layers
    small.vocab_size = _SMALL["vocab_size"]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(small, name, None)
    if narrow:
        for name, value in _SMALL.items():
            if isinstance(getattr(small, name, None), int):
                with suppress(AttributeError):  # some configs derive it
                    setattr(small, name, value)
        for name in ("num_key_value_heads", "num_kv_heads"):
            if isinstance(getattr(config, name, None), int):
                grouped = getattr(config, name) < config.num_attention_heads
                setattr(small, name, 2 if grouped else small.num_attention_heads)
    window = attention_window(config)
    if window is not None and (longest_path is None or longest_path > window):
        for name in _WINDOWS:
            if isinstance(getattr(small, name, None), int):
                setattr(small, name, 4)  # so that the probe's short paths exceed it too
    implementation = getattr(config, "_attn_implementation", None)
    if implementation is not None:
        small._attn_implementation = implementation
    return small


# ---------------------------------------------------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------------------------------------------------


def _compare(model: nn.Module) -> ProbeReport:
    # not the policy's own value head: any function of the last token's hidden state shows whether that state is exact
    value_head = nn.Sequential(nn.Linear(_width(model), 1, bias=False), nn.Tanh()).double()
    packed = PackedModel(model, value_head)
    examples = _trees(embedding_rows(model))
    with packed.running():
        logp_T, value_N = _packed(packed, examples)
    with evaluating(packed):
        alone_T, alone_N = _separate(model, value_head, examples)
    weights = [torch.randn(len(x), dtype=torch.float64) for x in (logp_T, value_N)]
    parameters = [p for p in packed.parameters() if p.requires_grad]
    together, apart = (
        torch.autograd.grad((t @ weights[0]) + (v @ weights[1]), parameters, allow_unused=True)
        for t, v in ((logp_T, value_N), (alone_T, alone_N))
    )
    return ProbeReport(
        value_error=_distance([logp_T, value_N], [alone_T, alone_N]),
        gradient_error=_distance(*(_filled(g, parameters) for g in (together, apart))),
    )


def _width(model: nn.Module) -> int:
    with torch.no_grad():
        return decoder_of(model)(input_ids=torch.zeros(1, 2, dtype=torch.int64)).last_hidden_state.shape[-1]


def _trees(vocabulary: int) -> list[Example]:
    """Two branching trees, three levels deep."""
    rng = random.Random(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(min(vocabulary, 97)) for _ in range(n))

    def tree(name: str, prompt: int, shape: list[tuple[int, int]]) -> Example:
        nodes = tuple(ExampleNode(tokens(length), parent, sft=1.0) for parent, length in shape)
        return Example(name, tokens(prompt), nodes)

    return [
        tree("first", 5, [(-1, 3), (-1, 4), (0, 2), (0, 5), (3, 4), (3, 1), (1, 3)]),
        tree("second", 3, [(-1, 4), (0, 3), (0, 2), (-1, 1)]),
    ]


def _packed(packed: PackedModel, examples: list[Example]) -> tuple[Tensor, Tensor]:
    flats = [flatten(e, 1000) for e in examples]
    index = scatter_index(flats)
    logp_T, value_S = packed(collate([f.pieces[0] for f in flats], [[0, 1]]))
    batch = loss_batch(flats, place(logp_T, index.token_T), place(value_S, index.node_S))
    return batch.logp_T, known(batch.value_N)


def _separate(model: nn.Module, value_head: nn.Module, examples: list[Example]) -> tuple[Tensor, Tensor]:
    """The same by one plain forward for every prompt and path, through the model's own logits."""
    logps, values = [], []
    for example in examples:
        for index in range(-1, len(example.nodes)):
            ids = _path(example, index)
            row = torch.tensor([ids])
            values.append(value_head(decoder_of(model)(input_ids=row, use_cache=False).last_hidden_state[0, -1]))
            if index >= 0:
                n = len(example.nodes[index].tokens)
                logp = model(input_ids=row, use_cache=False).logits[0, -n - 1 : -1].log_softmax(-1)
                logps.append(logp.gather(1, row[0, -n:, None])[:, 0])
    return torch.cat(logps), torch.cat(values)


def _path(example: Example, index: int) -> list[int]:
    tokens: list[int] = []
    while index >= 0:
        tokens = [*example.nodes[index].tokens, *tokens]
        index = example.nodes[index].parent
    return [*example.prompt, *tokens]


def _filled(gradients: tuple[Tensor | None, ...], parameters: list[nn.Parameter]) -> list[Tensor]:
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]


def _distance(one: list[Tensor], two: list[Tensor]) -> float:
    """Relative L2 distance of two lists of tensors."""
    a, b = (torch.cat([x.detach().flatten() for x in xs]) for xs in (one, two))
    return ((a - b).norm() / b.norm()).item()
