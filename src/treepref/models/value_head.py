"""The value head: one bias-free linear map under a tanh, on the post-norm hidden state of a step's last token.

Bias-free with the tanh outside, so that w can later ride as the rows +w and −w of an LM head:
2·p(+)/(p(+)+p(−)) − 1 = tanh(w·h).
Knows neither the model that makes the hidden states nor what the values are trained on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from treepref.errors import ModelError

FILE_NAME = "value_head.safetensors"


class ValueHead(nn.Linear):
    """V = tanh(w·h). Its only parameter is `weight` [1, H]; zero at first, so the first values are exactly 0.

    `std` above 0 draws the weights from a normal distribution instead.
    """

    def __init__(self, hidden_size: int, *, std: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        self._std = std
        super().__init__(hidden_size, 1, bias=False, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights anew; with `std` 0 this touches no random state."""
        if self._std:
            nn.init.normal_(self.weight, std=self._std)
        else:
            nn.init.zeros_(self.weight)

    def forward(self, hidden_H: Tensor) -> Tensor:
        """Hidden states [..., H] → values [...] in [-1, 1], in the hidden's dtype but in float32 at least.

        AlphaMath (arXiv 2405.03553, section 3.2) has the same head behind a dropout, which we leave out.
        """
        dtype = torch.promote_types(hidden_H.dtype, torch.float32)
        return torch.tanh(hidden_H.to(dtype) @ self.weight[0].to(dtype))


def save_value_head(head: ValueHead, folder: Path, *, trained: bool) -> None:
    """Write `value_head.safetensors` (key `weight`, metadata `trained`) into `folder`."""
    weight = head.weight.detach().to("cpu", copy=True).contiguous()
    save_file({"weight": weight}, folder / FILE_NAME, metadata={"trained": str(trained).lower()})


def load_value_head(folder: Path, hidden_size: int) -> tuple[ValueHead, bool]:
    """The folder's value head and whether it is trained; a fresh one, untrained, where the folder has none.

    Raises ModelError for a file that cannot be read or that belongs to a model of another width.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return ValueHead(hidden_size), False
    try:
        with safe_open(path, framework="pt") as file:
            weight = file.get_tensor("weight")
            trained = (file.metadata() or {}).get("trained") == "true"
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Remove it to start with a fresh value head") from error
    if tuple(weight.shape) != (1, hidden_size):
        raise ModelError(
            f"{path} has a weight of shape {tuple(weight.shape)}, but the model's hidden size is {hidden_size}: it "
            "belongs to another model. Remove it to start with a fresh value head"
        )
    head = ValueHead(hidden_size, dtype=weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head, trained
