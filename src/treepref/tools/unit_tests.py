"""A checker of programs: the row's own tests, run in the sandbox. `task.checker: treepref.tools.unit_tests:passed`.

Needs pydantic-monty, and the subset of Python that it knows (docs/tools.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from treepref.errors import RecipeError
from treepref.tools.sandbox import Sandbox
from treepref.types import Problem

COLUMN = "tests"
_FENCED = re.compile(r"^```(?:python3?|py)?[ \t]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PASSED = "passed"


def passed(text: str, problem: Problem) -> float:
    """The share of the row's tests (column `tests`: statements such as `assert add(2, 3) == 5`) that a solution passes.

    Its program is what stands in its fenced blocks, or the whole text where there are none. Raises RecipeError for a
    row without tests.
    """
    tests = problem.meta.get(COLUMN)
    tests = [tests] if isinstance(tests, str) else tests
    if not isinstance(tests, Sequence) or not tests or not all(isinstance(test, str) for test in tests):
        raise RecipeError(f"problem {problem.id}: its row has no {COLUMN!r}, a statement or a list of them")
    program = program_of(text)
    runs = [_sandbox().submit([program, f"{test}\nprint({_PASSED!r})"]) for test in tests]
    for run in runs:
        run.done.wait()
        if run.failure is not None:
            raise run.failure
    return sum(run.observation == _PASSED for run in runs) / len(runs)


def program_of(text: str) -> str:
    """The program that a solution writes."""
    return "\n".join(_FENCED.findall(text)) or text


@cache
def _sandbox() -> Sandbox:
    return Sandbox()
