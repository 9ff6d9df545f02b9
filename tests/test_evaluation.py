"""The estimators against numbers worked out by hand, and the round's entry of results.json."""

from __future__ import annotations

import itertools
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treepref.evaluation import statistics
from treepref.evaluation.scores import (
    Samples,
    Scores,
    Solution,
    at_equal_tokens,
    distinct_right,
    pass_at,
    pick,
    round_summary,
    sampled_scores,
    scores_over_k,
    single_scores,
    value_quality,
)
from treepref.runs.results import DistinctRight, Results, RoundResult, as_json, from_plain, plain
from treepref.types import Cost


def solution(problem="p", sample=0, answer="1", *, right="1", value=None, generated=10, scored=0, text=None):
    return Solution(problem, sample, answer == right, answer, generated, scored, value, text=text)


# ---------------- statistics


def test_wilson_by_hand():
    # p = 0.8, n = 10: centre (0.8 + 0.19207)/1.38415 = 0.71674, half 1.96/1.38415·√(0.016 + 0.009604) = 0.22658
    low, high = statistics.wilson(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)
    # at the ends: 0 of n gives [0, z²/(n + z²)]
    assert statistics.wilson(0, 20) == (0.0, pytest.approx(3.84146 / 23.84146, abs=1e-6))
    assert statistics.wilson(20, 20) == (pytest.approx(20 / 23.84146, abs=1e-6), 1.0)
    for wrong in [(0, 0), (3, 2), (-1, 2)]:
        with pytest.raises(ValueError, match="proportion"):
            statistics.wilson(*wrong)


def test_score_interval_is_wilson_for_coins_and_narrower_for_means():
    assert statistics.score_interval([1, 0, 1, 1]) == pytest.approx(statistics.wilson(3, 4))
    # scores ¼ and ¾: p(1−p) = ¼, variance 1/16, so each problem counts as four coins
    assert statistics.score_interval([0.25, 0.75], draws=100) == pytest.approx(statistics.wilson(4, 8))
    # but never as more coins than were thrown
    assert statistics.score_interval([0.25, 0.75], draws=4) == pytest.approx(statistics.wilson(2, 4))
    assert statistics.score_interval([0.5, 0.5], draws=4) == pytest.approx(statistics.wilson(2, 4))
    assert statistics.score_interval([1.0, 1.0, 1.0])[1] == 1.0


def test_pass_at_k_by_hand():
    assert statistics.pass_at_k(4, 1, 2) == pytest.approx(0.5)  # 1 − C(3,2)/C(4,2) = 1 − 3/6
    assert statistics.pass_at_k(5, 2, 3) == pytest.approx(0.9)  # 1 − C(3,3)/C(5,3) = 1 − 1/10
    assert statistics.pass_at_k(8, 0, 8) == 0.0
    assert statistics.pass_at_k(8, 1, 8) == 1.0
    assert statistics.pass_at_k(8, 7, 2) == 1.0
    with pytest.raises(ValueError, match="pass@k"):
        statistics.pass_at_k(4, 1, 5)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_one(case):
    n, correct, k = case
    subsets = list(itertools.combinations([i < correct for i in range(n)], k))
    assert statistics.pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_mcnemar_by_hand():
    assert statistics.mcnemar_exact(5, 1) == pytest.approx(2 * (1 + 6) / 64)
    assert statistics.mcnemar_exact(1, 5) == statistics.mcnemar_exact(5, 1)
    assert statistics.mcnemar_exact(0, 10) == pytest.approx(2 / 1024)
    assert statistics.mcnemar_exact(3, 3) == 1.0
    assert statistics.mcnemar_exact(0, 0) == 1.0
    assert 0 <= statistics.mcnemar_exact(900, 1100) < 1e-5  # whole numbers throughout: no overflow


