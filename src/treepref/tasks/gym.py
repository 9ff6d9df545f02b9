"""Problems drawn from reasoning-gym, by task name, parameters and seed.

Knows the library's entries and which of them can be trusted. Knows no split and no prompt. The library is imported
when the first problem is drawn, not before: it takes seconds.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from treepref.arithmetic.expressions import ExpressionError, evaluate, parse_expression
from treepref.errors import RecipeError
from treepref.tasks.numbers import parse_number
from treepref.tasks.rationales import arithmetic_steps, chain_steps, countdown_steps
from treepref.types import Problem

ARITHMETIC_TASKS = ("chain_sum", "basic_arithmetic")
RATIONALE_TASKS = (*ARITHMETIC_TASKS, "countdown", "gsm_symbolic")
"""Tasks that can fill a labelled split."""

_CHUNK = 4096
_OWN_PARAMS = ("seed", "size")


class Unusable(Exception):
    """An entry that cannot become a problem; says why."""


def draw(
    name: str, params: Mapping[str, Any], seed: int, first: int, granularity: list[int]
) -> Iterator[Problem | Unusable]:
    """Problems of the task without end, with rationales where the task has them; Unusable for an entry set aside.

    The library seeds entry i with seed + i. Ids count from `first`, which is added to the seed as well, so that two
    ranges of ids are two ranges of entries. Raises RecipeError for an unknown task or parameter.
    """
    size = _CHUNK
    dataset = create(name, params, seed + first, size)
    index = 0
    while True:
        if index == size:
            size *= 2
            dataset = create(name, params, seed + first, size)
        try:
            entry = dataset[index]
        except (ValueError, ArithmeticError, IndexError) as error:
            yield Unusable(f"reasoning-gym could not make it ({error})")
        else:
            try:
                yield _problem(
                    name, params, f"{name}-{first + index:06d}", entry, granularity, Random(seed + first + index)
                )
            except Unusable as error:
                yield error
        index += 1


def create(name: str, params: Mapping[str, Any], seed: int, size: int) -> Any:
    """reasoning-gym's dataset. Raises RecipeError that names the task or the parameter at fault."""
    factory = importlib.import_module("reasoning_gym.factory")
    importlib.import_module("reasoning_gym")
    if name not in factory.DATASETS:
        close = difflib.get_close_matches(name, factory.DATASETS, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise RecipeError(f"task.name: reasoning-gym has no task {name!r}{hint}")
    dataset_class, config_class = factory.DATASETS[name]
    known = [key for key in inspect.signature(config_class).parameters if key not in _OWN_PARAMS]
    for key in params:
        if key in _OWN_PARAMS:
            raise RecipeError(f"task.params.{key}: set by treepref itself (the run's seed, task.splits); leave it out")
        if key not in known:
            raise RecipeError(f"task.params.{key}: {name} has no such parameter (it has {', '.join(sorted(known))})")
    try:
        config = config_class(**_as_objects(name, params), seed=seed, size=size)
        if hasattr(config, "validate"):  # two tasks' settings have none
            config.validate()
        return countdown_class()(config=config) if name == "countdown" else dataset_class(config=config)
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise RecipeError(f"task.params: {name} refuses them: {error or type(error).__name__}") from error


def _as_objects(name: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parts of a composite task, which a recipe gives as mappings, as the library wants them."""
    if name != "composite":
        return params
    part = importlib.import_module("reasoning_gym.composite").DatasetSpec
    parts = params.get("datasets", [])
    return {**params, "datasets": [part(**{"weight": 1.0, "config": {}, **given}) for given in parts]}


def _problem(
    name: str, params: Mapping[str, Any], id: str, entry: Mapping[str, Any], granularity: list[int], rng: Random
) -> Problem:
    text, answer, metadata = entry["question"].strip(), entry["answer"], entry["metadata"]
    rationale: str | None = None
    meta: dict[str, Any]
    try:
        if name in ARITHMETIC_TASKS:
            meta = {"expression": metadata["expression"]}
            if evaluate(parse_expression(metadata["expression"])) != parse_number(answer):
                # It divides with rounding down, and without parentheses it computes from left to right.
                raise Unusable("the library's answer is not the expression's exact value")
            steps = chain_steps if name == "chain_sum" else arithmetic_steps
            rationale = "\n".join(steps(metadata["expression"], granularity, rng))
        elif name == "countdown":
            meta = {"numbers": list(metadata["numbers"]), "target": metadata["target"]}
            rationale = "\n".join(countdown_steps(answer, metadata["numbers"]))
            answer = rationale.rpartition("\n")[2]
        elif name == "gsm_symbolic":
            meta = {}
            rationale = _symbolic_rationale(metadata["answer_cot"], answer)
        else:
            # What the task's own scorer needs. It may hold the solution: searches see it, models never do.
            meta = {"task": name, "params": dict(params), "metadata": encode_plain(metadata)}
    except ExpressionError as error:
        raise Unusable(f"its expression cannot be used ({error})") from error
    except TypeError as error:
        raise Unusable(f"its metadata cannot be stored ({error})") from error
    return Problem(id, text, "" if answer is None else str(answer), rationale, meta)


def _symbolic_rationale(text: str, answer: str) -> str:
    """The solution with its last line written as the answer is ('#### 15.0' → '#### 15')."""
    steps, mark, last = text.rpartition("####")
    if not mark or parse_number(last) is None or parse_number(last) != parse_number(answer):
        raise Unusable("its rationale does not end in its answer")
    return f"{steps.strip()}\n#### {answer}"


def encode_plain(value: Any) -> Any:
    """Plain data as JSON can hold it, with tuples and keys that are no text marked. Raises TypeError for the rest."""
    if isinstance(value, tuple):
        return {"__tuple__": [encode_plain(part) for part in value]}
    if isinstance(value, list):
        return [encode_plain(part) for part in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: encode_plain(part) for key, part in value.items()}
        return {"__dict__": [[encode_plain(key), encode_plain(part)] for key, part in value.items()]}
    return json.loads(json.dumps(value))


def decode_plain(value: Any) -> Any:
    """Undo `encode_plain`."""
    if isinstance(value, list):
        return [decode_plain(part) for part in value]
    if isinstance(value, dict):
        if "__tuple__" in value:
            return tuple(decode_plain(part) for part in value["__tuple__"])
        if "__dict__" in value:
            return {decode_plain(key): decode_plain(part) for key, part in value["__dict__"]}
        return {key: decode_plain(part) for key, part in value.items()}
    return value


def countdown_class() -> Any:
    """The library's countdown with the same entries, drawn with integers.

    The library substitutes into a symbolic expression at every attempt, some 30 ms an entry; here only the expression
    that is kept becomes symbolic. The random numbers are drawn in the library's order, so entries are its own.
    """
    library = importlib.import_module("reasoning_gym.games.countdown")
    sympy = importlib.import_module("sympy")

    class FastCountdown(library.CountdownDataset):
        def _generate_expression(self, rng: Random) -> tuple[str, list[int], int]:
            count = rng.randint(self.config.min_numbers, self.config.max_numbers)
            for _ in range(100):
                numbers = [rng.randint(self.config.min_value, self.config.max_value) for _ in range(count)]
                operators, value = [], numbers[0]
                for place in range(1, count):
                    operator = rng.choice(self.config.operators)
                    if operator == "/":
                        divisors = numbers[place:]
                        rng.shuffle(divisors)
                        divisor = next((number for number in divisors if value % number == 0), None)
                        if divisor is None:
                            operator = "-"
                        else:
                            numbers[place] = divisor
                    value = _apply(operator, value, numbers[place])
                    operators.append(operator)
                if self.config.min_target <= value <= self.config.max_target:
                    return _write(operators, numbers), numbers, value
            raise ValueError("no expression within the bounds of the target in 100 attempts")

    def _apply(operator: str, left: Any, right: Any) -> Any:
        if operator == "/":
            return left // right if isinstance(left, int) else left / right
        return left + right if operator == "+" else left - right if operator == "-" else left * right

    def _write(operators: list[str], numbers: list[int]) -> str:
        symbols = sympy.symbols(f"x_0:{len(numbers)}")
        expression = symbols[0]
        for operator, symbol in zip(operators, symbols[1:], strict=True):
            expression = _apply(operator, expression, symbol)
        text = str(expression)
        for place in reversed(range(len(numbers))):  # x_10 before x_1
            text = text.replace(str(symbols[place]), str(numbers[place]))
        return text

    return FastCountdown
