"""The forecast of a run's cost, by hand-computed numbers, and the hard limits on it."""

from __future__ import annotations

import io
import json
from collections import Counter
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from small_runs import METHODS, copy_model, treepref_command
from treepref.config import RECIPES, BudgetConfig, Recipe
from treepref.errors import ModelError
from treepref.keys import foreign_keys, without
from treepref.loops.estimate import at_real_size, estimate, measured_assumptions
from treepref.recipes import sizing
from treepref.recipes.estimate import Assumptions, render
from treepref.recipes.reading import load_recipe
from treepref.recipes.sizing import ModelInfo, Rates, measure_rates, model_info
from treepref.report import numbers
from treepref.runs.budget import Budget, budget_tokens
from treepref.runs.store import Store
from treepref.types import Cost, Node, Tree

INFO = ModelInfo(params=1000, kv_bytes_per_token=64, hidden=8, vocab=16, layers=2)
ASSUMED = Assumptions(prompt_tokens=10, step_tokens=4, steps=3, useful=0.25)


def recipe(**sections: object) -> Recipe:
    """Small round numbers: 10 training and 5 evaluation problems, 6 simulations × 2 children, steps up to 8 tokens."""
    base: dict = {
        "name": "a",
        "rounds": 1,
        "task": {"splits": {"train": 10, "eval": 5, "labelled": 20}},
        "search": {"simulations": 6, "children": 2, "max_depth": 4, "max_step_tokens": 8},
        "eval": {"samples": 4, "samples_between": 2, "sbs": [[1, 2], [2, 3]], "max_tokens": 30},
        "value": {"problems": 0},
    }
    for name, value in sections.items():
        base[name] = base[name] | value if isinstance(base.get(name), dict) else value
    method = str(base.setdefault("method", "svpo"))
    return RECIPES[method].model_validate(without(base, {key for key, _ in foreign_keys(base, method)}))


def stages(r: Recipe, rates: Rates | None = None) -> dict:
    result = estimate(r, model_info=INFO, rates=rates, assumptions=ASSUMED)
    return {stage.name: stage for stage in result.stages}


def test_at_the_limits_a_search_spends_every_simulation_on_the_longest_steps() -> None:
    search = stages(recipe())["round 1 search"]
    assert search.upper.generated_tokens == 10 * 6 * 2 * 8
    assert search.upper.prefill_tokens == 10 * 6 * (10 + 4 * 8)
    assert search.expected.prefill_tokens == 10 * 10, "a prompt is computed once"
    assert search.expected.generated_tokens <= 10 * 6 * 2 * 4
    assert search.expected.scored_tokens == 0  # no value head yet
    assert search.expected.flops == 2 * 1000 * (search.expected.generated_tokens + 100)
    second = stages(recipe(rounds=2))["round 2 search"]
    assert second.expected.scored_tokens == second.expected.generated_tokens / 4, "a value a step"


def test_first_values_are_sampled_and_serve_the_first_search_and_evaluation() -> None:
    found = stages(recipe(value={"problems": 6, "samples": 5}))
    first = found["round 0 values"]
    assert (
        first.expected.generated_tokens == pytest.approx(6 * 5 * 12, rel=0.2)
        and first.upper.generated_tokens == 6 * 5 * 4 * 8
    )
    assert found["round 1 search"].expected.scored_tokens > 0
    assert found["round 0 eval"].expected.generated_tokens == pytest.approx(5 * (3 * 12 + (2 + 6) * 3 * 4), rel=0.2)
    assert "round 0 values" not in stages(recipe(value={"problems": 6, "fit": False}))


def test_rollouts_cost_what_is_left_of_a_solution() -> None:
    plain, rollouts = (stages(recipe(search=s))["round 1 search"] for s in ({}, {"evaluate": "rollout"}))
    assert plain.expected.generated_tokens < rollouts.expected.generated_tokens
    assert 960 < rollouts.upper.generated_tokens <= 960 + 10 * 6 * 4 * 8


