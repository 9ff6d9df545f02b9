"""Recipes as text: reading YAML with line numbers, overrides, `extends`, writing, and what may change on resume.

Knows the schema in `config.py` only by walking it. Knows no model, no data set and no run directory.

A recipe is plain data, read by the rules of YAML 1.2's core schema (https://yaml.org/spec/1.2.2, section 10.3), under
which `1e-5` is a number, `no` is text and `010` is ten. Tags, anchors and aliases are refused.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from treepref.config import Recipe, Section
from treepref.errors import RecipeError

KeyPath = tuple[str | int, ...]

RESUMABLE = frozenset(
    {
        "engine.max_rows", "engine.cache_mb", "engine.threads", "search.trees_in_flight", "model.device",
        "train.attention", "train.recompute",
    }
)  # fmt: skip
"""Keys that may change between two lives of a run, besides all of `budget` and `rounds` upward: they set how fast the
work is done and how far it goes, never what is computed."""

REPLACED_WHOLE = ("task", "params")
"""The one mapping that `extends` and overrides replace, not merge: parameters of one task mean nothing to another."""


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
    for entry in sorted(resources.files("treepref").joinpath("recipes").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            remark = re.match(r"(?:#.+\n)*", entry.read_text("utf-8"))
            text = " ".join(line.lstrip("# ") for line in remark[0].splitlines()) if remark else ""
            found[entry.name.removesuffix(".yaml")] = re.split(r"\.(?: |$)", text)[0]
    return found


def _read_text(name_or_path: str, folder: Path | None = None) -> tuple[str, str]:
    """(text, source) of a built-in recipe by name, or of a YAML file (relative to `folder` where given)."""
    looks_like_file = name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path or "\\" in name_or_path
    if not looks_like_file:
        builtin = resources.files("treepref").joinpath("recipes", f"{name_or_path}.yaml")
        if builtin.is_file():
            return builtin.read_text("utf-8"), f"treepref/recipes/{name_or_path}.yaml"
    path = Path(name_or_path) if folder is None else folder / name_or_path
    if path.is_dir():
        raise RecipeError(f"{path}: is a folder; name a recipe file (a run's own recipe is {path / 'recipe.yaml'})")
    if not path.is_file():
        names = list(builtin_recipes())
        close = difflib.get_close_matches(name_or_path, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"built-in recipes: {', '.join(names)}"
        raise RecipeError(f"no recipe {name_or_path!r}: neither a built-in recipe nor a file; {hint}")
    try:
        return path.read_text("utf-8-sig"), str(path)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None


# ---- YAML with line numbers ------------------------------------------------------------------------------------------

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_SCALARS: dict[str, tuple[re.Pattern[str], list[str], Callable[[str], Any]]] = {
    # tag: (what a plain scalar must look like, the characters it may start with, how to read it)
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""], lambda text: None),
    "bool": (
        re.compile(r"true|True|TRUE|false|False|FALSE"),
        list("tTfF"),
        lambda text: text.lower() == "true",
    ),
    "int": (re.compile(rf"[-+]?{_DIGITS}"), list("-+0123456789"), lambda text: int(text.replace("_", ""))),
    "float": (
        re.compile(
            rf"[-+]?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        list("-+.0123456789"),
        lambda text: float(re.sub(r"_|\.(?=[a-zA-Z])", "", text)),
    ),
}


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars above; used to compose nodes only, it constructs nothing."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not used in recipes", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what the loader above would not read back as text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


def _represent_list(dumper: _Dumper, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)


for _tag, (_pattern, _first, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern.pattern})$"), _first)


@dataclass(frozen=True, slots=True)
class _Fault:
    """One thing wrong with a recipe: at which place (file and line, or override), with which key, and what."""

    place: str
    path: KeyPath
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {_dotted(self.path)}: {self.what}" if self.path else f"{self.place}: {self.what}"


@dataclass(slots=True)
class _Document:
    """Data as read, where each key stood, and what is already known to be wrong."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[_Fault] = field(default_factory=list)

    def where(self, path: KeyPath, default: str) -> str:
        """Place of the key, else of the nearest section around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return default


def _compose(text: str, source: str) -> yaml.Node | None:
    """The node graph of one YAML document. Raises RecipeError naming the line of a syntax error."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        what = ", ".join(part for part in (error.problem, error.context) if part)
        raise RecipeError(f"{source}{line}: not valid YAML: {what}") from None
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{source}:{line_number}: not valid YAML: {error.reason}") from None
    except RecursionError:
        raise RecipeError(f"{source}: not a recipe: nested too deeply") from None


