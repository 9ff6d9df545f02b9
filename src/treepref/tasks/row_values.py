"""The values in a row: JSON whose numbers stay as written, and what no row may hold.

A float would lose digits, and its text (`1e-05`) is one that no solution writes; so a number keeps its text, and
becomes an answer as the exact decimal. Knows no column and no file.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from treepref.tasks.numbers import canonical_number

MAX_DIGITS = 300
"""Longest number in a row, written out: answers with more digits are read by no checker."""
_MAX_ID = 500
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class JsonNumber(float):
    """A number of a JSON text that is no integer, with the text it is written as."""

    __slots__ = ("written",)

    written: str


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError that says why there is none; RecursionError: nested too deeply."""
    return json.loads(text, parse_float=_parse_float, parse_int=_parse_int, parse_constant=_refuse_constant)


def _parse_float(text: str) -> JsonNumber:
    number = JsonNumber(text)
    number.written = text
    if len(text) > MAX_DIGITS or math.isinf(number):
        raise ValueError(_too_many_digits(text))
    return number


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(_too_many_digits(text))
    return int(text)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"holds {name}, which is no number")


def _too_many_digits(text: str) -> str:
    return f"holds {text[:20]}{'…' if len(text) > 20 else ''}, a number of more than {MAX_DIGITS} digits"


def number_text(number: float) -> str:
    """An integer or a finite float as the decimal that it is written as: '300000000', '0.00001', '5' for 5.0.

    Raises ValueError where that has more than MAX_DIGITS digits.
    """
    if isinstance(number, int):
        text = str(int(number)) if abs(number) < 10**MAX_DIGITS else "9" * (MAX_DIGITS + 1)
        exponent = 0
    else:
        text = number.written if isinstance(number, JsonNumber) else repr(float(number))
        mantissa, _, power = text.lower().partition("e")
        exponent = int(power or "0") if len(power) < 8 else MAX_DIGITS
        text = mantissa if not power else text
    if len(text) + abs(exponent) > MAX_DIGITS:
        raise ValueError(_too_many_digits(text))
    return canonical_number(Fraction(Decimal(text)))


def unusable(value: Any) -> str | None:
    """What makes a row useless, wherever in it that stands; None where nothing does.

    A NaN or an infinity is no number. Half of a surrogate pair is no text: no tokenizer and no database takes it. At
    NUL some of them cut a text. Other control characters stay as they are: public data sets hold some.
    """
    waiting = [value]
    while waiting:  # no recursion: rows may be nested as deeply as their reader allows
        part = waiting.pop()
        if isinstance(part, str):
            if found := _NO_TEXT.search(part):
                if found[0] == "\0":
                    return "holds the character NUL (\\u0000)"
                return "holds text that is not valid Unicode (a lone surrogate, \\ud800)"
        elif isinstance(part, float):
            if not math.isfinite(part):
                return f"holds {part}, which is no number"
        elif isinstance(part, Mapping):
            waiting += [*part, *part.values()]
        elif isinstance(part, list | tuple):
            waiting += part
    return None


def id_fault(id: str) -> str | None:
    """Why a text is no id: ids stand in messages, reports and names of samples, each on its line. None: it is one."""
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in id):
        return "holds a line break or another control character"
    return f"is longer than {_MAX_ID} characters" if len(id) > _MAX_ID else None