def test_paired_difference_by_hand():
    a = {"p": 0.0, "q": 1.0, "r": 0.0, "s": 0.0, "only-a": 1.0}
    b = {"p": 1.0, "q": 1.0, "r": 1.0, "s": 0.0, "only-b": 0.0}
    found = statistics.paired_difference(a, b)
    # differences 1, 0, 1, 0: mean ½, s² = 1/3, SE = √(1/12)
    assert found.difference == 0.5
    assert found.interval == pytest.approx(
        (max(-1, 0.5 - 1.959964 / math.sqrt(12)), min(1, 0.5 + 1.959964 / math.sqrt(12)))
    )
    assert (found.n, found.better, found.worse, found.mcnemar_p) == (4, 2, 0, 0.5)
    assert statistics.paired_difference({"p": 0.5}, {"p": 1.0}).mcnemar_p is None
    assert statistics.paired_difference({"p": 1.0}, {"q": 1.0}) is None


def test_bootstrap_agrees_with_the_normal_interval_and_repeats():
    generator = random.Random(3)
    differences = [generator.choice([-1, 0, 0, 0, 1, 1]) for _ in range(400)]
    low, high = statistics.bootstrap_interval(differences, seed=1)
    assert (low, high) == statistics.bootstrap_interval(differences, seed=1)
    normal = statistics.paired_difference(
        dict.fromkeys(map(str, range(400)), 0.0), {str(i): d for i, d in enumerate(differences)}
    )
    assert (low, high) == pytest.approx(normal.interval, abs=0.01)


def test_mean_over_seeds_counts_a_shared_problem_once():
    a = {"p": 0.0, "q": 0.0, "r": 1.0}
    b = {"p": 1.0, "q": 0.0, "r": 1.0}
    once = statistics.mean_over_seeds([(a, b)])
    same_thrice = statistics.mean_over_seeds([(a, b)] * 3)
    assert once.interval == pytest.approx(statistics.paired_difference(a, b).interval)
    assert same_thrice.interval == pytest.approx(once.interval)  # no new problem, no narrower interval
    assert once.seed_interval is None
    assert same_thrice.seed_interval == pytest.approx((1 / 3, 1 / 3))
    # other problems each time: the standard error falls by √2
    other = statistics.mean_over_seeds(
        [(a, b), ({k + "'": v for k, v in a.items()}, {k + "'": v for k, v in b.items()})]
    )
    # cluster sums ±: Σu² = 2·(2/3)/36, n/(n−1) = 6/5
    assert other.interval[1] - other.difference == pytest.approx(1.959964 * math.sqrt(6 / 5 * 2 * (2 / 3) / 36))


def test_mean_over_seeds_uses_students_t_between_seeds():
    zero = dict.fromkeys("abcd", 0.0)
    found = statistics.mean_over_seeds(
        [(zero, {"a": 1.0, **dict.fromkeys("bcd", 0.0)}), (zero, dict.fromkeys("abcd", 1.0)), (zero, zero)]
    )
    assert found.per_seed == (0.25, 1.0, 0.0)
    half = 4.302653 * math.sqrt(((0.25 - 5 / 12) ** 2 + (1 - 5 / 12) ** 2 + (5 / 12) ** 2) / 2 / 3)
    assert found.seed_interval == pytest.approx((5 / 12 - half, 5 / 12 + half))
    assert statistics.t_quantile(10) == pytest.approx(2.228139, abs=2e-4)
    assert statistics.t_quantile(29) == pytest.approx(2.045230, abs=1e-5)
    with pytest.raises(ValueError, match="two seeds"):
        statistics.t_quantile(0)


def test_auc_by_hand():
    # right 0.9, 0.4; wrong 0.4, 0.1: wins 1, 1, ½, 1 of four
    assert statistics.auc([0.9, 0.4, 0.4, 0.1], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert statistics.auc([1, 1, 1], [True, False, True]) == 0.5
    assert statistics.auc([0.1, 0.2], [True, True]) is None


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=12))
def test_auc_is_the_share_of_right_over_wrong_pairs(rows):
    right = [v for v, outcome in rows if outcome]
    wrong = [v for v, outcome in rows if not outcome]
    found = statistics.auc([v for v, _ in rows], [outcome for _, outcome in rows])
    if not right or not wrong:
        assert found is None
    else:
        wins = [(r > w) + 0.5 * (r == w) for r in right for w in wrong]
        assert found == pytest.approx(sum(wins) / len(wins))


