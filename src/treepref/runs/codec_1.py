"""Reads the blobs of schema 1: arrays behind a JSON header. Nothing writes them any more.

A blob is `TPB1`, a flag byte (1: the body is zlib-compressed), the header's length, the header as JSON (a `meta`
object, then name, dtype and shape of each array) and the arrays' bytes, little-endian. A policy was a number then; what
it was called depends on the run (`migrate.py`).
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np

from treepref.types import Completion, Finish, Node, PolicyId, Tree

MAGIC = b"TPB1"
COMPRESSED = 1
_HEAD = struct.Struct("<4sBI")
_DTYPES = frozenset(f"<{kind}{size}" for kind, sizes in {"i": "248", "u": "248", "f": "248"}.items() for size in sizes)
_ALLOWED = _DTYPES | {"|i1", "|u1", "|b1"}
FINISHES: tuple[Finish, ...] = get_args(Finish)
"""How a completion ended is stored as its position here."""


def unpack(blob: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and meta of a blob. Raises ValueError where the bytes are damaged."""
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


def _rows(flat: np.ndarray, lengths: np.ndarray) -> list[tuple[Any, ...] | None]:
    items, rows, start = flat.tolist(), [], 0
    for length in lengths.tolist():
        if length < 0:
            rows.append(None)
            continue
        rows.append(tuple(items[start : start + length]))
        start += length
    return rows


def _optionals(values: np.ndarray, there: np.ndarray) -> list[float | None]:
    return [value if known else None for value, known in zip(values.tolist(), there.tolist(), strict=True)]


def unpack_expansion(blob: bytes) -> tuple[tuple[Completion, ...], tuple[float | None, ...], float | None]:
    """Completions, rewards and the prefix's value."""
    a, _ = unpack(blob)
    finishes = a["finish"].tolist()
    completions = tuple(
        Completion(tokens or (), logprobs or (), FINISHES[finish], behaviour, forced, value, choice, score)  # type: ignore[arg-type]
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


def unpack_tree(blob: bytes, policy: PolicyId) -> Tree:
    """The tree, under its policy's name."""
    arrays, texts = unpack(blob)
    return tree_from_columns({**arrays, **texts, "policy": policy})


def tree_from_columns(arrays: Mapping[str, Any]) -> Tree:
    """The tree whose fields stand in columns, tokens of all nodes end to end: arrays, or lists from JSON."""
    columns = {name: np.asarray(array).tolist() for name, array in arrays.items()}
    offsets = columns["offsets"]
    behaviour, forced = iter(columns["behaviour"]), iter(columns["forced"])
    confidence = columns.get("confidence") or [math.nan] * len(columns["parent"])
    nodes: list[Node] = []
    for i, parent_index in enumerate(columns["parent"]):
        start, end = offsets[i], offsets[i + 1]
        parent = None if parent_index < 0 else nodes[parent_index]
        node = Node(
            index=i,
            parent=parent,
            tokens=tuple(columns["tokens"][start:end]),
            logprobs=tuple(columns["logprobs"][start:end]),
            behaviour=_take(behaviour, end - start) if columns["has_behaviour"][i] else None,
            forced=_take(forced, end - start) if columns["has_forced"][i] else None,
            finish=FINISHES[columns["finish"][i]],
            depth=0 if parent is None else parent.depth + 1,
            samples=columns["samples"][i],
            visits=columns["visits"][i],
            total=columns["total"][i],
            prior=columns["prior"][i],
            value=_or_none(columns["value"][i]),
            confidence=_or_none(confidence[i]),
            reward=_or_none(columns["reward"][i]),
            terminal=columns["terminal"][i],
            expanded=columns["expanded"][i],
        )
        if parent is not None:
            parent.children.append(node)  # children stand in the order of creation, as in the original
        nodes.append(node)
    for node in reversed(nodes):  # children come after their parent
        node.exhausted = node.terminal or (node.expanded and all(child.exhausted for child in node.children))
    low, high = columns["q_range"]
    return Tree(
        key=columns["key"],
        problem_id=columns["problem_id"],
        prompt=tuple(columns["prompt"]),
        policy=columns["policy"],
        nodes=nodes,
        q_range=(low, high),
        simulations=columns["simulations"],
        failed=columns["failed"],
    )


def _take(values: Iterator[Any], n: int) -> tuple[Any, ...]:
    return tuple(next(values) for _ in range(n))


def _or_none(number: float | None) -> float | None:
    return None if number is None or math.isnan(number) else number
