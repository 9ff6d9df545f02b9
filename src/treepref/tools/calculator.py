"""The calculator: where the model writes `<<48/2=`, the result and `>>` are forced (DPO-ST, arXiv 2407.18248).

State per sample is the bytes of the annotation that stands open, at most MAX_BYTES, so a token costs what its own
length costs, whatever was written before. Knows tokens' bytes; knows no engine and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from treepref.arithmetic.expressions import ExpressionError
from treepref.arithmetic.written import calculate, show
from treepref.tools.base import Forced
from treepref.tools.text import TokenText

MAX_BYTES = 200
"""A longer annotation is not evaluated (the longest of GSM8K's training rationales has 36 characters)."""


class Calculator:
    """See `tools.base.Tool`. Has no process and nothing to close; results are kept, for sibling samples repeat them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._text = TokenText(tokenizer)
        self._answers = lru_cache(maxsize=4096)(self._answer)
        self._spelling = _spelling(self._text)

    def begin(self, written: Sequence[int]) -> CalculatorState:
        state = CalculatorState(self._text.added, self._answers)
        # An annotation that still stands open began within MAX_BYTES bytes, and a token has one at least.
        for token in written[-MAX_BYTES - 2 :]:
            state.feed(token)
        return state

    def close(self) -> None:
        pass

    def _answer(self, expression: bytes) -> Forced | None:
        """The tokens of the result and `>>`; None where there is no result or the tokenizer cannot say it."""
        try:
            shown = show(calculate(expression.decode()))
        except (ExpressionError, UnicodeDecodeError):
            return None
        if shown is None:
            return None
        if self._spelling:
            return Forced(tuple([self._spelling[c] for c in f"{shown}>"]))
        tokens = self._text.encode_after("=", f"{shown}>>")
        return Forced(tokens) if tokens else None


def _spelling(text: TokenText) -> dict[str, int] | None:
    """The token of each character of a result, and under `>` that of `>>`, where the tokenizer sets every digit apart.

    Then a result needs no tokenizer, which costs more than the arithmetic. None where digits come several a token.
    """
    found: dict[str, int] = {}
    for character in "0123456789.->":
        ids = text.encode_after("=", f"4{character}" if character != ">" else "4>>")
        if ids is None or len(ids) != 2:
            return None
        found[character] = ids[1]
    probes = ("24", "-7", "0.20", "-13.35", "1000000", "1234567890", "2005", "360", "999999999999999")
    spelled = all(
        text.encode_after("=", f"{probe}>>") == tuple([found[c] for c in f"{probe}>"])
        and text.encode_after("=", probe) == tuple([found[c] for c in probe])
        for probe in probes
    )
    return found if spelled else None


class CalculatorState:
    """One sample: outside an annotation, or inside one with the bytes of its expression."""

    __slots__ = ("_added", "_expression", "_force", "_last", "busy", "open")
    stops = ("=",)

    def __init__(self, added: Callable[[int], bytes | None], force: Callable[[bytes], Forced | None]) -> None:
        self.open = False
        self.busy = False
        self._added = added
        self._force = force
        self._last = 0
        """The byte before the next token."""
        self._expression: bytearray | None = None

    def feed(self, token: int) -> Forced | None:
        """The result, if the token's last byte is the `=` of an open annotation."""
        added = self._added(token)
        if self._expression is not None or (added is not None and b"<" in added):
            return self._read(added or b"\n")  # a special token ends what stands open, as a newline does
        self._last = 0
        return None

    def result(self) -> Forced | None:
        return None

    def close(self) -> None:
        pass

    def _read(self, added: bytes) -> Forced | None:
        expression, last = self._expression, self._last
        complete: bytes | None = None
        for byte in added:
            complete = None
            if byte == _OPEN and last == _OPEN:
                expression = bytearray()
            elif expression is not None:
                if byte == _EQUALS:
                    complete, expression = bytes(expression), None
                elif byte == _NEWLINE or (byte == _CLOSE and last == _CLOSE) or len(expression) == MAX_BYTES:
                    expression = None
                else:
                    expression.append(byte)
            last = byte
        self._expression, self._last = expression, last
        return self._force(complete) if complete else None


_OPEN, _CLOSE, _EQUALS, _NEWLINE = b"<>=\n"
