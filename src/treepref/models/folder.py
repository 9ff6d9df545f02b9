"""Model folders on disk: what must be in one, and how a new one lands whole or not at all.

Knows file names and renames. Knows nothing of weights, tokenizers or training.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from treepref.errors import ModelError, StoreError
from treepref.runs.fingerprint import hash_of
from treepref.runs.landing import MARK, clear, new_folder, recover, set_aside

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MADE = "treepref.json"
"""In every folder that treepref saved: the files that it put there, each with its size and hash. A folder with any
other, or with one that was changed since, is not replaced."""
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")


def folder_or_hub_id(path: str | Path) -> Path | None:
    """The folder, there or not, that the name of a model stands for; None for a hub id.

    A name that could be both is the folder's where it is there, or where a kill kept it from landing: then it is put
    back. Raises ModelError for a name that can be neither.
    """
    try:
        folder = Path(path).expanduser().absolute()
        recover(folder)
        there = folder.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, of no such user, with a null byte
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"model.path {str(path)!r} is neither a folder nor a hub id: {reason}") from None
    return None if isinstance(path, str) and not there and _HUB_ID.fullmatch(path) else folder


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


def needs_own_code(name: object) -> str:
    """What is said of a model whose config or tokenizer names Python files of its own (`auto_map`)."""
    return (
        f"{name} comes with Python code of its own (auto_map in its config.json or tokenizer_config.json), which "
        "treepref never runs: take a model of an architecture that transformers knows, or a copy converted to one"
    )


def refuse_foreign(folder: Path) -> None:
    """Raises StoreError, nothing touched, where `folder` holds anything that treepref did not save there itself."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file: give the name of a folder that is not there yet")
    known: dict[str, str | None] = _made(folder) | {MADE: None, MARK: None}
    for name in _files(folder):
        if name not in known:
            why = "which treepref did not put there"
        elif known[name] not in (None, _hash(folder / name)):
            why = "which was changed since treepref put it there"
        else:
            continue
        raise StoreError(
            f"{folder} holds {name}, {why}, and would be replaced: move it away, or give a folder that is not there yet"
        )


def _files(folder: Path) -> Iterator[str]:
    """Everything below the folder that is no folder itself, one after the other."""
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        yield from (os.path.relpath(os.path.join(root, name), folder) for name in sorted(names + links))


def _made(folder: Path) -> dict[str, str | None]:
    """The files that the folder's own note says were saved with it, and what they were; none without such a note.

    None for a file of which an older version noted the name alone.
    """
    try:
        files = json.loads((folder / MADE).read_text(encoding="utf-8"))["files"]
        return dict(files) if isinstance(files, dict) else dict.fromkeys(files)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _hash(path: Path) -> str:
    """What a file is; empty where it is none that can be read."""
    try:
        return hash_of(path)
    except OSError:
        return ""


@contextmanager
def landing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; when the block succeeds it is synced to disk and takes `folder`'s name.

    A kill at any moment leaves the old folder or the new one: a folder that is not empty cannot be replaced in a single
    rename, so the old one is first renamed aside, and `recover` puts it back if nothing came to take its place. One
    writer for each folder at a time. Raises StoreError, the old folder untouched, where it cannot be written or holds
    what treepref did not save there.
    """
    try:
        folder = folder.resolve()  # of a link, what it points to is replaced
        recover(folder)
        refuse_foreign(folder)
        for previous in set_aside(folder):
            clear(previous)
        with new_folder(folder, replace=True) as partial:
            yield partial
            mode = partial.stat().st_mode & 0o666  # what the umask allows; safetensors writes for the owner alone
            files = sorted(p for p in partial.rglob("*") if p.is_file() and p.name != MARK)
            note = {"made_by": "treepref", "files": {p.relative_to(partial).as_posix(): hash_of(p) for p in files}}
            (partial / MADE).write_text(json.dumps(note, indent=1), encoding="utf-8")
            for path in files:
                path.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"could not write the model folder {folder}: {error}. Nothing of it was changed; make room or give another "
            "place, and run again"
        ) from error
