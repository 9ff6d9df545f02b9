"""A run that ends itself with SIGKILL at a planned event: what the tests of resuming start in place of the run.

    python killed_life.py MODULE:FUNCTION

imports the module, then plays one life for each line of JSON on its input, `{"arguments", "ledger", "plan"}`: a forked
process that calls FUNCTION(*arguments). It tells how that process ended, one exit status a line, −9 for SIGKILL. The
imports are paid once, and every life begins with none of the run's state.

A life is watched from outside the product: engines, SQLite, renames, writes and optimizer steps are wrapped in the
forked process alone. Each thing that happens has a name that is the same in every life of a run, and moments:

    submit STAGE TREE/PATH   before | after        a request goes to the engine
    row TABLE KEY            before | inside | commit | after      a row is written: before its statement, before the
                                                   next one, before the COMMIT that it waits for, after that COMMIT
    rename FILE              before | after        a finished file or folder takes the name FILE
    write FILE               before | inside       a file is written; inside: half of it is there
    step STAGE N             before                an optimizer step

The plan is a list of (moment, name). A life dies at the first that it comes to, and the last thing it does is to say so
in the ledger. Knows no test; kill_plans.py draws the plans and reads the ledger.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

KEY_COLUMNS = {
    "meta": 1, "problems": 2, "journal": 3, "trees": 2, "pairs": 2, "outcomes": 3, "costs": 1, "stages": 1
}  # fmt: skip
"""Tables whose rows are events, and how many columns name one. Events are left out: a life may have more of them."""
INSERT = re.compile(r"INSERT (?:OR \w+ )?INTO (\w+)")


class Ledger:
    """What happened in a life, line by line, and the death that ends it."""

    def __init__(self, path: str, plan: Iterable[Sequence[str]]) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.plan = {tuple(death) for death in plan}
        self.process = os.getpid()
        self.searched = ""
        """The stage whose journal is in use."""
        self.begun = ""
        """The stage that was begun last."""
        self.renaming = ""
        """The rename that is being made."""

    def write(self, what: str, name: str) -> None:
        os.write(self.descriptor, f"{what}\t{name}\n".encode())

    def at(self, moment: str, name: str) -> None:
        """Die here if that is planned."""
        if self.due(moment, name):
            self.die(moment, name)

    def due(self, moment: str, name: str) -> bool:
        return (moment, name) in self.plan and os.getpid() == self.process

    def die(self, moment: str, name: str) -> None:
        self.write(f"died\t{moment}", name)
        os.fsync(self.descriptor)
        os.kill(os.getpid(), signal.SIGKILL)


# ---- what is watched -------------------------------------------------------------------------------------------------


def watch_engine(ledger: Ledger, engine: type[Any]) -> None:
    submit = engine.submit

    def watched(self: Any, requests: Iterable[Any]) -> None:
        requests = list(requests)
        # A request's id ends in a number that is another in every life.
        names = [f"submit {ledger.searched} {request.id.rpartition('/')[0]}" for request in requests]
        for name in names:
            ledger.at("before", name)
        for name in names:
            ledger.write("did", name)
        submit(self, requests)
        for name in names:
            ledger.at("after", name)

    engine.submit = watched


def watch_store(ledger: Ledger) -> None:
    """Every connection to SQLite, and which stage's journal is in use."""
    from treepref.runs.store import Store

    journal = Store.journal

    def watched(self: Any, stage: str, *more: Any, **named: Any) -> Any:
        ledger.searched = stage
        return journal(self, stage, *more, **named)

    Store.journal = watched
    sqlite3.connect = functools.partial(sqlite3.connect, factory=type("Watched", (Connection,), {"ledger": ledger}))


class Connection(sqlite3.Connection):
    """Tells the ledger of each row."""

    ledger: Ledger

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.rows: list[str] = []
        """Written in the transaction that is open."""

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        if sql == "COMMIT":
            return self._commit()
        self._about(sql, values)
        return super().execute(sql, values)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        def told() -> Iterator[Sequence[Any]]:
            for values in rows:
                self._about(sql, values)
                yield values

        return super().executemany(sql, told())

    def _about(self, sql: str, values: Sequence[Any]) -> None:
        if sql.startswith(("BEGIN", "ROLLBACK")):
            self.rows = []
        elif self.rows:
            self.ledger.at("inside", self.rows[-1])
        name = _row_name(sql, values)
        if name is not None:
            if name.startswith("row stages begin "):
                self.ledger.begun = values[0]
            self.ledger.at("before", name)
            self.ledger.write("did", name)
            self.rows.append(name)

    def _commit(self) -> sqlite3.Cursor:
        for name in self.rows[-1:]:
            self.ledger.at("inside", name)
        for name in self.rows:
            self.ledger.at("commit", name)
        done = super().execute("COMMIT")
        for name in self.rows:
            self.ledger.write("kept", name)
        for name in self.rows:
            self.ledger.at("after", name)
        self.rows = []
        return done


