"""Only what a run of ours made is ever renamed, replaced or removed, and it proves that by what is in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from small_runs import METHODS, contents, copy_model, run_command, treepref_command
from treepref.errors import StoreError
from treepref.loops.unchecked import failure_counts, note_failure
from treepref.models.folder import landing
from treepref.models.policy import load_policy, save_policy
from treepref.runs.landing import is_leftover, new_file, new_folder, recover
from treepref.runs.store import Store
from treepref.training.checkpoints import Checkpoint, latest_checkpoint, remove_checkpoints, save_checkpoint


def keep(folder: Path, text: str = "mine") -> Path:
    """A user's folder with a file in it."""
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with `model` and the run `run`."""
    place = tmp_path_factory.mktemp("finished")
    copy_model(place / "model")
    done = run_command("svpo", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    copy_model(tmp_path / "model")
    return tmp_path


# -- folders beside a model


@pytest.mark.parametrize("command", ["estimate", "run"])
def test_folders_beside_a_model_are_left_alone(place: Path, command: str) -> None:
    for name in ("model.old", "model.tmp", "model.tmp-123", "model.part", "model.fork"):
        keep(place / name)
    before = contents(place)
    if command == "run":
        assert run_command("svpo", "rounds=0", cwd=place).returncode == 0
    else:
        done = treepref_command("estimate", *METHODS["svpo"], cwd=place)
        assert done.returncode == 0, done.stderr
    assert {name: h for name, h in contents(place).items() if not name.startswith("run/")} == before


def test_a_missing_model_is_not_taken_from_a_folder_beside_it(place: Path) -> None:
    (place / "model").rename(place / "other.old")
    before = contents(place)
    done = treepref_command("estimate", *METHODS["svpo"], "model.path=./other", cwd=place)
    assert done.returncode == 2 and "there is no" in done.stderr
    assert contents(place) == before


def test_saving_a_policy_leaves_what_has_its_names(place: Path) -> None:
    policy = load_policy(place / "model", device="cpu")
    for _ in range(2):
        for name in ("new.old", "new.old-2", "new.tmp", "new.tmp-2", f"new.tmp-{os.getpid()}"):
            shutil.rmtree(place / name, ignore_errors=True)
            keep(place / name)
        save_policy(policy, place / "new")
    assert sorted(p.name for p in place.iterdir()) == sorted(
        ["model", "new", "new.old", "new.old-2", "new.tmp", "new.tmp-2", f"new.tmp-{os.getpid()}"]
    )
    assert (place / "new.old" / "thesis.txt").read_text() == "mine"


def test_a_policy_is_not_saved_over_a_users_folder(place: Path) -> None:
    policy = load_policy(place / "model", device="cpu")
    before = contents(place)
    with pytest.raises(StoreError, match="treepref did not put there"):
        save_policy(policy, place / "model")
    assert contents(place) == before
    save_policy(policy, place / "ours")
    (place / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds notes\.txt"):
        save_policy(policy, place / "ours")


def test_a_copy_of_what_a_save_left_is_the_users_own(place: Path) -> None:
    """The mark of a folder that may go holds the folder's name: under another name it means nothing."""
    with pytest.raises(KeyboardInterrupt), new_folder(place / "x") as part:
        shutil.copytree(part, place / "kept.old")
        shutil.copytree(part, place / "kept.tmp")
        raise KeyboardInterrupt
    with new_folder(place / "kept"):
        pass
    assert {"kept", "kept.old", "kept.tmp"} <= {p.name for p in place.iterdir()}


