"""Which attention is fastest for these trees on this device? A step's forward and backward says, kind by kind.

Knows the packed model and its passages; no objective, no optimizer. Weights and gradients are left as they are.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from treepref.errors import ModelError
from treepref.training.attention import Kind, kinds_of
from treepref.training.forward import PackedModel
from treepref.training.packing import Flat, collate, renumbered

RUNS = 3
"""Of each kind: the first ones compile and warm up, the fastest counts."""
FAR = 0.05
"""Mean distance of log-probs and values from the first kind's that is more than rounding, in bfloat16 too."""


def settle_attention(
    packed: PackedModel,
    flats: Sequence[Flat],
    row_tokens: int,
    rows_per_pass: int,
    wanted: str = "auto",
    *,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, float]:
    """Set `packed.attention` to `wanted`, or where that is "auto" to the fastest kind that the model takes here.

    Args:
        flats: what is to be trained on; the first forward of it is the trial (none is made where there is one kind).
        autocast: the precision that the trial's forwards run in.

    Returns:
        Seconds of forward and backward by kind; empty where nothing was measured. A kind that fails, or computes
        something else than the first one, is left out, with a warning that says why.

    Raises:
        ModelError: the model does not take the kind that is wanted, or none works.
    """
    kinds = kinds_of(packed.model)
    if wanted != "auto":
        taken = sorted({*kinds, "mask"})
        if wanted not in taken:
            raise ModelError(
                f"train.attention={wanted}: {type(packed.model).__name__} takes {' or '.join(taken)} on this device; "
                "set one of these, or auto"
            )
        packed.attention = wanted
        return {}
    packed.attention = kinds[0]
    whole = [flat for flat in flats if not flat.split]
    if len(kinds) == 1 or not whole:
        return {}
    found: dict[str, float] = {}
    first: Tensor | None = None
    for kind in kinds:
        trial = _trial(packed, kind, whole, row_tokens, rows_per_pass, autocast)
        if trial is None:
            continue
        first = trial.outputs if first is None else first
        apart = (trial.outputs - first).abs().mean().item()
        if not apart > FAR:  # what is not finite is the step's to report: it knows the examples
            found[kind] = trial.seconds
        else:  # the model's attention is more than this kind computes (a softcap, sinks, …)
            warnings.warn(
                f"attention {kind!r} is left out: its numbers are {apart:.2g} from those of {next(iter(found))}",
                stacklevel=2,
            )
    if not found:
        raise ModelError(f"{type(packed.model).__name__} runs on packed trees with none of: {', '.join(kinds)}")
    packed.attention = min(kinds, key=lambda kind: found.get(kind, float("inf")))
    return found


@dataclass(frozen=True, slots=True)
class _Trial:
    seconds: float
    """Of forward and backward, the fastest run."""
    outputs: Tensor
    """Log-probs and values, as one [N]."""


def _trial(
    packed: PackedModel,
    kind: Kind,
    flats: Sequence[Flat],
    row_tokens: int,
    rows_per_pass: int,
    autocast: Callable[[], AbstractContextManager],
) -> _Trial | None:
    """A few runs over the first pass of `flats`; None where it fails."""
    packed.attention = kind
    device = next(packed.parameters()).device
    rows = packed.passes([flat.tokens for flat in flats], row_tokens, rows_per_pass)[0]
    members = [flats[i] for row in rows for i in row]
    passage = collate([flat.pieces[0] for flat in members], renumbered(rows), device)
    trained = [p for p in packed.parameters() if p.requires_grad]
    fastest = float("inf")
    try:
        for _ in range(RUNS):
            started = time.perf_counter()
            with packed.running():
                with autocast():
                    outputs = torch.cat([x.float() for x in packed(passage) if x is not None])
                torch.autograd.grad(outputs.sum(), trained, allow_unused=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            fastest = min(fastest, time.perf_counter() - started)
    except Exception as error:  # compilers and kernels fail in every way there is; another kind will do
        first = str(error).strip().split("\n")[0]
        warnings.warn(f"attention {kind!r} is left out: {type(error).__name__}: {first}", stacklevel=2)
        return None
    return _Trial(fastest, outputs.detach())
