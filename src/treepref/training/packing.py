"""Examples as rows of packed trees: every token once, at the position of its depth, seeing its ancestors alone.

A tree is laid out depth first, so that everything below a node directly follows it. Then "q sees k" is two comparisons
of places in the row: k ≤ q < end(k), where end(k) is the first place after the subtree of k's node. Nothing per token
runs in Python.

A tree too large for a row is cut into pieces, groups of root-to-leaf branches with their prefix repeated; each token is
*owned* (its log-prob and value read) by one piece alone. Knows examples and arrays, but no model and no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from treepref.errors import DataError
from treepref.training.examples import Example

Array = np.ndarray
_INT = np.int64
EMPTY = np.zeros(0, dtype=_INT)


# ---------------------------------------------------------------------------------------------------------------------
# One tree, flat
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A tree, or a group of its branches, laid out depth first. Places count from the piece's first token.

    Segments are the prompt (0) and the nodes (index + 1) of the example.
    """

    ids: Array
    """[L] token ids."""
    positions: Array
    """[L] position ids: tokens of the prompt and of the ancestors before it."""
    ends: Array
    """[L] first place after the subtree of the token's node."""
    predictors: Array
    """[T] place of the token that predicts each owned trained token (of a node's first: its parent's last)."""
    labels: Array
    """[T] the token predicted."""
    slots: Array
    """[T] index of the token in the example's vector of trained tokens (`Flat.node_T`'s order)."""
    last: Array
    """[S] place of the last token of each owned segment."""
    segments: Array
    """[S] the owned segments."""
    owner: Array
    """[L] segment of each token, numbered as they lie in the piece; the prompt's is 0."""
    path_owned: Array
    """[P] and `path_above` [P]: each owned segment (its place in `segments`) with every segment on its path, itself
    included and the prompt left out (as `owner` numbers them): what a mean over a solution so far runs over."""
    path_above: Array
    path_tokens: Array
    """[S] tokens of each owned segment's path, the prompt's left out."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Flat:
    """An example ready to be packed: its pieces (one, if it fits), and per trained token what the loss needs."""

    example: Example
    pieces: tuple[Piece, ...]
    node_T: Array
    """[T] segment (node index + 1) of each trained token, nodes in order of index."""
    ref_T: Array
    """[T] reference log-probs; NaN where the node has none."""

    @property
    def split(self) -> bool:
        return len(self.pieces) > 1

    @property
    def tokens(self) -> int:
        """Tokens run through the model, repeated prefixes included."""
        return sum(len(p) for p in self.pieces)


def flatten(example: Example, row_tokens: int) -> Flat:
    """Lay an example out; in several pieces if it is longer than `row_tokens`.

    A single path longer than `row_tokens` still is one piece (its row is then longer): see `check_context`.
    """
    trained = example.trained
    free = [
        free_offsets(node.tokens, node.forced) if t else EMPTY for node, t in zip(example.nodes, trained, strict=True)
    ]
    starts = np.concatenate([[0], np.cumsum([len(f) for f in free])]).astype(_INT) if free else np.zeros(1, _INT)
    groups = [None] if example.size <= row_tokens else _branch_groups(example, max(row_tokens, example.longest_path))
    owned: set[int] = set()
    pieces = []
    for group in groups:
        pieces.append(_piece(example, group, owned, free, starts))
        owned |= set(range(len(example.nodes) + 1)) if group is None else group
    counts = [len(f) for f in free]
    return Flat(example, tuple(pieces), np.repeat(np.arange(1, len(free) + 1), counts), _references(example, free))


def free_offsets(tokens: Sequence[int], forced: Sequence[bool] | None) -> Array:
    """Offsets of the tokens that no tool forced."""
    return np.arange(len(tokens)) if forced is None else np.flatnonzero(~np.asarray(forced, dtype=bool))


def _references(example: Example, free: list[Array]) -> Array:
    parts = [np.zeros(0)]
    for node, offsets in zip(example.nodes, free, strict=True):
        known = node.ref is not None and len(offsets) > 0
        parts.append(np.asarray(node.ref, dtype=np.float64)[offsets] if known else np.full(len(offsets), np.nan))
    return np.concatenate(parts)


def _children(example: Example) -> list[list[int]]:
    """Child nodes of every segment, by index."""
    children: list[list[int]] = [[] for _ in range(len(example.nodes) + 1)]
    for index, node in enumerate(example.nodes):
        children[node.parent + 1].append(index + 1)
    return children


def _piece(example: Example, group: set[int] | None, owned: set[int], free: list[Array], starts: Array) -> Piece:
    """Lay out the segments of `group` (None: all) depth first; those in `owned` are another piece's, context here."""
    children = _children(example)
    order: list[int] = []
    stack = [0]
    while stack:
        segment = stack.pop()
        order.append(segment)
        stack.extend(c for c in reversed(children[segment]) if group is None or c in group)

    tokens = {0: example.prompt} | {s: example.nodes[s - 1].tokens for s in order if s}
    lengths = np.array([len(tokens[s]) for s in order], dtype=_INT)
    begin = np.cumsum(lengths) - lengths
    place = {s: i for i, s in enumerate(order)}
    parent = [place[example.nodes[s - 1].parent + 1] if s else -1 for s in order]
    end = begin + lengths
    depth = np.zeros(len(order), dtype=_INT)
    for i in range(len(order) - 1, 0, -1):  # backwards in preorder: children are done before their parents
        end[parent[i]] = max(end[parent[i]], end[i])
    for i in range(1, len(order)):
        depth[i] = depth[parent[i]] + lengths[parent[i]]
    final = begin + lengths - 1
    paths: list[list[int]] = [[]]
    for i in range(1, len(order)):
        paths.append([*paths[parent[i]], i])

    predictors, labels, slots = [], [], []
    own = [i for i, s in enumerate(order) if s not in owned]
    for i in own:
        s = order[i]
        if s and len(free[s - 1]):
            offsets = free[s - 1]
            predictors.append(np.where(offsets == 0, final[parent[i]], begin[i] + offsets - 1))
            labels.append(np.asarray(tokens[s], dtype=_INT)[offsets])
            slots.append(starts[s - 1] + np.arange(len(offsets)))
    return Piece(
        ids=np.fromiter((t for s in order for t in tokens[s]), dtype=_INT, count=int(lengths.sum())),
        positions=np.arange(int(lengths.sum())) + np.repeat(depth - begin, lengths),
        ends=np.repeat(end, lengths),
        predictors=np.concatenate(predictors) if predictors else EMPTY,
        labels=np.concatenate(labels) if labels else EMPTY,
        slots=np.concatenate(slots) if slots else EMPTY,
        last=final[own],
        segments=np.array([order[i] for i in own], dtype=_INT),
        owner=np.repeat(np.arange(len(order)), lengths),
        path_owned=np.repeat(np.arange(len(own)), [len(paths[i]) for i in own]),
        path_above=np.array([above for i in own for above in paths[i]], dtype=_INT),
        path_tokens=(depth + lengths - lengths[0])[own],
    )


