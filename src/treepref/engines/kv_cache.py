"""Key-value memory of the torch engine: what is being decoded, and a radix tree of prefixes that others will continue.

Every token's keys and values are computed once and held once: samples of one prefix read it in one slot, and a row
holds only its own tokens. A finished step leaves its keys and values as a segment of the radix tree; a later request
that starts with the same tokens copies segments into its slot, which costs memory traffic and no arithmetic.
Knows no request, no sampling and no search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache


class Block:
    """Keys and values of several token sequences ("rows"), as two tensors that grow: `key_LRKTD` and `value_LRKTD`.

    Dimensions: layer, row, key-value head, position, head size. With `columns`, keys lie in memory size before
    position: a product of queries with many keys runs a third faster on a CPU, and a single key is slower to write.
    """

    def __init__(
        self,
        n_layers: int,
        n_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        columns: bool = False,
    ) -> None:
        self.columns = columns
        self.value_LRKTD = torch.empty(n_layers, 0, n_heads, 0, head_size, dtype=dtype, device=device)
        self.key_LRKTD = self._zeros(0, 0, columns)

    def _zeros(self, rows: int, length: int, columns: bool) -> torch.Tensor:
        # Zeros, not empty: masked positions are multiplied by zero weights, and 0 · NaN would not be 0.
        n_layers, _, n_heads, _, head_size = self.value_LRKTD.shape
        if columns:
            return self.value_LRKTD.new_zeros(n_layers, rows, n_heads, head_size, length).transpose(-1, -2)
        return self.value_LRKTD.new_zeros(n_layers, rows, n_heads, length, head_size)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` positions; all that is in use must be among them.

        Grows by half so that growth is rare. Where one dimension grows, the other shrinks if it is far too large: a
        long row that comes alone does not meet the many short ones of before.
        """
        _, have_rows, _, have_length, _ = self.value_LRKTD.shape
        if rows <= have_rows and length <= have_length:
            return
        rows, length = _room(rows, have_rows), (_room(length, have_length) + 15) // 16 * 16
        keys, values = self._zeros(rows, length, self.columns), self._zeros(rows, length, columns=False)
        rows, length = min(rows, have_rows), min(length, have_length)
        for new, old in ((keys, self.key_LRKTD), (values, self.value_LRKTD)):
            new[:, :rows, :, :length] = old[:, :rows, :, :length]
        self.key_LRKTD, self.value_LRKTD = keys, values

    def move(self, source: int, target: int, length: int) -> None:
        for of_all in (self.key_LRKTD, self.value_LRKTD):
            of_all[:, target, :, :length] = of_all[:, source, :, :length]

    def read(self, row: int, start: int, stop: int) -> torch.Tensor:
        """A copy of positions [start, stop) of a row: [layer, 2 (key, value), head, position, head size]."""
        n_layers, _, n_heads, _, head_size = self.value_LRKTD.shape
        kv_LCKTD = self.value_LRKTD.new_empty(n_layers, 2, n_heads, stop - start, head_size)
        for kind, of_all in enumerate((self.key_LRKTD, self.value_LRKTD)):
            kv_LCKTD[:, kind] = of_all[:, row, :, start:stop]
        return kv_LCKTD

    def write(self, row: int, start: int, segment_LCKTD: torch.Tensor) -> None:
        stop = start + segment_LCKTD.shape[3]
        for kind, of_all in enumerate((self.key_LRKTD, self.value_LRKTD)):
            of_all[:, row, :, start:stop] = segment_LCKTD[:, kind]


