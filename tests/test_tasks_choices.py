"""Multiple choice: rows of the public data sets, what a text states, and solutions that end in a choice."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treepref.config import SplitConfig, TaskConfig
from treepref.errors import RecipeError
from treepref.tasks import load_splits, load_task
from treepref.tasks.choice_answers import read_choice
from treepref.tasks.choices import (
    PARSERS,
    parse_aqua,
    parse_arc,
    parse_openbookqa,
    parse_sciq,
    question_text,
)
from treepref.tasks.files import HUB_IDS, BadRow, parse_svamp, read_items
from treepref.tasks.sources import Row
from treepref.types import Problem

SUN = ["rock", "the sun", "a star", "vitamin A"]
"""Options (A) to (D) of most tests here."""


def row(data, line=1):
    return Row(f"file:{line}", line, data)


# ---- what a text states


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"), ("the answer is B", "B"), ("The answer is b.", "B"), ("Answer: (b)", "B"),
        ("ANSWER:B", "B"), ("Answer - B", "B"), ("#### B", "B"), (r"so \boxed{B}", "B"), (r"\boxed{\text{(B)}}", "B"),
        ("**Answer:** **B**", "B"), ("The correct option is option B.", "B"), ("The answer is: \"B\"", "B"),
        ("(B)", "B"), ("B.", "B"), ("B) the sun", "B"), ("So (B).", "B"), ("Option B", "B"), ("（Ｂ）", "B"),
        ("(B) is correct.", "B"), ("Therefore B is the answer.", "B"), ("b", "B"),
        ("The sun", "B"), ("the sun.", "B"), ("The answer is the sun.", "B"), ("The answer is the Sun", "B"),
        ("The answer is the sun, because it shines.", "B"), ("The answer is a star.", "C"),
        ("The answer is A star.", "C"), ("The answer is vitamin A.", "D"), ("(D) vitamin A", "D"),
        ("The answer is A because rock is hard", "A"), ("The answer is (A), rock", "A"),
        # the last statement counts
        ("The answer is (A).\nNo: the answer is (B).", "B"), ("The answer is (A)?\n(B)", "B"),
        ("(A) is a rock.\n(C) is far away.\nThe answer is (B).", "B"), ("The answer is (B).\nI hope this helps!", "B"),
        ("The answer is (B), since (A) is too small.", "B"), ("The answer is (B). (A) is wrong.", "B"),
    ],
)  # fmt: skip
def test_a_stated_choice_is_read(text, letter):
    assert read_choice(text, "\n", SUN) == letter


@pytest.mark.parametrize(
    "text",
    [
        "", " \n", "The answer is", "The answer is (", "Answer:", "####",
        "The answer is (A) or (B).", "The answer is A, B", "Answer: A B C D", "(A)(B)", "A/B", "Answer: (A)(B)(C)",
        "The answer is not (A).", "The answer is (B).\nNo, the answer is not (B).", "It is not (A)", "(A) is wrong.",
        "(B) might be right", "The answer is (E).", "(F)", "The answer is Z", "The answer is 2.",
        "The answer is moonlight.", "the sun and a star", "The answer is an A-type star.", "A+", "A big dog",
        "A\nB\nand so on", "I think so.", "The answer is a big question.", "The answer is correct.",
    ],
)  # fmt: skip
def test_what_states_no_choice_or_not_one_reads_as_none(text):
    assert read_choice(text, "\n", SUN) is None


def test_options_that_are_letters_numbers_or_equal():
    blood = ["B", "A", "AB", "0"]
    assert read_choice("The answer is B.", options=blood) == "B"  # a letter is a letter first
    assert read_choice("B", options=blood) == "B"
    assert read_choice("(A) B", options=blood) == "A"
    assert read_choice("The answer is AB.", options=blood) == "C"
    prices = ["$1,000", "900", "10%"]
    assert read_choice("The answer is 1000.", options=prices) == "A"
    assert read_choice("x = 9\n10", options=prices) == "C"
    assert read_choice("The answer is K.", options=["Ne.", "K."]) == "B"  # no choice has this letter
    assert read_choice("The answer is city.", options=["city", "City", "town"]) is None  # two options say it
    assert read_choice("(B) city", options=["city", "City", "town"]) == "B"


def test_without_the_options_letters_are_read_alone():
    assert read_choice("x\nThe answer is (C).") == "C"
    assert read_choice("The answer is the sun.") is None
    assert read_choice("one step ;The answer is (B). ;", " ;") == "B"
    assert load_task(TaskConfig(kind="sciq")).canonical("so\nThe answer is (B).") == "B"


@given(st.text(alphabet="ABCD()abt.,: \nanswer isor#{}\\", max_size=60))
def test_any_text_reads_as_a_letter_of_the_problem_or_none(text):
    assert read_choice(text, "\n", SUN) in (None, "A", "B", "C", "D")


@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1).map(str.strip).filter(bool), min_size=2, max_size=8),
    st.integers(0, 7),
    st.text(st.characters(codec="utf-8"), max_size=80),
)
def test_the_closing_line_is_read_whatever_stands_before_it(options, place, before):
    letter = "ABCDEFGH"[place % len(options)]
    assert read_choice(f"{before}\nThe answer is ({letter}).", "\n", options) == letter


# ---- rows


def arc(labels="ABCD", key="B", texts=SUN, **more):
    choices = {"text": texts, "label": list(labels)}
    return {"id": "q1", "question": "What shines?", "choices": choices, "answerKey": key} | more


def test_choices_are_shown_as_lettered_lines_whatever_their_labels():
    for labels, key in (("ABCD", "B"), ("1234", "2"), ("FGHJ", "G")):
        problem = parse_arc(row(arc(labels, key)), "arc")
        assert problem.text == "What shines?\n(A) rock\n(B) the sun\n(C) a star\n(D) vitamin A"
        assert (problem.id, problem.answer, problem.meta) == ("q1", "B", {"choices": SUN})
        assert problem.rationale == "Of the choices, the sun fits best.\nThe answer is (B)."
    assert question_text("Q?", ["x", "y"]) == "Q?\n(A) x\n(B) y"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (arc("ABCC"), "one label"), (arc("ABC"), "4 choices and 3 labels"), (arc(key="E"), "none of its choices'"),
        (arc(key=""), "none of its"), (arc(texts=["a", " ", "c", "d"], key="A"), r"\(B\) is empty"),
        (arc(texts=["a", "The sun", "the sun.", "d"]), r"\(B\) and \(C\) both"), (arc("A", "A", ["a"]), "1 choices"),
        (arc(texts="abcd"), "'text' is not a list"), (arc(texts=["a", 2, "c", "d"]), "'text' is not a list"),
        ({"question": "q", "answerKey": "A"}, "no 'choices'"), (["question"], "no 'choices'"),
    ],
)  # fmt: skip
def test_broken_choice_lists_are_refused_with_the_reason(data, why):
    with pytest.raises(BadRow, match=why):
        parse_arc(row(data), "arc")
    assert parse_arc(row(arc(texts=["a", "b", "a", "d"])), "arc").answer == "B"  # two equal wrong ones do no harm


def test_openbookqa_begins_with_its_fact_where_it_has_one():
    data = arc() | {"question_stem": "Light comes from"}
    del data["question"]
    assert parse_openbookqa(row(data), "x").rationale == "Of the choices, the sun fits best.\nThe answer is (B)."
    with_fact = parse_openbookqa(row(data | {"fact1": "the sun is a source of  light"}), "x")
    assert with_fact.rationale.splitlines() == [
        "The sun is a source of light.", "Of the choices, the sun fits best.", "The answer is (B)."
    ]  # fmt: skip


def sciq(number):
    return {
        "question": f"Which number is {number}?", "correct_answer": f"{number}", "distractor1": "x", "distractor2": "y",
        "distractor3": "z", "support": f"Numbers are counted. This one is {number}." if number % 2 else "",
    }  # fmt: skip


def test_sciq_is_shuffled_by_the_row_itself():
    problems = [parse_sciq(row(sciq(i), i), "sciq") for i in range(400)]
    for i, problem in enumerate(problems):
        assert sorted(problem.meta["choices"]) == sorted([str(i), "x", "y", "z"])
        assert problem.meta["choices"]["ABCD".index(problem.answer)] == str(i)
    counts = [sum(p.answer == letter for p in problems) for letter in "ABCD"]
    assert min(counts) > 60  # no letter is preferred
    again = [parse_sciq(row(sciq(i), 400 - i), "other") for i in reversed(range(400))][::-1]
    assert [p.text for p in again] == [p.text for p in problems]
    assert problems[7].rationale.splitlines()[:3] == [
        "Numbers are counted.", "This one is 7.", "Of the choices, 7 fits best."
    ]  # fmt: skip
    assert problems[8].rationale.startswith("Of the choices, 8 fits best.\nThe answer is (")
    with pytest.raises(BadRow, match="both are the right answer"):
        parse_sciq(row(sciq(1) | {"distractor2": "1"}), "sciq")


def aqua(rationale, correct="B", options=("A)10", "B)12 km", "C)14", "D)15", "E)None of these")):
    return {"question": "How far?", "options": list(options), "rationale": rationale, "correct": correct}


@pytest.mark.parametrize(
    ("rationale", "lines"),
    [
        ("3 * 4 = 12\nANSWER:B", ["3 * 4 = 12"]), ("3 * 4 = 12\nAnswer: B) 12 km", ["3 * 4 = 12"]),
        ("3 * 4 = 12\nB", ["3 * 4 = 12"]), ("3 * 4 = 12\nSo the correct option is B.", ["3 * 4 = 12"]),
        ("3 * 4\n= 12", ["3 * 4", "= 12"]), ("It is 3 * 4, so B", ["It is 3 * 4, so B"]),
        ("B", ["Of the choices, 12 km fits best."]), ("", ["Of the choices, 12 km fits best."]),
        (None, ["Of the choices, 12 km fits best."]),
    ],
)  # fmt: skip
def test_aquas_rationale_ends_in_one_statement_of_the_choice(rationale, lines):
    problem = parse_aqua(row(aqua(rationale)), "aqua")
    assert problem.text == "How far?\n(A) 10\n(B) 12 km\n(C) 14\n(D) 15\n(E) None of these"
    assert problem.rationale.splitlines() == [*lines, "The answer is (B)."]


def test_an_aqua_rationale_that_states_another_choice_is_no_solution():
    problem = parse_aqua(row(aqua("3 * 5 = 15\nANSWER:D")), "aqua")
    assert (problem.answer, problem.rationale) == ("B", None)
    for broken, why in ((aqua("x", options=["10", "B)1"]), "no letter"), (aqua("x", correct="F"), "none of its")):
        with pytest.raises(BadRow, match=why):
            parse_aqua(row(broken), "aqua")


def test_svamp_is_a_text_and_a_number():
    data = {"ID": "chal-1", "Body": "Dave had 14 tickets.", "Question": "How many are left?", "Answer": "2.0"}
    assert parse_svamp(row(data), "svamp") == Problem("chal-1", "Dave had 14 tickets. How many are left?", "2")
    with pytest.raises(BadRow, match="not a number"):
        parse_svamp(row(data | {"Answer": "two"}), "svamp")


# ---- tasks


def test_a_choice_is_right_by_its_letter_alone():
    problem = parse_arc(row(arc()), "arc")
    with load_task(TaskConfig(kind="arc_easy")).checker() as checker:
        assert checker.accepts_gold(problem) is None
        for text in ("Stars shine.\nThe answer is (B).", "The answer is the sun.", "B"):
            verdict = checker.check(text, problem)
            assert (verdict.correct, verdict.answer) == (True, "B"), text
        for text in ("The answer is (A).", "The answer is (E).", "(A) or (B)", "The sun shines", ""):
            assert not checker.check(text, problem).correct, text
        assert checker.check("The answer is (C).", problem).answer == "C"
        assert checker.check("The answer is (E).", problem).answer is None


@pytest.mark.parametrize("kind", ["gsm8k", "math", "jsonl", "reasoning_gym", "svamp", *PARSERS])
def test_every_kind_has_a_self_evaluation_that_ends_before_the_letter(kind):
    text = load_task(TaskConfig(kind=kind)).self_evaluation
    assert text.startswith("\n") and text.endswith(" (")
    right, wrong = text.index("\n(A) "), text.index("\n(B) ")
    assert right < wrong and "mistake" in text[wrong:]


COUNTS = {
    # kind: (folder, {split: (rows, set aside)})
    "arc_easy": ("ai2_arc/ARC-Easy", {"train": (2251, 0), "validation": (570, 0)}),
    "arc_challenge": ("ai2_arc/ARC-Challenge", {"train": (1119, 2), "validation": (299, 1)}),
    "openbookqa": ("openbookqa", {"train": (4957, 1), "validation": (500, 0)}),
    "commonsense_qa": ("commonsense_qa", {"train": (9741, 42), "validation": (1221, 6)}),
    "aqua": ("aqua_rat", {"validation": (254, 0)}),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_public_data_gold_is_right_and_every_other_choice_wrong(kind, data_dir):
    folder, splits = COUNTS[kind]
    task = load_task(TaskConfig(kind=kind))
    for split, (rows, skipped) in splits.items():
        found = read_items(str(data_dir / folder), split, PARSERS[kind], kind)
        assert (len(found.items) + len(found.skipped), len(found.skipped)) == (rows, skipped)
        if kind == "openbookqa" and split == "train":
            assert found.skipped[0].endswith("train.jsonl:3333: two of its choices have one label (A B C D D)")
        elif skipped:
            assert all("both are the right answer's text" in note for note in found.skipped)
        with task.checker() as checker:
            for problem in (item.problem for item in found.items[:500]):
                assert checker.accepts_gold(problem) is None
                assert checker.check(task.solution_text(problem, Random(0)), problem).correct
                for letter, option in zip("ABCDE", problem.meta["choices"], strict=False):
                    verdict = checker.check(f"x\n({letter}) {option}", problem)
                    assert (verdict.answer, verdict.correct) == (letter, letter == problem.answer)


@pytest.mark.parametrize("kind", COUNTS)
def test_public_data_splits_are_full_and_disjoint(kind, data_dir):
    sizes = SplitConfig(labelled=30, train=60, eval=50)
    train = "train" if kind == "arc_challenge" else "validation"  # either two files, or all three from one
    cfg = TaskConfig(kind=kind, path=str(data_dir / COUNTS[kind][0]), train_split=train, splits=sizes)
    loaded = load_splits(cfg, 0)
    problems = loaded.labelled + loaded.train + loaded.eval
    assert [len(loaded.labelled), len(loaded.train), len(loaded.eval)] == [30, 60, 50]
    assert len({p.text for p in problems}) == len({p.id for p in problems}) == 140
    assert all(p.rationale is None for p in loaded.train + loaded.eval)
    assert json.loads(json.dumps([dict(p.meta) for p in problems])) == [p.meta for p in problems]
    kept = load_splits(cfg, 0, train_rationales=True)
    assert [replace(p, rationale=None) for p in kept.train] == loaded.train and all(p.rationale for p in kept.train)
    assert (kept.eval, kept.labelled) == (loaded.eval, loaded.labelled)


def test_aquas_one_split_is_shared_out_when_it_is_too_small(data_dir):
    sizes = SplitConfig(labelled=50, train=1000, eval=500)
    cfg = TaskConfig(kind="aqua", path=str(data_dir / "aqua_rat"), train_split="validation", splits=sizes)
    loaded = load_splits(cfg, 3)
    counts = [len(loaded.labelled), len(loaded.train), len(loaded.eval)]
    assert sum(counts) == 254 and counts[0] == 50 and min(counts) > 0
    assert not {p.id for p in loaded.train + loaded.labelled} & {p.id for p in loaded.eval}


def test_svamp_for_evaluation_and_no_rationales(data_dir):
    found = read_items(str(data_dir / "svamp"), "validation", parse_svamp, "svamp")
    assert (len(found.items), found.skipped) == (500, [])
    with load_task(TaskConfig(kind="svamp")).checker() as checker:
        for problem in (item.problem for item in found.items):
            assert checker.accepts_gold(problem) is None
            assert checker.check(f"so\n#### {problem.answer}", problem).correct
            assert not checker.check(f"so\n#### {problem.answer}1", problem).correct


def test_the_hub_is_asked_for_the_right_data_set(monkeypatch):
    asked = []

    class Hub:
        @staticmethod
        def load_dataset(path, subset, split):
            asked.append((path, subset))
            if path == HUB_IDS["sciq"]:
                return [sciq(i + 10 * (split == "test")) for i in range(5)]
            return [arc() | {"id": f"{split} {i}", "question": f"{split} {i}"} for i in range(5)]

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    sizes = SplitConfig(train=2, eval=1)
    for kind, expected in (
        ("arc_easy", ("allenai/ai2_arc", "ARC-Easy")),
        ("arc_challenge", ("allenai/ai2_arc", "ARC-Challenge")),
        ("commonsense_qa", ("tau/commonsense_qa", None)),
        ("sciq", ("allenai/sciq", None)),
    ):
        assert len(load_splits(TaskConfig(kind=kind, splits=sizes, eval_split="test"), 0).train) == 2
        assert set(asked) == {expected}
        asked.clear()
    load_splits(TaskConfig(kind="arc_easy", splits=sizes, params={"subset": "ARC-Challenge"}), 0)
    assert asked[0] == ("allenai/ai2_arc", "ARC-Challenge")
    with pytest.raises(RecipeError, match=r"task\.params\.keep_annotations: sciq has no such parameter"):
        load_splits(TaskConfig(kind="sciq", params={"keep_annotations": True}), 0)
