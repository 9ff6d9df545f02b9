"""Brings a run's database of an older schema to the present one: all of it in one transaction, or nothing.

1 → 2   policies have names in place of numbers, blobs another form (`codec.py`)
"""

from __future__ import annotations

import json
import sqlite3

from treepref.runs import codec, codec_1
from treepref.runs.schema import SCHEMA, TABLES
from treepref.runs.stage import Stage, batch_policy, dpo_policy, round_policy
from treepref.types import PolicyId

OLDEST = 1


def migrate(db: sqlite3.Connection, found: int) -> None:
    """From the schema `found` to the present one. Raises ValueError and the like where what is stored is damaged."""
    db.execute("BEGIN IMMEDIATE")
    try:
        if found == 1:
            _name_policies(db)
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (json.dumps(SCHEMA),))
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def policy_name(stage: str, number: int, method: str) -> PolicyId:
    """What policy `number` of a run of schema 1 is called now.

    A round's policy had the round's number, the DPO model of round k was −k. In an online round of MCTS-DPO the trees
    of a batch had the batch's number instead.
    """
    named = Stage.read(stage)
    if method == "mcts_dpo" and named is not None and named.name == "search":
        return batch_policy(named.round, number)
    return dpo_policy(-number) if number < 0 else round_policy(number)


def _name_policies(db: sqlite3.Connection) -> None:
    row = db.execute("SELECT value FROM meta WHERE key = 'recipe'").fetchone()
    recipe = json.loads(row[0]) if row else {}
    method = str(recipe.get("method", "svpo"))
    for table in ("journal", "trees"):
        db.execute(f"ALTER TABLE {table} RENAME TO {table}_1")
        (statement,) = (s for s in TABLES.split(";") if s.strip().startswith(f"CREATE TABLE {table} "))
        db.execute(statement)
    for stage, tree, path, number, request, blob in db.execute("SELECT * FROM journal_1 ORDER BY rowid"):
        packed = codec.pack_expansion(*codec_1.unpack_expansion(blob))
        values = (stage, tree, path, policy_name(stage, number, method), request, packed)
        db.execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", values)
    for stage, key, problem, number, _, *counts, blob in db.execute("SELECT * FROM trees_1 ORDER BY rowid"):
        policy = policy_name(stage, number, method)
        tree = codec_1.unpack_tree(blob, policy)
        values = (stage, key, problem, policy, codec.digest_tree(tree).hex(), *counts, codec.pack_tree(tree))
        db.execute("INSERT INTO trees VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    for table in ("journal", "trees"):
        db.execute(f"DROP TABLE {table}_1")
