"""`treepref check`: what a run of a recipe would see and read, on a few problems, before anything is spent.

Writes nothing. Knows recipes, tasks and one policy; knows no run and no search.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice

from rich.console import Console
from rich.text import Text as Line

from treepref.config import DpoStRecipe, Recipe, TreeRecipe
from treepref.engines.base import generate
from treepref.engines.torch_engine import TorchEngine
from treepref.loops.text import Text
from treepref.models.policy import Policy, load_policy
from treepref.report.grid import Cell, Grid, for_terminal
from treepref.report.reading import shortened
from treepref.tasks.checking import Checker
from treepref.tasks.loading import Splits, load_splits
from treepref.tasks.task import Task, load_task
from treepref.tasks.trial import PROBLEMS, try_own_checker
from treepref.types import Completion, Problem, Request

SOLUTIONS = 3
"""Problems that are solved."""
TOKENS = 96
"""Longest solution here."""
OWN_ANSWERS = 50
"""Problems whose own answer is put to the checker."""
SHOWN_ASIDE = 5


def check(recipe: Recipe, console: Console) -> None:
    """Print split sizes, rows set aside, what the checker says of own answers, a prompt, and a few solutions.

    Raises TreeprefError as a run would before its first stage.
    """
    task = load_task(recipe.task)
    splits = load_splits(recipe.task, recipe.seed, train_rationales=recipe.keeps_rationales)
    console.print(for_terminal(_split_grid(recipe, splits)))
    _print(console, _set_aside(splits))
    with task.checker() as checker:
        _print(console, _own_answers(task, checker, splits))
        policy = load_policy(recipe.model.path, dtype=recipe.model.dtype, device=recipe.model.device)
        shown = splits.examples if recipe.task.examples_path else splits.labelled
        text = Text(recipe.task, task, lambda: policy.tokenizer, shown=lambda: shown, system=splits.system)
        policy.end_of_turn = text.end_of_turn
        problems = splits.eval[:SOLUTIONS]
        _print(console, _prompt(recipe, policy, text, problems[0]))
        _print(console, _solved(recipe, policy, text, checker, problems))
        text.close()


def _print(console: Console, lines: Iterator[str]) -> None:
    for line in lines:
        console.print(Line(line), overflow="fold")


def _split_grid(recipe: Recipe, splits: Splits) -> Grid:
    asked = recipe.task.splits
    uses = (
        ("labelled", splits.labelled, asked.labelled, "solutions for the warm-up"),
        ("train", splits.train, asked.train, "searched"),
        ("eval", splits.eval, asked.eval, "held out"),
    )
    rows = []
    for name, found, wanted, use in uses:
        tone = "" if len(found) == wanted else "bad"
        rows.append([Cell(name), Cell(f"{len(found):,}", tone=tone), Cell(f"{wanted:,}"), Cell(use)])
    return Grid(["split", "problems", "asked for", ""], rows, f"{recipe.name}: problems", words=(0, 3))


def _set_aside(splits: Splits) -> Iterator[str]:
    if not splits.skipped:
        yield "No row was set aside."
        return
    yield f"Set aside or noted ({len(splits.skipped)}):"
    yield from (f"  {line}" for line in splits.skipped[:SHOWN_ASIDE])
    if len(splits.skipped) > SHOWN_ASIDE:
        yield f"  … and {len(splits.skipped) - SHOWN_ASIDE} more"


def _own_answers(task: Task, checker: Checker, splits: Splits) -> Iterator[str]:
    """What the checker says of the problems' own solutions, as the task writes them."""
    asked = [*splits.labelled[:OWN_ANSWERS], *splits.train][:OWN_ANSWERS]
    if task.own_checker is not None:
        every = (splits.labelled, splits.train, splits.eval)
        warning = try_own_checker(task, checker, [p for split in every for p in islice(split, PROBLEMS)])
        if warning:
            yield f"warning: {warning}"
    wrong: list[tuple[Problem, str]] = []
    for problem in asked:
        if problem.answer and not checker.check(text := task.own_solution(problem), problem).correct:
            wrong.append((problem, text))
    yield f"Own answers: {len(asked) - len(wrong)} of {len(asked)} count as right when stated as the task states them."
    for problem, text in wrong[:SOLUTIONS]:
        yield f"  not {problem.id}: {_brief(text)} (answer {_brief(problem.answer)})"


