"""Examples from trees: what is kept, what is trained, where reference log-probs come from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from treepref.errors import DataError, ModelError
from treepref.training.examples import (
    Example,
    ExampleNode,
    ExamplePair,
    attach_reference,
    example_from_solution,
    example_from_tree,
)
from treepref.training.objectives import Counts
from treepref.types import Node, Pair, PolicyId, Tree, new_tree


def add(tree: Tree, parent: int, tokens: tuple[int, ...], forced: tuple[bool, ...] | None = None) -> int:
    above = tree.nodes[parent]
    node = Node(len(tree.nodes), above, tokens, tuple(-0.5 for _ in tokens), forced=forced, depth=above.depth + 1)
    above.children.append(node)
    tree.nodes.append(node)
    return node.index


@pytest.fixture
def tree() -> Tree:
    """0 ─ 1 ─ 3, 4;  0 ─ 2 ─ 5"""
    tree = new_tree("t", "t", (7, 8, 9), policy=PolicyId("p4"))
    for parent, tokens in ((0, (1, 2)), (0, (3,)), (1, (4, 5)), (1, (6, 1)), (2, (2,))):
        add(tree, parent, tokens)
    return tree


STEP = Pair("t", (3,), (4,), 0.9, -0.2, 6, 2)


def test_only_what_is_needed_is_kept_with_its_ancestors(tree: Tree) -> None:
    example = example_from_tree(tree, [STEP], smoothing="visits")
    # nodes 1 (context), 3 (winner), 4 (loser); 2 and 5 are pruned
    assert [n.tokens for n in example.nodes] == [(1, 2), (4, 5), (6, 1)]
    assert [n.parent for n in example.nodes] == [-1, 0, 0]
    assert example.trained == (False, True, True)
    assert example.pairs == (ExamplePair((1,), (2,), alpha=0.25),)  # N_l/(N_w + N_l) = 2/8
    assert [n.sft for n in example.nodes] == [0.0, 1.0, 0.0]  # NLL of the winner
    assert example.counts == Counts(pairs=1, values=0, tokens=2)
    assert (example.trained_tokens, example.size, example.longest_path) == (4, 9, 7)
    assert example.policy == "p4"


def test_targets_and_paths_are_kept_too(tree: Tree) -> None:
    example = example_from_tree(tree, [STEP], targets={0: 0.1, 5: -1.0}, sft_paths=[(0, 1, 4)])
    assert [n.tokens for n in example.nodes] == [(1, 2), (3,), (4, 5), (6, 1), (2,)]
    assert [n.target for n in example.nodes] == [None, None, None, None, -1.0]
    assert example.root_target == 0.1
    assert [n.sft for n in example.nodes] == [1, 0, 0, 1, 0]
    assert example.trained == (True, False, True, True, False)


def test_a_solution_pair_keeps_both_paths(tree: Tree) -> None:
    pair = Pair("t", (1, 3), (2, 5), 1, -1, 1, 1)
    example = example_from_tree(tree, [pair], sft_paths=[])
    assert example.pairs == (ExamplePair((0, 2), (1, 3)),)
    assert example.counts.tokens == 0


def test_forced_tokens_do_not_count() -> None:
    example = example_from_solution((1, 2), (3, 4, 5), id="x", forced=(False, True, False))
    assert example.trained_tokens == 2
    assert example.counts == Counts(tokens=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ()}, "no tokens"),
        ({"nodes": (ExampleNode(()),)}, "no tokens"),
        ({"nodes": (ExampleNode((1,), parent=0),)}, "parent"),
        ({"nodes": (ExampleNode((1, 2), ref=(0.0,)),)}, "2 tokens but 1 entries in ref"),
        ({"nodes": (ExampleNode((1,), target=1.5),)}, "q_range"),
        ({"root_target": float("nan")}, "target"),
        ({"pairs": (ExamplePair((0,), (9,)),)}, "not there"),
        ({"pairs": (ExamplePair((0,), ()),)}, "empty side"),
        ({"pairs": (ExamplePair((0,), (0,), alpha=0.7),)}, "smoothing"),
    ],
)
def test_broken_examples_are_refused_by_name(change: dict, message: str) -> None:
    good = {"id": "bad-one", "prompt": (1,), "nodes": (ExampleNode((1,)),)}
    with pytest.raises(DataError, match=message) as error:
        Example(**good | change)
    assert "bad-one" in str(error.value)


def recorded(examples: list[Example], shift: float = 0.0):
    """A scorer that answers with the recorded log-probs, off by `shift`; counts its calls."""
    calls: list[int] = []

    def scorer(asked: list[Example]):
        calls.append(len(asked))
        return [
            [tuple(x + shift for x in n.logprobs) if t else None for n, t in zip(e.nodes, e.trained, strict=True)]
            for e in asked
        ]

    return scorer, calls


def test_recorded_log_probs_serve_when_they_are_the_references(tree: Tree) -> None:
    examples = [example_from_tree(tree, [STEP])]
    scorer, _ = recorded(examples, shift=5e-4)
    attached, report = attach_reference(examples, scorer, reference=PolicyId("p4"))
    assert (report.recorded, report.recomputed, report.checked) == (1, 0, 2)
    assert report.worst == pytest.approx(5e-4)
    assert [n.ref for n in attached[0].nodes] == [None, (-0.5, -0.5), (-0.5, -0.5)]


def test_recorded_log_probs_that_disagree_are_recomputed(tree: Tree) -> None:
    scorer, _ = recorded([], shift=2e-3)
    attached, report = attach_reference([example_from_tree(tree, [STEP])], scorer, reference=PolicyId("p4"))
    assert (report.recorded, report.recomputed) == (0, 1)
    assert attached[0].nodes[1].ref == pytest.approx((-0.498, -0.498))


def test_another_versions_log_probs_are_recomputed_or_refused(tree: Tree) -> None:
    mine, other = (
        example_from_tree(tree, [STEP]),
        replace(example_from_tree(tree, [STEP], id="u"), policy=PolicyId("p3")),
    )
    scorer, calls = recorded([])
    attached, report = attach_reference([other, mine], scorer, reference=PolicyId("p4"))
    assert [e.id for e in attached] == ["u", "t"]
    assert (report.recorded, report.recomputed) == (1, 1)
    assert calls == [1, 1]  # the sample, then the example of the other policy
    with pytest.raises(ModelError, match=r"'u'.*p4"):
        attach_reference([other, mine], None, reference=PolicyId("p4"))
