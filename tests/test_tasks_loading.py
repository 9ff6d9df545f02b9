"""Splits: disjoint, full, the same every time; bad rows reported; data that cannot serve refused."""

from __future__ import annotations

import builtins
import importlib
import json
import sys
from random import Random

import pytest

from treepref.config import SplitConfig, TaskConfig
from treepref.errors import DataError, RecipeError
from treepref.tasks import load_splits, load_task
from treepref.tasks.loading import question_key


def write(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def jsonl(path, labelled=0, train=1, eval=1, **more):
    return TaskConfig(
        kind="jsonl", path=str(path), splits=SplitConfig(labelled=labelled, train=train, eval=eval), **more
    )


def rows(count, start=0):
    return [
        {"question": f"What is {i} + 1?", "answer": i + 1, "rationale": f"{i} + 1"} for i in range(start, start + count)
    ]


def assert_disjoint(splits, task=None):
    problems = splits.labelled + splits.train + splits.eval
    assert len({question_key(p.text, task) for p in problems}) == len({p.id for p in problems}) == len(problems)
    assert all(p.rationale is None for p in splits.train + splits.eval)
    assert all(p.rationale for p in splits.labelled)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("chain_sum", {"max_terms": 3, "max_digits": 1}),
        ("basic_arithmetic", {"format_style": "natural", "max_digits": 1, "max_terms": 3}),
        ("countdown", {"min_numbers": 3, "max_numbers": 3, "max_value": 12, "min_target": 10}),
        ("gsm_symbolic", {}),
    ],
)
def test_drawn_splits_are_disjoint_full_and_reproducible(name, params):
    cfg = TaskConfig(name=name, params=params, splits=SplitConfig(labelled=60, train=120, eval=40), granularity=[1, 2])
    splits = load_splits(cfg, 3)
    assert [len(splits.labelled), len(splits.train), len(splits.eval)] == [60, 120, 40]
    assert_disjoint(splits, name)
    assert load_splits(cfg, 3) == splits
    assert {p.text for p in load_splits(cfg, 4).eval} != {p.text for p in splits.eval}
    larger = cfg.model_copy(update={"splits": SplitConfig(labelled=60, train=125, eval=40)})
    assert load_splits(larger, 3).eval == splits.eval
    task = load_task(cfg)
    with task.checker() as checker:
        assert all(checker.check(task.solution_text(p, Random(i)), p).correct for i, p in enumerate(splits.labelled))
    assert json.loads(json.dumps([dict(p.meta) for p in splits.train])) == [p.meta for p in splits.train]


def test_unlabelled_problems_carry_no_solution():
    cfg = TaskConfig(name="gsm_symbolic", splits=SplitConfig(train=5, eval=5))
    assert all(not p.meta for p in load_splits(cfg, 0).train)


def test_excluded_questions_do_not_come_back():
    cfg = TaskConfig(name="countdown", splits=SplitConfig(train=20, eval=20))
    first = load_splits(cfg, 0)
    again = load_splits(cfg, 0, exclude=[p.text for p in first.eval])
    assert not {p.text for p in again.eval + again.train} & {p.text for p in first.eval}
    assert len(again.eval) == 20


def test_a_task_too_small_to_fill_says_so():
    cfg = TaskConfig(name="chain_sum", params={"max_terms": 2, "max_digits": 1}, splits=SplitConfig(train=500, eval=10))
    with pytest.raises(DataError, match=r"of the 500 problems for train.*there already"):
        load_splits(cfg, 0)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (TaskConfig(name="chain_sums"), "did you mean chain_sum"),
        (TaskConfig(params={"max_term": 3}), "max_term: chain_sum has no such parameter"),
        (TaskConfig(params={"seed": 3}), "seed"),
        (TaskConfig(params={"max_terms": 1}), "max_terms must be >="),
        (TaskConfig(name="gcd", splits=SplitConfig(labelled=3)), "carries no rationales"),
        (TaskConfig(granularity=[0]), "granularity"),
        (TaskConfig(kind="jsonl"), "task.path"),
        (TaskConfig(kind="jsonl", path="x", params={"a": 1}), "params.a"),
        (TaskConfig(kind="gsm8k", path="x", params={"keep_annotations": "yes"}), "true or false"),
    ],
)
def test_impossible_settings_are_refused(cfg, message):
    with pytest.raises(RecipeError, match=message):
        load_splits(cfg, 0)


def test_gsm8k_and_math_from_a_folder(data_dir):
    splits = SplitConfig(labelled=20, train=60, eval=40)
    cfg = TaskConfig(kind="gsm8k", path=str(data_dir / "gsm8k"), splits=splits)
    loaded = load_splits(cfg, 0)
    assert_disjoint(loaded)
    assert [len(loaded.labelled), len(loaded.train), len(loaded.eval)] == [20, 60, 40] and loaded.skipped == []
    assert all("<<" not in p.rationale for p in loaded.labelled)
    kept = load_splits(cfg.model_copy(update={"params": {"keep_annotations": True}}), 0)
    assert any("<<" in p.rationale for p in kept.labelled)

    cfg = TaskConfig(kind="math", path=str(data_dir / "math"), splits=splits, check_seconds=60)
    loaded = load_splits(cfg, 0)
    assert_disjoint(loaded)
    # As found: two rows of train have an empty box, one repeats a question.
    assert sorted(note.split(":")[1] for note in loaded.skipped) == ["4304", "6732", "725"]
    assert load_splits(cfg, 0) == loaded


