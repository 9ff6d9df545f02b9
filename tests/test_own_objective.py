"""A user's objective, by name, in a run; and what is told of one that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from loop_runs import check_same_weights
from small_runs import copy_model, run_command
from treepref.runs.store import Store

LOSSES = """
from torch.nn.functional import logsigmoid
from treepref.training.objectives import Term, dpo, log_ratios

def mine(batch, constants):
    if not batch.n_pairs:
        return {"preference": Term(batch.logp_T.sum() * 0.0, "pairs")}
    chosen_P, rejected_P = log_ratios(batch)
    return {"preference": Term(-logsigmoid(constants.beta * (chosen_P - rejected_P)).sum(), "pairs")}

def number(batch, constants):
    return batch.logp_T.sum()

def broken(batch, constants):
    return constants.gamma
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_model(tmp_path / "model")
    (tmp_path / "losses_of_mine.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_objective_of_ones_own_trains_as_the_same_one_of_ours(place: Path) -> None:
    for out, objective in (("ours", "dpo"), ("mine", "losses_of_mine:mine")):
        done = run_command("svpo", "rounds=1", f"train.objective={objective}", "train.lr=1e-3", cwd=place, out=out)
        assert done.returncode == 0, done.stderr
    check_same_weights(place / "ours" / "round-1", place / "mine" / "round-1")


@pytest.mark.parametrize(
    ("name", "told", "searched"),
    [
        ("losses_of_mine:nothing", "has no 'nothing'", False),
        ("no_such_module:loss", "cannot import 'no_such_module'", False),
        ("losses_of_mine:number", "must return a mapping of names to Term", True),
        ("losses_of_mine:broken", "has no attribute 'gamma'", True),
    ],
)
def test_what_is_no_objective_is_told(place: Path, name: str, told: str, searched: bool) -> None:
    done = run_command("svpo", "rounds=1", f"train.objective={name}", cwd=place)
    assert done.returncode == 2 and told in done.stderr, done.stderr
    with Store(place / "run", read_only=True) as store:
        assert bool(store.costs()) is searched, "what cannot be imported is told before anything is spent"
