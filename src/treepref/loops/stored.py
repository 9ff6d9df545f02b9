"""What evaluations left in a run's store, read back whole or refused as damaged."""

from __future__ import annotations

from typing import Any

from treepref.evaluation.scores import Solution
from treepref.runs.stage import Stage
from treepref.runs.store import Store


def stored_solutions(store: Store, stage: Stage) -> list[Solution]:
    """The solutions of one decoder, e.g. `round-0/eval/greedy`, by problem and sample, as far as it has come.

    Raises StoreError where they are not sound.
    """
    with store.sound(f"what {stage} found"):
        return [Solution.from_row(row) for _, _, row in store.outcomes(stage)]


def stored_summary(store: Store, round: int) -> dict[str, Any] | None:
    """A round's entry of results.json; None before it is evaluated. Raises StoreError where it is not sound."""
    found = store.meta(f"summary/{round}")
    if found is None:
        return None
    with store.sound(f"the summary of round {round}"):
        entries = found["eval"].values()
        if found["round"] != round or not all(entry is None or isinstance(entry, dict) for entry in entries):
            raise ValueError("it is of another form")
        return found
