"""Passes of the transformer body over the torch engine's cache, and attention that reads a shared prefix once.

When one token is decoded a row, the rows of one slot put their queries to its keys and values together: these are read
from memory once for all of them, where an ordinary attention reads a copy for each. Scores against the prefix and
against a row's own tokens go through one softmax, so the result differs from the ordinary one by rounding alone.
Knows no request and no sampling; takes what transformers says about a model's attention, and tries whether it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from treepref.engines.kv_cache import Sharing, SlotCache
from treepref.models.hidden import decoder_of, embedding_rows
from treepref.models.policy import Policy, attention_by

SHARED = "treepref_shared"
"""The name under which transformers finds `shared_attention`."""
NOWHERE = 1 << 40
"""A position that no token sees."""
EXTRAS = ("softcap", "s_aux", "position_bias")
"""What some models add to plain attention, by the names that transformers hands it over."""


class CannotShare(Exception):
    """A model's attention is more than `shared_attention` computes."""


def shared_attention(
    module: Any,  # a layer: it knows its own number
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    shared: Sharing,
    scaling: float | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token a row to its own tokens and its slot's prefix.

    `query` [rows, heads, 1, head size]; `key`, `value` [rows, key-value heads, own, head size]; additive mask
    [rows, 1, 1, own + prefix]. Returns [rows, 1, heads, head size]. Raises CannotShare where `extras` say that there
    is more to the model's attention.
    """
    if wrong := [name for name in EXTRAS if extras.get(name) is not None]:
        raise CannotShare(f"attention with {', '.join(wrong)}")
    n_rows, n_heads, _, size = query.shape
    n_kv, n_own = key.shape[1], key.shape[2]
    query_RKGD = (query * (size**-0.5 if scaling is None else scaling)).view(n_rows, n_kv, n_heads // n_kv, size)
    own_RKGT = query_RKGD @ key.transpose(-1, -2)  # scores, and then the weights of the same tokens
    outs = []
    for band in shared.bands:
        # M: all queries to one key-value head of a slot, those of its N rows and the G heads that share it.
        key_SKPD, value_SKPD = shared.prefix(band, module.layer_idx)
        query_SKMD = band.by_slot(query_RKGD).transpose(1, 2).flatten(2, 3)
        own_SKNGT = band.by_slot(own_RKGT).transpose(1, 2)
        score_SKMP = query_SKMD @ key_SKPD.transpose(-1, -2)
        weight_SKNGL = _weights(own_SKNGT, score_SKMP, band.by_slot(attention_mask[:, 0, 0])).to(value.dtype)
        out_SKMD = weight_SKNGL[..., n_own:].flatten(2, 3) @ value_SKPD
        outs.append(out_SKMD.unflatten(2, weight_SKNGL.shape[2:4]).transpose(1, 2))
        band.put(own_RKGT, weight_SKNGL[..., :n_own].transpose(1, 2))
    out_RKGD = own_RKGT @ value
    for band, out_SNKGD in zip(shared.bands, outs, strict=True):
        band.add(out_RKGD, out_SNKGD)
    return out_RKGD.reshape(n_rows, 1, n_heads, size), None


def _weights(own_SKNGT: Tensor, score_SKMP: Tensor, mask_SNL: Tensor) -> Tensor:
    """Softmax over a row's own tokens and its prefix, float32 [S, K, N, G, T + P]. The mask may be longer."""
    n_own, n_both = own_SKNGT.shape[-1], own_SKNGT.shape[-1] + score_SKMP.shape[-1]
    mask_S1N1L = mask_SNL[:, None, :, None]
    # Masked into place, and softmax where the scores are: what is written twice leaves the processor's cache.
    score_SKNGL = score_SKMP.new_empty(*own_SKNGT.shape[:-1], n_both, dtype=torch.float32)
    torch.add(own_SKNGT, mask_S1N1L[..., :n_own], out=score_SKNGL[..., :n_own])
    score_SKNGP = score_SKMP.unflatten(2, own_SKNGT.shape[2:4])
    torch.add(score_SKNGP, mask_S1N1L[..., n_own:n_both], out=score_SKNGL[..., n_own:])
    return torch.softmax(score_SKNGL, -1, out=score_SKNGL if score_SKNGL.device.type == "cpu" else None)


AttentionInterface.register(SHARED, shared_attention)


# ---------------------------------------------------------------------------------------------------------------------
# Passes
# ---------------------------------------------------------------------------------------------------------------------


def slot_cache(policy: Policy) -> SlotCache:
    config = policy.model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return SlotCache(config.num_hidden_layers, kv_heads, head_size, policy.dtype, policy.device)


def fill(
    policy: Policy, cache: SlotCache, slots: slice, ids_RS: np.ndarray, position_RS: np.ndarray, *, copy: bool
) -> Tensor:
    """Run tokens into neighbouring slots, at `position_RS`; returns post-norm hidden states [R, S, H].

    `copy`: attention reads copies, so that its numbers cannot depend on where in the cache something lies.
    """
    longest = int(position_RS.max()) + 1
    query_RS = torch.from_numpy(position_RS).to(policy.device)
    cache.fill(slots, query_RS, longest, copy=copy)
    return _body(policy, cache, ids_RS, query_RS, torch.arange(longest, device=policy.device)[None])


def decode(policy: Policy, cache: SlotCache, ids_R: Sequence[int], own_R: Sequence[int], *, shared: bool) -> Tensor:
    """Run one token a row, row r's as the own token number `own_R[r]`; returns post-norm hidden states [R, H].

    `shared`: by `shared_attention`; else the model's own attention reads, row by row, prefix and own tokens one behind
    the other.
    """
    device = policy.device
    own = torch.tensor(own_R, device=device)
    length_R1 = torch.tensor([cache.lengths[slot] for slot in cache.slots], device=device)[:, None]
    # A multiple of 16 when shared: torch multiplies smaller matrices by a slower path.
    longest = (max(cache.lengths), max(own_R) // 16 * 16 + 16 if shared else max(own_R) + 1)
    cache.decode(own, longest, whole=not shared)
    prefix_P = torch.arange(longest[0], device=device)
    key_RP = torch.where(prefix_P < length_R1, prefix_P, NOWHERE)
    key_RT = length_R1 + torch.arange(longest[1], device=device)
    key_RL = torch.cat([key_RT, key_RP] if shared else [key_RP, key_RT], dim=1)
    ids_R1 = np.array(ids_R, dtype=np.int64)[:, None]
    query_R1 = length_R1 + own[:, None]
    if not shared:
        return _body(policy, cache, ids_R1, query_R1, key_RL)[:, 0]
    with attention_by(policy.model, SHARED):
        return _body(policy, cache, ids_R1, query_R1, key_RL, shared=cache.sharing())[:, 0]


def _body(policy: Policy, cache: SlotCache, ids: np.ndarray, query_RS: Tensor, key_RL: Tensor, **more: Any) -> Tensor:
    """One forward of tokens at positions `query_RS` that see keys at positions `key_RL` up to their own."""
    return policy.body(
        torch.from_numpy(ids).to(policy.device),
        position_ids=query_RS.clamp(max=policy.max_context - 1),
        attention_mask=_masks(policy, query_RS, key_RL),
        past_key_values=cache,
        **more,
    )


def _masks(policy: Policy, query_RS: Tensor, key_RL: Tensor) -> Tensor | dict[str, Tensor]:
    """Additive masks [R, 1, S, L]: one, or one a kind of layer where some see a window of the last tokens alone.

    Additive, for a boolean mask would be turned into this one in every layer.
    """
    config = policy.model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window: int | None = getattr(config, "sliding_window", None)
    slides = window is not None and (not kinds or "sliding_attention" in kinds) and int(query_RS.max()) >= window
    ahead_RSL = key_RL[:, None] > query_RS[:, :, None]
    if window is None or not slides:
        return _additive(ahead_RSL, policy.dtype)
    sliding = _additive(ahead_RSL | (key_RL[:, None] <= query_RS[:, :, None] - window), policy.dtype)
    if kinds <= {"sliding_attention"}:
        return sliding
    return {kind: sliding if kind == "sliding_attention" else _additive(ahead_RSL, policy.dtype) for kind in kinds}


def _additive(unseen_RSL: Tensor, dtype: torch.dtype) -> Tensor:
    mask_RSL = torch.zeros(unseen_RSL.shape, dtype=dtype, device=unseen_RSL.device)
    return mask_RSL.masked_fill_(unseen_RSL, -torch.inf)[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# May a model share?
# ---------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def can_share(policy: Policy) -> bool:
    """Whether `shared_attention` computes what the model's own attention does: tried on three rows of seven tokens.

    Its distance from a plain forward must be that of the ordinary pass over the same cache, but for rounding.
    """
    if decoder_of(policy.model).config._attn_implementation != "sdpa":
        return False
    rows = embedding_rows(policy.model)
    tokens = [(7 * i + 1) % rows for i in range(14)]
    prefixes, owns = [tokens[:5], tokens[5:8]], [tokens[8:10], tokens[10:12], tokens[12:]]
    texts = [prefixes[0] + owns[0], prefixes[0] + owns[1], prefixes[1] + owns[2]]
    try:
        plain = torch.stack([policy.body(torch.tensor([t], device=policy.device))[0, -1] for t in texts]).double()
        apart, together = (_decoded(policy, prefixes, owns, shared=shared) for shared in (False, True))
    except Exception:  # a model's own code meets what it does not know: every failure says no
        return False
    rounding = 16 * torch.finfo(policy.dtype).eps * plain.norm()
    return bool((together - plain).norm() <= 4 * (apart - plain).norm() + rounding)


def _decoded(policy: Policy, prefixes: list[list[int]], owns: list[list[int]], *, shared: bool) -> Tensor:
    """Hidden states [3, H] of the last tokens: two prefixes filled in, the first one with two rows."""
    cache = slot_cache(policy)
    cache.prefixes.reserve(2, 5)
    cache.own.reserve(3, 2)
    for slot, prefix in enumerate(prefixes):
        fill(policy, cache, slice(slot, slot + 1), np.array([prefix]), np.arange(len(prefix))[None], copy=False)
    cache.add([len(p) for p in prefixes], [2, 1])
    for i in (0, 1):
        hidden_RH = decode(policy, cache, [own[i] for own in owns], [i] * 3, shared=shared)
    return hidden_RH.double()
