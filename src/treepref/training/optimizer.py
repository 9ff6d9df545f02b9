"""AdamW that learns in float32 whatever precision the model is kept in.

A bfloat16 weight has 8 bits: a change below 0.2 to 0.4 % of it is rounded away, and the small learning rates of
preference learning make every change as small as that. So each such weight gets a float32 copy, where changes add up,
and the model's weight is that copy rounded (mixed-precision training, Micikevicius et al. 2018, §3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FloatAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, its sums and weights in float32 for parameters that are coarser; others are as there.

    Four bytes more for each coarse weight. The state dict holds the float32 copies, so a resumed run is the
    uninterrupted one.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], **settings: Any) -> None:
        """`groups`: as for AdamW, each with a list of the model's own parameters under "params"."""
        self._copies: list[tuple[nn.Parameter, Tensor]] = []
        """(the model's weight, its float32 copy)"""
        super().__init__([group | {"params": [self._fine(p) for p in group["params"]]} for group in groups], **settings)

    def _fine(self, parameter: nn.Parameter) -> Tensor:
        """What is optimised for a parameter: itself, or its copy where it is coarse."""
        if parameter.dtype not in (torch.bfloat16, torch.float16):
            return parameter
        self._copies.append((parameter, parameter.detach().float().requires_grad_()))
        return self._copies[-1][1]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for parameter, _ in self._copies:
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients in the model's parameters. `closure` is not served: ValueError."""
        if closure is not None:
            raise ValueError("FloatAdamW takes the gradients that are there, and no closure")
        for parameter, copy in self._copies:
            copy.grad = None if parameter.grad is None else parameter.grad.float()
        super().step()
        for parameter, copy in self._copies:
            parameter.copy_(copy)
            copy.grad = None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"copies": [copy.detach() for _, copy in self._copies]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """States without copies were made before there were any: then these start from the model's weights."""
        state = dict(state_dict)
        copies = state.pop("copies", None) or [parameter.detach() for parameter, _ in self._copies]
        super().load_state_dict(state)
        for (_, copy), saved in zip(self._copies, copies, strict=True):
            copy.copy_(saved)