def _row_name(sql: str, values: Sequence[Any]) -> str | None:
    if sql.startswith("UPDATE stages"):
        return f"row stages done {values[-1]}"
    found = INSERT.match(sql)
    if found is None or found[1] not in KEY_COLUMNS:
        return None
    key = [str(value) for value in values[: KEY_COLUMNS[found[1]]]]
    if found[1] == "stages":
        key = ["begin", *key]
    elif found[1] == "journal":
        stage, tree, path = key
        key = [stage, f"{tree}/{path or 'root'}"]
    return " ".join(["row", found[1], *key])


def watch_files(ledger: Ledger) -> None:
    """Renames, and files that are written whole."""
    for module, name in ((os, "rename"), (os, "replace"), (Path, "rename"), (Path, "replace")):
        setattr(module, name, _renaming(ledger, getattr(module, name)))
    Path.write_text = _writing(ledger, Path.write_text, lambda path, *_, **__: path)


def _renaming(ledger: Ledger, rename: Callable[..., Any]) -> Callable[..., Any]:
    def watched(source: Any, destination: Any, *more: Any, **named: Any) -> Any:
        name = f"rename {short(destination)}"
        if name == ledger.renaming:  # `Path.rename` calls `os.rename`
            return rename(source, destination, *more, **named)
        ledger.at("before", name)
        ledger.write("did", name)
        ledger.renaming = name
        try:
            done = rename(source, destination, *more, **named)
        finally:
            ledger.renaming = ""
        ledger.at("after", name)
        return done

    return watched


def _writing(ledger: Ledger, write: Callable[..., Any], target: Callable[..., Any]) -> Callable[..., Any]:
    """`target`: what of the arguments is the path, a file or a folder of files."""

    @functools.wraps(write)
    def watched(*arguments: Any, **named: Any) -> Any:
        path = Path(target(*arguments, **named))
        name = f"write {short(path)}"
        ledger.at("before", name)
        ledger.write("did", name)
        done = write(*arguments, **named)
        if ledger.due("inside", name):
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            largest = max(files, key=lambda file: file.stat().st_size)
            os.truncate(largest, largest.stat().st_size // 2)
            ledger.die("inside", name)
        return done

    return watched


def short(path: Any) -> str:
    """A path in the run's folder (which has its database) without what is another in every life."""
    path = Path(path)
    home = next((folder for folder in path.parents if (folder / "run.db").exists()), path.parent)
    return re.sub(r"(\.tmp(-\d+)?|(?<=/report)-\d+)(?=/|$)", "", str(path.relative_to(home)))


def watch_training(ledger: Ledger) -> None:
    """Optimizer steps, and what is written of weights."""
    import torch
    from transformers import PreTrainedModel

    from treepref.training.learner import LearnerRun

    step = LearnerRun.step

    def watched(self: Any, *arguments: Any, **named: Any) -> Any:
        name = f"step {ledger.begun} {self.steps}"
        ledger.at("before", name)
        ledger.write("did", name)
        return step(self, *arguments, **named)

    LearnerRun.step = watched
    torch.save = _writing(ledger, torch.save, lambda state, path, *_, **__: path)
    PreTrainedModel.save_pretrained = _writing(
        ledger, PreTrainedModel.save_pretrained, lambda model, folder, *_, **__: folder
    )


def watch(ledger: Ledger) -> None:
    """Everything that the program has imported."""
    watch_store(ledger)
    watch_files(ledger)
    for module, engine in (("scripted", "ScriptedEngine"), ("torch_engine", "TorchEngine")):
        if (found := sys.modules.get(f"treepref.engines.{module}")) is not None:
            watch_engine(ledger, getattr(found, engine))
    if "treepref.training.learner" in sys.modules:
        watch_training(ledger)


# ---- lives -----------------------------------------------------------------------------------------------------------


def life(program: Callable[..., None], arguments: Sequence[str], ledger: str, plan: Iterable[Sequence[str]]) -> int:
    """Fork, play a life, and return its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # standard output is the parent's, for statuses
        watch(Ledger(ledger, plan))
        program(*arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def main(named: str) -> None:
    module, _, function = named.partition(":")
    program = getattr(import_module(module), function)
    for line in sys.stdin:
        wanted = json.loads(line)
        print(life(program, wanted["arguments"], wanted["ledger"], wanted["plan"]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
