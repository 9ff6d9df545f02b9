"""The order of a run's stages: what each of them stands on, and whether that is done.

A method says its order once, as `Order`; this file knows nothing else of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from treepref.errors import StoreError, TreeprefError
from treepref.loops.session import Session

Order = Sequence[tuple[str, ...]]
"""The stages of a round, in groups that run as one. Each group stands on the one before it, the first on the round
before. The last is the evaluation, on which nothing stands."""
Named = tuple[int, str]
"""A stage: its round and its name."""


def check_stage(session: Session, order: Order, stage: str, round: int) -> None:
    """Raises TreeprefError where the run has no such stage, or what it stands on is not done.

    The message names the command to give. Nothing is written.
    """
    names = [name for group in order for name in group]
    last = session.recipe.rounds if len(names) > 1 else 0
    first = 0 if stage in ("eval", "sft") else 1
    if stage != "sft" and stage not in names:
        raise TreeprefError(f"the stage {stage} is switched off in this run's recipe")
    if not first <= round <= last:
        raise TreeprefError(f"--round {round}: in this run {stage} goes from round {first} to round {last}")
    check_sequence(session, order)
    for missing in _before(session, order, stage, round):
        if not session.store.stage_done(_row(missing)):
            raise TreeprefError(
                f"{_row((round, stage))} stands on {_row(missing)}, which is not done: run "
                f"`{command(session, missing)}` first"
            )


def check_sequence(session: Session, order: Order) -> None:
    """Raises StoreError where a stage was done before one that it stands on, as older versions allowed it."""
    done = {stage.name for stage in session.store.stages() if stage.status == "done"}
    missing: Named | None = None
    for at in _sequence(session, order, session.recipe.rounds):
        if missing is None and _row(at) not in done:
            missing = at
        elif missing is not None and _row(at) in done and not _together(order, at, missing):
            raise StoreError(
                f"{session.out}: {_row(at)} was done before {_row(missing)}, so it learned from a part of its data: "
                "start another run with another --out"
            )


def command(session: Session, at: Named) -> str:
    """The command that does a stage."""
    round, name = at
    return f"treepref {name} {session.out}" + (f" --round {round}" if name != "sft" else "")


def _row(at: Named) -> str:
    """The stage's name in the store."""
    return f"round-{at[0]}/{at[1]}"


def _sequence(session: Session, order: Order, rounds: int) -> Iterator[Named]:
    """All stages that others stand on, in order."""
    if session.recipe.warmup.epochs:
        yield 0, "sft"
    for round in range(1, rounds + 1):
        yield from ((round, name) for group in order[:-1] for name in group)


def _before(session: Session, order: Order, stage: str, round: int) -> Iterator[Named]:
    """The stages that a stage stands on, the earliest first."""
    for at in _sequence(session, order, round):
        if stage == "sft" or _together(order, at, (round, stage)):
            return
        yield at


def _together(order: Order, one: Named, other: Named) -> bool:
    """Whether two stages run as one."""
    return one[0] == other[0] and any(one[1] in group and other[1] in group for group in order)
