"""`treepref compare`: several runs, of any method, side by side. Reads their stores only; writes beside none of them.

What is compared and how is in `evaluation/comparison.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from treepref.config import DEFAULT_METHOD
from treepref.errors import DataError, StoreError
from treepref.evaluation.comparison import RoundScores, RunScores, compare_runs
from treepref.evaluation.scores import (
    Samples,
    Scores,
    cost_of_policy,
    distinct_right,
    inference_of,
    pass_at,
    scores_over_k,
    single_scores,
)
from treepref.keys import plain
from treepref.loops.stored import stored_solutions
from treepref.loops.text import find_tokenizer
from treepref.report.compare import comparison_markdown, print_comparison, write_comparison
from treepref.runs.landing import new_file
from treepref.runs.results import Comparison, DistinctRight, as_json
from treepref.runs.run_folder import disk_errors
from treepref.runs.stage import Stage
from treepref.runs.store import Store
from treepref.runs.view import RunView, open_view

_ASIDE = ("seed", "engine", "budget")
"""Sections of a recipe that make no other recipe of it."""


def compare(
    folders: Sequence[Path],
    out: Path,
    *,
    baseline: str | None = None,
    group: bool = True,
    markdown: bool = False,
    console: Console | None = None,
) -> Comparison:
    """Print the comparison, and write compare.json and compare.html into `out`.

    `baseline` is a run's folder or name; None takes the first. Raises StoreError for a folder that holds no evaluated
    run, DataError for a run that is named twice or an unknown baseline.
    """
    _refuse_foreign(out)
    names = run_names(folders)
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    document = compare_runs(runs, baseline=_baseline(baseline, folders, names), group=group)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with new_file(out / "compare.json") as part:
            part.write_text(as_json(document, indent=1), encoding="utf-8")
    page = write_comparison(document, out / "compare.html")
    if markdown:
        print(comparison_markdown(document))
        return document
    console = console or Console()
    print_comparison(document, console)
    console.print(f"comparison: {page}", style="dim")
    return document


def _refuse_foreign(out: Path) -> None:
    """Raises StoreError where `out` has a compare.json or compare.html that no comparison of ours wrote."""
    page, numbers = out / "compare.html", out / "compare.json"
    try:
        found = json.loads(numbers.read_text(encoding="utf-8")) if numbers.exists() else {"schema": 0, "entries": []}
        ours = isinstance(found, dict) and found.keys() >= {"schema", "entries"}
    except (OSError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise StoreError(f"{numbers} is there already and holds no comparison: give another --out, or move it away")
    with disk_errors(page):
        if page.exists() and b"treepref comparison" not in page.read_bytes():
            raise StoreError(f"{page} is there already and is no page of treepref: give another --out, or move it away")


def run_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as much of the path before them as makes them differ.

    Raises DataError where a folder is named twice.
    """
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise DataError(f"{path} is named twice: give each run once")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]).lstrip("/") for path in paths]


def _baseline(wanted: str | None, folders: Sequence[Path], names: Sequence[str]) -> str | None:
    if wanted is None or wanted in names:
        return wanted
    for folder, name in zip(folders, names, strict=True):
        if folder.resolve() == Path(wanted).resolve():
            return name
    raise DataError(f"--baseline {wanted}: it is none of the runs {', '.join(names)}")


def read_run(folder: Path, name: str | None = None) -> RunScores:
    """A run's evaluated rounds. Decoders whose evaluation is not finished are left out, with a note.

    Raises StoreError where the folder holds no run, or none with an evaluated round.
    """
    with open_view(folder, find_tokenizer) as view:
        store, recipe = view.store, view.store.meta("recipe")  # of another version, too: compared as it stands
        if not isinstance(recipe, dict):
            raise StoreError(f"{folder} holds no recipe: it is no run")
        keys = {p.id: f"{p.id} {_content(p.text, p.answer)}" for p in store.problems("eval")}
        found: dict[int, list[str]] = {}
        notes = []
        for stage in store.stages():
            if stage.stage is not None and stage.stage.name == "eval" and stage.stage.part is not None:
                if stage.done:
                    found.setdefault(stage.stage.round, []).append(stage.stage.part)
                else:
                    notes.append(f"{stage.name} is not finished and is left out")
        rounds = [_round(store, number, decoders, keys) for number, decoders in sorted(found.items())]
        identity = _identity(view, recipe)
    rounds = [r for r in rounds if r.methods]
    if not rounds:
        raise StoreError(f"{folder}: no round of this run is evaluated yet, so there is nothing to compare")
    with store.sound("the recipe"):
        seed = int(recipe.get("seed", 0))
    return RunScores(
        name=name or folder.name,
        folder=str(folder),
        recipe=str(recipe.get("name", "")),
        method=str(recipe.get("method", DEFAULT_METHOD)),
        seed=seed,
        identity=identity,
        rounds=rounds,
        problems=keys,
        notes=notes,
    )


def _round(store: Store, number: int, decoders: Sequence[str], keys: Mapping[str, str]) -> RoundScores:
    methods: dict[str, Scores] = {}
    passed: Mapping[str, float] | None = None
    distinct: DistinctRight | None = None
    for decoder in decoders:
        stage = Stage(number, "eval", decoder)
        rows = stored_solutions(store, stage)
        if decoder != "samples":
            scores = single_scores(rows, needs_value=decoder != "greedy")
            methods |= {} if scores is None else {decoder: _keyed(scores, keys)}
            continue
        samples = Samples(rows)
        for method in ("sc", "bon", "wvote"):
            for k, scores in scores_over_k(samples, method).items():
                methods[f"{method}@{k}"] = _keyed(scores, keys)
        passed, distinct = pass_at(samples), distinct_right(samples)
    costs = store.costs()
    return RoundScores(
        round=number,
        methods=methods,
        spent=cost_of_policy(costs, number),
        inference=inference_of(costs, number, len(keys)),
        pass_at=passed,
        distinct_right=distinct.per_problem if distinct else None,
    )


def _keyed(scores: Scores, keys: Mapping[str, str]) -> Scores:
    """The same by keys that tell equal ids of different problems apart."""

    def keyed(found: Mapping[str, float]) -> dict[str, float]:
        return {keys.get(problem, problem): x for problem, x in found.items()}

    strict = None if scores.strict is None else keyed(scores.strict)
    return replace(scores, score=keyed(scores.score), tokens=keyed(scores.tokens), strict=strict)


def _content(text: str, answer: str) -> str:
    return hashlib.sha256(json.dumps([text, answer]).encode()).hexdigest()[:16]


def _identity(view: RunView, recipe: Mapping[str, Any]) -> str:
    """The recipe without its seed and what only sets speed and limits; keys that an older run lacks have defaults."""
    try:
        whole: Mapping[str, Any] = plain(view.recipe)
    except StoreError:  # made by another version: compared as it stands
        whole = recipe
    return json.dumps({key: value for key, value in whole.items() if key not in _ASIDE}, sort_keys=True)
