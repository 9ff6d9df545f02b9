"""Two ranks make the step that one rank makes; a LoRA model trains its adapter alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from training_cases import random_examples, tiny_llama, tiny_value_head
from treepref.training.forward import model_scorer
from treepref.training.learner import Learner
from treepref.training.settings import LearnerSettings

EXAMPLES = 5
"""An odd number, and steps of at most two: in the last step the second rank has nothing to do."""


def _train(ranks: int) -> tuple[torch.Tensor, list[float]]:
    learner = Learner(tiny_llama(), tiny_value_head(), LearnerSettings(lr=1e-3))
    assert learner.accelerator.num_processes == ranks
    losses: list[float] = []
    learner.train(random_examples(3, EXAMPLES), batch_trees=2, on_step=lambda m: losses.append(m["loss"]))
    return torch.cat([p.detach().flatten() for p in learner.parameters.values()]), losses


def _rank(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # accelerate wants them there, none is used
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"  # no port, which another process could take
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.save(_train(2), Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()  # who ends first takes the other's connection away
    torch.distributed.destroy_process_group()


def test_two_ranks_make_the_step_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    (one, losses), (two, same) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone, expected = _train(1)
    assert len(expected) == 3
    assert torch.equal(one, two)
    assert losses == same == pytest.approx(expected, rel=1e-6)
    assert ((one - alone).norm() / alone.norm()).item() <= 1e-6


def test_a_lora_model_trains_its_adapter_against_itself_without_it() -> None:
    peft = pytest.importorskip("peft")
    base = tiny_llama()
    before = {name: p.clone() for name, p in base.named_parameters()}
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))
    for name, p in model.named_parameters():  # an adapter that already changes the policy
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    examples = random_examples(6, 4)
    off, on, plain = (
        model_scorer(m, adapter_off=off)(examples) for m, off in ((model, True), (model, False), (tiny_llama(), False))
    )
    assert off == plain != on
    log: list[dict[str, float]] = []
    settings = LearnerSettings(objective="dpo", lr=1e-2)
    learner = Learner(model, None, settings)
    learner.train(random_examples(6, 4, reference=model), batch_trees=4, reference_is_policy=True, on_step=log.append)
    assert log[0]["reward_margin"] == pytest.approx(0.0, abs=1e-6)  # lora_dropout is off
    assert all("lora_" in name for name in learner.parameters)
    base_now = {n.replace(".base_layer", ""): p for n, p in model.get_base_model().named_parameters()}
    assert all(torch.equal(p, base_now[name]) for name, p in before.items())
