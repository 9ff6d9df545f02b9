"""The tables of a run's database, and how it is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from treepref.errors import StoreError

SCHEMA = 2
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE problems (split TEXT, id TEXT, position INTEGER NOT NULL, row TEXT NOT NULL, PRIMARY KEY (split, id));
CREATE UNIQUE INDEX problems_in_order ON problems (split, position);
CREATE TABLE journal (
    stage TEXT, tree TEXT, path TEXT, policy TEXT NOT NULL, request TEXT NOT NULL, blob BLOB NOT NULL,
    PRIMARY KEY (stage, tree, path));
CREATE TABLE trees (
    stage TEXT, key TEXT, problem_id TEXT NOT NULL, policy TEXT NOT NULL, digest TEXT NOT NULL,
    right INTEGER NOT NULL, wrong INTEGER NOT NULL, nodes INTEGER NOT NULL, failed INTEGER NOT NULL, blob BLOB NOT NULL,
    PRIMARY KEY (stage, key));
CREATE TABLE pairs (round INTEGER, id TEXT, tree TEXT NOT NULL, row TEXT NOT NULL, PRIMARY KEY (round, id));
CREATE TABLE outcomes (stage TEXT, problem_id TEXT, sample INTEGER, row TEXT NOT NULL,
    PRIMARY KEY (stage, problem_id, sample));
CREATE TABLE costs (stage TEXT PRIMARY KEY, row TEXT NOT NULL);
CREATE TABLE stages (name TEXT PRIMARY KEY, status TEXT NOT NULL, info TEXT NOT NULL, started REAL, finished REAL);
CREATE TABLE events (id INTEGER PRIMARY KEY, time REAL NOT NULL, stage TEXT NOT NULL, level TEXT NOT NULL,
    message TEXT NOT NULL);
CREATE INDEX events_by_message ON events (stage, message);
"""


def connect_to_write(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=5.0, isolation_level=None)
    try:
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(
                f"SQLite cannot keep a write-ahead log in {path.parent} (journal mode {mode!r}): "
                "choose a folder on a local disk"
            )
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA journal_size_limit = 67108864")  # give back what one large transaction made the log grow to
    except BaseException:
        db.close()
        raise
    return db


def connect_to_read(path: Path) -> sqlite3.Connection:
    uri = path.resolve().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=5.0, isolation_level=None)
    try:
        db.execute("SELECT 1 FROM sqlite_master LIMIT 1")
        return db
    except sqlite3.OperationalError:
        db.close()
        if path.with_name(path.name + "-wal").exists():
            raise
        # A folder that may not be written (a read-only disk) allows no shared memory; nobody can be writing there.
        return sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True, isolation_level=None)
