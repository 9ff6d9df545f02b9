"""One forward over packed rows: log-probs where a loss needs them, values at the end of every node.

Joins what the model says with what the examples ask into a `LossBatch`, and scores examples without a graph. Knows no
objective, no optimizer and no step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint

from treepref.errors import ModelError
from treepref.models.hidden import captured, decoder_of, lm_head
from treepref.models.lora import adapters_off
from treepref.models.policy import attention_by
from treepref.models.value_head import LAST_LAYER, Pool, ValueHead
from treepref.training.attention import NAME, Kind, blocks_of, kinds_of, tiles
from treepref.training.examples import Example, NodeLogprobs, Scorer
from treepref.training.objectives import LossBatch
from treepref.training.packing import (
    EMPTY,
    Array,
    Flat,
    Passage,
    attention_mask,
    check_context,
    collate,
    flatten,
    free_offsets,
    max_positions,
    passes,
    renumbered,
)

_NAMES: dict[Kind, str | None] = {"mask": None, "blocks": NAME, "flex": "flex_attention"}
"""What transformers calls each kind of attention; None leaves a model's own, which is given the mask."""
FLEX_WIDTH = 512
"""Rows for FlexAttention are padded to multiples of this: each new width is compiled anew, and a few are enough."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, so that every dropout is 0; afterwards each submodule's mode as it was."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode


class PackedModel(nn.Module):
    """A causal LM and its value head as one module that turns passages into log-probs and values.

    One module, so that a wrapper that must own the forward (FSDP) can be put around it. `chunk_tokens` bounds the
    memory of the LM head: that many positions' logits at once, recomputed in the backward pass.

    Inside `running`, attention is of the kind `attention` (`attention.kinds_of`; may be set, between forwards); outside
    it is over whole rows with a mask. Blocks serve passages of one row. With `recompute` set, each layer's activations
    are recomputed in the backward pass there.

    Raises:
        ModelError: the attention implementation cannot take a tree mask, or the model has no LM head.
    """

    def __init__(self, model: nn.Module, value_head: nn.Module | None = None, *, chunk_tokens: int = 4096) -> None:
        super().__init__()
        implementation = getattr(model.config, "_attn_implementation", "sdpa")
        if implementation not in ("sdpa", "eager"):
            raise ModelError(
                f"attention implementation {implementation!r} cannot take the mask of a packed tree; "
                "load the model with attn_implementation='sdpa'"
            )
        if lm_head(model) is None:
            raise ModelError(f"{type(model).__name__} has no LM head (get_output_embeddings() is None)")
        self.model = model
        self.value_head = value_head
        self.chunk_tokens = chunk_tokens
        self.attention: Kind = kinds_of(model)[0]
        self.recompute = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Evaluation mode, and attention of our kind: around a step's forwards and backwards.

        Around backwards too, for activations that are recomputed run the attention again.
        """
        name = _NAMES[self.attention]
        with evaluating(self), attention_by(self.model, name) if name else nullcontext():
            if self.recompute:
                self._recompute_activations()
            yield

    def _recompute_activations(self) -> None:
        # the newer of the two names, where this version of transformers has it
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        enable = enable or getattr(self.model, "gradient_checkpointing_enable")  # noqa: B009
        enable({"use_reentrant": False})
        for module in self.modules():
            if getattr(module, "gradient_checkpointing", False):
                # transformers recomputes in training mode alone; the submodules' dropouts stay off
                module.training = True

    def passes(self, lengths: Sequence[int], row_tokens: int, rows_per_pass: int) -> list[list[list[int]]]:
        """As `packing.passes`; in blocks a long row costs no more: a forward's rows become one, unpadded."""
        found = passes(lengths, row_tokens, rows_per_pass)
        return [[[i for row in rows for i in row]] for rows in found] if self.attention == "blocks" else found

    def forward(self, passage: Passage) -> tuple[Tensor, Tensor | None]:
        """Log-prob of each trained token [T] and V of each owned segment [S] (None without a value head).

        Half-precision logits are softmaxed in float32.
        """
        hidden_NH = self.hidden(passage, self.layers)
        logp_T = self._logprobs(hidden_NH[LAST_LAYER][passage.predictors_T], passage.labels_T)
        return logp_T, None if self.value_head is None else self.values(passage, hidden_NH)

    @property
    def layers(self) -> list[int]:
        """The layers that the value head reads beside the last one."""
        layer = self.value_head.read.layer if isinstance(self.value_head, ValueHead) else LAST_LAYER
        return [] if layer == LAST_LAYER else [layer]

    def values(self, passage: Passage, hidden_NH: Mapping[int, Tensor]) -> Tensor:
        """V [S] of each owned segment from hidden states by layer, read where the head reads."""
        head = self.value_head
        assert head is not None
        if not isinstance(head, ValueHead) or head.at_last_token:
            return head(hidden_NH[LAST_LAYER][passage.last_S]).reshape(-1)
        score_S = pooled(head.scores(hidden_NH[head.read.layer])[:, None], passage, head.read.pool)[:, 0]
        bare_S = passage.path_tokens_S == 0  # the prompt: the value of any
        return torch.where(bare_S, head.root.to(score_S.dtype), head.squash(score_S))

    def hidden(self, passage: Passage, layers: Sequence[int] = ()) -> dict[int, Tensor]:
        """Hidden states [R·L, H] by layer: the post-norm ones (−1), and those behind each of `layers`."""
        with captured(self.model, layers) if layers else nullcontext({}) as found:
            last_NH, restore_L, width = self._run(passage)
        states = {LAST_LAYER: last_NH}
        for layer in layers:
            hidden_RLH = found[layer][:, :width]
            states[layer] = hidden_RLH[0, restore_L] if restore_L is not None else hidden_RLH.flatten(0, 1)
        return states

    def _run(self, passage: Passage) -> tuple[Tensor, Tensor | None, int]:
        """The decoder's output [R·L, H]; in blocks, the order that puts it right; the width without flex's padding."""
        decoder, dtype = decoder_of(self.model), next(self.model.parameters()).dtype
        ids_RL, positions_RL, ends_RL = passage.ids_RL, passage.positions_RL, passage.ends_RL
        name = decoder.config._attn_implementation
        if name == NAME and len(ids_RL) == 1:
            blocks = blocks_of(ends_RL[0].cpu().numpy(), dtype, ends_RL.device)
            ids_RL, positions_RL = ids_RL[:, blocks.order_L], positions_RL[:, blocks.order_L]
            output = decoder(input_ids=ids_RL, position_ids=positions_RL, use_cache=False, blocks=blocks)
            return output.last_hidden_state[0, blocks.restore_L], blocks.restore_L, ids_RL.shape[1]
        if name == _NAMES["flex"]:
            width = ids_RL.shape[1]
            ids_RL, positions_RL = (pad(x_RL, (0, -width % FLEX_WIDTH)) for x_RL in (ids_RL, positions_RL))
            mask = tiles(pad(ends_RL, (0, -width % FLEX_WIDTH), value=ids_RL.shape[1]))  # padding sees padding
            output = decoder(input_ids=ids_RL, position_ids=positions_RL, use_cache=False, attention_mask=mask)
            return output.last_hidden_state[:, :width].flatten(0, 1), None, width
        mask = attention_mask(ends_RL, dtype)
        output = decoder(input_ids=ids_RL, position_ids=positions_RL, use_cache=False, attention_mask=mask)
        return output.last_hidden_state.flatten(0, 1), None, ids_RL.shape[1]

    def _logprobs(self, hidden_TH: Tensor, labels_T: Tensor) -> Tensor:
        head = lm_head(self.model)
        assert head is not None, "refused when this was made"

        def chunk(h: Tensor, y: Tensor) -> Tensor:
            # the head's output as it is: models that scale or cap it are refused, at load and by the packing probe
            logits = head(h)
            return -cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), y, reduction="none")

        if len(labels_T) <= self.chunk_tokens:
            return chunk(hidden_TH, labels_T)
        parts = zip(hidden_TH.split(self.chunk_tokens), labels_T.split(self.chunk_tokens), strict=True)
        return torch.cat([checkpoint(chunk, h, y, use_reentrant=False) for h, y in parts])


