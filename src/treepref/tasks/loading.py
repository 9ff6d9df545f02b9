"""The three splits of a run: labelled, train and eval, disjoint by what they ask.

Knows recipes' task section, seeds and splits; rows come from files.py, drawn problems from gym.py. What is set aside
is named, line by line, in `Splits.skipped`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

from treepref.config import TaskConfig
from treepref.errors import DataError, RecipeError
from treepref.tasks import gym
from treepref.tasks.choices import CHOICE_COLUMNS, PARSERS
from treepref.tasks.environments import has_held_out, items_of, load_environment, system_message
from treepref.tasks.files import (
    COLUMNS,
    HUB_IDS,
    HUB_SUBSETS,
    Item,
    Items,
    Parse,
    parse_gsm8k,
    parse_math,
    parse_plain,
    parse_svamp,
    read_items,
)
from treepref.tasks.prompts import bare_text
from treepref.tasks.sources import has_splits
from treepref.tasks.task import load_task
from treepref.types import Problem

_FRUITLESS = 2000
"""Draws in a row without a new problem after which a task is held to be exhausted."""
_FIRST = {"eval": 0, "labelled": 10_000_000, "train": 20_000_000}
"""First index of each split, far apart, so that one split's size never changes another's problems."""
_PARSERS: dict[str, Parse] = {
    "gsm8k": parse_gsm8k, "math": parse_math, "svamp": parse_svamp, "jsonl": parse_plain, **PARSERS
}  # fmt: skip
_OTHER_PARAMS = {"gsm8k": ("keep_annotations", "subset"), "jsonl": ()}
"""Parameters of the kinds that are read from files, where they are not ("subset",)."""

GoldCheck = Callable[[Problem], str | None]
"""Why a problem's own answer does not count as right; None where it does."""


@dataclass(slots=True)
class Splits:
    """Only labelled problems have rationales (and training problems, where `load_splits` was asked for them)."""

    labelled: list[Problem] = field(default_factory=list)
    train: list[Problem] = field(default_factory=list)
    eval: list[Problem] = field(default_factory=list)
    examples: list[Problem] = field(default_factory=list)
    """Shown solved before every prompt; those of `task.examples_path` alone."""
    system: str | None = None
    """The system message of the task itself."""
    skipped: list[str] = field(default_factory=list)
    """One line a row set aside (file, line, why), and a note where a split is smaller than asked for."""


def load_splits(cfg: TaskConfig, seed: int, *, exclude: Iterable[str] = (), train_rationales: bool = False) -> Splits:
    """The problems of a run. The same recipe and seed give the same splits, in the same order.

    `exclude`: question texts that no split may hold (what a base model was trained on, say). `train_rationales`: leave
    training problems their rationales, for a search that is to see them (search.inject_reference). Problems whose own
    answer does not check as right against itself are set aside. Raises DataError for data that cannot serve (nothing
    usable, overlapping files, a task with too few different problems) and RecipeError for impossible settings.
    """
    task = load_task(cfg)
    examples = _examples(cfg)
    exclude = [*exclude, *(problem.text for problem in examples)]
    with task.checker() as checker:
        if cfg.kind == "reasoning_gym":
            splits = _draw_splits(cfg, seed, exclude, checker.accepts_gold)
        else:
            splits = _file_splits(cfg, seed, exclude, checker.accepts_gold)
    splits.examples = examples
    splits.eval = _without_rationales(splits.eval)
    if not train_rationales:
        splits.train = _without_rationales(splits.train)
    return splits


def split_sizes(cfg: TaskConfig, seed: int) -> dict[str, int]:
    """How many problems each split holds at most: as many as asked for, or as the files have. No answer is checked.

    Raises DataError and RecipeError as `load_splits` does.
    """
    if cfg.kind == "reasoning_gym":
        return cfg.splits.model_dump()
    found = _file_splits(cfg, seed, [p.text for p in _examples(cfg)], lambda problem: None)
    return {name: len(getattr(found, name)) for name in cfg.splits.model_dump()}


