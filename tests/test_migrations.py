"""Runs of the schema before are read, and go on, as if they had been made by this version.

`golden/schema_1` holds databases that the version before made (`golden_runs.py`, at that version), and what was found
in them then.
"""

from __future__ import annotations

import json
import lzma
import shutil
import sqlite3
from pathlib import Path

import pytest

import golden_runs
from golden_runs import Script, found, play
from small_runs import treepref_command
from treepref.errors import StoreError
from treepref.keys import flatten, known_keys, methods_with
from treepref.loops.fork import fork
from treepref.recipes.reading import AS_RUN, dump_recipe, load_recipe
from treepref.recipes.yaml_text import dump_yaml
from treepref.runs.migrate import policy_name
from treepref.runs.schema import SCHEMA
from treepref.runs.store import Store
from treepref.runs.stored_recipe import stored_recipe

OLD = Path(__file__).parent / "golden" / "schema_1"
THEN = json.loads((OLD / "found.json").read_text())


def unpack(name: str, folder: Path) -> Path:
    """The folder of an old run, as far as its database goes."""
    folder.mkdir(parents=True)
    (folder / "run.db").write_bytes(lzma.decompress((OLD / f"{name}.db.xz").read_bytes()))
    return folder


def schema(run: Path) -> int:
    with sqlite3.connect(f"file:{run}/run.db?mode=ro", uri=True) as db:
        return json.loads(db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()[0])


@pytest.mark.parametrize("method", golden_runs.METHODS)
def test_an_old_run_is_read_without_being_touched(method: str, tmp_path: Path) -> None:
    run = unpack(method, tmp_path / "run")
    before = (run / "run.db").read_bytes()
    assert found(run) == THEN[method]
    assert (run / "run.db").read_bytes() == before


@pytest.mark.parametrize("method", golden_runs.METHODS)
def test_a_migrated_run_is_the_run_that_this_version_makes(method: str, tmp_path: Path) -> None:
    old, new = unpack(method, tmp_path / "old"), play(method, tmp_path)
    with Store(old) as migrated, Store(new, read_only=True) as made:
        assert migrated.digest() == made.digest(), "trees under the names of their policies, outcomes, pairs"
        assert [row.name for row in migrated.stages()] == [row.name for row in made.stages()]
    assert schema(old) == SCHEMA
    with Store(old, read_only=True) as again, Store(new, read_only=True) as made:
        assert again.digest() == made.digest()


def test_a_run_that_was_stopped_goes_on_from_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = unpack("stopped", tmp_path / "run")
    with sqlite3.connect(run / "run.db") as db:
        assert db.execute("SELECT COUNT(*) FROM journal WHERE stage = 'round-1/search'").fetchone()[0] > 20
    asked: list[int] = []
    monkeypatch.setattr(Script, "__call__", lambda self, *a, _real=Script.__call__: asked.append(1) or _real(self, *a))
    (run / "recipe.yaml").write_text("# written again by the run\n")
    with Store(run, read_only=True) as store:
        recipe = stored_recipe(store)
        assert recipe is not None
    (tmp_path / "as_run.yaml").write_text(dump_recipe(recipe))  # some of its keys have no effect
    monkeypatch.setitem(golden_runs.METHODS, "stopped", [str(tmp_path / "as_run.yaml")])
    assert found(play("stopped", tmp_path)) == THEN["stopped_whole"]
    resumed, asked[:] = len(asked), []
    (tmp_path / "whole").mkdir()
    play("stopped", tmp_path / "whole")
    assert resumed < len(asked) - 60, "what the journal had was not asked again"


def test_what_cannot_be_migrated_is_told_and_left(tmp_path: Path) -> None:
    run = unpack("svpo", tmp_path / "run")
    with sqlite3.connect(run / "run.db") as db:
        db.execute("UPDATE trees SET blob = x'00' WHERE rowid = 3")
    before = (run / "run.db").read_bytes()
    for read_only in (True, False):
        with pytest.raises(StoreError, match=r"schema 1.* is damaged.*another --out"):
            Store(run, read_only=read_only)
    assert schema(run) == 1 and len(before) == (run / "run.db").stat().st_size


def test_commands_read_an_old_run(tmp_path: Path) -> None:
    run = unpack("svpo", tmp_path / "run")
    copy = shutil.copytree(run, tmp_path / "other")
    done = treepref_command("digest", "run", cwd=tmp_path)
    assert done.returncode == 0 and schema(run) == 1
    assert treepref_command("compare", "run", str(copy), "--out", "both", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("method", golden_runs.METHODS)
def test_the_recipe_of_an_old_run_is_read(method: str, tmp_path: Path) -> None:
    run = unpack(method, tmp_path / "run")
    with sqlite3.connect(run / "run.db") as db:
        data = json.loads(db.execute("SELECT value FROM meta WHERE key = 'recipe'").fetchone()[0])
    (run / "recipe.yaml").write_text(AS_RUN + dump_yaml(data))
    with Store(run, read_only=True) as store:
        assert load_recipe(run / "recipe.yaml").recipe == stored_recipe(store)


def test_an_old_run_is_forked(tmp_path: Path) -> None:
    run = unpack("svpo", tmp_path / "run")
    with sqlite3.connect(run / "run.db") as db:
        data = json.loads(db.execute("SELECT value FROM meta WHERE key = 'recipe'").fetchone()[0])
    (run / "recipe.yaml").write_text(AS_RUN + dump_yaml(data))
    fork(run, tmp_path / "fork", ["train.objective=dpo"])
    recipe = load_recipe(tmp_path / "fork" / "recipe.yaml").recipe
    assert recipe.train.objective == "dpo" and not hasattr(recipe, "online")


@pytest.mark.parametrize(
    ("stage", "number", "method", "name"),
    [
        ("round-1/search", 0, "svpo", "round-0"),
        ("round-2/search", 1, "dpo_st", "round-1"),
        ("round-2/labels", -2, "dpo_st", "round-2-dpo"),
        ("round-2/search", 0, "mcts_dpo", "round-1"),
        ("round-2/search", 3, "mcts_dpo", "round-2/batch-3"),
        ("round-2/eval/greedy", 2, "mcts_dpo", "round-2"),
    ],
)
def test_policies_get_their_names(stage: str, number: int, method: str, name: str) -> None:
    assert policy_name(stage, number, method) == name


@pytest.mark.parametrize("method", golden_runs.METHODS)
def test_an_old_run_is_reported_as_before(method: str, tmp_path: Path) -> None:
    run = unpack(method, tmp_path / "run")
    done = treepref_command("report", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    now = json.loads((run / "results.json").read_text())
    then = json.loads(lzma.decompress((OLD / f"{method}.results.json.xz").read_bytes()))
    own, before = flatten(now.pop("recipe")), flatten(then.pop("recipe"))
    assert now.pop("best_round") in range(3), "a key of later versions"
    assert now == then
    added = own.keys() - before.keys()
    assert all(own[key] == known_keys()[key] for key in added), "keys of later versions stand at their default"
    kept = {key: value for key, value in own.items() if key not in added}
    assert all(before[key] == value for key, value in kept.items())
    assert not any(method in methods_with(key) for key in before.keys() - own.keys())
