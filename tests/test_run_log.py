"""What a run leaves beside its database: its log, its steps' metrics; and what its command ends with."""

from __future__ import annotations

import json
from pathlib import Path

from small_runs import copy_model, run_command
from treepref import errors
from treepref.progress import LOG_SECONDS, Progress, set_log
from treepref.runs.run_log import RunLog
from treepref.runs.store import Store


def test_a_run_leaves_a_log_and_a_line_a_step(tmp_path: Path) -> None:
    copy_model(tmp_path / "model")
    stopped = run_command("svpo", "rounds=1", "budget.tokens=500", cwd=tmp_path)
    assert stopped.returncode == errors.BudgetError.exit_code == 3
    assert run_command("svpo", "rounds=1", "budget.tokens=null", cwd=tmp_path).returncode == 0
    log = (tmp_path / "run" / "run.log").read_text().splitlines()
    assert all(line[4] == "-" and line[13] == ":" for line in log)
    assert any("stopped in round-1/search: budget reached" in line for line in log)
    assert sum("round-1: train" in line and "begun" in line for line in log) == 1
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    with Store(tmp_path / "run", read_only=True) as store:
        kept = store.meta("steps/round-1/train")
    assert [{k: v for k, v in step.items() if k not in ("time", "stage")} for step in steps] == kept
    assert {step["stage"] for step in steps} == {"round-1/train"}


def test_progress_is_logged_whatever_the_terminal_shows() -> None:
    now, lines = [0.0], []
    set_log(lines.append)
    try:
        with Progress("search", 10, unit="trees", quiet=True, clock=lambda: now[0]) as progress:
            progress.update(done=1)
            now[0] = LOG_SECONDS
            progress.update(done=5)
            progress.update(done=6)
    finally:
        set_log(None)
    assert [line.split(" ")[1] for line in lines] == ["0/10", "5/10", "6/10"]


def test_a_log_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "run.log").mkdir()
    RunLog(tmp_path).line("told to nobody")
    RunLog(tmp_path / "gone").step("round-1/train", {"loss": 1.0})


def test_every_error_has_its_code() -> None:
    codes = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert codes.pop("TreeprefError") == 2 and {k for k, v in codes.items() if v != 2} == {
        "BudgetError", "TooFewPairs", "EngineError", "CheckerError"
    }  # fmt: skip
    listed = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
    assert all(f"| {code} |" in listed for code in codes.values())
