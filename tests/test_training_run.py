"""A run step by step: the trajectory of `Learner.train`, exact resume, steps without data, references renewed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from test_training_learner import weights
from training_cases import random_examples, tiny_llama, tiny_value_head
from treepref.config import TrainConfig
from treepref.errors import DataError, ModelError, StoreError
from treepref.training import settings as settings_module
from treepref.training.attention import choose_attention, kinds_of
from treepref.training.examples import Example, attach_reference
from treepref.training.forward import model_scorer
from treepref.training.learner import Learner, LearnerRun
from treepref.training.objectives import Coefficients
from treepref.training.schedule import lr_factor, plan_steps
from treepref.training.settings import LearnerSettings
from treepref.types import PolicyId

SETTINGS = LearnerSettings(lr=1e-2, weight_decay=0.1, warmup_ratio=0.2)


def learner(**changes: Any) -> Learner:
    return Learner(tiny_llama(), tiny_value_head(), replace(SETTINGS, **changes))


def batches() -> list[list[Example]]:
    """What `train` makes of the examples in two epochs."""
    ordered = random_examples(4, 12)
    return [
        [ordered[i] for i in planned.members]
        for planned in plan_steps(ordered, 2, SETTINGS.seed, batch_trees=4, batch_tokens=None)
    ]


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in ("seconds", "epoch")}


def test_steps_are_those_of_train() -> None:
    log: list[dict[str, float]] = []
    whole, stepped = learner(), learner()
    whole.train(random_examples(4, 12), epochs=2, batch_trees=4, on_step=log.append)
    run = stepped.start(6, identity={})
    found = [run.step(batch, labels={"round": 3}) for batch in batches()]
    assert all(metrics.pop("round") == 3 for metrics in found)
    assert [timeless(m) for m in found] == [timeless(m) for m in log]
    assert torch.equal(weights(stepped), weights(whole))


def test_a_step_without_examples_moves_the_schedule_alone() -> None:
    subject = learner(objective="dpo")
    run = subject.start(6, identity={})
    run.step(batches()[0])
    before, moments = weights(subject).clone(), run.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    metrics = run.step([])
    assert torch.equal(weights(subject), before)
    assert torch.equal(run.optimizer.state_dict()["state"][0]["exp_avg"], moments)
    assert (run.steps, metrics["trees"], metrics["tokens"], "loss" in metrics) == (2, 0, 0, False)
    assert metrics["lr"] == SETTINGS.lr * lr_factor(1, 6, 0.2, "cosine")
    assert run.step(batches()[1])["lr"] == SETTINGS.lr * lr_factor(2, 6, 0.2, "cosine")
    assert not torch.equal(weights(subject), before)


def test_killed_anywhere_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    steps = batches()
    steps[3] = []  # a batch of problems whose trees gave no pair keeps its number

    def go(run: LearnerRun, until: int) -> None:
        while run.steps < until:
            run.step(steps[run.steps])

    straight = learner()
    go(straight.start(6, identity={}), 6)
    starts = []
    for until in (3, 5, 6):  # killed after steps 3 and 5: the checkpoints of steps 2 and 4 are what is left
        killed = learner()
        run = killed.start(6, identity={"of": "x"}, checkpoints=tmp_path, checkpoint_every=2)
        starts.append(run.steps)
        go(run, until)
    assert starts == [0, 2, 4]
    assert torch.equal(weights(killed), weights(straight))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]


def test_what_is_written_before_a_save_is_never_behind_the_checkpoint(tmp_path: Path) -> None:
    seen: list[int] = []
    written: list[tuple[int, int]] = []  # (steps reported so far, checkpoints on disk)
    run = learner().start(
        6,
        identity={},
        checkpoints=tmp_path,
        checkpoint_every=2,
        on_step=lambda metrics: seen.append(int(metrics["step"])),
        before_save=lambda: written.append((len(seen), sum(1 for _ in tmp_path.iterdir()))),
    )
    for batch in batches()[:3]:
        run.step(batch)
    run.stop()
    run.stop()
    assert written == [(2, 0), (3, 1)], "when one is due, and when the run is stopped, once"


def test_a_stopped_run_can_go_on_at_once(tmp_path: Path) -> None:
    run = learner().start(6, identity={}, checkpoints=tmp_path, checkpoint_every=100)
    run.step(batches()[0])
    run.stop()
    assert run.result.stopped
    again = learner().start(6, identity={}, checkpoints=tmp_path)
    assert (again.steps, again.result.stopped, again.result.tokens) == (1, False, run.result.tokens)


def test_another_run_is_refused(tmp_path: Path) -> None:
    run = learner().start(6, identity={"round": 1}, checkpoints=tmp_path)
    run.step(batches()[0])
    run.stop()
    with pytest.raises(StoreError, match="round: 1 → 2"):
        learner().start(6, identity={"round": 2}, checkpoints=tmp_path)
    with pytest.raises(StoreError, match="of a run of 6 steps, not 9"):
        learner().start(9, identity={"round": 1}, checkpoints=tmp_path)


def test_each_step_is_checked_against_the_policy_that_it_finds() -> None:
    subject = learner(objective="cdpo")
    run = subject.start(3, identity={})

    def referred(examples: Sequence[Example]) -> list[Example]:
        return attach_reference(examples, model_scorer(subject.packed.model), reference=PolicyId("p1"))[0]

    stale = referred(batches()[0])
    for batch in batches()[:2]:
        metrics = run.step(referred(batch), reference_is_policy=True)
        assert metrics["loss_preference"] == pytest.approx(math.log(2), rel=1e-9)
    before = weights(subject).clone()
    with pytest.raises(ModelError, match=r"must be 0\.693147"):
        run.step(stale, reference_is_policy=True)
    assert torch.equal(weights(subject), before)
    assert run.steps == 2


def test_bad_steps_are_refused() -> None:
    run = learner().start(1, identity={})
    batch = batches()[0]
    with pytest.raises(DataError, match="unique"):
        run.step([batch[0], batch[0]])
    run.step(batch)
    with pytest.raises(ValueError, match="all 1 steps"):
        run.step(batch)


# ---- attention


def test_the_kind_of_attention_is_a_table_and_no_race() -> None:
    """On a CPU blocks, where the model takes them; a name overrides; what the model does not take is refused."""
    model = tiny_llama()
    assert kinds_of(model) == ["blocks", "mask"]
    assert choose_attention(model, "auto") == "blocks" and choose_attention(model, "mask") == "mask"
    with pytest.raises(ModelError, match=r"train\.attention=flex: LlamaForCausalLM takes blocks or mask on this"):
        choose_attention(model, "flex")
    run = learner().start(1, identity={})
    assert run.result.attention == "blocks"


def test_a_resumed_run_goes_on_with_the_attention_that_it_was_begun_with(tmp_path: Path) -> None:
    steps = batches()
    begun = learner(attention="mask")
    run = begun.start(6, identity={}, checkpoints=tmp_path, checkpoint_every=1)
    run.step(steps[0])
    resumed = learner()  # auto, which would take blocks
    run = resumed.start(6, identity={}, checkpoints=tmp_path)
    assert (run.steps, run.result.attention, resumed.packed.attention) == (1, "mask", "mask")
    assert learner(attention="blocks").start(6, identity={}, checkpoints=tmp_path).result.attention == "blocks"


def test_an_attention_that_is_not_there_any_more_is_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"begun with attention 'flex'.*set train\.attention to blocks or mask"):
        choose_attention(tiny_llama(), "auto", "flex")


# ---- settings


def test_training_has_one_set_of_defaults() -> None:
    settings, section = LearnerSettings(), TrainConfig()
    assert LearnerSettings.of(section) == settings
    shared = {f.name for f in fields(LearnerSettings)} & set(TrainConfig.model_fields)
    constants = {f.name for f in fields(Coefficients)}
    assert shared >= {"lr", "objective", "clip", "row_tokens", "schedule"} and constants <= set(
        TrainConfig.model_fields
    )
    for source in ("settings.py", "objectives.py"):
        text = Path(settings_module.__file__).with_name(source).read_text()
        for name in shared | constants:
            for default in re.findall(rf"^    {name}: [^=\n]+ = (.+)$", text, re.M):
                assert default == f"DEFAULTS.{name}", f"{source} has a default of its own for {name}"
