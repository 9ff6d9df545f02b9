"""What the code's structure comes to, room by room: size against budget, arrows, long functions, private access.

    python benchmarks/house.py [CHECKOUT]          a table of this checkout, or of another
    python benchmarks/house.py BEFORE AFTER        both, side by side
    python benchmarks/house.py --list [CHECKOUT]   every case that a number counts

Needs nothing but Python. A room is a folder of `src/treepref`, or a file that stands beside the folders.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ORDER = (
    "ground", "arithmetic", "workers", "search", "tasks", "runs", "models", "report", "evaluation", "recipes", "tools",
    "training", "engines", "driver", "loops", "cli",
)  # fmt: skip
"""Rooms from the bottom up: each may import those before it."""
GROUND = ("types", "errors", "progress", "blocks", "config", "keys", "__init__")
BUDGETS = {
    "core (search, training, loops, driver, runs, ground)": (
        ("search", "training", "loops", "driver", "runs", "ground"), 8500
    ),
    "engines": (("engines",), 4000),
    "tasks, tools, workers, arithmetic": (("tasks", "tools", "workers", "arithmetic"), 4000),
    "evaluation, report": (("evaluation", "report"), 4500),
    "models": (("models",), 1500),
    "recipes, config, cli": (("recipes", "cli", "config", "keys"), 1800),
}  # fmt: skip
"""Lines of Python, docstrings included; config.py and keys.py count with the recipes."""
LONG_FUNCTION, LONG_FILE, PUBLIC_NAMES = 50, 600, 40


@dataclass(slots=True)
class House:
    """What was found. Cases are texts that name their place."""

    lines: Counter[str] = field(default_factory=Counter)
    files: int = 0
    arrows: set[tuple[str, str]] = field(default_factory=set)
    cases: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, case: str) -> None:
        self.cases.setdefault(kind, []).append(case)


def rooms_of(source: Path) -> tuple[set[str], set[str]]:
    """(folders, files beside them)."""
    folders = {p.name for p in source.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    return folders, {p.stem for p in source.glob("*.py")}


def room_of(module: str, folders: set[str]) -> str:
    """The room of a module below `treepref`, e.g. `runs.store`."""
    first = module.partition(".")[0]
    if first in folders or first in ("driver", "cli"):
        return first
    return "ground" if first in GROUND else first


def imports_of(tree: ast.AST, folders: set[str]) -> Iterator[str]:
    """The modules of treepref that a file imports, as paths below the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "treepref":
            module = (node.module or "").removeprefix("treepref").lstrip(".")
            if module in folders or not module:
                yield from (f"{module}.{alias.name}".lstrip(".") for alias in node.names)
            else:
                yield module


def look(checkout: Path) -> House:
    """Read all of `src/treepref`."""
    source = checkout / "src" / "treepref"
    folders, _ = rooms_of(source)
    house, imported = House(), {}
    known = set(ORDER)
    for path in sorted(source.rglob("*.py")):
        text, module = path.read_text("utf-8"), ".".join(path.relative_to(source).with_suffix("").parts)
        tree, room, place = ast.parse(text), room_of(module, folders), str(path.relative_to(source))
        count = text.count("\n")
        house.files += 1
        house.lines[room] += count
        if module in ("config", "keys"):
            house.lines[module] += count
            house.lines["ground"] -= count
        if count > LONG_FILE:
            house.note(f"files over {LONG_FILE} lines", f"{place}: {count}")
        # The package's own front hands out names of all rooms, and imports none before it is asked.
        imported[module] = set() if module == "__init__" else set(imports_of(tree, folders))
        for other in imported[module]:
            below = room_of(other, folders)
            if below != room:
                house.arrows.add((room, below))
                if {room, below} <= known and ORDER.index(below) > ORDER.index(room):
                    house.note("arrows that run up", f"{place} imports {other}")
        _note_functions(house, tree, place)
        _note_private(house, tree, place)
        _note_text(house, text, place)
    for circle in circles(imported):
        house.note("circles of modules", circle)
    offered = (source / "__init__.py").read_text("utf-8").partition("_MODULES")[2].partition("}")[0]
    modules = {module.rpartition(".")[2] for module in imported} | folders
    house.cases["public names"] = [n for n in re.findall(r'"(\w+)"', offered) if n not in modules]
    return house


def _note_functions(house: House, tree: ast.AST, place: str) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            documented = isinstance(body[0], ast.Expr) and isinstance(getattr(body[0], "value", None), ast.Constant)
            first = body[1] if documented and len(body) > 1 else body[0]
            length = (node.end_lineno or 0) - first.lineno + 1
            if length > LONG_FUNCTION:
                house.note(f"functions over {LONG_FUNCTION} lines", f"{place}: {node.name} {length}")


def _note_private(house: House, tree: ast.AST, place: str) -> None:
    """`x._name` where no class or function of the file defines the name: it is another file's."""
    own: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            own |= {t.id for t in targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            own.add(node.value)  # __slots__
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and re.match(r"_[a-z]", node.attr)
            and node.attr not in own
            and not (isinstance(node.value, ast.Name) and node.value.id in ("os", "sys", "torch"))
        ):
            house.note("private names of other files", f"{place}:{node.lineno}: {ast.unparse(node)}")


def _note_text(house: House, text: str, place: str) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"\.method\s*(==|!=|in\b)", line) and place != "loops/run.py":
            house.note("tests of a recipe's method", f"{place}:{number}")
        if re.search(r"""f["']round-""", line) and not place.endswith("stage.py"):
            house.note("names of stages made by hand", f"{place}:{number}")


def circles(imported: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, as `a → b → a`."""
    found, state = [], dict.fromkeys(imported, 0)

    def walk(module: str, path: list[str]) -> None:
        state[module] = 1
        for other in sorted(imported[module] & imported.keys()):
            if state[other] == 1 and other in path:
                found.append(" → ".join([*path[path.index(other) :], other]))
            elif state[other] == 0:
                walk(other, [*path, other])
        state[module] = 2

    for module in imported:
        if state[module] == 0:
            walk(module, [module])
    return found


def table(houses: list[House]) -> Iterator[str]:
    rooms = {room for house in houses for room in house.lines}
    listed = [room for room in ORDER if room in rooms] + sorted(rooms - set(ORDER))
    yield row("room", ["lines"] * len(houses))
    for room in listed:
        yield row(room, [f"{house.lines[room]:,}" if house.lines[room] else "–" for house in houses])
    yield row("all", [f"{sum(house.lines.values()):,}" for house in houses])
    yield ""
    for name, (parts, budget) in BUDGETS.items():
        yield row(f"{name}: at most {budget:,}", [f"{sum(h.lines[p] for p in parts):,}" for h in houses])
    yield ""
    yield row("files", [str(house.files) for house in houses])
    yield row("arrows between rooms", [str(len(house.arrows)) for house in houses])
    kinds = sorted({kind for house in houses for kind in house.cases})
    for kind in kinds:
        yield row(kind, [str(len(house.cases.get(kind, []))) for house in houses])


def row(name: str, values: list[str]) -> str:
    return f"{name:<58}" + "".join(f"{value:>12}" for value in values)


def main(arguments: list[str]) -> None:
    wanted = [a for a in arguments if not a.startswith("-")] or [str(Path(__file__).parents[1])]
    houses = [look(Path(checkout)) for checkout in wanted]
    print("\n".join(table(houses)))
    if "--list" in arguments:
        for kind, cases in sorted(houses[-1].cases.items()):
            print(f"\n{kind}")
            print("\n".join(f"  {case}" for case in cases))


if __name__ == "__main__":
    main(sys.argv[1:])
