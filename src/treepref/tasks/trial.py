"""A user's checker is tried on the problems' own answers, before anything is spent on solutions that it would judge.

Knows no run and no store.
"""

from __future__ import annotations

from collections.abc import Iterable

from treepref.errors import RecipeError
from treepref.tasks.checking import Checker
from treepref.tasks.task import Task
from treepref.types import Problem
from treepref.workers.isolation import DIED, TOO_SLOW

PROBLEMS = 3
"""So many of each split are tried."""


def try_own_checker(task: Task, checker: Checker, problems: Iterable[Problem]) -> str | None:
    """Put the problems' own answers to the user's checker. A warning where it takes none of them for right, else None.

    Raises RecipeError, with the traceback, where the checker raises or returns neither True nor False, and where no
    try was answered at all. A single try that took too long or killed its process is left to the run.
    """
    asked, accepted, example = 0, 0, ""
    lost: list[tuple[Problem, str, str]] = []
    for problem in problems:
        text = task.own_solution(problem)
        correct, error = checker.try_own(text, problem)
        if error is not None and not _lost(error):
            raise RecipeError(_failure(task, problem, text, error))
        asked, accepted = asked + 1, accepted + correct
        if error is not None:
            lost.append((problem, text, error))
        example = example or f"problem {problem.id}, whose answer is {problem.answer[:60]!r}, as {_short(text)}"
    if lost and len(lost) == asked:
        raise RecipeError(_failure(task, *lost[0]))
    if not asked or accepted:
        return None
    return (
        f"task.checker {task.own_checker} takes none of the {asked} problems' own answers that it was tried on for "
        f"right, e.g. {example}. That is well where it wants another form; if it does not, every solution will be wrong"
    )


def _lost(error: str) -> bool:
    """The function gave no answer at all, which may be the first call's imports or the machine."""
    return error.startswith((TOO_SLOW, DIED))


def _failure(task: Task, problem: Problem, text: str, error: str) -> str:
    return (
        f"task.checker {task.own_checker} fails on problem {problem.id}'s own answer, given as {_short(text)}. Nothing "
        f"more was spent: mend it and run the same command again.\n{error}"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:50]} … {text[-60:]}")
