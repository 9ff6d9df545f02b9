"""The order of a run's stages: what each of them stands on, and whether that is done.

A method says its order once, as `Order`; this file knows nothing else of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from treepref.errors import StoreError, TreeprefError
from treepref.loops.session import Session
from treepref.runs.stage import Stage

Order = Sequence[tuple[str, ...]]
"""The stages of a round, in groups that run as one. Each group stands on the one before it, the first on the round
before. The last is the evaluation, on which nothing stands."""


def check_stage(session: Session, order: Order, name: str, round: int) -> None:
    """Raises TreeprefError where the run has no such stage, or what it stands on is not done.

    The message names the command to give. Nothing is written.
    """
    names = [each for group in order for each in group]
    last = session.recipe.rounds if len(names) > 1 else 0
    first = 0 if name in ("eval", "sft") else 1
    if name != "sft" and name not in names:
        raise TreeprefError(f"the stage {name} is switched off in this run's recipe")
    if not first <= round <= last:
        raise TreeprefError(f"--round {round}: in this run {name} goes from round {first} to round {last}")
    check_sequence(session, order)
    for missing in _before(session, order, Stage(round, name)):
        if not session.store.stage_done(missing):
            raise TreeprefError(
                f"{Stage(round, name)} stands on {missing}, which is not done: run `{command(session, missing)}` first"
            )


def check_sequence(session: Session, order: Order) -> None:
    """Raises StoreError where a stage was done before one that it stands on, as older versions allowed it."""
    done = {row.stage for row in session.store.stages() if row.done}
    missing: Stage | None = None
    for at in _sequence(session, order, session.recipe.rounds):
        if missing is None and at not in done:
            missing = at
        elif missing is not None and at in done and not _together(order, at, missing):
            raise StoreError(
                f"{session.out}: {at} was done before {missing}, so it learned from a part of its data: "
                "start another run with another --out"
            )


def command(session: Session, at: Stage) -> str:
    """The command that does a stage."""
    return f"treepref {at.name} {session.out}" + (f" --round {at.round}" if at.name != "sft" else "")


def _sequence(session: Session, order: Order, rounds: int) -> Iterator[Stage]:
    """All stages that others stand on, in order."""
    if session.recipe.warmup.epochs:
        yield Stage(0, "sft")
    for round in range(1, rounds + 1):
        yield from (Stage(round, name) for group in order[:-1] for name in group)


def _before(session: Session, order: Order, stage: Stage) -> Iterator[Stage]:
    """The stages that a stage stands on, the earliest first."""
    for at in _sequence(session, order, stage.round):
        if stage.name == "sft" or _together(order, at, stage):
            return
        yield at


def _together(order: Order, one: Stage, other: Stage) -> bool:
    """Whether two stages run as one."""
    return one.round == other.round and any(one.name in group and other.name in group for group in order)