def test_warm_up_and_training_tokens() -> None:
    found = stages(recipe(warmup={"epochs": 3}, train={"epochs": 2}))
    assert found["warm-up"].expected.training_tokens == 20 * 3 * (10 + 3 * 4)
    assert found["warm-up"].upper.training_tokens == 20 * 3 * (10 + 4 * 8)
    assert found["warm-up"].expected.flops == 6 * 1000 * 1320
    train = found["round 1 train"]
    assert train.upper.training_tokens == 2 * 10 * (10 + 12 * 8)
    assert 2 * 10 * 0.25 * 10 < train.expected.training_tokens < 2 * 10 * (10 + 12 * 4), (
        "values are learned of all trees"
    )
    lora = stages(recipe(warmup={"epochs": 3}, model={"lora": {}}))["warm-up"]
    assert lora.expected.flops == 4 * 1000 * 1320


# 10 training and 20 labelled problems; solutions of 3 steps × 4 = 12 tokens, at most 4 × 8
SMALL_TREE = {"simulations": 5, "children": 3, "root_children": 6, "max_depth": 4, "max_step_tokens": 8}


def test_simulations_that_run_to_the_end_expand_a_node_a_step() -> None:
    found = stages(recipe(method="mcts_dpo", search=SMALL_TREE, train={"objective": "cdpo"}))
    assert list(found) == ["round 0 eval", "round 1 search", "round 1 train", "round 1 eval"]
    search = found["round 1 search"]
    most = 6 + 5 * 3 * 3  # the root's steps; below it depths 1 to 3, each simulation a node at each
    assert search.upper.generated_tokens == 10 * most * 8
    assert search.upper.prefill_tokens == 10 * (1 + 5 * 3) * (10 + 4 * 8)
    drawn = search.expected.generated_tokens
    assert 10 * 6 * 4 < drawn <= 10 * (6 + 5 * 2 * 3) * 4, "solutions of three steps"
    assert search.expected.prefill_tokens == 10 * 10
    assert search.expected.scored_tokens == search.upper.scored_tokens == 0
    assert found["round 1 train"].upper.training_tokens == 10 * (10 + most * 8)
    assert found["round 1 eval"].expected.generated_tokens == 5 * 5 * 12  # no values, so no beam search
    asked = stages(recipe(method="mcts_dpo", search=SMALL_TREE | {"self_evaluation": {}}))["round 1 search"]
    assert asked.upper.scored_tokens == 10 * most * 60 and asked.expected.scored_tokens > 0
    narrow = stages(recipe(method="mcts_dpo", search=SMALL_TREE | {"root_children": None}))["round 1 search"]
    # Three children of the root for five simulations: two of them begin a step further down.
    assert narrow.upper.generated_tokens == 10 * (3 + 3 * 3 * 3 + 2 * 2 * 3) * 8


def test_online_training_passes_once_and_leaves_its_reference_behind() -> None:
    sections: dict = {"method": "mcts_dpo", "search": SMALL_TREE}
    passes = {"objective": "cdpo"}
    train = stages(recipe(**sections, train=passes | {"reference": "previous"}))["round 1 train"]
    assert train.expected.training_tokens > 0 == train.expected.scored_tokens
    online = stages(recipe(**sections, train=passes | {"reference": "initial"}))["round 1 train"]
    assert online.expected.scored_tokens == online.expected.training_tokens
    offline = stages(recipe(**sections, train=passes | {"reference": "initial"}, online={"enabled": False}))
    assert offline["round 1 train"].expected.scored_tokens == 0


