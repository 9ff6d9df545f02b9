"""A policy's weights as an engine takes them: tensor by tensor in this process, or as a folder elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from torch import Tensor

from treepref.models.lora import each_merged_weight
from treepref.models.policy import Policy
from treepref.models.value_head import ValueHead
from treepref.types import PolicyId


class Weights(Protocol):
    """What `Engine.load` is given. An engine takes the form that suits it."""

    id: PolicyId

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The plain model's weights under its names, one at a time, LoRA merged. They may share the policy's memory."""
        ...

    @property
    def value_head(self) -> ValueHead | None:
        """Trained, or None."""
        ...

    def folder(self) -> Path:
        """A model folder with these weights; it lands on first use."""
        ...

    def adapter(self) -> Path | None:
        """A folder with the adapter alone, where the policy is a base with LoRA; None elsewhere."""
        ...


class PolicyWeights:
    """The weights of a policy in memory as they are now. `save`: writes them into a model folder, and says where."""

    def __init__(self, policy: Policy, id: PolicyId | None = None, save: Callable[[], Path] | None = None) -> None:
        self.id = policy.id if id is None else id
        self._policy, self._save = policy, save
        self._folder: Path | None = None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return each_merged_weight(self._policy.model)

    @property
    def value_head(self) -> ValueHead | None:
        return self._policy.value_head if self._policy.values_trained else None

    def folder(self) -> Path:
        if self._folder is None:
            if self._save is None:
                raise ValueError(f"the weights of {self.id} were given no way to a folder")
            self._folder = self._save()
        return self._folder

    def adapter(self) -> Path | None:
        """None: in memory adapters are merged into what `tensors` and `folder` give."""
        return None