def question_key(text: str, task: str | None = None) -> str:
    """What makes two questions the same: the text, wherever case and blanks differ.

    For reasoning-gym's arithmetic and countdown, the expression or the numbers and the target, in whatever words.
    """
    if task in gym.ARITHMETIC_TASKS:
        return "".join((bare_text(text) or text).split())
    if task == "countdown":
        numbers, _, target = (bare_text(text) or text).partition(" = ")
        return f"{' '.join(sorted(numbers.split()))} = {target}"
    return " ".join(unicodedata.normalize("NFKC", text).replace("−", "-").casefold().split())


# --- drawn problems


def _draw_splits(cfg: TaskConfig, seed: int, exclude: Iterable[str], gold_check: GoldCheck) -> Splits:
    if cfg.splits.labelled and cfg.name not in gym.RATIONALE_TASKS:
        raise RecipeError(
            f"task.splits.labelled: reasoning-gym's {cfg.name} carries no rationales (those that do: "
            f"{', '.join(gym.RATIONALE_TASKS)}); set it to 0"
        )
    splits = Splits()
    seen = {question_key(text, cfg.name) for text in exclude}
    # Evaluation first: the later splits give way, so that what is evaluated does not depend on their sizes.
    splits.eval = _draw(cfg, seed, "eval", cfg.splits.eval, seen, gold_check, splits.skipped)
    labelled = _draw(cfg, seed, "labelled", cfg.splits.labelled, seen, gold_check, splits.skipped)
    splits.train = _draw(cfg, seed, "train", cfg.splits.train, seen, gold_check, splits.skipped)
    splits.labelled = labelled
    return splits


def _draw(
    cfg: TaskConfig, seed: int, split: str, wanted: int, seen: set[str], gold_check: GoldCheck, skipped: list[str]
) -> list[Problem]:
    """The first `wanted` new and usable problems of the split's index range. Adds their keys to `seen`."""
    problems: list[Problem] = []
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    fruitless = 0
    base = int.from_bytes(hashlib.sha256(f"treepref problems {seed}".encode()).digest()[:4], "big") // 2
    if not wanted:
        return problems
    for drawn in gym.draw(cfg.name, cfg.params, base, _FIRST[split], cfg.granularity):
        key = "" if isinstance(drawn, gym.Unusable) else question_key(drawn.text, cfg.name)
        if isinstance(drawn, gym.Unusable):
            reason: str | None = str(drawn)
        elif key in seen:
            reason = "the question is there already"
        elif drawn.answer and (failure := gold_check(drawn)):  # some tasks have no answer of their own, only a scorer
            reason = "its own answer does not check as right against itself"
            examples.setdefault(reason, f", e.g. {drawn.id}: {failure}")
        else:
            reason = None
        if reason is None:
            assert isinstance(drawn, Problem)
            seen.add(key)
            problems.append(drawn)
            fruitless = 0
        else:
            reasons[reason] += 1
            fruitless += 1
        if len(problems) == wanted:
            break
        if fruitless == _FRUITLESS:
            common = "; ".join(f"{reason} ({count} times)" for reason, count in reasons.most_common(3))
            raise DataError(
                f"reasoning_gym {cfg.name}: found {len(problems)} of the {wanted} problems for {split}, then "
                f"nothing new in {_FRUITLESS} draws: {common}. Ask for fewer (task.splits) or widen task.params"
            )
    skipped += [
        f"reasoning_gym {cfg.name}, {split}: {why} ({count} drawn anew){examples.get(why, '')}"
        for why, count in reasons.items()
    ]
    return problems


def _without_rationales(problems: list[Problem]) -> list[Problem]:
    return [replace(problem, rationale=None) for problem in problems]


# --- problems from files and the hub


