"""Every Python block of README.md and docs/api.md runs; those under one heading form one program."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from treepref.errors import ModelError

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/api.md")
TINY_BASE = ROOT / "src" / "treepref" / "data" / "tiny_base" / "config.json"


def programs(page: str) -> list[tuple[str, str]]:
    """(heading, program) of each section with Python blocks; line numbers are those of the page."""
    found: dict[str, list[str]] = {}
    heading, in_block = "", False
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if in_block and line.startswith("```"):
            in_block = False
        elif in_block:
            found[heading][number] = line
        elif line.startswith("```python"):
            in_block = True
            found.setdefault(heading, [""] * len(lines))
        elif re.match(r"#+ ", line):
            heading = line.lstrip("# ")
    return [(heading, "\n".join(code)) for heading, code in found.items()]


CASES = [pytest.param(page, code, id=f"{page}: {heading}") for page in PAGES for heading, code in programs(page)]


def test_there_are_examples_on_every_page() -> None:
    assert {case.values[0] for case in CASES} == set(PAGES)


@pytest.mark.parametrize(("page", "code"), CASES)
def test_the_example_runs(page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = compile(code, str(ROOT / page), "exec")
    try:
        exec(program, {"__name__": "__example__"})
    except ModelError as error:
        if TINY_BASE.is_file() or "builtin:tiny-base is not there" not in str(error):
            raise
        pytest.skip("the tiny base model is not in src/treepref/data: `make tiny-base` makes it")


def test_the_round_in_one_page_runs_and_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    if not TINY_BASE.is_file():
        pytest.skip("the tiny base model is not in src/treepref/data: `make tiny-base` makes it")
    monkeypatch.syspath_prepend(ROOT / "examples")
    before, after = importlib.import_module("one_round").main(train=60, evaluate=60)
    assert after > before
    assert (ROOT / "examples" / "one_round.py").read_text().count("\n") <= 160
