"""What a run stands on is compared with what it was: a policy that is gone or changed is an error with a way out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from small_runs import METHODS, SMALL, WARM, Done, copy_model, run_command, treepref_command
from treepref.errors import ModelError
from treepref.loops import fit, learn
from treepref.loops.run import run
from treepref.loops.serving import Serving
from treepref.loops.session import Session
from treepref.recipes.reading import load_recipe
from treepref.runs import fingerprint as fingerprint_module
from treepref.runs.fingerprint import differences, fingerprint
from treepref.runs.stage import round_policy
from treepref.runs.store import Store
from treepref.training.learner import Learner


def place_with_run(place: Path, *more: str) -> Path:
    copy_model(place / "model")
    done = run_command("svpo", *more, cwd=place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a warm-up and a round, beside its model."""
    return place_with_run(tmp_path_factory.mktemp("warm"), *WARM)


@pytest.fixture
def place(warm: Path, tmp_path: Path) -> Path:
    shutil.copytree(warm, tmp_path, dirs_exist_ok=True)
    return tmp_path


def again(place: Path, *more: str) -> Done:
    return run_command("svpo", *WARM, *more, cwd=place)


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")


GONE = "is not there any more"
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "round-0 deleted": (lambda p: shutil.rmtree(p / "run/round-0"), GONE),
    "round-1 deleted": (lambda p: shutil.rmtree(p / "run/round-1"), GONE),
    "round-0 changed": (lambda p: change_weights(p / "run/round-0"), "changed: model.safetensors"),
    "round-1 changed": (lambda p: change_weights(p / "run/round-1"), "changed: model.safetensors"),
    "value head gone": (lambda p: (p / "run/round-1/value_head.safetensors").unlink(), "missing: value_head"),
    "tokenizer changed": (lambda p: change_tokenizer(p / "run/round-1"), "changed: tokenizer.json"),
}
BASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "changed": (lambda p: change_weights(p / "model"), "is not the one that this run was begun with"),
    "deleted": (lambda p: shutil.rmtree(p / "model"), GONE),
}


@pytest.mark.parametrize("case", CASES)
def test_a_policy_that_is_gone_or_changed_is_an_error_with_a_way_out(place: Path, case: str) -> None:
    act, said = CASES[case]
    act(place)
    for command in (lambda: again(place), lambda: again(place, "rounds=2")):
        done = command()
        assert done.returncode == 2 and said in done.stderr and "another --out" in done.stderr, (case, done)
    done = treepref_command("eval", "run", "--round", "1", "-q", cwd=place)
    assert done.returncode == 2 and said in done.stderr


def warnings(place: Path) -> list[str]:
    with Store(place / "run", read_only=True) as store:
        return [event.message for event in store.events() if event.stage == "run" and event.level == "warning"]


@pytest.mark.parametrize("case", BASES)
def test_a_base_model_that_nothing_loads_any_more_is_warned_of(place: Path, case: str) -> None:
    act, said = BASES[case]
    act(place)
    done = again(place, "rounds=2")
    assert done.returncode == 0, done.stderr
    (warning,) = warnings(place)
    assert said in warning and "Nothing will load it any more" in warning
    assert again(place, "rounds=2").returncode == 0 and warnings(place) == [warning]
    for command in (["export", "run"], ["report", "run"]):
        assert treepref_command(*command, cwd=place).returncode == 0


@pytest.mark.parametrize("case", BASES)
def test_a_base_model_that_is_still_to_be_loaded_is_not(place: Path, case: str) -> None:
    act, said = BASES[case]
    with Store(place / "run") as store, store.transaction():
        store._db.execute("UPDATE stages SET status = 'running' WHERE name = 'round-0/sft'")
        store._db.execute("DELETE FROM stages WHERE name LIKE 'round-1/%' OR name LIKE 'round-0/eval%'")
    act(place)
    done = again(place)
    assert done.returncode == 2 and said in done.stderr and "another --out" in done.stderr, done