def _build(node: yaml.Node, path: KeyPath, place: Callable[[yaml.Node], str], document: _Document) -> Any:
    """Plain data of a node; fills the document's origins and problems. `place` names a node in messages."""
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        mapping: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                document.problems.append(
                    _Fault(place(key_node), path, f"a key must be text (got {_shown_node(key_node)})")
                )
                continue
            here = (*path, key)
            if key in mapping:
                document.problems.append(_Fault(place(key_node), here, f"stands twice (first on line {lines[key]})"))
                continue
            lines[key] = key_node.start_mark.line + 1
            document.origins[here] = place(key_node)
            mapping[key] = _build(value_node, here, place, document)
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        items = []
        for index, item in enumerate(node.value):
            document.origins[(*path, index)] = place(item)
            items.append(_build(item, (*path, index), place, document))
        return items
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.ScalarNode) and kind == "str":
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            document.problems.append(_Fault(place(node), path, "is not valid Unicode text"))
            return ""
        return node.value
    if not isinstance(node, yaml.ScalarNode) or kind not in _SCALARS:
        document.problems.append(_Fault(place(node), path, f"YAML tag {node.tag} is not used in recipes"))
        return None
    pattern, _, read = _SCALARS[kind]
    try:
        if not pattern.fullmatch(node.value):
            raise ValueError
        value = read(node.value)
    except ValueError:
        document.problems.append(_Fault(place(node), path, f"{node.value[:40]!r} is not a usable {kind}"))
        return None
    if isinstance(value, float) and not math.isfinite(value):
        document.problems.append(_Fault(place(node), path, f"must be a finite number (got {node.value})"))
        return 0.0
    return value


def _parse_document(text: str, source: str) -> _Document:
    """The mapping of a recipe's text. Raises RecipeError where there is none."""
    node = _compose(text, source)
    if node is None:
        raise RecipeError(f"{source}: is empty; start from a built-in recipe, for example `extends: svpo`")
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{source}:{node.start_mark.line + 1}: a recipe is a mapping of keys (`name: …`) at its top")
    document = _Document()
    document.data = _build(node, (), lambda n: f"{source}:{n.start_mark.line + 1}", document)
    return document


def _merge(under: dict[str, Any], over: Mapping[str, Any], path: KeyPath = ()) -> None:
    """Lay `over` onto `under`: sections merge, everything else is replaced."""
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(under.get(key), dict) and here != REPLACED_WHOLE:
            _merge(under[key], value, here)
        else:
            under[key] = value


def _read_chain(
    name_or_path: str, folder: Path | None = None, seen: tuple[str, ...] = ()
) -> tuple[_Document, str, str]:
    """(merged document, text, source) of a recipe and of whatever it extends."""
    text, source = _read_text(name_or_path, folder)
    if source in seen:
        raise RecipeError(f"{source}: extends itself ({' → '.join((*seen, source))})")
    document = _parse_document(text, source)
    document.data.setdefault("name", Path(source).stem)
    if "extends" not in document.data:
        return document, text, source
    parent = document.data.pop("extends")
    place = document.where(("extends",), source)
    if not isinstance(parent, str):
        raise RecipeError(f"{place}: extends: must name a recipe (got {_show(parent)})")
    try:
        base, _, _ = _read_chain(parent, Path(source).parent if Path(source).is_file() else None, (*seen, source))
    except RecipeError as error:
        raise RecipeError(f"{place}: extends: {error}") from None
    _merge(base.data, document.data)
    base.origins.update(document.origins)
    base.problems.extend(document.problems)
    return base, text, source


