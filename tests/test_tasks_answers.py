"""Reading answers as models write them: labelled statements, kinds of forms, and texts that are meant to be slow."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from treepref.config import TaskConfig
from treepref.errors import RecipeError
from treepref.tasks import Checker, answers, latex, load_task, numbers, rules, statements, texts
from treepref.tasks.files import parse_math
from treepref.tasks.sources import Row
from treepref.types import Problem

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from answers import judge

HERE = Path(__file__).with_name("statements")
CASES = Path(__file__).parents[2] / "shared" / "cases"


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def errors(found: list[dict]) -> dict[tuple[str, bool], list[str]]:
    """Texts judged otherwise than labelled, by kind and label."""
    wrong: dict[tuple[str, bool], list[str]] = {}
    for statement, verdict in judge(found):
        if verdict.correct != statement["right"]:
            wrong.setdefault((statement.get("kind", "choice"), statement["right"]), []).append(statement["text"])
    return wrong


@pytest.mark.parametrize("name", ["written", "written_2", "written_3", "traps", "real"])
def test_labelled_statements_are_read_as_people_read_them(name):
    found = read(HERE / f"{name}.jsonl")
    if name == "real" and not (CASES.parent / "data" / "ai2_arc").is_dir():
        found = [statement for statement in found if statement["kind"] != "arc_easy"]  # their choices are there
    assert len(judge(found)) == len(found) >= 150
    total = Counter((statement.get("kind", "choice"), statement["right"]) for statement in found)
    for (kind, right), wrong in errors(found).items():
        allowed = max(1, 0.02 * total[kind, right]) if not right else max(2, 0.03 * total[kind, right])
        direction = "right ones judged wrong" if right else "wrong ones judged right"
        assert len(wrong) <= allowed, (kind, direction, wrong)


@pytest.mark.parametrize("name", ["answers", "choices"])
def test_collected_cases_are_judged_as_wanted(name):
    file = CASES / f"{name}.jsonl"
    if not file.is_file():
        pytest.skip(f"{file.name} is not there: not run")
    assert errors(read(file)) == {}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("**Answer:** 73", "73"), ("### Final Answer\n\n**73**", "73"), (r"The answer is $\boxed{73}$.", "73"),
        ("So Ben has 18 + 10 = 28 pens.", "28"), ("Therefore, Ann pays $45 for the 3 books.", "45"),
        ("#### 9{,}500", "9500"), ("The answer is 9 500.", "9500"), ("The answer is $3 \\times 10^8$.", "300000000"),
        ("#### 3e8", "300000000"), ("#### 1e-05", "0.00001"), (r"The answer is \(\frac{1}{3}\)", "1/3"),
        ("The answer is 72, since 48 + 24 = 72.", "72"), ("The answer is 72 (in total).", "72"),
        ("The answer is 72; that is all.", "72"), ("<think>The answer is 5.</think>The answer is 6.", "6"),
        ("The answer is 7.\n\nQuestion: And now?\nAnswer: 8", "7"), ("The answer is twenty-one.", "21"),
        ("The answer is 4. No: the answer is 5", "5"), ("The answer is 42. I hope this helps!", "42"),
        ("#### 5 + 3", None), ("The answer is 5 or 6.", None), ("The answer is 40/5.", None),
        ("The answer is not 35.", None), ("It takes between 3 and 4 hours.", None), ("the answer is 7\n####", None),
        ("3 friends and 4 dogs", None), ("no number here", None), ("<think>The answer is 5.", None),
    ],
)  # fmt: skip
def test_numbers_are_read_where_they_are_stated(text, answer):
    assert answers.read_number(text) == answer


@pytest.mark.parametrize(
    ("found", "gold", "same"),
    [
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}", False), (r"2^{-99}", r"\frac{1}{2^{99}}", True),
        (r"\frac{1}{6}", "0", False), (r"10^{-21}", r"10^{-20}", False), ("0.33", r"\frac{1}{3}", False),
        (r"\frac{1}{3 \cdot 2^{2006}}", r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", False), ("12_8", "12_7", False),
        (r"55_{8}", "55_8", True), ("55", "55_8", False), ("3", "3,5,7", False), ("7, 3, 5", "3,5,7", True),
        (r"5 \text{ and } 3", "3, 5", True), (r"\{1,2\}", r"\{2,1\}", True), (r"\{1\}", r"\{1,2\}", False),
        ("(1,2)", "(2,1)", False), ("4+6", "10", False), (r"\binom{4}{2}", "6", False), ("2(4+6)", "20", False),
        ("1+x", "x+1", True), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True), (r"\sqrt{2}", "1.414", False),
        ("x = 5", "5", True), (r"18\text{ dollars}", "18", True), (r"\$18", "18", True), (r"[1,2)", "(1,2)", False),
        (r"\frac{7}{6} x", r"\frac{7}{5} x", False), ("9\\,500", "9500", True), (r"30^\circ", "30", True),
    ],
)  # fmt: skip
def test_latex_is_compared_exactly(found, gold, same):
    with load_task(TaskConfig(kind="math", check_seconds=60)).checker() as checker:
        verdict = checker.check(rf"so \boxed{{{found}}}", Problem("p", "?", gold))
    assert (verdict.correct, verdict.error) == (same, None)


def test_rows_and_solutions_with_several_boxes_keep_them_all():
    solution = r"The roots are $\boxed{3}$, $\boxed{5}$ and $\boxed{7}$."
    problem = parse_math(Row("f:1", 1, {"problem": "?", "solution": solution}), "math")
    assert problem.answer == "3, 5, 7"
    with load_task(TaskConfig(kind="math", check_seconds=60)).checker() as checker:
        for text in (solution, r"\boxed{7, 5, 3}", r"$x=\boxed{5}$, $x=\boxed{7}$ or $x=\boxed{3}$"):
            assert checker.check(text, problem).correct, text
        for text in (r"\boxed{7}", r"\boxed{3}, \boxed{5}", r"\boxed{3}, \boxed{5}, \boxed{8}"):
            assert not checker.check(text, problem).correct, text
    assert latex.boxed(r"first \boxed{2}, so the rest is \boxed{4}") == ["4"], "a box on the way is no part"


def test_equal_forms_are_right_so_a_vote_cannot_differ_from_its_verdict():
    for name in ("written", "written_2", "written_3"):
        for statement, verdict in judge(read(HERE / f"{name}.jsonl")):
            rule = rules.PLAIN if statement["kind"] == "jsonl" else rules.NUMBER
            if statement["kind"] in ("gsm8k", "jsonl") and verdict.answer is not None:
                assert verdict.correct == (verdict.answer == rule.canonical(statement["gold"])), statement
            assert not verdict.strict or verdict.correct


def test_strict_knows_the_form_of_the_tasks_own_solutions_alone():
    problem = Problem("p", "?", "18")
    with load_task(TaskConfig(kind="gsm8k")).checker() as checker:
        assert [checker.check(text, problem).strict for text in ("#### 18", "**18**", "#### 19")] == [
            True,
            False,
            False,
        ]
    choice = Problem("p", "?", "B", None, {"choices": ["car", "wind"]})
    with load_task(TaskConfig(kind="arc_easy")).checker() as checker:
        assert checker.check("The answer is (B).", choice).strict
        assert checker.check("**B) wind**", choice).correct and not checker.check("**B) wind**", choice).strict


def test_task_answer_settles_how_answers_are_read():
    def right(setting: str, kind: str, gold: str, text: str) -> bool:
        with load_task(TaskConfig(kind=kind, answer=setting, check_seconds=60)).checker() as checker:
            return checker.check(text, Problem("p", "?", gold)).correct

    assert right("auto", "jsonl", "18", "He has 9 + 9 = 18 pens.")
    assert not right("text", "jsonl", "18", "He has 9 + 9 = 19, not 18 pens.")
    assert right("math", "jsonl", "x+1", r"\boxed{1+x}") and not right("auto", "jsonl", "x+1", r"\boxed{1+x}")
    assert right("boxed", "gsm8k", "18", r"\boxed{18}") and not right("boxed", "gsm8k", "18", "#### 18")
    assert right("number", "math", "18", "The answer is 18 dollars.")
    with pytest.raises(RecipeError, match=r"task\.answer: number has no effect on arc_easy"):
        load_task(TaskConfig(kind="arc_easy", answer="number"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The Eiffel Tower", "eiffel tower."), ("July 4, 1776", "4 July 1776"), ("March 1, 2024", "2024-03-01"),
        ("3:45 p.m.", "15:45"), ("5.0 km", "5 kilometers"), ("12 km/h", "12 kilometers per hour"), ("'Paris'", "Paris"),
        ("2, 3 and 5", "2,3,5"), ("seven", "7"), ("$18", "18"),
    ],
)  # fmt: skip
def test_texts_that_say_the_same_have_one_form(one, other):
    assert texts.plain_text(one) == texts.plain_text(other)


HOSTILE = r"""
from treepref.config import TaskConfig
from treepref.tasks import load_task
from treepref.types import Problem

