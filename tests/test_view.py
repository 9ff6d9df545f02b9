"""A run is read without its lock: while another process goes on with it, and without leaving anything behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from golden_runs import play
from small_runs import contents, copy_model, run_command, treepref_command
from treepref.errors import StoreError
from treepref.loops.searches import read_searches
from treepref.loops.text import find_tokenizer
from treepref.runs import codec
from treepref.runs.landing import fresh_folder
from treepref.runs.run_folder import report_scratch
from treepref.runs.store import Store
from treepref.runs.view import open_view

HOLDER = """
import sys
from treepref.runs.store import Store
with Store(sys.argv[1]) as store:
    with store.transaction():
        store.event("run", "info", "half written")  # seen by nobody yet
        print("held", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run `run` on the model `model`."""
    folder = tmp_path_factory.mktemp("view")
    copy_model(folder / "model")
    assert run_command("svpo", cwd=folder).returncode == 0
    return folder


@pytest.fixture
def held(runs: Path) -> Iterator[Path]:
    """The run while another process holds its lock, in the middle of a transaction."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(runs / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield runs
        process.communicate("go\n")
        assert process.returncode == 0


def test_a_run_in_use_is_reported_compared_exported_and_hashed(held: Path) -> None:
    with pytest.raises(StoreError, match="in use by"):
        Store(held / "run")
    lock = (held / "run" / "run.lock").read_bytes()
    before = json.loads((held / "run" / "results.json").read_text())
    (held / "run" / "results.json").unlink()
    for command in (["report", "run"], ["compare", "run", "--out", "both"], ["export", "run"], ["digest", "run"]):
        done = treepref_command(*command, cwd=held)
        assert done.returncode == 0, (command, done.stderr)
    assert json.loads((held / "run" / "results.json").read_text()) == before
    assert (held / "run" / "run.lock").read_bytes() == lock
    assert not list((held / "run" / "scratch").iterdir())
    assert "half written" not in (held / "run" / "report.html").read_text()


def test_reading_changes_no_file(runs: Path) -> None:
    before = contents(runs / "run")
    assert treepref_command("digest", "run", cwd=runs).returncode == 0
    assert treepref_command("compare", "run", "--out", "other", cwd=runs).returncode == 0
    assert treepref_command("export", "run", "--out", "pairs.jsonl", cwd=runs).returncode == 0
    after = {name: value for name, value in contents(runs / "run").items() if not name.endswith(("-wal", "-shm"))}
    assert after == {name: value for name, value in before.items() if not name.endswith(("-wal", "-shm"))}


def test_no_tree_is_decoded_twice_for_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = play("mcts_dpo", tmp_path)  # with self-evaluation, whose quality is measured on every tree
    counted: Counter[bytes] = Counter()
    real = codec.unpack_tree

    def unpack(blob: bytes):
        counted[blob] += 1
        return real(blob)

    monkeypatch.setattr(codec, "unpack_tree", unpack)
    assert treepref_command("report", "run", cwd=tmp_path).returncode == 0
    with Store(run, read_only=True) as store:
        assert len(counted) == sum(store.count_trees(f"round-{k}/search") for k in (1, 2)) == counted.total()


def test_a_report_that_was_killed_leaves_nothing_for_good_and_one_that_lives_is_left_alone(runs: Path) -> None:
    run = runs / "run"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = fresh_folder(run / "scratch", f"report-{dead.stdout.strip()}")
    living = fresh_folder(run / "scratch", f"report-{os.getppid()}")
    with Store(run):
        assert not left.exists() and living.exists()
    with report_scratch(run) as scratch:
        assert scratch != living and scratch.is_dir()
    assert not scratch.exists() and living.exists()


def test_a_folder_that_holds_no_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in ("report", "digest", "export"):
        done = treepref_command(command, "empty", cwd=tmp_path)
        assert done.returncode == 2 and "holds no run" in done.stderr
    assert not list((tmp_path / "empty").iterdir())


def test_parts_are_made_when_they_are_wanted(runs: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no text was asked for")

    with open_view(runs / "run", refuse) as view:
        assert view.recipe.method == "svpo" and view.task.delimiter and next(view.problems("eval"))
    with open_view(runs / "run", find_tokenizer) as view:
        (search,) = read_searches(view)
        assert str(search.stage) == "round-1/search" and len(search.drawn) == min(10, len(search.rows))
