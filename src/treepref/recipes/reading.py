"""Recipes as text: reading them with line numbers, overrides, `extends`, writing, and what may change on resume.

Knows the schema in `config.py` only by walking it, and YAML by `yaml_text.py`. Knows no model, no data set and no run
directory.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from treepref.config import DEFAULT_METHOD, RECIPES, Recipe
from treepref.errors import RecipeError
from treepref.keys import (
    flatten,
    foreign_keys,
    is_idle,
    keys_of,
    known_keys,
    methods_with,
    plain,
    switched_off,
    without,
)
from treepref.recipes.yaml_text import (
    MAX_BYTES,
    MAX_DEPTH,
    Document,
    Fault,
    KeyPath,
    build,
    compose,
    dotted,
    dump_yaml,
    shorten,
    unusable_text,
)

if TYPE_CHECKING:
    from importlib.abc import Traversable

RESUMABLE = frozenset(
    {
        "engine.max_rows", "engine.cache_mb", "engine.threads", "search.trees_in_flight", "model.device",
        "train.attention", "train.recompute",
    }
)  # fmt: skip
"""Keys that may change between two lives of a run, besides all of `budget` and `rounds` upward: they set how fast the
work is done and how far it goes, never what is computed."""

FORKABLE = (
    "name", "rounds", "pairs.", "train.", "budget.", "eval.samples", "eval.sbs", "eval.mcts",
    "self_training.label_samples", "self_training.similarity", "self_training.pairs_per_problem",
    "self_training.cap_percentile", "self_training.patience",
)  # fmt: skip
"""Keys (or their sections) in which a fork of a run may differ from it: none touches its first search."""

REPLACED_WHOLE = ("task", "params")
"""The mapping that `extends` and overrides replace, not merge: parameters of one task mean nothing to another."""

AS_RUN = "# The recipe as run, every key written out.\n"
"""How the text of a run's own recipe begins."""

