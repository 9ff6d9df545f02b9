"""Solutions that could not be checked: one remark a kind with its count, and a way to take their outcomes back.

Knows the store alone: neither what checks nor what was checked.
"""

from __future__ import annotations

from typing import Any

from treepref.runs.stage import Stage
from treepref.runs.store import Store
from treepref.types import PolicyId

_META = "check_failures"


def note_failure(store: Store, stage: Stage, problem_id: str, error: str) -> None:
    """Count a failed check of a stage. The first of its kind becomes a warning with its problem; others are added."""
    known: dict[str, Any] = store.meta(_META, {})
    first = f"problem {problem_id}: {error.splitlines()[0]}"
    kind = known.setdefault(_kind(error), {"message": first, "stages": {}})
    problems = kind["stages"].setdefault(str(stage), {})
    problems[problem_id] = problems.get(problem_id, 0) + 1
    with store.transaction():
        store.set_meta(_META, known)
        store.event("check", "warning", kind["message"])


def failure_counts(store: Store) -> dict[str, tuple[int, int]]:
    """By the message of a warning: how many solutions, of how many problems, could not be checked like that."""
    counts = {}
    for kind in store.meta(_META, {}).values():
        found = [(problem, n) for problems in kind["stages"].values() for problem, n in problems.items()]
        counts[kind["message"]] = (sum(n for _, n in found), len({problem for problem, _ in found}))
    return counts


def take_back(store: Store, policy: PolicyId) -> tuple[int, int]:
    """Forget what unfinished stages hold of problems with a solution that could not be checked, which counts as wrong.

    Returns (problems that will be done again, solutions that stay wrong). Those of stages that are done stay, and those
    in trees that another policy grew: an update may have been made on them.
    """
    known: dict[str, Any] = store.meta(_META, {})
    failed = {(stage, p) for kind in known.values() for stage, problems in kind["stages"].items() for p in problems}
    with store.transaction():
        again = {
            (stage, problem)
            for stage, problem in failed
            if not store.stage_done(stage) and not store.forget_problem(stage, problem, policy)
        }
        for kind in known.values():
            left = {
                stage: {problem: count for problem, count in problems.items() if (stage, problem) not in again}
                for stage, problems in kind["stages"].items()
            }
            kind["stages"] = {stage: problems for stage, problems in left.items() if problems}
        _put(store, known)
    return len(again), sum(count for count, _ in failure_counts(store).values())


def forget_other_stages(store: Store) -> None:
    """Forget the failures of stages that the run does not have: those of the run that it was copied from."""
    known: dict[str, Any] = store.meta(_META, {})
    here = {stage.name for stage in store.stages()}
    for kind in known.values():
        kind["stages"] = {stage: problems for stage, problems in kind["stages"].items() if stage in here}
    with store.transaction():
        _put(store, known)


def _put(store: Store, known: dict[str, Any]) -> None:
    """What is left, and the warnings of it."""
    left = {name: kind for name, kind in known.items() if kind["stages"]}
    store.set_meta(_META, left)
    store.forget_events("check")
    for kind in left.values():
        store.event("check", "warning", kind["message"])


def _kind(error: str) -> str:
    """What failed and where: the first line up to its detail, and the last place that a traceback names."""
    lines = error.splitlines()
    places = [line.strip() for line in lines[1:] if line.startswith('  File "')]
    return " ".join([lines[0].partition(":")[0], *places[-1:]])
