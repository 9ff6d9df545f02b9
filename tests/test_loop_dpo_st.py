"""DPO-ST for real: the shipped tiny base, a few problems, every stage, killed and resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from kill_plans import Death, check_same_run, killed_and_resumed, lives_of
from loop_runs import check_same_weights, digest, parameters
from small_runs import ONLY_FOR_DPO, apart_from
from treepref.errors import RecipeError, StoreError, TooFewPairs
from treepref.loops.dpo_st import improves, pseudo_labels
from treepref.loops.fork import fork
from treepref.loops.learn import written_solution
from treepref.loops.run import run as run_recipe
from treepref.loops.session import Session
from treepref.recipes.reading import load_recipe
from treepref.runs.store import Store
from treepref.training.pairs import is_right
from treepref.training.selection import jaccard

SMALL = [
    "seed=3", "rounds=2", "engine.threads=1", "engine.max_rows=64", "task.splits.labelled=12", "task.splits.train=16",
    "task.splits.eval=12", "warmup.batch_tokens=512", "self_training.dpo_samples=4", "self_training.label_samples=3",
    "self_training.patience=0", "pairs.min_problems=2", "train.batch_trees=8", "eval.samples=1",
    "eval.samples_between=0", "budget.seconds=null",
]  # fmt: skip


def run(out: Path, *more: str) -> dict:
    own = apart_from(SMALL, *ONLY_FOR_DPO) if "self_training.dpo=false" in more else SMALL
    run_recipe(load_recipe("dpo_st", [*own, *more]), out)
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    run(out)
    return out


def test_every_question_is_sampled_in_both_steps_as_trees_of_depth_one(finished: Path) -> None:
    with Store(finished, read_only=True) as store:
        for stage, policy, samples in (
            ("round-1/search", "round-0", 4), ("round-1/labels", "round-1-dpo", 3), ("round-2/search", "round-1", 4),
            ("round-2/labels", "round-2-dpo", 3),
        ):  # fmt: skip
            trees = list(store.trees(stage))
            assert len(trees) == 12 + 16, "the labelled questions are among the unlabelled"
            assert {tree.policy for tree in trees} == {policy}
            assert all(node.depth == 1 and node.terminal for tree in trees for node in tree.root.children)
            assert all(sum(n.samples for n in tree.root.children) >= samples for tree in trees)
    assert [r["round"] for r in json.loads((finished / "results.json").read_text())["rounds"]] == [0, 1, 2]


def test_gold_rationales_stand_among_the_samples_and_the_pool_grows(finished: Path) -> None:
    with Session(finished) as session:
        for problem in session.problems("labelled"):
            first, second = (session.store.tree(f"round-{r}/search", problem.id) for r in (1, 2))
            tokens = {node.tokens for node in first.root.children}
            assert written_solution(session, problem, 0) in tokens
            assert {n.tokens for n in first.root.children if n.finish == "eos"} <= {
                n.tokens for n in second.root.children
            }
            labels = session.store.tree("round-1/labels", problem.id)
            assert sum(n.samples for n in labels.root.children) == 3, "nothing is given where pseudo-labels are sampled"


def test_pairs_are_right_over_wrong_and_few_a_problem(finished: Path) -> None:
    with Store(finished, read_only=True) as store:
        config = load_recipe(finished / "recipe.yaml").recipe.self_training
        for round in (1, 2):
            pairs = list(store.pairs(round))
            assert pairs
            per_tree: dict[str, int] = {}
            for pair in pairs:
                tree = store.tree(f"round-{round}/search", pair.tree)
                winner, loser = tree.nodes[pair.winner[0]], tree.nodes[pair.loser[0]]
                assert is_right(winner) and not is_right(loser)
                per_tree[pair.tree] = per_tree.get(pair.tree, 0) + 1
            assert max(per_tree.values()) <= config.pairs_per_problem


def test_dpo_starts_from_its_reference_and_uses_what_sampling_recorded(finished: Path) -> None:
    with Store(finished, read_only=True) as store:
        for round in (1, 2):
            assert store.meta(f"steps/round-{round}/dpo")[0]["loss_preference"] == pytest.approx(math.log(2), abs=1e-3)
            (said,) = [e.message for e in store.events() if e.stage == f"round-{round}/dpo"]
            assert " 0 recomputed" in said, "given solutions were scored while the others were sampled"


def test_the_dpo_model_is_kept_beside_the_rounds_and_differs_from_both(finished: Path) -> None:
    before, tuned, after = (parameters(finished / name) for name in ("round-0", "round-1-dpo", "round-1"))
    assert any(not torch.equal(a, b) for a, b in zip(before, tuned, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(tuned, after, strict=True))


def test_pseudo_labels_are_right_apart_and_of_all_rounds(finished: Path) -> None:
    with Session(finished) as session:
        limit = session.recipe.self_training.similarity
        first, both = pseudo_labels(session, 1), pseudo_labels(session, 2)
        assert sum(len(nodes) for _, nodes in both) >= sum(len(nodes) for _, nodes in first) > 0
        for _, nodes in both:
            assert all(map(is_right, nodes))
            sets = [frozenset(n.tokens) for n in nodes]
            assert all(jaccard(a, b) <= limit for i, a in enumerate(sets) for b in sets[:i])


def test_running_again_does_nothing_again(finished: Path) -> None:
    before, spent = digest(finished), json.loads((finished / "results.json").read_text())["cost"]
    run(finished)
    assert digest(finished) == before
    assert json.loads((finished / "results.json").read_text())["cost"] == spent


def test_the_digest_covers_both_steps_samples(finished: Path) -> None:
    with Store(finished, read_only=True) as store:
        stages = {store.digest(s) for s in ("round-1/search", "round-1/labels", "round-2/labels", "no such stage")}
    assert len(stages) == 4


def test_a_fork_learns_from_the_same_first_samples(finished: Path, tmp_path: Path) -> None:
    fork(finished, tmp_path / "fork", ["self_training.pairs_per_problem=1", "rounds=1"])
    with Store(finished, read_only=True) as old, Store(tmp_path / "fork", read_only=True) as new:
        assert new.digest("round-1/search") == old.digest("round-1/search")
        assert not new.count_trees("round-1/labels") and not new.count_pairs(1) and not new.stage_done("round-1/dpo")
    before = digest(tmp_path / "fork")
    # The same command again: what it began stays as it is.
    fork(finished, tmp_path / "fork", ["self_training.pairs_per_problem=1", "rounds=1"])
    assert digest(tmp_path / "fork") == before
    with pytest.raises(StoreError, match=r"another recipe:\n  self_training\.pairs_per_problem: 1 → 2"):
        fork(finished, tmp_path / "fork", ["self_training.pairs_per_problem=2", "rounds=1"])
    with pytest.raises(StoreError, match="is no fork of"):
        fork(finished, finished, [])
    with pytest.raises(RecipeError, match="dpo_samples: 4 → 5"):
        fork(finished, tmp_path / "other", ["self_training.dpo_samples=5"])


def test_without_dpo_labels_come_from_the_sft_model_and_without_labels_nothing_changes(tmp_path: Path) -> None:
    # No sample of one token is a solution, so there is no pseudo-label: retraining from the base is the warm-up again.
    run(tmp_path, "self_training.dpo=false", "self_training.max_tokens=1", "rounds=1")
    with Store(tmp_path, read_only=True) as store:
        assert {tree.policy for tree in store.trees("round-1/labels")} == {"round-0"}
        assert [s.name for s in store.stages() if s.name.count("/") == 1] == [
            "round-0/sft", "round-0/eval", "round-1/labels", "round-1/train", "round-1/eval"
        ]  # fmt: skip
    for a, b in zip(parameters(tmp_path / "round-0"), parameters(tmp_path / "round-1"), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RecipeError, match=r"self_training\.dpo is false"):
        fork(tmp_path, tmp_path / "fork", [])


def test_without_pseudo_labels_there_is_the_warm_up_alone(tmp_path: Path) -> None:
    own = apart_from(SMALL, *ONLY_FOR_DPO, "self_training.")
    run_recipe(load_recipe("dpo_st", [*own, "self_training.pseudo_labels=false"]), tmp_path)
    assert len(json.loads((tmp_path / "results.json").read_text())["rounds"]) == 1
    assert not (tmp_path / "round-1").exists()


def test_rounds_stop_where_accuracy_no_longer_improves(tmp_path: Path) -> None:
    # Without pseudo-labels every round is the warm-up again, as good and no better.
    off = ["self_training.dpo=false", "self_training.max_tokens=1", "rounds=3"]
    results = run(tmp_path, *off, "self_training.patience=1")
    assert [r["round"] for r in results["rounds"]] == [0, 1]
    with Store(tmp_path, read_only=True) as store:
        assert any("stopped after round 1" in e.message and "round 0 is the best" in e.message for e in store.events())
    assert len(run(tmp_path, *off, "self_training.patience=1")["rounds"]) == 2, "and stay stopped when run again"


def test_too_few_pairs_stop_with_advice_in_this_methods_words(tmp_path: Path) -> None:
    with pytest.raises(TooFewPairs, match=r"self_training\.dpo_samples(.|\n)*self_training\.similarity") as stopped:
        run(tmp_path, "self_training.max_tokens=1", "self_training.gold_positive=false", "rounds=1")
    assert "search." not in str(stopped.value)
    assert not (tmp_path / "round-1-dpo").exists(), "nothing was trained"


def test_improving_is_better_than_all_before_within_the_patience() -> None:
    assert improves([0.1], 1) and improves([0.1, 0.2], 1)
    assert not improves([0.2, 0.2], 1) and not improves([0.3, 0.1, 0.2], 1)
    assert improves([0.2, 0.1], 2), "too early to say"
    assert improves([0.2, 0.1, 0.3], 2) and improves([0.2, 0.3, 0.1], 2)
    assert not improves([0.3, 0.1, 0.2], 2)
    assert improves([0.3, 0.2, 0.1], 0)


def test_self_training_wants_a_warm_up() -> None:
    with pytest.raises(RecipeError, match=r"warmup\.epochs: must be at least 1"):
        load_recipe("dpo_st", ["warmup.epochs=0"])


# ---- kill and resume -------------------------------------------------------------------------------------------------

EXACT = [
    "engine.batch_invariant=true", "rounds=1", "task.splits.labelled=4", "task.splits.train=4", "task.splits.eval=3",
    "task.slips=0.0", "warmup.epochs=1", "self_training.dpo_samples=3", "self_training.label_samples=2",
    "self_training.max_tokens=80", "eval.max_tokens=80",
]  # fmt: skip


SHORT = [
    ("before", "step round-0/sft "),
    ("commit", "row trees round-1/search "),
    ("after", "submit round-1/labels "),
    ("inside", "write .*report.html.part"),
]
LONG = [
    ("before", "row meta schema"),
    ("inside", r"write checkpoints/round-0-sft/step-\d+.part/state.pt"),
    ("after", "rename round-0$"),  # the warm-up's folder is there and its row is not
    ("after", "rename round-0.old$"),  # so it is replaced: here it is aside, and its successor has not its name yet
    ("before", "submit round-0/eval/greedy "),
    ("inside", "row outcomes round-0/eval/greedy "),
    ("after", "submit round-1/search "),
    ("after", "row trees round-1/search "),
    ("inside", "row pairs 1 "),
    ("before", "step round-1/dpo "),
    ("inside", "write round-1-dpo$"),
    ("after", "row stages done round-1/dpo"),
    ("before", "submit round-1/labels "),
    ("inside", "row trees round-1/labels "),
    ("before", r"rename checkpoints/round-1-train/step-\d+"),
    ("after", r"rename checkpoints/round-1-train/step-\d+"),
]


def check_killed_run(tmp_path: Path, wanted: list[Death]) -> None:
    with lives_of("loop_runs:play") as lives:
        killed_and_resumed(lives, tmp_path, 7, wanted, "dpo_st", *SMALL, *EXACT)
    check_same_run(tmp_path)
    for name in ("round-0", "round-1-dpo", "round-1"):
        check_same_weights(tmp_path / "whole" / name, tmp_path / "killed" / name)


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    check_killed_run(tmp_path, SHORT)


@pytest.mark.long
def test_twenty_kills_in_and_between_all_stages(tmp_path: Path) -> None:
    wanted = [*SHORT, *LONG]
    assert len(wanted) == 20
    check_killed_run(tmp_path, wanted)