def test_calibration_by_hand():
    # V = −0.9, −0.7, 1.0, 1.0, 1.0 predict 0.05, 0.15, 1, 1, 1
    bins = statistics.calibration([-0.9, -0.7, 1.0, 1.0, 1.0], [False, True, True, True, False])
    assert [(b.low, b.n, b.predicted, b.observed) for b in bins] == [
        (0.0, 1, pytest.approx(0.05), 0.0),
        (0.1, 1, pytest.approx(0.15), 1.0),
        (0.9, 3, pytest.approx(1.0), pytest.approx(2 / 3)),
    ]
    assert statistics.calibration_error(bins) == pytest.approx((0.05 + 0.85 + 3 * (1 / 3)) / 5)
    assert statistics.calibration_error([]) is None


def test_log_position():
    assert statistics.log_position(20, [10, 40]) == (0, pytest.approx(0.5))  # 20 is half way in log tokens
    assert statistics.log_position(40, [10, 40, 80]) == (0, pytest.approx(1.0))
    assert statistics.log_position(41, [10, 40, 80])[0] == 1
    assert statistics.log_position(10, [10]) == (0, 0.0)
    assert statistics.log_position(9.9, [10, 40]) is None
    assert statistics.log_position(80.1, [10, 40, 80]) is None
    assert statistics.log_position(1, []) is None


# ---------------- methods


def test_pick_votes_and_breaks_ties_by_first_occurrence():
    block = [solution(sample=i, answer=a) for i, a in enumerate(["7", None, "5", "5", "7", "9"])]
    assert pick(block, "sc").sample == 0  # 7 and 5 have two votes each; 7 came first
    assert pick([None, solution(sample=1, answer=None)], "sc") is None
    assert pick(block, "bon") is None  # no values


def test_pick_by_value():
    block = [
        solution(sample=0, answer="7", value=0.6),
        solution(sample=1, answer="5", value=0.2),
        solution(sample=2, answer="5", value=0.1),
        solution(sample=3, answer=None, value=0.9),
        solution(sample=4, answer="5", value=None),
    ]
    assert pick(block, "bon").sample == 0  # the unreadable one takes no part
    # weights (V+1)/2: 7 → 0.8, 5 → 0.6 + 0.55
    assert pick(block, "wvote").sample == 1
    doubtful = [
        solution(sample=i, answer=a, value=v) for i, (a, v) in enumerate([("7", -0.5), ("5", -0.6), ("5", -0.6)])
    ]
    assert pick(doubtful, "wvote").answer == "5"  # raw sums of V would say −0.5 > −1.2 and pick 7


def test_sampled_scores_average_disjoint_blocks():
    right = [True, False, False, True, True]  # n = 5, k = 2: blocks (0,1), (2,3); sample 4 is left over
    rows = [
        solution(sample=i, answer="1" if ok else str(10 + i), generated=i + 1, scored=100, value=0.0)
        for i, ok in enumerate(right)
    ]
    samples = Samples(rows)
    assert samples.steps_of_k == [1, 2, 4, 5]
    assert sampled_scores(samples, "sc", 1).score["p"] == pytest.approx(3 / 5)
    two = sampled_scores(samples, "sc", 2)
    assert two.score["p"] == 0.5  # block one: first comes first and is right; block two: the wrong one does
    assert two.tokens["p"] == (1 + 2 + 3 + 4) / 2  # a vote needs no values and pays for none
    assert two.draws == 2
    assert sampled_scores(samples, "bon", 2).tokens["p"] == (10 + 400) / 2
    assert sampled_scores(samples, "sc", 8) is None
    assert sampled_scores(Samples(solution(sample=i) for i in range(4)), "bon", 2) is None


def test_a_missing_sample_is_a_wrong_one():
    samples = Samples([solution("p", 0), solution("p", 3), *[solution("q", i) for i in range(4)]])
    assert sampled_scores(samples, "sc", 1).score == {"p": 0.5, "q": 1.0}
    assert pass_at(samples) == {"1": pytest.approx(0.75), "2": pytest.approx((5 / 6 + 1) / 2), "4": 1.0}
    with pytest.raises(ValueError, match="'p': sample 0 is there twice"):
        Samples([solution(), solution()])


