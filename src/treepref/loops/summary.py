"""The report stage: what the run has stored as results.json, a table, and report.html.

Reads the store alone and may run at any time; what is not there yet is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from treepref.evaluation.scores import JudgedNode, inference_of, results_document, self_evaluation_quality
from treepref.loops.reading import evaluation_reading, problem_of, search_summary
from treepref.loops.session import Session
from treepref.loops.stored import stored_summary
from treepref.loops.unchecked import failure_counts
from treepref.loops.values import FIRST
from treepref.models.text import decode
from treepref.report.data import ReportData
from treepref.report.html import write_report
from treepref.report.table import print_results
from treepref.runs.run_folder import disk_errors, land_file
from treepref.runs.stage import Stage
from treepref.runs.store import Store, TreeRow
from treepref.types import Cost, Node, Pair, Tree

DRAWN_TREES = 10


def report(session: Session, console: Console | None = None) -> Path | None:
    """Write results.json and report.html and print the table; the page's path.

    None, and nothing is written, where nothing was searched, evaluated or trained yet.
    """
    store = session.store
    if not (store.costs() or any(stage.status == "done" for stage in store.stages())):
        return None
    readings = list(greedy_readings(session))
    results = results_of(session, readings)
    scratch = store.scratch("results") / "results.json"
    with disk_errors(session.out):
        scratch.write_text(json.dumps(results, indent=1), encoding="utf-8")
    land_file(scratch, session.out / "results.json")
    readings += search_readings(results["search"])
    data = ReportData(
        recipe=session.recipe.model_dump(mode="json"),
        results=results,
        steps=training_steps(store),
        pair_stats=[{"round": r} | _pair_info(store, r) for r in _rounds(session)],
        trees=list(drawn_trees(session)),
        events=counted_events(store),
        unfinished=[f"{name}{_progress(store, name)}" for name in unfinished_stages(store)],
        stopped=results["stopped"],
        readings=readings,
    )
    page = write_report(data, session.store.scratch("report") / "report.html")
    path = land_file(page, session.out / "report.html")  # from the scratch folder, where a kill leaves nothing for good
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


def results_of(session: Session, readings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """results.json as it stands; `readings` are those of `greedy_readings`."""
    recipe, store = session.recipe, session.store
    found = (stored_summary(store, k) for k in range(recipe.rounds + 1))
    costs, problems = store.costs(), store.count_problems("eval")
    examples = {reading["round"]: reading["examples"] for reading in readings}
    rounds: list[Mapping[str, Any]] = [
        summary
        | {"examples": examples.get(summary["round"], [])}
        | {"self_evaluation": self_evaluation(session, summary["round"])}
        | {"fit": value_fit(store, summary["round"])}
        | _inference(summary, costs, problems)
        for summary in found
        if summary is not None
    ]
    searches = (search_summary(session, stage) for stage in search_stages(session))
    errors = [event.message for event in store.events() if event.level == "error"]
    return results_document(
        recipe.model_dump(mode="json"),
        recipe.seed,
        rounds,
        session.spent(),
        costs,
        search=[found for found in searches if found is not None],
        unfinished=unfinished_stages(store),
        stopped=errors[-1] if errors else None,
    )


def greedy_readings(session: Session) -> Iterator[dict[str, Any]]:
    """What was read of every round's greedy solutions, also of an evaluation that is not finished."""
    for round in range(session.recipe.rounds + 1):
        found = evaluation_reading(session, Stage(round, "eval", "greedy"))
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


def search_stages(session: Session) -> list[Stage]:
    """Stages that grow trees, in order."""
    return [Stage(r, name) for r in range(1, session.recipe.rounds + 1) for name in ("search", "labels")]


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


def self_evaluation(session: Session, round: int) -> dict[str, Any] | None:
    """How good C was in the search of a round; None where it was not asked."""
    if session.recipe.search.self_evaluation is None:
        return None
    ends: list[JudgedNode] = []
    steps: list[JudgedNode] = []
    for tree in session.store.trees(Stage(round, "search")):
        found = judged_nodes(tree)
        ends += found[0]
        steps += found[1]
    return self_evaluation_quality(ends, steps)


