"""The online loop for real: the shipped tiny base, a few problems, every stage, killed and resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from kill_plans import Death, check_same_run, killed_and_resumed, lives_of
from loop_runs import check_same_weights, digest, parameters
from treepref.engines.torch_engine import TorchEngine
from treepref.errors import BudgetError, RecipeError, TooFewPairs
from treepref.loops import mcts_dpo, run
from treepref.loops.evaluate import evaluate
from treepref.loops.serving import Serving
from treepref.loops.session import Session
from treepref.recipes.reading import load_recipe
from treepref.runs.stage import round_policy
from treepref.runs.store import Store
from treepref.types import Request

SMALL = [
    "seed=3", "rounds=1", "engine.threads=1", "engine.max_rows=64", "task.splits.train=12", "task.splits.eval=2",
    "task.params={min_terms: 5, max_terms: 6, min_digits: 1, max_digits: 1}",
    "search.simulations=4", "search.children=2", "search.root_children=3", "search.max_depth=6",
    "online.batch_problems=4", "online.checkpoint_every=2", "pairs.min_problems=2", "pairs.min_gap=0",
    "pairs.winner_reaches_answer=false", "train.warmup_ratio=0", "eval.samples=2", "eval.samples_between=0",
]  # fmt: skip
ASKED = 'search.self_evaluation={question: " = ", right: "1", wrong: "0"}'


def go(out: Path, *more: str) -> Path:
    run.run(load_recipe("mcts_dpo", [*SMALL, *more]), out)
    return out


def weights(out: Path, round: int = 1) -> list[torch.Tensor]:
    return parameters(out / f"round-{round}")


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(tmp_path_factory.mktemp("runs") / "online", ASKED)


def test_each_batch_is_searched_with_the_weights_of_the_update_before(finished: Path) -> None:
    with Store(finished, read_only=True) as store:
        policies = sorted(row.policy for row in store.tree_rows("round-1/search"))
        steps = store.meta("steps/round-1/train")
        pairs = {pair.tree for pair in store.pairs(1)}
        stages = {stage.name: stage for stage in store.stages()}
    assert policies == ["round-0"] * 4 + ["round-1/batch-1"] * 4 + ["round-1/batch-2"] * 4
    assert [s["step"] for s in steps] == [0, 1, 2] and sum(s["pairs"] for s in steps) > 0
    assert all(stages[f"round-1/{s}"].status == "done" for s in ("search", "pairs", "train"))
    assert stages["round-1/search"].info["trees"] == 12
    assert stages["round-1/pairs"].info["paired"] == len(pairs) > 0


def test_the_first_update_starts_from_an_untrained_preference(finished: Path) -> None:
    with Store(finished, read_only=True) as store:
        first = store.meta("steps/round-1/train")[0]
    assert first["loss_preference"] == pytest.approx(math.log(2), abs=1e-4)
    base = parameters(Path(run.__file__).parents[1] / "data" / "tiny_base")
    assert not equal(weights(finished), base)


def test_recorded_logprobs_are_those_of_the_updated_weights(finished: Path, tmp_path: Path) -> None:
    """With reference=previous every update starts at h = 0, which the learner checks: the engine had its weights."""
    out = go(tmp_path, "train.reference=previous")
    with Store(out, read_only=True) as store:
        steps = store.meta("steps/round-1/train")
        warnings = [e.message for e in store.events() if e.level == "warning"]
    losses = [s["loss_preference"] for s in steps if "loss_preference" in s]
    assert losses == pytest.approx([math.log(2)] * len(losses), abs=1e-4) and len(losses) > 1
    assert not warnings


def test_every_step_of_the_trees_was_asked_about(finished: Path) -> None:
    with Store(finished, read_only=True) as store:
        trees = list(store.trees("round-1/search"))
    for tree in trees:
        assert tree.q_range == (-2.0, 2.0)
        assert all((n.confidence is None) == (n.finish == "length") for n in tree.nodes[1:])
        assert tree.root.visits == tree.simulations
    assert json.loads((finished / "results.json").read_text())["rounds"][1]["self_evaluation"] is not None


def test_running_again_does_nothing_again(finished: Path) -> None:
    before, spent = digest(finished), json.loads((finished / "results.json").read_text())["cost"]
    go(finished, ASKED)
    assert digest(finished) == before
    assert json.loads((finished / "results.json").read_text())["cost"] == spent


def test_offline_takes_all_trees_from_the_first_policy(tmp_path: Path) -> None:
    out = go(tmp_path, "online.enabled=false", "train.objective=ipo", "train.reference=previous")
    with Store(out, read_only=True) as store:
        assert {row.policy for row in store.tree_rows("round-1/search")} == {"round-0"}
        steps = store.meta("steps/round-1/train")
    assert len(steps) == 3
    assert steps[0]["loss_preference"] == pytest.approx(1 / (4 * 0.1**2), rel=1e-4)
    assert steps[1]["loss_preference"] != pytest.approx(25, rel=1e-6), "the reference stays the round's first policy"


def test_whole_solutions_and_lora_and_a_second_round(tmp_path: Path) -> None:
    out = go(
        tmp_path, "pairs.level=solution", "model.lora={rank: 4}", "rounds=2", "task.splits.eval=2", "train.lr=0.01",
        "task.splits.train=8", "train.objective=dpo",
    )  # fmt: skip
    with Store(out, read_only=True) as store:
        pairs, trees = list(store.pairs(2)), {t.key: t for t in store.trees("round-2/search")}
        steps = [[s for s in store.meta(f"steps/round-{k}/train") if "loss_preference" in s] for k in (1, 2)]
    assert pairs and all(trees[p.tree].nodes[p.winner[-1]].reward == 1.0 for p in pairs)
    assert not equal(weights(out, 1), weights(out, 2))
    assert steps[0][0]["loss_preference"] == pytest.approx(math.log(2), abs=1e-4)
    assert abs(steps[1][0]["loss_preference"] - math.log(2)) > 1e-4, "the first round's start stays the reference"


def test_a_budget_stops_and_a_higher_one_goes_on_to_the_same_end(tmp_path: Path) -> None:
    exact = "engine.batch_invariant=true"
    whole = go(tmp_path / "whole", exact)
    with pytest.raises(BudgetError, match=r"budget\.tokens"):
        go(tmp_path / "stopped", exact, "budget.tokens=800")
    with Store(tmp_path / "stopped", read_only=True) as store:
        assert 0 < store.count_trees("round-1/search") < 12
    go(tmp_path / "stopped", exact, "budget.tokens=100000000")
    assert digest(tmp_path / "stopped") == digest(whole)
    assert equal(weights(tmp_path / "stopped"), weights(whole))


def test_no_learning_curve_is_lost_between_the_last_update_and_the_policy(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Serving, "keep", die)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, ASKED)
    go(tmp_path, ASKED)
    with Store(finished, read_only=True) as whole, Store(tmp_path, read_only=True) as resumed:
        steps = [[s["step"] for s in x.meta("steps/round-1/train")] for x in (whole, resumed)]
    assert steps == [[0, 1, 2]] * 2


def test_rounds_without_pairs_stop_with_advice_and_keep_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TooFewPairs, match=r"only \d+ problems gave a pair(.|\n)*policy was not kept"):
        go(tmp_path / "few", "pairs.min_problems=12", "pairs.min_gap=1.9")
    assert not (tmp_path / "few" / "round-1").exists()
    monkeypatch.setattr(mcts_dpo, "FRUITLESS_BATCHES", 2)
    with pytest.raises(TooFewPairs, match="first 2 batches gave no pair at all"):
        go(tmp_path / "none", "pairs.max_tokens=1", "pairs.min_problems=1")
    with Store(tmp_path / "none", read_only=True) as store:
        assert store.count_trees("round-1/search") == 8, "the third batch was not searched"


def test_leaves_in_flight_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"leaves_in_flight: has no effect with mcts_dpo"):
        go(tmp_path, "search.leaves_in_flight=2")


# ---------------------------------------------------------------------------------------- ground truth stays in search


class Recorder(TorchEngine):
    """Keeps every request that it is sent."""

    def submit(self, requests: Iterable[Request]) -> None:
        self.sent = [*getattr(self, "sent", []), *(requests := list(requests))]
        super().submit(requests)


def test_no_reference_answer_reaches_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hint and the injected steps on, search shows the answer and evaluation does not.

    Every problem has an answer that stands nowhere in its question, so one token tells.
    """
    rows = [
        {
            "question": f"Calculate {i} + {i} + 3 =",
            "answer": str(150 + i),
            "rationale": f"{i} + {i} = {2 * i}\n{150 + i}",
        }
        for i in range(2, 22)
    ]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("treepref.engines.torch_engine.TorchEngine", Recorder)
    overrides = [
        *SMALL, "task.kind=jsonl", f"task.path={file}", 'task.prompt="{question}\\n"', "task.params={}",
        "search.inject_reference=true",
        'search.self_evaluation={hint: true, question: "{answer} = ", right: "1", wrong: "0"}', "search.max_depth=3",
        "eval.mcts=true", "eval.sbs=[[1, 2]]", "pairs.min_problems=1", "train.objective=svpo",
    ]  # fmt: skip
    with Session(tmp_path / "run", load_recipe("mcts_dpo", overrides)) as session:
        engine = session.serving.serve(round_policy(0))
        assert isinstance(engine, Recorder)
        answers = {p.id: p.answer for split in ("train", "eval") for p in session.problems(split)}
        token = {id: engine.tokenizer(answer)["input_ids"] for id, answer in answers.items()}
        assert all(len(ids) == 1 for ids in token.values())

        mcts_dpo.iterate(session, 1)
        searched, engine.sent = engine.sent, []
        assert searched and all(token[_problem(r)][0] in r.choice.suffix for r in searched), "the hint is shown"
        injected = [r for r in searched if len(r.prefix) == r.prompt_tokens]
        assert all(len(r.given) == 1 for r in injected), "each root has the reference's first step"

        evaluate(session, 1)
        sent = session.serving.serve(round_policy(1)).sent
        assert {_problem(r) for r in sent} == {p.id for p in session.problems("eval")}
        own = {p.id: session.text.encode(p.question) for p in session.problems("eval")}
        for request in sent:
            assert request.choice is None and request.given == ()
            prompt = request.prefix[: request.prompt_tokens]
            assert prompt == own[_problem(request)], "the prompt is made of the question alone"
            assert token[_problem(request)][0] not in prompt
        assert any(len(r.prefix) > r.prompt_tokens for r in sent), "guided decoding was among them"


