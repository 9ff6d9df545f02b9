"""What the package offers at its top, and whether README.md and docs/svpo.md speak of files and code that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import treepref
from treepref.keys import known_keys

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "treepref"
SVPO = (ROOT / "docs" / "svpo.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- names


def test_every_public_name_resolves_to_what_its_module_defines() -> None:
    assert len(treepref.__all__) == len(set(treepref.__all__)) <= 40
    for name in treepref.__all__:
        found = getattr(treepref, name)
        assert found.__name__ == name and found.__module__.startswith("treepref.")


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(treepref.__all__) == {name for name in dir(treepref) if name in seen}


def test_an_unknown_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        treepref.no_such_name  # noqa: B018


def test_no_public_name_hides_a_module() -> None:
    modules = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert modules.isdisjoint(treepref.__all__)


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Nor do the rooms that are pure: search and preferences run without torch."""
    code = (
        "import sys, treepref; assert set(treepref.__all__) <= set(dir(treepref)); "
        "print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules]); "
        "treepref.Mcts, treepref.ScriptedEngine, treepref.drive, treepref.sibling_pairs, treepref.Store; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


# ---------------------------------------------------------------------------------------------------- file map


def file_map() -> dict[str, str]:
    """Path below src/treepref → its line in README's file map."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## File map")[2]
    block = section.split("```")[1]
    lines = [line.split(maxsplit=1) for line in block.splitlines() if line.strip()]
    assert all(len(parts) == 2 for parts in lines), "a path without a word about it"
    assert len({path for path, _ in lines}) == len(lines), "a path stands twice"
    return dict(lines)


def test_every_path_of_the_file_map_exists() -> None:
    missing = [path for path in file_map() if not (SOURCE / path).exists()]
    if missing == ["data/tiny_base/"]:
        pytest.skip("the tiny base model is not in src/treepref/data: `make tiny-base` makes it")
    assert not missing


def test_every_file_of_the_package_is_in_the_map() -> None:
    rooms = {path for path in SOURCE.rglob("__init__.py") if path.parent != SOURCE}
    files = [p for kind in ("*.py", "*.yaml", "*.html") for p in SOURCE.rglob(kind) if p not in rooms]
    assert len(files) > 50
    assert sorted({p.relative_to(SOURCE).as_posix() for p in files} - file_map().keys()) == []


def test_files_import_only_those_above_them_in_the_map() -> None:
    places = {path: place for place, path in enumerate(file_map())}
    below = []
    for path in (p for p in places if p.endswith(".py") and p != "__init__.py"):
        for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("treepref"):
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                used = (f"{m.removeprefix('treepref.').replace('.', '/')}.py" for m in modules)
                below += [f"{path} imports {u}" for u in used if places.get(u, -1) > places[path]]
    assert not below


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


# ---------------------------------------------------------------------------------------------------- docs/svpo.md


@cache
def definitions(path: Path) -> frozenset[str]:
    """Functions, classes, their members and module constants of a file, members as `Class.name`."""
    found: set[str] = set()

    def visit(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found.update(prefix + t.id for t in targets if isinstance(t, ast.Name))

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


REFERENCES = sorted(set(re.findall(r"`([\w/]+\.py)::([\w.]+)`", SVPO)))


def test_the_page_names_its_places() -> None:
    assert len(REFERENCES) > 50
    assert SVPO.count("::") == len(re.findall(r"`[\w/]+\.py::[\w.]+`", SVPO)) + SVPO.count("`path::name`")


@pytest.mark.parametrize(("path", "name"), REFERENCES, ids=["::".join(pair) for pair in REFERENCES])
def test_every_place_of_the_svpo_page_exists(path: str, name: str) -> None:
    assert name in definitions(SOURCE / path)


def test_every_recipe_key_of_the_svpo_page_exists() -> None:
    sections = {key.partition(".")[0] for key in known_keys() if "." in key}
    named = {key for key in re.findall(r"`([a-z]+\.[a-z_]+)(?:: \w+)?`", SVPO) if key.partition(".")[0] in sections}
    assert len(named) > 30
    assert named <= known_keys().keys()
