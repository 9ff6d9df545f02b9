"""The whole state of a training run on disk: saved by rename, the last two kept, refused where it belongs elsewhere.

Knows files and tensors, but no model, no data and no step.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treepref.errors import ModelError, StoreError
from treepref.runs.landing import MARK, clear, fresh_folder, move_folder

KEPT = 2
_PREFIX, _PART, _STATE = "step-", ".part", "state.pt"
_NAME = re.compile(rf"{_PREFIX}\d{{8,}}")
_PARTS = ("identity", "progress", "weights", "optimizer")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped."""

    identity: Mapping[str, Any]
    """Settings and data that the run was started with; must be equal on resume."""
    progress: dict[str, Any]
    """Steps done (`steps`: the cursor), tokens, flops, seconds, last metrics."""
    weights: Mapping[str, Tensor]
    """Trained parameters by name, the value head's among them."""
    optimizer: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/step-N/state.pt`; it appears whole or not at all, and older ones than the last two go.

    The random state of torch is saved too, although the learner draws nothing: order and schedule are functions of the
    seed and the step.

    Raises:
        StoreError: the disk is full, or something else has the checkpoint's name (those before it are untouched).
        ModelError: weights that are not finite.
    """
    _check_finite(checkpoint)
    final = step_folder(folder, checkpoint.progress["steps"])
    part = None
    state = {
        "identity": dict(checkpoint.identity),
        "progress": checkpoint.progress,
        "weights": dict(checkpoint.weights),
        "optimizer": checkpoint.optimizer,
        "random": torch.get_rng_state(),
    }
    try:
        part = fresh_folder(folder, final.name + _PART)
        torch.save(state, part / _STATE)
        if final.exists() and not _is_ours(final):
            raise OSError(f"{final} is there already and is no checkpoint")
        # In place of one of the same step, where a resumed run comes to it again: the bits are the same.
        move_folder(part, final, replace=True)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        if part is not None:
            clear(part)
        raise StoreError(
            f"cannot save a checkpoint in {folder}: {error}. Earlier ones are untouched; "
            "make room or mend the folder and run again"
        ) from error
    for old in _saved(folder)[:-KEPT]:
        if _is_ours(old):
            shutil.rmtree(old, ignore_errors=True)
    return final


def step_folder(folder: Path, steps: int) -> Path:
    """Where the checkpoint after so many steps is kept."""
    return folder / f"{_PREFIX}{steps:08d}"


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a training run that is done, what killed attempts left of others, and nothing else."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        clear(path)
        if _is_ours(path):
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # something else is in it
        folder.rmdir()


def _check_finite(checkpoint: Checkpoint) -> None:
    for name, weight in checkpoint.weights.items():
        if not torch.isfinite(weight).all():
            raise ModelError(
                f"training step {checkpoint.progress['steps']} made weights that are not finite ({name}), so nothing "
                "was saved of it: start anew, in another folder, with a lower learning rate"
            )


def latest_checkpoint(folder: Path, identity: Mapping[str, Any], device: torch.device | str) -> Checkpoint | None:
    """The newest checkpoint of the folder, or None. Restores torch's random state.

    Loaded with `weights_only`, so a checkpoint cannot run code.

    Raises:
        StoreError: it was made with other settings or data (names them), or cannot be read.
    """
    saved = _saved(folder)
    if not saved:
        return None
    state = _read(saved[-1])
    wanted, found = dict(identity), state["identity"]
    changed = [key for key in sorted(wanted | found) if wanted.get(key) != found.get(key)]
    if changed:
        told = "; ".join(f"{key}: {found.get(key)} → {wanted.get(key)}" for key in changed)
        raise StoreError(
            f"{saved[-1]} was made by a run with other settings or data ({told}). "
            "Restore them, or remove the folder to train anew"
        )
    with told_if_damaged(saved[-1]):
        torch.set_rng_state(state["random"])
    weights = {name: tensor.to(device) for name, tensor in state["weights"].items()}
    return Checkpoint(found, state["progress"], weights, state["optimizer"])


def _read(folder: Path) -> dict[str, Any]:
    with told_if_damaged(folder):
        state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
        for part in _PARTS:
            if not isinstance(state[part], Mapping):
                raise ValueError(f"its {part} is a {type(state[part]).__name__}")
        if not all(isinstance(weight, Tensor) for weight in state["weights"].values()):
            raise ValueError("not all of its weights are tensors")
        return state


@contextlib.contextmanager
def told_if_damaged(folder: Path) -> Iterator[None]:
    """Whatever goes wrong with what was read from a checkpoint, as a StoreError that says what to do.

    Memory that is full says nothing of the checkpoint, and goes through.
    """
    try:
        yield
    except (StoreError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error).strip().partition("\n")[0]
        raise StoreError(
            f"{folder} holds no sound checkpoint ({said}): remove it to go on from the one before"
        ) from error


def _saved(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / _STATE).is_file())
    return sorted(found, key=lambda p: int(p.name.removeprefix(_PREFIX)))


def _is_ours(path: Path) -> bool:
    """Whether a folder holds a checkpoint that we saved, and nothing else."""
    try:
        if path.is_symlink() or {p.name for p in path.iterdir()} - {MARK} != {_STATE}:
            return False
        with zipfile.ZipFile(path / _STATE) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            found = archive.read(pickled)
    except (OSError, EOFError, StopIteration, zipfile.BadZipFile):
        return False
    return all(part.encode() in found for part in _PARTS)
