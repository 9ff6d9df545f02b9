"""What evaluations left in a run's store, read back whole or refused as damaged."""

from __future__ import annotations

from treepref.evaluation.scores import Solution
from treepref.runs.results import RoundResult, from_plain
from treepref.runs.stage import Stage
from treepref.runs.store import Store


def stored_solutions(store: Store, stage: Stage) -> list[Solution]:
    """The solutions of one decoder, e.g. `round-0/eval/greedy`, by problem and sample, as far as it has come.

    Raises StoreError where they are not sound.
    """
    with store.sound(f"what {stage} found"):
        return [Solution.from_row(row) for _, _, row in store.outcomes(stage)]


def stored_summary(store: Store, round: int) -> RoundResult | None:
    """What a round's evaluation found; None before it is evaluated. Raises StoreError where it is not sound."""
    found = store.meta(f"summary/{round}")
    if found is None:
        return None
    with store.sound(f"the summary of round {round}"):
        result = from_plain(found, RoundResult)
        if result.round != round:
            raise ValueError(f"it is of round {result.round}")
        return result
