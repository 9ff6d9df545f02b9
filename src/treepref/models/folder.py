"""Model folders on disk: what must be in one, and how a new one lands whole or not at all.

Knows file names and renames. Knows nothing of weights, tokenizers or training.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from treepref.errors import ModelError, StoreError
from treepref.landing import move_folder

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")


def check_model_folder(folder: Path, *, tokenizer_only: bool = False) -> None:
    """Raise ModelError naming the first thing that a Hugging Face model folder needs and this one lacks."""
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}: give an existing folder, or a Hugging Face hub id")
    if not tokenizer_only and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json, so it is not a Hugging Face model folder: "
            f"give the folder that `save_pretrained` wrote{_gguf_hint(folder)}"
        )
    if not tokenizer_only and not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise ModelError(
            f"{folder} has no weights (model.safetensors or its index): download or copy them beside its config.json"
            f"{_gguf_hint(folder)}"
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json): copy tokenizer.json and tokenizer_config.json of the model "
            "that it was trained from into it"
        )


def _gguf_hint(folder: Path) -> str:
    found = sorted(folder.glob("*.gguf"))
    return f"; for its {found[0].name} run `treepref import-gguf {found[0]} OUT` first" if found else ""


def recover(folder: Path) -> None:
    """Put back the previous folder if a save was killed between its two renames (see `landing`)."""
    previous = _previous(folder)
    if previous.is_dir():
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
        else:
            previous.rename(folder)


@contextmanager
def landing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; when the block succeeds it is synced to disk and takes `folder`'s name.

    A kill at any moment leaves the old folder or the new one: a folder that is not empty cannot be replaced in a single
    rename, so the old one is first renamed aside, and `recover` puts it back if nothing came to take its place. One
    writer for each folder at a time. Raises StoreError, the old folder untouched, where it cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
        for leftover in folder.parent.glob(f"{folder.name}.tmp-*"):
            shutil.rmtree(leftover)
        partial.mkdir()
        yield partial
        mode = partial.stat().st_mode & 0o666  # what the umask allows; safetensors writes for the owner alone
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(mode)
        move_folder(partial, folder, aside=_previous(folder))
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"could not write the model folder {folder}: {error}. Nothing of it was changed; make room or give another "
            "place, and run again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _previous(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")
