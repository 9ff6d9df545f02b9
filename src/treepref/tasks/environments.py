"""Tasks written for the library `verifiers`: a module's data set and its reward functions, for one turn.

`task.name` names a module whose `load_environment(**task.params)` gives an environment with a data set (`prompt` or
`question`, `answer`, `info`) and a rubric. Nothing of that library is imported here: a module made to its interface
serves as well. Rewards run where users' checkers do, in a process of their own.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from treepref.errors import DataError, RecipeError
from treepref.tasks.files import BadRow, Item, Items
from treepref.types import Problem
from treepref.workers.functions import load_function

REWARD = "treepref.tasks.environments:reward"
"""The checker of such a task."""
_KEY = "environment"


def load_environment(name: str, params: Mapping[str, Any]) -> Any:
    """The environment of a module. Raises RecipeError where there is none, or it is of several turns."""
    make = load_function(f"{name}:load_environment", "task.name")
    try:
        environment = make(**params)
    except Exception as error:
        raise RecipeError(f"task.params: {name}.load_environment: {type(error).__name__}: {error}") from error
    if getattr(environment, "max_turns", 1) not in (1, None):
        raise RecipeError(f"task.name: {name} is an environment of several turns; only those of one turn can be used")
    if not _reward_functions(environment):
        raise RecipeError(f"task.name: the environment of {name} has no reward functions (rubric.funcs)")
    return environment


def has_held_out(environment: Any) -> bool:
    """Whether it has a data set of its own for evaluation."""
    return _has(environment, "eval_dataset", "eval_dataset_source") and _has(environment, "dataset", "dataset_source")


def _has(environment: Any, *names: str) -> bool:
    return any(getattr(environment, name, None) is not None for name in names)


def items_of(environment: Any, name: str, params: Mapping[str, Any], split: str) -> Items:
    """The problems of a split, `train` or `eval`. Raises DataError where there are none that can be used."""
    found = Items(f"{name}[{split}]")
    for number, row in enumerate(_rows(environment, split)):
        where = f"{name}[{split}]:{number + 1}"
        try:
            problem = _problem(f"{name}-{split}-{number:06d}", row, name, params)
        except BadRow as error:
            found.skipped.append(f"{where}: {error}")
        else:
            found.items.append(Item(problem, where))
    if not found.items:
        raise DataError(f"{found.source}: no row can be used{''.join(f'; {line}' for line in found.skipped[:3])}")
    return found


def system_message(environment: Any) -> str | None:
    found = getattr(environment, "system_prompt", None)
    return found if isinstance(found, str) and found else None


def reward(text: str, problem: Problem) -> float:
    """The weighted sum of the environment's rewards for a solution."""
    meta = problem.meta[_KEY]
    environment = _cached(meta["name"], json.dumps(meta["params"]))
    row = meta["row"]
    chat = not isinstance(row.get("prompt", []), str)
    completion: Any = [{"role": "assistant", "content": text}] if chat else text
    prompt = row.get("prompt") or ([{"role": "user", "content": problem.text}] if chat else problem.text)
    known = {
        **row, "prompt": prompt, "completion": completion, "answer": row.get("answer", problem.answer),
        "info": _info(row), "task": row.get("task", "default"), "parser": _parser(environment),
    }  # fmt: skip
    known["state"] = {**known, "responses": [], "turn": 1}
    return sum(weight * _call(function, known) for function, weight in _reward_functions(environment) if weight)


@lru_cache(maxsize=4)
def _cached(name: str, params: str) -> Any:
    return load_environment(name, json.loads(params))


def _rows(environment: Any, split: str) -> Iterator[Mapping[str, Any]]:
    only_eval = not _has(environment, "dataset", "dataset_source")
    name = "eval_dataset" if split == "eval" or only_eval else "dataset"
    getter = getattr(environment, f"get_{name}", None)
    data: Any = getter() if callable(getter) else getattr(environment, name, None)
    yield from data or ()


def _problem(id: str, row: Mapping[str, Any], name: str, params: Mapping[str, Any]) -> Problem:
    text = _question(row)
    try:
        plain = json.loads(json.dumps(dict(row)))
    except (TypeError, ValueError) as error:
        raise BadRow(f"it holds what JSON cannot ({error})") from None
    answer = row.get("answer")
    return Problem(
        id, text, "" if answer is None else str(answer), None,
        {_KEY: {"name": name, "params": dict(params), "row": plain}},
    )  # fmt: skip


def _question(row: Mapping[str, Any]) -> str:
    """The row's question: the text of that name, or the last user's message of its prompt."""
    prompt = row.get("question") or row.get("prompt")
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        said = [m.get("content") for m in prompt if isinstance(m, Mapping) and m.get("role") == "user"]
        prompt = said[-1] if said else None
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):  # in parts
        prompt = "".join(str(part.get("text", "")) for part in prompt if isinstance(part, Mapping))
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRow(f"it has no question (its columns are {', '.join(map(str, row))})")
    return prompt.strip()


def _info(row: Mapping[str, Any]) -> Any:
    """Some data sets keep it as text."""
    info = row.get("info") or {}
    if isinstance(info, str):
        try:
            return json.loads(info)
        except ValueError:
            return info
    return info


def _parser(environment: Any) -> Any:
    rubric = getattr(environment, "rubric", None)
    return getattr(environment, "parser", None) or getattr(rubric, "parser", None)


def _reward_functions(environment: Any) -> list[tuple[Any, float]]:
    """(function, weight) of the rubric, or of all rubrics of a group."""
    rubric = getattr(environment, "rubric", None)
    found: list[tuple[Any, float]] = []
    for one in getattr(rubric, "rubrics", None) or [rubric]:
        functions = getattr(one, "funcs", None) or getattr(one, "reward_funcs", None) or []
        weights = getattr(one, "weights", None) or getattr(one, "reward_weights", None) or [1.0] * len(functions)
        found += zip(functions, weights, strict=True)
    return found


def _call(function: Any, known: Mapping[str, Any]) -> float:
    """A reward function called with those of its arguments that it names."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        arguments = dict(known)
    else:
        arguments = {p.name: known[p.name] for p in parameters if p.name in known}
    result = function(**arguments)
    if inspect.isawaitable(result):
        result = asyncio.run(_awaited(result))
    return float(result)


async def _awaited(result: Any) -> Any:
    return await result
