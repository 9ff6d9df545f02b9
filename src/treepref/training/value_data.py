"""What a value head is fitted on: hidden states of a policy at the ends of steps, and what came of these steps.

Hidden states are computed by the policy as it is now, with whole trees packed as for training: after an update those
that were seen while sampling are another policy's. Knows trees and the packed forward; knows no fit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from treepref.models.hidden import hidden_width
from treepref.models.value_head import LAST_LAYER, Read
from treepref.search.base import path_nodes
from treepref.search.tree import path_mean_logprob
from treepref.training.examples import Example, ExampleNode
from treepref.training.forward import PackedModel, pooled
from treepref.training.packing import collate, flatten, renumbered
from treepref.training.pairs import best_outcomes
from treepref.types import Node, Tree


@dataclass(frozen=True, slots=True, eq=False)
class ValueData:
    """N steps, each with its state's features and what came of it. Rows of one problem stand together."""

    features_NH: dict[Read, Tensor]
    right_N: Tensor
    """The share of the solutions through the step that were right, or whether one was (`TARGETS`), in [0, 1]."""
    problem_N: list[str]
    depth_N: list[int]
    finished_N: Tensor
    """Whether the step ends a solution."""
    logprob_N: Tensor
    """Mean log-prob of the solution so far."""
    before_N: Tensor | None
    """V of the head that the policy came with; None where it was never trained."""
    tokens: int
    """Run through the model for it."""

    def __len__(self) -> int:
        return len(self.problem_N)


def share_right(tree: Tree) -> dict[int, float]:
    """Node index → share of the checked solutions at or below it that are right, each sample counted.

    A step that was cut or stands unfinished at the depth limit counts as a wrong solution. Nodes below which nothing
    was checked are left out.
    """
    right, checked = np.zeros(len(tree.nodes)), np.zeros(len(tree.nodes))
    for node in reversed(tree.nodes):  # children stand behind their parents
        if node.terminal and node.reward is not None:
            count = max(1, node.samples)
            checked[node.index] += count
            right[node.index] += count * (node.reward > 0)
        if node.parent is not None:
            right[node.parent.index] += right[node.index]
            checked[node.parent.index] += checked[node.index]
    return {n.index: float(right[n.index] / checked[n.index]) for n in tree.nodes if checked[n.index]}


def reaches_right(tree: Tree) -> dict[int, float]:
    """Node index → 1 where a right solution lies at or below it, else 0; where none was checked, no entry."""
    return {index: float(best > 0) for index, best in best_outcomes(tree).items()}


TARGETS: dict[str, Callable[[Tree], dict[int, float]]] = {"mean": share_right, "best": reaches_right}
"""What V predicts of a step, by `train.value_target`: the share of its solutions that are right, or whether one is."""


def chosen_nodes(tree: Tree, solutions: int, seed: int) -> list[Node]:
    """At most `solutions` finished solutions of a tree, drawn evenly, with all steps on their way; in tree order."""
    ends = [n for n in tree.nodes if n.terminal and n.finish == "eos" and n.reward is not None]
    drawn = random.Random(f"{seed}/{tree.key}").sample(ends, min(solutions, len(ends)))
    wanted = {step.index for end in drawn for step in path_nodes(end)}
    return [tree.nodes[index] for index in sorted(wanted)]


@torch.no_grad()
def value_data(
    model: nn.Module,
    trees: Sequence[Tree],
    reads: Sequence[Read],
    *,
    value_head: nn.Module | None = None,
    target: Literal["mean", "best"] = "mean",
    solutions: int = 8,
    most: int = 8192,
    seed: int = 0,
    row_tokens: int = 2048,
    rows_per_pass: int = 1,
) -> ValueData:
    """Features at `reads` of the steps of up to `solutions` solutions a tree, at most about `most` steps in all.

    Trees are taken in an order drawn from `seed` until there are enough steps. `value_head`: one whose V is recorded
    beside. The model is used in evaluation mode and left in the mode it was in.
    """
    taken: list[tuple[Tree, list[Node]]] = []
    steps = 0
    for tree in random.Random(seed).sample(list(trees), len(trees)):
        nodes = chosen_nodes(tree, solutions, seed)
        if nodes and steps < most:
            taken.append((tree, nodes))
            steps += len(nodes)
    taken.sort(key=lambda item: item[0].key)  # one order, whatever they were drawn in
    flats = [flatten(_example(tree, nodes), row_tokens) for tree, nodes in taken]
    packed = PackedModel(model, value_head)
    owners = [(f, piece) for f, flat in enumerate(flats) for piece in flat.pieces]
    device = next(model.parameters()).device
    width = hidden_width(model)
    found = {read: [torch.zeros(len(nodes), width) for _, nodes in taken] for read in reads}
    before = [torch.zeros(len(nodes)) for _, nodes in taken]
    layers = sorted({read.layer for read in reads} - {LAST_LAYER} | set(packed.layers))
    with packed.running():
        for chosen in packed.passes([len(piece) for _, piece in owners], row_tokens, rows_per_pass):
            members = [owners[i] for row in chosen for i in row]
            passage = collate([piece for _, piece in members], renumbered(chosen), device)
            hidden_NH = packed.hidden(passage, layers)
            values = None if value_head is None else packed.values(passage, hidden_NH)
            for read in reads:
                state_SH = pooled(hidden_NH[read.layer].float(), passage, read.pool).cpu()
                _hand_out(state_SH, [(found[read][f], piece.segments) for f, piece in members])
            if values is not None:
                _hand_out(values.float().cpu(), [(before[f], piece.segments) for f, piece in members])
    shares = [TARGETS[target](tree) for tree, _ in taken]
    rows = [
        (tree, node, share[node.index]) for (tree, nodes), share in zip(taken, shares, strict=True) for node in nodes
    ]
    return ValueData(
        features_NH={read: torch.cat([torch.zeros(0, width), *parts]) for read, parts in found.items()},
        right_N=torch.tensor([share for _, _, share in rows]),
        problem_N=[tree.problem_id for tree, _, _ in rows],
        depth_N=[node.depth for _, node, _ in rows],
        finished_N=torch.tensor([node.terminal for _, node, _ in rows], dtype=torch.bool),
        logprob_N=torch.tensor([path_mean_logprob(node) for _, node, _ in rows]),
        before_N=None if value_head is None else torch.cat([torch.zeros(0), *before]),
        tokens=sum(flat.tokens for flat in flats),
    )


def _example(tree: Tree, nodes: Sequence[Node]) -> Example:
    place = {node.index: i for i, node in enumerate(nodes)}
    return Example(
        id=tree.key,
        prompt=tuple(tree.prompt),
        nodes=tuple(
            ExampleNode(node.tokens, place.get(node.parent.index, -1) if node.parent is not None else -1)
            for node in nodes
        ),
    )


def _hand_out(of_segments: Tensor, parts: Sequence[tuple[Tensor, np.ndarray]]) -> None:
    """To each example what its nodes got; the prompt's (segment 0) is dropped."""
    start = 0
    for into, segments in parts:
        own = of_segments[start : start + len(segments)]
        start += len(segments)
        nodes = torch.from_numpy(segments) > 0
        into[torch.from_numpy(segments)[nodes] - 1] = own[nodes].to(into.dtype)
