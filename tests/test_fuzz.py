"""Mutated recipes, rows and solutions: whatever they hold, the answer is a sentence or a verdict, in bounded time.

Seeded: the same seed makes the same cases (TREEPREF_FUZZ_SEED for another), and a failure prints its case. A few of
each run with every test run, ten thousand of each in the long one.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest

from treepref.config import TaskConfig
from treepref.errors import DataError, TreeprefError
from treepref.keys import known_keys
from treepref.recipes.reading import builtin_recipes, dump_recipe, load_recipe
from treepref.tasks import load_task
from treepref.tasks.checking import Checker, Verdict
from treepref.tasks.choices import PARSERS as CHOICES
from treepref.tasks.files import parse_gsm8k, parse_math, parse_plain, parse_svamp, read_items
from treepref.types import Problem

SEED = int(os.environ.get("TREEPREF_FUZZ_SEED", "0"))
FEW, MANY = 100, 10_000
CHECK_SECONDS = 5.0
"""The product's own limit on a check in a process of its own."""
CASE_SECONDS = 60.0
"""Far above what any case takes on any machine: it catches what would not end. A check that its own limit cuts is
within it."""


class TooLong(Exception):
    """A case did not end."""


@contextmanager
def watched(case: object) -> Iterator[None]:
    """Whatever is not a TreeprefError fails the test and prints the case, and so does a case that does not end."""

    def stop(signum: int, frame: object) -> None:
        raise TooLong(f"more than {CASE_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    try:
        yield
    except TreeprefError as error:
        message = str(error)
        assert message and "Traceback" not in message
        assert len(message) < 20_000, f"seed {SEED}: {case!r:.3000}\na message of {len(message)} characters"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        shown = "".join(traceback.format_exception(error)[-4:])
        pytest.fail(f"seed {SEED}: {type(error).__name__} for the case\n{case!r:.5000}\n{shown}", pytrace=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- what is put in anywhere

NUMBERS = (
    "0", "-1", "1", "1e-300", "1e300", "-1e300", "1e999", ".inf", "-.inf", ".nan", "NaN", "Infinity", "2147483648",
    "9223372036854775808", str(10**30), "1" + "0" * 310, "9" * 5000, "0." + "3" * 5000, "1_000", "0x10", "010", "1:30",
    "1/0", "3/4", "-0", "-0.0", "5.", ".5", "1,234", "1,2,3", "1e-05", "1e16", "½", "٣", "²", "１２", "−5", "--5",
    "+-5",
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "\t", "\r\n", "\x00", "\x07", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ufeff", "\ufffe", "\ud800",
    "\udfff", "😀", "é", "e\u0301", "ﬁ", "\u202eabc", "A" * 3000, "a.b.c", "../..", "/", "~", "~nobody-of-this-name",
    "null", "true", "no", "{question}", "{answer}", "{0}", "%s", "$HOME", "<eos>", "</s>", "<|endoftext|>", "[", "]",
    "{", "}", ":", "- ", "? ", "!x", "!!omap", "!!binary", "&a", "*a", "<<", "|", ">", "'", '"', "\\", "\\ud800", "#",
    "---", "...", "%YAML 9.9", "=", "os:system", "json:loads", "a:b", "`", "```python", "####", "\\boxed{",
)  # fmt: skip


def noise(rng: Random) -> str:
    """A text from the lists above, a run of one of them, or random characters."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice(TEXTS) * rng.choice((2, 10, 300))
    if kind == 2:
        return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x3000)))) for _ in range(rng.randrange(20)))
    return rng.choice(TEXTS)


def value(rng: Random, depth: int = 0) -> Any:
    """Plain data of any kind."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice((0, -1, 1, 7, 2**31, 2**63, 10**30, -(10**30), 10**310))
    if kind == 2:
        return rng.choice((0.0, -0.5, 0.3, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 1e16, 1e-5))
    if kind < 6:
        return noise(rng)
    if kind < 8:
        return {noise(rng): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [value(rng, depth + 1) for _ in range(rng.randrange(4))]


def scribble(text: str, rng: Random) -> str:
    """The text with a piece taken out, doubled, moved, turned or overwritten."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        a, b = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        if rng.randrange(3):
            b = min(b, a + 12)
        piece = text[a:b]
        text = rng.choice(
            (
                text[:a] + text[b:],
                text[:b] + piece + text[b:],
                text[:a] + noise(rng) + text[b:],
                text[:a] + noise(rng) + text[a:],
                text[:a] + piece[::-1] + text[b:],
                text[:a] + piece.swapcase() + text[b:],
            )
        )
    return text


# ---- recipes


def mutated_recipe(rng: Random) -> tuple[str, list[str]]:
    """YAML text and overrides: a built-in recipe changed as text, by lines or through overrides."""
    text = BUILTIN[rng.choice(list(BUILTIN))]
    kind = rng.randrange(5)
    if kind == 0:
        text = scribble(text, rng)
    elif kind == 1:
        lines = text.splitlines()
        for _ in range(rng.choice((1, 2, 4))):
            place = rng.randrange(len(lines))
            key, colon, _ = lines[place].partition(":")
            change = rng.randrange(4)
            if change == 0:
                lines[place] = f"{key}: {noise(rng)}"
            elif change == 1:
                lines[place] = f"{noise(rng)}{colon} 1"
            elif change == 2:
                lines.insert(place, lines[rng.randrange(len(lines))])
            else:
                lines[place] = rng.choice(("  ", "\t", "- ", "? ")) + lines[place]
        text = "\n".join(lines)
    elif kind == 2:
        text = f"extends: {rng.choice((*BUILTIN, 'r.yaml', './r.yaml', '../x/../r.yaml', noise(rng)))}\n" + "".join(
            f"{noise(rng)}: {noise(rng)}\n" for _ in range(rng.randrange(3))
        )
    return text, [override(rng) for _ in range(rng.choice((0, 1, 2) if kind < 3 else (1, 2, 3)))]


def override(rng: Random) -> str:
    key = rng.choice(KEYS)
    if rng.random() < 0.2:
        key = rng.choice((scribble(key, rng), ".".join([key] * rng.choice((2, 40))), noise(rng)))
    shown = rng.choice((rng.choice(NUMBERS), rng.choice(NUMBERS), noise(rng), json.dumps(value(rng), default=str)))
    return rng.choice((f"{key}={shown}",) * 8 + (f"{key}", f"{key}=={shown}", f"{key}=[{shown}, {shown}]"))


BUILTIN = {name: load_recipe(name).text for name in builtin_recipes()}
KEYS = [*known_keys(), "task.params.min_terms", "task.params.x", "model.lora", "search.self_evaluation", "extends"]


def fuzz_recipes(count: int, folder: Path) -> int:
    """How many of `count` mutated recipes were accepted; each of those is read back equal."""
    rng, accepted = Random(f"{SEED} recipes"), 0
    file, written = folder / "r.yaml", folder / "recipe.yaml"
    for _ in range(count):
        text, overrides = mutated_recipe(rng)
        file.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        with watched((text, overrides)):
            recipe = load_recipe(file, overrides).recipe
            accepted += 1
            written.write_text(dump_recipe(recipe), encoding="utf-8")
            assert load_recipe(written).recipe == recipe
    return accepted


# ---- rows

PARSERS = {"jsonl": parse_plain, "gsm8k": parse_gsm8k, "math": parse_math, "svamp": parse_svamp, **CHOICES}
_LISTED = {
    "question": "Which is a metal?",
    "choices": {"text": ["wood", "iron"], "label": ["A", "B"]},
    "answerKey": "B",
}
ROWS: dict[str, dict[str, Any]] = {
    "jsonl": {"id": "a1", "question": "What is 3 + 4?", "answer": 7, "rationale": "3 + 4 = 7\n#### 7"},
    "gsm8k": {"question": "What is 3 + 4?", "answer": "It is <<3+4=7>>7.\n#### 7"},
    "math": {"problem": "What is $3+4$?", "solution": r"It is $\boxed{\frac{14}{2}}$.", "level": "Level 1"},
    "svamp": {"Body": "Ann has 3 pens", "Question": "How many are 4 more?", "Answer": "7.0", "ID": "chal-1"},
    "openbookqa": {"question_stem": "Which is a metal?", "fact1": "iron is a metal", **_LISTED},
    "sciq": {
        "question": "Which is a metal?", "correct_answer": "iron", "distractor1": "wood", "distractor2": "glass",
        "distractor3": "air", "support": "Iron is a metal. Wood is not.",
    },
    "aqua": {
        "question": "What is 3 + 4?", "options": ["A)6", "B)7", "C)8"], "correct": "B",
        "rationale": "3 + 4 = 7\nANSWER:B",
    },
}  # fmt: skip
"""A row that each kind's parser takes; the kinds that are not here have ARC's columns."""


def mutated_row(rng: Random, kind: str) -> str:
    """A JSON line: a good row with a key or a part changed, or the line scribbled over."""
    row = json.loads(json.dumps(ROWS.get(kind, _LISTED)))
    for key in {"id", "ID"} & set(row):  # else two rows of a file have one id, and nothing of it is read
        row[key] = f"a{rng.randrange(10**9)}"
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        key = rng.choice(list(row) or ["question"])
        change = rng.randrange(7)
        if change == 0:
            row.pop(key, None)
        elif change == 1:
            row[key] = value(rng)
        elif change == 2:
            row[noise(rng)] = row.get(key)
        elif isinstance(row.get(key), str):
            row[key] = rng.choice((scribble(row[key], rng), row[key] + noise(rng), row[key] * 50, solution(rng)))
        elif isinstance(row.get(key), list):
            row[key] = rng.choice((row[key] * 20, [*row[key], value(rng)], row[key][:1], []))
        elif isinstance(row.get(key), dict):
            part = rng.choice(list(row[key]) or ["text"])
            row[key] = {**row[key], part: value(rng)}
    line = json.dumps(row, ensure_ascii=rng.random() < 0.7, default=str)
    return scribble(line, rng) if rng.random() < 0.3 else line


def file_bytes(rng: Random, lines: list[str]) -> bytes:
    """The lines as a file, at times in another encoding, cut, or with wrong bytes in it."""
    text = rng.choice(("\n",) * 8 + ("\r\n", "\r", "\n\n", ",\n")).join(lines) + "\n"
    encoding = rng.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "utf-32", "latin-1"))
    data = text.encode(encoding, errors="surrogatepass" if encoding.startswith("utf") else "replace")
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        place = rng.randrange(len(data) + 1)
        data = (
            data[:place] + bytes(rng.randrange(256) for _ in range(rng.randrange(4))) + data[place + rng.randrange(4) :]
        )
    return gzip.compress(data) if rng.random() < 0.02 else data


def fuzz_rows(count: int, folder: Path) -> int:
    """How many of `count` mutated rows became problems; each of those can be stored, shown and checked."""
    rng, taken, done = Random(f"{SEED} rows"), 0, 0
    kinds, file = list(PARSERS), folder / "rows.jsonl"
    checkers = {kind: load_task(TaskConfig(kind=kind, path="x")).checker() for kind in kinds if kind != "math"}
    while done < count:
        kind, size = rng.choice(kinds), rng.randrange(1, 20)
        lines = [mutated_row(rng, kind) for _ in range(size)]
        done += size
        data = file_bytes(rng, lines)
        file.write_bytes(data)
        with watched((kind, data)):
            try:
                found = read_items(str(file), "train", PARSERS[kind], "row")
            except DataError as error:  # nothing usable, or one id on two rows
                assert str(file) in str(error)
                continue
            assert all(note.startswith(f"{file}:") and len(note) < 1000 for note in found.skipped)
            for problem in (item.problem for item in found.items):
                taken += 1
                assert_usable(problem)
                if kind != "math":  # its gold answers are checked in a process: solutions go there, below
                    checkers[kind].accepts_gold(problem)
    return taken


def assert_usable(problem: Problem) -> None:
    """Tokenizers, databases and messages take what the problem holds."""
    for text in (problem.id, problem.text, problem.answer, problem.rationale or "", json.dumps(dict(problem.meta))):
        text.encode("utf-8")
        assert "\0" not in text
    json.dumps(dict(problem.meta), allow_nan=False)
    assert 0 < len(problem.id) <= 500 and not any(character in problem.id for character in "\n\r\t\x1b\u2028")


# ---- solutions

STATED = (
    "The answer is {}.", "the answer is {}", "Final Answer: {}", "**Answer:** {}", "**The answer is {}.**",
    "#### {}", "#### {} clips", "####{}", "####", "# {}", "\\boxed{{{}}}", "$\\boxed{{{}}}$", "\\boxed {}",
    "\\boxed{{{}", "Answer: **{}**",
    "\\[ \\boxed{{{}}} \\]", "\\fbox{{{}}}", "\\text{{{}}}", "\\frac{{{}}}{{3}}", "\\frac{}{{2}}", "\\sqrt[{}]{{{}}}",
    "({})",
    "({}) because it is", "Option {}", "{}.", "{})", "So ({}) or (B).", "not ({})", "Wait, {}.", "= {}", "{} = {}",
    "<<{}=7>>7", "<<{}={}>>", "`{}`", "$${}$$", "\\({}\\)", "|{}|", "> {}", "- {}", "1. {}", "<answer>{}</answer>",
    "<think>{}</think>", "The answer is {} or {}.", "The answer is not {}.", "{} is the answer",
    "answer: {} answer: {}",
)  # fmt: skip
ATOMS = (
    "7", "-7", "7.0", "1,000", "$5.00", "50%", "1/3", "3/0", "x+1", "7 apples", "B", "b", "(C)", "A, B", "iron", "wood",
    "\\frac12", "\\frac{1}{2}", "\\dfrac{14}{2}", "\\frac{1}{0}", "2^{10}", "9^{9^{9^9}}", "10^{10^{10}}", "\\pi",
    "\\sqrt{2}", "\\infty", "(1,2)", "[0,1)", "\\{1,2\\}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "x=7", "7^\\circ",
    "7\\text{ cm}", "0.(3)", "1e16", "½", "３", "−7", "seven", "yes", "3 + 4", "(3 + 4) * 1", "8 / 2 + 3", "3*4-5",
    "\\left(7\\right)", "7\\%", "\\$7", "~7", "7 \\times 10^3", "\\log_2 128", "7!", "1" * 100 + "!", "|7|", "i",
)  # fmt: skip
LONG: tuple[Callable[[Random], str], ...] = (
    lambda rng: rng.choice("123456789") * 5000,
    lambda rng: "-" * 5000 + "7",
    lambda rng: "1," * 3000 + "7",
    lambda rng: "1/" * 3000 + "7",
    lambda rng: "0." + "3" * 5000,
    lambda rng: "\\frac{" + "7" * 5000 + "}{3}",
    lambda rng: "\\frac{" * 500 + "7" + "}{2}" * 500,
    lambda rng: "{" * 3000 + "7" + "}" * rng.choice((0, 2999, 3000)),
    lambda rng: "(" * 3000 + "7" + ")" * 3000,
    lambda rng: "\\boxed{" * 1000 + "7" + "}" * rng.choice((0, 1000)),
    lambda rng: "The answer is " * 2000 + "7",
    lambda rng: "#### " * 5000 + "7",
    lambda rng: "****" * 5000,
    lambda rng: "$" * 5000,
    lambda rng: "7" + rng.choice((" ", "\t", "\n", "\u00a0")) * 30_000 + rng.choice(("x", "7", "")),
    lambda rng: rng.choice((" ", "\n", "\\ ", "~", "\\!")) * 10_000,
    lambda rng: "7 + " * 3000 + "7",
    lambda rng: "7 a" * 5000,
    lambda rng: "(A)" * 3000,
    lambda rng: "A or " * 3000 + "B",
    lambda rng: "the correct option is " * 1500 + "B",
    lambda rng: "\\text{" * 800 + "B" + "}" * 800,
    lambda rng: "<<" * 5000 + "1=1" + ">>" * 5000,
    lambda rng: "7^" * 300 + "7",
    lambda rng: "\\" * 10_001 + "boxed{7}",
)


def solution(rng: Random, long: bool = False) -> str:
    """Lines that state answers in Markdown, LaTeX, letters and numbers, some of them long or scribbled over."""
    parts = []
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        atom = rng.choice(LONG)(rng) if long and rng.random() < 0.3 else rng.choice((*ATOMS, noise(rng)))
        form = rng.choice(STATED)
        parts.append(form.format(*[atom] * form.count("{}"), *[atom] * 2) if rng.random() < 0.8 else atom)
    text = rng.choice(("\n", "\n\n", " ", "", "\n- ", " ... ")).join(parts)
    return scribble(text, rng) if rng.random() < 0.3 else text


def checked_problems() -> list[tuple[TaskConfig, Problem]]:
    """A problem of each kind whose answer the task checks itself."""
    kinds = [TaskConfig(kind=kind, path="x", check_seconds=CHECK_SECONDS) for kind in PARSERS]
    found = [(cfg, problem) for cfg in kinds for problem in PROBLEMS[cfg.kind]]
    numbers = {"numbers": [3, 4, 5], "target": 17}
    return [
        *found,
        (TaskConfig(name="countdown"), Problem("c", "3 4 5 = 17", "3 * 4 + 5", None, numbers)),
        (TaskConfig(name="chain_sum"), Problem("s", "3 + 4", "7", None, {"expression": "3 + 4"})),
        (TaskConfig(name="basic_arithmetic"), Problem("a", "3 + 4", "7", None, {"expression": "3 + 4"})),
        (TaskConfig(name="gsm_symbolic"), Problem("g", "3 + 4?", "7")),
    ]


_METAL = Problem("m", "Which is a metal?\n(A) wood\n(B) iron", "B", None, {"choices": ["wood", "iron"]})
PROBLEMS: dict[str, list[Problem]] = {
    **{kind: [_METAL] for kind in PARSERS},
    "gsm8k": [Problem("g", "3 + 4?", "7")],
    "svamp": [Problem("s", "3 + 4?", "7")],
    "math": [Problem("x", "3 + 4?", r"\frac{14}{2}")],
    "jsonl": [Problem("n", "3 + 4?", "7"), Problem("t", "Where?", "Paris")],
}


def fuzz_solutions(count: int) -> int:
    """How many of `count` mutated solutions counted as right."""
    rng, right = Random(f"{SEED} solutions"), 0
    problems = checked_problems()
    tasks = [load_task(cfg) for cfg, _ in problems]
    checkers: list[Checker] = [task.checker() for task in tasks]
    for checker in checkers:
        checker.__enter__()
    try:
        for i in range(count):
            place = rng.randrange(len(problems))
            text = solution(rng, long=True)
            problem = problems[place][1]
            with watched((problems[place][0].kind, problems[place][0].name, text)):
                form = tasks[place].canonical(text)
                assert form is None or isinstance(form, str)
                verdict = checkers[place].check(text, problem)
                assert isinstance(verdict, Verdict)
                right += verdict.correct
                if i % 5 == 0:  # as a gold answer, which comes from a file
                    gold = Problem("f", problem.text, solution(rng, long=True), None, problem.meta)
                    reason = checkers[place].accepts_gold(gold)
                    assert reason is None or len(reason) < 1000
    finally:
        for checker in checkers:
            checker.__exit__(None, None, None)
    return right


# ---- the tests


@pytest.fixture(autouse=True)
def from_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutated recipes name files: none of them may be this repository's."""
    monkeypatch.chdir(tmp_path)


def test_every_kind_of_file_is_here() -> None:
    assert {"reasoning_gym", "verifiers", *PARSERS} == set(get_args(TaskConfig.model_fields["kind"].annotation))


def test_some_recipes(tmp_path: Path) -> None:
    assert fuzz_recipes(FEW, tmp_path) > 0


def test_some_rows(tmp_path: Path) -> None:
    assert fuzz_rows(FEW, tmp_path) > 0


def test_some_solutions() -> None:
    assert fuzz_solutions(FEW) > 0


@pytest.mark.long
def test_many_recipes(tmp_path: Path) -> None:
    assert MANY * 0.05 < fuzz_recipes(MANY, tmp_path) < MANY * 0.9


@pytest.mark.long
def test_many_rows(tmp_path: Path) -> None:
    assert MANY * 0.05 < fuzz_rows(MANY, tmp_path) < MANY * 0.9


@pytest.mark.long
def test_many_solutions() -> None:
    assert MANY * 0.02 < fuzz_solutions(MANY) < MANY * 0.9


if __name__ == "__main__":  # the cases of one kind, to look at: python tests/test_fuzz.py recipes
    make: dict[str, Callable[[Random], object]] = {
        "recipes": mutated_recipe, "rows": lambda rng: mutated_row(rng, "jsonl"), "solutions": solution,
    }  # fmt: skip
    for _ in range(20):
        print(repr(make[sys.argv[1]](Random())))
