"""Objectives against numbers worked out by hand, and their gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from treepref.training.objectives import (
    OBJECTIVES,
    Coefficients,
    Counts,
    LossBatch,
    cdpo,
    cdpo_mean,
    dpo,
    health,
    ipo,
    ipo_mean,
    log_ratios,
    sft,
    svpo,
    total,
    untrained_preference_loss,
)


def reals(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.fixture
def batch() -> LossBatch:
    """Nodes: 0 the prompt, 1 and 2 a winner's two steps, 3 its rival, 4 trained by SFT alone.

    log π − log π_ref per token:  node 1: +0.5, +0.1   node 2: +0.4   node 3: −1.0, +0.2, −0.2 (forced: does not count)
    Pair 0: {1, 2} over {3}: Δ(w) = 0.5 + 0.1 + 0.4 = 1.0; Δ(l) = −1.0 + 0.2 = −0.8; h = 1.8
    Pair 1: {1} over {3}:    Δ(w) = 0.6;                   Δ(l) = −0.8;               h = 1.4
    """
    ref_T = reals(-1.0, -2.0, -1.5, -1.0, -0.5, -3.0, math.nan)
    return LossBatch(
        logp_T=reals(-0.5, -1.9, -1.1, -2.0, -0.3, -3.2, -4.0),
        node_T=ints(1, 1, 2, 3, 3, 3, 4),
        n_nodes=5,
        ref_T=ref_T,
        weight_T=reals(1, 1, 1, 1, 1, 0, 1),
        winner_nodes_W=ints(1, 2, 1),
        winner_pair_W=ints(0, 0, 1),
        loser_nodes_L=ints(3, 3),
        loser_pair_L=ints(0, 1),
        winner_last_P=ints(2, 1),
        loser_last_P=ints(3, 3),
        alpha_P=reals(0.25, 0.0),
        pair_weight_P=reals(1.0, 2.0),
        value_N=reals(0.0, 0.5, 0.9, 0.3, 0.7),
        target_N=reals(0.2, 1.0, math.nan, -0.5, math.nan),
        has_target_N=torch.tensor([True, True, False, True, False]),
        sft_N=reals(0, 1, 0, 0, 0.5),
    )


C = Coefficients(beta=0.5, value_weight=0.1, margin_weight=0.2, margin=0.5, sft_weight=0.3)


def test_log_ratios_leave_forced_tokens_out(batch: LossBatch) -> None:
    chosen, rejected = log_ratios(batch)
    assert chosen.tolist() == pytest.approx([1.0, 0.6])
    assert rejected.tolist() == pytest.approx([-0.8, -0.8])


def test_dpo_by_hand(batch: LossBatch) -> None:
    # −log σ(βh) = log(1 + e^(−βh)); βh = 0.9 and 0.7; pair weights 1 and 2
    # log(1 + e^−0.9) = 0.341154, log(1 + e^−0.7) = 0.403186; sum = 0.341154 + 2 · 0.403186 = 1.147526
    term = dpo(batch, C)["preference"]
    assert term.sum.item() == pytest.approx(1.147526, abs=1e-6)
    assert total(dpo(batch, C), Counts(pairs=3)).item() == pytest.approx(1.147526 / 3, abs=1e-6)


def test_cdpo_by_hand(batch: LossBatch) -> None:
    # pair 0, α = 1/4: 0.75 · 0.341154 + 0.25 · log(1 + e^0.9) = 0.75 · 0.341154 + 0.25 · 1.241154 = 0.566154
    # pair 1, α = 0: 0.403186, weight 2
    assert cdpo(batch, C)["preference"].sum.item() == pytest.approx(0.566154 + 2 * 0.403186, abs=1e-6)


def test_cdpo_mean_by_hand(batch: LossBatch) -> None:
    # lengths that count: winners 3 and 2 tokens, loser 2. h = 1.0/3 + 0.4 = 0.733333; 0.6/2 + 0.4 = 0.7
    # pair 0, α = 1/4, βh = 0.366667: 0.75 · log(1 + e^−0.366667) + 0.25 · log(1 + e^0.366667)
    #       = 0.75 · 0.526526 + 0.25 · 0.893193 = 0.618193
    # pair 1, α = 0, βh = 0.35: log(1 + e^−0.35) = 0.533382, weight 2
    assert cdpo_mean(batch, C)["preference"].sum.item() == pytest.approx(0.618193 + 2 * 0.533382, abs=1e-6)


def test_ipo_by_hand(batch: LossBatch) -> None:
    # 1/(2β) = 1; (1.8 − 1)² + 2·(1.4 − 1)² = 0.64 + 0.32 = 0.96
    assert ipo(batch, C)["preference"].sum.item() == pytest.approx(0.96)


def test_ipo_mean_by_hand(batch: LossBatch) -> None:
    # lengths that count: winners 3 and 2 tokens, loser 2. h = 1.0/3 + 0.4 = 0.733333; 0.6/2 + 0.4 = 0.7
    # (0.733333 − 1)² + 2·(0.7 − 1)² = 0.071111 + 0.18 = 0.251111
    assert ipo_mean(batch, C)["preference"].sum.item() == pytest.approx(0.2511111, abs=1e-6)


def test_sft_by_hand(batch: LossBatch) -> None:
    # node 1: 0.5 + 1.9 = 2.4 with weight 1; node 4: 4.0 with weight 0.5; tokens: 2·1 + 1·0.5 = 2.5
    assert sft(batch, C)["sft"].sum.item() == pytest.approx(4.4)
    assert total(sft(batch, C), Counts(tokens=2.5)).item() == pytest.approx(1.76)


def test_svpo_by_hand(batch: LossBatch) -> None:
    terms = svpo(batch, C)
    # value: (0 − 0.2)² + (0.5 − 1)² + (0.3 + 0.5)² = 0.04 + 0.25 + 0.64 = 0.93, 3 targets
    assert terms["value"].sum.item() == pytest.approx(0.93)
    # margin: pair 0: 0.5 − (0.9 − 0.3) < 0 → 0; pair 1: 0.5 − (0.5 − 0.3) = 0.3, weight 2
    assert terms["margin"].sum.item() == pytest.approx(0.6)
    # L = 1.372526/3 + 0.1 · 0.93/3 + 0.2 · 0.6/3 + 0.3 · 4.4/2.5 = 0.457509 + 0.031 + 0.04 + 0.528
    loss = total(terms, Counts(pairs=3, values=3, tokens=2.5))
    assert loss.item() == pytest.approx(0.457509 + 0.031 + 0.04 + 0.528, abs=1e-6)


def test_health_by_hand(batch: LossBatch) -> None:
    means = {name: (s / n).item() for name, (s, n) in health(batch, C).items() if n > 0}
    assert means["reward_margin"] == pytest.approx(0.5 * (1.8 + 1.4) / 2)
    assert means["reward_accuracy"] == 1.0
    assert means["chosen_logratio"] == pytest.approx(0.8)
    assert means["rejected_logratio"] == pytest.approx(-0.8)
    assert means["chosen_fell"] == 0.0
    assert (means["chosen_tokens"], means["rejected_tokens"]) == (2.5, 2.0)
    # e^d − 1 − d at d = 0.5, 0.1, 0.4, −1.0, 0.2; the forced token and the one without reference are left out
    k3 = [math.exp(d) - 1 - d for d in (0.5, 0.1, 0.4, -1.0, 0.2)]
    assert means["kl"] == pytest.approx(sum(k3) / 5)
    assert means["nll"] == pytest.approx(1.76)
    assert means["value_mse"] == pytest.approx(0.31)
    assert means["value_rank_accuracy"] == 1.0  # 0.9 > 0.3 and 0.5 > 0.3


def test_a_tie_counts_half(batch: LossBatch) -> None:
    tied = replace(batch, ref_T=batch.logp_T.clone(), value_N=torch.zeros(5, dtype=torch.float64))
    found = health(tied, C)
    assert found["reward_accuracy"][0].item() == found["value_rank_accuracy"][0].item() == 1.0  # of 2 pairs


@pytest.mark.parametrize("name", ["dpo", "cdpo", "cdpo_mean", "ipo", "ipo_mean", "svpo"])
def test_reference_equal_to_policy_gives_the_untrained_loss(name: str, batch: LossBatch) -> None:
    terms = OBJECTIVES[name](replace(batch, ref_T=batch.logp_T.clone()), C)
    expected = untrained_preference_loss(name, C)
    assert expected == (1.0 if name.startswith("ipo") else pytest.approx(math.log(2)))
    assert terms["preference"].sum.item() / 3 == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_gradients(name: str, batch: LossBatch) -> None:
    counts = Counts(pairs=3, values=3, tokens=2.5)

    def loss(logp_T: torch.Tensor, value_N: torch.Tensor) -> torch.Tensor:
        return total(OBJECTIVES[name](replace(batch, logp_T=logp_T, value_N=value_N), C), counts) + value_N.sum() * 0

    logp_T, value_N = (x.clone().requires_grad_() for x in (batch.logp_T, batch.value_N))
    assert torch.autograd.gradcheck(loss, (logp_T, value_N))
    gradient = torch.autograd.grad(loss(logp_T, value_N), logp_T)[0]
    assert gradient[5] == 0.0, "a forced token carries no loss"
    assert gradient.abs().sum() > 0


def test_micro_batches_add_up(batch: LossBatch) -> None:
    # one loss over two copies of the batch = the sum of two losses divided by the counts of both
    one = Counts(pairs=3, values=3, tokens=2.5)
    part = total(svpo(batch, C), one + one)
    assert (part + part).item() == pytest.approx(total(svpo(batch, C), one).item())


def test_a_batch_without_pairs_has_a_loss_of_zero_with_a_graph() -> None:
    logp_T = reals(-1.0, -2.0).requires_grad_()
    batch = LossBatch(logp_T, ints(0, 0), 1)
    loss = total(svpo(batch, C), Counts())
    loss.backward()
    assert loss.item() == 0.0
    assert logp_T.grad.tolist() == [0.0, 0.0]


def test_missing_reference_and_foreign_counts_are_refused(batch: LossBatch) -> None:
    with pytest.raises(ValueError, match="reference"):
        dpo(replace(batch, ref_T=None), C)
    with pytest.raises(ValueError, match="counts"):
        total(dpo(batch, C), Counts())