def pooled(of_tokens_NX: Tensor, passage: Passage, pool: Pool) -> Tensor:
    """[R·L, X] → [S, X]: of each owned segment its last token's, or the mean over its solution so far (a prompt: 0)."""
    if pool == "last":
        return of_tokens_NX[passage.last_S]
    shape = (passage.n_segments + 1, of_tokens_NX.shape[1])
    segment_CX = of_tokens_NX.new_zeros(shape).index_add(0, passage.owner_RL.flatten(), of_tokens_NX)
    sum_SX = of_tokens_NX.new_zeros(len(passage.last_S), shape[1])
    sum_SX = sum_SX.index_add(0, passage.path_owned_P, segment_CX[passage.path_above_P])
    return sum_SX / passage.path_tokens_S.clamp(min=1)[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# What the loss needs beside the forward
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Columns:
    """Lists that `loss_batch` fills, one entry an example."""

    node: list[Array] = field(default_factory=list)
    ref: list[Array] = field(default_factory=list)
    target: list[float] = field(default_factory=list)
    sft: list[float] = field(default_factory=list)
    winner: list[int] = field(default_factory=list)
    winner_pair: list[int] = field(default_factory=list)
    loser: list[int] = field(default_factory=list)
    loser_pair: list[int] = field(default_factory=list)
    winner_last: list[int] = field(default_factory=list)
    loser_last: list[int] = field(default_factory=list)
    alpha: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)


