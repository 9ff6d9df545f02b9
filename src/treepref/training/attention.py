"""Attention over packed trees: with a mask over whole rows, in blocks of our own, or with torch's FlexAttention.

A row's mask is nearly empty: a step sees its ancestors, its row holds many steps that are not. In blocks, the steps
below one parent go together: their queries meet the parent's path, gathered once, and one another; the rest of the row
costs nothing. FlexAttention leaves out tiles of the row in which nothing is seen. What comes out is what the mask
gives, to rounding. Knows places and arrays, no example.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from treepref.errors import ModelError
from treepref.models.hidden import decoder_of

NAME = "treepref_blocks"
"""What attention in blocks is called in a model's config while it is in use."""
Kind = Literal["mask", "blocks", "flex"]


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Who meets whom in a row of L places that is laid out block after block."""

    order_L: Tensor
    """The places of the row as it was, block after block."""
    restore_L: Tensor
    """Where each place went: `order_L[restore_L[i]] = i`."""
    keys_K: Tensor
    """Where in the new order the keys of every block are, one block after the other."""
    query_sizes: list[int]
    key_sizes: list[int]
    masks: list[Tensor]
    """[queries, keys] a block, additive: 0 where the query sees the key, else a very low number."""


def blocks_of(ends_L: np.ndarray, dtype: torch.dtype, device: torch.device | str = "cpu") -> Blocks:
    """The blocks of a row; `ends_L` as `Piece.ends`: a place sees those up to its own whose end lies behind it.

    The model runs on the row in the new order: only attention minds where a token is, and queries need no look-up.
    """
    begins = np.flatnonzero(np.diff(ends_L, prepend=-1))
    stops = np.append(begins[1:], len(ends_L))
    parents = _parents(begins, ends_L[begins])
    siblings: dict[int, list[int]] = {}
    for segment, parent in enumerate(parents):
        # Roots have no path to share: each is a block of its own (keys below 0 are taken by none else).
        siblings.setdefault(parent if parent >= 0 else -1 - segment, []).append(segment)
    places = [np.arange(begin, stop) for begin, stop in zip(begins, stops, strict=True)]
    queries, keys, masks = [], [], []
    for parent, members in siblings.items():
        path = _path(parents, parent)
        own = np.concatenate([places[segment] for segment in members])
        key = np.concatenate([*(places[segment] for segment in path), own])
        sees = (key[None, :] <= own[:, None]) & (own[:, None] < ends_L[key][None, :])
        mask = torch.zeros(sees.shape, dtype=dtype)
        masks.append(mask.masked_fill_(torch.from_numpy(~sees), torch.finfo(dtype).min / 2).to(device))
        queries.append(own)
        keys.append(key)
    order = np.concatenate(queries)
    restore = np.argsort(order)
    return Blocks(
        order_L=torch.from_numpy(order).to(device),
        restore_L=torch.from_numpy(restore).to(device),
        keys_K=torch.from_numpy(restore[np.concatenate(keys)]).to(device),
        query_sizes=[len(q) for q in queries],
        key_sizes=[len(k) for k in keys],
        masks=masks,
    )


def _parents(begins: np.ndarray, ends: np.ndarray) -> list[int]:
    """Of each segment the innermost one that it lies in; −1: none."""
    parents: list[int] = []
    open_segments: list[int] = []
    for segment, begin in enumerate(begins):
        while open_segments and ends[open_segments[-1]] <= begin:
            open_segments.pop()
        parents.append(open_segments[-1] if open_segments else -1)
        open_segments.append(segment)
    return parents


def _path(parents: list[int], segment: int) -> list[int]:
    """A segment and its ancestors, from the root down."""
    path: list[int] = []
    while segment >= 0:
        path.append(segment)
        segment = parents[segment]
    return path[::-1]


def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    blocks: Blocks | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for each layer: query [1, H, L, D], key and value [1, K, L, D] → [1, L, H, D].

    All in the order of the blocks. Without `blocks` it is transformers' own attention.
    """
    if blocks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.device.type == "cuda":
        # CUDA's fused kernels take a mask with equal numbers of heads alone
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    grouped = query.shape[1] != key.shape[1]
    parts = zip(
        query.split(blocks.query_sizes, dim=2),
        key.index_select(2, blocks.keys_K).split(blocks.key_sizes, dim=2),
        value.index_select(2, blocks.keys_K).split(blocks.key_sizes, dim=2),
        blocks.masks,
        strict=True,
    )
    found = [
        scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=grouped)
        for q, k, v, mask in parts
    ]
    return torch.cat([part.transpose(1, 2) for part in found], dim=1), None


AttentionInterface.register(NAME, block_attention)


PREFERRED: dict[str, tuple[Kind, ...]] = {"cpu": ("blocks", "mask"), "cuda": ("mask", "blocks", "flex")}
"""By device, the kind to take first. On a CPU a masked key costs what a seen one does, so blocks win (measured:
docs/performance.md); on a GPU nothing was measured yet, and a mask is what every model takes."""


def kinds_of(model: nn.Module) -> list[Kind]:
    """The kinds that may serve this model where it is, the one to take first.

    A model takes blocks and FlexAttention where it asks transformers for its attention, and hands on what it does not
    know.
    """
    decoder = decoder_of(model)
    device = next(model.parameters()).device.type
    asks = getattr(decoder.config, "_attn_implementation", None) in ("sdpa", NAME)
    named = inspect.signature(decoder.forward).parameters.values()
    hands_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in named)
    taken: dict[Kind, bool] = {
        "mask": True,
        "blocks": asks and hands_on and getattr(decoder, "_supports_attention_backend", False),
        "flex": asks and device == "cuda" and getattr(decoder, "_supports_flex_attn", False),
    }
    return [kind for kind in PREFERRED.get(device, ("mask",)) if taken[kind]]


def choose_attention(model: nn.Module, wanted: str, before: Kind | None = None) -> Kind:
    """The kind that is `wanted`; "auto": the one that the run used `before`, or the first that the model takes here.

    Raises ModelError where the model does not take it on this device.
    """
    kinds = kinds_of(model)
    kind = (before or kinds[0]) if wanted == "auto" else wanted
    if kind in kinds:
        return kind  # type: ignore[return-value]
    if wanted == "auto":
        raise ModelError(
            f"this training was begun with attention {kind!r}, which {type(model).__name__} does not take on this "
            f"device: set train.attention to {' or '.join(kinds)} to go on with another, whose rounding differs"
        )
    raise ModelError(
        f"train.attention={wanted}: {type(model).__name__} takes {' or '.join(sorted(kinds))} on this device; set one "
        "of these, or auto"
    )


def tiles(ends_RL: Tensor) -> BlockMask:
    """What FlexAttention takes for the mask of `packing.attention_mask`: the tiles in which something is seen."""

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends_RL[row, key])

    n_rows, length = ends_RL.shape
    return create_block_mask(sees, n_rows, None, length, length, device=ends_RL.device)