def judged_nodes(tree: Tree) -> tuple[list[JudgedNode], list[JudgedNode]]:
    """(finished solutions, steps before the end) that have both a C and an outcome.

    A step's outcome is the mean reward of the finished solutions below it, each counted once however often it was
    visited: visits follow the search's own preferences, and C among them.
    """
    total: dict[int, float] = {}
    count: dict[int, int] = {}
    for end in tree.nodes:
        if end.terminal and end.reward is not None:
            node: Node | None = end
            while node is not None:
                total[node.index] = total.get(node.index, 0.0) + end.reward
                count[node.index] = count.get(node.index, 0) + 1
                node = node.parent
    ends, steps = [], []
    for node in tree.nodes:
        if node.confidence is not None and node.index in count:
            judged = JudgedNode(tree.problem_id, node.confidence, total[node.index] / count[node.index])
            (ends if node.terminal else steps).append(judged)
    return ends, steps


def unfinished_stages(store: Store) -> list[str]:
    """Stages that were begun and are not done: where an error, a limit or Ctrl-C stopped the run, or where it is."""
    running = [stage.name for stage in store.stages() if stage.status != "done"]
    return [name for name in running if not any(other.startswith(f"{name}/") for other in running)]


def drawn_trees(session: Session) -> Iterator[dict[str, Any]]:
    """Up to ten trees as plain data, the last round's first: those with most pairs, then mixed ones, then those without
    a right solution, then the others."""
    left, tokenizer = DRAWN_TREES, None
    for stage in reversed(search_stages(session)):
        if not left:
            return
        by_tree: dict[str, list[Pair]] = {}
        for pair in session.store.pairs(stage.round) if stage.name == "search" else ():
            by_tree.setdefault(pair.tree, []).append(pair)

        def rank(row: TreeRow, pairs: Mapping[str, Sequence[Pair]] = by_tree) -> tuple[int, bool, bool, str]:
            return -len(pairs.get(row.key, ())), not row.mixed, row.right > 0, row.key

        for row in sorted(session.store.tree_rows(stage), key=rank)[:left]:
            tree, problem = session.store.tree(stage, row.key), problem_of(session, row.problem_id)
            if tree is not None and problem is not None:
                left, tokenizer = left - 1, tokenizer or session.text.tokenizer
                drawn = plain_tree(tree, by_tree.get(row.key, []), tokenizer)
                facts = {
                    "question": problem.text,
                    "answer": problem.answer,
                    "problem_id": problem.id,
                    "round": stage.round,
                }
                yield drawn | facts


def plain_tree(tree: Tree, pairs: list[Pair], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A tree and its pairs with decoded steps."""
    nodes = [
        {
            "id": node.index,
            "parent": None if node.parent is None else node.parent.index,
            "text": decode(tokenizer, node.tokens).strip("\n"),
            "pieces": text_pieces(node, tokenizer),
            "q": node.q,
            "visits": node.visits,
            "value": node.value,
            "confidence": node.confidence,
            "prior": node.prior,
            "reward": node.reward,
            "terminal": node.terminal,
            "finish": node.finish,
        }
        for node in tree.nodes
    ]
    sides = [
        {"winner": list(p.winner), "loser": list(p.loser), "q_winner": p.q_winner, "q_loser": p.q_loser} for p in pairs
    ]
    return {"nodes": nodes, "pairs": sides, "q_range": list(tree.q_range)}


def text_pieces(node: Node, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]] | None:
    """A step's text cut where tokens that a tool forced begin and end, each piece with whether it was forced.

    None where none was. The pieces together are the decoded step; a character that spans a cut goes to the piece
    that completes it.
    """
    if not node.forced or not any(node.forced):
        return None
    text, start, pieces = decode(tokenizer, node.tokens), 0, []
    for i, forced in enumerate(node.forced):
        last = i + 1 == len(node.tokens)
        if not last and node.forced[i + 1] == forced:
            continue
        # Half a character decodes to U+FFFD.
        end = len(text) if last else len(decode(tokenizer, node.tokens[: i + 1]).rstrip("\ufffd"))
        pieces.append((text[start:end], forced))
        start = max(start, end)
    return pieces


def _rounds(session: Session) -> list[int]:
    """Rounds that have preferences."""
    store = session.store
    rounds = range(1, session.recipe.rounds + 1)
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
