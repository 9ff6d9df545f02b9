"""Prompts for small models: the problem without the sentences around it. Named in a recipe as `module:function`.

Knows the wordings of reasoning-gym's arithmetic questions and nothing else.
"""

from __future__ import annotations

import re

from treepref.types import Question

_EXPRESSION = re.compile(r"[-+*/()\d\s]*\d[-+*/()\d\s]*")
_NUMBERS = re.compile(r"\d+(?:, \d+)+")
_TARGET = re.compile(r"(?:equals|make|calculate)\s+(\d+)", re.IGNORECASE)


def bare(question: Question) -> str:
    """'4 - 1 - 7' and a new line for arithmetic, '66 34 98 6 = 164' for countdown. Raises ValueError for others."""
    text = bare_text(question.text)
    if text is None:
        raise ValueError(f"{question.id}: treepref.tasks.prompts:bare knows no such question: {question.text[:80]!r}")
    return text + "\n"


def bare_text(text: str) -> str | None:
    """The expression that a question asks for, or its numbers and target; None for other questions."""
    target = _TARGET.search(text)
    numbers = _NUMBERS.search(text)
    if target and numbers:
        return f"{numbers.group().replace(',', '')} = {target[1]}"
    found = max(_EXPRESSION.findall(text), key=len, default="").strip()
    return found or None
