"""Self-evaluation: what the policy says when asked whether a partial solution is on the right way, as a number C.

Pure rules over what the engine sent back. Knows no tokenizer and no wording of the question: `choice_of` in
models/text.py makes the `Choice`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from treepref.errors import ModelError
from treepref.types import Completion

RIGHT = 0
"""Which option of the engine's `Choice` means "right"; the other one means "wrong"."""
_SLACK = 1e-4
"""Probabilities summed in float32 may exceed 1 by this."""


def confidence(completion: Completion, where: str = "") -> float | None:
    """C: the probability mass of the option that means "right", over its token variants (arXiv 2405.00451, Expand).

    Not divided by the two options' sum: a policy that does not answer the question at all has little confidence.
    None where nothing was asked (no question, or the step was cut). Raises ModelError for what is no probability.
    """
    if completion.choice_probs is None:
        return None
    found = completion.choice_probs[RIGHT]
    if math.isnan(found) or not -_SLACK <= found <= 1 + _SLACK:
        raise ModelError(f"{where}: self-evaluation gave the probability {found}; the model is broken")
    return min(1.0, max(0.0, found))


def reference_step(
    reference: Sequence[tuple[int, ...]], depth: int, written: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """The reference rationale's next step, where what is `written` in `depth` steps is its beginning; else nothing."""
    if depth >= len(reference):
        return ()
    beginning = tuple(token for step in reference[:depth] for token in step)
    return (reference[depth],) if written == beginning else ()
