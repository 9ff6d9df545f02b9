"""Whether a run's solutions are right. Needs no engine: a text, the problem and the task's checker are enough."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import islice

from treepref.errors import CheckerError
from treepref.loops.text import Text
from treepref.loops.unchecked import note_failure, take_back
from treepref.runs.stage import Stage
from treepref.runs.store import Store
from treepref.search.base import Judge
from treepref.tasks.checking import Checker, Verdict
from treepref.tasks.task import Task
from treepref.tasks.trial import PROBLEMS, try_own_checker
from treepref.types import PolicyId, Problem, Tree


def outcome_of(verdict: Verdict) -> float:
    """+1 for a right solution, −1 for a wrong one (AlphaMath, arXiv 2405.03553).

    A checker's number below what counts as right lies between: −1 at 0, and 0 right below that (ours).
    """
    return 1.0 if verdict.correct else verdict.score - 1.0


class Answers:
    """One checker serves the whole run. Close it: it may hold processes."""

    def __init__(self, store: Store, task: Task, text: Text) -> None:
        self._store, self._task, self._text = store, task, text
        self._open = ExitStack()
        self._checker: Checker | None = None

    @property
    def checker(self) -> Checker:
        """A user's own is tried first, before anything is spent.

        Raises RecipeError, with the traceback, where it fails on the problems' own answers.
        """
        if self._checker is None:
            checker = self._open.enter_context(self._task.checker())
            self._try(checker)
            self._checker = checker
        return self._checker

    def try_own(self) -> None:
        """Try the user's checker, if there is one and that was not done yet. Raises RecipeError as `checker` does."""
        if self._task.own_checker is not None:
            _ = self.checker

    def _try(self, checker: Checker) -> None:
        if self._task.own_checker is None:
            return
        splits = ("labelled", "train", "eval")
        problems = (p for split in splits for p in islice(self._store.problems(split), PROBLEMS))
        self._store.forget_events("task.checker")
        if warning := try_own_checker(self._task, checker, problems):
            self._store.event("task.checker", "warning", warning)

    def check(
        self, tokens: tuple[int, ...], problem: Problem, *, stage: Stage, policy: PolicyId
    ) -> tuple[str, Verdict]:
        """A finished solution's text and whether it is right. What fails to check is noted with the stage that asked.

        `policy`: the one that grew the solution's tree. Raises CheckerError where the user's checker fails time and
        again; what it could not check is then taken back.
        """
        text = self._text.finished(tokens)
        try:
            verdict = self.checker.check(text, problem)
        except CheckerError as error:
            raise CheckerError(f"{error}\n{_taken_back(*take_back(self._store, policy))}") from None
        if verdict.error:
            note_failure(self._store, stage, problem.id, verdict.error)
        return text, verdict

    def judge(self, stage: Stage, *splits: str) -> Judge:
        """Outcomes for a stage's search, of problems of some splits."""
        known = {p.id: p for split in splits for p in self._store.problems(split)}

        def outcome(tree: Tree, tokens: tuple[int, ...]) -> float:
            return outcome_of(self.check(tokens, known[tree.problem_id], stage=stage, policy=tree.policy)[1])

        return outcome

    def close(self) -> None:
        self._open.close()


def _taken_back(again: int, kept: int) -> str:
    """What becomes of the solutions that could not be checked (see `take_back`)."""
    said = "Mend the checker and run the same command again: it goes on from here. "
    if not kept:
        return f"{said}No solution that could not be checked was kept as a wrong one ({again} problems are done again)."
    return (
        f"{said}{again} problems are done again. {kept} solutions that could not be checked stay wrong: their stage is "
        "done, or training has gone on from their trees."
    )
