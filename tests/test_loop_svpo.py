"""The whole loop for real: the shipped tiny base, a few problems, every stage, killed and resumed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kill_plans import Death, check_same_run, killed_and_resumed, lives_of
from loop_runs import check_same_weights, digest
from treepref.errors import BudgetError, RecipeError, StoreError, TooFewPairs
from treepref.loops.run import run as run_recipe
from treepref.models.policy import BUILTIN
from treepref.recipes.reading import load_recipe
from treepref.report.html import PLOTLY
from treepref.runs.store import Store
from treepref.training.checkpoints import Checkpoint, save_checkpoint

SMALL = [
    "seed=3", "rounds=1", "engine.threads=1", "engine.max_rows=64", "task.splits.train=24", "task.splits.eval=20",
    "search.simulations=8", "search.children=4", "pairs.min_problems=2", "pairs.min_visits=1", "eval.samples=8",
    "eval.samples_between=0", "eval.sbs=[[1, 2]]", "budget.seconds=null",
]  # fmt: skip


def run(out: Path, *more: str) -> dict:
    run_recipe(load_recipe("quickstart", [*SMALL, *more]), out)
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    run(out)
    return out


def test_results_hold_every_method_with_interval_and_tokens(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert [r["round"] for r in results["rounds"]] == [0, 1]
    first, last = (r["eval"] for r in results["rounds"])
    assert first["bon@8"] is None, "no samples in round 0: null, not zero"
    assert first["sbs(1,2)"] is not None, "the first policy has values too"
    for method in ("greedy", "sc@8", "bon@8", "wvote@8", "sbs(1,2)"):
        entry = last[method]
        assert entry["n"] == 20 and 0 <= entry["interval"][0] <= entry["accuracy"] <= entry["interval"][1] <= 1
        assert entry["tokens_per_problem"] > 0
    assert set(results["rounds"][1]["pass@k"]) == {"1", "2", "4", "8"}
    cost = results["cost"]
    assert all(cost[k] > 0 for k in ("generated_tokens", "cached_tokens", "training_tokens", "flops", "seconds"))


def test_a_round_starts_from_an_untrained_preference(finished: Path) -> None:
    with Store(finished, read_only=True) as store:
        steps = store.meta("steps/round-1/train")
        assert store.count_trees("round-1/search") == 24
        assert store.count_pairs(1) > 0
    assert steps[0]["loss_preference"] == pytest.approx(math.log(2), abs=1e-3)


def test_the_round_folder_loads_in_plain_transformers(finished: Path) -> None:
    folder = finished / "round-1"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("State the final answer to the following arithmetic problem: 4 + 3 =\n", return_tensors="pt")
    assert torch.isfinite(model(**ids).logits).all()
    assert (folder / "value_head.safetensors").is_file()
    base = AutoModelForCausalLM.from_pretrained(BUILTIN["builtin:tiny-base"])
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))


def test_the_report_draws_trees_and_loads_only_what_lies_beside_it(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "State the final answer" in page
    assert page.count(" src=") == 1 and f'<script src="{PLOTLY}">' in page and (finished / PLOTLY).is_file()


def test_running_again_does_nothing_again(finished: Path) -> None:
    before, spent = digest(finished), json.loads((finished / "results.json").read_text())["cost"]
    run(finished)
    assert digest(finished) == before
    assert json.loads((finished / "results.json").read_text())["cost"] == spent


def test_training_state_that_a_kill_left_behind_a_finished_stage_is_removed(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    state = Checkpoint(identity={}, progress={"steps": 2}, weights={}, optimizer={})
    left = save_checkpoint(tmp_path / "run" / "checkpoints" / "round-1-train", state)
    assert left.is_dir()
    run(tmp_path / "run")
    assert not left.exists()


def test_a_changed_recipe_is_refused_with_the_difference(finished: Path) -> None:
    with pytest.raises(RecipeError, match=r"search\.children: 4 → 5"):
        run(finished, "search.children=5")


def test_a_budget_stops_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"budget\.tokens"):
        run(tmp_path, "budget.tokens=6000")
    with Store(tmp_path, read_only=True) as store:
        stored = store.cost()
    assert stored.generated_tokens > 0
    results = run(tmp_path, "budget.tokens=100000000")
    assert len(results["rounds"]) == 2


def test_too_few_mixed_problems_stop_with_advice(tmp_path: Path) -> None:
    strange = "task.params={min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}"  # shorter than it ever saw
    with pytest.raises(TooFewPairs, match=r"only \d+ problems gave a pair(.|\n)*take easier problems"):
        run(tmp_path, strange, "pairs.min_problems=24")
    assert not (tmp_path / "round-1").exists(), "nothing was trained"


def test_a_second_process_is_kept_out(finished: Path) -> None:
    with Store(finished), pytest.raises(StoreError, match=r"in use|locked"):
        run(finished)


# ---- kill and resume -------------------------------------------------------------------------------------------------

EXACT = [
    "engine.batch_invariant=true", "task.splits.train=7", "task.splits.eval=2", "eval.samples=2", "train.batch_trees=2",
    "task.params={min_terms: 5, max_terms: 6, min_digits: 1, max_digits: 1}", "search.simulations=5",
]  # fmt: skip
SHORT = [
    ("commit", "row journal round-1/search "),
    ("inside", r"write checkpoints/round-1-train/step-\d+.part/state.pt"),
    ("after", "rename round-1$"),  # the folder is there and its row is not
    ("after", "rename round-1.old$"),  # so it is replaced: here it is aside, and its successor has not its name yet
]
LONG = [
    ("after", "rename recipe.yaml"),
    ("inside", "row problems train "),
    ("before", "submit round-0/eval/greedy "),
    ("after", "submit round-0/eval/greedy "),
    ("commit", "row outcomes round-0/eval/greedy "),
    *[("before", "submit round-1/search ")] * 2,
    ("inside", "row journal round-1/search "),
    ("after", "row trees round-1/search "),
    ("inside", "row pairs 1 "),
    ("before", "step round-1/train "),
    ("after", r"rename checkpoints/round-1-train/step-\d+"),
    ("inside", "write round-1$"),
    ("after", "row stages done round-1/train"),
    ("before", "submit round-1/eval/"),
    ("inside", "write scratch/report/results.json"),
]


def check_killed_run(tmp_path: Path, wanted: list[Death], *more: str) -> None:
    with lives_of("loop_runs:play") as lives:
        killed_and_resumed(lives, tmp_path, 5, wanted, "quickstart", *SMALL, *EXACT, *more)
    check_same_run(tmp_path)
    check_same_weights(tmp_path / "whole" / "round-1", tmp_path / "killed" / "round-1")


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    check_killed_run(tmp_path, SHORT)


@pytest.mark.long
def test_twenty_kills(tmp_path: Path) -> None:
    wanted = [*SHORT, *LONG]
    assert len(wanted) == 20
    check_killed_run(tmp_path, wanted)
