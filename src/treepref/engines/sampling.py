"""Sampling next tokens with one random stream a sample. Knows no model and no request.

A sample's t-th token depends on its seed and t alone, never on the batch that it happens to share.
"""

from __future__ import annotations

import numpy as np
import torch

BLOCK = 256
"""Tokens whose probabilities are summed before any single one is looked at."""
CPU_ROWS = 16
"""Rows drawn at once on a CPU: their probabilities stay in its cache, and their memory is used again for the next."""
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


def sample(
    logits_BV: torch.Tensor, temperature_B: torch.Tensor, top_p_B: torch.Tensor, uniform_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw a token a row by the inverse of its cumulative distribution.

    Temperature 0 takes the most probable token (the first of equals). Returns tokens [B], log-probs of the untempered
    policy [B] and log-probs of the distribution that was sampled [B] (0 where the choice was greedy).
    """
    rows = CPU_ROWS if logits_BV.device.type == "cpu" else max(1, len(logits_BV))
    parts = zip(*(x.split(rows) for x in (logits_BV, temperature_B, top_p_B, uniform_B)), strict=True)
    token, logp, behaviour = zip(*(_sample(*part) for part in parts), strict=True)
    return torch.cat(token), torch.cat(logp), torch.cat(behaviour)


def _sample(
    logits_BV: torch.Tensor, temperature_B: torch.Tensor, top_p_B: torch.Tensor, uniform_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logp_BV = torch.log_softmax(logits_BV.float(), dim=-1)
    greedy_B = temperature_B == 0
    if bool(greedy_B.all()):
        token_B = logp_BV.argmax(-1)
        return token_B, _pick(logp_BV, token_B), torch.zeros_like(uniform_B)
    plain = bool((temperature_B == 1).all()) and bool((top_p_B >= 1).all())
    if plain:
        tempered_BV = logp_BV
    else:
        scale_B = torch.where(greedy_B, torch.ones_like(temperature_B), temperature_B)
        tempered_BV = torch.log_softmax(logits_BV.float() / scale_B[:, None], dim=-1)
        tempered_BV = _nucleus(tempered_BV, top_p_B)
    token_B = _draw(tempered_BV, uniform_B.double())
    if plain:
        logp_B = _pick(logp_BV, token_B)
        return token_B, logp_B, logp_B
    token_B = torch.where(greedy_B, logp_BV.argmax(-1), token_B)
    behaviour_B = torch.where(greedy_B, torch.zeros_like(temperature_B), _pick(tempered_BV, token_B))
    return token_B, _pick(logp_BV, token_B), behaviour_B


def _draw(logp_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """First the block of tokens, then the token in it: over the whole vocabulary there is one pass in float32.

    The running sums that are searched are in float64, and thresholds stay inside them, so a token without probability
    is never drawn.
    """
    p_BV = logp_BV.exp()
    if p_BV.shape[-1] % BLOCK:
        p_BV = torch.nn.functional.pad(p_BV, (0, -p_BV.shape[-1] % BLOCK))
    p_BKW = p_BV.unflatten(-1, (-1, BLOCK))
    mass_BK = p_BKW.sum(-1).double()
    block_B, left_B = _search(mass_BK, uniform_B * mass_BK.sum(-1))
    row_B = torch.arange(len(p_BKW), device=p_BKW.device)
    place_B, _ = _search(p_BKW[row_B, block_B].double(), left_B)
    return block_B * BLOCK + place_B


def _search(mass_BN: torch.Tensor, threshold_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each row's running sum first exceeds its threshold, and what of the threshold is left there."""
    sum_BN = mass_BN.cumsum(-1)
    threshold_B = torch.minimum(threshold_B.clamp(min=0), sum_BN[:, -1] * (1 - 1e-15))
    index_B1 = torch.searchsorted(sum_BN, threshold_B[:, None], right=True)
    before_B = (sum_BN - mass_BN).gather(-1, index_B1).squeeze(-1)
    return index_B1.squeeze(-1), threshold_B - before_B


def _nucleus(logp_BV: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """Keep the smallest set of most probable tokens whose mass reaches top-p, and renormalise."""
    if bool((top_p_B >= 1).all()):
        return logp_BV
    sorted_BV, order_BV = logp_BV.sort(dim=-1, descending=True)
    limit_B = torch.where(top_p_B >= 1, torch.full_like(top_p_B, torch.inf), top_p_B)
    mass_before_BV = sorted_BV.exp().cumsum(-1) - sorted_BV.exp()
    drop_BV = torch.zeros_like(logp_BV, dtype=torch.bool).scatter(-1, order_BV, mass_before_BV >= limit_B[:, None])
    return torch.log_softmax(logp_BV.masked_fill(drop_BV, -torch.inf), dim=-1)


def _pick(values_BV: torch.Tensor, token_B: torch.Tensor) -> torch.Tensor:
    return values_BV.gather(-1, token_B[:, None]).squeeze(-1)
