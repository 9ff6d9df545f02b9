"""What the tests of the loops share: a run in a process of its own that is killed, and what is left of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from treepref.store import Store


def start(out: Path, recipe: str, *overrides: str) -> subprocess.Popen[bytes]:
    """`treepref run` in a process of its own."""
    command = [sys.executable, "-m", "treepref.cli", "run", recipe, "--out", str(out), "--quiet", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def life(out: Path, seconds: float | None, recipe: str, *overrides: str) -> int:
    """A run to its end (0), which must be a good one, or killed with SIGKILL after some time (-9)."""
    process = start(out, recipe, *overrides)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return -9
    assert process.returncode == 0, errors.decode()
    return 0


def digest(out: Path) -> str:
    with Store(out, read_only=True) as store:
        return store.digest()


def parameters(folder: Path) -> list[torch.Tensor]:
    """The parameters of a saved model."""
    return list(AutoModelForCausalLM.from_pretrained(folder).parameters())
