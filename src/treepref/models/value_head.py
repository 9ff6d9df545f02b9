"""The value head: a linear map under a tanh, on a hidden state of the policy or on the mean of a solution's.

Where it reads (`ValueHead.layer`, `ValueHead.pool`) and how far it is joined with log-probs belong to it and are saved
with it. The tanh stands outside, so that w can ride as the rows +w and −w of an LM head where it reads the last layer's
last token: log p(+) − log p(−) = 2·w·h, and the bias is added by whoever asks.
Knows neither the model that makes the hidden states nor what the values are trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from treepref.errors import ModelError
from treepref.types import Join

FILE_NAME = "value_head.safetensors"
Pool = Literal["last", "mean"]
"""What of a solution so far is read: its last token, or the mean over all its tokens."""
POOLS: tuple[Pool, ...] = get_args(Pool)
LAST_LAYER = -1
"""The post-norm hidden state, which the LM head reads too."""


@dataclass(frozen=True, slots=True)
class Read:
    """Where a value head reads."""

    layer: int = LAST_LAYER
    """The hidden state behind so many decoder layers; −1: behind all of them and the final norm."""
    pool: Pool = "last"

    def __str__(self) -> str:
        return f"{'last layer' if self.layer == LAST_LAYER else f'layer {self.layer}'}, {self.pool}"


class ValueHead(nn.Module):
    """V = tanh(w·h + bias). `weight` [1, H] is zero at first, so the first values are exactly 0.

    `weight` alone is trained beside the policy; a fit (`training/value_fit.py`) sets everything. `std` above 0 draws
    the weights from a normal distribution instead.
    """

    bias: Tensor
    reads: Tensor
    """Layer and pool, as numbers."""
    root: Tensor
    joins: Tensor

    def __init__(self, hidden_size: int, *, std: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=dtype))
        if std:
            nn.init.normal_(self.weight, std=std)
        self.register_buffer("bias", torch.zeros(1))
        self.register_buffer("reads", torch.tensor([LAST_LAYER, 0]))
        self.register_buffer("root", torch.zeros(1))
        self.register_buffer("joins", torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))

    @property
    def read(self) -> Read:
        layer, pool = self.reads.tolist()
        return Read(layer, POOLS[pool])

    @property
    def at_last_token(self) -> bool:
        """It reads what the LM head reads, and nothing else: a prompt then has a value like any other state."""
        return self.read == Read()

    @property
    def join(self) -> Join | None:
        """How V is joined with the mean log-prob; None where that was not learned."""
        found = Join(*self.joins.tolist())
        return None if found == Join() else found

    def set_fit(self, weight_H: Tensor, bias: float, read: Read, root: float, join: Join) -> None:
        """Become what a fit found: V = tanh(weight·h + bias) at `read`; `root` is the value of a bare prompt."""
        with torch.no_grad():
            self.weight.copy_(weight_H[None])
            self.bias.fill_(bias)
            self.reads.copy_(torch.tensor([read.layer, POOLS.index(read.pool)]))
            self.root.fill_(root)
            self.joins.copy_(torch.tensor([join.value, join.logprob, join.bias], dtype=torch.float64))

    def as_plain(self) -> dict[str, Any]:
        """The head as plain JSON, exactly."""
        read = self.read
        return {
            "weight": self.weight[0].tolist(),
            "bias": float(self.bias),
            "read": [read.layer, read.pool],
            "root": float(self.root),
            "join": self.joins.tolist(),
        }

    def scores(self, hidden_H: Tensor) -> Tensor:
        """w·h [...] of hidden states [..., H], in the hidden's dtype but in float32 at least."""
        dtype = torch.promote_types(hidden_H.dtype, torch.float32)
        return hidden_H.to(dtype) @ self.weight[0].to(dtype)

    def squash(self, scores: Tensor) -> Tensor:
        """Values [...] in [-1, 1] of scores [...] (their mean over the solution where `read` says so)."""
        return torch.tanh(scores + self.bias[0].to(scores.dtype))

    def forward(self, hidden_H: Tensor) -> Tensor:
        """Hidden states [..., H] (or their means) → values [...].

        AlphaMath (arXiv 2405.03553, section 3.2) has the same head behind a dropout, which we leave out.
        """
        return self.squash(self.scores(hidden_H))


def head_from_plain(plain: Mapping[str, Any]) -> ValueHead:
    """The head that `ValueHead.as_plain` described. Raises KeyError, TypeError or ValueError for anything else."""
    weight_H = torch.tensor(plain["weight"])
    layer, pool = plain["read"]
    head = ValueHead(len(weight_H))
    head.set_fit(weight_H, plain["bias"], Read(layer, pool), plain["root"], Join(*plain["join"]))
    return head


def save_value_head(head: ValueHead, folder: Path, *, trained: bool) -> None:
    """Write `value_head.safetensors` (its state, metadata `trained`) into `folder`."""
    save_file(_state(head), folder / FILE_NAME, metadata={"trained": str(trained).lower()})


def _state(head: ValueHead) -> dict[str, Tensor]:
    return {n: t.detach().to("cpu", copy=True).contiguous() for n, t in head.state_dict().items()}


def load_value_head(folder: Path, hidden_size: int) -> tuple[ValueHead, bool]:
    """The folder's value head and whether it is trained; a fresh one, untrained, where the folder has none.

    A file with nothing but a weight, as older versions wrote it, is a head on the last layer's last token. Raises
    ModelError for a file that cannot be read or that belongs to a model of another width.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return ValueHead(hidden_size), False
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            trained = (file.metadata() or {}).get("trained") == "true"
        weight = state["weight"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Remove it to start with a fresh value head") from error
    if tuple(weight.shape) != (1, hidden_size):
        raise ModelError(
            f"{path} has a weight of shape {tuple(weight.shape)}, but the model's hidden size is {hidden_size}: it "
            "belongs to another model. Remove it to start with a fresh value head"
        )
    head = ValueHead(hidden_size, dtype=weight.dtype)
    try:
        head.load_state_dict(head.state_dict() | state)
        _ = head.read
    except (RuntimeError, IndexError) as error:
        raise ModelError(f"{path} is damaged: {error}. Remove it to start with a fresh value head") from error
    return head, trained