def test_self_training_samples_prefers_labels_and_retrains() -> None:
    config = {"dpo_samples": 5, "label_samples": 4, "max_tokens": 20, "pairs_per_problem": 3}
    sections: dict = {"method": "dpo_st", "rounds": 2, "warmup": {"epochs": 2}, "train": {"objective": "dpo"}}
    found = stages(recipe(**sections, self_training=config))
    names = ("search", "dpo", "labels", "train", "eval")
    assert list(found) == ["warm-up", "round 0 eval", *(f"round {k} {name}" for k in (1, 2) for name in names)]
    first, second = found["round 1 search"], found["round 2 search"]
    assert first.expected.generated_tokens == 30 * 5 * 12 and first.upper.generated_tokens == 30 * 5 * 20
    assert first.expected.prefill_tokens == 30 * 10 and first.expected.cached_tokens == 30 * 4 * 10
    assert first.expected.scored_tokens == 20 * 12  # gold rationales
    assert second.expected.scored_tokens == 20 * 12 + 30 * 5 * 12  # and the first round's samples
    dpo = found["round 2 dpo"]
    assert dpo.expected.training_tokens == 30 * 0.25 * (10 + 6 * 12)
    assert dpo.upper.training_tokens == 30 * (10 + 6 * 20)
    assert found["round 1 labels"].expected.generated_tokens == 30 * 4 * 12
    assert found["round 2 train"].expected.training_tokens == 2 * (20 + 0.5 * 30 * 4 * 2) * (10 + 12)
    assert found["round 2 train"].upper.training_tokens == 2 * (20 + 240) * (10 + 20)
    assert found["round 2 eval"].expected.scored_tokens == 0  # no value head in this method

    text = " ".join(ASSUMED.lines(recipe(**sections)))
    assert "50% of the samples become pseudo-labels" in text and "siblings" not in text

    plain = stages(recipe(**sections, self_training=config | {"dpo": False}))
    assert not any(name.endswith(("search", "dpo")) for name in plain) and "round 2 labels" in plain
    assert list(stages(recipe(**sections, self_training=config | {"pseudo_labels": False}))) == [
        "warm-up", "round 0 eval"
    ]  # fmt: skip


def test_a_reference_that_is_not_the_sampler_is_scored() -> None:
    def scored(reference: str, round: int) -> int:
        found = stages(recipe(rounds=2, train={"reference": reference}))
        return found[f"round {round} train"].expected.scored_tokens

    trained = stages(recipe(rounds=2, train={"reference": "initial"}))["round 2 train"].expected.training_tokens
    assert scored("initial", 1) == scored("previous", 1), "the sampler itself: what it recorded serves"
    assert scored("initial", 2) == scored("previous", 2) + trained


def test_evaluation_counts_each_decoder() -> None:
    found = stages(recipe(rounds=2))
    assert "warm-up" not in found
    start, middle, last = (found[f"round {k} eval"] for k in (0, 1, 2))
    assert start.expected.generated_tokens == 5 * (1 + 2) * 12  # greedy and 2 samples; no values yet, so no SBS
    assert start.upper.generated_tokens == 5 * 3 * 30
    assert start.expected.prefill_tokens == 5 * 2 * 10
    assert last.expected.generated_tokens - middle.expected.generated_tokens == 5 * 2 * 12, "two samples more"
    assert middle.expected.generated_tokens <= 5 * (3 * 12 + (2 + 6) * 3 * 4)
    assert last.upper.generated_tokens == 5 * (5 * 30 + (2 + 6) * 4 * 8)
    mcts = stages(recipe(eval={"mcts": True, "sbs": []}))["round 1 eval"]
    assert mcts.upper.generated_tokens == 5 * (5 * 30 + 12 * 8)


def test_what_no_dry_run_could_hold_is_tried_in_small() -> None:
    huge = {"simulations": 1_000_000, "children": 2, "max_depth": 100_000, "max_step_tokens": 10_000_000}
    for method in ("svpo", "mcts_dpo"):
        found = stages(recipe(method=method, search=huge, task={"splits": {"train": 10_000_000}}))
        upper = found["round 1 search"].upper.generated_tokens
        deep = 1_000_000 * (100_000 if method == "mcts_dpo" else 1)
        assert upper == pytest.approx(10_000_000 * deep * 2 * 10_000_000, rel=0.1)


def test_disk_holds_models_training_states_and_trees() -> None:
    result = estimate(recipe(rounds=2, warmup={"epochs": 1}), model_info=INFO, assumptions=ASSUMED)
    folders, states = 3 * (4000 + 5_000_000), 2 * (4000 + 8000)
    assert result.disk_upper == folders + states + 2 * 960 * 16 + 5_000_000


def test_seconds_are_bound_by_compute_memory_or_overhead() -> None:
    r = recipe(engine={"max_rows": 10})
    tokens = stages(r)["round 1 search"].expected.generated_tokens
    fast = Rates(flops=1e30, bytes_per_second=1e30, op_seconds=0)
    assert stages(r, fast)["round 1 search"].expected.seconds == pytest.approx(tokens * 1e-5)
    slow_memory = Rates(flops=1e30, bytes_per_second=4000, op_seconds=0)
    assert stages(r, slow_memory)["round 1 search"].expected.seconds == pytest.approx(tokens / 10 + tokens * 1e-5)
    slow_maths = Rates(flops=4000, bytes_per_second=1e30, op_seconds=0)
    assert stages(r, slow_maths)["round 1 search"].expected.seconds == pytest.approx(tokens + 100, rel=1e-4)
    assert stages(r)["round 1 search"].expected.seconds == 0


