"""Is a solution's answer right? Extract the answer first, then compare; right only at full score.

Knows how each kind of task writes and compares answers. Knows no prompt, no file and no tree. Comparisons that belong
to others (math-verify, reasoning-gym's scorers, users' checkers) run in a process that can be killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

from treepref.tasks import answers
from treepref.tasks.expressions import ExpressionError, evaluate, numbers_in, parse_expression
from treepref.tasks.isolation import IsolatedFunction
from treepref.tasks.own_checker import Watch
from treepref.types import Problem

MEMORY_MB = 4096
"""Memory of a worker that runs our own comparisons ('9^{9^{9^9}}' must not take the machine). Users' have no limit."""

_CACHED = 200_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a solution is right, and what was read of it."""

    correct: bool
    answer: str | None = None
    """The canonical form of what was found; None where nothing can be read."""
    error: str | None = None
    """Why a check failed to run: a line that says it, and where a checker raised, its traceback below."""
    strict: bool = False
    """Right also for a reader that knows only the form in which the task's own solutions state their answer, such as
    GSM8K's '#### 18'. Where `correct` is true and this is not, the model was right in a form of its own."""


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """How one kind of task finds, writes and compares answers."""

    extract: Callable[[str, str, Problem | None], str | None]
    """(text, delimiter, problem) → the answer as written, None where there is none.

    Of the problem only what its question shows may be used, such as the choices; None: it is not at hand.
    """
    canonical: Callable[[str], str | None]
    """The answer as written → the form that votes count, None where it is not an answer of this kind."""
    agrees: Callable[[str, Problem], bool] | str
    """(the answer as written, problem) → right or wrong; as text, `module:function` to call in a worker process."""


class Checker:
    """Checks solutions of one task. A context manager: leaving it ends its worker process, if one was needed."""

    def __init__(
        self, rule: AnswerRule, *, delimiter: str = "\n", seconds: float = 5.0, own: str | None = None
    ) -> None:
        """`own`: a user's `module:function(text, problem) -> bool`, the only judge then. `seconds`: a check's limit."""
        self.rule = rule
        self.delimiter = delimiter
        self._own = own is not None
        self._watch = None if own is None else Watch(own)
        self._isolated: IsolatedFunction | None = None
        self._known: dict[tuple[str, str, str], bool] = {}
        self._failed: dict[tuple[str, str, str], str] = {}
        if own is not None:
            self._isolated = IsolatedFunction(own, key="task.checker", seconds=seconds)
        elif isinstance(rule.agrees, str):
            self._isolated = IsolatedFunction(rule.agrees, key="task", seconds=seconds, memory_mb=MEMORY_MB)

    def __enter__(self) -> Checker:
        """Raises RecipeError where a user's checker cannot be imported."""
        if self._isolated is not None:
            self._isolated.start()
            if self._own:
                self._isolated.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._isolated is not None:
            self._isolated.close()

    def check(self, text: str, problem: Problem) -> Verdict:
        """Verdict on a whole solution. A check that hangs or fails is wrong, with its error.

        Raises CheckerError where a user's checker fails time and again (own_checker.py says when).
        """
        found = self.rule.extract(text, self.delimiter, problem)
        answer = self.rule.canonical(found) if found else None
        if self._own:
            correct, error = self._ask(text, problem)
            return Verdict(correct, answer, error, strict=correct)
        if found is None or answer is None:
            return Verdict(False)
        correct, error = self._compare(found, problem)
        return Verdict(correct, answer, error, strict=correct)

    def check_many(self, pairs: Iterable[tuple[str, Problem]]) -> list[Verdict]:
        """Verdicts in the order of (text, problem)."""
        return [self.check(text, problem) for text, problem in pairs]

    def accepts_gold(self, problem: Problem) -> str | None:
        """None where the problem's own answer counts as right; otherwise why not. A user's checker is not asked."""
        if self._own:
            return None
        if self.rule.canonical(problem.answer) is None:
            return f"its answer {problem.answer[:60]!r} cannot be read"
        correct, error = self._compare(problem.answer, problem)
        return (
            None
            if correct
            else f"its answer {problem.answer[:60]!r} does not check as right against itself ({error or 'no match'})"
        )

    def try_own(self, text: str, problem: Problem) -> tuple[bool, str | None]:
        """What a user's checker says, or why it says nothing. A failure is not kept and counts toward no stop."""
        return self._ask(text, problem, watched=False)

    def _compare(self, found: str, problem: Problem) -> tuple[bool, str | None]:
        if callable(self.rule.agrees):
            return self.rule.agrees(found, problem), None
        key = (problem.id, problem.answer, found)  # search brings the same answer many times
        if key in self._known:
            return self._known[key], None
        correct, error = self._ask(found, problem)
        if error is None:
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[key] = correct
        return correct, error

    def _ask(self, text: str, problem: Problem, *, watched: bool = True) -> tuple[bool, str | None]:
        """The worker's word. A failure is kept: equal samples would hang again, each for the whole limit."""
        key = (problem.id, problem.answer, text)
        if key in self._failed:
            return False, self._failed[key]
        assert self._isolated is not None
        correct, error = self._isolated(text, problem)
        if self._watch is not None and watched:
            self._watch.note(problem.id, error)
        if error is not None and watched:
            if len(self._failed) >= _CACHED:
                self._failed.clear()
            self._failed[key] = error
        return correct, error