def _branch_groups(example: Example, limit: int) -> list[set[int]]:
    """Root-to-leaf branches, depth first, gathered greedily into groups of at most `limit` tokens, prefix included."""
    children = _children(example)
    groups: list[set[int]] = []
    current: set[int] = set()
    used = 0
    stack: list[tuple[int, tuple[int, ...]]] = [(0, (0,))]
    while stack:
        segment, path = stack.pop()
        stack.extend((c, (*path, c)) for c in reversed(children[segment]))
        if children[segment]:
            continue
        cost = _size(example, set(path) - current)
        if current and used + cost > limit:
            groups.append(current)
            current, used = set(), 0
            cost = _size(example, set(path))
        current |= set(path)
        used += cost
    return [*groups, current]


def _size(example: Example, segments: set[int]) -> int:
    return sum(len(example.nodes[s - 1].tokens) if s else len(example.prompt) for s in segments)


def check_context(examples: Sequence[Example], max_positions: int | None) -> None:
    """Refuse paths that the model cannot hold.

    Raises:
        DataError: naming the example with the longest path.
    """
    if max_positions is None or not examples:
        return
    longest = max(examples, key=lambda e: e.longest_path)
    if longest.longest_path > max_positions:
        raise DataError(
            f"example {longest.id!r}: one path has {longest.longest_path} tokens (prompt included), but the model's "
            f"context is {max_positions}; leave this problem out or limit the steps' length and depth"
        )


def max_positions(model: nn.Module) -> int | None:
    """The model's context in tokens, None if its config does not say."""
    return getattr(model.config, "max_position_embeddings", None)


# ---------------------------------------------------------------------------------------------------------------------
# Rows and passes
# ---------------------------------------------------------------------------------------------------------------------


def pack(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """First-fit decreasing: rows of indices into `lengths`, none over `row_tokens` but for a single longer item.

    Deterministic: equal lengths keep their order.
    """
    rows: list[list[int]] = []
    space: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, left in enumerate(space) if lengths[index] <= left), None)
        if row is None:
            rows.append([])
            space.append(max(row_tokens, lengths[index]))
            row = len(rows) - 1
        rows[row].append(index)
        space[row] -= lengths[index]
    return rows