@settings(max_examples=50, deadline=None)
@given(
    simulations=st.integers(1, 60),
    depth=st.integers(1, 12),
    rounds=st.integers(0, 3),
    objective=st.sampled_from(["svpo", "dpo", "sft"]),
    evaluate=st.sampled_from(["value", "rollout"]),
    reference=st.sampled_from(["initial", "previous"]),
    mcts=st.booleans(),
    method=st.sampled_from(["svpo", "mcts_dpo", "dpo_st"]),
)
@example(1, 7, 1, "svpo", "value", "initial", False, "svpo")  # a tree without pairs
def test_the_upper_bound_is_never_below_the_expected(
    simulations, depth, rounds, objective, evaluate, reference, mcts, method
):
    r = recipe(
        method=method,
        rounds=rounds,
        warmup={"epochs": 1},
        search={"simulations": simulations, "max_depth": depth, "max_step_tokens": 40, "evaluate": evaluate},
        train={"objective": objective, "reference": reference},
        eval={"mcts": mcts, "max_tokens": 512},
    )
    result = estimate(r, model_info=INFO, rates=Rates(1e9, 1e9, 1e-6))
    for stage in result.stages:
        for key, expected in stage.expected.as_dict().items():
            if key != "cached_tokens":  # what the upper bound computes anew
                assert expected <= stage.upper.as_dict()[key] * (1 + 1e-9), f"{stage.name}: {key}"
    assert result.disk_expected <= result.disk_upper


def test_budgets_that_do_not_hold_are_told_and_printed() -> None:
    r = recipe(budget={"tokens": 500, "seconds": 1e9, "disk_gb": 1.0})
    result = estimate(r, model_info=INFO, rates=Rates(1e9, 1e9, 1e-6), assumptions=ASSUMED)
    (line,) = result.over_budget
    assert line.startswith("budget.tokens (500) is below the expected ") and line.endswith("would stop early")
    total = budget_tokens(result.expected)
    between = recipe(budget={"tokens": total + 1})
    (line,) = estimate(between, model_info=INFO, assumptions=ASSUMED).over_budget
    assert "but not the upper bound" in line

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(r, result, INFO))
    text = console.export_text()
    assert "round 1 search" in text and "≤ 960" in text and "whole run" in text
    assert "! budget.tokens" in text and "a prompt has 10 tokens, a step 4" in text


def test_a_models_size_is_read_from_its_config_alone(tmp_path) -> None:
    from transformers import LlamaConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaConfig(**sizes, intermediate_size=32, vocab_size=50, tie_word_embeddings=True).save_pretrained(
        tmp_path / "tied"
    )
    LlamaConfig(**sizes, intermediate_size=32, vocab_size=50, tie_word_embeddings=False).save_pretrained(
        tmp_path / "two"
    )
    layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32 + 2 * 16  # q, k and v, o, the MLP, two norms
    tied = model_info(str(tmp_path / "tied"), "bfloat16")
    assert tied.params == tied.active == 50 * 16 + 3 * layer + 16
    assert tied.kv_bytes_per_token == 2 * 3 * 2 * 4 * 2
    assert (tied.hidden, tied.vocab, tied.layers, tied.bytes_per_param) == (16, 50, 3, 2)
    two = model_info(str(tmp_path / "two"))
    assert two.params == tied.params + 50 * 16  # two matrices of words,
    assert two.active == tied.params  # of which one is only looked up
    with pytest.raises(ModelError, match="no such folder"):
        model_info(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="config cannot be read"):
        model_info(str(tmp_path / "empty"))


@pytest.fixture(scope="module")
def lettered_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny config and a tokenizer with one token a character; no weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaConfig(**sizes, vocab_size=300).save_pretrained(folder)
    letters = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return str(folder)