# --- the rules


def numbers_agree(found: str, problem: Problem) -> bool:
    """Equal numbers, sign included."""
    gold = answers.parse_number(problem.answer)
    return gold is not None and answers.parse_number(found) == gold


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


def plain_agrees(found: str, problem: Problem) -> bool:
    """Where the gold answer is a number: equal numbers, units allowed behind; otherwise equal text, case aside."""
    gold = answers.parse_number(problem.answer)
    if gold is None:
        return answers.plain_text(found) == answers.plain_text(problem.answer)
    return gold in (answers.parse_number(found), answers.leading_number(found))


def _last_line(text: str, delimiter: str, problem: Problem | None) -> str | None:
    return answers.last_line(text, delimiter)


def _last_result(text: str, delimiter: str, problem: Problem | None) -> str | None:
    """What the last line comes to: all of it, or what follows its last '='."""
    line = answers.last_line(text, delimiter)
    return line.rpartition("=")[2].strip() if line else None


def _marked(text: str, delimiter: str, problem: Problem | None) -> str | None:
    return answers.marked_number(text)


def _boxed(text: str, delimiter: str, problem: Problem | None) -> str | None:
    return answers.last_boxed(text)


def _marked_or_last(text: str, delimiter: str, problem: Problem | None) -> str | None:
    """The rest of the text after '####' (it may have lines), else after an answer phrase, else the last line."""
    if answers.MARK in text:
        return answers.after_mark(text, whole=True)
    return answers.after_phrase(text) or answers.last_line(text, delimiter)


def _plain(text: str, delimiter: str, problem: Problem | None) -> str | None:
    text = answers.without_calculations(text)
    if answers.MARK in text:
        return answers.after_mark(text)
    return answers.last_boxed(text) or answers.after_phrase(text) or answers.last_line(text, delimiter)


CHAIN = AnswerRule(_last_result, answers.bare_number, numbers_agree)
ARITHMETIC = AnswerRule(_last_line, answers.bare_number, numbers_agree)
COUNTDOWN = AnswerRule(_last_line, answers.canonical_expression, countdown_agrees)
GSM8K = AnswerRule(_marked, answers.number_or_none, numbers_agree)
MATH = AnswerRule(_boxed, answers.canonical_latex, "treepref.tasks.math_compare:agrees")
REASONING_GYM = AnswerRule(_marked_or_last, answers.plain_text, "treepref.tasks.gym_compare:agrees")
PLAIN = AnswerRule(_plain, answers.plain_text, plain_agrees)
