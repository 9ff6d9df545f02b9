"""Step-by-step rationales: every line keeps the value, by an evaluator that shares nothing with the code under test."""

from __future__ import annotations

import ast
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treepref.arithmetic.expressions import ExpressionError, evaluate, parse_expression
from treepref.config import TaskConfig
from treepref.errors import RecipeError
from treepref.tasks import gym
from treepref.tasks.rationales import arithmetic_steps, chain_steps, countdown_steps, drop_annotations
from treepref.tasks.task import load_task


def exact(text: str) -> Fraction:
    """Value of an expression by Python's own grammar, with fractions."""

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant():
                return Fraction(str(node.value))
            case ast.UnaryOp(op=ast.USub()):
                return -value(node.operand)
            case ast.BinOp():
                left, right = value(node.left), value(node.right)
                match node.op:
                    case ast.Add():
                        return left + right
                    case ast.Sub():
                        return left - right
                    case ast.Mult():
                        return left * right
                    case ast.Div():
                        return left / right
        raise ValueError(ast.dump(node))

    return value(ast.parse(text.strip(), mode="eval").body)


def draw(name: str, count: int, seed: int, **params):
    found = []
    for problem in gym.draw(name, params, seed, 0, [1]):
        if not isinstance(problem, gym.Unusable):
            found.append(problem)
        if len(found) == count:
            return found


def test_a_sum_is_worked_from_left_to_right():
    assert chain_steps("4 + 3 - 7 + 5", [1], Random(0)) == ["4 + 3 = 7", "7 - 7 = 0", "0 + 5 = 5"]
    assert chain_steps("4 + 3 - 7 + 5", [2], Random(0)) == ["4 + 3 - 7 = 0", "0 + 5 = 5"]
    assert chain_steps("7", [1], Random(0)) == ["7"]


def test_arithmetic_rewrites_what_is_left():
    assert arithmetic_steps("4 + 3 - 7 + 5", [1], Random(0)) == ["7 - 7 + 5", "0 + 5", "5"]
    assert arithmetic_steps("4 + 3 - 7 + 5", [2], Random(0)) == ["0 + 5", "5"]
    assert arithmetic_steps("2 + 3 * 4", [1], Random(0)) == ["2 + 12", "14"]
    assert arithmetic_steps("-( 2 + 3 ) * -4", [1], Random(0)) == ["-5 * -4", "20"]
    assert arithmetic_steps("-( -2 * 3 ) - ( 8 / 4 )", [1], Random(0)) == ["6 - ( 8 / 4 )", "6 - 2", "4"]
    assert arithmetic_steps("8 / (1 / 2 + 1)", [1], Random(0)) == ["8 / ((1/2) + 1)", "8 / (3/2)", "16/3"]


@pytest.mark.parametrize("text", ["", "1 +", "(1", "1)", "2 ** 3", "1 2", "x", "__import__('os')", "1/0", "(" * 999])
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ExpressionError):
        evaluate(parse_expression(text))


expressions = st.recursive(
    st.integers(-99, 99).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join),
        inner.map("( {} )".format),
        inner.map("-( {} )".format),
    ),
    max_leaves=8,
)


@given(expressions, st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers())
def test_every_line_has_the_value_of_the_expression(text, granularity, seed):
    try:
        value = exact(text)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError):
            evaluate(parse_expression(text))
        return
    assert evaluate(parse_expression(text)) == value
    for source in (text, text.replace(" ", "")):
        steps = arithmetic_steps(source, granularity, Random(seed))
        assert [exact(step) for step in steps] == [value] * len(steps)
        assert steps[-1] == str(value)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([{}, {"whitespace": "no_space"}, {"whitespace": "random"}]))
def test_basic_arithmetic_keeps_its_value_and_ends_in_the_answer(seed, params):
    for problem in draw("basic_arithmetic", 10, seed, max_digits=3, **params):
        for granularity in ([1], [1, 2, 3]):
            steps = arithmetic_steps(problem.meta["expression"], granularity, Random(seed))
            assert {exact(step) for step in steps} == {Fraction(problem.answer)}
            assert steps[-1] == problem.answer


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_chain_sum_lines_are_true_and_lead_to_the_answer(seed, negation, granularity):
    for problem in draw("chain_sum", 10, seed, allow_negation=negation, min_terms=1):
        before, result = "", None
        for line in chain_steps(problem.meta["expression"], granularity, Random(seed)):
            left, _, right = line.rpartition(" = ")
            if not left:  # a single number
                result = right
                break
            assert exact(left) == exact(right)
            assert result is None or left.startswith(result + " ")
            before += left if result is None else left.removeprefix(result)
            result = right
        assert result == problem.answer
        assert before in ("", problem.meta["expression"])  # every term once, in order


