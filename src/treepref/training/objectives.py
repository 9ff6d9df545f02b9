"""Losses as pure functions of token log-probs and values: sft, dpo, cdpo, cdpo_mean, ipo, ipo_mean, svpo.

This file knows no tree, no model, no tokenizer and no optimizer. A preference pair is two lists of node ids, so step
pairs, solution pairs and whole paths are one case; a node is nothing but an id that some tokens carry.

Normalisation. Terms of one loss have different counts (pairs, value targets, trained tokens), and a step's examples may
be spread over many micro-batches and ranks. So an objective returns *sums*, and `total` divides each by the count of
the whole optimizer step, which is known from the data before any forward (`Counts`). The micro-batches' losses then
simply add up to the step's loss, however they were cut.

Dimension suffixes: T trained tokens, N nodes, P pairs, W and L the incidences of winners and losers.

Papers: DPO = arXiv 2305.18290; cDPO as used by MCTS-DPO = arXiv 2405.00451; IPO = arXiv 2310.12036; SVPO = arXiv
2406.10858.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from treepref.config import TrainConfig
from treepref.errors import RecipeError
from treepref.workers.functions import load_function

DEFAULTS = TrainConfig()
"""The one set of defaults of training: a recipe's."""
Per = Literal["pairs", "values", "tokens"]
"""What a term is averaged over."""


@dataclass(frozen=True, slots=True)
class LossBatch:
    """Everything that a loss may look at. Node ids run from 0 to `n_nodes` - 1.

    Tokens that need no log-prob (context alone) are simply absent from the token dimension.
    """

    logp_T: Tensor
    """Policy log-prob of each trained token; differentiable."""
    node_T: Tensor
    """Node id of each token (int64)."""
    n_nodes: int
    ref_T: Tensor | None = None
    """Reference log-prob of each token; the preference losses need it. NaN at tokens of nodes in no pair: unknown."""
    weight_T: Tensor | None = None
    """0 where a tool forced the token, else 1. None: all count."""
    winner_nodes_W: Tensor | None = None
    """Nodes of the winners, flat; `winner_pair_W` says which pair each belongs to. None: no pairs."""
    winner_pair_W: Tensor | None = None
    loser_nodes_L: Tensor | None = None
    loser_pair_L: Tensor | None = None
    winner_last_P: Tensor | None = None
    """The last node of each winner: where V(w) is read."""
    loser_last_P: Tensor | None = None
    alpha_P: Tensor | None = None
    """Label smoothing of each pair, 0 to 0.5."""
    pair_weight_P: Tensor | None = None
    value_N: Tensor | None = None
    """V at each node's last token, in [-1, 1]; differentiable."""
    target_N: Tensor | None = None
    """What V should be. Read only where `has_target_N`."""
    has_target_N: Tensor | None = None
    sft_N: Tensor | None = None
    """Weight of the NLL of each node's tokens; 0: none."""

    @property
    def n_pairs(self) -> int:
        return 0 if self.alpha_P is None else len(self.alpha_P)


def known(part: Tensor | None) -> Tensor:
    """A part of a batch that its pairs, or its values, bring along: an objective asks only for what is there."""
    assert part is not None, "this batch has no such part"
    return part


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Constants of the objectives (methods: SVPO §1, MCTS-DPO §2)."""

    beta: float = DEFAULTS.beta
    value_weight: float = DEFAULTS.value_weight
    """a: mean squared error of V against its target."""
    margin_weight: float = DEFAULTS.margin_weight
    """b: ranking loss on the values of a pair."""
    margin: float = DEFAULTS.margin
    """m: by how much V(w) should exceed V(l)."""
    sft_weight: float = DEFAULTS.sft_weight
    """c: NLL of the winner, per token."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Denominators of a whole optimizer step, over all its micro-batches and ranks."""

    pairs: float = 0.0
    """Sum of the pairs' weights."""
    values: float = 0.0
    """Nodes with a value target."""
    tokens: float = 0.0
    """Sum of the SFT weights of the tokens that count."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.pairs + other.pairs, self.values + other.values, self.tokens + other.tokens)


class Term(NamedTuple):
    """One summand of a loss: `weight · sum / (the step's count of `per`)`."""

    sum: Tensor
    per: Per
    weight: float = 1.0


Terms = dict[str, Term]
Objective = Callable[[LossBatch, Coefficients], Terms]
Metrics = dict[str, tuple[Tensor, Tensor]]
"""Name → (sum, count), so that metrics of micro-batches and ranks add up too."""


def total(terms: Mapping[str, Term], counts: Counts) -> Tensor:
    """The part of the step's loss that these terms hold, already divided by the step's counts. Scalar.

    Raises:
        ValueError: a term is not zero although the step's count of it is (the counts belong to other data).
    """
    loss = torch.stack([term.sum for term in terms.values()]).sum() * 0.0  # keeps the graph when every count is 0
    for name, term in terms.items():
        count = getattr(counts, term.per)
        if count > 0:
            loss = loss + term.weight * term.sum / count
        elif term.sum.detach().item() != 0.0:
            raise ValueError(f"term {name!r} has a sum but the step counts no {term.per}: counts of other data?")
    return loss


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


def node_sums(values_T: Tensor, batch: LossBatch) -> Tensor:
    """Sum a token quantity over each node's tokens that count. [T] → [N]"""
    if batch.weight_T is not None:
        values_T = values_T * batch.weight_T
    return values_T.new_zeros(batch.n_nodes).index_add(0, batch.node_T, values_T)


