"""Step-by-step solutions for problems that come without one: one line a step, the last line the answer.

Knows expressions and text, not where problems come from, nor how answers are checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from treepref.arithmetic.expressions import (
    Binary,
    Expression,
    ExpressionError,
    Group,
    Negative,
    Number,
    apply_operator,
    format_fraction,
    merge_next,
    operations_in,
    parse_expression,
    render,
    settle,
)

_INTEGER = re.compile(r"-?[0-9]+")
_ANNOTATION = re.compile(r"<<[^<>]*>>")


def arithmetic_steps(expression: str, granularity: Sequence[int], rng: Random) -> list[str]:
    """Rewrite the remaining expression again and again, each time with some operations carried out.

    How many is drawn from `granularity` for each step (the last step takes what is left). Operations are done in the
    order of operations, leftmost first: '4 + 3 - 7 + 5' at granularity [1] gives '7 - 7 + 5', '0 + 5', '5'. Spacing
    follows the source. Raises ExpressionError for text that is no expression, or divides by zero.
    """
    rest = settle(parse_expression(expression))
    spaced, padded = " " in expression.strip(), "( " in expression
    steps = []
    while operations_in(rest):
        for _ in range(rng.choice(list(granularity))):
            rest = merge_next(rest)
        steps.append(render(rest, spaced=spaced, padded=padded))
    return steps or [render(rest)]


def chain_steps(expression: str, granularity: Sequence[int], rng: Random, slips: float = 0.0) -> list[str]:
    """A sum worked through from left to right, some operations a line, each line going on from the last result.

    How many is drawn from `granularity` for each step (the last step takes what is left). '4 + 3 - 7 + 5' at
    granularity [1] gives '4 + 3 = 7', '7 - 7 = 0', '0 + 5 = 5'; merging two first: '4 + 3 - 7 = 0', '0 + 5 = 5'.
    `slips` is the chance that an operation done in the same step as another gets the wrong sign in the result: large
    steps then go wrong as a hurried person's do, while single operations stay right.
    Raises ExpressionError for text that is no sum of numbers.
    """
    tokens = expression.split()
    numbers, signs = [Fraction(t) for t in tokens[::2] if _INTEGER.fullmatch(t)], tokens[1::2]
    if len(numbers) != len(signs) + 1 or not set(signs) <= {"+", "-"}:
        raise ExpressionError(f"{expression!r} is not a sum of integers with spaces between")
    value, done, steps = numbers[0], 0, []
    while done < len(signs):
        line = format_fraction(value)
        first = done
        for place in range(first, min(first + rng.choice(list(granularity)), len(signs))):
            line += f" {signs[place]} {tokens[2 * place + 2]}"
            slipped = place > first and rng.random() < slips
            sign = {"+": "-", "-": "+"}[signs[place]] if slipped else signs[place]
            value = apply_operator(sign, value, numbers[place + 1])
            done += 1
        steps.append(f"{line} = {format_fraction(value)}")
    return steps or [format_fraction(value)]


def countdown_steps(expression: str, numbers: Sequence[int]) -> list[str]:
    """One operation a line with the numbers that remain, then the whole expression, which is the answer.

    '6*(98 - 54) - 34' from 34, 98, 54, 6 gives '98 - 54 = 44 (left: 34 6 44)', '6 * 44 = 264 (left: 34 264)',
    '264 - 34 = 230', '6 * (98 - 54) - 34'. A leading minus ('-34 + a') is written as a subtraction ('a - 34').
    Raises ExpressionError where no order of the given numbers avoids a sign, or a number is not among those given.
    """
    sign, work = _without_signs(parse_expression(expression))
    if sign < 0:
        raise ExpressionError(f"{expression!r} cannot be written without a sign")
    left = [Fraction(number) for number in numbers]
    steps: list[str] = []
    _carry_out(work, left, steps)
    return [*steps, render(_with_parentheses(work))]


def drop_annotations(text: str) -> str:
    """GSM8K's calculator annotations removed: '48/2 = <<48/2=24>>24' becomes '48/2 = 24'."""
    return _ANNOTATION.sub("", text)


@dataclass(frozen=True, slots=True)
class _Signed:
    sign: int
    part: Expression


def _without_signs(expression: Expression) -> tuple[int, Expression]:
    """The expression as (sign, equal expression without any sign or parentheses), by reordering sums."""
    match expression:
        case Number(value):
            return (-1, Number(-value)) if value < 0 else (1, expression)
        case Group(inner):
            return _without_signs(inner)
        case Negative(inner):
            sign, part = _without_signs(inner)
            return -sign, part
        case Binary("*" | "/" as operator, left, right):
            (left_sign, left), (right_sign, right) = _without_signs(left), _without_signs(right)
            return left_sign * right_sign, Binary(operator, left, right)
    terms = list(_terms(expression, 1))
    sign = 1 if any(term.sign > 0 for term in terms) else -1
    first = next(term for term in terms if term.sign == sign)
    total = first.part
    for term in terms:
        if term is not first:
            total = Binary("+" if term.sign == sign else "-", total, term.part)
    return sign, total


def _terms(expression: Expression, sign: int) -> list[_Signed]:
    """The terms of a sum from left to right, each with its sign; a sum in parentheses stays one term."""
    if isinstance(expression, Binary) and expression.operator in "+-":
        right_sign = sign if expression.operator == "+" else -sign
        return [*_terms(expression.left, sign), *_terms(expression.right, right_sign)]
    inner_sign, part = _without_signs(expression)
    return [_Signed(sign * inner_sign, part)]


def _with_parentheses(expression: Expression) -> Expression:
    """Parentheses where the order of operations needs them."""
    if not isinstance(expression, Binary):
        return expression
    left, right = _with_parentheses(expression.left), _with_parentheses(expression.right)
    left_operator = left.operator if isinstance(left, Binary) else ""
    right_operator = right.operator if isinstance(right, Binary) else ""
    if expression.operator in "*/" and left_operator and left_operator in "+-":
        left = Group(left)
    weaker = {"+": "", "-": "+-", "*": "+-/", "/": "+-*/"}[expression.operator]
    if right_operator and right_operator in weaker:
        right = Group(right)
    return Binary(expression.operator, left, right)


def _carry_out(expression: Expression, left: list[Fraction], steps: list[str]) -> Fraction:
    """Value of the expression; writes a line an operation and keeps `left`, the numbers not used yet, in place."""
    if isinstance(expression, Number):
        if expression.value not in left:
            raise ExpressionError(f"{format_fraction(expression.value)} is not among the numbers given")
        return expression.value
    assert isinstance(expression, Binary)  # _without_signs leaves nothing else
    first = _carry_out(expression.left, left, steps)
    second = _carry_out(expression.right, left, steps)
    value = apply_operator(expression.operator, first, second)
    for used in (first, second):
        if used not in left:
            raise ExpressionError(f"{format_fraction(used)} is used more often than it is given")
        left.remove(used)
    left.append(value)
    rest = f" (left: {' '.join(map(format_fraction, left))})" if len(left) > 1 else ""
    steps.append(
        f"{format_fraction(first)} {expression.operator} {format_fraction(second)} = {format_fraction(value)}{rest}"
    )
    return value
