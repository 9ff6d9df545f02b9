"""SVPO (arXiv 2406.10858): rounds of search → preferences → training → evaluation.

    policy π₀ ← SFT of the base model on labelled problems, or the base model itself
    for k = 1 … rounds:
        trees  ← MCTS with π_{k−1} and V_{k−1} on the training problems        (collect.search)
        pairs  ← siblings whose Q differ                                       (collect.make_pairs)
        π_k, V_k ← minimise L_DPO + a·MSE(V, Q) + b·ranking(V) + c·NLL(w)      (learn.train)
        evaluate π_k: greedy, votes, SBS, MCTS                                 (evaluate.evaluate)

Every stage finds out for itself what is done already, so running the loop again goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from treepref.errors import TreeprefError
from treepref.loops.collect import make_pairs, search
from treepref.loops.evaluate import evaluate
from treepref.loops.learn import train, warm_up
from treepref.loops.session import Session
from treepref.loops.summary import report
from treepref.recipe_io import LoadedRecipe


def run(loaded: LoadedRecipe, out: Path) -> None:
    """Run the recipe in `out`, or go on with it. Raises TreeprefError; what is done stays done."""
    _run(Session(out, loaded))


def resume(out: Path) -> None:
    """Go on with the run in `out` under its own recipe. Raises TreeprefError."""
    _run(Session(out))


def _run(session: Session) -> None:
    with session:
        try:
            svpo(session)
        except BaseException:
            with suppress(TreeprefError):  # what stopped the run is what must be told
                report(session)
            raise
        report(session)


def svpo(session: Session) -> None:
    """The algorithm."""
    warm_up(session)
    evaluate(session, 0)
    for round in range(1, session.recipe.rounds + 1):
        search(session, round)
        make_pairs(session, round)
        train(session, round)
        evaluate(session, round)


STAGES: dict[str, Callable[[Session, int], None]] = {
    "sft": lambda session, round: warm_up(session),
    "search": search,
    "pairs": make_pairs,
    "train": train,
    "eval": evaluate,
    "report": lambda session, round: report(session),
}


def run_stage(out: Path, stage: str, round: int | None) -> None:
    """One stage of an existing run. Without a round: the first in which the stage is not done.

    Raises TreeprefError where an earlier stage that it needs is missing.
    """
    with Session(out) as session:
        STAGES[stage](session, _next_round(session, stage) if round is None else round)


def _next_round(session: Session, stage: str) -> int:
    if stage in ("sft", "report"):
        return 0
    first = 0 if stage == "eval" else 1
    for round in range(first, session.recipe.rounds + 1):
        if not session.store.stage_done(f"round-{round}/{stage}"):
            return round
    raise TreeprefError(
        f"stage {stage} is done in all {session.recipe.rounds} rounds; name one with --round, or raise `rounds`"
    )