_TEMPLATES_OWN = frozenset(
    {"messages", "conversation", "add_generation_prompt", "continue_final_message", "tokenize", "chat_template"}
    | {"tools", "documents", "strftime_now", "return_dict", "return_tensors", "padding", "truncation", "max_length"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs"}
)
"""What a chat template is given anyway, and what says how it is applied."""

MAX_CHAIN = 16
"""Most recipes that may extend one another in a row."""
MAX_NAME = 200
"""Longest name in bytes; file systems allow 255, and a run's neighbours add to its name."""
_MAX_LISTED = 50
"""So many problems are told at once."""


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A checked recipe, the text it was read from and where that text stood."""

    recipe: Recipe
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Change:
    """One key whose value differs between two recipes."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_show(self.old)} → {_show(self.new)}"


# ---- built-in recipes ------------------------------------------------------------------------------------------------


def builtin_recipes() -> dict[str, str]:
    """Names of the recipes that ship with treepref, each with the first sentence of its file's first remark."""
    found = {}
    for entry in _builtin_files():
        remark = re.match(r"(?:#.+\n)*", entry.read_text("utf-8"))
        text = " ".join(line.lstrip("# ") for line in remark[0].splitlines()) if remark else ""
        found[entry.name.removesuffix(".yaml")] = re.split(r"\.(?: |$)", text)[0]
    return found


def _builtin_files() -> list[Traversable]:
    entries = resources.files("treepref").joinpath("recipes").iterdir()
    return sorted((entry for entry in entries if entry.name.endswith(".yaml")), key=lambda entry: entry.name)


@dataclass(frozen=True, slots=True)
class _Source:
    """A recipe's text and where it stood."""

    text: str
    name: str
    """For messages."""
    file: Path | None
    """None: it ships with treepref."""

    @property
    def identity(self) -> str:
        """One name for one file, by whatever path it was reached."""
        return self.name if self.file is None else os.path.realpath(self.file)

    @property
    def folder(self) -> Path | None:
        """What names in `extends` are relative to."""
        return None if self.file is None else self.file.parent


def _read_source(name_or_path: str, folder: Path | None = None) -> _Source:
    """A built-in recipe by name, or a YAML file (relative to `folder` where given). Raises RecipeError."""
    looks_like_file = name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path or "\\" in name_or_path
    if not looks_like_file and f"{name_or_path}.yaml" in (entry.name for entry in _builtin_files()):
        text = resources.files("treepref").joinpath("recipes", f"{name_or_path}.yaml").read_text("utf-8")
        return _Source(text, f"treepref/recipes/{name_or_path}.yaml", None)
    path = Path(name_or_path) if folder is None else folder / name_or_path
    shown = shorten(str(path), 300)
    try:
        if path.is_dir():
            own = shorten(str(path / "recipe.yaml"), 300)
            raise RecipeError(f"{shown}: is a folder; name a recipe file (a run's own recipe is {own})")
        if not path.is_file():
            raise RecipeError(_no_such_recipe(name_or_path))
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{shown}: is longer than {MAX_BYTES:,} bytes: that is no recipe")
        return _Source(path.read_text("utf-8-sig"), str(path), path)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{shown}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise RecipeError(f"{shown}: cannot be read: {error.strerror}") from None


def _no_such_recipe(name: str) -> str:
    names = list(builtin_recipes())
    close = difflib.get_close_matches(name[:100], names, 1)
    hint = f"did you mean {close[0]}?" if close else f"built-in recipes: {', '.join(names)}"
    return f"no recipe {shorten(name)!r}: neither a built-in recipe nor a file; {hint}"


def _parse_document(text: str, source: str) -> Document:
    """The mapping of a recipe's text. Raises RecipeError where there is none."""
    node = compose(text, source)
    if node is None:
        raise RecipeError(f"{source}: is empty; start from a built-in recipe, for example `extends: svpo`")
    document = Document()
    data = build(node, (), lambda n: f"{source}:{n.start_mark.line + 1}", document)
    if isinstance(data, dict):
        document.data = data
        return document
    if document.problems:  # such as a tag on the whole: there is no mapping to look into
        raise RecipeError("\n".join(map(str, document.problems)))
    raise RecipeError(f"{source}:{node.start_mark.line + 1}: a recipe is a mapping of keys (`name: …`) at its top")


def _lay_over(base: Document, over: Document, at: KeyPath = ()) -> None:
    """Sections merge, everything else is replaced, and what was known of its place and faults with it.

    `at`: the one key that `over` sets, where it does not stand for a text of its own.
    """
    _merge(base, base.data, over.data, at)
    base.origins.update(over.origins)
    base.problems.extend(over.problems)
    base.as_run |= over.as_run


def _merge(base: Document, under: dict[str, Any], over: Mapping[str, Any], at: KeyPath, path: KeyPath = ()) -> None:
    for key, value in over.items():
        here = (*path, key)
        whole = here == REPLACED_WHOLE and (at == here or at[: len(here)] != here)
        if isinstance(value, dict) and isinstance(under.get(key), dict) and not whole:
            _merge(base, under[key], value, at, here)
        else:
            base.forget(here)
            under[key] = value


def _read_chain(
    name_or_path: str, folder: Path | None = None, seen: tuple[_Source, ...] = ()
) -> tuple[Document, str, str]:
    """(merged document, text, source) of a recipe and of whatever it extends."""
    source = _read_source(name_or_path, folder)
    if any(source.identity == earlier.identity for earlier in seen):
        chain = " → ".join(shorten(link.name) for link in (*seen, source))
        raise RecipeError(f"{source.name}: extends itself ({chain})")
    if len(seen) >= MAX_CHAIN:
        raise RecipeError(f"{source.name}: is the end of more than {MAX_CHAIN} recipes that extend one another")
    document = _parse_document(source.text, source.name)
    if source.text.startswith(AS_RUN):
        _forgive_old_keys(document, source)
    if "name" not in document.data:
        _name_by_file(document, source)
    if "extends" not in document.data:
        return document, source.text, source.name
    parent = document.data.pop("extends")
    place = document.where(("extends",), source.name)
    for problem in document.problems:
        if problem.path == ("extends",):
            raise RecipeError(str(problem))
    if not isinstance(parent, str):
        raise RecipeError(f"{place}: extends: must name a recipe (got {_show(parent)})")
    try:
        base, _, _ = _read_chain(parent, source.folder, (*seen, source))
    except RecipeError as error:
        raise RecipeError(f"{place}: extends: {error}") from None
    _lay_over(base, document)
    return base, source.text, source.name


def _forgive_old_keys(document: Document, source: _Source) -> None:
    """Leave out what an older version wrote of other methods' keys where nobody had chosen their values."""
    document.as_run.add(source.name)
    method = document.data.get("method", DEFAULT_METHOD)
    if isinstance(method, str) and method in RECIPES:
        foreign = foreign_keys(document.data, method)
        document.data = without(document.data, {key for key, value in foreign if is_idle(key, value)})


def _name_by_file(document: Document, source: _Source) -> None:
    """Without a `name` of its own a recipe has its file's, where that is text."""
    name = Path(source.name).stem
    if reason := unusable_text(name):
        document.problems.append(Fault(shorten(source.name), ("name",), f"is missing, and the file's name {reason}"))
    else:
        document.data["name"] = name


def _apply_override(document: Document, override: str) -> None:
    """Set one `key.sub=value`; the value is YAML. What is wrong with it is added to the document's problems."""
    place = f"override {shorten(override)!r}"
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    wrong = None
    if not equals or not all(keys):
        wrong = "write it as key=value, for example train.lr=1e-5"
    elif len(keys) > MAX_DEPTH:
        wrong = f"its key has {len(keys)} parts; sections are nested at most {MAX_DEPTH} deep"
    elif reason := unusable_text(key):
        wrong = f"its key {reason}"
    elif len(text) > MAX_BYTES:
        wrong = f"its value is longer than {MAX_BYTES:,} characters"
    if wrong:
        document.problems.append(Fault(place, (), wrong))
        return
    try:
        node = compose(text, "", depth=len(keys))
    except RecipeError as error:
        document.problems.append(Fault(place, (), str(error).partition(": ")[2]))
        return
    path, over = tuple(keys), Document()
    value = None if node is None else build(node, path, lambda _: place, over)
    over.data = {keys[-1]: value}
    for part in keys[-2::-1]:
        over.data = {part: over.data}
    _lay_over(document, over, path)
    document.origins[path] = place
    for depth in range(1, len(path)):
        document.origins.setdefault(path[:depth], place)  # of sections that there were not


# ---- checking --------------------------------------------------------------------------------------------------------


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check a recipe: a built-in name or a YAML file, with `key.sub=value` overrides laid on top.

    A missing `name` is the file's name. `extends: OTHER` starts from another recipe (a built-in name, or a file beside
    this one) and merges this one's keys over it. Raises RecipeError that lists every problem found, one a line, as
    `FILE:LINE: key: what is wrong (got …)`, or with the override instead of file and line.
    """
    document, text, source = _read_chain(str(name_or_path))
    for override in overrides:
        _apply_override(document, override)
    recipe, problems = _validate(document, source)
    known = {problem.path for problem in document.problems}
    problems = [*document.problems, *(problem for problem in problems if not problem.path or problem.path not in known)]
    if problems or recipe is None:
        lines = [str(problem) for problem in sorted(problems, key=_by_place)]
        more = [f"… and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
        raise RecipeError("\n".join([*lines[:_MAX_LISTED], *more]))
    if len(dump_recipe(recipe).encode()) > MAX_BYTES:
        raise RecipeError(f"{source}: is longer than {MAX_BYTES:,} bytes when written out: shorten its texts")
    return LoadedRecipe(recipe, text, source)


def _by_place(problem: Fault) -> tuple[bool, str, int]:
    """Order of the lines in their file; overrides last."""
    file, _, line = problem.place.rpartition(":")
    return (problem.place.startswith("override "), file, int(line) if line.isdigit() else 0)


def _validate(document: Document, source: str) -> tuple[Recipe | None, list[Fault]]:
    """The recipe, or what is wrong with the document's values."""
    method, faults = document.data.get("method", DEFAULT_METHOD), []
    if not isinstance(method, str) or method not in RECIPES:
        faults.append(Fault(document.where(("method",), source), ("method",), _unknown_method(method)))
        method = DEFAULT_METHOD
    data = document.data | {"method": method}
    try:
        # Strict, so that "3" is no number and 1 no boolean; as JSON, because there a list may stand for a tuple.
        recipe = RECIPES[method].model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        described = _describe(error, document, source, method)
        if faults:  # of which method a key is cannot be said
            described = [fault for fault in described if not methods_with(dotted(fault.path))]
        return None, [*faults, *described]
    found = ((tuple(key.split(".")), what) for key, what in conflicts(recipe))
    faults += (Fault(document.where(path, source), path, what) for path, what in found)
    return recipe, [*faults, *_useless_settings(recipe, document)]


