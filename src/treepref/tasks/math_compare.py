r"""Comparing LaTeX answers: exactly where they are rational, with math-verify elsewhere. Knows no limit of time.

Imported in a worker process alone, as math-verify may hang. Its word counts only above an exact floor: it compares with
floats, to which 1/2^98 and 1/2^99 are both 0, and takes a part of a set for the set.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse, verify

from treepref.tasks.latex import base_of, canonical_latex, has_base, members, pending, rational
from treepref.types import Problem

logging.disable(logging.WARNING)  # the library warns that its time limits are off: the worker can be killed instead

_LETTERS = re.compile("[A-Za-z]")
_PRECISION = 60
"""Decimal digits to which irrational values must agree."""
_POINTS = (sympy.Rational(7, 5), sympy.Rational(-11, 3), sympy.Rational(29, 17))
"""Where expressions with variables must agree."""


def agrees(found: str, problem: Problem) -> bool:
    """Whether an answer, in its canonical form, means the same as the gold answer, sign included."""
    return same(found, canonical_latex(problem.answer))


def same(found: str, gold: str) -> bool:
    """Whether two canonical forms mean the same. A computation still to be done ('4+6') is no answer."""
    if found == gold:
        return True
    if pending(found) and not pending(gold):
        return False
    values = rational(found), rational(gold)
    if None not in values:
        return values[0] == values[1]
    if has_base(found) or has_base(gold):
        return base_of(found) is not None and base_of(found) == base_of(gold)
    (kind, parts), (wanted, others) = members(found), members(gold)
    if len(parts) != len(others) or (len(parts) > 1 and kind != wanted and {kind, wanted} != {"set", ""}):
        return False
    if _letters(found) != _letters(gold) or found.count("'") != gold.count("'"):
        return False
    if len(parts) > 1 and kind in ("set", "") and wanted in ("set", ""):
        return _same_members(parts, others)
    if len(parts) > 1 and kind == wanted:
        return all(map(same, parts, others))
    return _verified(found, gold)


def _letters(text: str) -> set[str]:
    """Variables of an expression: single letters, case and all; 'e', 'i' and names of functions are none."""
    plain = re.sub(r"\\[A-Za-z]+|[A-Za-z]{2,}", " ", text)
    return set(_LETTERS.findall(plain)) - {"e", "i"}


def _same_members(parts: list[str], others: list[str]) -> bool:
    """Whether each part has its equal among the others, in any order."""
    left = list(others)
    for part in parts:
        match = next((other for other in left if same(part, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _verified(found: str, gold: str) -> bool:
    """math-verify's word, and where it says yes, values that agree to many digits."""
    first, second = _parsed(gold), _parsed(found)
    return bool(verify(first, second, timeout_seconds=None)) and _close(first, second)


def _close(first: list[Any], second: list[Any]) -> bool:
    """Whether two parsed expressions have the same value, at a few points if they have variables.

    True where no value can be computed: then math-verify's word stands.
    """
    one, other = (next((p for p in side if isinstance(p, sympy.Expr)), None) for side in (first, second))
    if one is None or other is None:
        return True
    names = sorted(one.free_symbols | other.free_symbols, key=str)
    if len(names) > len(_POINTS):
        return True
    for shift in range(len(_POINTS) if names else 1):
        at: Any = {name: _POINTS[(shift + i) % len(_POINTS)] for i, name in enumerate(names)}
        try:
            a, b = (sympy.N(side.subs(at), _PRECISION) for side in (one, other))
            if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
                continue
            if abs(a - b) > sympy.Float(10) ** (10 - _PRECISION) * max(abs(a), abs(b)):
                return False
        except (TypeError, ValueError, ArithmeticError, AttributeError):
            continue
    return True


@lru_cache(maxsize=4096)
def _parsed(latex: str) -> list[Any]:
    return parse(rf"\boxed{{{latex}}}", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)  # pyright: ignore[reportArgumentType]
