"""Small changes add up in float32, whatever precision the model is kept in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from training_cases import random_examples, tiny_llama
from treepref.models.value_head import ValueHead
from treepref.training.learner import Learner
from treepref.training.optimizer import FloatAdamW
from treepref.training.settings import LearnerSettings


def stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_changes_below_the_weights_precision_add_up(dtype: torch.dtype) -> None:
    fine, plain, ours = (nn.Parameter(torch.ones(4, dtype=d)) for d in (torch.float32, dtype, dtype))
    # A constant gradient moves a weight by the learning rate at each step: 1 - 20 · 1e-4.
    stepped(torch.optim.AdamW([fine], lr=1e-4, weight_decay=0.0), fine, 20)
    stepped(torch.optim.AdamW([plain], lr=1e-4, weight_decay=0.0), plain, 20)
    stepped(FloatAdamW([{"params": [ours]}], lr=1e-4, weight_decay=0.0), ours, 20)
    assert fine[0].item() == pytest.approx(0.998, abs=1e-6)
    assert torch.equal(plain, torch.ones_like(plain))  # what is beaten here: each step is rounded away
    assert ours.dtype is dtype and torch.equal(ours, fine.to(dtype)) and ours[0] < 1


def test_float32_weights_are_learned_as_by_adamw_and_nothing_is_copied() -> None:
    one, two = (nn.Parameter(torch.linspace(-1, 1, 8)) for _ in range(2))
    ours = FloatAdamW([{"params": [two], "weight_decay": 0.1}], lr=1e-2)
    stepped(torch.optim.AdamW([{"params": [one], "weight_decay": 0.1}], lr=1e-2), one, 5)
    stepped(ours, two, 5)
    assert torch.equal(one, two) and not ours.state_dict()["copies"] and ours.param_groups[0]["params"][0] is two


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="no closure"):
        FloatAdamW([{"params": [nn.Parameter(torch.ones(1))]}], lr=1.0).step(lambda: 0.0)


def learner(dtype: torch.dtype) -> Learner:
    """From the same weights, whatever the precision."""
    model = tiny_llama().to(torch.bfloat16).to(dtype)
    return Learner(model, ValueHead(16), LearnerSettings(lr=1e-4, schedule="constant"))


def test_a_model_in_bfloat16_goes_where_one_in_float32_goes() -> None:
    start, coarse, fine = (learner(d) for d in (torch.float32, torch.bfloat16, torch.float32))
    for one in (coarse, fine):
        one.train(random_examples(3, 4), batch_trees=2, epochs=30)

    def distance(one: Learner, two: Learner) -> float:
        pairs = [(one.parameters[name].detach().float(), p.detach().float()) for name, p in two.parameters.items()]
        return sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5

    assert distance(coarse, fine) < 0.5 * distance(start, fine)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_run_in_bfloat16_is_the_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    examples = random_examples(5, 6)
    whole = learner(torch.bfloat16)
    whole.train(examples, batch_trees=1, epochs=2)
    steps = 0

    def stop(_) -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_after

    parts = {"batch_trees": 1, "epochs": 2, "checkpoints": tmp_path, "checkpoint_every": 2}
    assert learner(torch.bfloat16).train(examples, **parts, stop=stop).stopped
    resumed = learner(torch.bfloat16)
    resumed.train(examples, **parts)
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name]), name