texts = [
    " " * 30000, "The answer is 5" + " " * 30000 + "x", "#### " + "9" * 5000, r"\boxed{\frac{" + "9" * 5000 + "}{3}}",
    r"\boxed{" * 5000, r"\boxed{" * 3000 + "}" * 3000,
    r"\boxed{" + "(" * 20000 + "}", r"\boxed{" + r"\frac" * 5000 + "}",
    "Question:\n" * 20000, "answer: x\n" * 20000, r"\boxed{a}" * 20000, "$" * 40000, r"\(" * 20000, "1=" * 20000,
    r"\boxed{" + "-" * 20000 + "5}", r"\boxed{" + "9^" * 5000 + "9}", "1," * 20000, "<think>" * 20000, "*" * 40000,
    "</think>" * 20000, "#" * 40000, "#### \n" * 10000, r"$\text" * 8000, "<<1=" * 20000, "The answer is " * 5000,
    "(A) " * 20000, "option A is " * 8000, ", so 5" * 10000, "The answer is " + "5 or " * 10000, "one " * 20000,
    "The answer is 1e" + "9" * 4000, "The answer is " + "1/" * 10000 + "3", r"\boxed{" + "1," * 5000 + "2}",
    r"\boxed{\{" + "1,2," * 1000 + r"3\}}", r"\boxed{" + r"\sqrt{" * 2000 + "4" + "}" * 2000 + "}", "⁹" * 30000,
    r"\(\boxed" + " " * 20000 + "x", r"\(\boxed " * 4000, r"\[\text " * 3500, "I think option" + " " * 20000 + "x yes",
    "(xyz " + ")" * 39000 + "a 5", r"\boxed{" + "a_b" * 10000 + "}", r"\boxed{1e10000000, 2}",
    r"\boxed{10^{100000}}", r"\boxed{" + "*".join(["99999999"] * 500) + "}", "½" * 30000,
]
for kind in ("gsm8k", "math", "jsonl", "arc_easy"):
    rule = load_task(TaskConfig(kind=kind)).kind.rule
    for text in texts:
        for gold in ("Paris", "18"):
            found = rule.extract(text, "\n", Problem("p", "?", gold, None, {"choices": ["car", "wind", "rock"]}))
            answer = rule.canonical(found) if found else None
            assert answer is None or len(answer) <= 60_000