def own_problems(folder: Path, model: str, rationale: bool) -> Recipe:
    rows = [{"question": f"q{i:02d}", "answer": "7"} for i in range(40)]
    if rationale:
        rows = [row | {"rationale": "3+4=7\n#### 7"} for row in rows]
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recipe(
        task={"kind": "jsonl", "path": str(file), "prompt": "{question}=?\n", "splits": {"train": 20, "eval": 10}},
        model={"path": model},
    )


def test_lengths_are_measured_on_the_tasks_own_problems(tmp_path: Path, lettered_model: str) -> None:
    found = measured_assumptions(own_problems(tmp_path, lettered_model, rationale=True), problems=8)
    assert found.prompt_tokens == len("q00=?\n")
    assert "rationales" in found.origin
    assert found.steps * found.step_tokens == pytest.approx(
        len("3+4=7\n#### 7") + 1, abs=12
    )  # the answer line is the task's
    without = measured_assumptions(own_problems(tmp_path, lettered_model, rationale=False), problems=8)
    assert (without.prompt_tokens, without.step_tokens, without.steps) == (6, 4, 2.5)
    assert "steps half as long" in without.origin


def test_the_question_about_a_step_is_measured(tmp_path: Path, lettered_model: str) -> None:
    asked = {"self_evaluation": {"question": "Right? (", "example": "abc"}}
    task = own_problems(tmp_path, lettered_model, rationale=False)
    r = recipe(method="mcts_dpo", search=asked).model_copy(update={"task": task.task, "model": task.model})
    assert measured_assumptions(r, problems=8).question_tokens == len("abcRight? (")


def test_what_cannot_be_measured_is_assumed_and_said(tmp_path: Path, lettered_model: str) -> None:
    r = recipe(task={"kind": "jsonl", "path": str(tmp_path / "none.jsonl")}, model={"path": lettered_model})
    found = measured_assumptions(r)
    assert (found.prompt_tokens, found.step_tokens, found.steps) == (100, 4, 2.5)
    assert "nothing measured" in found.origin and "none.jsonl" in found.origin


def test_the_command_prints_the_table(tmp_path: Path, lettered_model: str) -> None:
    from typer.testing import CliRunner

    from treepref.cli import app
    from treepref.recipes.reading import dump_recipe

    file = tmp_path / "r.yaml"
    file.write_text(dump_recipe(own_problems(tmp_path, lettered_model, rationale=True)))
    result = CliRunner().invoke(app, ["estimate", str(file), "budget.tokens=10", "pairs.min_problems=1"])
    assert (result.exit_code, result.exception) == (0, None)
    for text in ("round 1 search", "whole run", "a prompt has 6 tokens", "! budget.tokens (10) is below"):
        assert text in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["problems.jsonl", "r.yaml"]  # nothing was begun


def test_the_probe_divides_work_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    # A second passes between two looks at the clock: each of the three probes works three times, and takes 4 s for it.
    monkeypatch.setattr(sizing, "time", SimpleNamespace(perf_counter=map(float, count()).__next__))
    rates = measure_rates("cpu", seconds=3)
    assert rates.op_seconds == pytest.approx(4 / 3)
    assert rates.flops == pytest.approx(2 * 512**3 * 3 / 4)
    assert rates.bytes_per_second == pytest.approx(2 * 4 * 8 * 2**20 * 3 / 4)


def test_numbers_are_short_and_readable() -> None:
    assert [numbers.count(x) for x in (0, 999, 1234567, 3.2e15, 4e18)] == ["0", "999", "1.23 M", "3.2 P", "4 E"]


# ---- against a run