def test_a_calculators_model_sees_annotations_unless_told_otherwise(tmp_path):
    texts = [f"She has {i}/2 = <<{i}/2=24>>24 left.\n#### 24" for i in range(9)]
    write(tmp_path / "train.jsonl", [{"question": f"q{i}", "answer": text} for i, text in enumerate(texts)])
    cfg = TaskConfig(
        kind="gsm8k", path=str(tmp_path), train_split="train", eval_split="train",
        splits=SplitConfig(labelled=4, train=2, eval=2),
    )  # fmt: skip
    for tool, params, kept in (
        (None, {}, False), ("calculator", {}, True), ("python", {}, False),
        ("calculator", {"keep_annotations": False}, False), (None, {"keep_annotations": True}, True),
    ):  # fmt: skip
        given = cfg.model_copy(update={"tool": tool, "params": params})
        task, labelled = load_task(given), load_splits(given, 0).labelled
        with task.checker() as checker:
            for problem in labelled:
                text = task.solution_text(problem, Random(0))
                assert ("<<" in text) == kept
                assert checker.check(text, problem).answer == "24"
                assert checker.check(text.replace("#### 24", "#### <<48/2=24>>24"), problem).correct
                assert checker.check(text.replace("#### 24", "The answer is <<48/2=24>>24 coins."), problem).correct
                assert not checker.check(text.replace("#### 24", "#### <<48/2=24>>25"), problem).correct


def test_too_few_rows_are_all_used_and_noted(data_dir):
    cfg = TaskConfig(kind="gsm8k", path=str(data_dir / "gsm8k"), splits=SplitConfig(train=9, eval=5000))
    loaded = load_splits(cfg, 0)
    assert len(loaded.eval) == 768
    assert any("768" in note and "5000" in note for note in loaded.skipped)


def test_malformed_rows_are_skipped_and_named(tmp_path):
    bad = [
        '{"question": "a", ', '["question"]', {"answer": "1"}, {"question": "a"}, {"question": "", "answer": "1"},
        {"question": 5, "answer": "1"}, {"question": "a", "answer": " "}, {"question": "a", "answer": [1]},
        {"question": "a", "answer": "1", "rationale": 3}, {"question": "a", "answer": "1", "id": 1.5},
        {"question": "a", "answer": True},
    ]  # fmt: skip
    file = tmp_path / "mine.jsonl"
    write(file, rows(5) + bad + [{"question": "what is  0 + 1?", "answer": "1"}])
    file.write_bytes(file.read_bytes() + b'{"question": "\xff", "answer": "1"}\n\n')
    loaded = load_splits(jsonl(file, train=3, eval=2), 0)
    assert_disjoint(loaded)
    expected = [f"{file}:{line}:" for line in range(6, 19)]
    assert sorted(note.partition(": ")[0] + ":" for note in loaded.skipped) == sorted(expected)
    assert any("same question" in note for note in loaded.skipped)


def test_gsm8k_and_math_rows_without_an_answer_are_skipped(tmp_path):
    good = {"question": "q", "answer": "s <<1=1>>\n#### 1,000"}
    write(
        tmp_path / "train.jsonl", [good, {"question": "r", "answer": "no mark"}, {"question": "t", "answer": "#### x"}]
    )
    write(tmp_path / "validation.jsonl", [{"question": "v", "answer": "#### 7"}])
    cfg = TaskConfig(kind="gsm8k", path=str(tmp_path), splits=SplitConfig(train=1, eval=1))
    loaded = load_splits(cfg, 0)
    assert loaded.train[0].answer == "1000"
    assert [note.split(":")[1] for note in loaded.skipped] == ["2", "3"]

    rows = [{"problem": f"p{i}", "solution": s} for i, s in enumerate([r"\boxed{1}", r"\boxed{1", r"\boxed{\text{}}"])]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "validation.jsonl", [{"problem": "v", "solution": r"\boxed{2}"}])
    cfg = TaskConfig(kind="math", path=str(tmp_path), splits=SplitConfig(train=3, eval=1), check_seconds=60)
    loaded = load_splits(cfg, 0)
    assert [p.answer for p in loaded.train] == ["1"]
    assert any(":3: 'solution' has no \\boxed{…} that holds an answer" in note for note in loaded.skipped)


