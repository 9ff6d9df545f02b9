"""A task: how a problem is put to the model, how its solution is written for SFT, and how answers are read.

One `Kind` a family of tasks, in one dict. Knows no file and no split.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from treepref.blocks import lines_and_blocks
from treepref.config import TaskConfig
from treepref.errors import DataError, RecipeError
from treepref.tasks import rules
from treepref.tasks.checking import Checker
from treepref.tasks.choices import CHOICE, PARSERS
from treepref.tasks.choices import SELF_EVALUATION as CHOICE_SELF_EVALUATION
from treepref.tasks.environments import REWARD
from treepref.tasks.rationales import arithmetic_steps, chain_steps
from treepref.tasks.rules import AnswerRule
from treepref.tasks.statements import MARK, statements
from treepref.tasks.thinking import after_thinking
from treepref.types import Problem, Question
from treepref.workers.functions import is_function_name, load_function

Prompt = Callable[[Question], str]
Steps = Callable[[Problem, list[int], Random], list[str]]
"""(problem with a rationale, granularity, rng) → the lines of its solution, the last one with the answer."""


def _arithmetic(problem: Problem, granularity: list[int], rng: Random) -> list[str]:
    """Merged operations are drawn anew each time: one problem shows several ways."""
    if "expression" not in problem.meta:  # it comes from a file
        return _written(problem, granularity, rng)
    return arithmetic_steps(problem.meta["expression"], granularity, rng)


def _chain(problem: Problem, granularity: list[int], rng: Random, slips: float = 0.0) -> list[str]:
    if "expression" not in problem.meta:
        return _written(problem, granularity, rng)
    return chain_steps(problem.meta["expression"], granularity, rng, slips)


def _written(problem: Problem, granularity: list[int], rng: Random) -> list[str]:
    return lines_and_blocks(problem.rationale or "")


def _written_with_answer(
    problem: Problem, granularity: list[int], rng: Random, rule: AnswerRule = rules.PLAIN
) -> list[str]:
    """A rationale, and a line with the answer in the form that `rule` reads where it does not state the answer."""
    lines = lines_and_blocks(problem.rationale or "")
    text = "\n".join(lines)
    found = rule.extract(text, "\n", problem) if statements(text) else "".join(lines[-1:])
    if found is not None and rule.canonical(found) == rule.canonical(problem.answer):
        return lines
    return [*lines, rf"\boxed{{{problem.answer}}}" if rule in (rules.MATH, rules.BOXED) else f"{MARK} {problem.answer}"]


SELF_EVALUATION = (
    "\nA teacher reads the solution up to here.\n"
    "(A) Every step is right and leads toward the answer.\n"
    "(B) There is a mistake in it, or it leads nowhere.\n"
    "The teacher's verdict is ("
)
"""The question by which a policy weighs its own steps (MCTS-DPO, arXiv 2405.00451, section 2.1, self-evaluation); the
wording is ours. It follows a step's delimiter and ends right before the letter: the next token is "A" or "B"."""


@dataclass(frozen=True, slots=True)
class Kind:
    prompt: str
    """Default prompt, with `{question}`."""
    rule: AnswerRule
    steps: Steps
    self_evaluation: str = SELF_EVALUATION
    """Two choices, (A) right and (B) wrong, about the solution so far."""


QUESTION_ANSWER = "Question: {question}\nAnswer:\n"

_KINDS = {
    "gsm8k": Kind(QUESTION_ANSWER, rules.NUMBER, _written),
    "math": Kind("Problem: {question}\nSolution:\n", rules.MATH, _written),
    "svamp": Kind(QUESTION_ANSWER, rules.NUMBER, _written),
    "jsonl": Kind(QUESTION_ANSWER, rules.PLAIN, _written_with_answer),
    "verifiers": Kind("{question}\n", rules.PLAIN, _written_with_answer),
    **dict.fromkeys(PARSERS, Kind(QUESTION_ANSWER, CHOICE, _written, CHOICE_SELF_EVALUATION)),
}
_GYM_KINDS = {
    "chain_sum": Kind("{question}\n", rules.CHAIN, _chain),
    "basic_arithmetic": Kind("{question}\n", rules.ARITHMETIC, _arithmetic),
    "countdown": Kind("{question}\n", rules.COUNTDOWN, _written),
    "gsm_symbolic": Kind(QUESTION_ANSWER, rules.NUMBER, _written),
}
_OTHER_GYM = Kind(QUESTION_ANSWER, rules.REASONING_GYM, _written)


_BARE = ("chain_sum", "basic_arithmetic", "countdown")
"""Tasks whose solutions end in the answer alone."""