@pytest.mark.parametrize("method", METHODS)
def test_a_run_costs_what_is_expected_of_its_lengths_and_never_more_than_the_bound(method: str, tmp_path: Path) -> None:
    copy_model(tmp_path / "model")
    more = {"dpo_st": []}.get(method, ["task.splits.train=24", "search.simulations=10"])
    done = treepref_command("run", *METHODS[method], *more, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Store(tmp_path / "run", read_only=True) as store:
        trees, costs = list(store.trees("round-1/search")), store.costs()
        spent = load_recipe(METHODS[method][0], [*METHODS[method][1:], *more]).recipe
    sampled = [node for tree in trees for node in tree.nodes[1:]]
    draws = sum(node.samples for node in sampled)
    assumed = Assumptions(
        prompt_tokens=sum(len(tree.prompt) for tree in trees) / len(trees),
        step_tokens=sum(len(node.tokens) * node.samples for node in sampled) / draws,
        steps=_steps(sampled),
        differ=len(sampled) / draws,
        useful=sum(store_pairs > 0 for store_pairs in _pairs_a_tree(tmp_path / "run", trees)) / len(trees),
    )
    found = {s.name: s for s in estimate(spent, model_info=INFO, assumptions=assumed).stages}
    real, search = costs["round-1/search"], found["round 1 search"]
    assert search.expected.generated_tokens == pytest.approx(real.generated_tokens, rel=0.3)
    trained = "dpo" if method == "dpo_st" else "train"
    real_training, training = costs[f"round-1/{trained}"].training_tokens, found[f"round 1 {trained}"]
    assert real_training / 1.5 < training.expected.training_tokens < real_training * 1.5
    for name, stage in (("round-1/search", search), (f"round-1/{trained}", training)):
        cost = costs[name]
        assert cost.generated_tokens <= stage.upper.generated_tokens
        assert cost.prefill_tokens + cost.scored_tokens <= stage.upper.prefill_tokens + stage.upper.scored_tokens
        assert cost.training_tokens <= stage.upper.training_tokens


def _steps(sampled: list[Node]) -> float:
    """Mean steps of a solution: at each depth the share of samples that come to it."""
    steps, alive, depth = 0.0, 1.0, 1
    while here := [node for node in sampled if node.depth == depth]:
        steps, depth = steps + alive, depth + 1
        alive *= 1 - sum(n.samples for n in here if n.terminal) / sum(n.samples for n in here)
    return steps


def _pairs_a_tree(run: Path, trees: list[Tree]) -> list[int]:
    with Store(run, read_only=True) as store:
        counts = Counter(pair.tree for pair in store.pairs(1))
    return [counts[tree.key] for tree in trees]


# ---- hard limits


def test_a_budget_covers_all_lives_and_names_the_key() -> None:
    config = BudgetConfig(tokens=1000, seconds=60, disk_gb=0.5)
    spent = Cost(generated_tokens=400, prefill_tokens=100, cached_tokens=9999, seconds=30)
    budget = Budget(config, spent)
    assert budget.check(Cost(scored_tokens=200, training_tokens=299), disk_bytes=499_999_999) is None
    reason = budget.check(Cost(scored_tokens=200, training_tokens=300))
    assert reason is not None and "budget.tokens: 1,000 of 1,000 tokens" in reason and "run the same command" in reason
    assert "budget.seconds: 60 of 60 seconds" in str(budget.check(Cost(seconds=30)))
    assert "budget.disk_gb: 0.5 of 0.5 GB" in str(budget.check(Cost(), disk_bytes=500_000_000))
    everything = str(budget.check(Cost(training_tokens=600, seconds=40), disk_bytes=10**9))
    assert all(key in everything for key in ("budget.tokens", "budget.seconds", "budget.disk_gb"))
    assert budget.check(Cost()) is None


def test_without_limits_nothing_stops() -> None:
    assert Budget(BudgetConfig()).check(Cost(generated_tokens=10**15, seconds=1e12), disk_bytes=10**18) is None


def test_a_file_that_is_smaller_than_asked_for_is_counted_as_it_is(tmp_path) -> None:
    rows = [{"question": f"{a} + 1 = ?", "answer": str(a + 1)} for a in range(58)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(
        "svpo", [f"task.path={tmp_path / 'rows.jsonl'}", "task.kind=jsonl", "task.splits.eval=10"]
    ).recipe
    smaller, cut = at_real_size(recipe)
    total = smaller.task.splits.train + smaller.task.splits.eval
    assert total == 58 and cut is not None and "train has " in cut and " of 1,000" in cut
    info, rates = ModelInfo(10**6, 10**3, 64, 1000, layers=2), Rates(1e12, 1e11, 1e-6)
    whole, real = (estimate(r, model_info=info, rates=rates).expected for r in (recipe, smaller))
    assert real.generated_tokens < 0.1 * whole.generated_tokens
    drawn = load_recipe("quickstart").recipe
    assert at_real_size(drawn) == (drawn, None)
    missing = load_recipe("svpo", ["task.path=nowhere.jsonl", "task.kind=jsonl"]).recipe
    assert at_real_size(missing) == (missing, None), "told elsewhere"