def test_files_that_cannot_serve_are_errors(tmp_path):
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl: is empty"):
        load_splits(jsonl(empty), 0)
    with pytest.raises(DataError, match=r"none of its 2 rows(.|\n)*bad\.jsonl:2"):
        load_splits(jsonl(write(tmp_path / "bad.jsonl", ["{", {"question": "a"}])), 0)
    with pytest.raises(DataError, match="no such file"):
        load_splits(jsonl(tmp_path / "absent.jsonl"), 0)
    with pytest.raises(DataError, match=r"no validation\.jsonl \(splits there: bad, empty, train\)"):
        write(tmp_path / "train.jsonl", rows(3))
        load_splits(jsonl(tmp_path), 0)
    same_id = [{"id": "x", "question": "a", "answer": 1}, {"id": "x", "question": "b", "answer": 2}]
    with pytest.raises(DataError, match=r"two\.jsonl:2: id 'x' is that of .*two\.jsonl:1"):
        load_splits(jsonl(write(tmp_path / "two.jsonl", same_id)), 0)
    with pytest.raises(DataError, match="no row has a rationale"):
        plain = [{"question": str(i), "answer": i} for i in range(9)]
        load_splits(jsonl(write(tmp_path / "plain.jsonl", plain), labelled=2), 0)
    with pytest.raises(DataError, match="no usable problem is left for train"):
        load_splits(jsonl(write(tmp_path / "one.jsonl", rows(1))), 0)


def test_evaluation_data_that_overlaps_training_is_refused(tmp_path):
    train = write(tmp_path / "a.jsonl", rows(5))
    held_out = write(
        tmp_path / "b.jsonl", [{"id": "dup", "question": "what  is 3 + 1?", "answer": 4}, *rows(3, start=9)]
    )
    with pytest.raises(DataError, match=r"1 of its questions.*dup \(.*b\.jsonl:1\)"):
        load_splits(jsonl(train, eval_path=held_out), 0)


def test_evaluation_is_carved_off_where_no_file_is_given(tmp_path):
    file = write(tmp_path / "mine.jsonl", rows(100))
    cfg = jsonl(file, labelled=10, train=50, eval=20)
    loaded = load_splits(cfg, 0)
    assert_disjoint(loaded)
    assert [len(loaded.labelled), len(loaded.train), len(loaded.eval)] == [10, 50, 20]
    assert load_splits(cfg, 0) == loaded != load_splits(cfg, 1)
    shuffled = rows(100)
    few = load_splits(jsonl(file, train=1000, eval=1000), 0)
    assert len(few.train) + len(few.eval) == 100 and len(few.eval) == 50 and len(few.skipped) == 2
    with_ids = [{"id": f"n{i:03d}", **row} for i, row in enumerate(shuffled)]
    one = load_splits(jsonl(write(tmp_path / "x.jsonl", with_ids), train=9, eval=9), 0)
    two = load_splits(jsonl(write(tmp_path / "y.jsonl", with_ids[::-1]), train=9, eval=9), 0)
    assert one == two  # the order of the rows in the file does not matter


def test_the_hub_needs_its_extra_and_reads_its_columns(monkeypatch, tmp_path):
    cfg = TaskConfig(kind="gsm8k", splits=SplitConfig(train=2, eval=1), eval_split="test")
    real_import = builtins.__import__
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(DataError, match=r"treepref\[hub\]"):
        load_splits(cfg, 0)
    assert builtins.__import__ is real_import

    class Hub:
        @staticmethod
        def load_dataset(path, subset, split):
            if (path, subset) != ("openai/gsm8k", "main"):
                raise ValueError("unknown")
            return [{"question": f"{split} {i}", "answer": f"x\n#### {i}"} for i in range(3)]

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    loaded = load_splits(cfg, 0)
    assert sorted(p.text.split()[0] for p in loaded.train + loaded.eval) == ["test", "train", "train"]
    with pytest.raises(DataError, match=r"some/other\[train\]: cannot be loaded from the hub: ValueError"):
        load_splits(cfg.model_copy(update={"path": "some/other"}), 0)


def gym_tasks() -> list[object]:
    """Those of reasoning-gym; but for the two whose settings cannot be validated they are tried in the long run."""
    factory = importlib.import_module("reasoning_gym.factory")
    importlib.import_module("reasoning_gym")
    short = ("power_function", "tsumego")
    return [pytest.param(name, marks=[] if name in short else [pytest.mark.long]) for name in sorted(factory.DATASETS)]


@pytest.mark.parametrize("name", gym_tasks())
def test_every_task_of_reasoning_gym_loads_and_takes_its_own_answers(name: str) -> None:
    params = {"datasets": [{"name": "chain_sum"}]} if name == "composite" else {}
    cfg = TaskConfig(name=name, params=params, splits=SplitConfig(train=3, eval=2))
    splits, task = load_splits(cfg, seed=0), load_task(cfg)
    assert len(splits.train) == 3 and len(splits.eval) == 2
    with task.checker() as checker:
        for problem in splits.train:
            assert checker.accepts_gold(problem) is None or not problem.answer
