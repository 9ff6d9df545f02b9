"""The value head's fit: logistic regression of being right on hidden states, to convergence and calibrated.

A head that is trained beside the policy takes a few hundred noisy steps on features whose norm is far from 1, while the
policy moves below it; on a pretrained model that left it at an AUC of 0.5 where the hidden states hold 0.85
(docs/svpo.md, Value head). What is convex is solved instead, on standardised features; where it reads is chosen by the
log-loss on problems held back; its scale, and how far log-probs are joined with it, are fitted on predictions for
problems that it has not seen. Knows tensors alone: no model, no tree, no file.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from treepref.evaluation import statistics
from treepref.models.value_head import Read
from treepref.training.value_data import ValueData
from treepref.types import Join

FOLDS = 5
"""Parts that the problems are cut into: each is predicted by a fit on the others."""
PENALTIES = (1e-3, 1e-2, 1e-1)
"""Strengths of the penalty on weights that are tried; the middle one serves to choose where the head reads."""
SMALL_PENALTY = 1e-3
LEAST_OF_A_KIND = 8
"""Fewer steps than this that led to right solutions, or to wrong ones, and nothing is fitted."""
_ITERATIONS = 100


@dataclass(frozen=True, slots=True, eq=False)
class ValueFit:
    """A fitted head, as `ValueHead.set_fit` takes it, and how good it is on problems that it was not fitted on."""

    weight_H: Tensor
    bias: float
    read: Read
    root: float
    join: Join
    quality: dict[str, Any]
    """Plain JSON: AUC of V, of the mean log-prob, of both joined and of the head before; by depth; calibration."""


def fit_values(data: ValueData, *, ranking: float = 0.0, seed: int = 0) -> ValueFit | None:
    """Fit a head; None where right or wrong solutions are too few.

    Minimises, over the steps of all solutions,

        mean BCE(σ(z), share right) + ranking · mean softplus(z_wrong − z_right) + penalty/2 · |w|²,  z = w·ĥ + b

    ĥ: features standardised over the data; pairs: finished solutions of one problem. V = tanh(a·z/2 + c/2) = 2σ − 1 of
    the calibrated log-odds (Platt, 1999), so (V + 1)/2 is the predicted chance of being right.
    """
    right_N = data.right_N.double()
    if min(float(right_N.sum()), float((1 - right_N).sum())) < LEAST_OF_A_KIND or len(set(data.problem_N)) < FOLDS:
        return None
    fold_N = _folds(data.problem_N, seed)
    held_N = fold_N == 0
    middle = PENALTIES[len(PENALTIES) // 2]
    solver = _Solver(data, ranking)

    def loss(read: Read, penalty: float) -> float:
        z_N = solver.solve(read, ~held_N, penalty)(held_N)
        return float(binary_cross_entropy_with_logits(z_N, right_N[held_N]))

    losses = {read: loss(read, middle) for read in data.features_NH}
    read = min(losses, key=lambda r: losses[r])
    penalty = min(PENALTIES, key=lambda p: losses[read] if p == middle else loss(read, p))

    z_N = torch.zeros(len(data), dtype=torch.float64)
    for fold in range(FOLDS):
        z_N[fold_N == fold] = solver.solve(read, fold_N != fold, penalty)(fold_N == fold)
    one = torch.ones(1, dtype=torch.float64)
    scale, shift = _regression(z_N[:, None], right_N, SMALL_PENALTY, centre=one)
    odds_N = scale[0] * z_N + shift
    join, joint_N = _join(odds_N, data)
    whole = solver.solve(read, torch.ones_like(held_N), penalty)
    base = float(right_N[data.finished_N].mean()) if bool(data.finished_N.any()) else float(right_N.mean())
    return ValueFit(
        weight_H=(scale[0] * whole.weight_H / 2).float(),
        bias=float((scale[0] * whole.bias + shift) / 2),
        read=read,
        root=2 * base - 1,
        join=join,
        quality=_quality(data, odds_N, joint_N)
        | {
            "read": {"layer": read.layer, "pool": read.pool},
            "penalty": penalty,
            "join": [join.value, join.logprob, join.bias],
            "reads_tried": [{"layer": r.layer, "pool": r.pool, "loss": value} for r, value in losses.items()],
        },
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Solution:
    """z = weight·h + bias on features as they are."""

    weight_H: Tensor
    bias: Tensor
    features_NH: Tensor

    def __call__(self, rows_N: Tensor) -> Tensor:
        return self.features_NH[rows_N].double() @ self.weight_H + self.bias


def _join(odds_N: Tensor, data: ValueData) -> tuple[Join, Tensor]:
    """How V's log-odds and the mean log-prob are weighted, and the joint log-odds [N].

    The weights rank right over wrong solutions of one problem, for that is what beams and best-of-n ask; scale and
    bias then make it a chance.
    """
    both_N2 = torch.stack([odds_N, data.logprob_N.double()], dim=1)
    v_alone = torch.tensor([1.0, 0.0], dtype=torch.float64)
    right_N, pairs_P2 = data.right_N.double(), _rank_pairs(data)
    weight_2 = v_alone
    if len(pairs_P2):
        gap_P2 = both_N2[pairs_P2[:, 0]] - both_N2[pairs_P2[:, 1]]
        weight_2, _ = _regression(
            gap_P2, torch.ones(len(gap_P2), dtype=torch.float64), SMALL_PENALTY, centre=v_alone, with_bias=False
        )
    rank_N1 = (both_N2 @ weight_2)[:, None]
    scale, shift = _regression(rank_N1, right_N, SMALL_PENALTY, centre=torch.ones(1, dtype=torch.float64))
    weight_2 = weight_2 * scale
    join = Join(float(weight_2[0]), float(weight_2[1]), float(shift))
    return join, both_N2 @ weight_2 + shift


class _Solver:
    """Solves for one read and a part of the rows."""

    def __init__(self, data: ValueData, ranking: float) -> None:
        self._data, self._ranking = data, ranking
        self._pairs_P2 = _rank_pairs(data) if ranking else None

    def solve(self, read: Read, rows_N: Tensor, penalty: float) -> _Solution:
        features_NH = self._data.features_NH[read]
        part_NH = features_NH[rows_N]
        mean_H, std_H = part_NH.mean(0), part_NH.std(0).clamp(min=1e-6)
        pairs_P2 = self._pairs_P2
        if pairs_P2 is not None:
            place_N = torch.cumsum(rows_N, 0) - 1
            pairs_P2 = place_N[pairs_P2[rows_N[pairs_P2].all(1)]]
        weight_H, bias = _regression(
            (part_NH - mean_H) / std_H, self._data.right_N[rows_N], penalty, pairs_P2, self._ranking
        )
        weight_H = (weight_H / std_H).double()
        return _Solution(weight_H, bias - mean_H.double() @ weight_H, features_NH)


def _rank_pairs(data: ValueData, most: int = 8) -> Tensor:
    """(right, wrong) finished solutions of one problem, rows [P, 2]; at most `most` a problem, drawn evenly."""
    by_problem: dict[str, tuple[list[int], list[int]]] = {}
    for row, (problem, finished) in enumerate(zip(data.problem_N, data.finished_N.tolist(), strict=True)):
        if finished:
            by_problem.setdefault(problem, ([], []))[int(data.right_N[row] < 0.5)].append(row)
    pairs = []
    for problem, (right, wrong) in by_problem.items():
        every = [(r, w) for r in right for w in wrong]
        pairs += random.Random(problem).sample(every, min(most, len(every)))
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def _regression(
    x_NF: Tensor,
    right_N: Tensor,
    penalty: float,
    pairs_P2: Tensor | None = None,
    ranking: float = 0.0,
    centre: Tensor | None = None,
    with_bias: bool = True,
) -> tuple[Tensor, Tensor]:
    """Logistic regression by L-BFGS: (weights [F], bias). `centre`: what the penalty draws the weights to (0)."""
    anchor_F = x_NF.new_zeros(x_NF.shape[1]) if centre is None else centre
    weight_F = anchor_F.clone().requires_grad_()
    bias = x_NF.new_zeros(()).requires_grad_(with_bias)
    optimizer = torch.optim.LBFGS(
        [weight_F, bias] if with_bias else [weight_F], max_iter=_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        z_N = x_NF @ weight_F + bias
        loss = binary_cross_entropy_with_logits(z_N, right_N) + penalty / 2 * (weight_F - anchor_F).square().sum()
        if ranking and pairs_P2 is not None and len(pairs_P2):
            loss = loss + ranking * softplus(z_N[pairs_P2[:, 1]] - z_N[pairs_P2[:, 0]]).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight_F.detach(), bias.detach()


def _folds(problems: Sequence[str], seed: int) -> Tensor:
    """Each row's fold, the same for all rows of a problem."""
    known = sorted(set(problems))
    random.Random(seed).shuffle(known)
    fold = {problem: i % FOLDS for i, problem in enumerate(known)}
    return torch.tensor([fold[problem] for problem in problems])


