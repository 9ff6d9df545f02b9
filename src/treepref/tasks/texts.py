"""The canonical form of answers that are words: names, yes or no, dates, times, quantities, lists.

Pure text. Two texts with one form say the same; case, quotes, emphasis, articles and final punctuation say nothing.
"""

from __future__ import annotations

import re

from treepref.tasks.numbers import number_or_none, spelled_number
from treepref.tasks.statements import without_emphasis

_MAX_CHARS = 400
"""Longer texts are compared as they stand: no answer in so many words is a date or a quantity."""
_QUOTES = "\"'“”‘’`«»"
_YEAR = "january february march april may june july august september october november december"
_MONTHS = _YEAR.split()
_MONTH = "|".join(f"{name[:3]}(?:{name[3:]})?" if len(name) > 3 else name for name in _MONTHS)
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_DATES = (
    re.compile(rf"(?P<month>{_MONTH})\.? {_DAY},? (?P<year>\d{{3,4}})"),
    re.compile(rf"{_DAY}(?: of)? (?P<month>{_MONTH})\.?,? (?P<year>\d{{3,4}})"),
    re.compile(r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})"),
)
_TIME = re.compile(r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?(?: ?(?P<half>[ap])\.?m\.?)?")
_QUANTITY = re.compile(r"(?P<value>[-+]?(?:\d[\d,]*\.?\d*|\.\d+)) ?(?P<unit>[^\W\d_][^\d]*)")
_UNITS = {
    "kilometer": "km", "kilometre": "km", "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm",
    "millimeter": "mm", "millimetre": "mm", "kilogram": "kg", "gram": "g", "liter": "l", "litre": "l", "hour": "h",
    "hr": "h", "minute": "min", "second": "s", "sec": "s", "kmh": "km/h", "kph": "km/h",
}  # fmt: skip


def plain_text(text: str) -> str:
    """The canonical form of an answer: a number, a date (1776-07-04), a time (15:45), a quantity ('5 km'), or words."""
    if len(text) > _MAX_CHARS:
        return " ".join(text.split()).casefold()
    if (number := number_of(text)) is not None:
        return number
    text = re.sub(r"\\(?:text|textbf|mathrm|mbox)\s?\{([^{}]*)\}", r"\1", without_emphasis(text))
    text = " ".join(text.split()).strip("$ ")
    for _ in range(2):  # a full stop inside the quotes, or outside
        text = text.rstrip(".!,; ").strip(_QUOTES + " ")
    text = re.sub(r"\A(?:the|an?)\s(?=\S)", "", text, flags=re.IGNORECASE).casefold()
    text = re.sub(r"\s?,\s?(?:and\s)?", ", ", text)
    if re.fullmatch(r"[-\d.,\s]+\sand\s[-\d.]+", text):
        text = text.replace(" and ", ", ")
    return number_of(text) or _date(text) or _time(text) or _quantity(text) or text


def number_of(answer: str) -> str | None:
    """The number that an answer is, in digits or in words; None for other answers."""
    if (found := number_or_none(answer)) is not None:
        return found
    words = answer.casefold().strip(" .").split()
    spelled = spelled_number(words) if 0 < len(words) <= 12 else None
    return str(spelled[0]) if spelled and spelled[1] == len(words) else None


def _date(text: str) -> str | None:
    for form in _DATES:
        if found := form.fullmatch(text):
            month = found["month"]
            number = int(month) if month.isdigit() else [name[:3] for name in _MONTHS].index(month[:3]) + 1
            return f"{int(found['year']):04d}-{number:02d}-{int(found['day']):02d}"
    return None


def _time(text: str) -> str | None:
    found = _TIME.fullmatch(text)
    if not found or not (found["minute"] or found["half"]):
        return None
    hour = int(found["hour"])
    if found["half"]:
        hour = hour % 12 + (12 if found["half"] == "p" else 0)
    return f"{hour:02d}:{found['minute'] or '00'}"


def _quantity(text: str) -> str | None:
    found = _QUANTITY.fullmatch(text)
    value = number_or_none(found["value"]) if found else None
    if found is None or value is None:
        return None
    words = re.sub(r"\s?/\s?|\sper\s(?:an?\s)?", "/", found["unit"].strip()).split("/")
    return f"{value} {'/'.join(_UNITS.get(word, _UNITS.get(word.removesuffix('s'), word)) for word in words)}"
