"""What of a search tree is worth drawing, and where: pruning, marks and positions. Emits no markup, knows no page.

Trees are the plain dicts of `ReportData.trees`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SMALL_TREE = 12
"""Trees with no more steps than this are shown whole."""
MAX_TEXT = 700
MAX_MAP_NODES = 1000
MAP_WIDTH, MAP_HEIGHT, MAP_MARGIN = 232.0, 420.0, 10.0
"""The map's frame, in its own units (one is a pixel where the page is wide)."""
_EMPTY = {
    "parent": None, "q": None, "visits": 0, "value": None, "confidence": None, "prior": None, "reward": None,
    "terminal": False, "finish": "eos",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mark:
    """A node's part in a pair."""

    pair: int
    """Number of the pair in its tree, from 1."""
    won: bool
    gap: float
    """Q(winner) − Q(loser)."""


@dataclass(slots=True)
class Row:
    """One line of the outline: a step, or (where `node` is None) the count of what is not shown there."""

    rails: list[bool]
    """For each level above this one: does its line go on below this row?"""
    last: bool
    """No sibling comes below."""
    node: Mapping[str, Any] | None = None
    text: str = ""
    pieces: list[tuple[str, bool]] = field(default_factory=list)
    """The same text in pieces, each with whether a tool forced it."""
    marks: list[Mark] = field(default_factory=list)
    """Pairs that part here."""
    side: str = ""
    """`won`, `lost`, `both` or nothing: the step lies on a pair's side."""
    on_best: bool = False
    hidden_here: int = 0
    hidden_below: int = 0
    q_scaled: float | None = None
    """Q mapped to [-1, 1] over the tree's range of Q."""


@dataclass(frozen=True, slots=True)
class Dot:
    """A node of the map of the whole tree, in the map's own units."""

    x: float
    y: float
    radius: float
    colour: str | None
    """None: never visited."""
    terminal: bool
    side: str
    shown: bool
    label: str


@dataclass(frozen=True, slots=True)
class TreeView:
    """A tree ready for drawing."""

    question: str
    answer: str | None
    problem_id: str | None
    round: int | None
    rows: list[Row]
    dots: list[Dot]
    """Empty where the tree is too large for a map."""
    edges: list[tuple[float, float, float, float, bool]]
    """x1, y1, x2, y2, on the way to the best answer."""
    width: float
    height: float
    steps: int
    """Steps in the whole tree, the root apart."""
    hidden: int
    finished: int
    right: int | None
    """Right solutions; None where outcomes are not known."""
    visits: int | None
    root_value: float | None
    pairs: int
    largest_gap: float | None
    judged: bool
    """Some step has a C."""
    tools: bool
    """Some step has tokens that a tool forced."""


def tree_view(tree: Mapping[str, Any]) -> TreeView:
    """Keep the pairs and the path to the best answer, with the count of what is left out beside them."""
    nodes = {node["id"]: {**_EMPTY, **node} for node in tree["nodes"]}
    q_range = tuple(tree.get("q_range") or (-1.0, 1.0))
    children: dict[Any, list[Any]] = {key: [] for key in nodes}
    roots = []
    for key, node in nodes.items():
        parent = node.get("parent")
        (children[parent] if parent in nodes else roots).append(key)
    for below in children.values():
        below.sort(key=lambda key: _rank(nodes[key]))

    marks, sides = _pair_marks(tree.get("pairs") or [])
    best = _best_path(nodes)
    shown = set(nodes)
    if len(nodes) - len(roots) > SMALL_TREE:
        shown = set(roots).union(best, *(_ancestors(key, nodes) for key in sides if key in nodes))
    sizes = _subtree_sizes(roots, children)

    outline = _Outline(nodes, children, sizes, shown, marks, sides, best, q_range)
    for root in roots:
        outline.below(root, [])

    dots, edges, width, height = _map(roots, children, nodes, sides, shown, best, q_range)
    ends = [node for node in nodes.values() if node.get("terminal")]
    rewards = [node["reward"] for node in ends if node.get("reward") is not None]
    root = nodes[roots[0]] if roots else {}
    gaps = [mark.gap for found in marks.values() for mark in found]
    return TreeView(
        question=str(tree.get("question") or ""),
        answer=tree.get("answer"),
        problem_id=tree.get("problem_id"),
        round=tree.get("round"),
        rows=outline.rows,
        dots=dots,
        edges=edges,
        width=width,
        height=height,
        steps=len(nodes) - len(roots),
        hidden=len(nodes) - len(shown),
        finished=len(ends),
        right=sum(reward > 0 for reward in rewards) if rewards else None,
        visits=root.get("visits"),
        root_value=root.get("value"),
        pairs=len(tree.get("pairs") or []),
        largest_gap=max(gaps, default=None),
        judged=any(node.get("confidence") is not None for node in nodes.values()),
        tools=any(node.get("pieces") for node in nodes.values()),
    )


@dataclass(slots=True)
class _Outline:
    """The rows of a tree, each step below its parent."""

    nodes: Mapping[Any, Mapping[str, Any]]
    children: Mapping[Any, list[Any]]
    sizes: Mapping[Any, int]
    shown: set[Any]
    marks: Mapping[Any, list[Mark]]
    sides: Mapping[Any, str]
    best: Collection[Any]
    q_range: tuple[float, ...]
    rows: list[Row] = field(default_factory=list)

    def below(self, parent: Any, rails: list[bool]) -> None:
        """Add what is shown below a node, and a line for what is left out there. `rails`: the lines that run past."""
        kept = [key for key in self.children[parent] if key in self.shown]
        left_out = [key for key in self.children[parent] if key not in self.shown]
        for position, key in enumerate(kept):
            last = position == len(kept) - 1 and not left_out
            self.rows.append(self._row(key, rails, last))
            self.below(key, [*rails, not last])
        if left_out and kept:
            total = sum(self.sizes[key] for key in left_out)
            self.rows.append(Row(rails=rails, last=True, hidden_here=len(left_out), hidden_below=total - len(left_out)))

    def _row(self, key: Any, rails: list[bool], last: bool) -> Row:
        node = self.nodes[key]
        below_shown = any(child in self.shown for child in self.children[key])
        return Row(
            rails=rails, last=last, node=node, text=clip(node.get("text")), pieces=clip_pieces(node),
            marks=self.marks.get(key, []), side=self.sides.get(key, ""), on_best=key in self.best,
            hidden_below=0 if below_shown else self.sizes[key] - 1, q_scaled=_scaled(node.get("q"), self.q_range),
        )  # fmt: skip


def clip(text: Any) -> str:
    """A step's text without the white space around it, and cut where it is very long."""
    text = str(text or "").strip()
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT} more characters)"