def _quality(data: ValueData, odds_N: Tensor, joint_N: Tensor) -> dict[str, Any]:
    """How well each score tells right from wrong, on finished solutions and at every depth."""
    kinds: dict[str, Tensor] = {"value": odds_N, "logprob": data.logprob_N, "joint": joint_N}
    if data.before_N is not None:
        kinds["before"] = data.before_N
    finished = [i for i, done in enumerate(data.finished_N.tolist()) if done]
    label_N = [share > 0.5 for share in data.right_N.tolist()]
    values = torch.tanh(odds_N / 2).tolist()
    bins = statistics.calibration([values[i] for i in finished], [label_N[i] for i in finished])
    found: dict[str, Any] = {"by_depth": []}
    for name, score_N in kinds.items():
        found[name] = _aucs(score_N.tolist(), label_N, data.problem_N, finished)
    for depth in sorted(set(data.depth_N)):
        rows = [i for i, d in enumerate(data.depth_N) if d == depth]
        found["by_depth"].append({"depth": depth} | _aucs(odds_N.tolist(), label_N, data.problem_N, rows))
    found["calibration_error"] = statistics.calibration_error(bins)
    found["steps"], found["problems"] = len(data), len(set(data.problem_N))
    return found


def _aucs(
    scores: Sequence[float], labels: Sequence[bool], problems: Sequence[str], rows: Sequence[int]
) -> dict[str, Any]:
    """AUC over the rows, and the mean of the AUCs within the problems that have both kinds among them."""
    by_problem: dict[str, list[int]] = {}
    for i in rows:
        by_problem.setdefault(problems[i], []).append(i)

    def auc(of: Sequence[int]) -> float | None:
        return statistics.auc([scores[i] for i in of], [labels[i] for i in of])

    within = [a for members in by_problem.values() if (a := auc(members)) is not None]
    return {"auc": auc(rows), "auc_within": math.fsum(within) / len(within) if within else None, "n": len(rows)}
