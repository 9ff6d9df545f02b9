"""Where a step ends: at the first token whose cumulative decoding contains the delimiter, that token included.

In a block (`blocks.py`) the delimiter counts for nothing, so that a program or an environment of LaTeX is one step. The
delimiter may lie inside a token, span tokens, or be completed by the last byte of a character. Knows a tokenizer and a
delimiter; knows no tree and no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from treepref import blocks
from treepref.errors import ModelError
from treepref.types import Finish

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoders put for bytes that are not (yet) a character."""


class StepEnd:
    """Tells for a growing list of one step's token ids whether its newest token ended the step.

    Decoding at every token would be slow, so a table over the vocabulary says which tokens can complete the delimiter
    at all; only for these the step is decoded. `candidate` [V] is that table, for callers that look it up themselves.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, delimiter: str) -> None:
        if not delimiter or _REPLACEMENT in delimiter:
            raise ModelError(f"the step delimiter {delimiter!r} cannot be found in decoded text: choose another")
        self.tokenizer = tokenizer
        self.delimiter = delimiter
        self.candidate = _candidates(tokenizer, delimiter)

    def ends(self, step_ids: Sequence[int]) -> bool:
        """True if the last id completes the delimiter outside of blocks. The ids before it are known not to do so."""
        last = step_ids[-1]
        if last >= len(self.candidate) or not self.candidate[last]:
            return False
        return blocks.step_end(_text(self.tokenizer, step_ids), self.delimiter) is not None

    def completes(self, ids: Sequence[int]) -> bool:
        """True if the text of the ids holds the delimiter, in a block or not."""
        last = ids[-1]
        return last < len(self.candidate) and self.candidate[last] and self.delimiter in _text(self.tokenizer, ids)

    def finish(self, step_ids: Sequence[int], whole: bool = True) -> Finish | None:
        """How the last id ends the step, if it does. `whole`: see `SampleEnd.finish`."""
        return "step" if self.ends(step_ids) else None

    def split(self, ids: Sequence[int]) -> list[int]:
        """Lengths of the steps of a whole solution; what follows the last delimiter (EOS at least) is a step too."""
        lengths: list[int] = []
        start = 0
        for position in range(len(ids)):
            if self.ends(ids[start : position + 1]):
                lengths.append(position + 1 - start)
                start = position + 1
        return [*lengths, len(ids) - start] if start < len(ids) else lengths


class SampleEnd:
    """The same for a sample that goes on with a step, or ends at other texts too; stands in the place of a StepEnd."""

    def __init__(
        self,
        delimiter: StepEnd | None,
        step: Sequence[int],
        stops: Sequence[StepEnd],
        solution: Sequence[int] = (),
        ends: Sequence[StepEnd] = (),
    ) -> None:
        """`step`: what the step has before the sample; the delimiter may begin in it, and no stop does.

        `ends`: of texts that end the whole solution; they may begin in `solution`, what it has before the sample.
        """
        self.delimiter, self.step, self.stops, self.ends = delimiter, list(step), stops, ends
        longest = max((len(end.delimiter.encode()) for end in ends), default=0)  # no token is shorter than a byte
        self.solution = list(solution[-longest:]) if longest else []
        tables = [end.candidate for end in (delimiter, *stops, *ends) if end is not None]
        self.candidate: np.ndarray = np.logical_or.reduce(tables)
        """bool [V], as a StepEnd's."""

    def finish(self, ids: Sequence[int], whole: bool = True) -> Finish | None:
        """How the last of the sample's ids ends it, if it does; the delimiter goes before a stop, an end before both.

        Not `whole`: `ids` are those behind a tool's call alone, and no delimiter reaches across that from the step.
        """
        if any(end.completes([*self.solution, *ids] if whole else ids) for end in self.ends):
            return "eos"
        if self.delimiter is not None and self.delimiter.ends([*self.step, *ids] if whole else ids):
            return "step"
        return "stop" if any(stop.ends(ids) for stop in self.stops) else None


@lru_cache(maxsize=8)
def step_end(tokenizer: PreTrainedTokenizerBase, delimiter: str) -> StepEnd:
    """The StepEnd of a tokenizer and a delimiter, built once."""
    return StepEnd(tokenizer, delimiter)


def split_steps(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], delimiter: str) -> list[int]:
    """Cut a tokenised solution into steps as sampling would: the length of each in order, `len(ids)` together."""
    return step_end(tokenizer, delimiter).split(ids)


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _candidates(tokenizer: PreTrainedTokenizerBase, delimiter: str) -> np.ndarray:
    """bool [V]: False only where adding the token can never make the delimiter appear.

    The delimiter appears when its last character does. A token brings that character when its own text has it, or when
    it brings the last of its bytes (its own text then shows a replacement character). A space may also come from the
    decoder, put between any two tokens.
    """
    size = max(tokenizer.get_vocab().values()) + 1
    last = delimiter[-1]
    if last == " ":
        return np.ones(size, dtype=bool)
    texts = tokenizer.batch_decode(
        [[i] for i in range(size)], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    wanted = last if last.isascii() else last + _REPLACEMENT
    return np.fromiter((any(c in text for c in wanted) for text in texts), dtype=bool, count=size)
