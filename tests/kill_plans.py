"""Plans of deaths for killed_life.py, and what must hold of a run that died by one and was resumed.

A first life without a plan tells every event of the run. A plan is drawn from these by a seed. All of it is given to
every life until it has happened: a life dies at the first death that it comes to, and the next life has one less. What
a run does to the end of its work, it must do in some life however often it dies, so every death happens, on a machine
of any speed.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stored import count_journal
from treepref.runs.store import Store

Death = tuple[str, str]
"""(moment, name of the event); in what a test wants, the name may be the beginning of a regular expression's match."""

SIGKILLED = -9


class Lives:
    """Lives of one program, `module:function` beside the tests."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def play(self, ledger: Path, plan: Sequence[Death], *arguments: object) -> int:
        """One life, and how it ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        wanted = {"arguments": [str(a) for a in arguments], "ledger": str(ledger), "plan": plan}
        print(json.dumps(wanted), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


@contextmanager
def lives_of(program: str) -> Iterator[Lives]:
    script = Path(__file__).with_name("killed_life.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(script), program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        yield Lives(process)


# ---- ledgers and plans -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    """What a ledger says, in order."""

    did: list[str] = field(default_factory=list)
    """Names of events, as often as they happened."""
    deaths: list[Death] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    """Requests for what was on disk already: an expansion in the journal, or one of a tree that was finished."""


def read(ledger: Path) -> Told:
    told, kept = Told(), set()
    for line in ledger.read_text().splitlines() if ledger.exists() else []:
        what, *rest = line.split("\t")
        if what == "died":
            told.deaths.append((rest[0], rest[1]))
        elif what == "kept":
            kept.add(rest[0])
        else:
            told.did.append(rest[0])
            if rest[0].startswith("submit ") and _paid(rest[0], kept):
                told.again.append(rest[0])
    return told


def _paid(request: str, kept: set[str]) -> bool:
    _, stage, place = request.split(" ", 2)
    tree = place.rpartition("/")[0]
    rows = (f"journal {stage} {place}", f"trees {stage} {tree}", f"outcomes {stage} {tree} 0")
    return any(f"row {row}" in kept for row in rows)


def draw(seed: int, did: Sequence[str], wanted: Sequence[Death]) -> list[Death]:
    """For each death that is wanted one among the events that its pattern begins to match, none twice.

    A pattern that ends in `$` and matches nothing is taken by its word: an event that an earlier death of the plan
    brings about (a folder is replaced only where one was left).
    """
    rng = random.Random(seed)
    names = list(dict.fromkeys(did))
    plan: list[Death] = []
    for moment, pattern in wanted:
        found = [name for name in names if re.match(pattern, name) and (moment, name) not in plan]
        literal = pattern.endswith("$") and not found
        assert found or literal, f"the run has no event for {moment} {pattern}"
        plan.append((moment, pattern[:-1] if literal else rng.choice(found)))
    # One COMMIT may keep several rows, and only one death can follow it.
    after = [name.rpartition(" ")[0] for moment, name in plan if moment == "after" and name.startswith("row ")]
    assert len(after) == len(set(after)), "two deaths may be planned after one COMMIT"
    return plan


def killed_and_resumed(lives: Lives, folder: Path, seed: int, wanted: Sequence[Death], *arguments: str) -> list[Death]:
    """`folder/whole`, a run that nobody killed, and `folder/killed`, one that died at every death that is wanted.

    Returns the deaths as they came. The run's program takes its directory first, then `arguments`.
    """
    ledger = folder / "whole.ledger"
    assert lives.play(ledger, [], folder / "whole", *arguments) == 0
    whole = read(ledger)
    assert not whole.again and not whole.deaths
    ledger = folder / "killed.ledger"
    planned = draw(seed, whole.did, wanted)
    left = list(planned)
    while left:
        status = lives.play(ledger, left, folder / "killed", *arguments)
        assert status == SIGKILLED, f"a life ended with {status} and did not come to {left}"
        left.remove(read(ledger).deaths[-1])
    assert lives.play(ledger, left, folder / "killed", *arguments) == 0
    killed = read(ledger)
    assert sorted(killed.deaths) == sorted(planned) and len(planned) == len(wanted)
    assert killed.again == [], "a journalled expansion was requested again, or a finished tree searched again"
    assert set(killed.did) >= set(whole.did)
    return killed.deaths


# ---- the same end ----------------------------------------------------------------------------------------------------


def check_same_run(folder: Path) -> None:
    """`folder/killed` found, learned and paid what `folder/whole` did, and left no other files."""
    with Store(folder / "whole", read_only=True) as whole, Store(folder / "killed", read_only=True) as killed:
        assert killed.digest() == whole.digest()
        stages = [[(s.name, s.status, s.info) for s in store.stages()] for store in (killed, whole)]
        assert stages[0] == stages[1]
        for name, *_ in stages[1]:
            assert killed.count_trees(name) == whole.count_trees(name)
            assert count_journal(killed, name) == 0
            steps = [_curve(store, name) for store in (killed, whole)]
            assert steps[0] == steps[1], "no update is missing from the learning curves"
            ours, theirs = killed.cost(name), whole.cost(name)
            if theirs.training_tokens:
                assert (ours.training_tokens, ours.flops) == (theirs.training_tokens, theirs.flops), "paid once"
            else:  # samples of requests that had not ended are made again, and paid for
                assert ours.generated_tokens >= theirs.generated_tokens
        summaries = [[store.meta(f"summary/{k}") for k in range(9)] for store in (killed, whole)]
        assert summaries[0] == summaries[1]
    assert _files(folder / "killed") == _files(folder / "whole")


def _curve(store: Store, stage: str) -> list[dict[str, float]]:
    steps = store.meta(f"steps/{stage}", [])
    return [{key: number for key, number in step.items() if "seconds" not in key} for step in steps]


def _files(run: Path) -> set[str]:
    """All but the database, which may have a log beside it."""
    names = {str(file.relative_to(run)) for file in run.rglob("*")}
    return {name for name in names if not name.startswith("run.db")}
