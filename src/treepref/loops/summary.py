"""The report stage: what the run has stored as results.json, a table, and report.html.

Reads the run alone, also while another process goes on with it; what is not there yet is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import structs
from rich.console import Console

from treepref.evaluation.scores import cost_by_kind, inference_of
from treepref.keys import plain
from treepref.loops.reading import evaluation_reading
from treepref.loops.searches import SearchFound, read_searches, search_summary
from treepref.loops.stored import best_round, stored_summary
from treepref.loops.unchecked import failure_counts
from treepref.loops.values import FIRST
from treepref.report.data import EventGroup, ReportData, TitledOutcomes
from treepref.report.html import PLOTLY, write_report
from treepref.report.table import print_results
from treepref.runs.results import (
    Results,
    RoundInference,
    RoundResult,
    SearchOutcomes,
    SelfEvaluation,
    ValueFit,
    as_json,
    from_plain,
)
from treepref.runs.run_folder import land_file, report_scratch
from treepref.runs.stage import Stage
from treepref.runs.store import Store
from treepref.runs.view import RunView


def report(view: RunView, console: Console | None = None) -> Path | None:
    """Write results.json and report.html and print the table; the page's path.

    None, and nothing is written, where nothing was searched, evaluated or trained yet.
    """
    store = view.store
    if not (store.costs() or any(stage.status == "done" for stage in store.stages())):
        return None
    greedy = list(greedy_readings(view))
    searches = read_searches(view)
    results = results_of(view, greedy, searches)
    with report_scratch(view.folder) as scratch:
        part = scratch / "results.json"
        part.write_text(as_json(results, indent=1), encoding="utf-8")
        land_file(part, view.folder / "results.json")
    readings = [*greedy, *map(_titled, results.search or ())]
    data = ReportData(
        recipe=plain(view.recipe),
        results=results,
        run=view.folder.resolve().name,
        steps=training_steps(store),
        pair_stats=[{"round": r} | _pair_info(store, r) for r in _rounds(view)],
        trees=[tree for found in reversed(searches) for tree in found.drawn],
        events=counted_events(store),
        unfinished=[f"{name}{how_far(store, name)}" for name in unfinished_stages(store)],
        stopped=results.stopped,
        readings=readings,
    )
    with report_scratch(view.folder) as scratch:
        made = write_report(data, scratch / "report.html")
        land_file(scratch / PLOTLY, view.folder / PLOTLY)
        path = land_file(made, view.folder / "report.html")
    console = console or Console()
    print_results(
        results,
        data.events,
        console,
        unfinished=data.unfinished,
        stopped=data.stopped,
        readings=_latest(readings),
    )
    console.print(f"report: {path}", style="dim")
    return path


def results_of(view: RunView, greedy: Sequence[TitledOutcomes], searches: Sequence[SearchFound]) -> Results:
    """The run's results as they stand; `greedy` are those of `greedy_readings`, `searches` of `read_searches`."""
    recipe, store = view.recipe, view.store
    costs, examples = store.costs(), {reading.round: reading.found.examples for reading in greedy}
    rounds = [
        structs.replace(
            found,
            examples=examples.get(found.round, []),
            self_evaluation=self_evaluation(searches, found.round),
            fit=value_fit(store, found.round),
            inference=_inference(store, found),
        )
        for found in (stored_summary(store, k) for k in range(recipe.rounds + 1))
        if found is not None
    ]
    errors = [event.message for event in store.events() if event.level == "error"]
    return Results(
        recipe=plain(recipe),
        seed=recipe.seed,
        rounds=rounds,
        search=[search_summary(store, found) for found in searches],
        best_round=best.round if (best := best_round(store)) else None,
        unfinished=unfinished_stages(store),
        stopped=errors[-1] if errors else None,
        cost=store.cost(),
        cost_by_kind=cost_by_kind(costs),
    )


def greedy_readings(view: RunView) -> Iterator[TitledOutcomes]:
    """What was read of every round's greedy solutions, also of an evaluation that is not finished."""
    for round in range(view.recipe.rounds + 1):
        found = evaluation_reading(view, Stage(round, "eval", "greedy"))
        if found.total:
            yield TitledOutcomes(round, f"Round {round}, greedy", found.outcomes())


