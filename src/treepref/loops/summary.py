"""The report stage: what the run has stored as results.json, a table, and report.html.

Reads the store alone and may run at any time; what is not there yet is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from treepref.evaluation import JudgedNode, inference_of, results_document, self_evaluation_quality
from treepref.loops.session import Session
from treepref.models.text import decode
from treepref.report.data import ReportData
from treepref.report.html import write_report
from treepref.report.table import print_results
from treepref.run_folder import disk_errors, land_file
from treepref.store import Store
from treepref.types import Cost, Node, Pair, Tree

DRAWN_TREES = 10


def report(session: Session, console: Console | None = None) -> None:
    """Write results.json and report.html and print the table. Nothing where no round was evaluated yet."""
    results = results_of(session)
    if not results["rounds"]:
        return
    scratch = session.store.scratch("results") / "results.json"
    with disk_errors(session.out):
        scratch.write_text(json.dumps(results, indent=1), encoding="utf-8")
    land_file(scratch, session.out / "results.json")
    events = [asdict(event) for event in session.store.events()]
    data = ReportData(
        recipe=session.recipe.model_dump(mode="json"),
        results=results,
        steps=training_steps(session.store),
        pair_stats=[{"round": r} | _pair_info(session.store, r) for r in _rounds(session)],
        trees=list(drawn_trees(session)),
        events=events,
        unfinished=unfinished_stages(session.store),
    )
    path = write_report(data, session.out / "report.html")
    console = console or Console()
    print_results(results, [e for e in events if e["level"] != "info"], console, unfinished=data.unfinished)
    console.print(f"report: {path}", style="dim")


def results_of(session: Session) -> dict[str, Any]:
    """results.json as it stands."""
    recipe, store = session.recipe, session.store
    found = (store.meta(f"summary/{k}") for k in range(recipe.rounds + 1))
    costs, problems = store.costs(), store.count_problems("eval")
    rounds: list[Mapping[str, Any]] = [
        summary | {"self_evaluation": self_evaluation(session, summary["round"])} | _inference(summary, costs, problems)
        for summary in found
        if summary is not None
    ]
    return results_document(recipe.model_dump(mode="json"), recipe.seed, rounds, session.spent(), costs)


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
    for tree in session.store.trees(f"round-{round}/search"):
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
    """Up to ten trees of the last trained round as plain data, those with most pairs first."""
    rounds = _rounds(session)
    if not rounds:
        return
    round, tokenizer = rounds[-1], session.tokenizer()
    by_tree: dict[str, list[Pair]] = {}
    for pair in session.store.pairs(round):
        by_tree.setdefault(pair.tree, []).append(pair)
    chosen = sorted(by_tree, key=lambda key: (-len(by_tree[key]), key))[:DRAWN_TREES]
    for key in chosen:
        tree = session.store.tree(f"round-{round}/search", key)
        problem = tree and (
            session.store.problem("train", tree.problem_id) or session.store.problem("labelled", tree.problem_id)
        )
        if tree is not None and problem is not None:
            drawn = plain_tree(tree, by_tree[key], tokenizer)
            yield drawn | {"question": problem.text, "answer": problem.answer, "problem_id": problem.id, "round": round}


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
    return [r for r in rounds if store.stage_done(f"round-{r}/pairs") or store.count_pairs(r)]


def _pair_info(store: Store, round: int) -> dict[str, Any]:
    """What the stage noted of its pairs; their number where it noted nothing."""
    stage = store.stage(f"round-{round}/pairs")
    return (stage.info if stage else {}) or {"pairs": store.count_pairs(round)}


def training_steps(store: Store) -> list[dict[str, Any]]:
    """Optimizer steps of all rounds with their stage; those of the warm-up only where there are no others."""
    found: dict[int, list[dict[str, Any]]] = {}
    for stage in store.stages():
        round = re.match(r"round-(\d+)/", stage.name)
        steps = store.meta(f"steps/{stage.name}", []) if round else []
        found.setdefault(int(round.group(1)) if round else 0, []).extend({"stage": stage.name} | s for s in steps)
    warmup = found.pop(0, [])
    return [{"round": r} | step for r, steps in sorted(found.items()) for step in steps] or [
        {"round": 0} | step for step in warmup
    ]
