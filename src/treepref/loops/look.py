"""Looking at runs from outside: where one stands (`status`), all of a folder (`runs`), one problem of one (`show`).

Reads only, also while a run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.text import Text as Line

from treepref.errors import DataError, StoreError, TreeprefError
from treepref.loops.reading import attempts_of
from treepref.loops.stored import best_round, stored_solutions, summary_of
from treepref.loops.summary import how_far, unfinished_stages
from treepref.loops.text import find_tokenizer
from treepref.report import numbers
from treepref.report.grid import Cell, Grid, for_terminal
from treepref.runs.run_folder import lock_holder
from treepref.runs.stage import Stage
from treepref.runs.store import StageRow, Store
from treepref.runs.view import RunView, open_view
from treepref.types import Problem

SHOWN = 6
"""Solutions of a tree, or samples of an evaluation, that are shown."""


def status(folder: Path, console: Console) -> None:
    """Where a run stands: its stages, what goes on, what it has spent. Raises StoreError where there is no run."""
    with open_view(folder, find_tokenizer) as view:
        store, recipe = view.store, view.recipe
        console.print(for_terminal(_stage_grid(store, f"{folder}: {recipe.name}, {recipe.method}")))
        for line in _state(view):
            console.print(Line(line), overflow="fold")


def runs(folder: Path, console: Console) -> None:
    """The runs in a folder, the one that was worked on last at the end. Raises StoreError where there is none."""
    found = sorted((path.parent for path in folder.glob("*/run.db")), key=_last_change) if folder.is_dir() else []
    if not found:
        raise StoreError(f"{folder} holds no runs: `treepref run RECIPE` makes one in runs/NAME")
    rows = [_run_row(path) for path in found]
    heads = ["run", "method", "rounds", "greedy", "best", "last change", "state"]
    console.print(for_terminal(Grid(heads, rows, words=(0, 1, 6))))


def show(folder: Path, problem_id: str, console: Console) -> None:
    """A problem of a run: what it asks, its searches, and what each evaluation answered.

    Raises DataError where the run has no such problem.
    """
    with open_view(folder, find_tokenizer) as view:
        problem = view.searched_problem(problem_id) or view.store.problem("eval", problem_id)
        if problem is None:
            raise DataError(f"{folder} has no problem {problem_id}; it has {_some_ids(view.store)}")
        for line in _problem_lines(view, problem):
            console.print(Line(line), overflow="fold")


# ---- status


def _stage_grid(store: Store, title: str) -> Grid:
    rows = [
        [
            Cell(row.name, tone="" if row.done else "strong"),
            Cell("done" if row.done else f"begun{how_far(store, row.name)}"),
            Cell(numbers.count(_tokens(store, row))),
            Cell(numbers.duration(store.cost(row.name).seconds)),
        ]
        for row in store.stages()
    ]
    return Grid(["stage", "", "tokens", "worked"], rows, title, words=(0, 1))


def _tokens(store: Store, row: StageRow) -> int:
    cost = store.cost(row.name)
    return cost.generated_tokens + cost.prefill_tokens + cost.scored_tokens + cost.training_tokens


def _state(view: RunView) -> Iterator[str]:
    store, folder = view.store, view.folder
    holder = lock_holder(folder)
    stopped = [event for event in store.events() if event.level == "error"]
    if holder:
        yield f"Going on: held by {holder}."
    elif stopped:
        yield f"Stopped at {stopped[-1].stage}: {stopped[-1].message}"
    elif unfinished := unfinished_stages(store):
        yield f"Stopped at {', '.join(unfinished)}. Run the same command again to go on."
    elif all(store.stage_done(Stage(round, "eval")) for round in range(view.recipe.rounds + 1)):
        yield "Done."
    else:
        yield "Between two stages. Run the same command again to go on."
    if best := best_round(store):
        yield f"Best round by greedy accuracy: {best.round} ({numbers.percent(best.accuracy)} %)."
    warnings = sum(event.level == "warning" for event in store.events())
    more = f", {warnings} warnings (see the report)" if warnings else ""
    yield f"Last change {numbers.duration(time.time() - _last_change(folder))} ago{more}."


# ---- runs


def _last_change(folder: Path) -> float:
    files = (folder / name for name in ("run.db", "run.db-wal"))
    return max(file.stat().st_mtime for file in files if file.exists())


def _run_row(folder: Path) -> list[Cell]:
    age = f"{numbers.duration(time.time() - _last_change(folder))} ago"
    try:
        with open_view(folder, find_tokenizer) as view:
            store, recipe = view.store, view.recipe
            evaluated = [s for row in store.stages() if (s := summary_of(store, row))]
            best, last = best_round(store), evaluated[-1] if evaluated else None
            done = len([s for s in evaluated if s.round])
            state = "going on" if lock_holder(folder) else "done" if done == recipe.rounds else "stopped"
            greedy = last.eval.get("greedy") if last else None
            return [
                Cell(folder.name), Cell(recipe.method), Cell(f"{done}/{recipe.rounds}"),
                Cell(numbers.percent(greedy.accuracy)) if greedy else Cell(),
                Cell(f"{numbers.percent(best.accuracy)} (round {best.round})") if best else Cell(),
                Cell(age), Cell(state),
            ]  # fmt: skip
    except TreeprefError as error:
        return [Cell(folder.name), *[Cell()] * 4, Cell(age), Cell(str(error).splitlines()[0][:60], tone="bad")]


# ---- show


def _some_ids(store: Store) -> str:
    ids = [problem.id for split in ("train", "eval") for problem in islice(store.problems(split), 2)]
    return f"{', '.join(ids)} and others" if ids else "none yet"


def _problem_lines(view: RunView, problem: Problem) -> Iterator[str]:
    yield f"{problem.id} (answer {problem.answer!r})"
    yield from _quoted(problem.text)
    for row in view.store.stages():
        if row.stage is None:
            continue
        if row.stage.name in ("search", "labels"):
            yield from _tree_lines(view, row.stage, problem)
        elif row.stage.name == "eval" and row.stage.part is not None:
            yield from _evaluation_lines(view, row.stage, problem)


def _tree_lines(view: RunView, stage: Stage, problem: Problem) -> Iterator[str]:
    tree = view.store.tree(stage, problem.id)
    if tree is None:
        return
    attempts = sorted(attempts_of(view, tree, right_too=True), key=lambda one: one.outcome != "right")
    right = sum(one.outcome == "right" for one in attempts)
    yield (
        f"\n{stage}: a tree of {len(tree.nodes)} nodes, {tree.simulations} simulations; "
        f"{len(attempts)} different solutions, {right} right"
    )
    for one in attempts[:SHOWN]:
        yield f"{one.outcome}{'' if one.read is None else f', read {one.read!r}'}:"
        yield from _quoted(one.text or "")
    if len(attempts) > SHOWN:
        yield f"… and {len(attempts) - SHOWN} more"


def _evaluation_lines(view: RunView, stage: Stage, problem: Problem) -> Iterator[str]:
    found = [one for one in stored_solutions(view.store, stage) if one.problem_id == problem.id]
    if not found:
        return
    right = sum(one.correct for one in found)
    yield f"\n{stage}: {right} of {len(found)} right"
    for one in found[:SHOWN]:
        read = "cut" if not one.finished else "nothing read" if one.answer is None else f"read {one.answer!r}"
        value = "" if one.value is None else f", V {one.value:+.2f}"
        yield f"{'right' if one.correct else 'wrong'}, {read}{value}:"
        yield from _quoted(one.text or "")
    if len(found) > SHOWN:
        yield f"… and {len(found) - SHOWN} more"


def _quoted(text: str) -> Iterator[str]:
    yield from (f"  │ {line}" for line in text.split("\n"))