@settings(max_examples=30)
@given(st.lists(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=4, max_size=4), min_size=1, max_size=6))
def test_one_sample_makes_every_estimator_the_same(problems):
    rows = [solution(str(p), i, a, value=0.3) for p, answers in enumerate(problems) for i, a in enumerate(answers)]
    samples = Samples(rows)
    accuracy = sum(row.correct for row in rows) / len(rows)
    assert pass_at(samples)["1"] == pytest.approx(accuracy)
    for method in ("sc", "bon", "wvote"):
        assert sampled_scores(samples, method, 1).accuracy == pytest.approx(accuracy)
    # equal values: the weighted vote is the plain vote
    assert sampled_scores(samples, "wvote", 4).score == sampled_scores(samples, "sc", 4).score
    # a vote cannot find what no sample holds
    assert sampled_scores(samples, "sc", 4).accuracy <= pass_at(samples)["4"] + 1e-12


def test_distinct_right_counts_texts_once_but_for_white_space():
    rows = [
        solution("p", 0, text="2 + 2\n= 4"),
        solution("p", 1, text="2 + 2  = 4 "),
        solution("p", 2, text="1 + 3 = 4"),
        solution("p", 3, "0", text="wrong"),
        solution("q", 0, "0", text="wrong"),
    ]
    assert distinct_right(Samples(rows)) == DistinctRight(total=2, per_problem=1.0, solved_problems=1)
    assert distinct_right(Samples([solution()])) is None


def test_value_quality_within_and_over_problems():
    rows = [
        solution("easy", 0, "1", value=0.8),
        solution("easy", 1, "0", value=0.9),
        solution("hard", 0, "1", value=-0.8),
        solution("hard", 1, "0", value=-0.9),
        solution("hopeless", 0, "0", value=-1.0),
    ]
    found = value_quality(Samples(rows))
    assert found.auc == pytest.approx(4 / 6)  # 0.8 beats −0.9 and −1; −0.8 beats −0.9 and −1
    assert found.auc_within == 0.5  # easy 0, hard 1; hopeless has no right one
    assert found.n == 5
    assert value_quality(Samples([solution()])).auc is None


def test_at_equal_tokens_interpolates_in_log_tokens():
    # p is always right, q has one right of four, the first: k = 1 (1 + ¼)/2; k = 2 (1 + ½)/2; k = 4 1, by a tie
    rows = [solution("p", i) for i in range(4)]
    rows += [solution("q", i, a) for i, a in enumerate(["1", "2", "3", "4"])]
    curve = list(scores_over_k(Samples(rows), "sc").values())
    method = Scores({"p": 1.0, "q": 0.0}, {"p": math.sqrt(200), "q": math.sqrt(200)}, 2)
    found = at_equal_tokens(method, curve)  # √(10·20): half way between k = 1 and k = 2
    assert found.sc_accuracy == pytest.approx((0.625 + 0.75) / 2)
    assert found.difference == pytest.approx(0.5 - 0.6875)
    # per problem: 0 and −(¼+½)/2 = −0.375, so SE = 0.375/√2/√2
    assert found.interval[1] - found.difference == pytest.approx(1.959964 * 0.375 / 2)
    assert at_equal_tokens(Scores({"p": 1.0}, {"p": 41.0}, 1), curve) is None
    assert at_equal_tokens(Scores({"p": 1.0}, {"p": 40.0}, 1), curve).sc_accuracy == 1.0


# ---------------- results.json


def round_rows(value=True):
    greedy = [solution(str(p), 0, "1" if p % 2 else "0", scored=7) for p in range(10)]
    samples = [
        solution(
            str(p),
            i,
            "1" if (p + i) % 3 == 0 else str(i),
            value=0.1 * (i - 4) if value else None,
            scored=1,
            text=f"t{i}",
        )
        for p in range(10)
        for i in range(8)
    ]
    beams = {(2, 4): [solution(str(p), 0, "1" if p < 8 else "0", generated=30, scored=4) for p in range(10)]}
    return greedy, samples, beams


