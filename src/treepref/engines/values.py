"""How the torch engine reads values beside decoding, wherever the policy's value head reads.

The head's last layer comes with every pass; another layer is caught on its way by, and a mean over the solution so far
is kept as a running sum of w·h a row, so no token is run twice. Knows rows and hidden states; knows no scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from treepref.engines.jobs import Row
from treepref.models.hidden import captured
from treepref.models.policy import Policy
from treepref.models.value_head import LAST_LAYER, ValueHead

Values = Sequence[float | None]


class ValueReader:
    """Reads the values of an engine's rows; row i's running sum stands at place i."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._score_R = torch.zeros(0, dtype=torch.float32, device=policy.device)

    @property
    def head(self) -> ValueHead | None:
        """The policy's value head; None until it is trained."""
        return self._policy.value_head if self._policy.values_trained else None

    def decode(self, run: Callable[[], Tensor]) -> Tensor:
        """Run a pass that returns last hidden states [R, H]; returns those that the head reads."""
        head = self.head
        if head is None or head.read.layer == LAST_LAYER:
            return run()
        with captured(self._policy.model, [head.read.layer]) as found:
            run()
        return found[head.read.layer][:, -1]

    def add(self, read_RH: Tensor, again: Sequence[int]) -> None:
        """Count the newest token of every row, where a mean is read. `again`: rows whose newest was counted before."""
        head = self.head
        if head is not None and head.read.pool == "mean":
            score_R = head.scores(read_RH)
            if again:
                score_R[again] = 0
            self._score_R[: len(read_RH)] += score_R

    def close(self, rows: Sequence[Row], closing: Sequence[int], read_RH: Tensor) -> tuple[Values, Values]:
        """Values of the rows that end here, and their sums of w·h where the head reads a mean."""
        head, nothing = self.head, [None] * len(closing)
        if head is None:
            return nothing, nothing
        if head.read.pool == "last":
            return head(read_RH[closing]).tolist(), nothing
        scores = self._score_R[closing].tolist()
        means = []
        for index, score in zip(closing, scores, strict=True):
            before = rows[index].job.request.so_far
            means.append((before.score + score) / (before.tokens + len(rows[index].tokens)))
        return head.squash(torch.tensor(means, dtype=torch.float64, device=read_RH.device)).tolist(), scores

    def prefixes(self, hidden_BH: Tensor) -> Values:
        """Values of prefixes: of a bare prompt, where the head reads more than its last token, the value of any."""
        head = self.head
        if head is None:
            return [None] * len(hidden_BH)
        return head(hidden_BH).tolist() if head.at_last_token else [float(head.root)] * len(hidden_BH)

    # --- rows come, go and move

    def begin(self, start: int, stop: int) -> None:
        self._score_R[start:stop] = 0

    def move(self, source: int, target: int) -> None:
        self._score_R[target] = self._score_R[source]

    def reserve(self, rows: int) -> None:
        if rows > len(self._score_R):
            grown_R = self._score_R.new_zeros(rows)
            grown_R[: len(self._score_R)] = self._score_R
            self._score_R = grown_R
