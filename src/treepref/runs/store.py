"""A run's directory: its SQLite database, the lock that keeps a second writer out, and files that land by rename.

One process writes, any number read. Every method that writes is one transaction, and `with store.transaction():`
makes one of several. Journal mode WAL with synchronous=NORMAL: whatever kills the process (`kill -9` too) loses nothing
committed; a power cut may lose the last commits but never leaves half of one.

This file does not know what a search, an objective or a recipe is: it keeps problems, trees, pairs, rows and counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from treepref.errors import StoreError
from treepref.runs import codec
from treepref.runs.landing import fresh_folder
from treepref.runs.migrate import OLDEST, migrate
from treepref.runs.run_folder import RunLock, disk_errors, refuse_foreign, refuse_network, sqlite_errors, sweep_scratch
from treepref.runs.schema import SCHEMA, TABLES, connect_to_read, connect_to_write
from treepref.runs.stage import Stage
from treepref.types import Cost, JournalEntry, Pair, PolicyId, Problem, Tree

sqlite3.register_adapter(Stage, str)
StageName = Stage | str
"""A stage; a text where it is none of a run's (`store` may be used alone)."""
STOPPED_BEFORE = "stopped here before: "
PAGE = 64
"""Rows fetched at a time where a table is walked, so that memory stays constant."""


@dataclass(frozen=True, slots=True)
class TreeRow:
    """What is known of a stored tree without reading it."""

    key: str
    problem_id: str
    policy: PolicyId
    """Which one grew it."""
    digest: str
    right: int
    """Terminal nodes with a positive reward."""
    wrong: int
    """Terminal nodes with a reward of 0 or below, cut ones included."""
    nodes: int
    failed: int

    @property
    def mixed(self) -> bool:
        return self.right > 0 and self.wrong > 0


@dataclass(frozen=True, slots=True)
class StageRow:
    """What is known of a part of a run."""

    name: str
    """As text, e.g. `round-1/search`."""
    status: str
    """`running` (also after a kill) or `done`."""
    info: dict[str, Any]
    started: float
    """Seconds since the epoch."""
    finished: float | None

    @property
    def stage(self) -> Stage | None:
        """None where the name is no stage's."""
        return Stage.read(self.name)

    @property
    def done(self) -> bool:
        return self.status == "done"


@dataclass(frozen=True, slots=True)
class Event:
    """A skip, a failure or a remark, shown at the run's end."""

    time: float
    stage: str
    level: str
    message: str


