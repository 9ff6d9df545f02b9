"""A step's losses and health, added up over forward passes and ranks. Knows metrics, but no model and no data."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from treepref.training.objectives import HEALTH

Metrics = dict[str, float]


class Tally:
    """Losses and health of a step, added up over passes and ranks in one small tensor on the device."""

    LOSSES = ("loss", "loss_preference", "loss_value", "loss_margin", "loss_sft")

    def __init__(self, device: torch.device) -> None:
        self.places = {name: i for i, name in enumerate((*self.LOSSES, *HEALTH))}
        real = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(len(self.places), 2, dtype=real, device=device)
        """[name, (sum, count)]; for a loss, which is divided already, the count only says that it was there."""

    def add_loss(self, name: str, value: Tensor) -> None:
        row = self.sums[self.places[name]]
        row[0] += value.detach()
        row[1] += 1

    def add_health(self, metrics: dict[str, tuple[Tensor, Tensor]]) -> None:
        rows = torch.stack([torch.stack(metrics[name]) for name in HEALTH])
        self.sums[len(self.LOSSES) :] += rows

    def means(self, accelerator: Accelerator) -> Metrics:
        """Losses and mean health of the step over all ranks; what did not apply is absent."""
        reduced: Any = accelerator.reduce(self.sums, "sum") if accelerator.num_processes > 1 else self.sums
        rows = reduced.tolist()
        found = {name: rows[i] for name, i in self.places.items() if rows[i][1] > 0 or not math.isfinite(rows[i][1])}
        return {name: s if name in self.LOSSES else s / n for name, (s, n) in found.items()}
