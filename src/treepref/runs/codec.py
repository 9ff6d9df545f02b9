"""Numpy arrays, completions and trees to bytes and back, exactly. No pickle: reading a blob never runs code.

A blob is `TPB1`, a flag byte (1: the body is zlib-compressed), the header's length, the header as JSON (a free `meta`
object, then name, dtype and shape of each array) and the arrays' bytes, little-endian. Floats are kept as float64, so
that what was recorded comes back to the last bit. This file knows no database, no file and no rule of any search.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from treepref.search.tree import tree_from_arrays, tree_to_arrays
from treepref.types import Completion, Finish, Tree

MAGIC = b"TPB1"
COMPRESSED = 1
_COMPRESS_ABOVE = 256
"""Bytes below which zlib gains nothing."""
_HEAD = struct.Struct("<4sBI")
_DTYPES = frozenset(f"<{kind}{size}" for kind, sizes in {"i": "248", "u": "248", "f": "248"}.items() for size in sizes)
_ALLOWED = _DTYPES | {"|i1", "|u1", "|b1"}
_FINISHES: tuple[str, ...] = get_args(Finish)


def pack(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> bytes:
    """Named number arrays of any shape, and a JSON-able `meta`, as one blob. Raises TypeError for other dtypes."""
    entries, parts = [], []
    for name, given in arrays.items():
        array = np.asarray(given)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if array.dtype.str not in _ALLOWED:
            raise TypeError(f"array {name!r} has dtype {array.dtype}: only booleans, integers and floats are stored")
        entries.append([name, array.dtype.str, list(array.shape)])
        parts.append(array.tobytes())
    header = json.dumps({"meta": dict(meta or {}), "arrays": entries}, separators=(",", ":")).encode()
    body, flags = b"".join(parts), 0
    if len(body) > _COMPRESS_ABOVE:
        smaller = zlib.compress(body, level=1)
        if len(smaller) < len(body):
            body, flags = smaller, COMPRESSED
    return _HEAD.pack(MAGIC, flags, len(header)) + header + body


def unpack(blob: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and meta of a blob that `pack` made. Raises ValueError where the bytes are damaged."""
    try:
        magic, flags, size = _HEAD.unpack_from(blob)
        if magic != MAGIC:
            raise ValueError("it does not begin with the mark of a treepref blob")
        start = _HEAD.size + size
        header = json.loads(blob[_HEAD.size : start])
        body = zlib.decompress(blob[start:]) if flags & COMPRESSED else blob[start:]
        arrays, offset = {}, 0
        for name, dtype, shape in header["arrays"]:
            if dtype not in _ALLOWED:
                raise ValueError(f"array {name!r} claims the dtype {dtype!r}")
            count = math.prod(shape)
            arrays[name] = np.frombuffer(body, dtype=dtype, count=count, offset=offset).reshape(shape)
            offset += count * np.dtype(dtype).itemsize
        if offset != len(body):
            raise ValueError(f"{len(body) - offset} bytes are left over")
        return arrays, header["meta"]
    except (ValueError, KeyError, TypeError, struct.error, zlib.error) as error:
        raise ValueError(f"a stored blob of {len(blob)} bytes is damaged: {error}") from error


def _ragged(rows: Sequence[Sequence[Any] | None], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows end to end, and their lengths; −1 is the length of an absent row."""
    lengths = np.array([-1 if row is None else len(row) for row in rows], dtype="<i4")
    return np.array([item for row in rows if row is not None for item in row], dtype=dtype), lengths


def _rows(flat: np.ndarray, lengths: np.ndarray) -> list[tuple[Any, ...] | None]:
    items, rows, start = flat.tolist(), [], 0
    for length in lengths.tolist():
        if length < 0:
            rows.append(None)
            continue
        rows.append(tuple(items[start : start + length]))
        start += length
    return rows


def _optional(values: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Floats (0 where absent), and which of them are there: NaN stays a value of its own."""
    return (
        np.array([0.0 if value is None else value for value in values], dtype="<f8"),
        np.array([value is not None for value in values], dtype="|b1"),
    )


def _optionals(values: np.ndarray, there: np.ndarray) -> list[float | None]:
    return [value if known else None for value, known in zip(values.tolist(), there.tolist(), strict=True)]


def pack_expansion(
    completions: Sequence[Completion], rewards: Sequence[float | None], prefix_value: float | None
) -> bytes:
    """What one expansion brought, as a blob. Floats are cast to float64, which holds any Python float exactly."""
    if len(rewards) != len(completions):
        raise ValueError(f"{len(completions)} completions have {len(rewards)} rewards")
    arrays: dict[str, np.ndarray] = {}
    arrays["tokens"], arrays["tokens_n"] = _ragged([c.tokens for c in completions], "<i4")
    arrays["logprobs"], arrays["logprobs_n"] = _ragged([c.logprobs for c in completions], "<f8")
    arrays["behaviour"], arrays["behaviour_n"] = _ragged([c.behaviour for c in completions], "<f8")
    arrays["forced"], arrays["forced_n"] = _ragged([c.forced for c in completions], "|b1")
    arrays["finish"] = np.array([_FINISHES.index(c.finish) for c in completions], dtype="|u1")
    arrays["value"], arrays["value_there"] = _optional([c.value for c in completions])
    arrays["reward"], arrays["reward_there"] = _optional(rewards)
    arrays["prefix"], arrays["prefix_there"] = _optional([prefix_value])
    if any(c.choice_probs is not None for c in completions):
        arrays["choice"], arrays["choice_n"] = _ragged([c.choice_probs for c in completions], "<f8")
    if any(c.score is not None for c in completions):
        arrays["score"], arrays["score_there"] = _optional([c.score for c in completions])
    return pack(arrays)


def unpack_expansion(blob: bytes) -> tuple[tuple[Completion, ...], tuple[float | None, ...], float | None]:
    """Completions, rewards and the prefix's value, as `pack_expansion` was given them."""
    a, _ = unpack(blob)
    finishes = a["finish"].tolist()
    completions = tuple(
        Completion(tokens or (), logprobs or (), _FINISHES[finish], behaviour, forced, value, choice, score)  # type: ignore[arg-type]
        for tokens, logprobs, finish, behaviour, forced, value, choice, score in zip(
            _rows(a["tokens"], a["tokens_n"]),
            _rows(a["logprobs"], a["logprobs_n"]),
            finishes,
            _rows(a["behaviour"], a["behaviour_n"]),
            _rows(a["forced"], a["forced_n"]),
            _optionals(a["value"], a["value_there"]),
            _rows(a["choice"], a["choice_n"])
            if "choice" in a
            else [None] * len(finishes),  # absent where none was asked
            _optionals(a["score"], a["score_there"]) if "score" in a else [None] * len(finishes),
            strict=True,
        )
    )
    (prefix_value,) = _optionals(a["prefix"], a["prefix_there"])
    return completions, tuple(_optionals(a["reward"], a["reward_there"])), prefix_value


def pack_tree(tree: Tree) -> bytes:
    """A tree as a blob (`search.tree.tree_to_arrays`; its texts go into the header)."""
    arrays = tree_to_arrays(tree)
    texts = {name: str(array) for name, array in arrays.items() if array.dtype.kind == "U"}
    return pack({name: array for name, array in arrays.items() if name not in texts}, texts)


def unpack_tree(blob: bytes) -> Tree:
    """The tree that `pack_tree` was given, exactly."""
    arrays, texts = unpack(blob)
    return tree_from_arrays({**arrays, **texts})
