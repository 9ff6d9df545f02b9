"""How a run names its parts: its stages, and the policies that it makes. Text at the store's edge and for people alone.

stage    round-1/search   round-0/eval/greedy
policy   round-0 (after the warm-up, or the recipe's model)   round-1   round-1-dpo   round-1/batch-7
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from treepref.types import PolicyId

_STAGE = re.compile(r"round-(\d+)/([^/]+)(?:/(.+))?")


@dataclass(frozen=True, slots=True, order=True)
class Stage:
    """A part of a run that is begun, done and paid for by itself."""

    round: int
    name: str
    """sft, values, search, pairs, dpo, labels, train or eval."""
    part: str | None = None
    """One of several that it consists of, e.g. a decoder of an evaluation."""

    def __str__(self) -> str:
        return f"round-{self.round}/{self.name}" + ("" if self.part is None else f"/{self.part}")

    def of(self, part: str) -> Stage:
        """A part of this stage."""
        return Stage(self.round, self.name, part)

    @classmethod
    def parse(cls, text: str) -> Stage:
        """Raises ValueError for a text that names no stage."""
        if (found := cls.read(text)) is None:
            raise ValueError(f"{text!r} names no stage of a run")
        return found

    @classmethod
    def read(cls, text: str) -> Stage | None:
        """The stage that a text names; None where it names none."""
        found = _STAGE.fullmatch(text)
        return None if found is None else cls(int(found[1]), found[2], found[3])


def round_policy(number: int) -> PolicyId:
    """What a round ended with; of round 0 the warm-up's result, or the recipe's model where there is none."""
    return PolicyId(f"round-{number}")


def dpo_policy(number: int) -> PolicyId:
    """The DPO model of a round of DPO-ST, which samples that round's pseudo-labels."""
    return PolicyId(f"round-{number}-dpo")


def batch_policy(number: int, batch: int) -> PolicyId:
    """What searches a batch of an online round: the round's first policy after so many updates."""
    return PolicyId(f"round-{number}/batch-{batch}") if batch else round_policy(number - 1)
