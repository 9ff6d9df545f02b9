"""The report stage: what the run has stored as results.json, a table, and report.html.

Reads the run alone, also while another process goes on with it; what is not there yet is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from treepref.evaluation.scores import inference_of, results_document
from treepref.keys import plain
from treepref.loops.reading import evaluation_reading
from treepref.loops.searches import SearchFound, read_searches, search_summary
from treepref.loops.stored import stored_summary
from treepref.loops.unchecked import failure_counts
from treepref.loops.values import FIRST
from treepref.report.data import ReportData
from treepref.report.html import write_report
from treepref.report.table import print_results
from treepref.runs.run_folder import land_file, report_scratch
from treepref.runs.stage import Stage
from treepref.runs.store import Store
from treepref.runs.view import RunView
from treepref.types import Cost


def report(view: RunView, console: Console | None = None) -> Path | None:
    """Write results.json and report.html and print the table; the page's path.

    None, and nothing is written, where nothing was searched, evaluated or trained yet.
    """
    store = view.store
    if not (store.costs() or any(stage.status == "done" for stage in store.stages())):
        return None
    readings = list(greedy_readings(view))
    searches = read_searches(view)
    results = results_of(view, readings, searches)
    with report_scratch(view.folder) as scratch:
        part = scratch / "results.json"
        part.write_text(json.dumps(results, indent=1), encoding="utf-8")
        land_file(part, view.folder / "results.json")
    readings += search_readings(results["search"])
    data = ReportData(
        recipe=plain(view.recipe),
        results=results,
        steps=training_steps(store),
        pair_stats=[{"round": r} | _pair_info(store, r) for r in _rounds(view)],
        trees=[tree for found in reversed(searches) for tree in found.drawn],
        events=counted_events(store),
        unfinished=[f"{name}{_progress(store, name)}" for name in unfinished_stages(store)],
        stopped=results["stopped"],
        readings=readings,
    )
    with report_scratch(view.folder) as scratch:
        path = land_file(write_report(data, scratch / "report.html"), view.folder / "report.html")
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


def results_of(view: RunView, readings: Sequence[Mapping[str, Any]], searches: Sequence[SearchFound]) -> dict[str, Any]:
    """results.json as it stands; `readings` are those of `greedy_readings`, `searches` of `read_searches`."""
    recipe, store = view.recipe, view.store
    found = (stored_summary(store, k) for k in range(recipe.rounds + 1))
    costs, problems = store.costs(), store.count_problems("eval")
    examples = {reading["round"]: reading["examples"] for reading in readings}
    rounds: list[Mapping[str, Any]] = [
        summary
        | {"examples": examples.get(summary["round"], [])}
        | {"self_evaluation": self_evaluation(searches, summary["round"])}
        | {"fit": value_fit(store, summary["round"])}
        | _inference(summary, costs, problems)
        for summary in found
        if summary is not None
    ]
    errors = [event.message for event in store.events() if event.level == "error"]
    return results_document(
        plain(recipe),
        recipe.seed,
        rounds,
        view.store.cost(),
        costs,
        search=[search_summary(view.store, found) for found in searches],
        unfinished=unfinished_stages(store),
        stopped=errors[-1] if errors else None,
    )


def greedy_readings(view: RunView) -> Iterator[dict[str, Any]]:
    """What was read of every round's greedy solutions, also of an evaluation that is not finished."""
    for round in range(view.recipe.rounds + 1):
        found = evaluation_reading(view, Stage(round, "eval", "greedy"))
        if found.total:
            yield {"round": round, "title": f"Round {round}, greedy", "search": False} | found.as_dict()


def search_readings(searches: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same of what `search_summary` found."""
    for found in searches:
        part = f" in the first {found['trees_read']} trees" if found["trees_read"] < found["trees"] else ""
        kind = "pseudo-labels" if found["stage"].endswith("/labels") else "search"
        yield {"title": f"Round {found['round']}, {kind}{part}", "search": True} | found


def _latest(readings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """For a terminal: the last greedy solutions, and searches whose policy is not evaluated yet."""
    greedy = [reading for reading in readings if not reading["search"]][-1:]
    last = greedy[0]["round"] if greedy else -1
    return greedy + [reading for reading in readings if reading["search"] and reading["round"] > last][-1:]


def counted_events(store: Store) -> list[dict[str, Any]]:
    """The run's events; checks that failed are one of them a kind, with their count."""
    counts, events = failure_counts(store), [asdict(event) for event in store.events()]
    for event in events:
        if event["stage"] == "check" and event["message"] in counts:
            event["count"], problems = counts[event["message"]]
            event["message"] += f" (and {problems - 1} more)" if problems > 1 else ""
    return events


def value_fit(store: Store, round: int) -> dict[str, Any] | None:
    """What the fit of a round's value head found on problems held back; None where there was none."""
    stage = store.stage(Stage(round, "train") if round else FIRST)
    return None if stage is None else stage.info.get("fit")


def _progress(store: Store, stage: str) -> str:
    """How far an unfinished stage has come, in brackets; nothing where it does not count."""
    name = stage.partition("/")[2]
    if name.startswith("eval/"):
        return f" ({store.count_outcomes(stage)} of {store.count_problems('eval')} problems)"
    if name in ("search", "labels"):
        return f" ({store.count_trees(stage)} trees)"
    steps = store.meta(f"steps/{stage}")
    return f" ({len(steps)} steps)" if steps else ""


def _inference(summary: Mapping[str, Any], costs: Mapping[str, Cost], problems: int) -> dict[str, Any]:
    """FLOPs a problem of every method of a round."""
    found = inference_of(costs, summary["round"], problems)
    if found is None:
        return {"inference": None}
    entries = {name: entry for name, entry in summary["eval"].items() if entry is not None}
    per_problem = {name: found.flops(entry["tokens_per_problem"]) for name, entry in entries.items()}
    return {"inference": asdict(found) | {"flops_per_problem": per_problem}}


def self_evaluation(searches: Sequence[SearchFound], round: int) -> dict[str, Any] | None:
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