@pytest.mark.parametrize("case", BASES)
def test_a_base_model_without_a_warm_up_is_policy_0(tmp_path: Path, case: str) -> None:
    place_with_run(tmp_path, "rounds=0")
    act, said = BASES[case]
    act(tmp_path)
    done = run_command("svpo", "rounds=0", cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "another --out" in done.stderr, done


def test_dpo_st_needs_the_base_model_while_rounds_are_left(tmp_path: Path) -> None:
    copy_model(tmp_path / "model")
    assert run_command("dpo_st", cwd=tmp_path).returncode == 0
    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "run" / "round-1-dpo")
    assert run_command("dpo_st", cwd=tmp_path).returncode == 0
    assert len(warnings(tmp_path)) == 2
    (tmp_path / "run" / "round-1").rename(tmp_path / "kept")
    done = run_command("dpo_st", cwd=tmp_path)
    assert done.returncode == 2 and "round-1/train made, is not there" in done.stderr
    (tmp_path / "kept").rename(tmp_path / "run" / "round-1")
    done = run_command("dpo_st", "rounds=2", cwd=tmp_path)
    assert done.returncode == 2 and "the model model" in done.stderr and GONE in done.stderr


def test_a_round_that_another_has_followed_is_warned_of(place: Path) -> None:
    assert again(place, "rounds=2").returncode == 0
    change_weights(place / "run" / "round-1")
    assert again(place, "rounds=3").returncode == 0
    (warning,) = warnings(place)
    assert "round-1 is not what round-1/train made" in warning and "Nothing will load it any more" in warning
    done = treepref_command("fork", "run", "other", "-q", cwd=place)
    assert done.returncode == 0, done.stderr
    change_weights(place / "run" / "round-3")
    assert again(place, "rounds=3").returncode == 2


def test_report_and_export_need_a_tokenizer_alone(place: Path) -> None:
    for name in ("run/round-0", "run/round-1", "model"):
        (place / name / "model.safetensors").unlink()
    for command in (["export", "run"], ["report", "run"]):
        done = treepref_command(*command, cwd=place)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(place / "run" / "round-0")
    shutil.copytree(place / "run" / "round-1", place / "run" / "round-1.tmp")
    change_tokenizer(place / "run" / "round-1.tmp")
    for command in (["export", "run"], ["report", "run"]):
        assert treepref_command(*command, cwd=place).returncode == 0
    change_tokenizer(place / "run" / "round-1")
    for command in (["export", "run"], ["report", "run"]):
        done = treepref_command(*command, cwd=place)
        assert done.returncode == 2 and "changed: tokenizer.json" in done.stderr, command


def test_an_export_takes_no_folder_that_a_kill_left_behind(place: Path) -> None:
    shutil.copytree(place / "run" / "round-1", place / "run" / "round-1.tmp")
    shutil.rmtree(place / "run" / "round-0")
    (place / "run" / "round-1.tmp" / "tokenizer.json").write_text("{}")
    (place / "run" / "round-1").rename(place / "run" / "round-1.old")
    done = treepref_command("export", "run", cwd=place)
    assert done.returncode == 0, "the base model's serves"


def test_what_stands_beside_the_weights_may_change(place: Path) -> None:
    (place / "model" / "README.md").write_text("notes")
    (place / "run" / "round-1" / "notes.txt").write_text("notes")
    assert again(place).returncode == 0


def test_a_run_without_fingerprints_goes_on_and_says_so(place: Path) -> None:
    """As the version before left it."""
    with Store(place / "run") as store, store.transaction():
        store._db.execute("DELETE FROM meta WHERE key LIKE 'policy/%'")
    assert again(place).returncode == 0
    with Store(place / "run", read_only=True) as store:
        said = [event.message for event in store.events() if "fingerprint was taken now" in event.message]
    assert len(said) == 3 and all(event for event in said)
    change_weights(place / "run" / "round-1")
    assert again(place).returncode == 2


