"""A tree's fields in columns that stand in JSON, one a field, so that a person can read a golden tree."""

from __future__ import annotations

from treepref.runs.codec import FINISHES, pack_tree, unpack_tree
from treepref.types import Tree


def columns(tree: Tree) -> dict[str, object]:
    """Shapes: nodes N, tokens of all nodes T (`offsets` (N+1,) cuts them), prompt (P,); null for what is missing."""
    nodes, offsets = tree.nodes, [0]
    for n in nodes:
        offsets.append(offsets[-1] + len(n.tokens))
    confidence = [n.confidence for n in nodes]
    return {
        "key": tree.key,
        "problem_id": tree.problem_id,
        "policy": tree.policy,
        "simulations": tree.simulations,
        "failed": tree.failed,
        "q_range": list(tree.q_range),
        "finish": [FINISHES.index(n.finish) for n in nodes],
        "parent": [-1 if n.parent is None else n.parent.index for n in nodes],
        "visits": [n.visits for n in nodes],
        "samples": [n.samples for n in nodes],
        "tokens": [token for n in nodes for token in n.tokens],
        "offsets": offsets,
        "prompt": list(tree.prompt),
        "logprobs": [x for n in nodes for x in n.logprobs],
        "behaviour": [x for n in nodes for x in n.behaviour or ()],
        "total": [n.total for n in nodes],
        "prior": [n.prior for n in nodes],
        "value": [n.value for n in nodes],
        "reward": [n.reward for n in nodes],
        **({"confidence": confidence} if any(c is not None for c in confidence) else {}),
        "has_behaviour": [n.behaviour is not None for n in nodes],
        "has_forced": [n.forced is not None for n in nodes],
        "forced": [x for n in nodes for x in n.forced or ()],
        "terminal": [n.terminal for n in nodes],
        "expanded": [n.expanded for n in nodes],
    }


def stored_and_read(tree: Tree) -> Tree:
    """The tree as a run's store gives it back."""
    return unpack_tree(pack_tree(tree))
