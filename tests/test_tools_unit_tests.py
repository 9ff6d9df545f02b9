"""Programs judged by their rows' own tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from treepref.config import SplitConfig, TaskConfig
from treepref.errors import RecipeError
from treepref.tasks.loading import load_splits
from treepref.tasks.task import load_task
from treepref.tools.unit_tests import passed, program_of
from treepref.types import Problem

TESTS = ["assert add(2, 3) == 5", "assert add(-1, 1) == 0"]
RIGHT = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nThat is all."


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (RIGHT, 1.0),
        (RIGHT.replace("a + b\n", "abs(a) + b\n"), 0.5),
        ("def add(a, b):\n    return a + b\n", 1.0),
        ("```python\ndef add(a, b)\n    return a + b\n```", 0.0),
        ("```python\nprint('passed')\n```", 0.0),
        ("```python\nwhile True:\n    pass\n```", 0.0),
        ("```python\ndef add(a, b):\n    return a + b\n```\nand\n```python\nadd(1, 2)\n```", 1.0),
        ("", 0.0),
    ],
)
def test_a_program_is_worth_the_share_of_its_tests(text: str, share: float) -> None:
    pytest.importorskip("pydantic_monty")
    assert passed(text, Problem("p", "Write add.", "", None, {"tests": TESTS})) == share


@pytest.mark.parametrize("meta", [{}, {"tests": []}, {"tests": [1]}, {"tests": {"a": 1}}])
def test_a_row_without_tests_is_told(meta: dict) -> None:
    with pytest.raises(RecipeError, match="has no 'tests'"):
        passed(RIGHT, Problem("p", "Write add.", "", None, meta))


def test_it_is_a_tasks_checker(tmp_path: Path) -> None:
    pytest.importorskip("pydantic_monty")
    rows = [{"question": f"Write add number {n}.", "tests": TESTS} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = TaskConfig(kind="jsonl", path=str(tmp_path / "rows.jsonl"), checker="treepref.tools.unit_tests:passed",
                     check_seconds=60, splits=SplitConfig(train=4, eval=2))  # fmt: skip
    problem = load_splits(cfg, seed=0).train[0]
    with load_task(cfg).checker() as checker:
        right, half = checker.check(RIGHT, problem), checker.check(RIGHT.replace("a + b\n", "abs(a) + b\n"), problem)
    assert (right.correct, right.score, half.correct, half.score) == (True, 1.0, False, 0.5)
    assert right.error is None and program_of(RIGHT).startswith("def add")
