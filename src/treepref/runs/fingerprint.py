"""What a model folder holds, as a few hashes: enough to see that its weights, tokenizer or config were changed.

Files up to `WHOLE` bytes are hashed whole. Of a larger one its size, its beginning (the header of safetensors), its end
and blocks at even distances are read: `WHOLE` bytes in all, so that seventy billion parameters take seconds and not
minutes. Training changes nearly every weight, and a copied or downloaded file that is cut or replaced differs in size
or in most blocks; a single weight that was edited between two blocks of a large file goes unnoticed.

Knows file names and bytes; knows no model and no run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

WHOLE = 64 * 2**20
BLOCKS = 64
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "*.jinja",
    "chat_template.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "tekken.json",
)  # fmt: skip
"""The files of a model folder that its tokenizer is made of."""
_READ = ("*.safetensors", "*.index.json", "pytorch_model*.bin", "config.json", "generation_config.json", *TOKENIZER)
"""The files of a model folder that a policy is made of; notes, logs and licences beside them may change."""

Fingerprint = Mapping[str, str]
"""File name → its size and hash, as `SIZE:HASH`."""


def fingerprint(folder: Path, kinds: Sequence[str] = _READ) -> dict[str, str]:
    """The fingerprint of a model folder; empty where there is no folder. Raises OSError where it cannot be read."""
    if not folder.is_dir():
        return {}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hash_of(path) for path in files if _is_of(path.name, kinds)}


def tokenizer_part(known: Fingerprint) -> Fingerprint:
    """What a fingerprint says of the tokenizer."""
    return {name: value for name, value in known.items() if _is_of(name, TOKENIZER)}


def _is_of(name: str, kinds: Sequence[str]) -> bool:
    return any(fnmatch(name, kind) for kind in kinds)


def differences(known: Fingerprint, found: Fingerprint) -> str:
    """What became of the files, for people; empty where nothing did."""
    kinds = {
        "missing": sorted(known.keys() - found.keys()),
        "new": sorted(found.keys() - known.keys()),
        "changed": sorted(name for name in known.keys() & found.keys() if known[name] != found[name]),
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


def hash_of(path: Path) -> str:
    """A file's size and hash, as `SIZE:HASH`. Raises OSError where it cannot be read."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for start, length in _blocks(size):
            file.seek(start)
            digest.update(file.read(length))
    return f"{size}:{digest.hexdigest()}"


def _blocks(size: int) -> list[tuple[int, int]]:
    """(start, length) of what is read of a file: all of it, or so many blocks from its beginning to its end."""
    length = WHOLE // BLOCKS
    if size <= WHOLE:
        return [(start, length) for start in range(0, size, length)]
    return [((size - length) * i // (BLOCKS - 1), length) for i in range(BLOCKS)]