def loss_batch(flats: Sequence[Flat], logp_T: Tensor, value_N: Tensor | None) -> LossBatch:
    """Join log-probs and values with what the examples say about them.

    Args:
        logp_T: trained tokens of all examples, in the order of `flats` and within each of `Flat.node_T`.
        value_N: V of all segments (the prompt, then the nodes) of all examples; these are the loss's nodes.
    """
    columns = _Columns()
    offset = 0
    for flat in flats:
        _add_columns(columns, flat, offset)
        offset += len(flat.example.nodes) + 1
    device, real = logp_T.device, logp_T.dtype

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    def reals(values: list[float] | Array) -> Tensor:
        return torch.as_tensor(values, dtype=real, device=device)

    target_N = reals(columns.target)
    ref_T = np.concatenate(columns.ref)
    return LossBatch(
        logp_T=logp_T,
        node_T=torch.from_numpy(np.concatenate(columns.node)).to(device),
        n_nodes=offset,
        ref_T=None if np.isnan(ref_T).all() else reals(ref_T),
        winner_nodes_W=ints(columns.winner),
        winner_pair_W=ints(columns.winner_pair),
        loser_nodes_L=ints(columns.loser),
        loser_pair_L=ints(columns.loser_pair),
        winner_last_P=ints(columns.winner_last),
        loser_last_P=ints(columns.loser_last),
        alpha_P=reals(columns.alpha),
        pair_weight_P=reals(columns.weight),
        value_N=None if value_N is None else value_N.to(real),
        target_N=target_N,
        has_target_N=~target_N.isnan(),
        sft_N=reals(columns.sft),
    )


def _add_columns(c: _Columns, flat: Flat, offset: int) -> None:
    example = flat.example
    c.node.append(flat.node_T + offset)
    c.ref.append(flat.ref_T)
    targets = (example.root_target, *(n.target for n in example.nodes))
    c.target.extend(float("nan") if t is None else t for t in targets)
    c.sft.append(0.0)
    c.sft.extend(n.sft for n in example.nodes)
    first = offset + 1
    for pair in example.pairs:
        index = len(c.alpha)
        c.winner.extend(first + n for n in pair.winner)
        c.winner_pair.extend([index] * len(pair.winner))
        c.loser.extend(first + n for n in pair.loser)
        c.loser_pair.extend([index] * len(pair.loser))
        c.winner_last.append(first + pair.winner[-1])
        c.loser_last.append(first + pair.loser[-1])
        c.alpha.append(pair.alpha)
        c.weight.append(pair.weight)


@dataclass(frozen=True, slots=True)
class Scatter:
    """Where a passage's outputs belong in the loss's token and node vectors of a group of examples."""

    token_T: Tensor
    node_S: Tensor


