"""Rows as users have them: other columns, several files, arrays, CSV, Parquet, gzip; what is no such file is named."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treepref.config import SplitConfig, TaskConfig
from treepref.errors import DataError, RecipeError
from treepref.tasks.choices import PARSERS
from treepref.tasks.files import parse_gsm8k, parse_math, parse_plain, parse_svamp, read_items
from treepref.tasks.loading import load_splits
from treepref.tasks.sources import has_splits, read_rows
from treepref.types import Problem

PENS = [{"question": "2 + 3?", "answer": 5}, {"question": "10 - 4?", "answer": "6"}]


def put(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def problems(path: str | list[str], parse=parse_plain, split: str = "train", **options) -> list[Problem]:
    found = read_items(path, split, parse, "row", **options)
    assert found.skipped == []
    return [item.problem for item in found.items]


# ---- forms


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", lines(PENS)),
        ("rows.json", lines(PENS)),
        ("rows.json", json.dumps(PENS, indent=2)),
        ("rows.txt", json.dumps(PENS)),
        ("rows.csv", 'question,answer\n2 + 3?,5\n"10 - 4?","6"\n'),
        ("rows.csv", "\ufeffquestion;answer\r\n2 + 3?;5\r\n10 - 4?;6\r\n"),
        ("rows.tsv", "question\tanswer\n2 + 3?\t5\n10 - 4?\t6\n"),
    ],
)
def test_every_form_holds_the_same_problems(tmp_path: Path, name: str, content: str, zipped: bool) -> None:
    data = gzip.compress(content.encode()) if zipped else content.encode()
    found = problems(put(tmp_path / (name + ".gz" if zipped else name), data))
    assert [(p.text, p.answer) for p in found] == [("2 + 3?", "5"), ("10 - 4?", "6")]


def test_parquet_is_read_by_its_content_and_named_where_the_extra_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "rows.parquet", b"PAR1 ... PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"rows.parquet: to read Parquet files, install the extra: .*treepref\[hub\]"):
        problems(path)
    monkeypatch.undo()
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow (the extra hub)")
    parquet = pytest.importorskip("pyarrow.parquet")
    with pytest.raises(DataError, match="is not Parquet that can be read"):
        problems(path)
    parquet.write_table(arrow.Table.from_pylist([{"question": "2 + 3?", "answer": 5, "level": "easy"}]), path)
    (one,) = problems(path)
    assert (one.answer, one.meta) == ("5", {"level": "easy"})


def test_several_files_patterns_and_folders_of_shards(tmp_path: Path) -> None:
    a, b = put(tmp_path / "a.jsonl", lines(PENS[:1])), put(tmp_path / "b.csv", "question,answer\n10 - 4?,6\n")
    for paths in ([a, b], str(tmp_path / "*.[jc]s*")):
        found = problems(paths)
        assert [p.answer for p in found] == ["5", "6"]
        assert [p.id for p in found] == ["row-a-000001", "row-b-000002"], "lines of two files are no two rows of one"
        assert not has_splits(paths)
    shards = tmp_path / "set"
    for number, row in enumerate(PENS):
        put(shards / f"train-0000{number}-of-00002.jsonl", lines([row]))
    put(shards / "validation.csv.gz", gzip.compress(b"question,answer\nHow much is 1 + 1?,2\n"))
    assert [p.answer for p in problems(str(shards))] == ["5", "6"] and has_splits(str(shards))
    assert [p.answer for p in problems(str(shards), split="validation")] == ["2"]
    put(shards / "validation.jsonl", lines(PENS))
    with pytest.raises(DataError, match=r"validation.csv.gz and validation.jsonl are both its validation"):
        problems(str(shards), split="validation")
    with pytest.raises(DataError, match=r"no such file"):
        problems(str(tmp_path / "nothing*.jsonl"))
    cfg = TaskConfig(kind="jsonl", path=[a, b], splits=SplitConfig(train=1, eval=1))
    loaded = load_splits(cfg, 0)
    assert len(loaded.train) == len(loaded.eval) == 1, "several files are divided as one is"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", "\ufeffq,a\n1,2\n".encode("utf-16"), "text in UTF-16: save it in UTF-8"),
        ("rows.xlsx", b"PK\x03\x04....", "office document (.xlsx): unpack it, or save the sheet as CSV"),
        ("rows.zst", b"\x28\xb5\x2f\xfd....", "zstd"),
        ("rows.pkl", b"\x80\x04\x95....", "pickle, which is never read"),
        ("rows.db", b"SQLite format 3\0...", "export the table as CSV"),
        (
            "rows.json",
            b'{\n "data": [\n {"question": "q", "answer": 1}\n]\n}',
            "one JSON object over several lines; its",
        ),
        ("rows.json", b'[{"question": "q" "answer": 1}]', "position 1 of its array"),
        ("rows.json", b'[{"question": "q", "answer": 1}', "position 2 of its array"),
        ("rows.csv", "question,answer\ncaf\u00e9,1\n".encode("latin-1"), "rows.csv:2: is not UTF-8"),
        ("rows.csv", b"question,question\n1,2\n", "two columns of its head are called 'question'"),
        ("rows.csv", b'question,answer\n"open,1\n', "rows.csv:2: is not CSV that can be read"),
        ("rows.jsonl.gz", b"\x1f\x8bbroken", "cannot be read"),
        ("rows.jsonl", b"", "is empty"),
        ("rows.csv", b"question,answer\n", "is empty"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(DataError) as refused:
        problems(put(tmp_path / name, content))
    assert said in str(refused.value) and name in str(refused.value)


def test_a_bad_row_costs_itself_alone_in_every_form(tmp_path: Path) -> None:
    array = put(tmp_path / "rows.json", '[{"question": "a", "answer": NaN}, 7, {"question": "b", "answer": 1e-05}]')
    found = read_items(array, "train", parse_plain, "row")
    assert [item.problem.answer for item in found.items] == ["0.00001"]
    assert [note.partition("rows.json:")[2] for note in found.skipped] == [
        "1: holds NaN, which is no number", "2: is int, not an object with keys"
    ]  # fmt: skip
    table = put(tmp_path / "rows.csv", 'question,answer\na,1\nb\n"c\nd",\n\ne,3\n')
    found = read_items(table, "train", parse_plain, "row")
    assert [(item.problem.text, item.where[-1]) for item in found.items] == [("a", "2"), ("e", "7")]
    assert [note.partition("rows.csv:")[2] for note in found.skipped] == [
        "3: has 1 cells where the head has 2",
        "4: has no 'answer'; its keys are 'question': task.columns says which of them it is",
    ]


@given(st.lists(st.fixed_dictionaries({"question": st.text("abc,;\"'\n\té", min_size=1), "n": st.text('x\n,"')})))
def test_a_table_says_what_json_says(rows: list[dict[str, str]]) -> None:
    import io

    from treepref.tasks import sources

    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, ["question", "n"])
    writer.writeheader()
    writer.writerows(rows)
    found, skipped = sources._read_csv(Path("rows.csv"), stream.getvalue().encode())
    kept = [{k: v for k, v in row.items() if v.strip()} for row in rows]
    assert [row for _, row in found] == [row for row in kept if row] and skipped == []


# ---- columns


def test_columns_have_other_names(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.csv", "prompt,label,level\n2 + 3?,5,easy\n")
    names = {"question": "prompt", "answer": "label"}
    (one,) = problems(path, columns=names)
    assert (one.text, one.answer, one.meta) == ("2 + 3?", "5", {"level": "easy"})
    with pytest.raises(DataError, match=r"has no 'question'; its keys are 'prompt', 'label', 'level': task.columns"):
        problems(path)
    with pytest.raises(DataError, match=r"task.columns.answer: no row has a column 'lable' .there are 'prompt', 'la"):
        problems(path, columns=names | {"answer": "lable"})
    cfg = TaskConfig(kind="jsonl", path=path, columns=names | {"anwser": "label"}, splits=SplitConfig(train=1, eval=1))
    with pytest.raises(RecipeError, match=r"task.columns.anwser: jsonl reads no such column .it reads id, question"):
        load_splits(cfg, 0)
    swapped = put(tmp_path / "swapped.jsonl", lines([{"question": "5", "answer": "2 + 3?"}]))
    (one,) = problems(swapped, columns={"question": "answer", "answer": "question"})
    assert (one.text, one.answer) == ("2 + 3?", "5")


def test_every_kind_keeps_further_columns_for_a_checker(tmp_path: Path) -> None:
    rows = {
        parse_plain: {"question": "q", "answer": 1},
        parse_gsm8k: {"question": "q", "answer": "so\n#### 1"},
        parse_math: {"problem": "q", "solution": r"so \boxed{1}"},
        parse_svamp: {"Body": "b", "Question": "q", "Answer": 1.0},
        PARSERS["arc_easy"]: {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
    }
    for parse, row in rows.items():
        (one,) = problems(put(tmp_path / "rows.jsonl", lines([row | {"tests": ["x"], "id": "i"}])), parse)
        assert one.meta["tests"] == ["x"] and one.id == "i" and not one.meta.keys() & {*row, "id"} - {"choices"}
        assert parse is not parse_svamp or one.answer == "1"


def test_rows_that_others_publish(tmp_path: Path) -> None:
    aime = [{"problem": "How many primes are below 20?", "answer": 8}, {"problem": "2^10 mod 7?", "answer": "2"}]
    for parse in (parse_math, parse_plain):
        assert [p.answer for p in problems(put(tmp_path / "aime.jsonl", lines(aime)), parse)] == ["8", "2"]
    choices = [{"text": "wood", "label": "A"}, {"text": "iron", "label": "B"}]
    own = {"id": "M1", "question": {"stem": "Which is a metal?", "choices": choices}, "answerKey": "B"}
    (one,) = problems(put(tmp_path / "arc.jsonl", lines([own])), PARSERS["arc_easy"])
    assert one.text == "Which is a metal?\n(A) wood\n(B) iron" and one.answer == "B"
    with pytest.raises(DataError, match="has no 'choices' that are a list of objects"):
        problems(put(tmp_path / "bad.jsonl", lines([own | {"question": {"stem": "x"}}])), PARSERS["arc_easy"])


def test_a_checkers_rows_need_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"Write add{i}.", "answer": "", "tests": [f"assert add{i}(2, 3) == 5"]} for i in range(4)]
    path = put(tmp_path / "tests.jsonl", lines([*rows, {"question": "Write sub.", "tests": []}]))
    cfg = TaskConfig(kind="jsonl", path=path, splits=SplitConfig(train=3, eval=2))
    with pytest.raises(DataError, match="'answer' is empty"):
        load_splits(cfg, 0)
    (tmp_path / "judge.py").write_text("def judge(text, problem):\n    return bool(problem.meta['tests'])\n")
    loaded = load_splits(cfg.model_copy(update={"checker": "judge:judge"}), 0)
    assert {p.answer for p in loaded.train + loaded.eval} == {""} and not loaded.skipped


def test_one_question_with_two_answers_is_named(tmp_path: Path) -> None:
    rows = [
        {"question": "7 + 8?", "answer": 15},
        {"question": "7  + 8?", "answer": 16},
        {"question": "7 + 8?", "answer": 15},
    ]
    path = put(tmp_path / "rows.jsonl", lines([*rows, {"question": "1 + 1?", "answer": 2}]))
    skipped = load_splits(TaskConfig(kind="jsonl", path=path, splits=SplitConfig(train=1, eval=1)), 0).skipped
    assert [note.partition("rows.jsonl:")[2] for note in skipped] == [
        f"2: same question as {path}:1, with another answer ('16', and there '15')", f"3: same question as {path}:1"
    ]  # fmt: skip


def test_a_path_with_a_star_in_its_name_is_itself(tmp_path: Path) -> None:
    path = put(tmp_path / "a*b.jsonl", lines(PENS[:1]))
    put(tmp_path / "aab.jsonl", lines(PENS[1:]))
    assert [row.data["answer"] for row in read_rows(path, "train").rows] == [5]