def test_a_folder_that_landed_without_its_row_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the folder and the row: the folder counts as not there, and is replaced by the same."""
    copy_model(tmp_path / "model")
    recipe, *overrides = METHODS["svpo"]
    loaded = load_recipe(recipe, [*overrides, *WARM, f"model.path={tmp_path / 'model'}"])
    real = Serving.keep

    def killed(serving: Serving, policy) -> dict[str, str]:
        real(serving, policy)
        raise KeyboardInterrupt

    with Session(tmp_path / "run", loaded) as session, monkeypatch.context() as patch:
        patch.setattr(Serving, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            learn.warm_up(session)
    first = fingerprint(tmp_path / "run" / "round-0")
    assert first
    with Session(tmp_path / "run", loaded) as session:
        with pytest.raises(Exception, match="round-0/sft is not done"):
            session.serving.policy(round_policy(0))
        learn.warm_up(session)
        assert session.store.stage_done("round-0/sft")
        assert session.serving.policy(round_policy(0)).id == round_policy(0)
    assert fingerprint(tmp_path / "run" / "round-0") == first


def test_a_model_may_be_mended_until_something_was_computed(tmp_path: Path) -> None:
    copy_model(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert "has no tokenizer" in run_command("svpo", "rounds=0", cwd=tmp_path).stderr
    (tmp_path / "tokenizer.json").rename(tmp_path / "model" / "tokenizer.json")
    assert run_command("svpo", "rounds=0", cwd=tmp_path).returncode == 0


def test_a_fork_knows_what_it_was_given(place: Path) -> None:
    assert treepref_command("fork", "run", "other", "train.lr=1e-5", "-q", cwd=place).returncode == 0
    with Store(place / "other", read_only=True) as store:
        assert store.meta("policy/round-0") and store.meta("policy/base") and store.meta("policy/round-1")
    change_weights(place / "other" / "round-0")
    assert treepref_command("eval", "other", "--round", "1", cwd=place).returncode == 2


def test_an_export_uses_the_runs_own_tokenizer(place: Path) -> None:
    change_tokenizer(place / "run" / "round-0")
    done = treepref_command("export", "run", cwd=place)
    assert done.returncode == 2 and "changed: tokenizer.json" in done.stderr


# -- the hashes


def test_large_files_are_sampled_and_small_ones_hashed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint_module, "WHOLE", 64 * 1024)
    data = bytearray(bytes(range(256)) * 4096)  # 1 MB
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("not read")
    whole = fingerprint(tmp_path)
    assert whole.keys() == {"model.safetensors", "config.json"}
    for at in (0, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        (tmp_path / "model.safetensors").write_bytes(changed)
        assert differences(whole, fingerprint(tmp_path)) == "changed: model.safetensors"
    (tmp_path / "model.safetensors").write_bytes(bytes((b + 1) % 256 for b in data))
    assert differences(whole, fingerprint(tmp_path)) == "changed: model.safetensors"
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").unlink()
    (tmp_path / "merges.txt").write_text("")
    assert differences(whole, fingerprint(tmp_path)) == "missing: config.json; new: merges.txt"
    assert fingerprint(tmp_path / "nowhere") == {}


def test_of_a_large_model_a_bounded_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Counts:
        def update(self, data: bytes) -> None:
            read.append(len(data))

        def hexdigest(self) -> str:
            return "counted"

    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(20 * 2**30)  # sparse
    monkeypatch.setattr(fingerprint_module.hashlib, "sha256", Counts)
    fingerprint(tmp_path)
    assert 0 < sum(read) <= fingerprint_module.WHOLE


# -- weights that are not finite


def test_weights_that_training_blew_up_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BlowsUp(Learner):
        def __init__(self, model: torch.nn.Module, *args: Any, **settings: Any) -> None:
            super().__init__(model, *args, **settings)
            self.blown_up = next(model.parameters())

        def train(self, *args: Any, **settings: Any) -> Any:
            result = super().train(*args, **settings)
            self.blown_up.data.view(-1)[0] = float("inf")
            return result

    copy_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    name, *overrides = METHODS["svpo"]
    recipe = load_recipe(name, overrides)
    with monkeypatch.context() as patched:
        patched.setattr(fit, "Learner", BlowsUp)
        with pytest.raises(ModelError, match=r"not finite.*not saved"):
            run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "round-1").exists()
    with Store(tmp_path / "run", read_only=True) as store:
        assert not store.stage_done("round-1/train")
    run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "round-1").is_dir()


def test_a_learning_rate_that_blows_weights_up_is_refused_with_its_line(tmp_path: Path) -> None:
    copy_model(tmp_path / "model")
    done = run_command("svpo", "train.lr=1e38", cwd=tmp_path)
    assert done.returncode == 2 and "train.lr: must be less than or equal to 1" in done.stderr


def test_the_learner_saves_no_checkpoint_of_them(tmp_path: Path) -> None:
    from treepref.training.checkpoints import Checkpoint, save_checkpoint

    state = Checkpoint({}, {"steps": 3}, {"w": torch.tensor([1.0, float("inf")])}, {})
    with pytest.raises(ModelError, match="not finite"):
        save_checkpoint(tmp_path, state)
    assert list(tmp_path.iterdir()) == [] and SMALL
