"""Sampling next tokens with one random stream a sample. Knows no model and no request.

A sample's t-th token depends on its seed and t alone, never on the batch that it happens to share.
"""

from __future__ import annotations

import numpy as np
import torch

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
    cumulative_BV = tempered_BV.double().exp().cumsum(-1)
    # The threshold stays below the total, so a token with probability is always found.
    threshold_B = uniform_B.double() * cumulative_BV[:, -1]
    token_B = torch.searchsorted(cumulative_BV, threshold_B[:, None], right=True).squeeze(-1)
    token_B = token_B.clamp_(max=logits_BV.shape[-1] - 1)
    if plain:
        logp_B = _pick(logp_BV, token_B)
        return token_B, logp_B, logp_B
    token_B = torch.where(greedy_B, logp_BV.argmax(-1), token_B)
    behaviour_B = torch.where(greedy_B, torch.zeros_like(temperature_B), _pick(tempered_BV, token_B))
    return token_B, _pick(logp_BV, token_B), behaviour_B


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