def _useless_settings(recipe: Recipe, document: Document) -> Iterator[Fault]:
    """Keys that a person set although another key leaves them without effect.

    A later text may switch off what an earlier one sets: an override of `train.objective`, a recipe that extends
    another. Recipes as run are not looked at, for they have every key.
    """
    for key, by in switched_off(recipe).items():
        path, switch = tuple(key.split(".")), tuple(by.split("."))
        text, switch_text = (_text_of(document.where(p, "")) for p in (path, switch))
        if text in document.as_run or (text != _OVERRIDES and switch_text not in ("", text)):
            continue
        value = _show(flatten(plain(recipe))[by])
        yield Fault(document.where(path, ""), path, f"has no effect while {by} is {value.strip(chr(34))}: take it out")


_OVERRIDES = "overrides"


def _text_of(place: str) -> str:
    """The file of a place, without its line; all overrides are one text."""
    return _OVERRIDES if place.startswith("override ") else place.rpartition(":")[0]


def _unknown_method(method: Any) -> str:
    close = difflib.get_close_matches(str(method)[:100], RECIPES, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    names = ", ".join(f"'{name}'" for name in RECIPES)
    return f"must be one of {names} (got {_show(method)}){hint}"


def conflicts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of values that are each possible but not together, or not usable as they stand."""
    if not re.fullmatch(r"[\w][\w.+-]*", recipe.name):
        yield "name", f"must be usable as a folder's name: letters, digits, . _ + - (got {shorten(recipe.name)!r})"
    elif len(recipe.name.encode()) > MAX_NAME:
        yield "name", f"is longer than {MAX_NAME} bytes, too long for a folder's name (got {shorten(recipe.name)!r})"
    task = recipe.task
    if task.kind == "jsonl" and not task.path:
        yield "task.path", "is missing: kind jsonl reads its problems from the file or folder named here"
    if not task.granularity or min(task.granularity) < 1:
        yield "task.granularity", f"must be numbers of operations, each at least 1 (got {_show(task.granularity)})"
    if task.examples and task.examples_path is None and task.splits.labelled <= task.examples:
        yield (
            "task.examples",
            f"shows problems of the labelled split, which has {task.splits.labelled}: task.splits.labelled must be "
            f"larger, or name files in task.examples_path (got {task.examples})",
        )
    if own := sorted(_TEMPLATES_OWN & task.chat_template_kwargs.keys()):
        yield "task.chat_template_kwargs", f"sets {', '.join(own)}, which treepref sets itself: take it out"
    is_function = task.prompt and re.fullmatch(r"[\w.]+:[\w.]+", task.prompt)
    if task.prompt is not None and not is_function and "{question}" not in task.prompt:
        yield (
            "task.prompt",
            f"has no {{question}} to put the question in, and is no module:function (got {shorten(task.prompt)!r})",
        )
    if task.pass_score != 1 and task.checker is None and task.kind != "verifiers":
        yield "task.pass_score", "has no effect without task.checker: take it out"
    if task.kind == "verifiers" and task.splits.labelled:
        yield "task.splits.labelled", f"must be 0: tasks of verifiers have no solutions (got {task.splits.labelled})"
    if task.checker is not None and not re.fullmatch(r"[\w.]+:[\w.]+", task.checker):
        yield "task.checker", f"must be module:function (got {shorten(task.checker)!r})"
    yield from recipe.conflicts()


def _describe(error: ValidationError, document: Document, source: str, method: str) -> list[Fault]:
    """One line a wrong key. The branches of a union that all refused one value make one line."""
    found: dict[KeyPath, list[str]] = {}
    values: dict[KeyPath, Any] = {}
    for detail in error.errors(include_url=False)[: 2 * _MAX_LISTED]:
        path, value = _within(document.data, detail["loc"])
        if detail["type"] == "extra_forbidden":
            found[path] = [_useless_key(path, method) or _unknown_key(path, method)]
        elif detail["type"] == "missing":
            found[path] = ["is missing"]
        elif detail["type"] == "value_error":  # of a section as a whole: its text names the key
            message = str(detail.get("ctx", {}).get("error"))
            path = next((tuple(key.split(".")) for key in known_keys() if message.startswith(f"{key} ")), path)
            found.setdefault(path, []).append(message.removeprefix(f"{dotted(path)} "))
        else:
            message = "module:function" if detail["type"] == "string_pattern_mismatch" else detail["msg"]
            message = message.replace("Input should be", "must be").replace("an object", "a section of keys")
            message = message.replace("a valid array", "a list")
            found.setdefault(path, []).append(message[:1].lower() + message[1:])
            values[path] = value
    problems = []
    for path, messages in found.items():
        what = ", or ".join(dict.fromkeys(messages))
        if path in values:
            what += f" (got {_show(values[path])}){_value_hint(messages, values[path])}"
        problems.append(Fault(document.where(path, source), path, what))
    return problems


def _value_hint(messages: Sequence[str], value: Any) -> str:
    """Advice for the mistakes that YAML invites."""
    text = " ".join(messages)
    if "valid boolean" in text:
        return "; write true or false"
    if "valid string" in text and not isinstance(value, (dict, list)) and value is not None:
        return f'; quote it: "{value}"'
    if isinstance(value, str) and re.search("valid (integer|number)", text):
        return "; write the number without quotes or unit"
    if isinstance(value, str):
        close = difflib.get_close_matches(value, re.findall(r"'([^']+)'", text), 1)
        return f"; did you mean {close[0]}?" if close else ""
    return ""


def _within(data: Any, loc: Sequence[str | int]) -> tuple[KeyPath, Any]:
    """The part of a pydantic location that leads through the data (unions add names of types), and the value there."""
    path: list[str | int] = []
    for part in loc:
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            if isinstance(data, dict if isinstance(part, str) else list):
                path.append(part)  # something required that is not there
            break
        path.append(part)
    return tuple(path), data


def _useless_key(path: KeyPath, method: str) -> str | None:
    """Message for a key that other methods know; None where none does."""
    methods = methods_with(dotted(path))
    if not methods or method in methods:
        return None
    return f"has no effect with {method}, only with {' and '.join(methods)}: take it out"


def _unknown_key(path: KeyPath, method: str) -> str:
    """Message for an unknown key, with the nearest known one: in its section first, then anywhere."""
    if path == ("extends",):
        return "belongs into a file; here, name that recipe in place of this one"
    name = str(path[-1])
    prefix = dotted(path).removesuffix(shorten(name))
    name, known = name[:100], list(keys_of(RECIPES[method]))
    siblings = [key.removeprefix(prefix) for key in known if key.startswith(prefix)]
    siblings = list(dict.fromkeys(key.partition(".")[0] for key in siblings))
    if name in known and "." in name:
        section, _, last = name.rpartition(".")
        return f"unknown key; in a file write `{last}:` indented under `{section}:`"
    if not prefix:
        siblings.append("extends")
    close = difflib.get_close_matches(name, siblings, 1)
    if close:
        return f"unknown key; did you mean {prefix}{close[0]}?"
    elsewhere = [key for key in known if key.rpartition(".")[2] == name]
    if not elsewhere:
        nearest = difflib.get_close_matches(name, [key.rpartition(".")[2] for key in known], 1, 0.75)
        elsewhere = [key for key in known if nearest and key.rpartition(".")[2] == nearest[0]]
    if elsewhere:
        return f"unknown key; did you mean {' or '.join(elsewhere)}?"
    return f"unknown key; keys here: {', '.join(siblings)}"


# ---- writing and resuming --------------------------------------------------------------------------------------------


def dump_recipe(recipe: Recipe) -> str:
    """YAML of a recipe with every key written out, for `runs/NAME/recipe.yaml`; `load_recipe` reads it back equal."""
    return AS_RUN + dump_yaml(plain(recipe))


def recipe_changes(old: Recipe, new: Recipe) -> list[Change]:
    """Every key whose value differs, in the schema's order; a key that one side lacks counts as null."""
    before, after = flatten(plain(old)), flatten(plain(new))
    keys = dict.fromkeys([*before, *after])
    return [Change(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]


def check_resume(old: Recipe, new: Recipe, *, untrained: bool = False) -> list[Change]:
    """What the new recipe changes in a run begun with the old one, all of it allowed.

    Allowed are `budget.*`, the keys in RESUMABLE, and `rounds` upward; `untrained`: while no round has begun to learn,
    how it will, too. Raises RecipeError naming every other change (key: old → new), because it would mix data made
    under two recipes in one run.
    """
    allowed, refused = [], []
    for change in recipe_changes(old, new):
        may = change.key in RESUMABLE or change.key.startswith("budget.")
        may = may or (change.key == "rounds" and change.new > change.old)
        may = may or (untrained and change.key.startswith(("pairs.", "train.")) and change.key != "train.objective")
        (allowed if may else refused).append(change)
    if refused:
        notes = {"rounds": " (rounds may only grow)"}
        forks = all(change.key.startswith(FORKABLE) for change in refused)
        raise RecipeError(
            "this run was begun with another recipe:\n"
            + "\n".join(f"  {change}{notes.get(change.key, '')}" for change in refused)
            + "\nundo these changes, or start a new run with another --out"
            + (", or learn otherwise from the same search: `treepref fork RUN OUT KEY=VALUE …`" if forks else "")
            + "; on resume only budget.*, rounds (upward), "
            + f"{', '.join(sorted(RESUMABLE))}, and pairs.* and train.* until a round is trained, may change"
        )
    return allowed


def _show(value: Any) -> str:
    """A value as YAML would have it, short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"
