"""The YAML of recipes: text to plain data with the place of each key, and plain data to text that reads back equal.

Read by the rules of YAML 1.2's core schema (https://yaml.org/spec/1.2.2, section 10.3), under which `1e-5` is a number,
`no` is text and `010` is ten. Tags, anchors and aliases are refused; so are texts, numbers and nesting beyond what any
recipe needs, so that no text costs more than a moment. Knows no key and no schema.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from treepref.errors import RecipeError

KeyPath = tuple[str | int, ...]

MAX_BYTES = 250_000
"""A longer recipe is refused."""
MAX_DEPTH = 32
"""Deepest nesting of sections and lists."""
MAX_DIGITS = 400
"""A number with more is refused (Python itself reads no integer of more than 4,300)."""

_PREFIX = "tag:yaml.org,2002:"
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

    def __init__(self, text: str, depth: int) -> None:
        super().__init__(text)
        self._depth = depth

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not used in recipes", problem_mark=event.start_mark)
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors (&name) are not used in recipes", problem_mark=event.start_mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested too deeply (more than {MAX_DEPTH} levels)", problem_mark=event.start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_LINE_END = re.compile("[\n\r\x85\u2028\u2029]")


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what the loader above would not read back as text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    # Whatever YAML takes for the end of a line is escaped: elsewhere it would be folded into a blank.
    return dumper.represent_scalar(f"{_PREFIX}str", text, style='"' if _LINE_END.search(text) else None)


def _represent_list(dumper: _Dumper, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence(f"{_PREFIX}seq", items, flow_style=True)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)


for _tag, (_pattern, _first, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_PREFIX}{_tag}", re.compile(rf"^(?:{_pattern.pattern})$"), _first)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """YAML that `compose` and `build` read back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a recipe: at which place (file and line, or override), with which key, and what."""

    place: str
    path: KeyPath
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {dotted(self.path)}: {self.what}" if self.path else f"{self.place}: {self.what}"


@dataclass(slots=True)
class Document:
    """Data as read, where each key stood, and what is already known to be wrong."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Fault] = field(default_factory=list)
    as_run: set[str] = field(default_factory=set)
    """The texts that a run wrote, with every key: a person set none of them."""

    def where(self, path: KeyPath, default: str) -> str:
        """Place of the key, else of the nearest section around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return default

    def forget(self, path: KeyPath) -> None:
        """Something else takes the place of what stands there, and of all below it."""
        self.origins = {known: place for known, place in self.origins.items() if known[: len(path)] != path}
        self.problems = [problem for problem in self.problems if problem.path[: len(path)] != path]


def compose(text: str, source: str, depth: int = 0) -> yaml.Node | None:
    """The node graph of one YAML document that stands `depth` levels deep; None where there is none.

    Raises RecipeError naming the line of a syntax error, of an anchor and of nesting that is too deep.
    """
    loader = None
    try:
        loader = _Loader(text, depth)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        what = ", ".join(part for part in (error.problem, error.context) if part)
        raise RecipeError(f"{source}{line}: not valid YAML: {what}") from None
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{source}:{line_number}: not valid YAML: {error.reason}") from None
    except (ValueError, OverflowError):  # the library passes on what chr() and int() say to "\UFFFFFFFF" and the like
        line = f":{loader.line + 1}" if loader is not None else ""
        raise RecipeError(f"{source}{line}: not valid YAML: a number or escape in it is out of range") from None
    finally:
        if loader is not None:
            loader.dispose()


def build(node: yaml.Node, path: KeyPath, place: Callable[[yaml.Node], str], document: Document) -> Any:
    """Plain data of a node; fills the document's origins and problems. `place` names a node in messages."""
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_PREFIX}map":
        return _build_mapping(node, path, place, document)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PREFIX}seq":
        items = []
        for index, item in enumerate(node.value):
            document.origins[(*path, index)] = place(item)
            items.append(build(item, (*path, index), place, document))
        return items
    try:
        return _scalar(node)
    except ValueError as error:
        document.problems.append(Fault(place(node), path, str(error)))
        return None


def _build_mapping(
    node: yaml.MappingNode, path: KeyPath, place: Callable[[yaml.Node], str], document: Document
) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, wrong = key_node.value, None
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_PREFIX}str":
            shown = shorten(key) if isinstance(key_node, yaml.ScalarNode) else f"a {key_node.id}"
            wrong = f"a key must be text (got {shown})"
        elif reason := "must not be empty" if not key else unusable_text(key):
            wrong = f"a key {reason} (got {shorten(key)!r})"
        if wrong:
            document.problems.append(Fault(place(key_node), path, wrong))
            continue
        here = (*path, key)
        if key in mapping:
            document.problems.append(Fault(place(key_node), here, f"stands twice (first on line {lines[key]})"))
            continue
        lines[key] = key_node.start_mark.line + 1
        document.origins[here] = place(key_node)
        mapping[key] = build(value_node, here, place, document)
    return mapping


def _scalar(node: yaml.Node) -> Any:
    """A scalar's value. Raises ValueError that says why it is none."""
    kind = node.tag.removeprefix(_PREFIX)
    if isinstance(node, yaml.ScalarNode) and kind == "str":
        if reason := unusable_text(node.value):
            raise ValueError(reason)
        return node.value
    if not isinstance(node, yaml.ScalarNode) or kind not in _SCALARS:
        raise ValueError(f"YAML tag {shorten(node.tag)} is not used in recipes")
    pattern, _, read = _SCALARS[kind]
    if not pattern.fullmatch(node.value):
        raise ValueError(f"{shorten(node.value)!r} is not a usable {kind}")
    if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
        raise ValueError(f"is a number of more than {MAX_DIGITS} digits (got {shorten(node.value)!r})")
    value = read(node.value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number (got {node.value})")
    return value


def unusable_text(text: str) -> str | None:
    """Why a text can serve nowhere: half a character, or NUL, at which paths and databases cut a text. Else None."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "is not valid Unicode text"
    return "holds the character NUL (\\0)" if "\0" in text else None


def dotted(path: KeyPath) -> str:
    """`eval.sbs[0][1]` of ("eval", "sbs", 0, 1)."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{shorten(part)}" for part in path)
    return text.removeprefix(".") or "recipe"


def shorten(text: str, length: int = 60) -> str:
    """The text for a message."""
    return text if len(text) <= length else text[: length - 1] + "…"