def _apply_override(document: _Document, override: str) -> None:
    """Set one `key.sub=value`; the value is YAML. What is wrong with it is added to the document's problems."""
    place = f"override {override!r}"
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        document.problems.append(_Fault(place, (), "write it as key=value, for example train.lr=1e-5"))
        return
    section: dict[str, Any] = document.data
    for depth, part in enumerate(keys[:-1]):
        if not isinstance(section.get(part), dict):
            section[part] = {}
            document.origins[tuple(keys[: depth + 1])] = place
        section = section[part]
    try:
        node = _compose(text, "")
    except RecipeError as error:
        document.problems.append(_Fault(place, (), str(error).partition(": ")[2]))
        return
    path = tuple(keys)
    for stale in [known for known in document.origins if known[: len(path)] == path]:
        del document.origins[stale]
    document.origins[path] = place
    value = None if node is None else _build(node, path, lambda _: place, document)
    if isinstance(value, dict) and isinstance(section.get(keys[-1]), dict) and path != REPLACED_WHOLE:
        _merge(section[keys[-1]], value, path)
    else:
        section[keys[-1]] = value


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
        raise RecipeError("\n".join(str(problem) for problem in sorted(problems, key=_by_place)))
    return LoadedRecipe(recipe, text, source)


def _by_place(problem: _Fault) -> tuple[bool, str, int]:
    """Order of the lines in their file; overrides last."""
    file, _, line = problem.place.rpartition(":")
    return (problem.place.startswith("override "), file, int(line) if line.isdigit() else 0)


def _validate(document: _Document, source: str) -> tuple[Recipe | None, list[_Fault]]:
    """The recipe, or what is wrong with the document's values."""
    try:
        # Strict, so that "3" is no number and 1 no boolean; as JSON, because there a list may stand for a tuple.
        recipe = Recipe.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        return None, _describe(error, document, source)
    found = ((tuple(key.split(".")), what) for key, what in conflicts(recipe))
    return recipe, [_Fault(document.where(path, source), path, what) for path, what in found]