def test_round_summary_has_the_keys_of_results_json():
    greedy, samples, beams = round_rows()
    entry = plain(round_summary(greedy, samples, beams, None, [solution(str(p), 0, "0") for p in range(10)], number=1))
    assert entry["round"] == 1
    assert list(entry["eval"]) == ["greedy", "sc@8", "bon@8", "wvote@8", "sbs(2,4)", "mcts"]
    assert entry["eval"]["greedy"] == {
        "accuracy": 0.5,
        "n": 10,
        "interval": list(statistics.wilson(5, 10)),
        "tokens_per_problem": 10.0,  # greedy needs no values
        "strict_accuracy": None,  # rows of an older version do not say
        "unreadable": 0.0,
        "cut": 0.0,
    }
    assert entry["eval"]["sbs(2,4)"]["tokens_per_problem"] == 34.0
    assert entry["eval"]["sc@8"]["tokens_per_problem"] == 80.0
    assert entry["eval"]["bon@8"]["tokens_per_problem"] == 88.0
    assert entry["eval"]["mcts"] is None
    assert list(entry["pass@k"]) == ["1", "2", "4", "8"]
    assert entry["paired"]["greedy_vs_previous"]["difference"] == 0.5
    assert entry["paired"]["greedy_vs_first"] is None
    assert entry["paired"]["sbs(2,4)_vs_greedy"]["difference"] == pytest.approx(0.3)
    assert [point["k"] for point in entry["curves"]["wvote"]] == [1, 2, 4, 8]
    assert entry["curves"]["sbs"][0]["equal_tokens"]["n"] == 10
    assert 0 <= entry["value"]["auc"] <= 1


def test_what_does_not_exist_is_null_not_zero():
    greedy, samples, _ = round_rows(value=False)
    entry = plain(round_summary(greedy, samples, {(2, 4): None}, None, None))
    assert entry["eval"]["sc@8"] is not None
    for method in ("bon@8", "wvote@8", "sbs(2,4)", "mcts"):
        assert entry["eval"][method] is None
    assert entry["value"]["auc"] is None and entry["value"]["calibration"] is None
    assert entry["paired"]["greedy_vs_previous"] is None
    assert entry["curves"]["bon"] is None and entry["curves"]["sbs"] is None
    empty = plain(round_summary(None, None, None, None, None))
    assert set(empty["eval"].values()) == {None} and empty["pass@k"] is None


def test_results_are_strict_json_and_come_back_as_they_were():
    greedy, samples, beams = round_rows()
    rounds = [round_summary(greedy, samples, beams, None, None)]
    results = Results(recipe={"name": "t", "widths": ((2, 4),)}, seed=3, rounds=rounds, cost=Cost(generated_tokens=5))
    document = plain(results)
    assert list(document) == [
        "schema", "recipe", "seed", "rounds", "search", "best_round", "unfinished", "stopped", "cost", "cost_by_kind"
    ]  # fmt: skip
    assert document["schema"] == 1 and document["seed"] == 3
    assert document["cost"]["generated_tokens"] == 5
    assert from_plain(json.loads(as_json(results, indent=1)), Results).rounds == rounds
    with pytest.raises(ValueError, match="JSON compliant"):
        as_json(Results(recipe={}, seed=0, rounds=[], cost=Cost(seconds=math.nan)))


def test_results_of_an_older_version_are_read_with_none_in_place_of_what_they_lack():
    greedy, samples, beams = round_rows()
    round = round_summary(greedy, samples, beams, None, None)
    old = plain(round)
    for key in ("joined", "fit", "inference", "examples", "tool_use", "self_evaluation"):
        del old[key]
    for key in ("strict_accuracy", "unreadable", "cut"):
        del old["eval"]["greedy"][key]
    found = from_plain(old | {"of an age to come": 1}, RoundResult)
    assert found.eval["greedy"].cut is None and found.joined is None and found.examples == []
    assert found.curves == round.curves and found.paired == round.paired
    for key, damaged in (("round", "one"), ("eval", {"greedy": 0.5}), ("curves", None)):
        with pytest.raises(ValueError, match=key):
            from_plain(old | {key: damaged}, RoundResult)


def test_solution_survives_json():
    row = solution(value=-0.25, scored=3, text='a "b"\n')
    assert Solution.from_row(json.loads(json.dumps(row.as_row()))) == row
    assert row.tokens == 13
    with pytest.raises(ValueError, match=r"problem 'p' has unknown keys \['colour'\]"):
        Solution.from_row({**row.as_row(), "colour": "red"})


def test_two_answers_to_one_problem_are_refused():
    with pytest.raises(ValueError, match="one a problem"):
        single_scores([solution(), solution(sample=1)])
    assert single_scores([]) is None