def side_sums(values_N: Tensor, nodes: Tensor, pair: Tensor, n_pairs: int) -> Tensor:
    """Sum a node quantity over one side of each pair. [N] → [P]"""
    return values_N.new_zeros(n_pairs).index_add(0, pair, values_N[nodes])


def log_ratios(batch: LossBatch, *, per_token: bool = False) -> tuple[Tensor, Tensor]:
    """Δ(w) and Δ(l) of every pair: Σ_tokens [log π − log π_ref] (methods, shared notation). ([P], [P])

    `per_token` divides each by its number of tokens that count.

    Raises:
        ValueError: the batch has no pairs or no reference log-probs.
    """
    if batch.winner_nodes_W is None:
        raise ValueError("this objective compares pairs, and the batch has none")
    if batch.ref_T is None:
        raise ValueError("this objective needs reference log-probs (ref_T)")
    delta_N = node_sums(batch.logp_T - batch.ref_T, batch)
    chosen_P, rejected_P = _sides(delta_N, batch)
    if per_token:
        chosen_len_P, rejected_len_P = pair_lengths(batch)
        chosen_P, rejected_P = chosen_P / chosen_len_P.clamp(min=1), rejected_P / rejected_len_P.clamp(min=1)
    return chosen_P, rejected_P


def pair_lengths(batch: LossBatch) -> tuple[Tensor, Tensor]:
    """Tokens that count on each side of every pair. ([P], [P])"""
    return _sides(node_sums(torch.ones_like(batch.logp_T), batch), batch)


def _sides(values_N: Tensor, batch: LossBatch) -> tuple[Tensor, Tensor]:
    return (
        side_sums(values_N, known(batch.winner_nodes_W), known(batch.winner_pair_W), batch.n_pairs),
        side_sums(values_N, known(batch.loser_nodes_L), known(batch.loser_pair_L), batch.n_pairs),
    )


def _weighted_sum(loss_P: Tensor, batch: LossBatch) -> Tensor:
    return (loss_P if batch.pair_weight_P is None else loss_P * batch.pair_weight_P).sum()


def _no_pairs(batch: LossBatch) -> bool:
    return batch.n_pairs == 0


def _zero(batch: LossBatch) -> Tensor:
    return batch.logp_T.sum() * 0.0


def _preference(batch: LossBatch, loss: Callable[[Tensor], Tensor], *, per_token: bool = False) -> Term:
    """Sum over pairs of a loss of h = Δ(w) − Δ(l).

    h is meant from the first token where the two sides differ. First tokens that siblings share need no care: both
    sides have the same log-ratio there, with the same gradient, so they cancel in h. (Not with `per_token`, where the
    lengths differ: there they count, as tokens of both sides.)
    """
    if _no_pairs(batch):
        return Term(_zero(batch), "pairs")
    chosen_P, rejected_P = log_ratios(batch, per_token=per_token)
    return Term(_weighted_sum(loss(chosen_P - rejected_P), batch), "pairs")


def _smoothed(h_P: Tensor, alpha_P: Tensor, beta: float) -> Tensor:
    # MCTS-DPO (arXiv 2405.00451), the loss of §2 of methods: −(1−α)·log σ(βh) − α·log σ(−βh)
    return -(1 - alpha_P) * logsigmoid(beta * h_P) - alpha_P * logsigmoid(-beta * h_P)