def clip_pieces(node: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The step's text as `clip` leaves it, in pieces that are forced by a tool or not."""
    pieces = node.get("pieces") or [(str(node.get("text") or ""), False)]
    whole = "".join(text for text, _ in pieces)
    first = len(whole) - len(whole.lstrip())
    last = min(len(whole.rstrip()), first + MAX_TEXT)
    out, at = [], 0
    for text, forced in pieces:
        kept = text[max(0, first - at) : max(0, last - at)]
        at += len(text)
        if kept:
            out.append((kept, forced))
    if (more := len(whole.strip()) - MAX_TEXT) > 0:
        out.append((f" … ({more} more characters)", False))
    return out


def colour_of(q: float | None) -> str | None:
    """Red at −1 over sand at 0 to green at +1; legible on light and on dark."""
    if q is None:
        return None
    ends = (214, 69, 65), (190, 176, 140), (22, 160, 110)
    a, b = (ends[0], ends[1]) if q < 0 else (ends[1], ends[2])
    share = q + 1 if q < 0 else q
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in zip(a, b, strict=True))


def _rank(node: Mapping[str, Any]) -> tuple[float, float]:
    """Best Q first; without visits last."""
    q = node.get("q")
    return (math.inf if q is None else -q, -(node.get("visits") or 0))


def _scaled(q: float | None, q_range: Sequence[float]) -> float | None:
    low, high = q_range
    if q is None or high <= low:
        return None
    return min(1.0, max(-1.0, 2 * (q - low) / (high - low) - 1))


def _pair_marks(pairs: Sequence[Mapping[str, Any]]) -> tuple[dict[Any, list[Mark]], dict[Any, str]]:
    """Marks at the first node of each side, and the side of every node that a pair names."""
    marks: dict[Any, list[Mark]] = {}
    sides: dict[Any, str] = {}
    for number, pair in enumerate(pairs, start=1):
        gap = pair["q_winner"] - pair["q_loser"]
        for name, won in (("winner", True), ("loser", False)):
            path = pair[name] if isinstance(pair[name], (list, tuple)) else [pair[name]]
            for position, key in enumerate(path):
                side = "won" if won else "lost"
                sides[key] = side if sides.get(key, side) == side else "both"
                if position == 0:
                    marks.setdefault(key, []).append(Mark(number, won, gap))
    return marks, sides