def _titled(found: SearchOutcomes) -> TitledOutcomes:
    part = f" in the first {found.trees_read} trees" if found.trees_read < found.trees else ""
    kind = "pseudo-labels" if found.stage.endswith("/labels") else "search"
    return TitledOutcomes(found.round, f"Round {found.round}, {kind}{part}", found)


def _latest(readings: Sequence[TitledOutcomes]) -> list[TitledOutcomes]:
    """For a terminal: the last greedy solutions, and searches whose policy is not evaluated yet."""
    greedy = [reading for reading in readings if not reading.search][-1:]
    last = greedy[0].round if greedy else -1
    return greedy + [reading for reading in readings if reading.search and reading.round > last][-1:]


def counted_events(store: Store) -> list[EventGroup]:
    """The run's events; checks that failed are one of them a kind, with their count."""
    counts, groups = failure_counts(store), []
    for event in store.events():
        message, count = event.message, 1
        if event.stage == "check" and message in counts:
            count, problems = counts[message]
            message += f" (and {problems - 1} more)" if problems > 1 else ""
        groups.append(EventGroup(event.stage, event.level, message, count))
    return groups


def value_fit(store: Store, round: int) -> ValueFit | None:
    """What the fit of a round's value head found on problems held back; None where there was none.

    Raises StoreError where it is not sound.
    """
    stage = store.stage(Stage(round, "train") if round else FIRST)
    found = None if stage is None else stage.info.get("fit")
    with store.sound(f"the fit of round {round}'s values"):
        return None if found is None else from_plain(found, ValueFit)


def how_far(store: Store, stage: str) -> str:
    """How far an unfinished stage has come, in brackets; nothing where it does not count."""
    name = stage.partition("/")[2]
    if name.startswith("eval/"):
        return f" ({store.count_outcomes(stage)} of {store.count_problems('eval')} problems)"
    if name in ("search", "labels"):
        return f" ({store.count_trees(stage)} trees)"
    steps = store.meta(f"steps/{stage}")
    return f" ({len(steps)} steps)" if steps else ""


def _inference(store: Store, found: RoundResult) -> RoundInference | None:
    """FLOPs a problem of every method of a round."""
    each = inference_of(store.costs(), found.round, store.count_problems("eval"))
    if each is None:
        return None
    per_problem = {name: each.flops(entry.tokens_per_problem) for name, entry in found.evaluated.items()}
    return RoundInference(
        flops_per_token=each.flops_per_token, prompt_tokens=each.prompt_tokens, flops_per_problem=per_problem
    )


def self_evaluation(searches: Sequence[SearchFound], round: int) -> SelfEvaluation | None:
    """How good C was in the search of a round; None where it was not asked."""
    return next((found.self_evaluation for found in searches if found.stage == Stage(round, "search")), None)


def unfinished_stages(store: Store) -> list[str]:
    """Stages that were begun and are not done: where an error, a limit or Ctrl-C stopped the run, or where it is."""
    running = [stage.name for stage in store.stages() if stage.status != "done"]
    return [name for name in running if not any(other.startswith(f"{name}/") for other in running)]


def _rounds(view: RunView) -> list[int]:
    """Rounds that have preferences."""
    store = view.store
    rounds = range(1, view.recipe.rounds + 1)
    return [r for r in rounds if store.stage_done(Stage(r, "pairs")) or store.count_pairs(r)]


def _pair_info(store: Store, round: int) -> dict[str, Any]:
    """What the stage noted of its pairs; their number where it noted nothing."""
    stage = store.stage(Stage(round, "pairs"))
    return (stage.info if stage else {}) or {"pairs": store.count_pairs(round)}


def training_steps(store: Store) -> list[dict[str, Any]]:
    """Optimizer steps of all rounds with their stage; those of the warm-up only where there are no others."""
    found: dict[int, list[dict[str, Any]]] = {}
    for row in store.stages():
        steps = store.meta(f"steps/{row.name}", [])
        found.setdefault(row.stage.round if row.stage else 0, []).extend({"stage": row.name} | s for s in steps)
    warmup = found.pop(0, [])
    return [{"round": r} | step for r, steps in sorted(found.items()) for step in steps] or [
        {"round": 0} | step for step in warmup
    ]
