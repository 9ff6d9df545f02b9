"""The whole state of a training run on disk: saved by rename, the last two kept, refused where it belongs elsewhere.

Knows files and tensors, but no model, no data and no step.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treepref.errors import StoreError
from treepref.landing import move_folder

KEPT = 2
_PREFIX, _PART, _OLD = "step-", ".part", ".old"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped."""

    identity: Mapping[str, Any]
    """Settings and data that the run was started with; must be equal on resume."""
    progress: Mapping[str, Any]
    """Steps done (`steps`: the cursor), tokens, flops, seconds, last metrics."""
    weights: Mapping[str, Tensor]
    """Trained parameters by name, the value head's among them."""
    optimizer: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/step-N/state.pt`; it appears whole or not at all, and older ones than the last two go.

    The random state of torch is saved too, although the learner draws nothing: order and schedule are functions of the
    seed and the step.

    Raises:
        StoreError: the disk is full (the checkpoints before it are untouched).
    """
    final = folder / f"{_PREFIX}{checkpoint.progress['steps']:08d}"
    part = final.with_name(final.name + _PART)
    state = {
        "identity": dict(checkpoint.identity),
        "progress": dict(checkpoint.progress),
        "weights": dict(checkpoint.weights),
        "optimizer": dict(checkpoint.optimizer),
        "random": torch.get_rng_state(),
    }
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        torch.save(state, part / "state.pt")
        # In place of one of the same step, where a resumed run comes to it again: the bits are the same.
        move_folder(part, final, aside=final.with_name(final.name + _OLD))
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        raise StoreError(
            f"cannot save a checkpoint in {folder}: {error}. Earlier ones are untouched; "
            "make room or mend the folder and run again"
        ) from error
    for old in _saved(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path, identity: Mapping[str, Any], device: torch.device | str) -> Checkpoint | None:
    """The newest checkpoint of the folder, or None. Restores torch's random state.

    Loaded with `weights_only`, so a checkpoint cannot run code.

    Raises:
        StoreError: it was made with other settings or data (names them), or cannot be read.
    """
    saved = _saved(folder)
    if not saved:
        return None
    path = saved[-1] / "state.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise StoreError(f"{path} cannot be read: {error}. Remove its folder to go on from the one before") from error
    wanted = dict(identity)
    changed = [key for key in sorted(wanted | state["identity"]) if wanted.get(key) != state["identity"].get(key)]
    if changed:
        told = "; ".join(f"{key}: {state['identity'].get(key)} → {wanted.get(key)}" for key in changed)
        raise StoreError(
            f"{saved[-1]} was made by a run with other settings or data ({told}). "
            "Restore them, or remove the folder to train anew"
        )
    torch.set_rng_state(state["random"])
    weights = {name: tensor.to(device) for name, tensor in state["weights"].items()}
    return Checkpoint(state["identity"], state["progress"], weights, state["optimizer"])


def _saved(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.startswith(_PREFIX) and p.name[len(_PREFIX) :].isdigit())
