"""Damaged data in a run, settings no machine can take, templates that fail: a sentence for people, no traceback."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch

from small_runs import METHODS, copy_model, run_command, treepref_command
from treepref.errors import ModelError, RecipeError, StoreError
from treepref.models.chat import encode_prompt
from treepref.models.policy import load_policy, load_tokenizer
from treepref.runs.run_folder import sqlite_errors
from treepref.runs.store import Store
from treepref.training.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint, told_if_damaged
from treepref.training.learner import Learner
from treepref.training.settings import LearnerSettings
from treepref.types import Completion, Cost, JournalEntry


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    copy_model(place / "model")
    assert run_command("svpo", cwd=place).returncode == 0
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


BROKEN = {
    "meta": "UPDATE meta SET value = '{broken' WHERE key = 'recipe'",
    "recipe of another kind": "UPDATE meta SET value = '[1]' WHERE key = 'recipe'",
    "recipe with a strange key": 'UPDATE meta SET value = \'{"name": "x", "colour": 1}\' WHERE key = \'recipe\'',
    "recipe whose method is no text": 'UPDATE meta SET value = \'{"name": "x", "method": []}\' WHERE key = \'recipe\'',
    "recipe whose seed is no number": 'UPDATE meta SET value = \'{"name": "x", "seed": []}\' WHERE key = \'recipe\'',
    "problems that are no text": "UPDATE problems SET row = CAST(x'ff' AS TEXT)",
    "schema": "UPDATE meta SET value = 'x' WHERE key = 'schema'",
    "problems": "UPDATE problems SET row = '[1, 2'",
    "problems of another shape": "UPDATE problems SET row = '[1]'",
    "stages": "UPDATE stages SET info = 'x'",
    "costs": "UPDATE costs SET row = '{\"euros\": 1}'",
    "pairs": "UPDATE pairs SET row = '{}'",
    "trees": "UPDATE trees SET blob = x'00'",
    "outcomes": "UPDATE outcomes SET row = 'x'",
    "outcomes of another shape": "UPDATE outcomes SET row = '{\"colour\": 1}'",
    "outcomes without an answer": "UPDATE outcomes SET row = json_remove(row, '$.correct')",
    "summaries": "UPDATE meta SET value = '[]' WHERE key LIKE 'summary/%'",
    "summaries of another shape": "UPDATE meta SET value = '{\"round\": 1, \"eval\": []}' WHERE key LIKE 'summary/%'",
    "fingerprints": "UPDATE meta SET value = '[]' WHERE key LIKE 'policy/%'",
}


@pytest.mark.parametrize(
    "value", ['{"files": []}', '{"files": {"a": 1}}', '{"commit": 1}', '{"files": {}, "more": 1}', "{}"]
)
def test_a_damaged_fingerprint_is_told(place: Path, value: str) -> None:
    with Store(place / "run") as store, store.transaction():
        store._db.execute("UPDATE meta SET value = ? WHERE key = 'policy/base'", (value,))
    done = treepref_command("eval", "run", "--round", "1", "-q", cwd=place)
    assert done.returncode == 2 and "the fingerprint of base is damaged" in done.stderr


@pytest.mark.parametrize("command", [["report", "run"], ["compare", "run"]])
def test_an_outcome_that_lacks_a_part_is_told(place: Path, command: list[str]) -> None:
    with Store(place / "run") as store, store.transaction():
        store._db.execute(BROKEN["outcomes without an answer"])
    done = treepref_command(*command, cwd=place)
    assert done.returncode == 2 and "what round-0/eval/greedy found is damaged" in done.stderr


@pytest.mark.parametrize("case", ["summaries", "summaries of another shape"])
def test_a_damaged_summary_is_told(place: Path, case: str) -> None:
    with Store(place / "run") as store, store.transaction():
        store._db.execute(BROKEN[case])
    done = treepref_command("report", "run", cwd=place)
    assert done.returncode == 2 and "the summary of round 0 is damaged" in done.stderr


def test_a_fork_of_a_damaged_database_is_told(place: Path) -> None:
    with Store(place / "run") as store:
        ((root,),) = store._all("SELECT rootpage FROM sqlite_master WHERE name = 'trees'")
        ((size,),) = store._all("PRAGMA page_size")
    with (place / "run" / "run.db").open("r+b") as file:  # a page that is read by the copy alone
        file.seek((root - 1) * size)
        file.write(b"\xff" * 64)
    done = treepref_command("fork", "run", "other", "-q", cwd=place)
    assert done.returncode == 2 and "run.db is not a sound treepref database" in done.stderr
    assert not (place / "other").exists()


DEEP = "[" * 100_000


def test_files_of_others_that_are_nested_deeply_are_refused(place: Path) -> None:
    (place / "pairs.jsonl").write_text(DEEP)
    (place / "compared").mkdir()
    (place / "compared" / "compare.json").write_text(DEEP)
    for command in (["export", "run", "--out", "pairs.jsonl"], ["compare", "run", "--out", "compared"]):
        done = treepref_command(*command, cwd=place)
        assert done.returncode == 2 and "give another --out" in done.stderr
    (place / "imported").mkdir()
    (place / "imported" / "treepref.json").write_text(DEEP)
    (place / "imported" / "thesis.txt").write_text("mine")
    (place / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    done = treepref_command("import-gguf", "m.gguf", "imported", cwd=place)
    assert done.returncode == 2 and "treepref did not put there" in done.stderr


def test_an_export_does_not_read_a_line_without_an_end(place: Path) -> None:
    with (place / "disk.img").open("wb") as file:
        file.truncate(200 * 2**30)  # sparse
    done = treepref_command("export", "run", "--out", "disk.img", cwd=place)
    assert done.returncode == 2 and "give another --out" in done.stderr


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_row_is_told(place: Path, case: str) -> None:
    with Store(place / "run") as store, store.transaction():
        assert store._db.execute(BROKEN[case]).rowcount > 0
        store._db.execute(
            "UPDATE stages SET status = 'running' WHERE name LIKE 'round-1/%' AND name != 'round-1/search'"
        )
    said = []
    recipe, *overrides = METHODS["svpo"]
    for command in (
        ["export", "run"], ["compare", "run"], ["report", "run"], ["digest", "run"], ["fork", "run", "other", "-q"],
        ["run", recipe, *overrides, "--out", "run", "-q"], ["train", "run", "-q"], ["eval", "run", "-q"],
    ):  # fmt: skip
        done = treepref_command(*command, cwd=place)  # an error of another kind than ours would be raised here
        said.append(done.stderr)
    assert any("run.db" in text and "another --out" in text for text in said), said


@pytest.mark.parametrize("table", ["costs", "events", "outcomes", "pairs", "problems", "stages", "trees"])
def test_a_missing_table_is_told(place: Path, table: str) -> None:
    with Store(place / "run") as store, store.transaction():
        store._db.execute(f"DROP TABLE {table}")
    said = [treepref_command(command, "run", cwd=place).stderr for command in ("report", "digest", "export")]
    told = f"no such table: {table}): restore run.db from a copy"
    assert any(told in text for text in said), said


def test_a_log_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """What SQLite says of a log in a folder that may not be written (which keeps no administrator out)."""
    with pytest.raises(StoreError, match="copy the whole folder"), sqlite_errors(tmp_path):
        raise sqlite3.OperationalError("unable to open database file")


@pytest.mark.parametrize("name", ["results.json", "report.html"])
def test_a_folder_in_the_place_of_a_result_is_named(place: Path, name: str) -> None:
    (place / "run" / name).unlink()
    (place / "run" / name).mkdir()
    done = treepref_command("report", "run", cwd=place)
    assert done.returncode == 2 and f"run/{name}: " in done.stderr and "scratch" not in done.stderr, done.stderr


def test_a_damaged_expansion_is_told(tmp_path: Path) -> None:
    with Store(tmp_path / "run") as store:
        journal = store.journal("round-1/search", 0)
        journal.record([JournalEntry("t", "", "asked", (Completion((1,), (-1.0,), "eos"),), (None,), None)], Cost())
        for blob in (b"", b"TPB1", bytes(40)):
            with store.transaction():
                store._db.execute("UPDATE journal SET blob = ?", (blob,))
            with pytest.raises(StoreError, match=r"the expansion .* of the tree t of round-1/search is damaged"):
                journal.load("t")


# -- checkpoints


def tiny_learner() -> Learner:
    policy = load_policy("builtin:tiny-untrained", device="cpu")
    return Learner(policy.model, policy.value_head, LearnerSettings())


@pytest.mark.parametrize("lost", ["identity", "progress", "weights", "optimizer", "random", "all", "file"])
def test_a_damaged_checkpoint_is_told(tmp_path: Path, lost: str) -> None:
    good = Checkpoint({"a": 1}, {"steps": 2, "total_steps": 9}, {"w": torch.zeros(2)}, {"state": {}})
    file = save_checkpoint(tmp_path, good) / "state.pt"
    state = torch.load(file, weights_only=True)
    if lost == "file":
        file.write_bytes(file.read_bytes()[:100])
    else:
        torch.save([] if lost == "all" else {k: v for k, v in state.items() if k != lost}, file)
    with pytest.raises(StoreError, match=r"no sound checkpoint .*remove it") as caught:
        latest_checkpoint(tmp_path, {"a": 1}, "cpu")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path: Path) -> None:
    learner = tiny_learner()
    run = learner.start(3, identity={}, checkpoints=tmp_path, checkpoint_every=1)
    run.stop()
    (file,) = tmp_path.glob("*/state.pt")
    state = torch.load(file, weights_only=True)
    torch.save(state | {"weights": {}}, file)
    with pytest.raises(StoreError, match=f"{re.escape(str(file.parent))} holds no sound checkpoint"):
        tiny_learner().start(3, identity={}, checkpoints=tmp_path, checkpoint_every=1)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("no memory"), StoreError("told")])
def test_full_memory_and_what_is_told_already_are_no_damage(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, told_if_damaged(tmp_path):
        raise error
    assert caught.value is error
    if not isinstance(error, torch.OutOfMemoryError):  # the store knows no torch
        with Store(tmp_path / "run") as store, pytest.raises(type(error)) as caught, store.sound("it"):
            raise error
        assert caught.value is error


# -- a run of an older version


def test_a_run_whose_answers_an_older_reader_read_says_so_once(place: Path) -> None:
    def said() -> list[str]:
        with Store(place / "run", read_only=True) as store:
            return [event.message for event in store.events() if "older reader" in event.message]

    with Store(place / "run", read_only=True) as store:
        assert store.meta("reader") == 2
    assert run_command("svpo", cwd=place).returncode == 0 and said() == []
    with Store(place / "run") as store, store.transaction():
        store._db.execute("DELETE FROM meta WHERE key = 'reader'")
    assert treepref_command("report", "run", cwd=place).returncode == 0 and said() == []
    for rounds in (1, 2):
        assert run_command("svpo", f"rounds={rounds}", cwd=place).returncode == 0
    (message,) = said()
    assert "round-0/eval" in message and "round-1/search" in message and "not comparable" in message


# -- settings


@pytest.mark.parametrize(
    "override", ["engine.threads=3000000000", "engine.threads=1000000", "model.lora={rank: 100000000000}"]
)
def test_settings_beyond_any_machine_are_told(tmp_path: Path, override: str) -> None:
    copy_model(tmp_path / "model")
    done = run_command("svpo", override, cwd=tmp_path)
    assert done.returncode == 2 and override.partition("=")[0] in done.stderr, done.stderr


@pytest.mark.parametrize("path", ["/", ".", "..", "//"])
@pytest.mark.parametrize("command", ["run", "estimate"])
def test_folders_without_a_name_are_no_models(tmp_path: Path, path: str, command: str) -> None:
    more = ["-q", "--out", "run"] if command == "run" else []
    done = treepref_command(command, *METHODS["svpo"], f"model.path={path}", *more, cwd=tmp_path)
    assert done.returncode == 2 and path in done.stderr, done.stderr


@pytest.mark.parametrize("path", ["~nosuchuser/x", "x" * 300, "./" + "x" * 300])
@pytest.mark.parametrize("command", ["run", "estimate"])
def test_names_that_no_folder_can_have_are_no_models(tmp_path: Path, path: str, command: str) -> None:
    more = ["-q", "--out", "run"] if command == "run" else []
    done = treepref_command(command, *METHODS["svpo"], f"model.path={path}", *more, cwd=tmp_path)
    assert done.returncode == 2 and path in done.stderr and "neither a folder nor a hub id" in done.stderr, done.stderr


def test_the_root_is_no_place_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    assert run_command("svpo", cwd=tmp_path, out="/").returncode == 2
    assert treepref_command("import-gguf", "m.gguf", "/", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("name", ["objective", "schedule", "attention"])
def test_names_that_stand_for_nothing_are_told(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} 'mine': choose one of"):
        LearnerSettings(**{name: "mine"})


# -- chat templates

TEMPLATES = {
    "raises": "{{ raise_exception('system message first') }}",
    "does not parse": "{% for m in messages %}{{ m.content }",
    "knows no such filter": "{{ messages | frobnicate }}",
    "wants what is not there": "{{ messages[7].content.strip() }}",
    "is unsafe": "{{ ().__class__.__base__.__subclasses__() }}",
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_chat_template_that_fails_is_told(case: str) -> None:
    tokenizer = load_tokenizer("builtin:tiny-base")
    tokenizer.chat_template = TEMPLATES[case]
    with pytest.raises(ModelError, match=r"chat template cannot write a user's message \(.+\): mend"):
        encode_prompt(tokenizer, "1 + 1", chat=True)


def test_a_chat_template_that_fails_ends_a_run_with_a_sentence(tmp_path: Path) -> None:
    folder = copy_model(tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATES["raises"]}))
    done = run_command("svpo", "task.chat=true", cwd=tmp_path)
    assert done.returncode == 2 and "system message first" in done.stderr


# -- a model of the hub


def test_a_hub_model_is_pinned_to_the_commit_that_the_run_began_with(tmp_path: Path, monkeypatch) -> None:
    """The cache as the hub's client leaves it: `refs/main` moves on between two lives, the run does not."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    commits = ["a" * 40, "b" * 40]
    for commit in commits:
        copy_model(repository / "snapshots" / commit)
    config = json.loads((repository / "snapshots" / commits[1] / "config.json").read_text())
    (repository / "snapshots" / commits[1] / "config.json").write_text(json.dumps(config | {"architectures": ["New"]}))
    (repository / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    (repository / "refs" / "main").write_text(commits[0])
    try:
        load_policy("someone/tiny", device="cpu")
    except ModelError as error:
        pytest.skip(f"this version of the hub's client has its cache elsewhere: {error}")
    done = run_command("svpo", "model.path=someone/tiny", "rounds=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (repository / "refs" / "main").write_text(commits[1])
    assert load_policy("someone/tiny", device="cpu").commit == commits[1]
    with Store(tmp_path / "run", read_only=True) as store:
        assert store.meta("policy/base") == {"commit": commits[0]}
    seen = []
    real = load_policy
    monkeypatch.setattr(
        "treepref.loops.serving.load_policy", lambda *a, **k: seen.append(real(*a, **k).commit) or real(*a, **k)
    )
    done = run_command("svpo", "model.path=someone/tiny", "rounds=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(seen) == {commits[0]}