def _nll(batch: LossBatch, weight: float = 1.0) -> Term:
    if batch.sft_N is None:
        return Term(_zero(batch), "tokens", weight)
    return Term((node_sums(-batch.logp_T, batch) * batch.sft_N).sum(), "tokens", weight)


# ---------------------------------------------------------------------------------------------------------------------
# Objectives: each returns {name: Term}; `total` makes the loss of them
# ---------------------------------------------------------------------------------------------------------------------


def sft(batch: LossBatch, c: Coefficients = Coefficients()) -> Terms:
    """Negative log-likelihood of the tokens of nodes with an SFT weight; mean per token."""
    return {"sft": _nll(batch)}


def dpo(batch: LossBatch, c: Coefficients = Coefficients()) -> Terms:
    """−log σ(βh): DPO (arXiv 2305.18290, eq. 7); mean per pair. Ignores the pairs' smoothing."""
    return {"preference": _preference(batch, lambda h_P: -logsigmoid(c.beta * h_P))}


def cdpo(batch: LossBatch, c: Coefficients = Coefficients()) -> Terms:
    """Conservative DPO with each pair's own smoothing α (arXiv 2405.00451; methods §2); mean per pair."""
    return {"preference": _preference(batch, lambda h_P: _smoothed(h_P, known(batch.alpha_P), c.beta))}


def cdpo_mean(batch: LossBatch, c: Coefficients = Coefficients()) -> Terms:
    """`cdpo` with each side's log-ratio divided by its length; not the published form, which sums."""
    return {"preference": _preference(batch, lambda h_P: _smoothed(h_P, known(batch.alpha_P), c.beta), per_token=True)}


def ipo(batch: LossBatch, c: Coefficients = Coefficients()) -> Terms:
    """(h − 1/(2β))² with h of summed log-ratios: IPO as published (arXiv 2310.12036, eq. 17, τ = β); mean per pair."""
    return {"preference": _preference(batch, lambda h_P: (h_P - 1 / (2 * c.beta)) ** 2)}


def ipo_mean(batch: LossBatch, c: Coefficients = Coefficients()) -> Terms:
    """IPO with each side's log-ratio divided by its length, as some trainers do; not the published form."""
    return {"preference": _preference(batch, lambda h_P: (h_P - 1 / (2 * c.beta)) ** 2, per_token=True)}


def svpo(batch: LossBatch, c: Coefficients = Coefficients()) -> Terms:
    """Step preference + a·value regression + b·value ranking + c·NLL (arXiv 2406.10858; methods §1, Loss).

    The preference term is `cdpo`: with every α = 0 it is DPO. Without values the two value terms are absent.
    """
    terms = cdpo(batch, c)
    if batch.value_N is not None:
        terms["value"] = Term(_squared_error(batch), "values", c.value_weight)
        terms["margin"] = Term(_margin(batch, c.margin), "pairs", c.margin_weight)
    terms["sft"] = _nll(batch, c.sft_weight)
    return terms


def _squared_error(batch: LossBatch) -> Tensor:
    """Σ (V − Q)² over nodes with a target."""
    value_N = known(batch.value_N)
    if batch.target_N is None:
        return value_N.sum() * 0.0
    error_N = torch.where(known(batch.has_target_N), value_N - batch.target_N, 0.0)
    return (error_N**2).sum()


def _margin(batch: LossBatch, margin: float) -> Tensor:
    """Σ max(0, m − (V(w) − V(l))) over pairs; V at the last token of each side."""
    value_N = known(batch.value_N)
    if _no_pairs(batch):
        return value_N.sum() * 0.0
    gap_P = value_N[known(batch.winner_last_P)] - value_N[known(batch.loser_last_P)]
    return _weighted_sum(relu(margin - gap_P), batch)


OBJECTIVES: dict[str, Objective] = {
    "sft": sft,
    "dpo": dpo,
    "cdpo": cdpo,
    "cdpo_mean": cdpo_mean,
    "ipo": ipo,
    "ipo_mean": ipo_mean,
    "svpo": svpo,
}


def needs_reference(name: str) -> bool:
    """Whether an objective needs reference log-probs; a user's own is given them."""
    return name != "sft"


@cache
def objective_of(name: str) -> Objective:
    """An objective by name, or a user's `module:function` with the same signature.

    Raises RecipeError where it cannot be imported.
    """
    return OBJECTIVES[name] if name in OBJECTIVES else _told(load_function(name, "train.objective"), name)


