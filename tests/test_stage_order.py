"""A stage is refused while one that it stands on is not done, with the command to give and without a trace."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import pytest

from small_runs import METHODS, ONLY_FOR_DPO, apart_from, contents, copy_model, run_command, treepref_command
from treepref.loops.session import Session
from treepref.recipes.reading import load_recipe
from treepref.runs.store import Store

CHAINS = {
    "svpo": ["search 1", "pairs 1", "train 1", "search 2", "pairs 2", "train 2"],
    "mcts_dpo": ["search 1", "search 2"],
    "dpo_st": ["sft 0"] + [f"{s} {r}" for r in (1, 2) for s in ("search", "pairs", "dpo", "labels", "train")],
}
"""What stands on what, in order."""


def trace(run: Path) -> tuple:
    with Store(run, read_only=True) as store:
        stages = [(s.name, s.status) for s in store.stages()]
        return stages, store.events(), store.costs(), store.meta("policy/base")


def refused(run: Path, stage: str, *more: str) -> str:
    """What a stage command says that must be refused; the run must be as before."""
    before, files = trace(run), contents(run).keys()
    done = treepref_command(stage, str(run), "-q", *more, cwd=run.parent)
    assert done.returncode == 2, f"{stage} {more} was not refused"
    assert trace(run) == before
    assert {name for name in contents(run) if not name.startswith(("run.db", "scratch"))} <= files
    return done.stderr


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first search was stopped by its budget, in a place with its model."""
    place = tmp_path_factory.mktemp("stopped")
    copy_model(place / "model")
    done = run_command("svpo", "rounds=2", "budget.tokens=500", cwd=place)
    assert done.returncode == 3 and "budget reached" in done.stderr, done.stderr
    with Store(place / "run", read_only=True) as store:
        assert 0 < store.count_trees("round-1/search") < 10 and not store.stage_done("round-1/search")
    return place


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (["train"], "treepref search {run} --round 1"),
        (["pairs"], "treepref search {run} --round 1"),
        (["search", "--round", "2"], "treepref search {run} --round 1"),
        (["train", "--round", "2"], "treepref search {run} --round 1"),
        (["eval", "--round", "1"], "treepref search {run} --round 1"),
        (["eval", "--round", "5"], "goes from round 0 to round 2"),
        (["search", "--round", "5"], "goes from round 1 to round 2"),
        (["train", "--round", "0"], "goes from round 1 to round 2"),
        (["labels"], "svpo has no stage labels"),
    ],
)
def test_a_stage_out_of_turn_is_refused_without_a_trace(run: Path, command: list[str], wanted: str) -> None:
    assert wanted.format(run=run) in refused(run, *command)


def test_the_commands_that_are_named_lead_to_the_end(run: Path) -> None:
    """Following the messages alone makes the run that `treepref run` makes."""
    for _ in range(8):
        done = treepref_command("train", str(run), "-q", "--round", "1", cwd=run.parent)
        if done.returncode == 0:
            break
        command = done.stderr.partition("run `treepref ")[2].partition("`")[0].split()
        with Store(run) as store:  # the recipe's budget, lifted as a resumed run would
            store.set_meta("recipe", store.meta("recipe") | {"budget": {}})
        assert treepref_command(*command, "-q", cwd=run.parent).returncode == 0
    with Store(run, read_only=True) as store:
        assert [s.name for s in store.stages() if s.status == "done" and "eval" not in s.name] == [
            "round-1/search", "round-1/pairs", "round-1/train",
        ]  # fmt: skip
        assert store.count_trees("round-1/search") == 10 and store.count_pairs(1) > 0


