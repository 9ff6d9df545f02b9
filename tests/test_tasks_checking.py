"""Extraction, canonical forms, comparisons, and the worker that may be killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impatience import no_patience_with
from treepref.config import SplitConfig, TaskConfig
from treepref.errors import DataError, RecipeError
from treepref.tasks import Checker, answers, gym, latex, load_splits, load_task, numbers
from treepref.tasks.files import parse_gsm8k, parse_math, read_items
from treepref.types import Problem, Question
from treepref.workers.isolation import WorkerProcess

PROBLEM = Problem("p1", "How many?", "5")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", "5"), ("-5", "-5"), ("−5", "-5"), ("+5", "5"), ("5.", "5"), ("5.0", "5"), ("05", "5"), ("-0", "0"),
        ("1,000", "1000"), ("$1,234.50", "1234.5"), ("-$5", "-5"), ("$-5", "-5"), ("50%", "50"), ("12.50 %", "12.5"),
        (".5", "0.5"), ("1/2", "0.5"), ("-2/6", "-1/3"), ("0.125", "0.125"), ("$7$", "7"), ("£3", "3"),
        ("1,2", None), ("1,0000", None), ("5 6", None), ("1/0", None), ("--5", None), ("-$-5", None), ("five", None),
        ("", None), ("1e9", "1000000000"), ("5+0", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_numbers_have_one_form(text, value):
    assert numbers.number_or_none(text) == value


@given(st.fractions(max_denominator=10**6))
def test_canonical_numbers_read_back_as_themselves(value):
    assert numbers.parse_number(numbers.canonical_number(value)) == value


@given(st.integers(-(10**9), 10**9), st.integers(0, 6))
def test_written_decimals_are_canonical(digits, places):
    value = Fraction(digits, 10**places)
    written = f"{digits / 10**places:.{places}f}"
    assert numbers.canonical_number(value) == (str(value) if value.denominator == 1 else written.rstrip("0"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2+3=5\n#### 5", "5"), ("#### 4\n#### 5 apples.", "5"), ("so #### $1,000", "1000"),
        ("The answer is -5.", "-5"),
        ("Final answer: 5 km", "5"), ("it is 5", "5"),
        ("#### 5 + 3", None), ("####", None), ("answer is 5 or 6", None),
        ("the answer is 4. No: the answer is 5", "5"), ("the answer is 7\n####", None),
    ],
)  # fmt: skip
def test_gsm8k_answers(text, answer):
    assert answers.read_number(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed 9$", "9"), (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{1", None), ("9", None), (r"\boxed{}", None), (r"\boxed{1} and \boxed{2", None),
    ],
)  # fmt: skip
def test_boxed_answers(text, answer):
    assert latex.last_boxed(text) == answer


def test_latex_votes_fall_together_where_only_the_writing_differs():
    same = [
        (r"\dfrac{1}{2}", r"\frac12", "0.5", r"$\tfrac 1 2$", "1/2"),
        (r"\left( 1, \sqrt{2} \right)", r"(1,\sqrt{2})"),
        (r"12 \text{ cm}", "12", r"12\,\mathrm{cm}"),
        (r"\text{Tuesday}", "Tuesday"),
        ("30^\\circ", "30", r"30^{\circ}"),
        (r"2\pi r", r"2 \pi  r"),
    ]
    for group in same:
        assert len({latex.canonical_latex(text) for text in group}) == 1, group
    assert latex.canonical_latex(r"\pi x") != latex.canonical_latex(r"\pix")
    assert latex.canonical_latex(r"-\frac{1}{2}") == "-0.5"


def countdown_problem():
    return Problem("c", "?", "6 * (98 - 54) - 34 - 66", None, {"numbers": [66, 34, 98, 54, 6], "target": 164})


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("6*(98 - 54) - 34 - 66", True), ("98 - 54 = 44\n(98-54)*6-66-34", True), ("-34 - 66 + 6*(98-54)", True),
        ("6*(98 - 54) - 34", False), ("6*(98 - 54) - 34 - 66 + 6 - 6", False), ("164", False),
        ("6*(98 - 54) - 100", False), ("6*(98 - 54) - 34 - 66 = 164", False), ("6*(98 - 54) - 34 - 66\nok", False),
        ("66/(34-34)", False), ("", False),
    ],
)  # fmt: skip
def test_every_valid_countdown_counts_and_nothing_else(text, correct):
    task = load_task(TaskConfig(name="countdown"))
    with task.checker() as checker:
        verdict = checker.check(text, countdown_problem())
        assert (verdict.correct, verdict.error) == (correct, None)
        right = task.canonical("6*(98 - 54) - 34 - 66")
        assert (verdict.answer == right) == correct  # one vote for all right solutions, none of a wrong one


def test_arithmetic_answers():
    task = load_task(TaskConfig(name="basic_arithmetic"))
    with task.checker() as checker:
        assert checker.check("2 + 3\n5", PROBLEM).correct
        assert checker.check("2 + 3\n5.0\n", PROBLEM).answer == "5"
        for wrong in ("-5", "2 + 3", "10/2", "5\n6", "the 5", ""):
            assert not checker.check(wrong, PROBLEM).correct, wrong
    chain = load_task(TaskConfig(name="chain_sum"))
    assert chain.canonical("2 + 3 = 5") == "5" and chain.canonical("2 + 3 = -5") == "-5"
    assert chain.canonical("2 + 3 =") is None and chain.canonical("2 + 3") is None


def test_delimiters_other_than_a_new_line():
    task = load_task(TaskConfig(name="basic_arithmetic", delimiter=" ;"))
    problem = Problem("a", "?", "14", "x", {"expression": "2 + 3 * 4"})
    assert task.solution_text(problem, Random(0)) == "2 + 12 ;14"
    assert task.canonical("2 + 12 ;14") == task.canonical("2 + 12 ;14 ;") == "14"


def test_gsm8k_gold_checks_as_right_and_its_negative_as_wrong(data_dir):
    found = read_items(str(data_dir / "gsm8k"), "validation", parse_gsm8k, "gsm8k")
    task = load_task(TaskConfig(kind="gsm8k"))
    assert len(found.items) == 768 and not found.skipped
    with task.checker() as checker:
        for problem in (item.problem for item in found.items):
            text = task.solution_text(problem, Random(0))
            assert "<<" not in text and checker.check(text, problem).correct
            head, _, number = text.rpartition("#### ")
            assert not checker.check(f"{head}#### -{number}", problem).correct


def test_math_gold_checks_as_right(data_dir):
    found = read_items(str(data_dir / "math"), "validation", parse_math, "math")
    assert len(found.items) == 500
    task = load_task(TaskConfig(kind="math", check_seconds=60))
    with task.checker() as checker:
        for problem in [item.problem for item in found.items][:150]:
            verdict = checker.check(task.solution_text(problem, Random(0)), problem)
            assert verdict.correct and verdict.answer == latex.canonical_latex(problem.answer), problem
        half = Problem("m", "?", r"\frac{1}{2}")
        assert checker.check(r"\boxed{0.5}", half).correct
        for wrong in (r"\boxed{-\frac{1}{2}}", r"\boxed{-0.5}", r"\boxed{\frac{1}{2"):
            assert not checker.check(wrong, half).correct


def test_a_tower_of_powers_ends_at_the_memory_or_the_time_limit_and_not_in_the_caller():
    rule, half = load_task(TaskConfig(kind="math")).kind.rule, Problem("m", "?", r"\frac{1}{2}")
    with Checker(rule, seconds=2) as hurried:
        assert not hurried.check(r"\boxed{9^{9^{9^9}}}", half).correct
    with Checker(rule, seconds=300) as patient:
        assert patient.check(r"\boxed{\frac12}", half).correct


OWN_CHECKER = """
    import os, time
    def check(text, problem):
        print("noise on stdout")
        if text == "hang":
            open("hanging", "w").close()
            while True: pass
        if text == "die": os._exit(3)
        if text == "exit": raise SystemExit
        if text == "fail": raise KeyError("no")
        if text == "odd": return "yes"
        return text == problem.answer and problem.meta["k"] == [1]
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_own_checker.py").write_text(textwrap.dedent(OWN_CHECKER))
    monkeypatch.chdir(tmp_path)
    return "my_own_checker:check"


