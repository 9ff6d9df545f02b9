"""What the engine records while it searches is what the learner computes: real search trees on random tiny models.

The same checks on trained weights and real problems are in test_exactness_smollm2.py.
"""

from __future__ import annotations

import math
import random

import pytest
import torch

from treepref.config import LoraConfig, PairConfig, TrainConfig
from treepref.driver import Job, drive
from treepref.engines.base import generate
from treepref.engines.torch_engine import TorchEngine
from treepref.models.lora import add_adapters
from treepref.models.policy import Policy, clone_policy
from treepref.models.tiny import build_tiny_model, build_tiny_tokenizer
from treepref.models.value_head import ValueHead
from treepref.models.weights import PolicyWeights
from treepref.search.base import solution_tokens
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.training.examples import Example, attach_reference, example_from_tree
from treepref.training.forward import Scores, model_scorer, score
from treepref.training.learner import Learner
from treepref.training.objectives import untrained_preference_loss
from treepref.training.pairs import sibling_pairs, value_targets
from treepref.training.settings import LearnerSettings
from treepref.types import BASE, Node, PolicyId, Request, Tree, new_tree

CLOSE = 1e-4
DELIMITER = "="
"""Part of four tokens of some fifty, so that random steps end soon enough."""


def random_policy(seed: int = 1) -> Policy:
    """Weights spread widely enough that a wrong mask, position or cache entry shows in every log-prob."""
    tokenizer = build_tiny_tokenizer(0, 5, ["sum"])
    model = build_tiny_model(len(tokenizer), hidden=32, layers=3, heads=4, intermediate=64, context=96, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        head = ValueHead(32, std=0.3)
    return Policy(model.eval(), tokenizer, head, values_trained=True, name="tiny")


def prompts(count: int, longest: int = 14, seed: int = 3) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(4, 40) for _ in range(rng.randint(2, longest))) for _ in range(count)]


def search(engine: TorchEngine, count: int, temperature: float = 0.9, top_p: float = 1.0) -> list[Tree]:
    """MCTS on `count` prompts, all in flight together; a solution is right where its tokens' sum is even."""
    rules = Mcts(
        simulations=10,
        children=4,
        limits=Limits(
            temperature=temperature,
            top_p=top_p,
            max_depth=4,
            max_step_tokens=16,
            max_context=engine.max_context,
            delimiter=DELIMITER,
        ),
    )
    trees: list[Tree] = []
    drive(
        (
            Job(new_tree(f"p{i:02d}", f"p{i:02d}", prompt, engine.policy_id), rules, parity)
            for i, prompt in enumerate(prompts(count))
        ),
        engine,
        run_seed=5,
        trees_in_flight=count,
        journal=None,
        on_done=lambda job: trees.append(job.tree),
    )
    return sorted(trees, key=lambda tree: tree.key)


def parity(tree: Tree, tokens: tuple[int, ...]) -> float:
    return 1.0 if sum(tokens) % 2 == 0 else -1.0


def everything(tree: Tree) -> Example:
    """The whole tree as an example: every node trained."""
    return example_from_tree(tree, [], sft_paths=[[n.index] for n in tree.nodes[1:]])


def steps(tree: Tree) -> list[Node]:
    return tree.nodes[1:]


def check_recorded(trees: list[Tree], scores: Scores) -> None:
    assert scores.values is not None
    for tree, logprobs, values in zip(trees, scores.logprobs, scores.values, strict=True):
        assert tree.root.value == pytest.approx(values[0], abs=CLOSE)
        for node, computed, value in zip(steps(tree), logprobs, values[1:], strict=True):
            assert node.logprobs == pytest.approx(computed, abs=CLOSE)
            if node.value is not None:
                assert node.value == pytest.approx(value, abs=CLOSE)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return random_policy()


@pytest.fixture(scope="module")
def trees(policy: Policy) -> list[Tree]:
    """Sixteen searched trees, deep and wide enough for the tests to mean something."""
    found = search(TorchEngine(clone_policy(policy), max_rows=24), 16)
    nodes = [node for tree in found for node in steps(tree)]
    assert {node.finish for node in nodes} == {"step", "eos", "length"}
    assert max(node.depth for node in nodes) >= 3
    assert sum(node.value is not None for node in nodes) > 100
    return found


@pytest.mark.parametrize("row_tokens", [4096, 256, 40], ids=["one row", "several rows", "split trees"])
def test_recorded_log_probs_and_values_equal_the_learners(policy: Policy, trees: list[Tree], row_tokens: int) -> None:
    examples = [everything(tree) for tree in trees]
    check_recorded(trees, score(policy.model, examples, value_head=policy.value_head, row_tokens=row_tokens))


def test_a_tempered_nucleus_records_the_policys_own_log_probs(policy: Policy) -> None:
    found = search(TorchEngine(clone_policy(policy), max_rows=24), 6, temperature=1.3, top_p=0.8)
    assert all(node.behaviour is not None for tree in found for node in steps(tree))
    check_recorded(found, score(policy.model, [everything(t) for t in found], value_head=policy.value_head))


def test_merged_adapters_in_the_engine_equal_adapters_in_the_learner() -> None:
    policy = random_policy(2)
    add_adapters(policy.model, LoraConfig(rank=4), seed=0)
    torch.manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:  # zero at first: such an adapter changes nothing
            torch.nn.init.normal_(parameter, std=0.1)
    found = search(TorchEngine(clone_policy(policy), max_rows=24), 4)
    check_recorded(found, score(policy.model, [everything(t) for t in found], value_head=policy.value_head))