@pytest.mark.parametrize("method", CHAINS)
def test_every_stage_of_every_method_waits_for_those_before_it(tmp_path: Path, method: str) -> None:
    from treepref.loops.order import check_stage

    copy_model(tmp_path / "model")
    recipe, *overrides = METHODS[method]
    path = f"model.path={tmp_path / 'model'}"
    with Session(tmp_path / "run", load_recipe(recipe, [*overrides, path, "rounds=2"])) as session:
        order = import_module(f"treepref.loops.{method}").order(session.recipe)

        def allowed(stage: str, round: int) -> bool:
            try:
                check_stage(session, order, stage, round)
            except Exception:
                return False
            return True

        def mark(stage: str, round: int) -> None:
            for name in ("search", "pairs", "train") if method == "mcts_dpo" else (stage,):
                session.store.start_stage(f"round-{round}/{name}")
                session.store.finish_stage(f"round-{round}/{name}")

        chain = [(name, int(round)) for name, round in (text.split() for text in CHAINS[method])]
        for position, (name, round) in enumerate(chain):
            assert allowed(name, round)
            assert not any(allowed(*later) for later in chain[position + 1 :]), f"allowed before {name} {round}"
            assert not allowed("eval", round) and (round == 0 or allowed("eval", round - 1))
            mark(name, round)
        assert allowed("eval", 2) and not allowed("eval", 3)


@pytest.mark.parametrize("online", ["true", "false"])
def test_a_stop_is_noted_with_the_stage_that_it_came_in(tmp_path: Path, online: str) -> None:
    copy_model(tmp_path / "model")
    done = run_command("mcts_dpo", "budget.tokens=500", f"online.enabled={online}", cwd=tmp_path)
    assert done.returncode == 3 and "budget reached" in done.stderr, done.stderr
    with Store(tmp_path / "run", read_only=True) as store:
        assert [event.stage for event in store.events() if event.level == "error"] == ["round-1/search"]


def test_switched_off_stages_are_said_to_be(tmp_path: Path) -> None:
    copy_model(tmp_path / "model")
    recipe, *overrides = METHODS["dpo_st"]
    more = [f"model.path={tmp_path / 'model'}", "self_training.dpo=false"]
    own = apart_from(overrides, *ONLY_FOR_DPO)
    Session(tmp_path / "run", load_recipe(recipe, [*own, *more])).__exit__(None, None, None)
    assert "switched off" in refused(tmp_path / "run", "dpo")
    assert "treepref sft" in refused(tmp_path / "run", "labels")


def test_a_run_that_learned_from_half_of_its_search_is_not_gone_on_with(run: Path) -> None:
    with Store(run) as store:  # as an older version left it
        for stage in ("round-1/pairs", "round-1/train"):
            store.start_stage(stage)
            store.finish_stage(stage)
    (run / "round-1").mkdir()
    for command in (["search", str(run)], ["run", *METHODS["svpo"], "rounds=2", "--out", str(run)]):
        done = treepref_command(*command, "-q", cwd=run.parent)
        assert done.returncode == 2 and "was done before round-1/search" in done.stderr


def test_how_a_round_learns_may_change_until_it_does(tmp_path: Path) -> None:
    copy_model(tmp_path / "model")
    stopped = run_command("svpo", "rounds=1", "pairs.min_gap=1.99", "pairs.min_problems=10", cwd=tmp_path)
    assert stopped.returncode == 4 and "only" in stopped.stderr
    with Store(tmp_path / "run", read_only=True) as store:
        search = store.digest("round-1/search")
    other = ["rounds=1", "pairs.min_gap=0.1", "pairs.min_problems=1", "train.lr=1e-4"]
    assert run_command("svpo", *other, cwd=tmp_path).returncode == 0
    with Store(tmp_path / "run", read_only=True) as store:
        assert store.digest("round-1/search") == search and store.count_pairs(1) > 0
        assert any("resumed with pairs.min_gap: 1.99 → 0.1" in event.message for event in store.events())
    refused = run_command("svpo", *other, "pairs.min_gap=0.5", cwd=tmp_path)
    assert refused.returncode == 2 and "treepref fork RUN OUT" in refused.stderr
    refused = run_command("svpo", *other, "pairs.min_gap=0.5", "search.children=7", cwd=tmp_path)
    assert refused.returncode == 2 and "treepref fork" not in refused.stderr
