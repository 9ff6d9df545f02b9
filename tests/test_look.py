"""`check`, `status`, `runs` and `show`: what a run would see, and where one stands."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from small_runs import METHODS, contents, copy_model, run_command, treepref_command
from treepref.loops.stored import best_round
from treepref.runs.run_folder import lock_holder
from treepref.runs.store import Store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("look")
    copy_model(place / "model")
    for out, more in (("runs/done", []), ("runs/stopped", ["budget.tokens=500"])):
        done = run_command("svpo", "rounds=1", *more, cwd=place, out=out)
        assert done.returncode == (3 if more else 0), done.stderr
    return place


# ---- check


def test_check_shows_splits_prompt_and_solutions_and_leaves_nothing(place: Path) -> None:
    recipe, *overrides = METHODS["svpo"]
    before = contents(place)
    done = treepref_command("check", recipe, *overrides, "warmup.epochs=1", "task.splits.labelled=4", cwd=place)
    assert done.returncode == 0, done.stderr
    for told in (
        "solutions for the warm-up",
        "No row was set aside",
        "count as right when stated as the task",
        "before",
    ):
        assert told in done.stdout
    assert "as the model sees it" in done.stdout and "a solution ends with '<eos>'" in done.stdout
    assert done.stdout.count(", greedy: ") == 3 and done.stdout.count(", temperature ") == 1
    assert contents(place) == before


def test_check_says_what_is_set_aside_and_what_the_checker_refuses(place: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{a} + 1 = ?", "answer": str(a + 1)} for a in range(60)]
    rows += [{"question": "0 + 1 = ?", "answer": "1"}, {"quastion": "x", "answer": "1"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "strict.py").write_text("def check(text, problem):\n    return text.startswith('Answer')\n")
    shutil.copytree(place / "model", tmp_path / "model")
    recipe, *overrides = METHODS["svpo"]
    task = ["task.kind=jsonl", "task.path=rows.jsonl", "task.params={}", "task.slips=0", "task.granularity=[1]"]
    task += ["task.checker=strict:check", "task.prompt='{question}'"]
    done = treepref_command("check", recipe, *overrides, *task, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert ("same question as" in said and "no column question" in said) or "has no" in said
    assert "warning: task.checker strict:check takes none of" in said and "Own answers: 0 of" in said
    done = treepref_command("check", recipe, *overrides, *task, "task.path=other.jsonl", cwd=tmp_path)
    assert done.returncode == 2 and "other.jsonl" in done.stderr


# ---- status, runs, show


def test_status_says_where_a_run_stands(place: Path) -> None:
    done = treepref_command("status", "runs/done", cwd=place)
    assert done.returncode == 0 and "Done." in done.stdout and "Best round by greedy accuracy" in done.stdout
    assert "round-1/search" in done.stdout and "begun" not in done.stdout
    stopped = treepref_command("status", "runs/stopped", cwd=place)
    assert "Stopped at round-1/search: budget reached" in stopped.stdout and "trees)" in stopped.stdout
    assert treepref_command("status", "runs/none", cwd=place).returncode == 2


def test_a_run_that_goes_on_is_said_to(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "runs" / "stopped", tmp_path / "run")
    assert lock_holder(tmp_path / "run") is None
    with Store(tmp_path / "run"):
        assert str(os.getpid()) in str(lock_holder(tmp_path / "run"))
        assert "Going on: held by process" in treepref_command("status", "run", cwd=tmp_path).stdout
    assert "Going on" not in treepref_command("status", "run", cwd=tmp_path).stdout


def test_runs_lists_them_all_the_damaged_too(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.db").write_bytes(b"no database")
    done = treepref_command("runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {
        name: next(line for line in done.stdout.splitlines() if line.strip().startswith(name))
        for name in ("done", "stopped", "broken")
    }
    assert "1/1" in lines["done"] and "0/1" in lines["stopped"] and "broken" in lines["broken"]
    assert treepref_command("runs", "nowhere", cwd=tmp_path).returncode == 2


def test_show_tells_a_problems_searches_and_answers(place: Path) -> None:
    with Store(place / "runs" / "done", read_only=True) as store:
        searched, asked = next(store.problems("train")), next(store.problems("eval"))
        best = best_round(store)
        assert best is not None and 0 <= best.accuracy <= 1
        right = [r.right for r in store.tree_rows("round-1/search") if r.problem_id == searched.id]
    done = treepref_command("show", "runs/done", searched.id, cwd=place)
    assert done.returncode == 0 and searched.text.splitlines()[0] in done.stdout
    assert "round-1/search: a tree of" in done.stdout and ("right" in done.stdout) >= bool(right[0])
    done = treepref_command("show", "runs/done", asked.id, cwd=place)
    assert "round-0/eval/greedy: " in done.stdout and "round-1/eval/samples: " in done.stdout
    done = treepref_command("show", "runs/done", "nothing", cwd=place)
    assert done.returncode == 2 and searched.id in done.stderr