def preferences(trees: list[Tree], objective: str) -> list[Example]:
    """What a round trains on: sibling pairs, and for svpo value targets."""
    config = PairConfig(min_gap=0.05, min_visits=1, winner_reaches_answer=False)
    examples = [
        example_from_tree(
            tree,
            sibling_pairs(tree, config),
            targets=value_targets(tree) if objective == "svpo" else None,
            smoothing="none" if objective == "dpo" else "visits",
        )
        for tree in trees
    ]
    return [example for example in examples if example.pairs]


@pytest.mark.parametrize("objective", ["svpo", "dpo", "cdpo", "ipo"])
def test_the_first_loss_against_recorded_references_is_that_of_no_preference(
    policy: Policy, trees: list[Tree], objective: str
) -> None:
    examples = preferences(trees, objective)
    assert sum(len(example.pairs) for example in examples) >= 8
    student = clone_policy(policy)
    for parameter in student.model.parameters():
        parameter.requires_grad_(True)
    attached, report = attach_reference(examples, model_scorer(student.model), reference=BASE)
    assert (report.recorded, report.recomputed) == (len(examples), 0)
    assert report.checked > 0 and report.worst <= CLOSE
    settings = LearnerSettings.of(TrainConfig(objective=objective, row_tokens=512))
    losses: list[float] = []
    Learner(student.model, student.value_head, settings).train(
        attached,
        batch_trees=len(attached),
        reference_is_policy=True,
        on_step=lambda metrics: losses.append(metrics["loss_preference"]),
    )
    expected = untrained_preference_loss(objective, settings.coefficients)
    assert objective == "ipo" or expected == math.log(2)
    assert losses[0] == pytest.approx(expected, rel=1e-4)


def test_after_an_update_the_engine_records_the_new_policys_log_probs(policy: Policy, trees: list[Tree]) -> None:
    engine = TorchEngine(clone_policy(policy), max_rows=24)
    search(engine, 4)  # fills the cache with the old policy's keys and values
    student = clone_policy(policy)
    for parameter in [*student.model.parameters(), *student.value_head.parameters()]:
        parameter.requires_grad_(True)
    attached, _ = attach_reference(preferences(trees, "svpo"), model_scorer(student.model), reference=BASE)
    settings = LearnerSettings.of(TrainConfig(lr=3e-3, row_tokens=512))
    Learner(student.model, student.value_head, settings).train(attached, batch_trees=4, epochs=2)
    engine.load(PolicyWeights(student, PolicyId("round-1")))
    found = search(engine, 6)
    assert all(tree.policy == "round-1" for tree in found)
    examples = [everything(tree) for tree in found]
    check_recorded(found, score(student.model, examples, value_head=student.value_head))
    old = score(policy.model, examples[:1]).logprobs[0][0]
    moved = max(abs(a - b) for a, b in zip(found[0].nodes[1].logprobs, old, strict=True))
    assert moved > 100 * CLOSE, "training changed too little to tell the two policies apart"


def greedy(engine: TorchEngine, todo: list[tuple[int, ...]], new: int) -> list[list[int]]:
    asked = [Request(f"g{i}", p, 1, (0,), new, temperature=0.0, delimiter=None) for i, p in enumerate(todo)]
    return [list(result.completions[0].tokens) for result in generate(engine, asked)]


def test_batched_greedy_is_single_greedy_is_that_of_transformers(policy: Policy) -> None:
    todo = prompts(24, longest=40)
    together = greedy(TorchEngine(clone_policy(policy), max_rows=9), todo, 24)
    alone = greedy(TorchEngine(clone_policy(policy), max_rows=1), todo, 24)
    theirs = [
        policy.model.generate(
            torch.tensor([p]), do_sample=False, max_new_tokens=24, pad_token_id=0, eos_token_id=sorted(policy.eos_ids)
        )[0, len(p) :].tolist()
        for p in todo
    ]
    assert together == alone == theirs
    assert len({tuple(tokens) for tokens in together}) > 12, "greedy runs that all say the same would prove little"


def test_children_of_cached_steps_equal_those_of_a_cold_engine(policy: Policy, trees: list[Tree]) -> None:
    warm = TorchEngine(clone_policy(policy), max_rows=16)
    found = search(warm, 16)
    states = [(tree, node) for tree in found for node in steps(tree) if node.finish == "step" and node.depth > 1][:20]
    asked = [
        Request(f"c{i}", tree.prompt + solution_tokens(node), 3, (i, i + 1, i + 2), 12, 1.0, 1.0, DELIMITER, True)
        for i, (tree, node) in enumerate(states)
    ]
    cached_before = warm.cost.cached_tokens
    one = generate(warm, asked)
    assert warm.cost.cached_tokens > cached_before
    for request, result in zip(asked, one, strict=True):
        (cold,) = generate(TorchEngine(clone_policy(policy), max_rows=3, cache_mb=0), [request])
        assert cold.prefix_value == pytest.approx(result.prefix_value, abs=CLOSE)
        for a, b in zip(cold.completions, result.completions, strict=True):
            assert (a.tokens, a.finish) == (b.tokens, b.finish)
            assert a.logprobs == pytest.approx(b.logprobs, abs=CLOSE)
            assert a.value == (None if b.value is None else pytest.approx(b.value, abs=CLOSE))
