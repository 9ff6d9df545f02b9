"""Key-value memory of the torch engine: rows being decoded, and a radix tree of prefixes that others will continue.

Every token's keys and values are computed once. A finished step leaves its row as a segment of the radix tree; a later
request that starts with the same tokens copies segments into its rows, which costs memory traffic and no arithmetic.
Knows no request, no sampling and no search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache


class RowCache(Cache):
    """Keys and values of the rows in flight, as one tensor `kv_LCRKTD`.

    Dimensions: layer, 2 (key, value), row, key-value head, position, head size. Handed to a transformers model as its
    cache: `place` says which rows and positions the next forward fills and how far attention looks.
    """

    def __init__(self, n_layers: int, n_heads: int, head_size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        self.shape = (n_layers, n_heads, head_size)
        self.kv_LCRKTD = torch.empty(n_layers, 2, 0, n_heads, 0, head_size, dtype=dtype, device=device)
        self._rows: slice = slice(0, 0)
        self._index_RS: tuple[torch.Tensor, torch.Tensor] | None = None
        self._length = 0

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` positions; grows by half so that growth is rare."""
        _, _, have_rows, _, have_length, _ = self.kv_LCRKTD.shape
        if rows <= have_rows and length <= have_length:
            return
        rows = max(rows, have_rows) if rows <= have_rows else max(rows, have_rows * 3 // 2)
        length = have_length if length <= have_length else max(length + 15, have_length * 3 // 2) // 16 * 16
        n_layers, n_heads, head_size = self.shape
        old = self.kv_LCRKTD
        # Zeros, not empty: masked positions are multiplied by zero weights, and 0 · NaN would not be 0.
        self.kv_LCRKTD = old.new_zeros(n_layers, 2, rows, n_heads, length, head_size)
        self.kv_LCRKTD[:, :, :have_rows, :, :have_length] = old

    def place(self, rows: slice, positions_RS: torch.Tensor, length: int) -> None:
        """The next forward runs on `rows`, writes at `positions_RS`, and attends to the first `length` positions."""
        row_R1 = torch.arange(rows.start, rows.stop, device=positions_RS.device)[:, None]
        self._rows, self._index_RS, self._length = rows, (row_R1, positions_RS), length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values [rows, heads, new positions, head size]; return all that attention may look at."""
        assert self._index_RS is not None
        row_R1, position_RS = self._index_RS
        keys_RKTD, values_RKTD = self.kv_LCRKTD[layer_idx]
        keys_RKTD[row_R1, :, position_RS] = key_states.transpose(1, 2)
        values_RKTD[row_R1, :, position_RS] = value_states.transpose(1, 2)
        return keys_RKTD[self._rows, :, : self._length], values_RKTD[self._rows, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length

    def move(self, source: int, target: int, length: int) -> None:
        self.kv_LCRKTD[:, :, target, :, :length] = self.kv_LCRKTD[:, :, source, :, :length]

    def fan_out(self, source: int, targets: slice, length: int) -> None:
        """Copy one row's first `length` positions to several."""
        self.kv_LCRKTD[:, :, targets, :, :length] = self.kv_LCRKTD[:, :, source : source + 1, :, :length]

    def read(self, row: int, start: int, stop: int) -> torch.Tensor:
        """A copy of positions [start, stop) of a row: [layer, 2, head, position, head size]."""
        return self.kv_LCRKTD[:, :, row, :, start:stop].clone()

    def write(self, row: int, start: int, segment_LCKTD: torch.Tensor) -> None:
        self.kv_LCRKTD[:, :, row, :, start : start + segment_LCKTD.shape[3]] = segment_LCKTD


@dataclass(slots=True, eq=False)
class Segment:
    """A run of tokens below its parent in the radix tree, with their keys and values."""

    tokens: tuple[int, ...]
    kv_LCKTD: torch.Tensor
    hidden_H: torch.Tensor | None
    """Post-norm hidden state of the last token: the next token's logits and V come from it. None where not kept."""
    parent: Segment | None
    used: int = 0
    children: dict[int, Segment] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return self.kv_LCKTD.numel() * self.kv_LCKTD.element_size()


@dataclass(frozen=True, slots=True)
class Match:
    """The part of a prefix that is in the tree: whole segments, the last perhaps in part."""

    segments: tuple[tuple[Segment, int], ...]
    """Each with the number of its tokens that match."""
    length: int
    hidden_H: torch.Tensor | None
    """Hidden state of the prefix's last token, if all of the prefix is there and the state was kept."""


class PrefixTree:
    """Radix tree of token sequences; the least recently used leaf goes first when `budget_bytes` is exceeded."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.clear()

    def clear(self) -> None:
        self.root = Segment((), torch.empty(0), None, None)
        self.bytes = 0
        self.clock = 0

    def match(self, prefix: Sequence[int]) -> Match:
        """The longest stored part of `prefix`; marks it as used."""
        self.clock += 1
        found: list[tuple[Segment, int]] = []
        segment, length = self.root, 0
        while length < len(prefix) and (child := segment.children.get(prefix[length])) is not None:
            same = _common(child.tokens, prefix, length)
            child.used = self.clock
            found.append((child, same))
            length += same
            if same < len(child.tokens):
                return Match(tuple(found), length, None)
            segment = child
        hidden = segment.hidden_H if length == len(prefix) else None
        return Match(tuple(found), length, hidden)

    def insert(self, tokens: Sequence[int], row: RowCache, row_index: int, hidden_H: torch.Tensor | None) -> None:
        """Store `tokens`, whose keys and values stand in a row; what is there already is kept as it is."""
        if not tokens:
            return
        self.clock += 1
        segment, length = self.root, 0
        while length < len(tokens) and (child := segment.children.get(tokens[length])) is not None:
            same = _common(child.tokens, tokens, length)
            child.used = self.clock
            if same < len(child.tokens):
                child = self._split(child, same)
            length += same
            segment = child
        if length < len(tokens):
            kv = row.read(row_index, length, len(tokens))
            new = Segment(tuple(tokens[length:]), kv, hidden_H, segment, self.clock)
            segment.children[new.tokens[0]] = new
            self.bytes += new.bytes
            self._evict()
        elif hidden_H is not None and segment.hidden_H is None:
            segment.hidden_H = hidden_H

    def _split(self, child: Segment, at: int) -> Segment:
        """Cut a segment in two; returns the upper part, whose last hidden state is not known."""
        assert child.parent is not None
        upper = Segment(child.tokens[:at], child.kv_LCKTD[..., :at, :].clone(), None, child.parent, child.used)
        child.parent.children[upper.tokens[0]] = upper
        child.tokens, child.kv_LCKTD, child.parent = child.tokens[at:], child.kv_LCKTD[..., at:, :].clone(), upper
        upper.children[child.tokens[0]] = child
        return upper

    def _evict(self) -> None:
        """Drop the least recently used leaves until a tenth of the budget is free."""
        if self.bytes <= self.budget_bytes:
            return
        while self.bytes > self.budget_bytes * 0.9:
            leaves = sorted((s for s in self._walk() if not s.children), key=lambda s: s.used)
            if not leaves:
                return
            for leaf in leaves[: max(1, len(leaves) // 4)]:
                assert leaf.parent is not None
                del leaf.parent.children[leaf.tokens[0]]
                self.bytes -= leaf.bytes
                if self.bytes <= self.budget_bytes * 0.9:
                    return

    def _walk(self) -> Iterator[Segment]:
        stack = list(self.root.children.values())
        while stack:
            segment = stack.pop()
            yield segment
            stack.extend(segment.children.values())


def _common(tokens: Sequence[int], prefix: Sequence[int], start: int) -> int:
    """Length of the common start of `tokens` and `prefix[start:]`."""
    limit = min(len(tokens), len(prefix) - start)
    if tokens[:limit] == prefix[start : start + limit]:
        return limit
    for i in range(limit):
        if tokens[i] != prefix[start + i]:
            return i
    return limit