def scatter_index(flats: Sequence[Flat], device: torch.device | str = "cpu") -> Scatter:
    """For the pieces of `flats`, in order: the place of each log-prob and value in the group's vectors."""
    tokens, nodes = [EMPTY], [EMPTY]
    token_offset = node_offset = 0
    for flat in flats:
        tokens.extend(p.slots + token_offset for p in flat.pieces)
        nodes.extend(p.segments + node_offset for p in flat.pieces)
        token_offset += len(flat.node_T)
        node_offset += len(flat.example.nodes) + 1
    return Scatter(
        torch.from_numpy(np.concatenate(tokens)).to(device), torch.from_numpy(np.concatenate(nodes)).to(device)
    )


def place(values: Tensor, index: Tensor) -> Tensor:
    """`out[index] = values`, differentiable; `index` is a permutation."""
    return torch.zeros_like(values).index_copy(0, index, values)


# ---------------------------------------------------------------------------------------------------------------------
# Scores without a graph
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probs and values of examples, without a graph."""

    logprobs: NodeLogprobs
    values: list[list[float]] | None
    """[example][segment]: V at the prompt's last token, then at each node's. None without a value head."""
    tokens: int
    """Tokens run through the model."""


@torch.no_grad()
def score(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    value_head: nn.Module | None = None,
    row_tokens: int = 2048,
    rows_per_pass: int = 1,
    chunk_tokens: int = 4096,
) -> Scores:
    """Log-probs of every trained node (None for the others; 0 at forced tokens) and values of every node.

    The model is used in evaluation mode and left in the mode it was in.

    Raises:
        DataError: a path is longer than the model's context.
        ModelError: as `PackedModel`.
    """
    check_context(examples, max_positions(model))
    packed = PackedModel(model, value_head, chunk_tokens=chunk_tokens)
    flats = [flatten(e, row_tokens) for e in examples]
    owners = [(f, p) for f, flat in enumerate(flats) for p in flat.pieces]
    logp = [np.zeros(len(f.node_T)) for f in flats]
    values = [np.zeros(len(e.nodes) + 1) for e in examples]
    device = next(model.parameters()).device
    with packed.running():
        for chosen in packed.passes([len(p) for _, p in owners], row_tokens, rows_per_pass):
            members = [owners[i] for row in chosen for i in row]
            logp_T, value_S = packed(collate([p for _, p in members], renumbered(chosen), device))
            _hand_out(logp_T, [(logp[f], p.slots) for f, p in members])
            if value_S is not None:
                _hand_out(value_S, [(values[f], p.segments) for f, p in members])
    return Scores(
        [_by_node(flat, found) for flat, found in zip(flats, logp, strict=True)],
        None if value_head is None else [v.tolist() for v in values],
        sum(f.tokens for f in flats),
    )


def _hand_out(values: Tensor, parts: list[tuple[Array, Array]]) -> None:
    flat = values.double().cpu().numpy()
    start = 0
    for into, index in parts:
        into[index] = flat[start : start + len(index)]
        start += len(index)


def _by_node(flat: Flat, logp: Array) -> list[tuple[float, ...] | None]:
    found: list[tuple[float, ...] | None] = []
    start = 0
    for node, trained in zip(flat.example.nodes, flat.example.trained, strict=True):
        if not trained:
            found.append(None)
            continue
        offsets = free_offsets(node.tokens, node.forced)
        full = np.zeros(len(node.tokens))
        full[offsets] = logp[start : start + len(offsets)]
        start += len(offsets)
        found.append(tuple(full.tolist()))
    return found


def model_scorer(
    model: nn.Module, *, row_tokens: int = 2048, rows_per_pass: int = 1, adapter_off: bool = False
) -> Scorer:
    """A model as the reference of `attach_reference`. `adapter_off`: a LoRA policy without its adapters."""

    def scorer(examples: Sequence[Example]) -> NodeLogprobs:
        with adapters_off(model) if adapter_off else nullcontext():
            return score(model, examples, row_tokens=row_tokens, rows_per_pass=rows_per_pass).logprobs

    return scorer