def _ancestors(key: Any, nodes: Mapping[Any, Mapping[str, Any]]) -> set[Any]:
    """The node and all above it."""
    found = set()
    while key in nodes and key not in found:
        found.add(key)
        key = nodes[key].get("parent")
    return found


def _best_path(nodes: Mapping[Any, Mapping[str, Any]]) -> set[Any]:
    """From the root to the best answer: highest reward, else highest Q, then the most visited."""
    ends = [key for key, node in nodes.items() if node.get("terminal")]
    if not ends:
        return set()

    def goodness(key: Any) -> tuple[float, float, float]:
        node = nodes[key]
        reward, q = node.get("reward"), node.get("q")
        return (-math.inf if reward is None else reward, -math.inf if q is None else q, node.get("visits") or 0)

    return _ancestors(max(ends, key=goodness), nodes)


def _subtree_sizes(roots: Sequence[Any], children: Mapping[Any, Sequence[Any]]) -> dict[Any, int]:
    order, stack = [], list(roots)
    while stack:
        key = stack.pop()
        order.append(key)
        stack.extend(children[key])
    sizes: dict[Any, int] = {}
    for key in reversed(order):
        sizes[key] = 1 + sum(sizes[child] for child in children[key])
    return sizes


def _map(
    roots: Sequence[Any],
    children: Mapping[Any, Sequence[Any]],
    nodes: Mapping[Any, Mapping[str, Any]],
    sides: Mapping[Any, str],
    shown: set[Any],
    best: set[Any],
    q_range: Sequence[float],
) -> tuple[list[Dot], list[tuple[float, float, float, float, bool]], float, float]:
    """The whole tree from left to right: leaves evenly spaced, a parent midway between its first and last child."""
    if not roots or len(nodes) > MAX_MAP_NODES:
        return [], [], 0.0, 0.0
    places: dict[Any, tuple[int, float]] = {}
    leaves = 0

    def place(key: Any, depth: int) -> float:
        nonlocal leaves
        if children[key]:
            below = [place(child, depth + 1) for child in children[key]]
            y = (below[0] + below[-1]) / 2
        else:
            y = float(leaves)
            leaves += 1
        places[key] = (depth, y)
        return y

    for root in roots:
        place(root, 0)
    # The map keeps its frame: a larger tree is drawn denser, and what the outline shows stays visible in it.
    line = min(13.0, MAP_HEIGHT / leaves)
    column = min(64.0, (MAP_WIDTH - 2 * MAP_MARGIN) / max(1, max(depth for depth, _ in places.values())))
    smallest, largest = min(2.4, max(1.0, 0.4 * line)), min(6.0, max(3.2, 0.5 * line))
    spots = {key: (MAP_MARGIN + depth * column, MAP_MARGIN + y * line) for key, (depth, y) in places.items()}
    most = max((nodes[key]["visits"] or 0 for key in spots), default=0) or 1
    dots, edges = [], []
    for key, (x, y) in sorted(spots.items(), key=lambda item: item[0] in shown):
        node = nodes[key]
        if node["parent"] in spots:
            edges.append((*spots[node["parent"]], x, y, key in best))
        q, visits = node["q"], node["visits"] or 0
        label = f"{clip(node.get('text')) or 'start'}\nQ {'none' if q is None else f'{q:+.2f}'}, N {visits}"
        radius = smallest + (largest - smallest) * math.sqrt(visits / most)
        dots.append(
            Dot(
                x=x,
                y=y,
                radius=max(radius, 3.0) if key in shown else radius,
                colour=colour_of(_scaled(q, q_range)),
                terminal=bool(node["terminal"]),
                side=sides.get(key, ""),
                shown=key in shown,
                label=label,
            )
        )
    edges.sort(key=lambda edge: edge[-1])
    width = max(x for x, _ in spots.values()) + MAP_MARGIN
    height = 2 * MAP_MARGIN + (leaves - 1) * line
    return dots, edges, width, height
