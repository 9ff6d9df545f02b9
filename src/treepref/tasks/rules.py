"""How each kind of task finds, writes and compares answers: one AnswerRule each.

Knows no prompt, no file and no process: a comparison that may hang is named here and run by checking.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from treepref.arithmetic.expressions import ExpressionError, evaluate, numbers_in, parse_expression
from treepref.tasks import answers, latex
from treepref.tasks.numbers import bare_number, number_or_none
from treepref.tasks.statements import MARK, final_part, last_line
from treepref.tasks.texts import number_of, plain_text
from treepref.types import Problem

_CURRENCY = re.compile("[$€£]")
_CENTS = re.compile(r"[\w.,]\s?(?:cents?\b|¢|pence\b)(?!.*[$€£]\d)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """How one kind of task finds, writes and compares answers."""

    extract: Callable[[str, str, Problem | None], str | None]
    """(text, delimiter, problem) → the answer as written, None where there is none.

    Of the problem only what its question shows may be used, such as the choices, and whether its answer is a number;
    None: it is not at hand.
    """
    canonical: Callable[[str], str | None]
    """The answer as written → the form that votes count, None where it is not an answer of this kind."""
    agrees: Callable[[str, Problem], bool] | str | None = None
    """(answer, problem) → right or wrong, asked where canonical forms differ; as text, `module:function` to call in a
    worker process; None: equal canonical forms alone are right."""
    strict: Callable[[str], str | None] | None = None
    """Text → the answer as written in the one form of the task's own solutions. None: there is only that form."""
    as_written: bool = False
    """Whether `agrees` is given the answer as written, not its canonical form."""


def countdown_agrees(found: str, problem: Problem) -> bool:
    """Any expression that uses each given number exactly once and makes the target.

    That is what full score means in reasoning-gym's countdown, whatever its question says of "at most once".
    """
    if "." in found:
        return False
    try:
        expression = parse_expression(found)
        if evaluate(expression) != problem.meta["target"]:
            return False
    except ExpressionError:
        return False
    return sorted(map(abs, numbers_in(expression))) == sorted(problem.meta["numbers"])


def _last_line(text: str, delimiter: str, problem: Problem | None) -> str | None:
    return last_line(text, delimiter)


def _last_result(text: str, delimiter: str, problem: Problem | None) -> str | None:
    """What the last line comes to: all of it, or what follows its last '='."""
    line = last_line(text, delimiter)
    return line.rpartition("=")[2].strip() if line else None


def _number(text: str, delimiter: str, problem: Problem | None) -> str | None:
    return answers.read_number(text, delimiter)


def _latex(text: str, delimiter: str, problem: Problem | None) -> str | None:
    return answers.read_latex(text, delimiter)


def _text(text: str, delimiter: str, problem: Problem | None) -> str | None:
    return answers.read_text(text, delimiter)


def _box(text: str, delimiter: str, problem: Problem | None) -> str | None:
    return latex.last_boxed(final_part(text))


def _as_gold(text: str, delimiter: str, problem: Problem | None) -> str | None:
    """A number where the problem's answer is one, elsewhere text. What is stated and no number reads as text."""
    if problem is not None and number_of(problem.answer) is None:
        return answers.read_text(text, delimiter)
    value = answers.read_number(text, delimiter)
    if value is not None and problem is not None and _CURRENCY.search(problem.answer) and _CENTS.search(text[-200:]):
        return None  # cents are no dollars
    return value or (answers.stated_words(text) if problem else None)


def _marked_or_last(text: str, delimiter: str, problem: Problem | None) -> str | None:
    """The rest of the text after '####' (it may have lines), else after an answer phrase, else the last line."""
    if MARK in text:
        return answers.after_mark(text, whole=True)
    return answers.after_phrase(text) or last_line(text, delimiter)


def _mark_or_box(text: str) -> str | None:
    return answers.after_mark(answers.without_calculations(text)) or latex.last_boxed(text)


def _canonical_latex(text: str) -> str | None:
    return latex.canonical_latex(text) or None


def _canonical_text(text: str) -> str | None:
    return plain_text(text) or None


def _exact_text(text: str) -> str:
    """The form for votes where a library's scorer compares: a number, or the text as it stands."""
    return number_or_none(text) or text.strip()


CHAIN = AnswerRule(_last_result, bare_number)
ARITHMETIC = AnswerRule(_last_line, bare_number)
COUNTDOWN = AnswerRule(_last_line, answers.canonical_expression, countdown_agrees, as_written=True)
NUMBER = AnswerRule(_number, number_or_none, strict=answers.marked_number)
MATH = AnswerRule(_latex, _canonical_latex, "treepref.tasks.math_compare:agrees", latex.last_boxed)
BOXED = AnswerRule(_box, _canonical_latex, "treepref.tasks.math_compare:agrees")
TEXT = AnswerRule(_text, _canonical_text, strict=_mark_or_box)
PLAIN = AnswerRule(_as_gold, _canonical_text, strict=_mark_or_box)
REASONING_GYM = AnswerRule(_marked_or_last, _exact_text, "treepref.tasks.gym_compare:agrees", as_written=True)

BY_NAME = {"number": NUMBER, "math": MATH, "text": TEXT, "boxed": BOXED}
"""The rules that `task.answer` names."""
