"""Runs a recipe by its method: begin or go on (`run`), go on (`resume`), or one stage alone (`run_stage`).

Each method is a module of this package with its name. It holds a function of the same name, the algorithm; `STAGES`,
what each stage's command does in a round; and `order`, what each stands on. Nothing here knows what a method does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from treepref.errors import TreeprefError
from treepref.loops.order import Order, check_sequence, check_stage
from treepref.loops.session import Session
from treepref.loops.summary import report, unfinished_stages
from treepref.loops.text import find_tokenizer
from treepref.recipes.reading import LoadedRecipe
from treepref.runs.stage import Stage
from treepref.runs.view import open_view

StageCommand = Callable[[Session, int], None]
"""What a stage's command does in a round."""


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
        round = _next_round(session, stage) if round is None else round
        check_stage(session, _order(session), stage, round)
        session.policies.check_all()
        session.note_reader()
        with stops_noted(session):
            stages[stage](session, round)


def _run(session: Session) -> None:
    with session:
        check_sequence(session, _order(session))
        session.policies.check_all()
        session.note_reader()
        try:
            with stops_noted(session):
                _algorithm(session.recipe.method)(session)
        except BaseException:
            with suppress(TreeprefError):  # what stopped the run is what must be told
                report(session.view)
            raise
        report(session.view)


@contextmanager
def stops_noted(session: Session) -> Iterator[None]:
    """What ends the work inside stands in the report as what stopped the run, until the run goes on."""
    store = session.store
    store.settle_errors()
    try:
        yield
    except BaseException as error:
        session.log.line(f"stopped in {_stopped_in(session)}: {_told(error)}")
        with suppress(TreeprefError):  # a full disk, say
            store.event(_stopped_in(session), "error", _told(error))
        raise


def _stopped_in(session: Session) -> str:
    """The stage that was being worked on; between two, the last that was begun and is not done."""
    unfinished = unfinished_stages(session.store)
    if str(session.working_on) in unfinished:
        return str(session.working_on)
    return unfinished[-1] if unfinished else "run"


def _told(error: BaseException) -> str:
    if isinstance(error, TreeprefError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C. Run the same command to go on from here."
    return f"{type(error).__name__}: {error}"


def report_run(out: Path) -> None:
    """Write the report of a run from what it has stored so far, also while it goes on. Raises StoreError."""
    with open_view(out, find_tokenizer) as view:
        found = report(view)
    if found is None:
        print("nothing was searched, evaluated or trained yet: there is nothing to report")


def _algorithm(method: str) -> Callable[[Session], None]:
    return getattr(import_module(f"treepref.loops.{method}"), method)


def _order(session: Session) -> Order:
    method = session.recipe.method
    return import_module(f"treepref.loops.{method}").order(session.recipe)


def _stages(method: str) -> dict[str, StageCommand]:
    return import_module(f"treepref.loops.{method}").STAGES


def _next_round(session: Session, stage: str) -> int:
    if stage == "sft":
        return 0
    first = 0 if stage == "eval" else 1
    for round in range(first, session.recipe.rounds + 1):
        if not session.store.stage_done(Stage(round, stage)):
            return round
    if session.recipe.rounds < first:
        raise TreeprefError(f"this run has no rounds, and so no stage {stage}: raise `rounds`")
    raise TreeprefError(
        f"stage {stage} is done in all {session.recipe.rounds} rounds; name one with --round, or raise `rounds`"
    )
