"""The learner: gradients that do not depend on how a step is cut, exact resume, and refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training_cases import VOCABULARY, random_examples, separate, tiny_llama, tiny_value_head
from treepref.config import TrainConfig, WarmupConfig
from treepref.errors import DataError, ModelError, StoreError
from treepref.training.examples import Example, ExampleNode, ExamplePair, attach_reference, example_from_solution
from treepref.training.forward import loss_batch, model_scorer
from treepref.training.learner import Learner
from treepref.training.objectives import OBJECTIVES, Coefficients, Counts, LossBatch, total
from treepref.training.packing import flatten
from treepref.training.probe import wholly_float64
from treepref.training.schedule import lr_factor, plan_steps
from treepref.training.settings import LearnerSettings
from treepref.types import PolicyId

EXACT: dict[str, Any] = {"lr": 0.0, "clip": 1e30}
"""Settings under which a step leaves its plain gradient in the parameters and the weights alone."""


def gradient(examples: Sequence[Example], **changes: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """∂L/∂parameters of one step over all examples, and the step's metrics."""
    learner = Learner(tiny_llama(), tiny_value_head(), LearnerSettings(**EXACT | changes))
    with wholly_float64():
        result = learner.train(examples, batch_trees=len(examples))
    assert result.steps == 1
    return torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None]), result.last


def plain_gradient(examples: Sequence[Example], objective: str) -> tuple[torch.Tensor, float]:
    """The same without packing: one plain forward for every node, one loss over everything."""
    model, value_head = tiny_llama().eval(), tiny_value_head()
    logps, values, flats = [], [], [flatten(e, 10**6) for e in examples]
    with wholly_float64():
        for example in examples:
            logp, value = separate(model, value_head, example)
            values.extend(value)
            for node, trained, x in zip(example.nodes, example.trained, logp, strict=True):
                free = [i for i in range(len(node.tokens)) if not (node.forced and node.forced[i])]
                logps.append(x[free] if trained else x[:0])
        batch = loss_batch(flats, torch.cat(logps), torch.stack(values))
        counts = sum((e.counts for e in examples), Counts())
        loss = total(OBJECTIVES[objective](batch, Coefficients()), counts)
        parameters = [*model.parameters(), *(value_head.parameters() if objective == "svpo" else ())]
        grads = torch.autograd.grad(loss, parameters)
    return torch.cat([g.flatten() for g in grads]), loss.item()


def relative(one: torch.Tensor, two: torch.Tensor) -> float:
    return ((one - two).norm() / two.norm()).item()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6), st.sampled_from(sorted(OBJECTIVES)), st.sampled_from([14, 30, 1000]), st.sampled_from([1, 8])
)
def test_a_step_has_the_gradient_of_separate_sequences(seed: int, objective: str, row_tokens: int, rows: int) -> None:
    examples = random_examples(seed, 4, nodes=7)
    packed, metrics = gradient(examples, objective=objective, row_tokens=row_tokens, rows_per_pass=rows)
    plain, loss = plain_gradient(examples, objective)
    assert relative(packed, plain) <= 1e-9
    assert metrics["loss"] == pytest.approx(loss, rel=1e-9)


def test_split_trees_have_the_gradient_of_whole_ones() -> None:
    examples = random_examples(8, 3, nodes=14)
    assert all(len(flatten(e, 20).pieces) > 2 for e in examples)
    whole, one = gradient(examples)
    split, two = gradient(examples, row_tokens=20)
    assert relative(split, whole) <= 1e-9
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-12)
    assert two["reward_margin"] == pytest.approx(one["reward_margin"], rel=1e-9)
    assert two["tokens"] > one["tokens"], "repeated prefixes are counted"