def passes(lengths: Sequence[int], row_tokens: int, rows_per_pass: int) -> list[list[list[int]]]:
    """Rows by forward, at most `row_tokens · rows_per_pass` places in each (but for a single longer item).

    With a mask, attention is computed over the whole row, so its cost a token grows with the row: rows are made no
    longer than the longest item needs, and there are more of them in a forward instead. Rows of like width stand
    together, so little is padded.
    """
    if not lengths:
        return []
    width = min(max(lengths), row_tokens)
    rows = sorted(pack(lengths, width), key=lambda row: -sum(lengths[i] for i in row))
    together = row_tokens * rows_per_pass // max(width, max(lengths)) or 1
    return [rows[start : start + together] for start in range(0, len(rows), together)]


def renumbered(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same rows with items numbered in the order they stand there."""
    ends = np.cumsum([len(row) for row in rows])
    return [list(range(end - len(row), end)) for row, end in zip(rows, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class Passage:
    """Input of one forward: some rows of pieces, padded to the longest. Flat places index the R·L tokens."""

    ids_RL: Tensor
    positions_RL: Tensor
    ends_RL: Tensor
    predictors_T: Tensor
    """Flat place of the predictor of each trained token; pieces in the order they were given."""
    labels_T: Tensor
    last_S: Tensor
    """Flat place of the last token of each owned segment; pieces in the order they were given."""
    owner_RL: Tensor
    """Segment of each token, numbered through all pieces; padding belongs to none (`n_segments`)."""
    path_owned_P: Tensor
    path_above_P: Tensor
    path_tokens_S: Tensor
    n_segments: int
    tokens: int
    """Without padding."""


def collate(pieces: Sequence[Piece], rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Passage:
    """Lay pieces out in rows. `rows` holds indices into `pieces`, each exactly once."""
    lengths = np.array([len(p) for p in pieces], dtype=_INT)
    width = max(int(lengths[list(row)].sum()) for row in rows)
    ids = np.zeros((len(rows), width), dtype=_INT)
    positions = np.zeros_like(ids)
    ends = np.full_like(ids, width)  # padding sees padding (and nothing else sees it), so no query is without a key
    shift = np.zeros(len(pieces), dtype=_INT)
    counts = np.array([p.owner[-1] + 1 for p in pieces], dtype=_INT)
    first, first_owned = np.cumsum(counts) - counts, np.cumsum([len(p.last) for p in pieces])
    first_owned = first_owned - np.array([len(p.last) for p in pieces], dtype=_INT)
    owner = np.full_like(ids, int(counts.sum()))
    for r, row in enumerate(rows):
        at = 0
        for i in row:
            piece, stop = pieces[i], at + lengths[i]
            ids[r, at:stop] = piece.ids
            positions[r, at:stop] = piece.positions
            ends[r, at:stop] = piece.ends + at
            owner[r, at:stop] = piece.owner + first[i]
            shift[i] = r * width + at
            at = stop

    def gathered(parts: list[Array]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts) if parts else EMPTY).to(device)

    return Passage(
        ids_RL=torch.from_numpy(ids).to(device),
        positions_RL=torch.from_numpy(positions).to(device),
        ends_RL=torch.from_numpy(ends).to(device),
        predictors_T=gathered([p.predictors + s for p, s in zip(pieces, shift, strict=True)]),
        labels_T=gathered([p.labels for p in pieces]),
        last_S=gathered([p.last + s for p, s in zip(pieces, shift, strict=True)]),
        owner_RL=torch.from_numpy(owner).to(device),
        path_owned_P=gathered([p.path_owned + s for p, s in zip(pieces, first_owned, strict=True)]),
        path_above_P=gathered([p.path_above + s for p, s in zip(pieces, first, strict=True)]),
        path_tokens_S=gathered([p.path_tokens for p in pieces]),
        n_segments=int(counts.sum()),
        tokens=int(lengths.sum()),
    )


def attention_mask(ends_RL: Tensor, dtype: torch.dtype) -> Tensor:
    """[R, L] ends of subtrees → [R, 1, L, L] additive mask: 0 where the query sees the key, else a very low number.

    Transformers takes a 4-D mask as it is; the additive form serves its sdpa and eager attention alike.
    """
    place_L = torch.arange(ends_RL.shape[1], device=ends_RL.device)
    sees = (place_L[None, :, None] >= place_L[None, None, :]) & (place_L[None, :, None] < ends_RL[:, None, :])
    mask = torch.zeros(sees.shape, dtype=dtype, device=ends_RL.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min / 2)[:, None]  # half: stays finite when cast to bfloat16
