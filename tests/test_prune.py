"""Models that nothing needs go; the run goes on as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from small_runs import copy_model, run_command, treepref_command
from treepref.runs.store import Store


@pytest.mark.parametrize("method", ["svpo", "dpo_st"])
def test_models_between_are_removed_and_the_run_goes_on(tmp_path: Path, method: str) -> None:
    copy_model(tmp_path / "model")
    more = ["self_training.patience=0"] if method == "dpo_st" else []
    assert run_command(method, "rounds=3", *more, cwd=tmp_path).returncode == 0
    run = tmp_path / "run"
    best = json.loads((run / "results.json").read_text())["best_round"]
    before = {path.name for path in run.glob("round-*")}
    dry = treepref_command("prune", "run", "--dry-run", cwd=tmp_path)
    assert "would be removed" in dry.stdout and {path.name for path in run.glob("round-*")} == before
    done = treepref_command("prune", "run", cwd=tmp_path)
    assert done.returncode == 0 and "removed: " in done.stdout, done.stderr
    left = {path.name for path in run.glob("round-*")}
    assert {"round-3", f"round-{best}"} & before <= left < before and ("round-0" in left) == ("round-0" in before)
    assert treepref_command("prune", "run", cwd=tmp_path).stdout.strip() == "nothing to remove"
    digest = treepref_command("digest", "run", cwd=tmp_path).stdout
    again = run_command(method, "rounds=3", *more, cwd=tmp_path)
    assert again.returncode == 0 and treepref_command("digest", "run", cwd=tmp_path).stdout == digest
    with Store(run, read_only=True) as store:
        assert not any("is not there any more" in event.message for event in store.events())
    assert run_command(method, "rounds=4", *more, cwd=tmp_path).returncode == 0, "and another round begins"
    gone = min(before - left)
    refused = treepref_command("eval", "run", "--round", gone[6], cwd=tmp_path)
    assert refused.returncode in (0, 2)
    forked = treepref_command("fork", "run", "forked", "rounds=2", "-q", cwd=tmp_path)
    assert forked.returncode == 0, f"a fork makes its own models: {forked.stderr}"
