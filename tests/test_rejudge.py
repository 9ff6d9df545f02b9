"""Stored solutions judged anew: other verdicts, the same samples, and what follows made anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_runs import METHODS, copy_model, treepref_command
from treepref.runs.store import Store
from treepref.search.base import solution_tokens

CHECKERS = """
def first(text, problem):
    return text.rstrip().endswith(problem.answer)

def never_nine(text, problem):
    return '9' not in text

def parts(text, problem):
    return 1.0 if first(text, problem) else 0.5 if '1' in text else 0.0

def broken(text, problem):
    raise KeyError(problem.id)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rejudge")
    copy_model(place / "model")
    (place / "judges.py").write_text(CHECKERS)
    for method in ("svpo", "dpo_st"):
        recipe, *overrides = METHODS[method]
        more = ["task.checker=judges:first", "model.path=./model", "rounds=1"]
        done = treepref_command("run", recipe, *overrides, *more, "-q", "--out", method, cwd=place)
        assert done.returncode == 0, done.stderr
    return place


def rejudge(place: Path, run: str, out: str, *overrides: str) -> str:
    done = treepref_command("rejudge", run, *overrides, "-q", "--out", out, cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trees(run: Path, stage: str) -> list[list[tuple]]:
    with Store(run, read_only=True) as store:
        return [
            [(n.tokens, n.visits, round(n.total, 9), n.reward, n.terminal) for n in tree.nodes]
            for tree in store.trees(stage)
        ]


@pytest.mark.parametrize("method", ["svpo", "dpo_st"])
def test_verdicts_change_samples_do_not_and_the_way_back_is_the_run_itself(place: Path, method: str) -> None:
    before = trees(place / method, "round-1/search")
    rejudge(place, method, f"{method}-other", "task.checker=judges:never_nine")
    other = trees(place / f"{method}-other", "round-1/search")
    assert [[n[:2] for n in tree] for tree in before] == [[n[:2] for n in tree] for tree in other]
    assert before != other
    with Store(place / f"{method}-other", read_only=True) as store:
        assert any("judged anew: of" in event.message for event in store.events())
        assert store.stage_done("round-1/eval"), "it went on"
        texts = {row["text"]: row["correct"] for _, _, row in store.outcomes("round-0/eval/greedy")}
        assert all(right == ("9" not in text) for text, right in texts.items() if text)
        assert store.meta("summary/0")["eval"]["greedy"]["accuracy"] == sum(
            row["correct"] for _, _, row in store.outcomes("round-0/eval/greedy")
        ) / store.count_outcomes("round-0/eval/greedy")
    rejudge(place, f"{method}-other", f"{method}-back", "task.checker=judges:first")
    assert trees(place / f"{method}-back", "round-1/search") == before
    with Store(place / method, read_only=True) as one, Store(place / f"{method}-back", read_only=True) as two:
        stages = [stage.name for stage in one.stages() if stage.name != "round-1/train"]
        assert {name: one.digest(name) for name in stages} == {name: two.digest(name) for name in stages}


def test_every_ancestor_gets_the_difference(place: Path) -> None:
    rejudge(place, "svpo", "parts", "task.checker=judges:parts")
    with Store(place / "svpo", read_only=True) as one, Store(place / "parts", read_only=True) as two:
        for old, new in zip(one.trees("round-1/search"), two.trees("round-1/search"), strict=True):
            for a, b in zip(old.nodes, new.nodes, strict=True):
                path = solution_tokens(b)
                ends = [n for n in new.nodes if n.reward is not None and solution_tokens(n)[: len(path)] == path]
                moved = sum((n.reward - old.nodes[n.index].reward) * n.visits for n in ends)
                assert b.total == pytest.approx(a.total + moved)
                assert b.reward in (None, 1.0, -0.5, -1.0)


def test_what_cannot_be_rejudged_is_told_and_leaves_nothing(place: Path) -> None:
    for overrides, told in (
        (["search.children=9"], "only how answers are judged may change"),
        (["task.checker=judges:broken"], "KeyError"),
        (["task.checker=judges:nothing"], "has no 'nothing'"),
    ):
        done = treepref_command("rejudge", "svpo", *overrides, "-q", "--out", "refused", cwd=place)
        assert done.returncode == 2 and told in done.stderr, done.stderr
        assert not (place / "refused").exists()
