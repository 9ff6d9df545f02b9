"""Tokens are drawn by the inverse of the cumulative distribution, in two looks that must amount to one."""

from __future__ import annotations

import pytest
import torch

from treepref.engines.sampling import BLOCK, sample


def one_look(logp_BV, uniform_B):
    sums = logp_BV.double().exp().cumsum(-1)
    return torch.searchsorted(sums, (uniform_B * sums[:, -1])[:, None], right=True)[:, 0]


def draw(logp_BV, uniform_B):
    ones = torch.ones(len(logp_BV))
    return sample(logp_BV, ones, ones, uniform_B)


@pytest.mark.parametrize("size", [2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
@pytest.mark.parametrize("sharpness", [0.1, 3.0, 30.0])
def test_same_token_as_in_one_look(size, sharpness):
    generator = torch.Generator().manual_seed(size)
    logits = sharpness * torch.randn(500, size, generator=generator)
    uniform = torch.rand(500, generator=generator, dtype=torch.double)
    token, logp, behaviour = draw(logits, uniform)
    expected = one_look(torch.log_softmax(logits, -1), uniform)
    assert (token != expected).sum() <= 1  # a threshold within rounding of a token's edge
    exact = torch.log_softmax(logits.double(), -1).gather(-1, token[:, None])[:, 0]
    assert torch.allclose(logp.double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(logp, behaviour)


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("possible", [[0], [3 * BLOCK + 6], [BLOCK - 1, BLOCK], [5, BLOCK + 5, 3 * BLOCK]])
def test_a_token_without_probability_is_never_drawn(uniform, possible):
    logits = torch.full((1, 3 * BLOCK + 7), -torch.inf)
    logits[0, possible] = torch.randn(len(possible), generator=torch.Generator().manual_seed(1))
    token, _, _ = draw(logits, torch.tensor([uniform], dtype=torch.double))
    assert token.item() in possible
    if uniform == 0.0:
        assert token.item() == possible[0]
    if uniform == 1 - 2.0**-53:
        assert token.item() == possible[-1]
