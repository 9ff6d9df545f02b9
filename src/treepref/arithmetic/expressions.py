"""Arithmetic expressions: a small parser, exact values, and rewriting one operation at a time.

Knows numbers, + − × ÷, a sign and parentheses, and computes with fractions. Never evaluates text as code, and
knows no task, no problem and no answer format.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 2000
"""Longer text is refused: what a model writes must never cost more than a moment."""
MAX_TOKENS = 400
"""More numbers and symbols than this are refused, so that walking the expression stays shallow."""
MAX_DEPTH = 60
"""Deepest nesting of parentheses and signs."""

_TOKEN = re.compile(r"\s*(?:(?P<number>\d+\.\d+|\.\d+|\d+)|(?P<symbol>[-+*/()]))", re.ASCII)
_LOOKALIKES = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "∙": "*", "⋅": "*"})


class ExpressionError(ValueError):
    """The text is not an arithmetic expression, or it divides by zero."""


@dataclass(frozen=True, slots=True)
class Number:
    value: Fraction


@dataclass(frozen=True, slots=True)
class Negative:
    """A sign before something in parentheses; a sign before a number belongs to the number."""

    inner: Expression


@dataclass(frozen=True, slots=True)
class Group:
    """Parentheses as they were written."""

    inner: Expression


@dataclass(frozen=True, slots=True)
class Binary:
    operator: str
    left: Expression
    right: Expression


Expression = Number | Negative | Group | Binary


def parse_expression(text: str) -> Expression:
    """The expression that `text` is, the whole of it. Raises ExpressionError."""
    return _Parser(text).whole()


def evaluate(expression: Expression) -> Fraction:
    """Exact value. Raises ExpressionError on a division by zero."""
    match expression:
        case Number(value):
            return value
        case Negative(inner):
            return -evaluate(inner)
        case Group(inner):
            return evaluate(inner)
        case Binary(operator, left, right):
            return apply_operator(operator, evaluate(left), evaluate(right))


def apply_operator(operator: str, left: Fraction, right: Fraction) -> Fraction:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
    if right == 0:
        raise ExpressionError("division by zero")
    return left / right


def numbers_in(expression: Expression) -> list[Fraction]:
    """The numbers as written, from left to right, signs included."""
    match expression:
        case Number(value):
            return [value]
        case Negative(inner) | Group(inner):
            return numbers_in(inner)
        case Binary(_, left, right):
            return numbers_in(left) + numbers_in(right)


def operations_in(expression: Expression) -> int:
    """How many + − × ÷ are left to do."""
    match expression:
        case Number():
            return 0
        case Negative(inner) | Group(inner):
            return operations_in(inner)
        case Binary(_, left, right):
            return 1 + operations_in(left) + operations_in(right)


def settle(expression: Expression) -> Expression:
    """Drop the parentheses and signs that hold nothing but a number."""
    match expression:
        case Group(inner):
            inner = settle(inner)
            return inner if isinstance(inner, Number) else Group(inner)
        case Negative(inner):
            inner = settle(inner)
            return Number(-inner.value) if isinstance(inner, Number) else Negative(inner)
        case Binary(operator, left, right):
            return Binary(operator, settle(left), settle(right))
    return expression


def merge_next(expression: Expression) -> Expression:
    """Carry out the operation that comes first by the order of operations, leftmost first. Expects a settled one."""
    match expression:
        case Group(inner):
            return settle(Group(merge_next(inner)))
        case Negative(inner):
            return settle(Negative(merge_next(inner)))
        case Binary(operator, Number(left), Number(right)):
            return Number(apply_operator(operator, left, right))
        case Binary(operator, Number() as left, right):
            return Binary(operator, left, merge_next(right))
        case Binary(operator, left, right):
            return Binary(operator, merge_next(left), right)
    return expression


def format_fraction(value: Fraction) -> str:
    """'7', '-7' or '7/2'."""
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"


def render(expression: Expression, *, spaced: bool = True, padded: bool = False) -> str:
    """Text that parses back to the same value: `spaced` around operators, `padded` inside parentheses.

    A fraction among other terms is put in parentheses, so that it stays one number.
    """

    def text(part: Expression) -> str:
        match part:
            case Number(value):
                return format_fraction(value) if value.denominator == 1 else f"({format_fraction(value)})"
            case Negative(inner):
                return f"-{text(inner)}"
            case Group(inner):
                return f"( {text(inner)} )" if padded else f"({text(inner)})"
            case Binary(operator, left, right):
                space = " " if spaced else ""
                return f"{text(left)}{space}{operator}{space}{text(right)}"

    return format_fraction(expression.value) if isinstance(expression, Number) else text(expression)


class _Parser:
    """Recursive descent: sum = product (± product)*, product = factor (×÷ factor)*, factor = sign* number or (sum)."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARS:
            raise ExpressionError(f"longer than {MAX_CHARS} characters")
        self.tokens: list[str] = []
        self.position = 0
        text = text.translate(_LOOKALIKES).strip()
        start = 0
        while start < len(text):
            found = _TOKEN.match(text, start)
            if not found:
                raise ExpressionError(f"unexpected {text[start:].lstrip()[:10]!r}")
            self.tokens.append(found.group().strip())
            start = found.end()
        if len(self.tokens) > MAX_TOKENS:
            raise ExpressionError(f"more than {MAX_TOKENS} numbers and symbols")

    def whole(self) -> Expression:
        expression = self._sum(0)
        if self.position < len(self.tokens):
            raise ExpressionError(f"unexpected {self.tokens[self.position]!r}")
        return expression

    def _peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self.position += 1
        return token

    def _sum(self, depth: int) -> Expression:
        left = self._product(depth)
        while self._peek() in ("+", "-"):
            left = Binary(self._next(), left, self._product(depth))
        return left

    def _product(self, depth: int) -> Expression:
        left = self._factor(depth)
        while self._peek() in ("*", "/"):
            left = Binary(self._next(), left, self._factor(depth))
        return left

    def _factor(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"nested deeper than {MAX_DEPTH}")
        token = self._next()
        if token == "-":
            inner = self._factor(depth + 1)
            return Number(-inner.value) if isinstance(inner, Number) else Negative(inner)
        if token == "+":
            return self._factor(depth + 1)
        if token == "(":
            inner = self._sum(depth + 1)
            if self._next() != ")":
                raise ExpressionError("a parenthesis is not closed")
            return Group(inner)
        if not token or token in "*/)":
            raise ExpressionError(f"unexpected {token!r}" if token else "ends too early")
        return Number(Fraction(int(token) if token.isdigit() else token))  # reading a text takes five times as long
