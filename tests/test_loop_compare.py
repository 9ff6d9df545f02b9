"""`treepref compare` on stores: what is read, what is left alone, what is refused, and what the page and tables say."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from treepref import cli
from treepref.errors import DataError, StoreError
from treepref.evaluation.scores import Solution
from treepref.loops.compare import compare, read_run
from treepref.recipes.reading import load_recipe
from treepref.report.compare import comparison_markdown, render_comparison
from treepref.report.html import PLOTLY
from treepref.runs.results import Comparison, plain
from treepref.runs.store import Store
from treepref.types import Cost, Problem

NASTY = "x_*<script>alert(1)<|]&\"'"


def make_run(folder: Path, *overrides: str, skill: int = 3, problems: int = 8, mark: str = "") -> Path:
    """A run of one round, with greedy answers and four samples in both rounds; `skill` of the problems come right."""
    recipe = load_recipe("quickstart", list(overrides)).recipe
    with Store(folder) as store, store.transaction():
        store.set_meta("recipe", recipe.model_dump(mode="json"))
        store.put_problems("eval", [Problem(f"p{i}", f"What is {i}?{mark}", str(i)) for i in range(problems)])
        for number in (0, 1):
            right = 2 if number == 0 else skill
            for decoder, n in (("greedy", 1), ("samples", 4)):
                stage = f"round-{number}/eval/{decoder}"
                rows = [
                    Solution(f"p{i}", s, i < right, str(i) if i < right else "no", 10 + number, text=f"t{s % 2}")
                    for i in range(problems)
                    for s in range(n)
                ]
                store.start_stage(stage)
                cost = Cost(generated_tokens=sum(r.generated for r in rows), prefill_tokens=40, flops=1e6 * len(rows))
                store.put_outcomes(stage, [(r.problem_id, r.sample, r.as_row()) for r in rows], cost=cost)
                store.finish_stage(stage)
        store.add_cost("round-1/search", Cost(generated_tokens=1000, flops=2e6))
        store.add_cost("round-1/train", Cost(training_tokens=500, flops=3e6))
    return folder


def compared(folders: list[Path], out: Path, **options: object) -> tuple[Comparison, str]:
    stream = io.StringIO()
    document = compare(folders, out, console=Console(file=stream, width=140), **options)
    return document, stream.getvalue()


def state(folder: Path) -> dict[str, bytes]:
    """Its files; what SQLite keeps beside a database that is being read is no part of the run."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.endswith(("-shm", "-wal"))}


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", "train.lr=1e-5", skill=6)
    before = state(a), state(b)
    document, text = compared([a, b], tmp_path / "out")
    assert (state(a), state(b)) == before, "runs are read, never written"
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == plain(document)
    first, second = document.entries
    assert [p.method for p in first.rounds[1].points] == ["greedy", "sc@1", "sc@2", "sc@4"]
    assert first.rounds[1].training["all"].tokens == 1500
    assert second.rounds[1].vs_start["greedy"].difference == 0.5
    assert second.rounds[1].vs_baseline["greedy"].difference == 0.375
    assert second.rounds[1].distinct_right == 6 * 2 / 8 and second.rounds[1].pass_at["4"] == 0.75
    # greedy: 8·11 generated and 40 prefilled tokens for 8e6 FLOPs; a prompt of 5 computed tokens
    assert second.rounds[1].points[0].flops_per_problem == pytest.approx(8e6 / 128 * (5 + 11))
    for shown in ("75.0", "+50.0", "+37.5", "1500", "training against samples"):
        assert shown in text
    assert "compare.html" in text


def test_seeds_are_grouped_by_what_else_the_recipes_say(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"seed-{s}", f"seed={s}", f"engine.threads={1 + s}", mark=f" {s}") for s in range(3)]
    document, text = compared(runs, tmp_path / "out")
    assert [entry.name for entry in document.entries] == ["seed-*"] and "3 seeds" in text
    assert document.entries[0].rounds[1].points[0].n == 24, "other problems under the same ids"
    apart, _ = compared(runs, tmp_path / "out", group=False, baseline=str(runs[1]))
    assert apart.baseline == "seed-1" and len(apart.entries) == 3
    assert apart.entries[0].rounds[1].vs_baseline is None and "different problems" in apart.notes[0]


def test_what_is_not_finished_is_left_out_with_a_note(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with Store(run) as store:
        store.start_stage("round-1/eval/sbs(1,2)")
    found = read_run(run)
    assert "sbs(1,2)" not in found.last.methods
    assert found.notes == ["round-1/eval/sbs(1,2) is not finished and is left out"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    run, empty = make_run(tmp_path / "a"), tmp_path / "empty"
    with Store(empty) as store:
        store.set_meta("recipe", {"name": "t"})
    for folder, why in ((empty, "no round of this run is evaluated"), (tmp_path / "absent", "holds no run")):
        with pytest.raises(StoreError, match=why):
            compared([run, folder], tmp_path / "out")
    with pytest.raises(DataError, match="named twice"):
        compared([run, tmp_path / "." / "a"], tmp_path / "out")
    with pytest.raises(DataError, match="none of the runs"):
        compared([run], tmp_path / "out", baseline="b")
    assert not (tmp_path / "out").exists()


def test_equal_folder_names_are_told_apart(tmp_path: Path) -> None:
    document, _ = compared([make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run", "rounds=2")], tmp_path)
    assert [entry.name for entry in document.entries] == ["x/run", "y/run"]


def test_a_recipe_of_an_older_version_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "old")
    with Store(run) as store:
        recipe = store.meta("recipe")
        store.set_meta("recipe", recipe | {"gone": 1})
    assert read_run(run).rounds[1].methods["greedy"].accuracy == 3 / 8
    del recipe["engine"]
    with Store(run) as store:
        store.set_meta("recipe", recipe)
    assert read_run(run).identity == read_run(make_run(tmp_path / "new", "seed=9")).identity


def test_names_cannot_leave_their_place(tmp_path: Path) -> None:
    document, _ = compared([make_run(tmp_path / NASTY), make_run(tmp_path / "b", "rounds=2")], tmp_path / "out")

    class Page(HTMLParser):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.scripts: list[str] = []
            self.inside = False
            self.words = ""
            self.feed(text)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.inside = tag == "script"
            assert not any((value or "").startswith("http") for name, value in attrs if name in ("src", "href"))

        def handle_endtag(self, tag: str) -> None:
            self.inside = False

        def handle_data(self, data: str) -> None:
            if self.inside:
                self.scripts.append(data)
            else:
                self.words += data

    page = Page(render_comparison(document))
    assert NASTY in page.words and not any("<script>alert" in script for script in page.scripts)
    figures = [json.loads(script) for script in page.scripts if script.startswith('{"data"')]
    assert len(figures) == 3
    markdown = comparison_markdown(document)
    rows = [line for line in markdown.splitlines() if line.startswith("| x")]
    assert rows and all(line.replace("\\|", "").count("|") == 8 for line in rows)
    assert "<script>" not in markdown.replace("\\<", "")


def test_command_line(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", "rounds=2", skill=6)
    result = CliRunner().invoke(cli.app, ["compare", str(a), str(b), "--out", str(tmp_path / "out"), "--markdown"])
    assert result.exit_code == 0, result.output
    assert "| b | 1 | 1500 | 75.0" in result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["compare.html", "compare.json", PLOTLY]


def test_a_narrow_terminal_keeps_every_number_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    stream = io.StringIO()
    compare([run], tmp_path / "out", console=Console(file=stream, width=100))
    assert "…" not in stream.getvalue() and max(map(len, stream.getvalue().splitlines()[:20])) <= 100