def test_recomputed_activations_change_nothing() -> None:
    examples = random_examples(8, 3)
    found, calls, flops = [], [], []
    for recompute in (False, True):
        learner = Learner(tiny_llama(), tiny_value_head(), LearnerSettings(**EXACT, recompute=recompute))
        runs: list[int] = []
        learner.packed.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        flops.append(learner.train(examples, batch_trees=3).flops)
        calls.append(len(runs))
        found.append(torch.cat([p.grad.flatten() for p in learner.parameters.values()]))
    assert calls == [1, 2], "the layer ran again in the backward pass"
    assert flops[1] == pytest.approx(flops[0] * 4 / 3)
    assert relative(found[1], found[0]) <= 1e-9


def trajectory(examples: Sequence[Example], **changes: Any) -> tuple[list[float], torch.Tensor]:
    learner = Learner(tiny_llama(), tiny_value_head(), LearnerSettings(**{"lr": 1e-2, "seed": 3} | changes))
    losses: list[float] = []
    with wholly_float64():
        learner.train(examples, epochs=2, batch_trees=8, on_step=lambda m: losses.append(m["loss"]))
    return losses, weights(learner)


def weights(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.parameters.values()])


def test_one_pass_of_eight_is_eight_passes_of_one() -> None:
    examples = random_examples(21, 16)
    longest = max(e.size for e in examples)
    # rows that hold one tree each: eight forwards of one row against one forward of eight rows
    eight_times_one, end = trajectory(examples, row_tokens=longest, rows_per_pass=1)
    one_time_eight, same = trajectory(examples, row_tokens=longest, rows_per_pass=8)
    packed, also = trajectory(examples, row_tokens=10**4)
    assert len(eight_times_one) == 4
    assert one_time_eight == pytest.approx(eight_times_one, rel=1e-9)
    assert packed == pytest.approx(eight_times_one, rel=1e-9)
    assert relative(same, end) <= 1e-8
    assert relative(also, end) <= 1e-8
    assert eight_times_one[-1] < eight_times_one[0]


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    examples = random_examples(4, 12)

    def run(folder: Path | None, stop_after: int | None) -> tuple[list[dict[str, float]], Learner, Any]:
        learner = Learner(tiny_llama(), tiny_value_head(), LearnerSettings(lr=1e-2, weight_decay=0.1))
        log: list[dict[str, float]] = []
        result = learner.train(
            examples,
            epochs=3,
            batch_trees=4,
            checkpoints=folder,
            checkpoint_every=2,
            on_step=log.append,
            stop=lambda m: m["step"] + 1 == stop_after,
        )
        return log, learner, result

    straight, learner, result = run(None, None)
    assert (result.steps, result.total_steps, result.stopped) == (9, 9, False)
    first, _, stopped = run(tmp_path, 3)
    assert (stopped.steps, stopped.stopped) == (3, True)
    second, _, _ = run(tmp_path, 7)
    third, resumed, finished = run(tmp_path, None)
    assert [len(x) for x in (first, second, third)] == [3, 4, 2]
    assert torch.equal(weights(resumed), weights(learner))
    timeless = [{k: v for k, v in m.items() if k != "seconds"} for m in (*first, *second, *third)]
    assert timeless == [{k: v for k, v in m.items() if k != "seconds"} for m in straight]
    assert (finished.steps, finished.tokens, finished.flops) == (9, result.tokens, result.flops)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000008", "step-00000009"]
    again, _, done = run(tmp_path, None)
    assert (again, done.steps) == ([], 9)


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    examples = random_examples(4, 4)
    learner = Learner(tiny_llama(), tiny_value_head(), LearnerSettings())
    learner.train(examples, batch_trees=2, checkpoints=tmp_path)
    (tmp_path / "step-00000003.part").mkdir()
    (tmp_path / "step-00000003.part" / "state.pt").write_bytes(b"half")
    fresh = Learner(tiny_llama(), tiny_value_head(), LearnerSettings())
    assert fresh.train(examples, batch_trees=2, checkpoints=tmp_path).steps == 2
    assert torch.equal(weights(fresh), weights(learner))


