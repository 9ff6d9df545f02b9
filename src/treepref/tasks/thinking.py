"""What a model that thinks aloud says after its thinking: only that is read."""

from __future__ import annotations

OPENS, CLOSES = "<think>", "</think>"


def after_thinking(text: str) -> str:
    """The text behind the last `</think>`; nothing where thinking was begun and never ended."""
    _, closed, said = text.rpartition(CLOSES)
    if closed:
        return said
    return "" if OPENS in text else text