def _room(asked: int, have: int) -> int:
    """How much to have where `asked` is needed and something is made anew."""
    if asked > have:
        return max(asked, have * 3 // 2)
    return have if have <= 4 * asked else asked


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Neighbouring slots with about as many rows each, and prefixes of about the same length.

    `rows_SN` lists the rows of each slot, padded with row 0. The band's i-th row, `row_R[i]`, stands in it at
    [slot_R[i], place_R[i]].
    """

    slots: slice
    rows_SN: torch.Tensor
    row_R: torch.Tensor
    slot_R: torch.Tensor
    place_R: torch.Tensor
    longest: int
    """Tokens of the longest prefix."""
    even: slice | None
    """The band's rows where they are neighbours, in the order of their slots and as many in each: no look-up needed."""

    def by_slot(self, of_rows_RX: torch.Tensor) -> torch.Tensor:
        """[all rows, …] → [slots, most rows of a slot, …]."""
        if self.even is None:
            return of_rows_RX[self.rows_SN]
        return of_rows_RX[self.even].unflatten(0, self.rows_SN.shape)

    def put(self, of_rows_RX: torch.Tensor, of_slots_SNX: torch.Tensor) -> None:
        """Write what belongs to the band's rows, by slot, to the places of these rows among all rows."""
        if self.even is None:
            of_rows_RX[self.row_R] = of_slots_SNX[self.slot_R, self.place_R]
        else:
            of_rows_RX[self.even].unflatten(0, self.rows_SN.shape).copy_(of_slots_SNX)

    def add(self, of_rows_RX: torch.Tensor, of_slots_SNX: torch.Tensor) -> None:
        """Like `put`, but what is there is added to."""
        if self.even is None:
            of_rows_RX[self.row_R] += of_slots_SNX[self.slot_R, self.place_R]
        else:
            of_rows_RX[self.even].unflatten(0, self.rows_SN.shape).add_(of_slots_SNX)


@dataclass(frozen=True, slots=True, eq=False)
class Sharing:
    """Which rows read which slot in one decoding pass, for attention that reads a slot once for all of them."""

    bands: list[Band]
    prefixes: Block

    def prefix(self, band: Band, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer [slots, key-value heads, longest, head size]."""
        key_LSKPD, value_LSKPD = self.prefixes.key_LRKTD, self.prefixes.value_LRKTD
        return key_LSKPD[layer, band.slots, :, : band.longest], value_LSKPD[layer, band.slots, :, : band.longest]


SPARE = {"cpu": 4096, "cuda": 1 << 24}
"""Pairs of a query and a position that a band may compute in vain: less than another band's calls cost, which on a GPU
are a dozen kernels in every layer."""


def cut_bands(counts: Sequence[int], lengths: Sequence[int], spare: int = SPARE["cpu"]) -> list[slice]:
    """Cut slots with `counts` rows and prefixes of `lengths` into bands where padding is at most half of the work.

    Or at most `spare` pairs of a query and a position.
    """
    cuts, needed, most, longest = [0], 0, 0, 0
    for slot, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        needed, most, longest = needed + count * length, max(most, count), max(longest, length)
        padding = (slot + 1 - cuts[-1]) * most * longest - needed
        if padding > max(needed, spare):
            cuts.append(slot)
            needed, most, longest = count * length, count, length
    return [slice(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(counts)], strict=True)]


def sharing(slots: Sequence[int], lengths: Sequence[int], prefixes: Block) -> Sharing:
    """`slots`: each row's slot; `lengths`: of the prefix in each slot, none of which is without rows."""
    device = prefixes.value_LRKTD.device
    slot_R = np.array(slots)
    by_slot_R = slot_R.argsort(kind="stable")
    count_S = np.bincount(slot_R, minlength=len(lengths))
    place_R = np.empty_like(slot_R)
    place_R[by_slot_R] = np.arange(len(slot_R)) - np.repeat(count_S.cumsum() - count_S, count_S)
    bands = []
    for cut in cut_bands(count_S.tolist(), lengths, SPARE.get(device.type, SPARE["cpu"])):
        row_R = np.flatnonzero((slot_R >= cut.start) & (slot_R < cut.stop))
        rows_SN = np.zeros((cut.stop - cut.start, count_S[cut].max()), dtype=np.int64)
        rows_SN[slot_R[row_R] - cut.start, place_R[row_R]] = row_R
        start, stop = int(row_R[0]), int(row_R[0]) + rows_SN.size
        even = np.array_equal(rows_SN.ravel(), np.arange(start, stop))
        there = [torch.from_numpy(x).to(device) for x in (rows_SN, row_R, slot_R[row_R] - cut.start, place_R[row_R])]
        rows, row, slot, place = there
        bands.append(Band(cut, rows, row, slot, place, max(lengths[cut]), slice(start, stop) if even else None))
    return Sharing(bands, prefixes)


def cut_passes(lengths: Sequence[int], spare: int) -> list[slice]:
    """Cut texts, the longest first, into passes in which at most `spare` tokens are padding."""
    cuts, padding = [0], 0
    for i, length in enumerate(lengths):
        padding += lengths[cuts[-1]] - length
        if padding > spare:
            cuts.append(i)
            padding = 0
    return [slice(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(lengths)], strict=True) if start < stop]


class SlotCache(Cache):
    """What a transformers model is handed as its cache: `prefixes`, one row a slot, and `own`, the rows' tokens.

    `fill` and `decode` say what the next forward reads and writes.
    """

    def __init__(self, n_layers: int, n_heads: int, head_size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        self.prefixes = Block(n_layers, n_heads, head_size, dtype, device, columns=device.type == "cpu")
        self.own = Block(n_layers, n_heads, head_size, dtype, device)
        self.lengths: list[int] = []
        """Of the prefix in each slot in use."""
        self.slots: list[int] = []
        """The slot of each row."""
        self._look: Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
        self._length = 0

    # --- what the next forward does

    def fill(self, slots: slice, positions_RS: torch.Tensor, length: int, *, copy: bool = False) -> None:
        """It runs on neighbouring slots, writes at `positions_RS` and attends to the first `length` positions.

        `copy`: attention gets these as tensors of their own.
        """
        slot_R1 = torch.arange(slots.start, slots.stop, device=positions_RS.device)[:, None]

        def look(layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            key_RKTD, value_RKTD = self.prefixes.key_LRKTD[layer], self.prefixes.value_LRKTD[layer]
            key_RKTD[slot_R1, :, positions_RS] = keys.transpose(1, 2)
            value_RKTD[slot_R1, :, positions_RS] = values.transpose(1, 2)
            seen = key_RKTD[slots, :, :length], value_RKTD[slots, :, :length]
            if copy:
                return seen[0].clone(memory_format=torch.contiguous_format), seen[1].clone()
            # torch's fused attention takes whole vectors alone.
            return (seen[0].contiguous() if self.prefixes.columns else seen[0]), seen[1]

        self._look, self._length = look, length

    def decode(self, positions_R: torch.Tensor, longest: tuple[int, int], *, whole: bool) -> None:
        """It runs on all rows and writes at their own positions `positions_R`.

        `longest`: positions of a prefix, and of a row's own tokens, that it looks at. `whole`: attention gets both,
        one behind the other; else the rows' own alone.
        """
        rows, device = len(positions_R), positions_R.device
        n_heads, room = self.own.value_LRKTD.shape[2:4]
        line_RK = torch.arange(rows * n_heads, device=device).view(rows, n_heads)
        place_N = (line_RK * room + positions_R[:, None]).flatten()
        slot_R = torch.tensor(self.slots, device=device) if whole else None
        n_prefix, n_own = longest

        def look(layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen = []
            for own_LRKTD, prefix_LSKTD, new_RK1D in (
                (self.own.key_LRKTD, self.prefixes.key_LRKTD, keys),
                (self.own.value_LRKTD, self.prefixes.value_LRKTD, values),
            ):
                own_RKTD = own_LRKTD[layer]
                # Whole vectors to places of a list of vectors: faster than the same by row, head and position.
                own_RKTD.view(-1, own_RKTD.shape[-1]).index_copy_(0, place_N, new_RK1D.flatten(0, 2))
                own_RKTD = own_RKTD[:rows, :, :n_own]
                if slot_R is not None:
                    own_RKTD = torch.cat([prefix_LSKTD[layer, slot_R, :, :n_prefix], own_RKTD], dim=2)
                seen.append(own_RKTD)
            return seen[0], seen[1]

        self._look, self._length = look, n_prefix + n_own

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values [rows, heads, new positions, head size]; return those that attention may look at."""
        assert self._look is not None
        return self._look(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length

    # --- slots and rows

    def sharing(self) -> Sharing:
        """See `Sharing`: of the rows as they are now."""
        return sharing(self.slots, self.lengths, self.prefixes)

    def add(self, lengths: Sequence[int], rows: Sequence[int]) -> None:
        """Take the next slots, which hold prefixes of `lengths` tokens, each for so many new rows."""
        for length, n in zip(lengths, rows, strict=True):
            self.slots += [len(self.lengths)] * n
            self.lengths.append(length)

    def read(self, row: int, start: int, stop: int) -> torch.Tensor:
        """A copy of positions [start, stop) of a row's prefix and own tokens: [layer, 2, head, position, head size]."""
        slot = self.slots[row]
        length = self.lengths[slot]
        if start >= length:
            return self.own.read(row, start - length, stop - length)
        prefix = self.prefixes.read(slot, start, min(stop, length))
        return prefix if stop <= length else torch.cat([prefix, self.own.read(row, 0, stop - length)], dim=3)

    def keep(self, rows: Sequence[int], own: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was (i itself, or a later one), with `own[i]` tokens of its own.

        Slots that no row reads any more are free: the last ones move into them.
        """
        for target, (source, length) in enumerate(zip(rows, own, strict=True)):
            if source != target:
                self.own.move(source, target, length)
        self.slots = [self.slots[row] for row in rows]
        used = set(self.slots)
        place = {slot: slot for slot in used}
        movable = sorted(slot for slot in used if slot >= len(used))
        for hole in sorted(set(range(len(used))) - used):
            source = movable.pop()
            self.prefixes.move(source, hole, self.lengths[source])
            self.lengths[hole] = self.lengths[source]
            place[source] = hole
        del self.lengths[len(used) :]
        self.slots = [place[slot] for slot in self.slots]


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
        self.root = Segment((), torch.empty(0), None, None)
        self.clear()

    def clear(self) -> None:
        """Forget all; the memory is free at once (parents and children hold one another: Python alone would wait)."""
        for segment in [self.root, *self._walk()]:
            segment.children.clear()
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

    def insert(
        self, tokens: Sequence[int], read: Callable[[int, int], torch.Tensor], hidden_H: torch.Tensor | None
    ) -> None:
        """Store `tokens`; what is there already is kept as it is. `read(start, stop)` copies keys and values."""
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
            kv = read(length, len(tokens))
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
