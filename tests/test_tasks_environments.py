"""Tasks made to the interface of the library verifiers: rows, rewards, and a whole small run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from small_runs import METHODS, copy_model, treepref_command
from treepref.config import SplitConfig, TaskConfig
from treepref.errors import DataError, RecipeError
from treepref.runs.store import Store
from treepref.tasks.environments import load_environment, reward
from treepref.tasks.loading import load_splits
from treepref.tasks.task import load_task

MODULE = """
from types import SimpleNamespace

def last(completion, answer, **more):
    return 1.0 if completion[-1]["content"].rstrip().endswith(answer) else 0.0

async def short(completion, info, parser):
    return 1.0 if len(completion[-1]["content"]) <= info["longest"] else 0.0

def counted(state):
    raise AssertionError("a metric, which weighs nothing")

def rows(first, count, form):
    for a in range(first, first + count):
        question = f"{a} + 1 = ?"
        prompt = [{"role": "system", "content": "Add."}, {"role": "user", "content": question}]
        row = {"answer": str(a + 1), "info": '{"longest": 400}'}
        yield row | ({"question": question} if form == "question" else {"prompt": prompt})

def load_environment(form="question", held_out=True, turns=1, functions=True, broken=False):
    if broken:
        raise ValueError("no such level")
    rubric = SimpleNamespace(funcs=[last, short, counted] if functions else [], weights=[1.0, 0.5, 0.0])
    rubric.weights = rubric.weights[: len(rubric.funcs)]
    return SimpleNamespace(
        dataset=list(rows(0, 40, form)), eval_dataset=list(rows(100, 20, form)) if held_out else None,
        rubric=SimpleNamespace(rubrics=[rubric]), parser="the parser", max_turns=turns, system_prompt="Add up.",
    )
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sums_environment.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def config(**params) -> TaskConfig:
    return TaskConfig(kind="verifiers", name="sums_environment", params=params, pass_score=1.5,
                      splits=SplitConfig(train=10, eval=5))  # fmt: skip


@pytest.mark.parametrize("form", ["question", "prompt"])
def test_rows_become_problems_and_rewards_judge(place: Path, form: str) -> None:
    splits = load_splits(config(form=form), seed=0)
    assert (len(splits.train), len(splits.eval), splits.system) == (10, 5, "Add up.")
    assert all(p.text.endswith("+ 1 = ?") for p in splits.train)
    assert all(int(p.answer) > 100 for p in splits.eval) and all(int(p.answer) <= 40 for p in splits.train)
    problem = splits.train[0]
    assert reward(f"It is {problem.answer}", problem) == 1.5 and reward("x" * 401, problem) == 0.0
    with load_task(config(form=form)).checker() as checker:
        right, half, wrong = (checker.check(t, problem) for t in (f"so {problem.answer}", "no", "x" * 500))
    assert (right.correct, half.correct, wrong.correct) == (True, False, False) and right.error is None
    assert (right.score, round(half.score, 3), wrong.score) == (1.0, 0.333, 0.0)


def test_evaluation_is_divided_off_where_there_is_none(place: Path) -> None:
    splits = load_splits(config(held_out=False), seed=0)
    assert len(splits.train) == 10 and len(splits.eval) == 5
    assert not {p.text for p in splits.train} & {p.text for p in splits.eval}


@pytest.mark.parametrize(
    ("name", "params", "told"),
    [
        ("no_such_environment", {}, "cannot import 'no_such_environment'"),
        ("json", {}, "has no 'load_environment'"),
        ("sums_environment", {"turns": 5}, "several turns"),
        ("sums_environment", {"functions": False}, "no reward functions"),
        ("sums_environment", {"broken": True}, "ValueError: no such level"),
        ("sums_environment", {"colour": 1}, "unexpected keyword argument"),
    ],
)
def test_what_is_no_such_task_is_told(place: Path, name: str, params: dict, told: str) -> None:
    with pytest.raises((RecipeError, DataError), match=told):
        load_environment(name, params)


def test_a_run_on_an_environment(place: Path) -> None:
    copy_model(place / "model")
    recipe, *overrides = METHODS["svpo"]
    task = [
        "task.kind=verifiers",
        "task.name=sums_environment",
        "task.params={}",
        "task.pass_score=1.5",
        "task.slips=0",
    ]
    task += ["task.slips=0", "task.granularity=[1]", "task.prompt='{question} '", "pairs.min_problems=1", "rounds=0"]
    done = treepref_command("run", recipe, *overrides, *task, "-q", "--out", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    with Store(place / "run", read_only=True) as store:
        assert store.meta("system") == "Add up." and store.count_outcomes("round-0/eval/greedy") > 0
        (meta,) = {json.dumps(p.meta["environment"]["params"]) for p in store.problems("eval")}
    assert meta == "{}"
    done = treepref_command("check", recipe, *overrides, *task, cwd=place)
    assert done.returncode == 0 and "Own answers: " in done.stdout, done.stderr


def test_the_library_itself(place: Path) -> None:
    vf = pytest.importorskip("verifiers", reason="not run: verifiers is not installed")
    (place / "real_environment.py").write_text(
        "import verifiers as vf\n"
        "from datasets import Dataset\n"
        "def right(completion, answer):\n"
        "    return 1.0 if completion[-1]['content'].endswith(answer) else 0.0\n"
        "def load_environment():\n"
        "    rows = Dataset.from_list([{'question': f'{a} + 1 = ?', 'answer': str(a + 1)} for a in range(30)])\n"
        "    return vf.SingleTurnEnv(dataset=rows, rubric=vf.Rubric(funcs=[right]), system_prompt='Add.')\n"
    )
    assert vf.SingleTurnEnv is not None
    cfg = TaskConfig(kind="verifiers", name="real_environment", splits=SplitConfig(train=10, eval=5))
    splits = load_splits(cfg, seed=0)
    assert splits.system == "Add." and len(splits.train) == 10
    assert reward(splits.train[0].answer, splits.train[0]) == 1.0 and reward("x", splits.train[0]) == 0.0
