"""What evaluations left in a run's store, read back whole or refused as damaged."""

from __future__ import annotations

from typing import NamedTuple

from treepref.evaluation.scores import Solution
from treepref.runs.results import RoundResult, from_plain
from treepref.runs.stage import Stage
from treepref.runs.store import StageRow, Store


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


class Best(NamedTuple):
    round: int
    accuracy: float


def best_round(store: Store) -> Best | None:
    """The evaluated round with the highest greedy accuracy, the first of equal ones; None where none is."""
    summaries = filter(None, (summary_of(store, row) for row in store.stages()))
    found = [Best(one.round, greedy.accuracy) for one in summaries if (greedy := one.eval.get("greedy"))]
    return max(found, key=lambda best: (best.accuracy, -best.round), default=None)


def summary_of(store: Store, row: StageRow) -> RoundResult | None:
    """What the evaluation found that a stage is; None where it is another stage, or not done."""
    stage = row.stage
    is_evaluation = stage is not None and stage.name == "eval" and stage.part is None
    return stored_summary(store, stage.round) if stage is not None and is_evaluation else None
