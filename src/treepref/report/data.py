"""What a report is made of: plain data that the caller has read from the run. No store, no model, no drawing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treepref.runs.results import Outcomes, Results, SearchOutcomes


@dataclass(slots=True)
class ReportData:
    """Everything in `report.html`. Lists may be empty and numbers None: a section without data says so."""

    recipe: Mapping[str, Any]
    """The recipe as run."""
    results: Results
    run: str = ""
    """The run's folder; its recipe's name where that is not said."""
    steps: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """Optimizer steps in order: `round`, `step`, and the names in `plots.PANELS`. Others are ignored."""
    pair_stats: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """One a round, `round` first: any counts and means of the search and its pairs, shown as a table."""
    trees: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """To draw: `question`; `nodes` (`id`, `parent`, `text`, `q`, `visits`, `value`, `prior`, `reward`, `terminal`);
    `pairs` (`winner`, `loser`: a node's id or a list of ids from the parting downwards; `q_winner`, `q_loser`).
    Optional: `answer` (the right one), `problem_id`, `round`, `q_range`; of a node `finish`, `confidence` (C), and
    `pieces`, its text as (text, forced by a tool) where a tool was used."""
    events: Sequence[EventGroup] = field(default_factory=list)
    """What was skipped or failed. Level `info` is a remark and is shown apart; `error` is what stopped the run and
    stands in `stopped`."""
    unfinished: Sequence[str] = field(default_factory=list)
    """Stages that were begun and are not done, with how far they came: such a run is never said to be free of
    failures."""
    stopped: str | None = None
    """What ended the run's last life: an error with its advice, a limit, Ctrl-C."""
    readings: Sequence[TitledOutcomes] = field(default_factory=list)
    """What was read of solutions, in order."""


@dataclass(frozen=True, slots=True)
class TitledOutcomes:
    """What became of the solutions of one decoder or search."""

    round: int
    title: str
    found: Outcomes

    @property
    def search(self) -> SearchOutcomes | None:
        """The counts of trees, where it was a search."""
        return self.found if isinstance(self.found, SearchOutcomes) else None


@dataclass(frozen=True, slots=True)
class EventGroup:
    """Equal events together."""

    stage: str
    level: str
    message: str
    count: int = 1


def group_events(events: Iterable[EventGroup]) -> list[EventGroup]:
    """Equal events counted once, the most frequent first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for event in events:
        counts[event.stage, event.level, event.message] += event.count
    return [EventGroup(*key, count) for key, count in counts.most_common()]
