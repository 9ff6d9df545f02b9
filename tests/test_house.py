"""The structure of the code keeps the rules of the house (benchmarks/house.py, AGENTS.md)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def house():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("house").look(ROOT)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize(
    "rule",
    [
        "arrows that run up", "circles of modules", "files over 600 lines", "functions over 50 lines",
        "tests of a recipe's method", "names of stages made by hand",
    ],
)  # fmt: skip
def test_a_rule_without_exceptions(house, rule: str) -> None:
    assert house.cases.get(rule, []) == []


def test_private_names_are_those_of_libraries(house) -> None:
    """transformers and torch have no public way to these; nothing of our own is reached into."""
    allowed = ("torch.", "AutoModelForCausalLM.", "weight._version", "._attn_implementation")
    cases = house.cases.get("private names of other files", [])
    assert [case for case in cases if not any(name in case for name in allowed)] == []


def test_what_is_counted_is_there(house) -> None:
    """A rule that finds nothing finds something where it is broken."""
    assert house.files > 100 and house.lines["search"] > 500 and len(house.arrows) > 30
    assert 30 < len(house.cases["public names"]) <= 40


def test_broken_rules_are_found(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    look = importlib.import_module("house").look
    sys.path.remove(str(ROOT / "benchmarks"))
    source = tmp_path / "src" / "treepref"
    for room in ("search", "loops"):
        (source / room).mkdir(parents=True)
    (source / "__init__.py").write_text('_MODULES = {"search.a": ("one",)}\n')
    (source / "search" / "a.py").write_text("from treepref.loops.b import thing\n\nthing._hidden\n" + "#\n" * 700)
    long = "def long(recipe):\n    f'round-{recipe}'\n" + "    1\n" * 60 + "    return recipe.method == 'x'\n"
    (source / "loops" / "b.py").write_text(f"from treepref.search import a\n\n{long}")
    cases = look(tmp_path).cases
    assert cases["arrows that run up"] == ["search/a.py imports loops.b"]
    assert cases["circles of modules"] == ["loops.b → search.a → loops.b"]
    assert cases["files over 600 lines"] == ["search/a.py: 703"]
    assert cases["functions over 50 lines"] == ["loops/b.py: long 62"]
    assert cases["private names of other files"] == ["search/a.py:3: thing._hidden"]
    assert cases["tests of a recipe's method"] == ["loops/b.py:65"]
    assert cases["names of stages made by hand"] == ["loops/b.py:4"]
