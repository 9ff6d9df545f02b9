"""The report stage: what the run has stored as results.json, a table, and report.html.

Reads the store alone and may run at any time; what is not there yet is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from treepref.evaluation import results_document
from treepref.loops.session import Session
from treepref.models.text import decode
from treepref.report.data import ReportData
from treepref.report.html import write_report
from treepref.report.table import print_results
from treepref.run_folder import disk_errors, land_file
from treepref.types import Pair, Tree

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
        steps=[step for round in _rounds(session) for step in _steps(session, round)],
        pair_stats=[{"round": r} | session.store.stage(f"round-{r}/pairs").info for r in _rounds(session)],  # type: ignore[union-attr]
        trees=list(drawn_trees(session)),
        events=events,
    )
    path = write_report(data, session.out / "report.html")
    console = console or Console()
    print_results(results, [e for e in events if e["level"] != "info"], console)
    console.print(f"report: {path}", style="dim")


def results_of(session: Session) -> dict[str, Any]:
    """results.json as it stands."""
    recipe = session.recipe
    found = (session.store.meta(f"summary/{k}") for k in range(recipe.rounds + 1))
    rounds: list[Mapping[str, Any]] = [summary for summary in found if summary is not None]
    return results_document(recipe.model_dump(mode="json"), recipe.seed, rounds, session.spent())


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
        problem = session.store.problem("train", tree.problem_id) if tree else None
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
            "q": node.q,
            "visits": node.visits,
            "value": node.value,
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


def _rounds(session: Session) -> list[int]:
    """Rounds whose pairs are made."""
    return [r for r in range(1, session.recipe.rounds + 1) if session.store.stage_done(f"round-{r}/pairs")]


def _steps(session: Session, round: int) -> list[dict[str, Any]]:
    return [{"round": round} | step for step in session.store.meta(f"steps/round-{round}/train", [])]