def conflicts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of values that are each possible but not together, or not usable as they stand."""
    if not re.fullmatch(r"[\w][\w.+-]*", recipe.name):
        yield "name", f"must be usable as a folder's name: letters, digits, . _ + - (got {recipe.name!r})"
    task = recipe.task
    if task.kind == "jsonl" and not task.path:
        yield "task.path", "is missing: kind jsonl reads its problems from the file or folder named here"
    if not task.granularity or min(task.granularity) < 1:
        yield "task.granularity", f"must be numbers of operations, each at least 1 (got {task.granularity})"
    is_function = task.prompt and re.fullmatch(r"[\w.]+:[\w.]+", task.prompt)
    if task.prompt is not None and not is_function and "{question}" not in task.prompt:
        yield (
            "task.prompt",
            f"has no {{question}} to put the question in, and is no module:function (got {task.prompt!r})",
        )
    if task.checker is not None and not re.fullmatch(r"[\w.]+:[\w.]+", task.checker):
        yield "task.checker", f"must be module:function (got {task.checker!r})"
    if recipe.pairs.min_visits > recipe.search.simulations:
        yield (
            "pairs.min_visits",
            (
                f"is above search.simulations ({recipe.search.simulations}): no step can be visited that often "
                f"(got {recipe.pairs.min_visits})"
            ),
        )
    source, size = "task.splits.train", task.splits.train
    if recipe.method == "dpo_st":  # samples the labelled questions too
        source, size = "task.splits.labelled + task.splits.train", task.splits.labelled + task.splits.train
    if recipe.pairs.min_problems > size:
        yield (
            "pairs.min_problems",
            f"is above {source} ({size}): no round can find that many problems (got {recipe.pairs.min_problems})",
        )
    if recipe.method == "dpo_st" and not recipe.warmup.epochs:
        yield (
            "warmup.epochs",
            "must be at least 1: dpo_st starts from SFT on the labelled problems and repeats it in every round (got 0)",
        )
    for widths in recipe.eval.sbs:
        if min(widths) < 1:
            yield "eval.sbs", f"beam widths must be at least 1 (got {list(widths)})"


def _describe(error: ValidationError, document: _Document, source: str) -> list[_Fault]:
    """One line a wrong key. The branches of a union that all refused one value make one line."""
    found: dict[KeyPath, list[str]] = {}
    values: dict[KeyPath, Any] = {}
    for detail in error.errors(include_url=False):
        path, value = _within(document.data, detail["loc"])
        if detail["type"] == "extra_forbidden":
            found[path] = [_unknown_key(path)]
        elif detail["type"] == "missing":
            found[path] = ["is missing"]
        elif detail["type"] == "value_error":  # of a section as a whole: its text names the key
            message = str(detail["ctx"]["error"])
            path = next((tuple(key.split(".")) for key in known_keys() if message.startswith(f"{key} ")), path)
            found.setdefault(path, []).append(message.removeprefix(f"{_dotted(path)} "))
        else:
            message = detail["msg"].replace("Input should be", "must be").replace("an object", "a section of keys")
            message = message.replace("a valid array", "a list")
            found.setdefault(path, []).append(message[:1].lower() + message[1:])
            values[path] = value
    problems = []
    for path, messages in found.items():
        what = ", or ".join(dict.fromkeys(messages))
        if path in values:
            what += f" (got {_show(values[path])}){_value_hint(messages, values[path])}"
        problems.append(_Fault(document.where(path, source), path, what))
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


def _unknown_key(path: KeyPath) -> str:
    """Message for an unknown key, with the nearest known one: in its section first, then anywhere."""
    dotted = _dotted(path)
    name = str(path[-1])
    prefix = dotted.removesuffix(name)
    known = list(known_keys())
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


# ---- the schema, flat ------------------------------------------------------------------------------------------------


def known_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, Any]:
    """Every key of the schema by its dotted name, in order, with its default (sections have no entry of their own,
    except those that may be null, such as `model.lora`). Required keys have the default `...`."""
    found: dict[str, Any] = {}
    for name, info in section.model_fields.items():
        inner = next(
            (
                t
                for t in (info.annotation, *get_args(info.annotation))
                if isinstance(t, type) and issubclass(t, Section)
            ),
            None,
        )
        default = ... if info.is_required() else info.get_default(call_default_factory=True)
        if inner is None or default is None:
            found[prefix + name] = default
        if inner is not None:
            found.update(known_keys(inner, f"{prefix}{name}."))
    return found


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


# ---- writing and resuming --------------------------------------------------------------------------------------------


def dump_recipe(recipe: Recipe) -> str:
    """YAML of a recipe with every key written out, for `runs/NAME/recipe.yaml`; `load_recipe` reads it back equal."""
    body = yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return f"# The recipe as run, every key written out.\n{body}"


def recipe_changes(old: Recipe, new: Recipe) -> list[Change]:
    """Every key whose value differs, in the schema's order; a key that one side lacks counts as null."""
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    keys = dict.fromkeys([*before, *after])
    return [Change(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]


def check_resume(old: Recipe, new: Recipe) -> list[Change]:
    """What the new recipe changes in a run begun with the old one, all of it allowed.

    Allowed are `budget.*`, the keys in RESUMABLE, and `rounds` upward. Raises RecipeError naming every other change
    (key: old → new), because it would mix data made under two recipes in one run.
    """
    allowed, refused = [], []
    for change in recipe_changes(old, new):
        may = change.key in RESUMABLE or change.key.startswith("budget.")
        may = may or (change.key == "rounds" and change.new > change.old)
        (allowed if may else refused).append(change)
    if refused:
        notes = {"rounds": " (rounds may only grow)"}
        raise RecipeError(
            "this run was begun with another recipe:\n"
            + "\n".join(f"  {change}{notes.get(change.key, '')}" for change in refused)
            + "\nundo these changes, or start a new run with another --out; on resume only budget.*, "
            + f"rounds (upward), {', '.join(sorted(RESUMABLE))} may change"
        )
    return allowed


def _dotted(path: KeyPath) -> str:
    """`eval.sbs[0][1]` of ("eval", "sbs", 0, 1)."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "recipe"


def _shown_node(node: yaml.Node) -> str:
    return node.value[:40] if isinstance(node, yaml.ScalarNode) else f"a {node.id}"


def _show(value: Any) -> str:
    """A value as YAML would have it, short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"
