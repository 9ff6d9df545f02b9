"""Runs a recipe by its method: begin or go on (`run`), go on (`resume`), or one stage alone (`run_stage`).

Each method is a module of this package with its name. It holds a function of the same name, the algorithm; `STAGES`,
what each stage's command does in a round; and `order`, what each stands on. Nothing here knows what a method does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from treepref.errors import TreeprefError
from treepref.loops.order import Order, check_sequence, check_stage
from treepref.loops.session import Session
from treepref.loops.summary import report
from treepref.recipe_io import LoadedRecipe

Stage = Callable[[Session, int], None]


def run(loaded: LoadedRecipe, out: Path) -> None:
    """Run the recipe in `out`, or go on with it. Raises TreeprefError; what is done stays done."""
    _run(Session(out, loaded))


def resume(out: Path) -> None:
    """Go on with the run in `out` under its own recipe. Raises TreeprefError."""
    _run(Session(out))


def run_stage(out: Path, stage: str, round: int | None) -> None:
    """One stage of an existing run. Without a round: the first in which the stage is not done.

    Raises TreeprefError where an earlier stage that it needs is missing, or the run's method has no such stage.
    """
    with Session(out) as session:
        stages = _stages(session.recipe.method)
        if stage not in stages:
            raise TreeprefError(f"{session.recipe.method} has no stage {stage}; it has {', '.join(stages)}")
        if stage != "report":
            round = _next_round(session, stage) if round is None else round
            check_stage(session, _order(session), stage, round)
            session.policies.check_all()
        stages[stage](session, round or 0)


def _run(session: Session) -> None:
    with session:
        check_sequence(session, _order(session))
        session.policies.check_all()
        try:
            _algorithm(session.recipe.method)(session)
        except BaseException:
            with suppress(TreeprefError):  # what stopped the run is what must be told
                report(session)
            raise
        report(session)


def _algorithm(method: str) -> Callable[[Session], None]:
    return getattr(import_module(f"treepref.loops.{method}"), method)


def _order(session: Session) -> Order:
    method = session.recipe.method
    return import_module(f"treepref.loops.{method}").order(session.recipe)


def _stages(method: str) -> dict[str, Stage]:
    own: dict[str, Stage] = import_module(f"treepref.loops.{method}").STAGES
    return own | {"report": lambda session, round: report(session)}


def _next_round(session: Session, stage: str) -> int:
    if stage == "sft":
        return 0
    first = 0 if stage == "eval" else 1
    for round in range(first, session.recipe.rounds + 1):
        if not session.store.stage_done(f"round-{round}/{stage}"):
            return round
    if session.recipe.rounds < first:
        raise TreeprefError(f"this run has no rounds, and so no stage {stage}: raise `rounds`")
    raise TreeprefError(
        f"stage {stage} is done in all {session.recipe.rounds} rounds; name one with --round, or raise `rounds`"
    )