def test_a_hung_check_costs_its_limit_and_nothing_else(own_module, monkeypatch):
    os.mkfifo("hanging")  # opened by both sides at once
    asked = no_patience_with(monkeypatch, lambda r: r["text"] == "hang", lambda: open("hanging").close())
    problem = Problem("p", "?", "5", None, {"k": [1]})
    task = load_task(TaskConfig(kind="jsonl", checker=own_module, check_seconds=300))
    with task.checker() as checker:
        assert checker.check("5", problem).correct
        verdict = checker.check("hang", problem)
        assert not verdict.correct and "longer than 300 s" in verdict.error
        results = [checker.check(t, problem) for t in ("5", "6", "fail", "odd", "exit", "die", "5", "hang")]
        assert [verdict.correct for verdict in results] == [True, False, False, False, False, False, True, False]
        assert "KeyError" in results[2].error and "str" in results[3].error and "died" in results[5].error
        assert results[1].error is None
    assert {seconds for *_, seconds in asked} == {300}
    assert [text for _, text, _ in asked].count("hang") == 1, "what hung is known"


def test_a_process_that_hangs_is_given_up_at_the_limit(own_module):
    os.mkfifo("hanging")
    worker = WorkerProcess(
        "treepref.workers.worker", json.dumps({"function": own_module, "key": "k", "memory_mb": None})
    )
    try:
        worker.wait()
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            worker.ask({"text": "hang", "problem": asdict(Problem("p", "?", "5"))}, 0.2)
        assert time.monotonic() - start >= 0.2
        open("hanging").close()
        assert worker.process.poll() is None, "the caller's to kill"
    finally:
        worker.kill()
    assert worker.process.poll() == -signal.SIGKILL