def _prompt(recipe: Recipe, policy: Policy, text: Text, problem: Problem) -> Iterator[str]:
    ids = text.encode(problem.question)
    ends = [repr(token) for token in policy.tokenizer.convert_ids_to_tokens(sorted(policy.eos_ids))]
    ends += [f"the text {stop!r}" for stop in recipe.task.stop]
    yield f"\nThe prompt of problem {problem.id} as the model sees it, {len(ids)} tokens:"
    shown = policy.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    yield from (f"  │ {line}" for line in str(shown).split("\n"))
    yield f"A step ends with {recipe.task.delimiter!r}; a solution ends with {', '.join(ends)}."
    longest = len(ids) + recipe.longest_solution
    if longest > policy.max_context:
        yield (
            f"warning: prompt and longest solution have {longest:,} tokens, the model takes {policy.max_context:,}: "
            "longer ones are cut there"
        )


def _solved(recipe: Recipe, policy: Policy, text: Text, checker: Checker, problems: Sequence[Problem]) -> Iterator[str]:
    """Greedy solutions with what was read, and one as the search samples."""
    most = min(TOKENS, recipe.eval.max_tokens)
    prompts = [text.encode(problem.question) for problem in problems]

    def request(number: int, temperature: float) -> Request:
        prompt = prompts[number]
        return Request(
            f"{number}/{temperature}", prompt, 1, (recipe.seed & 0xFFFF,), most, temperature, delimiter=None,
            ends=tuple(recipe.task.stop), tool=recipe.task.tool, prompt_tokens=len(prompt),
        )  # fmt: skip

    warm = " before the warm-up" if recipe.warmup.epochs else ""
    sampled_at = _temperature(recipe)
    engine, started = TorchEngine(policy, max_rows=SOLUTIONS + 1), time.perf_counter()
    asked = [request(number, 0.0) for number in range(len(problems))] + [request(0, sampled_at)]
    results = generate(engine, asked)
    engine.close()
    seconds = time.perf_counter() - started
    tokens = sum(len(c.tokens) for result in results for c in result.completions)
    yield f"\nSolutions{warm}, {tokens / seconds:.0f} tokens a second with {len(asked)} at once:"
    for result, problem, how in zip(
        results, [*problems, problems[0]], [*["greedy"] * len(problems), f"temperature {sampled_at:g}"], strict=True
    ):
        if result.error is not None:
            yield f"{problem.id}, {how}: {result.error}"
            continue
        (found,) = result.completions
        yield from _one(text, checker, problem, how, found)


def _one(text: Text, checker: Checker, problem: Problem, how: str, found: Completion) -> Iterator[str]:
    cut = found.finish != "eos"
    said = text.decode(found.tokens) if cut else text.finished(found.tokens)
    if cut:
        verdict = f"cut here after {len(found.tokens)} tokens, so not judged"
    else:
        judged = checker.check(said, problem)
        read = "nothing that can be read as an answer" if judged.answer is None else f"read {_brief(judged.answer)}"
        right = "right" if judged.correct else f"wrong, the answer is {_brief(problem.answer)}"
        verdict = f"{read}: {right}" if judged.error is None else f"the check failed: {judged.error.splitlines()[0]}"
    yield f"{problem.id}, {how}: {verdict}"
    yield from (f"  │ {line}" for line in said.split("\n"))


def _temperature(recipe: Recipe) -> float:
    """What the first search samples at."""
    if isinstance(recipe, TreeRecipe):
        first = recipe.search.first_temperature
        return recipe.search.temperature if first is None else first
    assert isinstance(recipe, DpoStRecipe)
    return recipe.self_training.temperature


def _brief(text: str) -> str:
    return repr(shortened(text, 120))