class Store:
    """The run in `folder`. Use it as a context manager, or call `close`.

    `create=False` refuses a folder without a run. `read_only=True` takes no lock and may be used beside a running
    process (report, digest, compare).
    Raises StoreError: locked, unsafe file system, newer schema, not a run, disk full.
    """

    def __init__(self, folder: str | os.PathLike[str], *, create: bool = True, read_only: bool = False) -> None:
        self.folder = Path(folder)
        self.read_only = read_only
        self._lock: RunLock | None = None
        self._depth = 0
        self._spent: Cost | None = None
        path = self.folder / "run.db"
        if not path.is_file() and (read_only or not create):
            raise StoreError(f"{self.folder} holds no run (there is no run.db in it)")
        try:
            with disk_errors(self.folder), sqlite_errors(self.folder):
                if read_only:
                    self._db = connect_to_read(path)
                else:
                    refuse_foreign(self.folder)
                    self.folder.mkdir(parents=True, exist_ok=True)
                    refuse_network(self.folder)
                    self._lock = RunLock(self.folder / "run.lock")
                    self._db = connect_to_write(path)
            self._check_schema()
            if not read_only:
                sweep_scratch(self.folder)
        except BaseException:
            self.close()
            raise

    def _check_schema(self) -> None:
        tables = {name for (name,) in self._all("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "meta" not in tables and (tables or self.read_only):
            raise StoreError(f"{self.folder}/run.db is the database of something else, or of a run that did not begin")
        if not tables:
            with self.transaction():
                for statement in TABLES.split(";"):
                    self._db.execute(statement)
                self.set_meta("schema", SCHEMA)
        found = self.meta("schema")
        if found == SCHEMA:
            return
        if not isinstance(found, int) or not OLDEST <= found < SCHEMA:
            maker = "a newer" if isinstance(found, int) and found > SCHEMA else "another"
            raise StoreError(
                f"{self.folder}/run.db has schema {found}, made by {maker} version of treepref (this one reads "
                f"{OLDEST} to {SCHEMA}): use that version, or choose another --out"
            )
        with sqlite_errors(self.folder), self.sound(f"what schema {found} holds"):
            if self.read_only:  # the file stays as it is
                self._db, old = sqlite3.connect(":memory:", isolation_level=None), self._db
                with contextlib.closing(old):
                    old.backup(self._db)
            migrate(self._db, found)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()
        if self._lock is not None:
            self._lock.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside lands together or not at all. May be nested: the outermost one commits."""
        if self.read_only:
            raise StoreError(f"{self.folder} was opened to read only")
        with sqlite_errors(self.folder):
            if self._depth == 0:
                self._db.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                if self._depth == 1:
                    self._db.execute("COMMIT")
            except BaseException:
                self._spent = None
                if self._depth == 1 and self._db.in_transaction:  # SQLite may have rolled back by itself
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def _write(self, sql: str, values: Sequence[Any] = ()) -> int:
        with self.transaction():
            return self._db.execute(sql, values).rowcount

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with sqlite_errors(self.folder):
            return self._db.execute(sql, values).fetchall()

    def _one(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        with sqlite_errors(self.folder):
            return self._db.execute(sql, values).fetchone()

    # -- meta

    def set_meta(self, key: str, value: Any) -> None:
        """A JSON-able value under a name, e.g. the recipe as run."""
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def meta(self, key: str, default: Any = None) -> Any:
        row = self._one("SELECT value FROM meta WHERE key = ?", (key,))
        return default if row is None else self._read(row[0], f"meta {key}")

    # -- what is read back

    @contextlib.contextmanager
    def sound(self, what: str) -> Iterator[None]:
        """Whatever goes wrong with what was stored, as a StoreError that names it and says what to do."""
        try:
            yield
        except (StoreError, MemoryError):  # told already, or no fault of what was stored
            raise
        except Exception as error:  # damaged data fails in every way there is
            raise StoreError(
                f"{self.folder}/run.db: {what} is damaged ({type(error).__name__}: {error}): restore run.db from a "
                "copy, or start another run with another --out"
            ) from error

    def _read(self, text: str, what: str, kind: type = object) -> Any:
        with self.sound(what):
            value = json.loads(text)
            if not isinstance(value, kind):
                raise TypeError(f"a {kind.__name__} was stored, and a {type(value).__name__} is there")
            return value

    # -- problems

    def put_problems(self, split: str, problems: Iterable[Problem]) -> None:
        """The split's problems in order, in place of those it had. Raises StoreError where an id is there twice."""
        rows = (
            (split, p.id, position, json.dumps([p.text, p.answer, p.rationale, dict(p.meta)]))
            for position, p in enumerate(problems)
        )
        with self.transaction():
            self._db.execute("DELETE FROM problems WHERE split = ?", (split,))
            self._db.executemany("INSERT INTO problems VALUES (?, ?, ?, ?)", rows)

    def forget_problems(self) -> None:
        """As if none had been put: their rows, what was said of them and that they are there."""
        with self.transaction():
            self._db.execute("DELETE FROM problems")
            self._db.execute("DELETE FROM events WHERE stage = 'problems'")
            self._db.execute("DELETE FROM meta WHERE key = 'problems'")

    def problems(self, split: str) -> Iterator[Problem]:
        """In the order they were put."""
        after = -1
        query = "SELECT position, id, row FROM problems WHERE split = ? AND position > ? ORDER BY position LIMIT ?"
        while rows := self._all(query, (split, after, PAGE)):
            yield from (self._problem(split, name, row) for _, name, row in rows)
            after = rows[-1][0]

    def problem(self, split: str, problem_id: str) -> Problem | None:
        row = self._one("SELECT row FROM problems WHERE split = ? AND id = ?", (split, problem_id))
        return None if row is None else self._problem(split, problem_id, row[0])

    def _problem(self, split: str, name: str, row: str) -> Problem:
        with self.sound(f"problem {name} of {split}"):
            text, answer, rationale, meta = json.loads(row)
            return Problem(name, text, answer, rationale, dict(meta))

    def count_problems(self, split: str) -> int:
        return self._count("problems WHERE split = ?", split)

    def _count(self, tail: str, *values: Any) -> int:
        return self._all(f"SELECT COUNT(*) FROM {tail}", values)[0][0]

    # -- journal and trees

    def journal(self, stage: StageName, policy: PolicyId) -> StageJournal:
        """The journal of a stage. Entries that another policy left are discarded: they cannot be replayed."""
        self._write("DELETE FROM journal WHERE stage = ? AND policy != ?", (stage, policy))
        return StageJournal(self, stage, policy)

    def finish_tree(self, stage: StageName, tree: Tree, *, cost: Cost | None = None, keep: bool = True) -> None:
        """A tree is done: its row, the end of its journal and its cost, in one transaction.

        `keep=False` stores no tree (evaluation keeps outcomes only; add them in the same `transaction()`).
        Raises StoreError where the stage has that tree already.
        """
        with self.transaction():
            if keep:
                rewards = [node.reward for node in tree.nodes if node.reward is not None]
                right = sum(reward > 0 for reward in rewards)
                row = (
                    tree.key,
                    tree.problem_id,
                    tree.policy,
                    codec.digest_tree(tree).hex(),
                    right,
                    len(rewards) - right,
                )
                blob = codec.pack_tree(tree)
                values = (stage, *row, len(tree.nodes), tree.failed, blob)
                self._db.execute("INSERT INTO trees VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            self._db.execute("DELETE FROM journal WHERE stage = ? AND tree = ?", (stage, tree.key))
            if cost is not None:
                self.add_cost(stage, cost)

    def replace_tree(self, stage: StageName, tree: Tree) -> None:
        """Another form of a tree that is stored, such as one with other outcomes."""
        with self.transaction():
            self._db.execute("DELETE FROM trees WHERE stage = ? AND key = ?", (stage, tree.key))
            self.finish_tree(stage, tree)

    def has_tree(self, stage: StageName, key: str) -> bool:
        return self._one("SELECT 1 FROM trees WHERE stage = ? AND key = ?", (stage, key)) is not None

    def tree(self, stage: StageName, key: str) -> Tree | None:
        row = self._one("SELECT blob FROM trees WHERE stage = ? AND key = ?", (stage, key))
        return None if row is None else self._tree(stage, key, row[0])

    def _tree(self, stage: StageName, key: str, blob: bytes) -> Tree:
        with self.sound(f"the tree {key} of {stage}"):
            return codec.unpack_tree(blob)

    def trees(self, stage: StageName, *, mixed: bool = False) -> Iterator[Tree]:
        """The stage's trees by key; `mixed`: only those with right and wrong solutions."""
        for key, blob in self._walk_trees(stage, "key, blob", mixed):
            yield self._tree(stage, key, blob)

    def tree_rows(self, stage: StageName, *, mixed: bool = False) -> Iterator[TreeRow]:
        """The same without reading the trees."""
        columns = "key, problem_id, policy, digest, right, wrong, nodes, failed"
        for row in self._walk_trees(stage, columns, mixed):
            yield TreeRow(*row)

    def _walk_trees(self, stage: StageName, columns: str, mixed: bool) -> Iterator[tuple[Any, ...]]:
        # Pages by key, not one open cursor: commits and rollbacks may come between two trees.
        after, only = "", "AND right > 0 AND wrong > 0" if mixed else ""
        query = f"SELECT {columns} FROM trees WHERE stage = ? AND key > ? {only} ORDER BY key LIMIT ?"
        while rows := self._all(query, (stage, after, PAGE)):
            yield from rows
            after = rows[-1][0]

    def count_trees(self, stage: StageName, *, mixed: bool = False) -> int:
        return self._count("trees WHERE stage = ?" + (" AND right > 0 AND wrong > 0" if mixed else ""), stage)

    # -- pairs

    def put_pairs(self, round: int, pairs: Iterable[Pair]) -> None:
        """The round's pairs, in place of those it had."""
        rows = ((round, pair.id, pair.tree, json.dumps(asdict(pair))) for pair in pairs)
        with self.transaction():
            self._db.execute("DELETE FROM pairs WHERE round = ?", (round,))
            self._db.executemany("INSERT INTO pairs VALUES (?, ?, ?, ?)", rows)

    def forget_pairs(self) -> None:
        """As if no round had looked for pairs."""
        with self.transaction():
            self._db.execute("DELETE FROM pairs")
            self._db.execute("DELETE FROM stages WHERE name LIKE 'round-%/pairs'")

    def pairs(self, round: int) -> Iterator[Pair]:
        """By id."""
        after, query = "", "SELECT id, row FROM pairs WHERE round = ? AND id > ? ORDER BY id LIMIT ?"
        while rows := self._all(query, (round, after, PAGE)):
            yield from (self._pair(round, *row) for row in rows)
            after = rows[-1][0]

    def _pair(self, round: int, name: str, row: str) -> Pair:
        with self.sound(f"pair {name} of round {round}"):
            values = json.loads(row)
            return Pair(**values | {"winner": tuple(values["winner"]), "loser": tuple(values["loser"])})

    def count_pairs(self, round: int) -> int:
        return self._count("pairs WHERE round = ?", round)

    # -- outcomes of evaluation

    def put_outcomes(
        self, stage: StageName, rows: Iterable[tuple[str, int, Mapping[str, Any]]], *, cost: Cost | None = None
    ) -> None:
        """Rows (problem id, sample, JSON-able row) and what they cost; a row that is there already is replaced."""
        values = ((stage, problem, sample, json.dumps(dict(row))) for problem, sample, row in rows)
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?)", values)
            if cost is not None:
                self.add_cost(stage, cost)

    def outcomes(self, stage: StageName) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """By problem id, then sample."""
        after: tuple[str, int] = ("", -1)
        query = (
            "SELECT problem_id, sample, row FROM outcomes WHERE stage = ? AND (problem_id, sample) > (?, ?) "
            "ORDER BY problem_id, sample LIMIT ?"
        )
        while rows := self._all(query, (stage, *after, PAGE)):
            for problem, sample, row in rows:
                yield problem, sample, self._read(row, f"sample {sample} of problem {problem} of {stage}", dict)
            after = rows[-1][:2]

    def count_outcomes(self, stage: StageName) -> int:
        """Problems that have one."""
        return self._count("(SELECT DISTINCT problem_id FROM outcomes WHERE stage = ?)", stage)

    def forget_problem(self, stage: StageName, problem_id: str, policy: PolicyId) -> int:
        """As if the stage had not come to this problem: its outcomes, its journal, and its trees by that policy.

        Returns how many trees it still has of the problem: those of other policies.
        """
        with self.transaction():
            self._db.execute("DELETE FROM outcomes WHERE stage = ? AND problem_id = ?", (stage, problem_id))
            for table, column in (("journal", "tree"), ("trees", "problem_id")):
                self._db.execute(
                    f"DELETE FROM {table} WHERE stage = ? AND {column} = ? AND policy = ?",
                    (stage, problem_id, policy),
                )
            return self._count("trees WHERE stage = ? AND problem_id = ?", stage, problem_id)

    def has_outcome(self, stage: StageName, problem_id: str) -> bool:
        return self._one("SELECT 1 FROM outcomes WHERE stage = ? AND problem_id = ?", (stage, problem_id)) is not None

    # -- costs, stages, events

    def add_cost(self, stage: StageName, cost: Cost) -> None:
        """Add to what the stage has cost; call it in the transaction of the work that it paid for."""
        self._spent = None
        with self.transaction():
            self._write(
                "INSERT OR REPLACE INTO costs VALUES (?, ?)", (stage, json.dumps((self.cost(stage) + cost).as_dict()))
            )

    def spent(self) -> Cost:
        """What the whole run has cost, kept in memory: asked for before every request."""
        if self._spent is None:
            self._spent = self.cost()
        return self._spent

    def cost(self, stage: StageName | None = None) -> Cost:
        """What a stage has cost, or the whole run."""
        costs = self.costs()
        return sum(costs.values(), Cost()) if stage is None else costs.get(str(stage), Cost())

    def costs(self) -> dict[str, Cost]:
        return {stage: self._cost(stage, row) for stage, row in self._all("SELECT * FROM costs ORDER BY stage")}

    def _cost(self, stage: StageName, row: str) -> Cost:
        with self.sound(f"the cost of {stage}"):
            return Cost(**json.loads(row)) + Cost()

    def start_stage(self, name: StageName, info: Mapping[str, Any] | None = None) -> StageRow:
        """Mark a stage as running. One begun before keeps its info and its start; one that is done stays done."""
        values = (name, json.dumps(dict(info or {})), time.time())
        self._write("INSERT OR IGNORE INTO stages VALUES (?, 'running', ?, ?, NULL)", values)
        stage = self.stage(name)
        assert stage is not None
        return stage

    def finish_stage(self, name: StageName, info: Mapping[str, Any] | None = None) -> None:
        """Mark a stage as done and add to its info. Raises StoreError where it was never started."""
        with self.transaction():
            stage = self.stage(name)
            if stage is None:
                raise StoreError(f"the stage {name} of {self.folder} was never started")
            values = (json.dumps(stage.info | dict(info or {})), time.time(), name)
            self._write("UPDATE stages SET status = 'done', info = ?, finished = ? WHERE name = ?", values)

    def stage(self, name: StageName) -> StageRow | None:
        return next((stage for stage in self.stages() if stage.name == str(name)), None)

    def stage_done(self, name: StageName) -> bool:
        stage = self.stage(name)
        return stage is not None and stage.status == "done"

    def stages(self) -> list[StageRow]:
        """In the order they were started."""
        rows = self._all("SELECT name, status, info, started, finished FROM stages ORDER BY rowid")
        return [
            StageRow(name, status, self._read(info, f"stage {name}", dict), *times)
            for name, status, info, *times in rows
        ]

    def event(self, stage: StageName, level: str, message: str) -> None:
        """Note a skip or a failure (level `info`, `warning`, `error`). What a stage said before is not repeated."""
        values = (time.time(), stage, level, message, stage, message)
        self._write(
            "INSERT INTO events (time, stage, level, message) SELECT ?, ?, ?, ? "
            "WHERE NOT EXISTS (SELECT 1 FROM events WHERE stage = ? AND message = ?)",
            values,
        )

    def events(self) -> list[Event]:
        return [Event(*row) for row in self._all("SELECT time, stage, level, message FROM events ORDER BY id")]

    def forget_events(self, stage: StageName) -> None:
        """As if the stage had said nothing."""
        self._write("DELETE FROM events WHERE stage = ?", (stage,))

    def settle_errors(self) -> None:
        """The run goes on: what stopped it before becomes a remark."""
        for event in self.events():
            if event.level == "error":
                with self.transaction():
                    self._write(
                        "DELETE FROM events WHERE stage = ? AND level = 'error' AND message = ?",
                        (event.stage, event.message),
                    )
                    self.event(event.stage, "info", f"{STOPPED_BEFORE}{event.message}")

    # -- the whole run

    def digest(self, stage: StageName | None = None) -> str:
        """One hash of what the run found, or one stage of it: the trees, whether and what each evaluation row answered
        (its keys `correct` and `answer`), the ids of the pairs. No floats, no costs, no order of arrival."""
        found = hashlib.sha256()
        where, values = ("", ()) if stage is None else (" WHERE stage = ?", (stage,))
        with sqlite_errors(self.folder):
            for row in self._db.execute(f"SELECT stage, key, digest FROM trees{where} ORDER BY stage, key", values):
                found.update(json.dumps(["tree", *row]).encode())
            query = f"SELECT stage, problem_id, sample, row FROM outcomes{where} ORDER BY stage, problem_id, sample"
            for *name, text in self._db.execute(query, values):
                row = self._read(text, f"an outcome of {name[0]}", dict)
                found.update(json.dumps(["outcome", *name, row.get("correct"), row.get("answer")]).encode())
            if stage is None:
                for row in self._db.execute("SELECT round, id FROM pairs ORDER BY round, id"):
                    found.update(json.dumps(["pair", *row]).encode())
        return found.hexdigest()

    def scratch(self, name: str) -> Path:
        """A folder to build files in before they land. What a killed process left is swept at the next open."""
        with disk_errors(self.folder):
            return fresh_folder(self.folder / "scratch", name)

    def disk_bytes(self) -> int:
        """Bytes of every file in the run's folder."""
        total = 0
        for root, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # a file may land or go meanwhile
                    total += os.lstat(os.path.join(root, name)).st_size
        return total


class StageJournal:
    """The expansions of one stage's unfinished trees (`driver.Journal`)."""

    def __init__(self, store: Store, stage: StageName, policy: PolicyId) -> None:
        self._store, self._stage, self._policy = store, stage, policy

    def load(self, tree: str) -> dict[str, JournalEntry]:
        """What is known of a tree, by node path."""
        query = "SELECT path, request, blob FROM journal WHERE stage = ? AND tree = ? AND policy = ?"
        rows = self._store._all(query, (self._stage, tree, self._policy))
        found = {}
        for path, request, blob in rows:
            with self._store.sound(f"the expansion {path} of the tree {tree} of {self._stage}"):
                found[path] = JournalEntry(tree, path, request, *codec.unpack_expansion(blob))
        return found

    def record(self, entries: Sequence[JournalEntry], cost: Cost, events: Sequence[tuple[str, str]] = ()) -> None:
        """Expansions that arrived together, their cost and (level, message) events, in one transaction."""
        rows = []
        for e in entries:
            blob = codec.pack_expansion(e.completions, e.rewards, e.prefix_value)
            rows.append((self._stage, e.tree, e.path, self._policy, e.request, blob))
        with self._store.transaction():
            self._store._db.executemany("INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?, ?, ?)", rows)
            for level, message in events:
                self._store.event(self._stage, level, message)
            if cost != Cost():
                self._store.add_cost(self._stage, cost)