def test_a_checkpoint_of_other_settings_or_data_is_refused(tmp_path: Path) -> None:
    examples = random_examples(4, 4)

    def run(examples: Sequence[Example], **changes: Any) -> None:
        learner = Learner(tiny_llama(), tiny_value_head(), LearnerSettings(**changes))
        learner.train(examples, batch_trees=2, checkpoints=tmp_path)

    run(examples)
    with pytest.raises(StoreError, match=r"lr: 1e-05 → 0\.1"):
        run(examples, lr=0.1)
    with pytest.raises(StoreError, match="data"):
        run(examples[:3])
    run(examples, row_tokens=64, rows_per_pass=2)  # how the work is cut may change


def test_a_checkpoint_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="cannot save a checkpoint"):
        Learner(tiny_llama(), tiny_value_head(), LearnerSettings()).train(
            random_examples(4, 2), batch_trees=2, checkpoints=blocked / "below"
        )


@pytest.mark.parametrize("objective", ["dpo", "cdpo", "cdpo_mean", "ipo", "ipo_mean", "svpo"])
def test_first_loss_with_the_policy_as_reference(objective: str) -> None:
    model = tiny_llama()
    examples = random_examples(6, 8, reference=model)
    learner = Learner(model, tiny_value_head(), LearnerSettings(objective=objective, row_tokens=30))
    log: list[dict[str, float]] = []
    learner.train(examples, batch_trees=4, reference_is_policy=True, on_step=log.append)
    expected = 25.0 if objective.startswith("ipo") else math.log(2)
    assert log[0]["loss_preference"] == pytest.approx(expected, rel=1e-6)
    assert log[0]["reward_margin"] == pytest.approx(0.0, abs=1e-6)
    assert log[0]["kl"] == pytest.approx(0.0, abs=1e-9)


def test_a_reference_that_is_not_the_policy_is_found_out_before_any_update() -> None:
    model = tiny_llama(seed=1)
    before = [p.clone() for p in model.parameters()]
    examples = random_examples(6, 8, reference=tiny_llama(seed=2))
    with pytest.raises(ModelError, match=r"must be 0\.693147"):
        Learner(model, None, LearnerSettings(objective="dpo")).train(examples, batch_trees=8, reference_is_policy=True)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_loss_that_is_not_finite_names_step_and_example_and_changes_nothing() -> None:
    model, examples = tiny_llama(), random_examples(6, 3)
    sick = next(e for e in examples if e.pairs)
    winner = sick.pairs[0].winner[0]
    nodes = list(sick.nodes)
    nodes[winner] = replace(nodes[winner], ref=tuple(float("inf") for _ in nodes[winner].tokens), forced=None)
    examples[examples.index(sick)] = replace(sick, nodes=tuple(nodes))
    before = [p.clone() for p in model.parameters()]
    longest = max(e.size for e in examples)
    learner = Learner(model, None, LearnerSettings(objective="ipo", row_tokens=longest))
    with pytest.raises(ModelError, match=f"step 0.*Examples: '{sick.id}'\\."):
        learner.train(examples, batch_trees=3)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_preference_learning_raises_the_margin() -> None:
    model = tiny_llama()
    examples = random_examples(6, 8, reference=model)
    log: list[dict[str, float]] = []
    settings = LearnerSettings(objective="svpo", lr=3e-3, value_lr=3e-2, schedule="constant", warmup_ratio=0.0)
    Learner(model, tiny_value_head(), settings).train(examples, epochs=15, batch_trees=8, on_step=log.append)
    assert log[-1]["reward_margin"] > log[0]["reward_margin"] + 0.1
    assert log[-1]["reward_accuracy"] > 0.9
    assert log[-1]["value_mse"] < log[0]["value_mse"]