def test_a_checker_may_give_numbers(tmp_path, monkeypatch):
    (tmp_path / "numbers_of_mine.py").write_text(
        "import numpy\n"
        "def score(text, problem):\n"
        "    return {'np': numpy.float32(0.75), 'int': 2, 'true': numpy.bool_(True), 'inf': float('inf'),"
        " 'nan': float('nan'), 'text': '1', 'huge': 10**400}"
        ".get(text, len(problem.meta['tests']) / 4 if text == 'row' else -3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    problem = Problem("p", "?", "5", None, {"tests": ["a", "b"]})
    task = load_task(TaskConfig(kind="jsonl", checker="numbers_of_mine:score", pass_score=0.75))
    with task.checker() as checker:
        found = {
            t: checker.check(t, problem) for t in ("np", "int", "true", "row", "none", "inf", "nan", "text", "huge")
        }
    assert [t for t, verdict in found.items() if verdict.correct] == ["np", "int", "true"]
    assert {t: round(v.score, 3) for t, v in found.items() if not v.error} == {
        "np": 1.0, "int": 1.0, "true": 1.0, "row": 0.667, "none": 0.0
    }  # fmt: skip
    assert (
        all("no number to compare" in found[t].error for t in ("inf", "nan", "huge")) and "str" in found["text"].error
    )


def test_a_checker_that_cannot_be_imported_is_named(own_module):
    for name, message in (("no_such_module:f", "no_such_module"), ("my_own_checker:nope", "nope"), ("x y", "form")):
        with pytest.raises(RecipeError, match=message), Checker(load_task(TaskConfig()).kind.rule, own=name):
            pass


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no way to wait for a process that is not a child")
def test_a_worker_outlives_no_killed_parent(own_module, tmp_path):
    script = f"""
        import os, sys
        from treepref.workers.isolation import IsolatedFunction
        worker = IsolatedFunction({own_module!r}, key="k", seconds=9)
        worker.wait()
        print(worker._worker.process.pid, flush=True)
        from treepref.types import Problem
        worker("hang", Problem("p", "?", "5"))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as parent:
        worker = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        ended, _, _ = select.select([worker], [], [], 600)
        assert ended, "the worker still runs"
    finally:
        os.close(worker)


def test_tasks_import_no_torch():
    code = "import sys, treepref.workers.worker; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_library_scorers_count_at_full_score_alone():
    def first(name):
        return next(gym.draw(name, {}, 5, 0, [1]))

    gcd, grids = first("gcd"), first("rearc")
    with load_task(TaskConfig(name="gcd", check_seconds=60)).checker() as checker:
        assert checker.check(f"well\n#### {gcd.answer}", gcd).correct
        assert checker.check(f"the answer is {gcd.answer}", gcd).correct
        assert checker.check(gcd.answer, gcd).correct
        for wrong in (f"#### -{gcd.answer}", f"#### {gcd.answer} or 3", f"it may be {gcd.answer}", "####"):
            assert not checker.check(wrong, gcd).correct, wrong
        # metadata with tuples comes back from JSON whole: the scorer compares them with tuples
        stored = Problem(**json.loads(json.dumps({**asdict(grids)})))
        assert checker.accepts_gold(stored) is None
        assert checker.check(f"#### {stored.answer}", stored).correct
        assert not checker.check(f"#### {stored.answer[:-1]}", stored).correct


def test_prompts(own_module, tmp_path):
    question = Question("q", "Is {x} = {question}?")
    assert load_task(TaskConfig(kind="gsm8k")).prompt(question) == f"Question: {question.text}\nAnswer:\n"
    assert load_task(TaskConfig(prompt="{a} {question}!")).prompt(question) == f"{{a}} {question.text}!"
    with pytest.raises(RecipeError, match=r"task\.prompt"):
        load_task(TaskConfig(prompt="no place for it"))
    (tmp_path / "my_prompt.py").write_text(
        "def ask(question): return 'Q ' + question.text\ndef bad(question): return 1\n"
    )
    assert load_task(TaskConfig(prompt="my_prompt:ask")).prompt(question) == "Q " + question.text
    with pytest.raises(DataError, match=r"q: task\.prompt returned int"):
        load_task(TaskConfig(prompt="my_prompt:bad")).prompt(question)


def test_bare_prompts_say_what_is_asked():
    for name in ("chain_sum", "basic_arithmetic", "countdown"):
        params = {"format_style": "natural"} if name == "basic_arithmetic" else {}
        cfg = TaskConfig(
            name=name, params=params, splits=SplitConfig(train=30, eval=1), prompt="treepref.tasks.prompts:bare"
        )
        task = load_task(cfg)
        for problem in load_splits(cfg, 1).train:
            meta = problem.meta
            expected = meta.get("expression") or f"{' '.join(map(str, meta['numbers']))} = {meta['target']}"
            assert task.prompt(problem.question) == expected + "\n"


def test_users_rationales_end_in_an_answer_that_can_be_found():
    task = load_task(TaskConfig(kind="jsonl"))
    with task.checker() as checker:
        for rationale, text in (
            ("2+3=5", "2+3=5\n#### 5"),
            ("a\n\n b \nso the answer is 5", "a\nb\nso the answer is 5"),
        ):
            problem = Problem("p", "?", "5", rationale)
            assert task.solution_text(problem, Random(0)) == text
            assert checker.check(text, problem).correct
        assert checker.check("#### Red  Fox", Problem("p", "?", "red fox")).correct
        assert not checker.check("#### -5", PROBLEM).correct
    with pytest.raises(DataError, match="no rationale"):
        task.solution_text(PROBLEM, Random(0))