print("done")
"""


def test_no_text_takes_more_than_a_moment():
    """The limit is for what grows with the square of a text's length: that would take many times as long."""
    ended = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True, timeout=300)
    assert ended.stdout.strip() == "done", ended.stderr[-2000:]


def test_thinking_and_further_problems_do_not_count():
    assert statements.final_part("<think>a</think> b") == "b"
    assert statements.final_part("#### 5\n\nQuestion: more?\n#### 6") == "#### 5"
    assert statements.final_part("Question: what?\nAnswer: 5") == "Question: what?\nAnswer: 5", (
        "restated, not a new one"
    )
    assert statements.final_part("It is 5.<|im_end|>") == "It is 5."


def test_long_numbers_are_none_and_no_traceback():
    assert numbers.parse_number("9" * 401) is None and numbers.parse_number("9" * 399) is not None
    assert numbers.parse_number("1e500") is None and numbers.parse_number("5^9999") is None
    assert latex.rational(r"10^{100000}") is None


def test_gold_answers_are_accepted_against_themselves(data_dir):
    with Checker(rules.MATH, seconds=60) as checker:
        for row in read(data_dir / "math" / "validation.jsonl"):
            problem = parse_math(Row("f:1", 1, row), "math")
            verdict = checker.check(row["solution"], problem)
            assert verdict.correct and verdict.strict, (problem.answer, verdict)