def test_warm_up_learns_a_rule() -> None:
    # next token = previous + 1; the model has to get it right on sequences it never saw
    def sequence(start: int, n: int) -> tuple[int, ...]:
        return tuple((start + i) % VOCABULARY for i in range(n))

    examples = [
        example_from_solution(sequence(s, 1 + s % 2), sequence(s + 1 + s % 2, 6), id=f"s{s:02d}") for s in range(0, 31)
    ]
    model = tiny_llama().float()
    settings = LearnerSettings.of(WarmupConfig(epochs=1, lr=1e-2), row_tokens=64, rows_per_pass=4)
    log: list[dict[str, float]] = []
    Learner(model, None, settings).train(examples, epochs=30, batch_tokens=60, on_step=log.append)
    assert log[-1]["nll"] == pytest.approx(log[-1]["loss"], rel=1e-5)
    assert log[-1]["nll"] < 0.1 < 1.0 < log[0]["nll"]
    with torch.no_grad():
        found = model(torch.tensor([sequence(9, 6)])).logits[0, -1].argmax().item()
    assert found == 15


def test_forced_tokens_carry_no_loss() -> None:
    def loss_of(last_token: int, forced: bool) -> float:
        mask = (False, False, True) if forced else None
        example = example_from_solution((1, 2), (3, 4, last_token), id="x", forced=mask)
        return gradient([example], objective="sft")[1]["loss"]

    assert loss_of(5, forced=True) == loss_of(6, forced=True)
    assert loss_of(5, forced=False) != loss_of(6, forced=False)


@pytest.mark.parametrize("objective", ["dpo", "cdpo", "ipo"])
def test_first_tokens_that_siblings_share_cancel(objective: str) -> None:
    """h counts from where the sides differ: shared tokens in both siblings, or in a node above them, are one loss."""
    rng = torch.Generator().manual_seed(0)

    def node(tokens: tuple[int, ...], parent: int, refs: tuple[float, ...]) -> ExampleNode:
        return ExampleNode(tokens, parent, ref=refs)

    def refs(n: int) -> tuple[float, ...]:
        return tuple((-4 * torch.rand(n, generator=rng)).tolist())

    shared, won, lost = (5, 6), (7, 8, 9), (10,)
    of_shared, of_won, of_lost = refs(2), refs(3), refs(1)
    repeated = Example(
        "x",
        (1, 2, 3),
        (node(shared + won, -1, of_shared + of_won), node(shared + lost, -1, of_shared + of_lost)),
        (ExamplePair((0,), (1,), alpha=0.2),),
    )
    apart = Example(
        "x",
        (1, 2, 3),
        (node(shared, -1, of_shared), node(won, 0, of_won), node(lost, 0, of_lost)),
        (ExamplePair((1,), (2,), alpha=0.2),),
    )
    (one, metrics), (two, expected) = (gradient([e], objective=objective) for e in (repeated, apart))
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-12)
    assert relative(one, two) <= 1e-12
    assert one.norm() > 0


def test_dropout_is_off_and_modes_are_given_back() -> None:
    model = tiny_llama()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    examples = random_examples(8, 3)
    learner = Learner(model, tiny_value_head(), LearnerSettings(**EXACT))
    with wholly_float64():
        learner.train(examples, batch_trees=3)
    assert model.training
    found = torch.cat([p.grad.flatten() for p in learner.parameters.values()])
    assert relative(found, gradient(examples)[0]) <= 1e-9


def test_only_parameters_that_require_a_gradient_are_trained() -> None:
    model = tiny_llama().requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    examples = random_examples(8, 3)
    Learner(model, None, LearnerSettings(objective="dpo", lr=1e-2)).train(examples, batch_trees=3)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["model.layers.0.mlp.up_proj.weight"]


def test_weight_decay_spares_norms_and_the_value_head_has_its_own_rate() -> None:
    learner = Learner(tiny_llama(), tiny_value_head(), LearnerSettings(weight_decay=0.1, lr=1e-3, value_lr=1e-2))
    names = {id(p): name for name, p in learner.parameters.items()}
    for group in learner.stepper.optimizer().param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["weight_decay"] == (0.0 if "norm" in name else 0.1)
            assert group["base_lr"] == (1e-2 if name.startswith("value_head") else 1e-3)


