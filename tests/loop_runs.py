"""What the tests of the loops share: runs that are killed, and what is left of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

# The whole program: a life of killed_life.py begins with what was imported before it.
from treepref import cli
from treepref.engines import torch_engine as torch_engine
from treepref.loops import dpo_st, learn, mcts_dpo, run, svpo
from treepref.runs.store import Store

METHODS = (dpo_st, mcts_dpo, svpo, run)


def play(out: str, recipe: str, *overrides: str) -> None:
    """`treepref run` to its end; the training state is saved every other step, for short runs too."""
    learn.CHECKPOINT_STEPS = 2
    sys.argv = ["treepref", "run", recipe, "--out", out, "--quiet", *overrides]
    cli.main()


def digest(out: Path) -> str:
    with Store(out, read_only=True) as store:
        return store.digest()


def parameters(folder: Path) -> list[torch.Tensor]:
    """The parameters of a saved model."""
    return list(AutoModelForCausalLM.from_pretrained(folder).parameters())


def check_same_weights(one: Path, other: Path) -> None:
    """Models and value heads, to the bit."""
    for a, b in zip(parameters(one), parameters(other), strict=True):
        assert torch.equal(a, b)
    heads = [folder / "value_head.safetensors" for folder in (one, other)]
    assert len({head.exists() and head.read_bytes() for head in heads}) == 1