def _told(own: Callable[..., Any], name: str) -> Objective:
    """A user's objective, its failures told for people."""

    def objective(batch: LossBatch, c: Coefficients) -> Terms:
        try:
            terms = own(batch, c)
        except Exception as error:
            raise RecipeError(f"train.objective {name} fails: {type(error).__name__}: {error}") from error
        sound = isinstance(terms, Mapping) and all(isinstance(term, Term) for term in terms.values())
        if not sound or not terms:
            raise RecipeError(f"train.objective {name} must return a mapping of names to Term(sum, per, weight)")
        return dict(terms)

    return objective


def untrained_preference_loss(name: str, c: Coefficients) -> float:
    """The mean preference loss where policy = reference, so h = 0: ln 2 whatever the smoothing, or 1/(4β²) for IPO."""
    if name in ("ipo", "ipo_mean"):
        return 1 / (4 * c.beta**2)
    return torch.log(torch.tensor(2.0, dtype=torch.float64)).item()


# ---------------------------------------------------------------------------------------------------------------------
# Health
# ---------------------------------------------------------------------------------------------------------------------


HEALTH = (
    "reward_margin",
    "reward_accuracy",
    "chosen_logratio",
    "rejected_logratio",
    "chosen_fell",
    "kl",
    "chosen_tokens",
    "rejected_tokens",
    "nll",
    "value_mse",
    "value_rank_accuracy",
)
"""Names of the health metrics; `health` says what they mean."""


@torch.no_grad()
def health(batch: LossBatch, c: Coefficients = Coefficients()) -> Metrics:
    """What to watch while preferences are learned. Every name is always there; a count of 0 means "not applicable".

    - reward_margin: β·h; reward_accuracy: share of pairs with h > 0 (a tie counts half)
    - chosen_logratio, rejected_logratio: Δ(w), Δ(l), summed over a side's tokens
    - chosen_fell: share of pairs whose winner is now less likely than under the reference
    - kl: estimate of KL(reference ‖ policy) per token, e^d − 1 − d with d = log π − log π_ref (never negative;
      unbiased on tokens that the reference sampled)
    - chosen_tokens, rejected_tokens: lengths of the sides
    - nll: per token, of the nodes with an SFT weight
    - value_mse; value_rank_accuracy: share of pairs with V(w) > V(l) (a tie counts half)
    """
    zero = batch.logp_T.detach().new_zeros(())
    metrics: Metrics = dict.fromkeys(HEALTH, (zero, zero))
    if batch.sft_N is not None:
        weight_N = node_sums(torch.ones_like(batch.logp_T), batch) * batch.sft_N
        metrics["nll"] = (_nll(batch).sum, weight_N.sum())
    if batch.ref_T is not None:
        d_T = batch.logp_T - batch.ref_T
        weight_T = torch.ones_like(d_T) if batch.weight_T is None else batch.weight_T
        weight_T = torch.where(d_T.isnan() & ~batch.logp_T.isnan(), 0.0, weight_T)
        metrics["kl"] = (((d_T.exp() - 1 - d_T).nan_to_num(0.0) * weight_T).sum(), weight_T.sum())
    if batch.n_pairs:
        metrics |= _pair_health(batch, c)
    if batch.value_N is not None and batch.has_target_N is not None:
        metrics["value_mse"] = (_squared_error(batch), batch.has_target_N.sum())
    return metrics


def _pair_health(batch: LossBatch, c: Coefficients) -> Metrics:
    chosen_len_P, rejected_len_P = pair_lengths(batch)
    found = {"chosen_tokens": chosen_len_P, "rejected_tokens": rejected_len_P}
    if batch.ref_T is not None:
        chosen_P, rejected_P = log_ratios(batch)
        found |= {
            "reward_margin": c.beta * (chosen_P - rejected_P),
            "reward_accuracy": _above(chosen_P, rejected_P),
            "chosen_logratio": chosen_P,
            "rejected_logratio": rejected_P,
            "chosen_fell": (chosen_P < 0).to(chosen_P.dtype),
        }
    if batch.value_N is not None:
        value_N = batch.value_N
        found["value_rank_accuracy"] = _above(value_N[batch.winner_last_P], value_N[batch.loser_last_P])
    pairs = batch.logp_T.new_tensor(batch.n_pairs)
    return {name: (value_P.sum(), pairs) for name, value_P in found.items()}


def _above(high_P: Tensor, low_P: Tensor) -> Tensor:
    return (1 + torch.sign(high_P - low_P)) / 2
