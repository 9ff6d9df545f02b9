"""Is a solution's answer right? Extract the answer first, then compare; right only at full score.

How a kind of task writes and compares answers stands in rules.py. Knows no prompt, no file and no tree. Comparisons
that belong to others (math-verify, reasoning-gym's scorers, users' checkers) run in a process that can be killed.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from treepref.tasks.own_checker import Watch
from treepref.tasks.rules import AnswerRule
from treepref.tasks.thinking import after_thinking
from treepref.types import Problem
from treepref.workers.isolation import IsolatedFunction

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
    score: float = 0.0
    """What a user's checker gave it, as a share of what counts as right: 1 where it is right, below 1 elsewhere."""
    strict: bool = False
    """Right also for a reader that knows only the form in which the task's own solutions state their answer, such as
    GSM8K's '#### 18'. Where `correct` is true and this is not, the model was right in a form of its own."""


class Checker:
    """Checks solutions of one task. A context manager: leaving it ends its worker process, if one was needed."""

    def __init__(
        self,
        rule: AnswerRule,
        *,
        delimiter: str = "\n",
        seconds: float = 5.0,
        own: str | None = None,
        pass_score: float = 1.0,
    ) -> None:
        """`own`: a user's `module:function(text, problem) -> bool | float`, the only judge then.

        `seconds`: a check's limit. `pass_score`: from which number on a solution is right.
        """
        self.rule = rule
        self.delimiter = delimiter
        self._own, self._pass_score = own is not None, pass_score
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

        What a model thinks aloud is not read; a user's checker is given it too.

        Raises CheckerError where a user's checker fails time and again (own_checker.py says when).
        """
        said = after_thinking(text)
        found = self.rule.extract(said, self.delimiter, problem)
        answer = self.rule.canonical(found) if found else None
        if self._own:
            score, error = self._ask(text, problem)
            correct = self._passes(score)
            return Verdict(correct, answer, error, min(1.0, max(0.0, score / self._pass_score)), strict=correct)
        if found is None or answer is None:
            return Verdict(False)
        correct, error = True, None
        if answer != self.rule.canonical(problem.answer):  # equal forms are right: no vote can differ from its verdict
            correct, error = self._compare(found if self.rule.as_written else answer, problem)
        return Verdict(correct, answer, error, float(correct), strict=correct and self._strictly(said, answer))

    def _strictly(self, text: str, answer: str) -> bool:
        """Whether the answer stands in the one form of the task's own solutions too."""
        if self.rule.strict is None:
            return True
        found = self.rule.strict(text)
        return found is not None and self.rule.canonical(found) == answer

    def accepts_gold(self, problem: Problem) -> str | None:
        """None where the problem's own answer counts as right; otherwise why not. A user's checker is not asked."""
        if self._own:
            return None
        gold = self.rule.canonical(problem.answer)
        if gold is None:
            return f"its answer {problem.answer[:60]!r} cannot be read"
        correct, error = self._compare(problem.answer if self.rule.as_written else gold, problem)
        return (
            None
            if correct
            else f"its answer {problem.answer[:60]!r} does not check as right against itself ({error or 'no match'})"
        )

    def try_own(self, text: str, problem: Problem) -> tuple[bool, str | None]:
        """What a user's checker says, or why it says nothing. A failure is not kept and counts toward no stop."""
        score, error = self._ask(text, problem, watched=False)
        return self._passes(score), error

    def _passes(self, score: float) -> bool:
        return score >= self._pass_score

    def _compare(self, found: str, problem: Problem) -> tuple[bool, str | None]:
        if self.rule.agrees is None:
            return found == self.rule.canonical(problem.answer), None
        if callable(self.rule.agrees):
            return self.rule.agrees(found, problem), None
        key = (problem.id, problem.answer, found)  # search brings the same answer many times
        if key in self._known:
            return self._known[key], None
        score, error = self._ask(found, problem)
        correct = score >= 1
        if error is None:
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[key] = correct
        return correct, error

    def _ask(self, text: str, problem: Problem, *, watched: bool = True) -> tuple[float, str | None]:
        """The worker's word. A failure is kept: equal samples would hang again, each for the whole limit."""
        key = (problem.id, problem.answer, text)
        if key in self._failed:
            return 0.0, self._failed[key]
        assert self._isolated is not None
        score, error = self._isolated(text, problem)
        if self._watch is not None and watched:
            self._watch.note(problem.id, error)
        if error is not None and watched:
            if len(self._failed) >= _CACHED:
                self._failed.clear()
            self._failed[key] = error
        return score, error
