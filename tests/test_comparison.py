"""Runs side by side: paired by what a problem says, grouped over seeds; what training costs against more samples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treepref.evaluation import comparison, statistics
from treepref.evaluation.comparison import RoundScores, RunScores, break_even, difference
from treepref.evaluation.scores import Scores, cost_by_kind, cost_of_policy, inference_of
from treepref.runs.results import Comparison, Inference, from_plain, plain
from treepref.types import Cost

ASK = Inference(flops_per_token=10.0, prompt_tokens=5.0)


def compare_runs(runs: list[RunScores], **options: object) -> dict:
    """As compare.json has it, which comes back as it was."""
    found = comparison.compare_runs(runs, **options)
    assert from_plain(plain(found), Comparison) == found
    return plain(found)


def scores(right: str, tokens: float = 20.0, prefix: str = "p") -> Scores:
    """`1101`: a digit a problem."""
    return Scores(
        {f"{prefix}{i}": float(x) for i, x in enumerate(right)},
        {f"{prefix}{i}": tokens for i in range(len(right))},
        len(right),
    )


def spent(search: float, training: float) -> dict[str, Cost]:
    return {
        "search": Cost(generated_tokens=int(search / 10), flops=search),
        "training": Cost(training_tokens=int(training / 30), flops=training),
    }


def run(name: str, *rounds: dict[str, Scores], seed: int = 0, identity: str = "r", ids: str = "p") -> RunScores:
    n = len(rounds[0]["greedy"].score)
    return RunScores(
        name, f"runs/{name}", "demo", "svpo", seed, identity,
        [
            RoundScores(k, methods, spent(6000.0 * k, 3000.0 * k), ASK, {"1": 0.5, "10": 0.9}, 2.0)
            for k, methods in enumerate(rounds)
        ],
        {f"{ids}{i}": f"{ids}{i}" for i in range(n)},
    )  # fmt: skip


START = {"greedy": scores("1000"), "sc@1": scores("0000"), "sc@4": scores("1100", 80.0), "sc@8": scores("1111", 160.0)}
TRAINED = {"greedy": scores("1110", 30.0), "sc@4": scores("1111", 120.0)}


def test_one_run_by_hand() -> None:
    document = compare_runs([run("a", START, TRAINED)])
    (entry,) = document["entries"]
    first, last = entry["rounds"]
    assert document["baseline"] == "a" and document["notes"] == []
    assert first["training"]["all"]["tokens"] == 0 and first["vs_start"] is None and first["vs_baseline"] is None
    # 600 generated and 100 trained tokens
    assert last["training"]["all"]["tokens"] == 700 and last["training"]["search"]["flops"] == 6000
    greedy = last["points"][0]
    assert (greedy["method"], greedy["accuracy"], greedy["tokens_per_problem"]) == ("greedy", 0.75, 30.0)
    assert greedy["flops_per_problem"] == 10 * (5 + 30)
    assert greedy["interval"] == list(statistics.wilson(3, 4))
    gained = last["vs_start"]["greedy"]
    assert gained["difference"] == 0.5 and gained["better"] == 2 and gained["worse"] == 0
    assert gained["seed_interval"] is None
    assert set(last["vs_start"]) == {"greedy", "sc@4"}  # sc@8 was not run in round 1
    assert last["pass@k"] == {"1": 0.5, "10": 0.9} and last["distinct_right"] == 2.0


def test_training_against_samples_by_hand() -> None:
    trade = compare_runs([run("a", START, TRAINED)])["entries"][0]["training_against_samples"]
    assert trade["round"] == 1 and trade["training"]["flops"] == 9000 and trade["greedy"]["flops_per_problem"] == 350
    rows = {row["method"]: row for row in trade["start"]}
    assert list(rows) == ["greedy", "sc@4", "sc@8"]  # a vote of one is a sample, not a baseline
    assert rows["greedy"]["break_even_problems"] is None  # 250 FLOPs a problem: cheaper for good
    assert rows["sc@4"]["break_even_problems"] == 9000 / (850 - 350)
    assert rows["sc@4"]["trained_minus_this"]["difference"] == 0.25
    assert rows["sc@8"]["break_even_problems"] is None  # more often right than what training gave
    assert trade["reached_by"] == "sc@8"


def test_break_even() -> None:
    assert break_even(1000.0, 30.0, 10.0) == 50.0
    assert break_even(1000.0, 10.0, 10.0) is None and break_even(1000.0, 5.0, 10.0) is None
    assert break_even(1000.0, None, 10.0) is None and break_even(1000.0, 30.0, None) is None


def test_runs_are_set_against_the_baselines_last_round() -> None:
    other = run("b", START, {"greedy": scores("0110")}, identity="other")
    document = compare_runs([run("a", START, TRAINED), other])
    against = document["entries"][1]["rounds"][1]["vs_baseline"]["greedy"]
    assert against["difference"] == -0.25 and against["n"] == 4
    assert document["entries"][0]["rounds"][1]["vs_baseline"] is None
    turned = compare_runs([run("a", START, TRAINED), other], baseline="b")
    assert turned["baseline"] == "b"
    assert turned["entries"][0]["rounds"][1]["vs_baseline"]["greedy"]["difference"] == 0.25
    with pytest.raises(ValueError, match="no run is called 'c'"):
        compare_runs([other], baseline="c")


def test_equal_ids_of_different_problems_are_not_paired() -> None:
    def rekeyed(name: str, mark: str, n: int) -> RunScores:
        keyed = {"greedy": Scores({f"p{i} {mark}": 1.0 for i in range(n)}, {f"p{i} {mark}": 9.0 for i in range(n)}, n)}
        return RunScores(
            name, name, "demo", "svpo", 0, name, [RoundScores(0, keyed, spent(0, 0))],
            {f"p{i}": f"p{i} {mark}" for i in range(n)},
        )  # fmt: skip

    document = compare_runs([rekeyed("a", "x", 4), rekeyed("b", "y", 4)])
    assert document["entries"][1]["rounds"][0]["vs_baseline"] is None
    (note,) = document["notes"]
    assert "a" in note and "different problems under the same ids (4 of 4, e.g. p0" in note and "not compared" in note
    fewer = compare_runs([rekeyed("a", "x", 4), rekeyed("b", "x", 3)])
    assert fewer["entries"][1]["rounds"][0]["vs_baseline"]["greedy"]["n"] == 3
    assert "compared on the 3 evaluation problems that they share" in fewer["notes"][0]
    apart = compare_runs([run("a", START), run("b", {"greedy": scores("11", prefix="z")}, identity="o", ids="z")])
    assert "share no evaluation problem" in apart["notes"][0]


def test_seeds_of_one_recipe_are_one_entry() -> None:
    one = run("s-0-x", START, {"greedy": scores("1111")}, seed=0)
    two = run("s-1-x", START, {"greedy": scores("1100")}, seed=1)
    document = compare_runs([one, two])
    (entry,) = document["entries"]
    assert entry["name"] == "s-*-x" and [r["seed"] for r in entry["runs"]] == [0, 1] and document["baseline"] == "s-*-x"
    point = entry["rounds"][1]["points"][0]
    assert point["accuracy"] == 0.75 and point["per_seed"] == [1.0, 0.5]
    gained = entry["rounds"][1]["vs_start"]["greedy"]
    # differences .75 and .25: mean .5, standard error .25, t(1) = 12.706
    assert gained["per_seed"] == [0.75, 0.25] and gained["difference"] == 0.5
    assert gained["seed_interval"] == pytest.approx([0.5 - 12.706205 * 0.25, 0.5 + 12.706205 * 0.25])
    assert 0 <= point["interval"][0] <= point["interval"][1] <= 1
    assert 0 <= point["seed_interval"][0] <= point["seed_interval"][1] <= 1
    assert len(compare_runs([one, two], group=False)["entries"]) == 2


def test_groups_are_paired_seed_by_seed() -> None:
    def both(identity: str, low: str, high: str) -> list[RunScores]:
        return [
            run(f"{identity}-0", {"greedy": scores(low, prefix="a")}, seed=0, identity=identity, ids="a"),
            run(f"{identity}-1", {"greedy": scores(high, prefix="b")}, seed=1, identity=identity, ids="b"),
        ]

    document = compare_runs([*both("x", "1000", "1100"), *both("y", "1100", "1111")])
    against = document["entries"][1]["rounds"][0]["vs_baseline"]["greedy"]
    assert against["per_seed"] == [0.25, 0.5] and against["n"] == 8  # eight problems: the seeds share none
    third = run("y-2", {"greedy": scores("1111", prefix="c")}, seed=2, identity="y", ids="c")
    lacking = compare_runs([*both("x", "1000", "1100"), *both("y", "1100", "1111"), third])
    assert lacking["entries"][1]["rounds"][0]["vs_baseline"] is None
    assert "no seed 2" in lacking["notes"][0]


def test_the_same_seed_again_stays_by_itself() -> None:
    document = compare_runs([run("a", START), run("b", START)])
    assert [entry["name"] for entry in document["entries"]] == ["a", "b"]
    assert "b has recipe and seed of another run" in document["notes"][0]
    with pytest.raises(ValueError, match="share a name"):
        compare_runs([run("a", START), run("a", START)])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_one_seed_has_the_interval_of_a_single_run(rows: list[tuple[float, float]]) -> None:
    a, b = ({f"p{i}": row[side] for i, row in enumerate(rows)} for side in (0, 1))
    mean = statistics.mean_over_seeds([(a, b)])
    single = difference([(Scores(a, a, 1), Scores(b, b, 1))])
    assert single is not None and math.isclose(single.difference, mean.difference, abs_tol=1e-12)
    clipped = [max(-1.0, mean.interval[0]), min(1.0, mean.interval[1])]
    assert single.interval == pytest.approx(clipped, abs=1e-9)


def test_costs_by_kind_add_up_to_the_run() -> None:
    costs = {
        "round-0/sft": Cost(training_tokens=100, flops=600.0),
        "round-0/eval/greedy": Cost(generated_tokens=40, prefill_tokens=20, flops=120.0),
        "round-1/search": Cost(generated_tokens=70, flops=140.0),
        "round-1/labels": Cost(generated_tokens=30, flops=60.0),
        "round-1/train": Cost(training_tokens=50, flops=300.0),
        "round-2/search": Cost(generated_tokens=7, flops=14.0),
        "round-1/eval/samples": Cost(generated_tokens=400, flops=800.0),
    }
    kinds = cost_by_kind(costs)
    assert sum(kinds.values(), Cost()) == sum(costs.values(), Cost())
    assert [kinds[k].flops for k in ("search", "training", "evaluation")] == [214.0, 900.0, 920.0]
    policy = cost_of_policy(costs, 1)
    assert policy["search"].flops == 200.0 and policy["training"].flops == 900.0 and "evaluation" not in policy
    ask = inference_of(costs, 0, problems=4)
    assert ask == Inference(flops_per_token=2.0, prompt_tokens=5.0) and ask.flops(10) == 30.0
    assert inference_of(costs, 1, problems=4) is None
