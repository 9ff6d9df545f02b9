"""Solutions that could not be checked: one remark a kind with its count, and a way to take their outcomes back.

Knows the store alone: neither what checks nor what was checked.
"""

from __future__ import annotations

import re
from typing import Any

from treepref.store import Store

_META = "check_failures"
_CHECKING = re.compile(r"round-\d+/(search|labels|eval/.+)")
"""Stages whose solutions are checked."""


def note_failure(store: Store, problem_id: str, error: str) -> None:
    """Count a failed check. The first of its kind becomes a warning with its problem; the others are added to it."""
    known: dict[str, Any] = store.meta(_META, {})
    first = f"problem {problem_id}: {error.splitlines()[0]}"
    kind = known.setdefault(_kind(error), {"message": first, "stages": {}})
    problems = kind["stages"].setdefault(_stage(store), {})
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


def take_back(store: Store, policy_version: int) -> tuple[int, int]:
    """Forget what unfinished stages hold of problems with a solution that could not be checked, which counts as wrong.

    Returns (problems that will be done again, solutions that stay wrong because their stage is done). Trees that
    another policy grew stay: an update may have been made on them.
    """
    known: dict[str, Any] = store.meta(_META, {})
    again: set[tuple[str, str]] = set()
    with store.transaction():
        for kind in known.values():
            for stage in [name for name in kind["stages"] if not store.stage_done(name)]:
                problems = kind["stages"].pop(stage)
                again |= {(stage, problem) for problem in problems}
        for stage, problem in again:
            store.forget_problem(stage, problem, policy_version)
        store.set_meta(_META, {name: kind for name, kind in known.items() if kind["stages"]})
        store.forget_events("check")
        for kind in known.values():
            if kind["stages"]:
                store.event("check", "warning", kind["message"])
    return len(again), sum(count for count, _ in failure_counts(store).values())


def _kind(error: str) -> str:
    """What failed and where: the first line up to its detail, and the last place that a traceback names."""
    lines = error.splitlines()
    places = [line.strip() for line in lines[1:] if line.startswith('  File "')]
    return " ".join([lines[0].partition(":")[0], *places[-1:]])


def _stage(store: Store) -> str:
    running = [stage.name for stage in store.stages() if stage.status != "done" and _CHECKING.fullmatch(stage.name)]
    return running[-1] if running else "run"