def test_basic_arithmetic_whose_answer_is_not_exact_is_set_aside():
    stream = gym.draw("basic_arithmetic", {"allow_parentheses": False}, 5, 0, [1])
    drawn = [next(stream) for _ in range(200)]
    usable = [problem for problem in drawn if not isinstance(problem, gym.Unusable)]
    assert 20 < len(usable) < 180
    assert all(exact(problem.meta["expression"]) == Fraction(problem.answer) for problem in usable)


def test_countdown_steps_by_hand():
    assert countdown_steps("6*(98 - 54) - 34", [34, 98, 54, 6]) == [
        "98 - 54 = 44 (left: 34 6 44)",
        "6 * 44 = 264 (left: 34 264)",
        "264 - 34 = 230",
        "6 * (98 - 54) - 34",
    ]
    assert countdown_steps("-5 + 7*(-2 + 9)", [5, 7, 2, 9])[-1] == "7 * (9 - 2) - 5"
    with pytest.raises(ExpressionError, match="among"):
        countdown_steps("1 + 2", [1, 3])
    with pytest.raises(ExpressionError, match="more often"):
        countdown_steps("1 + 1", [1, 3])
    with pytest.raises(ExpressionError, match="sign"):
        countdown_steps("-1 - 2", [1, 2])


def test_countdown_lines_are_true_and_use_the_numbers_as_they_say():
    for problem in draw("countdown", 150, 11):
        *steps, answer = problem.rationale.split("\n")
        assert exact(answer) == problem.meta["target"] and answer == problem.answer
        left = sorted(problem.meta["numbers"])
        for step in steps:
            operation, _, rest = step.partition(" (left: ")
            expression, _, result = operation.partition(" = ")
            first, _, second = expression.split(" ")
            assert exact(expression) == Fraction(result)
            left.remove(Fraction(first))
            left.remove(Fraction(second))
            left.append(Fraction(result))
            if rest:
                assert sorted(map(Fraction, rest.rstrip(")").split())) == sorted(left)
        assert left == [problem.meta["target"]]


def test_fast_countdown_draws_the_library_s_own_entries():
    import reasoning_gym

    for params in ({}, {"min_numbers": 3, "max_numbers": 12, "operators": ["/", "-", "+"], "min_target": 1}):
        library = reasoning_gym.create_dataset("countdown", seed=77, size=12, **params)
        ours = gym.create("countdown", params, 77, 12)
        assert [ours[i] for i in range(12)] == [library[i] for i in range(12)]


def test_symbolic_rationales_end_in_the_answer():
    for problem in draw("gsm_symbolic", 100, 3):
        assert problem.rationale.endswith(f"\n#### {problem.answer}")


def test_annotations_are_dropped():
    assert drop_annotations("48/2 = <<48/2=24>>24 clips, $<<1*2=2>>2") == "48/2 = 24 clips, $2"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.tuples(inner, inner),
            st.dictionaries(st.text(max_size=2), inner, max_size=2),
            st.dictionaries(st.integers() | st.tuples(st.integers()), inner, max_size=2),
        ),
        max_leaves=6,
    )
)
def test_metadata_survives_json(value):
    import json

    assert gym.decode_plain(json.loads(json.dumps(gym.encode_plain(value)))) == value


def test_slips_touch_merged_operations_alone() -> None:
    assert chain_steps("4 + 3 - 7 + 5", [1], Random(0), slips=0.99) == ["4 + 3 = 7", "7 - 7 = 0", "0 + 5 = 5"]
    always = [chain_steps("4 + 3 - 7 + 5", [3], Random(seed), slips=0.999999) for seed in range(20)]
    assert set(map(tuple, always)) == {("4 + 3 - 7 + 5 = 9",)}, "+3 stands, -7 and +5 are misread: 4 + 3 + 7 - 5"
    shares = [chain_steps("1 + 1 + 1", [2], Random(seed), slips=0.25) == ["1 + 1 + 1 = 1"] for seed in range(2000)]
    assert 0.2 < sum(shares) / 2000 < 0.3


def test_only_chains_can_have_slips() -> None:
    with pytest.raises(RecipeError, match=r"task\.slips: only chain_sum"):
        load_task(TaskConfig(name="countdown", slips=0.1))
