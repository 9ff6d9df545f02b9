"""The value head's fit, where it reads, and how it is joined with log-probs.

Batched = single = packed at every place that a head may read; formulas against hand-computed numbers; a fit against
data whose answer is known; a run whose first search has values.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from treepref import progress
from treepref.engines.base import generate
from treepref.engines.torch_engine import TorchEngine
from treepref.errors import StoreError
from treepref.evaluation.scores import Samples, Solution, joined_scores
from treepref.loops.run import run as run_recipe
from treepref.loops.session import Session
from treepref.loops.values import reads_of
from treepref.models.policy import Policy, load_policy, save_policy
from treepref.models.value_head import Read, ValueHead, head_from_plain, load_value_head, save_value_head
from treepref.recipes.reading import load_recipe
from treepref.runs.stage import round_policy
from treepref.runs.store import Store
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.search.sampling import StepSampling
from treepref.search.tree import best_first, joined, joined_value
from treepref.training.examples import Example, ExampleNode
from treepref.training.forward import score
from treepref.training.value_data import ValueData, chosen_nodes, reaches_right, share_right, value_data
from treepref.training.value_fit import fit_values
from treepref.types import Completion, Join, Node, Request, SoFar, Tree, new_tree

READS = [Read(), Read(-1, "mean"), Read(2, "last"), Read(2, "mean")]


@pytest.fixture(scope="module")
def policy() -> Policy:
    policy = load_policy("builtin:tiny-base", dtype="float64", device="cpu")
    policy.values_trained = True
    return policy


def reading(policy: Policy, read: Read, join: Join = Join()) -> Policy:
    """The policy with a head that reads at `read`."""
    weight_H = torch.randn(policy.hidden_size, generator=torch.Generator().manual_seed(3)) * 0.1
    policy.value_head.set_fit(weight_H, 0.3, read, 0.25, join)
    return policy


def directly(policy: Policy, prompt: tuple[int, ...], solution: tuple[int, ...]) -> float:
    """V of a solution so far, from a plain forward of the whole text."""
    read = policy.value_head.read
    with torch.no_grad():
        states = policy.model(torch.tensor([prompt + solution]), output_hidden_states=True).hidden_states
    hidden_TH = states[read.layer][0, len(prompt) :]
    return float(policy.value_head(hidden_TH[-1] if read.pool == "last" else hidden_TH.mean(0)).detach())


# -- one value, wherever it is computed


@pytest.mark.parametrize("read", READS, ids=str)
@pytest.mark.parametrize("alone", [False, True], ids=["batched", "alone"])
def test_the_engine_reads_what_a_plain_forward_reads(policy: Policy, read: Read, alone: bool) -> None:
    engine = TorchEngine(reading(policy, read), batch_invariant=alone)
    prompts = [tuple(policy.tokenizer(text).input_ids) for text in ("1 + 2 + 3 =\n", "4 - 3 + 8 + 1 =\n")]
    requests = [
        Request(str(i), prompt, 3, tuple(range(3)), 20, temperature=2.0, delimiter="\n", want_value=True)
        for i, prompt in enumerate(prompts)
    ]
    further = 0
    for prompt, result in zip(prompts, generate(engine, requests), strict=True):
        for first in result.completions:
            if first.value is None:
                continue
            assert first.value == pytest.approx(directly(policy, prompt, first.tokens), abs=1e-5)
            if first.finish != "step":
                continue
            so_far = SoFar() if first.score is None else SoFar(first.score, len(first.tokens))
            request = Request(
                "further", prompt + first.tokens, 2, (5, 6), 20, delimiter="\n", want_value=True, so_far=so_far
            )
            for second in generate(engine, [request])[0].completions:
                if second.value is not None:
                    further += 1
                    wanted = directly(policy, prompt, first.tokens + second.tokens)
                    assert second.value == pytest.approx(wanted, abs=1e-5)
    assert further, "no second step was valued"


@pytest.mark.parametrize("read", READS, ids=str)
@pytest.mark.parametrize("row_tokens", [2048, 12], ids=["whole", "split"])
def test_packed_values_are_those_of_separate_sequences(policy: Policy, read: Read, row_tokens: int) -> None:
    reading(policy, read)
    prompt = tuple(policy.tokenizer("1 + 2 + 3 =\n").input_ids)
    nodes = (
        ExampleNode((5, 6, 7)), ExampleNode((8, 9), 0), ExampleNode((10,), 0), ExampleNode((11, 12, 13, 14)),
        ExampleNode((5,), 1),
    )  # fmt: skip
    paths = [(5, 6, 7), (5, 6, 7, 8, 9), (5, 6, 7, 10), (11, 12, 13, 14), (5, 6, 7, 8, 9, 5)]
    examples = [Example(id=name, prompt=given, nodes=nodes) for name, given in (("a", prompt), ("b", prompt[:3]))]
    scores = score(policy.model, examples, value_head=policy.value_head, row_tokens=row_tokens, rows_per_pass=2)
    for example, values in zip(examples, scores.values, strict=True):
        for path, value in zip(paths, values[1:], strict=True):
            assert value == pytest.approx(directly(policy, example.prompt, path), abs=1e-6)
        if not policy.value_head.at_last_token:
            assert values[0] == pytest.approx(0.25), "a bare prompt has the value of any"


def test_a_fitted_head_is_saved_and_published_whole(policy: Policy, tmp_path: Path) -> None:
    head = reading(policy, Read(3, "mean"), Join(0.5, 2.0, -1.0)).value_head
    save_value_head(head, tmp_path, trained=True)
    again, trained = load_value_head(tmp_path, policy.hidden_size)
    for other in (again, head_from_plain(json.loads(json.dumps(head.as_plain())))):
        assert all(
            torch.equal(a, b) for a, b in zip(other.state_dict().values(), head.state_dict().values(), strict=True)
        )
        assert other.read == Read(3, "mean") and other.join == Join(0.5, 2.0, -1.0)
    assert trained
    folder = save_policy(policy, tmp_path / "policy")
    assert load_policy(folder, device="cpu").value_head.read == Read(3, "mean")


def test_places_to_read_are_shares_of_the_depth(policy: Policy) -> None:
    assert reads_of(policy, [1.0], ["last"]) == [Read()]
    assert reads_of(policy, [0.5, 1.0, 0.1], ["mean", "last"]) == [
        Read(layer, pool) for layer in (-1, 1, 2) for pool in ("last", "mean")
    ]


# -- what came of steps


def family() -> Tree:
    """Root → a (→ right, wrong twice), b (cut)."""
    tree = new_tree("t", "p", (1, 2))

    def grow(parent: int, tokens: tuple[int, ...], **fields: object) -> Node:
        node = Node(
            len(tree.nodes), tree.nodes[parent], tokens, (-0.5,) * len(tokens), depth=tree.nodes[parent].depth + 1
        )
        for name, value in fields.items():
            setattr(node, name, value)
        tree.nodes[parent].children.append(node)
        tree.nodes.append(node)
        return node

    grow(0, (5, 6), value=0.2)
    grow(1, (7, 8), finish="eos", terminal=True, reward=1.0, value=0.6)
    grow(1, (9, 8), finish="eos", terminal=True, reward=-1.0, samples=2, value=-0.6)
    grow(0, (4, 4), finish="length", terminal=True, reward=-1.0)
    return tree


def test_shares_count_samples_and_what_was_cut() -> None:
    assert share_right(family()) == {0: 1 / 4, 1: 1 / 3, 2: 1.0, 3: 0.0, 4: 0.0}
    assert reaches_right(family()) == {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0, 4: 0.0}
    assert [n.index for n in chosen_nodes(family(), 8, seed=0)] == [1, 2, 3], "what was cut has no state to read"


def test_step_samples_share_beginnings_and_count_every_sample() -> None:
    rules, tree = StepSampling(n=4, limits=Limits(max_depth=2)), new_tree("t", "p", (1, 2))
    (root,) = rules.ask(tree)
    assert root.n == 4 and rules.ask(tree) == []
    step, other = Completion((5, 9), (-1.0, -1.0), "step"), Completion((6, 9), (-1.0, -1.0), "step")
    rules.tell(tree, root, [step, step, other, step], [None] * 4)
    three, one = rules.ask(tree)
    assert (three.n, one.n) == (3, 1) and not rules.done(tree)
    right, wrong = Completion((7, 3), (-1.0, -1.0), "eos"), Completion((8, 3), (-1.0, -1.0), "eos")
    rules.tell(tree, three, [right, wrong, wrong], [1.0, -1.0, -1.0])
    rules.tell(tree, one, [other], [None])  # stands unfinished at the depth limit
    assert rules.done(tree)
    assert (tree.root.visits, tree.root.q) == (4, -0.5), "the mean outcome of all four solutions"
    assert (tree.nodes[1].visits, tree.nodes[1].q) == (3, pytest.approx(-1 / 3))


def test_features_are_those_of_the_steps(policy: Policy) -> None:
    data = value_data(policy.model, [family()], READS, value_head=reading(policy, Read(2, "mean")).value_head)
    for i, path in enumerate([(5, 6), (5, 6, 7, 8), (5, 6, 9, 8)]):
        with torch.no_grad():
            states = policy.model(torch.tensor([(1, 2, *path)]), output_hidden_states=True).hidden_states
        for read in READS:
            hidden_TH = states[read.layer][0, 2:]
            wanted_H = hidden_TH[-1] if read.pool == "last" else hidden_TH.mean(0)
            assert torch.allclose(data.features_NH[read][i], wanted_H.float(), atol=1e-4)
        assert float(data.before_N[i]) == pytest.approx(directly(policy, (1, 2), path), abs=1e-5)
    assert data.right_N.tolist() == pytest.approx([1 / 3, 1.0, 0.0]) and data.depth_N == [1, 2, 2]


# -- the fit


def known_data(n: int = 600, noise: float = 1.0) -> ValueData:
    """Right with chance σ(2·x₀ + problem's ease); 100 features on a scale of their own, all but the first idle."""
    draw = torch.Generator().manual_seed(1)
    features_NH = torch.randn(n, 20, generator=draw)
    ease_N = torch.randn(n // 6, generator=draw).repeat_interleave(6)
    chance_N = torch.sigmoid(2 * features_NH[:, 0] + noise * ease_N)
    right_N = (torch.rand(n, generator=draw) < chance_N).float()
    return ValueData(
        features_NH={Read(): torch.randn(n, 20, generator=draw) * 50, Read(2, "mean"): features_NH * 100 + 300},
        right_N=right_N,
        problem_N=[f"p{i // 6:03d}" for i in range(n)],
        depth_N=[1 + i % 2 for i in range(n)],
        finished_N=torch.ones(n, dtype=torch.bool),
        logprob_N=-torch.rand(n, generator=draw) + 0.5 * right_N,
        before_N=None,
        tokens=0,
    )


def test_a_fit_finds_where_the_knowledge_lies_and_is_calibrated() -> None:
    data = known_data()
    fit = fit_values(data)
    assert fit is not None and fit.read == Read(2, "mean"), "features of a norm far from 1 are no hindrance"
    assert fit.quality["value"]["auc"] > 0.8 and fit.quality["calibration_error"] < 0.08
    assert fit.quality["joint"]["auc_within"] > fit.quality["value"]["auc_within"], "log-prob knows something more"
    assert fit.join.logprob > 0 and fit.join.value > 0
    weight_H = fit.weight_H * data.features_NH[fit.read].std(0)
    assert int(weight_H.abs().argmax()) == 0
    head = ValueHead(20)
    head.set_fit(fit.weight_H, fit.bias, fit.read, fit.root, fit.join)
    chance_N = (head(data.features_NH[fit.read]).detach() + 1) / 2
    assert float(chance_N.mean()) == pytest.approx(float(data.right_N.mean()), abs=0.03)


def test_the_same_data_give_the_same_fit_and_too_few_give_none() -> None:
    one, other = fit_values(known_data(), ranking=1.0), fit_values(known_data(), ranking=1.0)
    assert one is not None and other is not None
    assert torch.equal(one.weight_H, other.weight_H) and one.quality == other.quality
    assert fit_values(known_data(12)) is None


# -- joined with log-probs


def test_joined_values_by_hand() -> None:
    join = Join(value=0.5, logprob=2.0, bias=-0.1)
    wanted = math.tanh((0.5 * 2 * math.atanh(0.6) + 2.0 * -0.5 - 0.1) / 2)
    assert joined_value(0.6, -0.5, join) == pytest.approx(wanted)
    tree = family()
    assert joined(tree.nodes[2], join) == pytest.approx(wanted), "the log-prob is the mean over the whole path"
    assert joined_value(0.3, -9.0, Join()) == pytest.approx(0.3), "no join is V"
    assert abs(joined_value(1.0, -1.0, join)) < 1


def test_beams_and_leaves_rank_by_both_where_a_fit_joined_them() -> None:
    tree = family()
    sure, likely = tree.nodes[2], tree.nodes[3]
    likely.logprobs = (-0.1, -0.1)
    assert best_first([likely, sure]) == [sure, likely]
    assert best_first([likely, sure], join=Join(0.1, 20.0)) == [likely, sure]
    plain, both = Mcts(), Mcts(join=Join(1.0, 1.0, 0.0))
    assert plain._worth(tree.nodes[1]) == 0.2
    assert both._worth(tree.nodes[1]) == pytest.approx(joined_value(0.2, -0.5, Join(1.0, 1.0, 0.0)))
    assert Mcts(join=Join(1.0, 1.0), evaluate="rollout")._worth(tree.nodes[1]) == 0.2, "an outcome is no value"


def test_results_hold_v_log_prob_and_both_side_by_side() -> None:
    rows = [
        Solution("p", 0, False, "1", 5, value=0.5, logprob=-2.0),
        Solution("p", 1, True, "2", 5, value=0.4, logprob=-0.1),
        *(Solution("p", i, False, "3", 5, value=-0.9, logprob=-3.0) for i in range(2, 8)),
    ]  # fmt: skip
    found = joined_scores(Samples(rows), Join(1.0, 1.0, 0.0))
    assert {name: entry.accuracy for name, entry in found.eval.items()} == {
        "bon_value@8": 0.0, "bon_logprob@8": 1.0, "bon_joint@8": 1.0, "wvote_joint@8": 1.0,
    }  # fmt: skip
    assert found.paired["bon_joint_vs_value"].difference == 1.0
    assert found.auc["joint"].auc == 1.0 > found.auc["value"].auc
    assert joined_scores(Samples(rows), None) is None


# -- runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("values") / "run"
    progress.set_quiet(True)
    changes = [
        "task.splits.train=40", "task.splits.eval=16", "search.simulations=6", "search.children=4", "value.problems=40",
        "eval.samples=8", "eval.samples_between=8", "eval.sbs=[[1, 2]]", "eval.sbs_likelihood=null",
        "pairs.min_problems=1", "engine.threads=1",
    ]  # fmt: skip
    run_recipe(load_recipe("quickstart", changes), out)
    progress.set_quiet(False)
    return out


def test_the_first_search_has_values(finished: Path) -> None:
    with Store(finished, read_only=True) as store:
        trees = list(store.trees("round-1/search"))
        fits = [store.stage(name).info["fit"] for name in ("round-0/values", "round-1/train")]
    values = [n.value for tree in trees for n in tree.nodes if n.parent is not None and not n.terminal]
    assert values and None not in values and len(set(values)) > 10
    for fit in fits:
        assert {"value", "logprob", "joint", "by_depth", "calibration_error", "reads_tried"} <= fit.keys()
        assert len(fit["reads_tried"]) > 1
    assert "before" in fits[1] and fits[1]["problems"] == 40
    results = json.loads((finished / "results.json").read_text())
    with Store(finished, read_only=True) as store:
        told = [e.message for e in store.events() if e.stage == "round-1/search" and "plain samples" in e.message]
    assert len(told) == 1 and "solutions per 1,000 tokens" in told[0]
    assert results["search"][0]["right_per_1000_tokens"] > 0
    for entry in results["rounds"]:
        assert (
            entry["fit"]["value"]["auc"] is not None
            and entry["joined"] is not None
            and entry["eval"]["sbs(1,2)"] is not None
        )


def test_recorded_values_are_those_recomputed(finished: Path) -> None:
    """What the engine wrote down while it searched, against a packed forward of the policy that searched."""
    with Session(finished) as session:
        policy = session.serving.policy(round_policy(0))
        trees = list(session.store.trees("round-1/search"))
    assert policy.values_trained and policy.value_head.join is not None
    for tree in trees[:8]:
        examples = [
            Example(tree.key, tree.prompt, tuple(ExampleNode(n.tokens, n.parent.index - 1) for n in tree.nodes[1:]))
        ]
        (values,) = score(policy.model, examples, value_head=policy.value_head).values
        for node, value in zip(tree.nodes[1:], values[1:], strict=True):
            if node.value is not None:
                assert node.value == pytest.approx(value, abs=1e-3)


def test_a_damaged_first_head_is_told(finished: Path) -> None:
    with Store(finished) as store:
        kept = store.meta("values/0")
        store.set_meta("values/0", {"weight": "rubbish"})
    try:
        with Session(finished) as session, pytest.raises(StoreError, match="first value head is damaged"):
            session.serving.policy(round_policy(0))
    finally:
        with Store(finished) as store:
            store.set_meta("values/0", kept)


def test_no_fit_and_no_first_values_where_the_recipe_wants_none(tmp_path: Path) -> None:
    progress.set_quiet(True)
    changes = [
        "task.splits.train=40", "task.splits.eval=4", "search.simulations=6", "search.children=4", "value.fit=false",
        "eval.samples=1", "eval.samples_between=0", "eval.sbs=[]", "pairs.min_problems=1", "engine.threads=1",
    ]  # fmt: skip
    run_recipe(load_recipe("quickstart", changes), tmp_path / "run")
    progress.set_quiet(False)
    with Store(tmp_path / "run", read_only=True) as store:
        assert store.stage("round-0/values") is None, "and none is needed to say what a fit would find:"
        assert store.stage("round-1/train").info["fit"]["before"]["n"] > 0
    head, _ = load_value_head(tmp_path / "run" / "round-1", load_policy("builtin:tiny-base").hidden_size)
    assert head.at_last_token and head.join is None


def test_depths_of_a_fit_are_in_order(finished: Path) -> None:
    with Store(finished, read_only=True) as store:
        depths = [row["depth"] for row in store.stage("round-0/values").info["fit"]["by_depth"]]
    assert depths[0] == 1 and all(a < b for a, b in pairwise(depths))
