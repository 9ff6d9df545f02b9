"""What a row may hold: numbers as they are written; what is no number or no text sets the row aside."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treepref.config import SplitConfig, TaskConfig
from treepref.errors import DataError
from treepref.tasks import load_task
from treepref.tasks.choices import PARSERS
from treepref.tasks.files import BadRow, parse_gsm8k, parse_math, parse_plain, parse_svamp, read_items
from treepref.tasks.loading import load_splits
from treepref.tasks.sources import Row

_CHOICES = {"question": "Which?", "choices": {"text": ["wood", "iron"], "label": ["A", "B"]}, "answerKey": "B"}
GOOD = {
    "jsonl": {"question": "How many?", "answer": 5, "rationale": "Count.\n5", "id": "a"},
    "gsm8k": {"question": "How many?", "answer": "Count.\n#### 5"},
    "math": {"problem": "How many?", "solution": r"Count: \boxed{5}"},
    "svamp": {"Body": "Ann has pens.", "Question": "How many?", "Answer": "5", "ID": "a"},
    **dict.fromkeys(("arc_easy", "arc_challenge", "commonsense_qa"), _CHOICES),
    "openbookqa": {
        "question_stem": "Which?", "choices": {"text": ["wood", "iron"], "label": ["A", "B"]}, "answerKey": "B",
    },
    "sciq": {
        "question": "Which?", "correct_answer": "iron", "distractor1": "wood", "distractor2": "tin",
        "distractor3": "gas", "support": "Iron it is.",
    },
    "aqua": {"question": "Which?", "options": ["A)wood", "B)iron"], "correct": "B", "rationale": "Think.\nANSWER:B"},
}  # fmt: skip
"""A row that each parser takes."""

PARSE = {"jsonl": parse_plain, "gsm8k": parse_gsm8k, "math": parse_math, "svamp": parse_svamp, **PARSERS}


def read(tmp_path: Path, *lines: str | bytes | dict, kind: str = "jsonl") -> tuple[list[Any], list[str]]:
    """The problems of a file with these lines, and what was set aside."""
    file = tmp_path / "rows.jsonl"
    encoded = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    file.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in encoded))
    try:
        found = read_items(str(file), "train", PARSE[kind], "row")
    except DataError as error:
        assert "none of its" in str(error)
        return [], str(error).splitlines()[1:]
    return [item.problem for item in found.items], found.skipped


# ---- numbers


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("5", "5"), ("5.0", "5"), ("-0.50", "-0.5"), ("-0.0", "0"), ("-0", "0"), ("0.1", "0.1"),
        ("0.00001", "0.00001"), ("1e-05", "0.00001"), ("1E-5", "0.00001"), ("1.5e-7", "0.00000015"),
        ("1e16", "10000000000000000"), ("1e+16", "10000000000000000"), ("1e22", "1" + "0" * 22),
        ("300000000", "300000000"), ("3e8", "300000000"), ("123456789012345678", "123456789012345678"),
        ("12345678901234567890123", "12345678901234567890123"), ("0.1234567890123456789", "0.1234567890123456789"),
        ("9007199254740993.0", "9007199254740993"), ("2.50", "2.5"),
    ],
)  # fmt: skip
def test_a_number_is_the_one_that_is_written(tmp_path: Path, written: str, answer: str) -> None:
    (problem,), skipped = read(tmp_path, f'{{"question": "How much?", "answer": {written}}}')
    assert (problem.answer, skipped) == (answer, [])
    task = load_task(TaskConfig(kind="jsonl", path="x"))
    with task.checker() as checker:
        assert checker.accepts_gold(problem) is None
        assert checker.check(f"#### {answer}", problem).correct
        assert not checker.check(f"#### {answer}1", problem).correct


@given(st.floats(-1e200, 1e200).filter(lambda x: not x or abs(x) > 1e-200) | st.integers(-(10**250), 10**250))
def test_any_number_is_read_exactly(number: float) -> None:
    problem = parse_plain(Row("f:1", 1, {"question": "q", "answer": number}), "f")
    assert Fraction(problem.answer) == Fraction(repr(number))
    assert "e" not in problem.answer.lower()


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("place", ["answer", "other", "deep"])
def test_what_is_no_number_sets_the_row_aside(tmp_path: Path, written: str, place: str) -> None:
    row = {
        "answer": f'{{"question": "q", "answer": {written}}}',
        "other": f'{{"question": "q", "answer": 1, "score": {written}}}',
        "deep": f'{{"question": "q", "answer": 1, "more": [{{"a": [1, {written}]}}]}}',
    }[place]
    problems, (note,) = read(tmp_path, GOOD["jsonl"], row)
    assert len(problems) == 1
    assert f"rows.jsonl:2: holds {written}, which is no number" in note


@pytest.mark.parametrize(
    "written", ["1e999", "-1e999", "1" + "0" * 400, "9" * 5000, "0." + "1" * 5000, "1e-400", "1e350"]
)
def test_a_number_that_no_answer_has_sets_the_row_aside(tmp_path: Path, written: str) -> None:
    problems, (note,) = read(tmp_path, GOOD["jsonl"], f'{{"question": "q", "answer": {written}}}')
    assert len(problems) == 1
    assert "rows.jsonl:2: " in note and "digits" in note
    assert len(note) < 300 + len(str(tmp_path))


def test_rows_of_the_hub_follow_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"question": "a", "answer": 1e-05}, {"question": "b", "answer": 1e16},
        {"question": "c", "answer": float("nan")}, {"question": "d", "answer": 2, "score": float("-inf")},
        {"question": "e \ud800", "answer": 2}, {"question": "f", "answer": "NaN"},
    ]  # fmt: skip
    library = ModuleType("datasets")
    library.load_dataset = lambda *_, **__: rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    found = read_items("someone/something", "train", parse_plain, "row")
    assert [item.problem.answer for item in found.items] == ["0.00001", "10000000000000000", "NaN"]
    assert [note.partition(": ")[2] for note in found.skipped] == [
        "holds nan, which is no number",
        "holds -inf, which is no number",
        "holds text that is not valid Unicode (a lone surrogate, \\ud800)",
    ]


# ---- text


@pytest.mark.parametrize("kind", GOOD)
def test_half_a_character_anywhere_sets_the_row_aside(tmp_path: Path, kind: str) -> None:
    """In JSON such a text is spelled "\\ud800"; no tokenizer and no database takes it."""

    def spoil(value: Any) -> list[Any]:
        if isinstance(value, str):
            return [value + "\ud800", "\udfff" + value]
        if isinstance(value, dict):
            inner = [value | {key: bad} for key, part in value.items() for bad in spoil(part)]
            return [*inner, value | {"k\ud800": 1}]
        if isinstance(value, list):
            return [[*value[:i], bad, *value[i + 1 :]] for i, part in enumerate(value) for bad in spoil(part)]
        return []

    bad = spoil(GOOD[kind])
    assert len(bad) >= 5
    problems, notes = read(tmp_path, GOOD[kind], *bad, kind=kind)
    assert len(problems) == 1
    assert [note.rpartition("rows.jsonl:")[2] for note in notes] == [
        f"{line}: holds text that is not valid Unicode (a lone surrogate, \\ud800)" for line in range(2, len(bad) + 2)
    ]


def test_a_whole_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    (problem,), skipped = read(tmp_path, r'{"question": "Smile \ud83d\ude00", "answer": 1}')
    assert (problem.text, skipped) == ("Smile 😀", [])


@pytest.mark.parametrize("key", ["id", "question", "answer", "rationale", "other"])
def test_nul_sets_the_row_aside_and_other_control_characters_stay(tmp_path: Path, key: str) -> None:
    row = {"id": "x", "question": "q", "answer": "b", "rationale": "r", "other": "o"}
    problems, notes = read(tmp_path, GOOD["jsonl"], row | {key: "a\0b"})
    assert len(problems) == 1
    assert "rows.jsonl:2: holds the character NUL" in notes[0]
    if key != "id":
        problems, notes = read(tmp_path, row | {key: "a\x02\x7fb"})
        assert (len(problems), notes) == (1, [])


@pytest.mark.parametrize("bad", ["a\nb", "a\tb", "a\x1b[31m", "a\u2028b", "x" * 501])
def test_an_id_is_one_short_line(tmp_path: Path, bad: str) -> None:
    problems, (note,) = read(tmp_path, GOOD["jsonl"], GOOD["jsonl"] | {"id": bad})
    assert len(problems) == 1
    assert "rows.jsonl:2: 'id' " in note
    svamp = GOOD["svamp"]
    problems, notes = read(tmp_path, svamp, svamp | {"ID": bad, "Body": "Bob too."}, kind="svamp")
    assert len(problems) == 1
    assert len(notes) == 1


def test_what_is_told_of_a_row_is_short(tmp_path: Path) -> None:
    arc = GOOD["arc_easy"]
    _, (note,) = read(tmp_path, arc, arc | {"answerKey": "x" * 100_000}, kind="arc_easy")
    assert len(note) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_nesting_costs_a_row_at_most(tmp_path: Path, depth: int) -> None:
    row = '{"question": "q", "answer": 1, "more": ' + "[" * depth + "]" * depth + "}"
    problems, notes = read(tmp_path, GOOD["jsonl"], row)
    assert len(problems) + len(notes) == 2


# ---- paths


@pytest.mark.parametrize("path", ["a" * 5000, "a/" * 3000, "~nobody-of-this-name/x.jsonl", "a\0b"])
def test_a_path_that_cannot_be_is_refused_in_a_sentence(path: str) -> None:
    for cfg in (TaskConfig(kind="jsonl", path=path), TaskConfig(kind="gsm8k", path=path)):
        with pytest.raises(DataError) as caught:
            load_splits(cfg.model_copy(update={"splits": SplitConfig(train=1, eval=1)}), 0)
        assert len(str(caught.value)) < 500


def test_a_split_whose_name_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        load_splits(TaskConfig(kind="jsonl", path=str(tmp_path), train_split="a" * 5000), 0)


def test_rows_collected_from_users(tmp_path: Path) -> None:
    file = Path(__file__).resolve().parents[2] / "shared" / "cases" / "rows" / "numbers.jsonl"
    if not file.is_file():
        pytest.skip(f"no collected rows at {file}")
    found = read_items(str(file), "train", parse_plain, "row")
    assert [item.problem.answer for item in found.items] == ["0.00001", "10000000000000000", "15", "16"]
    assert len(found.skipped) == 2


def test_parsers_raise_nothing_but_bad_row() -> None:
    for kind, parse in PARSE.items():
        for data in (None, 1, "x", [], {}, dict.fromkeys(GOOD[kind]), {key: [1] for key in GOOD[kind]}):
            with pytest.raises(BadRow):
                parse(Row("f:1", 1, data), "f")