def test_costs_are_counted() -> None:
    examples = random_examples(8, 3)
    learner = Learner(tiny_llama(), tiny_value_head(), LearnerSettings())
    result = learner.train(examples, epochs=2, batch_trees=3)
    tokens = 2 * sum(e.size for e in examples)
    parameters = sum(p.numel() for p in nn.ModuleList([learner.packed.model, learner.packed.value_head]).parameters())
    assert result.tokens == tokens
    assert result.flops == pytest.approx(6 * parameters * tokens)


def test_bad_input_is_refused() -> None:
    examples = random_examples(8, 3)
    with pytest.raises(ModelError, match="value head"):
        Learner(tiny_llama(), None, LearnerSettings())
    learner = Learner(tiny_llama(context=16), None, LearnerSettings(objective="dpo"))
    with pytest.raises(DataError, match="context is 16"):
        learner.train(random_examples(8, 3, nodes=12), batch_trees=3)
    with pytest.raises(DataError, match="'p000'"):
        learner.train([examples[0], examples[0]], batch_trees=3)
    with pytest.raises(DataError, match="nothing"):
        learner.train([], batch_trees=3)
    bare = [replace(e, nodes=tuple(replace(n, ref=None) for n in e.nodes)) for e in examples]
    with pytest.raises(ModelError, match="attach_reference"):
        learner.train(bare, batch_trees=3)


def test_plan_covers_every_example_once_an_epoch_in_even_steps() -> None:
    examples = random_examples(0, 21)
    plan = plan_steps(examples, 2, 5, batch_trees=8, batch_tokens=None)
    assert [len(s.members) for s in plan] == [7] * 6
    for epoch in range(2):
        assert sorted(i for s in plan if s.epoch == epoch for i in s.members) == list(range(21))
    assert plan[0].members != plan[3].members
    assert plan == plan_steps(examples, 2, 5, batch_trees=8, batch_tokens=None)
    assert plan != plan_steps(examples, 2, 6, batch_trees=8, batch_tokens=None)
    by_tokens = plan_steps(examples, 1, 5, batch_trees=None, batch_tokens=40)
    sizes = [sum(examples[i].trained_tokens for i in s.members) for s in by_tokens]
    assert sum(sizes) == sum(e.trained_tokens for e in examples)
    assert max(sizes) <= 40 + max(e.trained_tokens for e in examples)


def test_learning_rate_schedule_by_hand() -> None:
    # 10 steps, 20 % warm-up: 1/2, 1, then cosine over 8 steps: step 6 is half way: 0.5·(1 + cos(π/2)) = 0.5
    assert [lr_factor(s, 10, 0.2, "cosine") for s in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert lr_factor(6, 10, 0.2, "cosine") == pytest.approx(0.5)
    assert lr_factor(6, 10, 0.2, "linear") == pytest.approx(0.5)
    assert lr_factor(9, 10, 0.2, "linear") == pytest.approx(1 / 8)
    assert lr_factor(9, 10, 0.0, "constant") == 1.0


def test_settings_of_a_recipe() -> None:
    settings = LearnerSettings.of(TrainConfig(beta=0.3, lr=2e-4, row_tokens=512), seed=7)
    assert (settings.coefficients.beta, settings.lr, settings.row_tokens, settings.seed) == (0.3, 2e-4, 512, 7)


def test_recorded_log_probs_of_the_policy_pass_the_check() -> None:
    model = tiny_llama()
    scorer = model_scorer(model, row_tokens=64)
    examples = random_examples(6, 6)
    scored = scorer(examples)
    recorded = [
        replace(
            e,
            nodes=tuple(replace(n, logprobs=x, ref=None) for n, x in zip(e.nodes, logprobs, strict=True)),
        )
        for e, logprobs in zip(examples, scored, strict=True)
    ]
    attached, report = attach_reference(recorded, model_scorer(model, row_tokens=20), reference=PolicyId("p0"))
    assert (report.recorded, report.recomputed) == (6, 0)
    assert report.worst < 1e-6
    batch: LossBatch = loss_batch(
        [flatten(e, 1000) for e in attached], torch.zeros(sum(e.trained_tokens for e in attached)), None
    )
    assert not batch.ref_T.isnan().any()
