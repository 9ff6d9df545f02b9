"""Trees and expansions to bytes and back, exactly, and a tree's digest. Reading a blob never runs code.

A blob is `TPB2`, a flag byte (1: the body is zlib-compressed) and the body: msgpack of the structures below, checked
field by field when it is read. Columns of floats stand as float32 where that loses nothing (an engine's log-probs
usually are float32), else as float64. This file knows no database, no file and no rule of any search.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from typing import TypeVar, get_args

import msgspec

from treepref.types import Completion, Finish, Node, PolicyId, Tree

MAGIC = b"TPB2"
COMPRESSED = 1
_COMPRESS_ABOVE = 256
"""Bytes below which zlib gains nothing."""
FINISHES: tuple[Finish, ...] = get_args(Finish)
"""A digest names how a node ended by its position here."""
Tokens = tuple[int, ...]
Floats = bytes
"""b"f" or b"d", then the numbers, little-endian."""
Body = TypeVar("Body", bound=msgspec.Struct)


class _Sample(msgspec.Struct, array_like=True, frozen=True):
    """A completion and its reward."""

    tokens: Tokens
    logprobs: Floats
    finish: Finish
    behaviour: Floats | None
    forced: tuple[bool, ...] | None
    value: float | None
    choice_probs: tuple[float, ...] | None
    score: float | None
    reward: float | None


class _Expansion(msgspec.Struct, array_like=True, frozen=True):
    samples: tuple[_Sample, ...]
    prefix_value: float | None


class _Node(msgspec.Struct, array_like=True, frozen=True):
    """A step. What follows from the others is not stored: depth, children, exhausted; nor what is pending."""

    parent: int
    """Index of the parent, which comes before; −1: the root."""
    tokens: Tokens
    logprobs: Floats
    finish: Finish
    samples: int
    visits: int
    total: float
    prior: float
    value: float | None
    confidence: float | None
    reward: float | None
    terminal: bool
    expanded: bool
    behaviour: Floats | None
    forced: tuple[bool, ...] | None


class _Tree(msgspec.Struct, array_like=True, frozen=True):
    key: str
    problem_id: str
    policy: str
    prompt: Tokens
    q_range: tuple[float, float]
    simulations: int
    failed: int
    nodes: tuple[_Node, ...]


# ---------------------------------------------------------------------------------------------------- expansions


def pack_expansion(
    completions: Sequence[Completion], rewards: Sequence[float | None], prefix_value: float | None
) -> bytes:
    """What one expansion brought, as a blob."""
    if len(rewards) != len(completions):
        raise ValueError(f"{len(completions)} completions have {len(rewards)} rewards")
    samples = tuple(
        _Sample(
            c.tokens, _pack_floats(c.logprobs), c.finish, None if c.behaviour is None else _pack_floats(c.behaviour),
            c.forced, c.value, c.choice_probs, c.score, reward,
        )
        for c, reward in zip(completions, rewards, strict=True)
    )  # fmt: skip
    return _pack(_Expansion(samples, prefix_value))


def unpack_expansion(blob: bytes) -> tuple[tuple[Completion, ...], tuple[float | None, ...], float | None]:
    """Completions, rewards and the prefix's value, as `pack_expansion` was given them.

    Raises ValueError where the bytes are damaged.
    """
    found = _unpack(blob, _Expansion)
    completions = tuple(
        Completion(
            s.tokens, _floats(s.logprobs, s.tokens), s.finish,
            None if s.behaviour is None else _floats(s.behaviour, s.tokens), s.forced, s.value, s.choice_probs, s.score,
        )
        for s in found.samples
    )  # fmt: skip
    return completions, tuple(s.reward for s in found.samples), found.prefix_value


# ---------------------------------------------------------------------------------------------------- trees


def pack_tree(tree: Tree) -> bytes:
    """A tree as a blob. What is in flight below its nodes is not kept: it is asked again."""
    nodes = tuple(
        _Node(
            -1 if n.parent is None else n.parent.index, n.tokens, _pack_floats(n.logprobs), n.finish, n.samples,
            n.visits, n.total, n.prior, n.value, n.confidence, n.reward, n.terminal, n.expanded,
            None if n.behaviour is None else _pack_floats(n.behaviour), n.forced,
        )
        for n in tree.nodes
    )  # fmt: skip
    whole = _Tree(
        tree.key, tree.problem_id, tree.policy, tree.prompt, tree.q_range, tree.simulations, tree.failed, nodes
    )
    return _pack(whole)


def unpack_tree(blob: bytes) -> Tree:
    """The tree that `pack_tree` was given, exactly. Raises ValueError where the bytes are damaged."""
    found = _unpack(blob, _Tree)
    nodes: list[Node] = []
    for index, stored in enumerate(found.nodes):
        if not -1 <= stored.parent < index or (stored.parent < 0) != (index == 0):
            raise ValueError(f"node {index} stands below node {stored.parent}")
        nodes.append(_node(index, stored, nodes[stored.parent] if index else None))
    if not nodes:
        raise ValueError("the tree has no root")
    for node in reversed(nodes):  # children come after their parent
        node.exhausted = node.terminal or (node.expanded and all(child.exhausted for child in node.children))
    return Tree(
        key=found.key, problem_id=found.problem_id, prompt=found.prompt, policy=PolicyId(found.policy), nodes=nodes,
        q_range=found.q_range, simulations=found.simulations, failed=found.failed,
    )  # fmt: skip


def _node(index: int, stored: _Node, parent: Node | None) -> Node:
    node = Node(
        index=index, parent=parent, tokens=stored.tokens, logprobs=_floats(stored.logprobs, stored.tokens),
        behaviour=None if stored.behaviour is None else _floats(stored.behaviour, stored.tokens), forced=stored.forced,
        finish=stored.finish, depth=0 if parent is None else parent.depth + 1, samples=stored.samples,
        visits=stored.visits, total=stored.total, prior=stored.prior, value=stored.value, confidence=stored.confidence,
        reward=stored.reward, terminal=stored.terminal, expanded=stored.expanded,
    )  # fmt: skip
    if parent is not None:
        parent.children.append(node)  # children stand in the order of creation, as in the original
    return node


def digest_tree(tree: Tree) -> bytes:
    """32 bytes that change with any token id, outcome or count, and with no float, whose last bits may differ."""
    digest = hashlib.blake2b(digest_size=32)
    for text in (tree.key, tree.problem_id, tree.policy):
        encoded = text.encode()
        _hash_integers(digest, [len(encoded)])
        digest.update(encoded)
    _hash_integers(digest, [tree.simulations, tree.failed, len(tree.prompt), *tree.prompt])
    for n in tree.nodes:
        right_or_wrong = 0 if n.reward is None else 1 if n.reward > 0 else 2
        parent = -1 if n.parent is None else n.parent.index
        counts = [parent, FINISHES.index(n.finish), right_or_wrong, n.visits, n.samples, n.terminal, n.expanded]
        _hash_integers(digest, [*counts, len(n.tokens), *n.tokens])
    return digest.digest()


def _hash_integers(digest: hashlib.blake2b, integers: Sequence[int]) -> None:
    digest.update(struct.pack(f"<{len(integers)}q", *integers))  # one byte order on every machine


# ---------------------------------------------------------------------------------------------------- bytes


def _pack(body: msgspec.Struct) -> bytes:
    encoded, flags = msgspec.msgpack.encode(body), 0
    if len(encoded) > _COMPRESS_ABOVE:
        smaller = zlib.compress(encoded, level=1)
        if len(smaller) < len(encoded):
            encoded, flags = smaller, COMPRESSED
    return MAGIC + bytes([flags]) + encoded


def _unpack(blob: bytes, kind: type[Body]) -> Body:
    try:
        if blob[: len(MAGIC)] != MAGIC:
            raise ValueError("it does not begin with the mark of a treepref blob")
        body = blob[len(MAGIC) + 1 :]
        return msgspec.msgpack.decode(zlib.decompress(body) if blob[len(MAGIC)] & COMPRESSED else body, type=kind)
    except (ValueError, IndexError, msgspec.MsgspecError, zlib.error) as error:
        raise ValueError(f"a stored blob of {len(blob)} bytes is damaged: {error}") from error


def _pack_floats(values: Sequence[float]) -> Floats:
    short, exact = array("f"), array("d", values)
    try:
        short = array("f", values)
        fits = all(a == b or (a != a and b != b) for a, b in zip(short, exact, strict=True))
    except OverflowError:
        fits = False
    kept = short if fits else exact
    if sys.byteorder == "big":
        kept.byteswap()
    return kept.typecode.encode() + kept.tobytes()


def _floats(stored: Floats, tokens: Tokens) -> tuple[float, ...]:
    """The numbers, one a token. Raises ValueError where they are not that many."""
    kind = stored[:1].decode("latin-1")
    if kind not in ("f", "d"):
        raise ValueError("a column of floats is of another kind")
    found = array(kind)
    found.frombytes(stored[1:])
    if sys.byteorder == "big":
        found.byteswap()
    if len(found) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens have {len(found)} numbers")
    return tuple(found)