def _file_splits(cfg: TaskConfig, seed: int, exclude: Iterable[str], gold_check: GoldCheck) -> Splits:
    excluded = {question_key(text) for text in exclude}
    source, held_out, system = _of_environment(cfg) if cfg.kind == "verifiers" else (*_of_files(cfg), None)
    source = _without_repeats(source, excluded)
    notes = list(source.skipped)
    asked = cfg.splits
    pool = _ordered(source.items, seed, "train")
    if held_out is None:
        carved = _ordered(source.items, seed, "eval")
        total = asked.eval + asked.labelled + asked.train
        # Too few rows for all: evaluation gets its share, so that something is left to learn from.
        size = asked.eval if total <= len(carved) else max(1, len(carved) * asked.eval // total)
        evaluation = _take(carved, asked.eval, "eval", source.source, gold_check, notes, at_most=size)
        pool = _others(pool, evaluation)
    else:
        held_out = _without_repeats(held_out, excluded)
        notes += held_out.skipped
        _refuse_overlap(source, held_out)
        ordered = _ordered(held_out.items, seed, "eval")
        evaluation = _take(ordered, asked.eval, "eval", held_out.source, gold_check, notes)

    with_rationale = [item for item in pool if item.problem.rationale]
    if asked.labelled and not with_rationale:
        raise DataError(f"{source.source}: no row has a rationale, but task.splits.labelled is {asked.labelled}")
    labelled = _take(with_rationale, asked.labelled, "labelled", source.source, gold_check, notes)
    train = _take(_others(pool, labelled), asked.train, "train", source.source, gold_check, notes)
    for name, problems in (("train", train), ("eval", evaluation)):
        if not problems:
            raise DataError(f"{source.source}: no usable problem is left for {name}; ask for fewer in task.splits")
    notes = list(dict.fromkeys(notes))  # a row that was tried for two splits is named once
    return Splits(labelled, train, evaluation, system=system, skipped=notes)


def _of_files(cfg: TaskConfig) -> tuple[Items, Items | None]:
    """What training and evaluation problems come from; no second one: evaluation is divided off the first."""
    path = cfg.path or HUB_IDS.get(cfg.kind)
    if not path:
        raise RecipeError("task.path: the kind 'jsonl' needs a file or a folder")
    subset, parse = _reader(cfg, path)

    def read(path: str | list[str], split: str) -> Items:
        prefix = Path(path).stem if cfg.kind == "jsonl" and isinstance(path, str) else cfg.kind
        prefix = f"{re.sub(r'[*?[]', '', prefix) or cfg.kind}-{split}"
        return read_items(path, split, parse, prefix, subset, cfg.columns)

    source = read(path, cfg.train_split)
    if cfg.eval_path is None and (not has_splits(path) or cfg.eval_split == cfg.train_split):
        return source, None
    return source, read(cfg.eval_path or path, cfg.eval_split)


def _of_environment(cfg: TaskConfig) -> tuple[Items, Items | None, str | None]:
    """The same of an environment, and its system message."""
    environment = load_environment(cfg.name, cfg.params)
    source = items_of(environment, cfg.name, cfg.params, "train")
    held_out = items_of(environment, cfg.name, cfg.params, "eval") if has_held_out(environment) else None
    return source, held_out, system_message(environment)


def _examples(cfg: TaskConfig) -> list[Problem]:
    """The first rows of `task.examples_path`."""
    if cfg.examples_path is None:
        return []
    drawn = cfg.kind in ("reasoning_gym", "verifiers")
    parse = parse_plain if drawn else _reader(cfg, cfg.path or HUB_IDS.get(cfg.kind, ""))[1]
    named = {} if drawn else cfg.columns
    try:
        found = read_items(cfg.examples_path, cfg.train_split, parse, "example", None, named)
    except DataError:
        if not named:
            raise
        found = read_items(cfg.examples_path, cfg.train_split, parse, "example")  # its columns have our names
    if len(found.items) < cfg.examples:
        raise DataError(
            f"task.examples: {cfg.examples} examples are asked for, and {found.source} has {len(found.items)} usable "
            f"rows{''.join(f'; {line}' for line in found.skipped[:3])}"
        )
    return [item.problem for item in found.items[: cfg.examples]]


def _reader(cfg: TaskConfig, path: str | list[str]) -> tuple[str | None, Parse]:
    """The hub's subset and the function that reads a row. Raises RecipeError for an unknown parameter."""
    allowed = _OTHER_PARAMS.get(cfg.kind, ("subset",))
    for key in cfg.params:
        if key not in allowed:
            raise RecipeError(
                f"task.params.{key}: {cfg.kind} has no such parameter (it has {', '.join(allowed) or 'none'})"
            )
    known = COLUMNS.get(cfg.kind, CHOICE_COLUMNS)
    for key in cfg.columns:
        if key not in known:
            raise RecipeError(f"task.columns.{key}: {cfg.kind} reads no such column (it reads {', '.join(known)})")
    # A model that is to use the calculator must see how: its annotations are what calls it.
    keep = cfg.params.get("keep_annotations", cfg.tool == "calculator")
    subset = cfg.params.get("subset", HUB_SUBSETS.get(cfg.kind) if path == HUB_IDS.get(cfg.kind) else None)
    if not isinstance(keep, bool):
        raise RecipeError(f"task.params.keep_annotations: {keep!r} is not true or false")
    if subset is not None and not isinstance(subset, str):
        raise RecipeError(f"task.params.subset: {subset!r} is not text")
    if cfg.kind == "gsm8k":
        return subset, partial(parse_gsm8k, keep_annotations=keep)
    if cfg.kind == "jsonl":
        return subset, partial(parse_plain, needs_answer=cfg.checker is None)
    return subset, _PARSERS[cfg.kind]


def _ordered(items: list[Item], seed: int, purpose: str) -> list[Item]:
    """Sorted by id, then shuffled: the order of the rows in their file does not matter."""
    ordered = sorted(items, key=lambda item: item.problem.id)
    Random(f"treepref {seed} {purpose}").shuffle(ordered)
    return ordered


def _others(items: list[Item], taken: list[Problem]) -> list[Item]:
    ids = {problem.id for problem in taken}
    return [item for item in items if item.problem.id not in ids]


def _without_repeats(found: Items, excluded: set[str]) -> Items:
    """One item a question, the first one; questions in `excluded` go too. Both are noted in `skipped`."""
    places: dict[str, Item] = {}
    kept = []
    for item in found.items:
        key = question_key(item.problem.text)
        if key in excluded:
            found.skipped.append(f"{item.where}: its question is excluded")
        elif key in places:
            first = places[key]
            ours, theirs = item.problem.answer, first.problem.answer
            other = "" if ours == theirs else f", with another answer ({_brief(ours)}, and there {_brief(theirs)})"
            found.skipped.append(f"{item.where}: same question as {first.where}{other}")
        else:
            places[key] = item
            kept.append(item)
    return Items(found.source, kept, found.skipped)


def _brief(answer: str) -> str:
    return repr(answer if len(answer) <= 40 else f"{answer[:40]}…")


def _refuse_overlap(train: Items, held_out: Items) -> None:
    """Evaluation data that was given explicitly is not thinned out in silence. Raises DataError."""
    keys = {question_key(item.problem.text): item for item in train.items}
    ids = {item.problem.id: item for item in train.items}
    shared = [item for item in held_out.items if question_key(item.problem.text) in keys]
    if shared:
        pairs = [f"{item.problem.id} ({item.where})" for item in shared[:5]]
        raise DataError(
            f"{held_out.source}: {len(shared)} of its questions are in {train.source} too, so evaluation would be on "
            f"training data: {', '.join(pairs)}{' …' if len(shared) > 5 else ''}. Remove them from one of the two"
        )
    for item in held_out.items:
        if item.problem.id in ids:
            raise DataError(f"{item.where}: id {item.problem.id!r} is that of {ids[item.problem.id].where} too")


def _take(
    items: list[Item],
    wanted: int,
    split: str,
    source: str,
    gold_check: GoldCheck,
    notes: list[str],
    at_most: int | None = None,
) -> list[Problem]:
    """The first `wanted` (`at_most`: fewer) whose own answer checks as right. Adds to `notes` what was left out."""
    taken: list[Problem] = []
    limit = wanted if at_most is None else at_most
    for item in items:
        if len(taken) >= limit:
            break
        reason = gold_check(item.problem)
        if reason is None:
            taken.append(item.problem)
        else:
            notes.append(f"{item.where}: {reason}")
    if len(taken) < wanted:
        notes.append(f"{source}: {split} has {len(taken)} problems where {wanted} were asked for; there are no more")
    return taken