def killed_at(moment: int, folder: Path) -> bool:
    """A process that saves "new" into a model folder and is killed at its so-manieth step on disk; False: none left."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    seen = 0

    def counted(real):
        def call(*arguments, **keywords):
            nonlocal seen
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        return call

    for owner, name in ((Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (Path, "write_text"), (os, "unlink")):
        setattr(owner, name, counted(getattr(owner, name)))
    save(folder, "new")
    os._exit(0)


def save(folder: Path, text: str) -> None:
    with landing(folder) as part:
        (part / "config.json").write_text(text)


def test_a_kill_at_any_moment_of_a_save_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    folder, seen = tmp_path / "saved", []
    save(folder, "old")
    for moment in range(1, 40):
        killed = killed_at(moment, folder)
        recover(folder)
        seen.append((folder / "config.json").read_text())
        if not killed:
            break
        for bare in tmp_path.glob("saved.tmp*"):  # killed between mkdir and its mark: empty, and nobody's to remove
            if not is_leftover(bare):
                bare.rmdir()
        save(folder, "old")
    assert moment > 8 and set(seen) == {"old", "new"} and seen == sorted(seen, reverse=True)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


# -- a run's folder


@pytest.mark.parametrize("inside", ["scratch/thesis.txt", "run.db", "thesis.txt", "checkpoints/a/step-1/state.pt"])
def test_a_folder_that_is_no_run_is_refused_untouched(place: Path, inside: str) -> None:
    (place / "out" / inside).parent.mkdir(parents=True)
    (place / "out" / inside).write_text("mine")
    before = contents(place)
    for command in (["run", *METHODS["svpo"]], ["run", "quickstart", "model.path=nowhere"]):
        done = treepref_command(*command, "--out", "out", cwd=place)
        assert done.returncode == 2 and "no run" in done.stderr, done.stderr
        assert contents(place) == before


@pytest.mark.parametrize("stage", ["sft", "search", "pairs", "train", "eval", "report", "digest"])
def test_stage_commands_refuse_it_untouched(tmp_path: Path, stage: str) -> None:
    keep(tmp_path / "out" / "scratch")
    (tmp_path / "out" / "run.db").write_text("my own database")
    before = contents(tmp_path)
    assert treepref_command(stage, "out", cwd=tmp_path).returncode == 2
    assert contents(tmp_path) == before


def test_a_database_of_something_else_is_no_run(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "out").mkdir()
    with sqlite3.connect(tmp_path / "out" / "run.db") as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    before = contents(tmp_path)
    with pytest.raises(StoreError, match="no run of treepref"):
        Store(tmp_path / "out")
    assert contents(tmp_path) == before


def test_a_start_that_was_killed_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.lock").touch()
    Store(tmp_path / "a").close()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.lock").write_text("process 7 on here\n")
    (tmp_path / "b" / "recipe.yaml").write_text("name: x")
    Store(tmp_path / "b").close()


def early_run(place: Path) -> Path:
    """A run that was killed before SQLite put its tables into run.db, and whose lock somebody deleted."""
    place.mkdir()
    with Store(place / "living") as store:
        store.set_meta("mine", 1)
        (place / "run").mkdir()
        for name in ("run.db", "run.db-wal"):
            shutil.copy(place / "living" / name, place / "run" / name)
    assert b"CREATE TABLE stages" not in (place / "run" / "run.db").read_bytes()
    return place / "run"


def test_a_run_that_was_killed_early_needs_no_lock_to_be_known(tmp_path: Path) -> None:
    with Store(early_run(tmp_path / "a")) as store:
        assert store.meta("mine") == 1
    other = early_run(tmp_path / "b")
    log = (other / "run.db-wal").read_bytes()
    (other / "run.db-wal").write_bytes(log.replace(b"CREATE TABLE stages", b"CREATE TABLE staged"))
    before = contents(other)
    with pytest.raises(StoreError, match="no run of treepref"):
        Store(other)
    assert contents(other) == before
    (early_run(tmp_path / "c") / "run.db").write_text("my own database")
    with pytest.raises(StoreError, match="no run of treepref"):
        Store(tmp_path / "c" / "run")


def test_what_a_user_keeps_in_a_run_stays(tmp_path: Path) -> None:
    Store(tmp_path / "run").close()
    keep(tmp_path / "run" / "scratch" / "recipe")
    keep(tmp_path / "run" / "scratch" / "own")
    with Store(tmp_path / "run") as store:
        assert [p.name for p in store.scratch("recipe").iterdir() if not p.name.startswith(".")] == []
    Store(tmp_path / "run").close()
    assert (tmp_path / "run" / "scratch" / "recipe" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "run" / "scratch" / "own" / "thesis.txt").read_text() == "mine"


# -- what other commands write


def test_a_fork_touches_nothing_beside_it(finished: Path) -> None:
    keep(finished / "b.fork")
    keep(finished / "b.tmp")
    keep(finished / "c")
    done = treepref_command("fork", "run", "b", "train.lr=1e-5", "-q", cwd=finished)
    assert done.returncode == 0, done.stderr
    assert treepref_command("fork", "run", "c", "train.lr=1e-5", "-q", cwd=finished).returncode == 2
    for name in ("b.fork", "b.tmp", "c"):
        assert contents(finished / name).keys() == {"thesis.txt"}


def test_a_fork_keeps_what_was_said_of_its_own_stages_alone(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with Store(tmp_path / "run") as store:
        for stage, error in (
            ("round-0/eval/greedy", "mine"),
            ("round-1/eval/greedy", "others"),
            ("round-2/search", "mine"),
        ):
            note_failure(store, stage, "p1", error)
        store.event("round-0/eval", "error", "the disk was full")
        store.settle_errors()
        store.event("run", "error", "budget reached")
        store.event("problems", "warning", "line 3 skipped")
    done = treepref_command("fork", "run", "other", "train.lr=1e-5", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Store(tmp_path / "other", read_only=True) as store:
        said = [event.message for event in store.events()]
        assert failure_counts(store) == {"problem p1: mine": (1, 1)}
        assert "line 3 skipped" in said and "problem p1: mine" in said
        assert not any(word in message for message in said for word in ("others", "disk was full", "budget reached"))
        assert not any(event.level == "error" for event in store.events())


def test_an_export_replaces_an_export_alone(finished: Path) -> None:
    for name in ("pairs.jsonl", "pairs.jsonl.part"):
        (finished / name).write_text('{"mine": 1}\n')
    before = (finished / "pairs.jsonl").read_bytes()
    done = treepref_command("export", "run", "--out", "pairs.jsonl", cwd=finished)
    assert done.returncode == 2 and "give another --out" in done.stderr
    assert (finished / "pairs.jsonl").read_bytes() == before
    assert (finished / "pairs.jsonl.part").read_bytes() == before
    for _ in range(2):
        done = treepref_command("export", "run", "--out", "own.jsonl", cwd=finished)
        assert done.returncode == 0, done.stderr


def test_a_comparison_replaces_a_comparison_alone(finished: Path) -> None:
    for _ in range(2):
        done = treepref_command("compare", "run", "--out", "compared", cwd=finished)
        assert done.returncode == 0, done.stderr
    keep(finished / "theirs")
    for name, text in (("compare.json", '{"mine": 1}'), ("compare.html", "<p>mine</p>")):
        (finished / "theirs" / name).write_text(text)
        before = contents(finished / "theirs")
        done = treepref_command("compare", "run", "--out", "theirs", cwd=finished)
        assert done.returncode == 2 and "give another --out" in done.stderr
        assert contents(finished / "theirs") == before
        (finished / "theirs" / name).unlink()


def test_an_import_replaces_an_import_alone(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    keep(tmp_path / "out")
    before = contents(tmp_path)
    done = treepref_command("import-gguf", "m.gguf", "out", cwd=tmp_path)
    assert done.returncode == 2 and "treepref did not put there" in done.stderr
    assert contents(tmp_path) == before


def test_a_part_of_a_file_takes_a_free_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt.part").write_text("mine")
    with new_file(tmp_path / "a.txt") as part:
        part.write_text("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "new", "a.txt.part": "mine"}


# -- checkpoints


def checkpoint(steps: int) -> Checkpoint:
    return Checkpoint({"a": 1}, {"steps": steps, "total_steps": 9}, {"w": torch.zeros(2)}, {"state": {}})


def test_folders_of_other_trainers_among_the_checkpoints_stay(tmp_path: Path) -> None:
    for name in ("step-00000001", "step-00000001.part", "step-00000003.old", "other"):
        keep(tmp_path / name)
    keep(tmp_path / "step-2")
    (tmp_path / "step-2" / "state.pt").write_bytes(b"mine")
    before = contents(tmp_path)
    for steps in (3, 4, 5, 5):
        save_checkpoint(tmp_path, checkpoint(steps))
    assert latest_checkpoint(tmp_path, {"a": 1}, "cpu").progress["steps"] == 5
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("step-0000000")) == [
        "step-00000001", "step-00000001.part", "step-00000003.old", "step-00000004", "step-00000005",
    ]  # fmt: skip
    remove_checkpoints(tmp_path)
    assert contents(tmp_path) == before


def test_a_file_of_ours_that_a_user_changed_is_not_replaced(place: Path) -> None:
    policy = load_policy(place / "model", device="cpu")
    folder = save_policy(policy, place / "saved")
    save_policy(policy, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "mine"}))
    (place / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    before = contents(place)
    with pytest.raises(StoreError, match=r"holds tokenizer_config\.json, which was changed since"):
        save_policy(policy, folder)
    done = treepref_command("import-gguf", "m.gguf", "saved", cwd=place)
    assert done.returncode == 2 and "tokenizer_config.json, which was changed since" in done.stderr
    assert contents(place) == before
    note = json.loads((folder / "treepref.json").read_text())
    (folder / "treepref.json").write_text(json.dumps(note | {"files": list(note["files"])}))  # as older versions did
    save_policy(policy, folder)
    assert isinstance(json.loads((folder / "treepref.json").read_text())["files"], dict)


def test_the_note_in_a_saved_folder_lists_its_files(place: Path) -> None:
    folder = save_policy(load_policy(place / "model", device="cpu"), place / "saved")
    note = json.loads((folder / "treepref.json").read_text())
    assert {*note["files"], "treepref.json"} == {p.name for p in folder.iterdir()}
