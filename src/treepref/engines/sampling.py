"""Sampling next tokens with one random stream a sample. Knows no model and no request.

A sample's t-th token depends on its seed and t alone, never on the batch that it happens to share.
"""

from __future__ import annotations

import numpy as np
import torch

BLOCK = 256
"""Tokens whose probabilities are summed before any single one is looked at."""
CPU_ROWS = 16
"""Rows whose probabilities are summed at once on a CPU: they stay in its cache, and their memory serves the next."""
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) from (seed, counter): SplitMix64 (Steele et al. 2014) read at its counter-th output."""
    with np.errstate(over="ignore"):
        z = seeds.astype(np.uint64) + (counters.astype(np.uint64) + np.uint64(1)) * _STEP
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def advanced(seed: int, draws: int) -> int:
    """The seed whose stream is this one's without its first `draws` numbers, in [0, 2^64)."""
    return (seed + draws * int(_STEP)) % 2**64


def sample(
    logits_BV: torch.Tensor, temperature_B: torch.Tensor, top_p_B: torch.Tensor, uniform_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw a token a row by the inverse of its cumulative distribution.

    Temperature 0 takes the most probable token (the first of equals). Returns tokens [B], log-probs of the untempered
    policy [B] and log-probs of the distribution that was sampled [B] (0 where the choice was greedy).
    """
    if bool((temperature_B == 1).all()) and bool((top_p_B >= 1).all()):
        token_B, logp_B = _draw(logits_BV, uniform_B)
        return token_B, logp_B, logp_B
    parts = zip(*(_parts(x) for x in (logits_BV, temperature_B, top_p_B, uniform_B)), strict=True)
    token, logp, behaviour = zip(*(_tempered(*part) for part in parts), strict=True)
    return torch.cat(token), torch.cat(logp), torch.cat(behaviour)


def _parts(of_rows_BX: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return of_rows_BX.split(CPU_ROWS if of_rows_BX.device.type == "cpu" else max(1, len(of_rows_BX)))


def _tempered(
    logits_BV: torch.Tensor, temperature_B: torch.Tensor, top_p_B: torch.Tensor, uniform_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`sample` where some rows are greedy, tempered or cut."""
    logp_BV = torch.log_softmax(logits_BV.float(), dim=-1)
    greedy_B = temperature_B == 0
    best_B = logp_BV.argmax(-1)
    if bool(greedy_B.all()):
        return best_B, _pick(logp_BV, best_B), torch.zeros_like(temperature_B)
    scale_B = torch.where(greedy_B, torch.ones_like(temperature_B), temperature_B)
    drawn_B, drawn_logp_B = _draw(_nucleus(logits_BV.float() / scale_B[:, None], top_p_B), uniform_B)
    token_B = torch.where(greedy_B, best_B, drawn_B)
    behaviour_B = torch.where(greedy_B, torch.zeros_like(drawn_logp_B), drawn_logp_B)
    return token_B, _pick(logp_BV, token_B), behaviour_B


def _draw(logits_BV: torch.Tensor, uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] and their log-probs [B]. First the block of tokens, then the token in it.

    The whole vocabulary is seen once, to sum each block; probabilities inside the block that was drawn are computed
    again. The running sums that are searched are in float64, and thresholds stay inside them, so a token without
    probability is never drawn.
    """
    mass_BK = _block_masses(logits_BV).double()
    mass_BK = mass_BK / mass_BK.sum(-1, keepdim=True)
    block_B, left_B = _search(mass_BK, uniform_B.double())
    column_BW = block_B[:, None] * BLOCK + torch.arange(BLOCK, device=block_B.device)
    inside_BW = logits_BV.gather(-1, column_BW.clamp(max=logits_BV.shape[-1] - 1)).double()
    inside_BW = inside_BW.masked_fill(column_BW >= logits_BV.shape[-1], -torch.inf)
    p_BW = inside_BW.softmax(-1) * mass_BK.gather(-1, block_B[:, None])
    place_B, _ = _search(p_BW, left_B)
    return block_B * BLOCK + place_B, _pick(p_BW, place_B).log().float()


def _block_masses(logits_BV: torch.Tensor) -> torch.Tensor:
    """Probability of each block of BLOCK tokens [B, blocks], in float32."""
    parts, vocabulary = _parts(logits_BV), logits_BV.shape[-1]
    # One memory for all parts: what is taken anew for each may cost the system more than the sums do.
    room_BV = logits_BV.new_zeros(len(parts[0]), -(-vocabulary // BLOCK) * BLOCK, dtype=torch.float32)
    masses = []
    for part_BV in parts:
        p_BV = room_BV[: len(part_BV)]
        torch.softmax(part_BV, -1, dtype=torch.float32, out=p_BV[:, :vocabulary])
        masses.append(p_BV.unflatten(-1, (-1, BLOCK)).sum(-1))
    return torch.cat(masses)


def _search(mass_BN: torch.Tensor, threshold_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each row's running sum first exceeds its threshold, and what of the threshold is left there."""
    sum_BN = mass_BN.cumsum(-1)
    threshold_B = torch.minimum(threshold_B.clamp(min=0), sum_BN[:, -1] * (1 - 1e-15))
    index_B1 = torch.searchsorted(sum_BN, threshold_B[:, None], right=True)
    before_B = (sum_BN - mass_BN).gather(-1, index_B1).squeeze(-1)
    return index_B1.squeeze(-1), threshold_B - before_B


def _nucleus(logits_BV: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """Logits of the smallest set of most probable tokens whose mass reaches top-p; all others are -inf."""
    if bool((top_p_B >= 1).all()):
        return logits_BV
    sorted_BV, order_BV = logits_BV.softmax(-1).sort(dim=-1, descending=True)
    limit_B = torch.where(top_p_B >= 1, torch.full_like(top_p_B, torch.inf), top_p_B)
    mass_before_BV = sorted_BV.cumsum(-1) - sorted_BV
    drop_BV = torch.zeros_like(logits_BV, dtype=torch.bool).scatter(-1, order_BV, mass_before_BV >= limit_B[:, None])
    return logits_BV.masked_fill(drop_BV, -torch.inf)


def _pick(values_BV: torch.Tensor, token_B: torch.Tensor) -> torch.Tensor:
    return values_BV.gather(-1, token_B[:, None]).squeeze(-1)