def _problem(request: Request) -> str:
    return request.id.split("/")[0]


# ------------------------------------------------------------------------------------------------------------- kills

EXACT = ["engine.batch_invariant=true", "eval.samples=1", ASKED]
SHORT = [
    ("inside", "row journal round-1/search "),
    ("before", "step round-1/train [12]"),
    ("inside", "row outcomes round-1/eval/greedy "),
    ("inside", "write scratch/report/results.json"),
]
LONG = [
    ("after", "submit round-1/search "),
    ("before", "submit round-0/eval/greedy "),
    ("after", "row outcomes round-0/eval/greedy "),
    *[("before", "submit round-1/search ")] * 2,
    ("commit", "row journal round-1/search "),
    ("inside", r"write checkpoints/round-1-train/step-\d+.part/state.pt"),
    ("after", r"rename checkpoints/round-1-train/step-\d+"),
    ("inside", "row pairs 1 "),
    ("after", "row stages done round-1/train"),
    ("after", "submit round-2/search "),
    ("before", "row trees round-2/search "),
    ("before", "step round-2/train [3-5]"),
    ("before", r"rename checkpoints/round-2-train/step-\d+"),
    ("after", "rename round-2$"),  # the folder is there and its row is not
    ("after", "rename round-2.old$"),  # so it is replaced: here it is aside, and its successor has not its name yet
]


def check_killed_run(tmp_path: Path, wanted: list[Death], *more: str) -> None:
    with lives_of("loop_runs:play") as lives:
        killed_and_resumed(lives, tmp_path, 5, wanted, "mcts_dpo", *SMALL, *EXACT, *more)
    check_same_run(tmp_path)
    for folder in (tmp_path / "whole").glob("round-*"):
        check_same_weights(folder, tmp_path / "killed" / folder.name)


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    check_killed_run(tmp_path, SHORT)


@pytest.mark.long
def test_twenty_kills(tmp_path: Path) -> None:
    wanted = [*SHORT, *LONG]
    assert len(wanted) == 20
    check_killed_run(tmp_path, wanted, "task.splits.train=24", "rounds=2")
