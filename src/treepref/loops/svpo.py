"""SVPO (arXiv 2406.10858): rounds of search → preferences → training → evaluation.

    policy π₀ ← SFT of the base model on labelled problems, or the base model itself
    V₀ ← logistic regression on what came of π₀'s sampled steps                (values.first_values)
    for k = 1 … rounds:
        trees  ← MCTS with π_{k−1} and V_{k−1} on the training problems        (collect.search)
        pairs  ← siblings whose Q differ                                       (collect.make_pairs)
        π_k, V_k ← minimise L_DPO + a·MSE(V, Q) + b·ranking(V) + c·NLL(w)      (learn.train_round)
        V_k ← logistic regression on what came of the trees' steps, read by π_k  (values.refit)
        evaluate π_k: greedy, votes, SBS, MCTS                                 (evaluate.evaluate)

Every stage finds out for itself what is done already, so running the loop again goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable

from treepref.config import Recipe
from treepref.loops.collect import make_pairs, mcts_rules, search
from treepref.loops.evaluate import evaluate
from treepref.loops.learn import train_round, warm_up
from treepref.loops.order import Order
from treepref.loops.session import Session
from treepref.loops.values import first_values


def svpo(session: Session) -> None:
    """The algorithm."""
    warm_up(session)
    first_values(session)
    evaluate(session, 0)
    for round in range(1, session.recipe.rounds + 1):
        search(session, round, mcts_rules)
        make_pairs(session, round)
        train_round(session, round)
        evaluate(session, round)


def order(recipe: Recipe) -> Order:
    """The stages of a round."""
    return (("search",), ("pairs",), ("train",), ("eval",))


def _search(session: Session, round: int) -> None:
    if round == 1:
        first_values(session)
    search(session, round, mcts_rules)


def _evaluate(session: Session, round: int) -> None:
    if round == 0:
        first_values(session)
    evaluate(session, round)


STAGES: dict[str, Callable[[Session, int], None]] = {
    "sft": lambda session, round: warm_up(session),
    "search": _search,
    "pairs": make_pairs,
    "train": train_round,
    "eval": _evaluate,
}