@dataclass(frozen=True, slots=True)
class Task:
    """Made by `load_task`."""

    name: str
    kind: Kind
    delimiter: str
    granularity: list[int]
    check_seconds: float
    own_checker: str | None
    pass_score: float
    _prompt: Prompt

    def prompt(self, question: Question) -> str:
        """The text before the solution. Raises DataError where a user's function fails or returns no text."""
        return self._prompt(question)

    @property
    def self_evaluation(self) -> str:
        """Text put after the solution so far (after its delimiter): a question with the choices (A) right, (B) wrong.

        It ends right before the letter.
        """
        return self.kind.self_evaluation

    def solution_text(self, problem: Problem, rng: Random) -> str:
        """The rationale as SFT text: its steps joined by the delimiter, the answer in the last, no EOS.

        Raises DataError for a problem without a rationale.
        """
        if problem.rationale is None:
            raise DataError(f"{problem.id}: has no rationale; only problems of the labelled split have one")
        if self.own_checker is not None and self.kind.rule in (rules.PLAIN, *rules.BY_NAME.values()):
            lines = lines_and_blocks(problem.rationale)  # in the user's own format: leave it alone
        else:
            lines = self.kind.steps(problem, self.granularity, rng)
        return self.delimiter.join(lines)

    def own_solution(self, problem: Problem) -> str:
        """The written solution of a problem that has a rationale, else a line with its answer in the task's form."""
        if problem.rationale is not None:
            with suppress(DataError):
                return self.solution_text(problem, Random(0))
        if self.name == "math":
            return f"\\boxed{{{problem.answer}}}"
        if self.name in PARSERS:
            return f"The answer is ({problem.answer})."
        return problem.answer if self.name in _BARE else f"{MARK} {problem.answer}"

    def canonical(self, text: str, problem: Problem | None = None) -> str | None:
        """The final answer of a solution in the form that votes count; None where there is none.

        Without the problem at hand a choice that is stated by its text alone is not found, and an answer of `jsonl` is
        read as a number.
        """
        found = self.kind.rule.extract(after_thinking(text), self.delimiter, problem)
        return self.kind.rule.canonical(found) if found else None

    def checker(self) -> Checker:
        """A new checker; use it in a `with` block."""
        return Checker(
            self.kind.rule, delimiter=self.delimiter, seconds=self.check_seconds, own=self.own_checker,
            pass_score=self.pass_score,
        )  # fmt: skip


def load_task(cfg: TaskConfig) -> Task:
    """The task that a recipe describes. Raises RecipeError for an impossible granularity or prompt."""
    if not cfg.granularity or min(cfg.granularity) < 1:
        raise RecipeError(f"task.granularity: {cfg.granularity} must hold numbers of operations, 1 or more")
    if cfg.kind == "reasoning_gym":
        name, kind = cfg.name, _GYM_KINDS.get(cfg.name, _OTHER_GYM)
    else:
        name, kind = cfg.kind, _KINDS[cfg.kind]
    kind = _with_answers(kind, cfg)
    if cfg.slips:
        if kind.steps is not _chain:
            raise RecipeError(f"task.slips: only chain_sum's rationales can have slips, not those of {name}")
        kind = replace(kind, steps=partial(_chain, slips=cfg.slips))
    checker = REWARD if cfg.kind == "verifiers" and cfg.checker is None else cfg.checker
    prompt = _load_prompt(kind.prompt if cfg.prompt is None else cfg.prompt)
    return Task(name, kind, cfg.delimiter, list(cfg.granularity), cfg.check_seconds, checker, cfg.pass_score, prompt)


def _with_answers(kind: Kind, cfg: TaskConfig) -> Kind:
    """The kind with answers read as `task.answer` says. Raises RecipeError for kinds that have one way alone."""
    if cfg.answer == "auto":
        return kind
    if cfg.kind not in ("gsm8k", "math", "svamp", "jsonl"):
        raise RecipeError(
            f"task.answer: {cfg.answer} has no effect on {cfg.kind}, which reads answers in one way: leave it at auto"
        )
    rule = rules.BY_NAME[cfg.answer]
    return replace(kind, rule=rule, steps=partial(_written_with_answer, rule=rule))


def _load_prompt(setting: str) -> Prompt:
    if "{question}" in setting:
        return lambda question: setting.replace("{question}", question.text)  # not format: other braces are text
    if not is_function_name(setting.strip()):
        raise RecipeError("task.prompt: must be text that contains {question}, or module:function")
    function = load_function(setting.strip(), "task.prompt")

    def prompt(question: Question) -> str:
        try:
            text = function(question)
        except Exception as error:
            raise DataError(f"{question.id}: task.prompt failed: {type(error).__name__}: {error}") from error
        if not isinstance(text, str):
            raise DataError(f"{question.id}: task.prompt returned {type(text).__name__}, not text")
        return text

    return prompt
