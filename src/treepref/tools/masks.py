"""Which tokens of a written text a tool would have forced while decoding it. Knows token ids alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

from treepref.tools.base import Forced, Tool, ToolState

_PAUSE = 0.005
"""Seconds between two looks at a tool that is busy."""


def forced_mask(tool: Tool, tokens: Sequence[int]) -> tuple[bool, ...] | None:
    """True where decoding this solution with the tool would have forced the token that stands there. None: nowhere.

    `tokens` [T]: a solution without its prompt. Where the text goes on otherwise than the tool would (a wrong result,
    other spacing), it counts as written by its author: no token of that result is masked. Waits for a busy tool.
    """
    mask = [False] * len(tokens)
    state = tool.begin(())
    position = 0
    while position < len(tokens):
        forced = _settled(state, state.feed(tokens[position]))
        position += 1
        if forced is None or not forced.tokens:
            continue
        end = position + len(forced.tokens)
        if tuple(tokens[position:end]) == forced.tokens:
            mask[position:end] = [True] * len(forced.tokens)
            for token in forced.tokens:
                state.feed(token)
            position = end
        else:  # a tool expects to be fed what it forced: begin anew behind what stands there
            state.close()
            state = tool.begin(tokens[:position])
    state.close()
    return tuple(mask) if any(mask) else None


def _settled(state: ToolState, forced: Forced | None) -> Forced | None:
    """What is forced in the end, once the tool is no longer busy."""
    while forced is None and state.busy:
        forced = state.result()
        if forced is None and state.busy:
            time.sleep(_PAUSE)
    return forced
